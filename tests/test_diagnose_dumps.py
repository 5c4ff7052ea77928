"""Dumps as files: formats, what is refused, and the command line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diagnose_tools
import numpy as np
import pytest
import torch
from diagnose_tools import CHUNK, Tensors, lane, pair, rounded, save, unaccused
from hypothesis import given
from hypothesis import strategies as st

from drift.diagnose import main
from drift.errors import DatasetError
from drift.reading.diagnose.compare import compare
from drift.reading.diagnose.envelope import derive, roundoff
from drift.reading.diagnose.model import Diagnosis
from drift.reading.diagnose.tensors import FORMATS, Place, fits, open_dump, written

pytestmark = pytest.mark.numerical


judge = diagnose_tools.judge


# ------------------------------------------------------------------------------------------------ formats
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(["BF16", "F16", "F8_E4M3", "F8_E5M2"])
)
def test_rounding_to_formats_is_that_of_torch(number: float, name: str) -> None:
    kinds = {"BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    form = FORMATS[name]
    value = torch.tensor([max(-form.largest, min(form.largest, number))], dtype=torch.float64).float()
    theirs = value.to(getattr(torch, kinds[name])).float().numpy()
    ours = written(value.numpy(), form)
    assert ours == theirs
    assert fits(theirs, form)
    assert fits(value.numpy(), form) == bool(value.numpy() == theirs)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_every_format_is_read_as_torch_reads_it(tmp_path: Path, kind: str) -> None:
    numbers = torch.linspace(-3, 3, 24).reshape(1, 6, 4).to(getattr(torch, kind))
    folder = save({"step.0.block.1.key": numbers, "step.0.layer.0.hidden": numbers[0]}, tmp_path / kind)
    dump = open_dump(folder)
    assert np.array_equal(dump.read(Place("key", 1), 2, 5), numbers[:, 2:5].double().numpy())
    assert np.array_equal(dump.read(Place("hidden", 0), 0, 6), numbers[0].double().numpy())
    assert dump.boundaries == [0, 6]


def test_numbers_of_a_narrow_format_set_the_unit_roundoff(judge: Callable[..., Diagnosis]) -> None:
    model, ids, full = pair("llama", "bf16")
    widened = [{k: v.float() for k, v in x.items()} for x in (full, rounded(lane(model, ids, CHUNK)))]
    found = judge(*widened)
    assert found.roundoff.value == 2.0**-8
    assert unaccused(found)


# ------------------------------------------------------------------------------------------------ bad input
def broken(tmp_path: Path, tensors: Tensors) -> Path:
    return save(tensors, tmp_path / "bad")


BAD: dict[str, tuple[Tensors, str]] = {
    "names": ({"model.layers.0.key": torch.ones(2, 3, 4)}, "model.layers.0.key"),
    "integers": ({"step.0.layer.0.hidden": torch.ones(3, 4, dtype=torch.int32)}, "I32"),
    "rank": ({"step.0.block.1.key": torch.ones(3, 4)}, r"must be \[head, token, feature\]"),
    "batch": ({"step.0.block.1.key": torch.ones(2, 2, 3, 4)}, "one sequence at a time"),
    "tokens": ({"step.0.block.1.key": torch.ones(2, 3, 4), "step.0.block.1.value": torch.ones(2, 5, 4)}, "3 tokens"),
    "gap": (
        {"step.0.layer.0.hidden": torch.ones(3, 4), "step.2.layer.0.hidden": torch.ones(3, 4)},
        "steps 1 are missing",
    ),
    "zero": ({"step.0.block.0.key": torch.ones(2, 3, 4)}, "count from 1"),
    "widths": ({"step.0.layer.0.hidden": torch.ones(3, 4), "step.1.layer.0.hidden": torch.ones(3, 5)}, "one model's"),
    "caches": ({"step.0.block.1.cache_key": torch.ones(2, 3, 4)}, "caches only"),
    "logits": ({"step.0.layer.0.hidden": torch.ones(3, 4), "step.0.logits": torch.ones(5, 9)}, "5 rows"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_dumps_are_refused_by_name(tmp_path: Path, what: str) -> None:
    tensors, words = BAD[what]
    with pytest.raises(DatasetError, match=words):
        open_dump(broken(tmp_path, tensors))


def test_bad_files_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save({"step.0.layer.0.hidden": torch.randn(3, 4)}, tmp_path / "good")
    data = (good / "lane.safetensors").read_bytes()
    cases = {
        "cut": data[:-8], "short": data[:5], "huge": struct.pack("<Q", 1 << 60) + data[8:], "empty": b"",
        "text": b"not a tensor at all",
        "json": struct.pack("<Q", 4) + b"[1,2" + data,
        "list": struct.pack("<Q", 2) + b"[]",
    }  # fmt: skip
    for name, content in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "lane.safetensors").write_bytes(content)
        assert main([str(good), str(folder)]) == 2, name
        words = capsys.readouterr().err
        assert words.startswith("drift.diagnose: ")
        assert name in words
    (tmp_path / "nothing").mkdir()
    assert main([str(good), str(tmp_path / "nothing")]) == 2
    assert main([str(good), str(tmp_path / "absent")]) == 2
    save({"step.0.layer.0.hidden": torch.ones(3, 4)}, tmp_path / "twice")
    (tmp_path / "twice" / "again.safetensors").write_bytes(data)
    assert main([str(good), str(tmp_path / "twice")]) == 2
    assert "there twice" in capsys.readouterr().err
    other = save({"step.0.layer.1.hidden": torch.ones(3, 4)}, tmp_path / "other")
    assert main([str(good), str(other)]) == 2
    assert "no tensor in common" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([str(good), str(good), "--unit-roundoff", "bf8"])
    assert stop.value.code == 2


# ------------------------------------------------------------------------------------------------ command line
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, ids, full = pair("gemma3", "bf16")
    a = save(full, tmp_path / "a")
    b = save(lane(model, ids, CHUNK), tmp_path / "b")
    c = save(lane(model, ids, CHUNK, position=lambda k, s: s + (k >= 3)), tmp_path / "c")
    assert main([str(a), str(a)]) == 0
    assert "SAME BITS" in capsys.readouterr().out
    assert main([str(a), str(b), "--floor", str(b), "--unit-roundoff", "bf16"]) == 0
    capsys.readouterr()
    assert main([str(a), str(c)]) == 1
    words = capsys.readouterr().out
    assert "STRUCTURAL" in words
    assert "position offset of +1" in words
    assert "step 3 of B" in words
    assert len(words.splitlines()) < 60
    assert main([str(a), str(c), "--json", "--other-precision", str(a), str(b)]) == 1
    row = json.loads(capsys.readouterr().out)
    assert row["cause"] == "position_offset"
    assert {"verdict", "step", "block", "kind", "tokens", "evidence", "envelope", "compared"} <= row.keys()


def test_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, drift.diagnose\n"
        "try: drift.diagnose.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pandas', 'xarray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_a_large_dump_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift.reading.diagnose.compare.ROWS", 16)
    model, ids, full = pair()
    pieces = compare(open_dump(save(full, tmp_path / "a")), open_dump(save(lane(model, ids, 24), tmp_path / "b")))
    monkeypatch.undo()
    whole = compare(open_dump(tmp_path / "a"), open_dump(tmp_path / "b"))
    for place, profile in whole.profiles.items():
        assert np.array_equal(profile.difference, pieces.profiles[place].difference)
        assert profile.differing == pieces.profiles[place].differing
    assert derive(whole, roundoff(whole)).keys() == whole.profiles.keys()
