"""Captured lanes are bit for bit a plain loop's, and the diagnosis takes them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model
from diagnose_tools import lane, random_model, text, unaccused
from safetensors import safe_open
from safetensors.torch import load_file
from sweep_tools import text_file, tiny_checkpoint

from drift.capture import main
from drift.errors import ConfigError, DatasetError
from drift.reading.diagnose.model import Cause
from drift.reading.diagnose.tensors import open_dump
from drift.reading.diagnose.verdict import diagnose
from drift.running.capturing import capture

pytestmark = pytest.mark.numerical


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.iterdir() for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("family", "dtype", "size"), [("llama", "bf16", 8), ("gemma3", "fp32", 7), ("qwen2", "fp32", 0)]
)
def test_equals_a_plain_loop(tmp_path: Path, family: str, dtype: str, size: int) -> None:
    model = random_model(family, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    ids = text(40)
    got = read(capture(model, ids.numpy(), size, "append", tmp_path / "out", cache=True))
    want = lane(model, ids, size, cache=True)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor[0]), name


def test_the_diagnosis_takes_what_was_captured(tmp_path: Path) -> None:
    model, ids = make_model("mistral", "bfloat16"), text(40).numpy()
    full = open_dump(capture(model, ids, 0, "append", tmp_path / "full"))
    folded = open_dump(capture(model, ids, 8, "append", tmp_path / "folded", cache=True, logits="last"))
    assert unaccused(diagnose(full, folded))
    shifted = open_dump(capture(model, ids, 8, "shifted(append,step=2)", tmp_path / "shifted", logits="none"))
    found = diagnose(full, shifted)
    assert found.cause is Cause.POSITION_OFFSET
    assert found.entry is not None
    assert found.entry.step_b == 2


def test_a_floor_has_noise_of_one_unit_roundoff_on_its_embeddings(tmp_path: Path) -> None:
    model, ids = make_model("llama", "bfloat16"), text(40).numpy()
    plain = read(capture(model, ids, 0, "append", tmp_path / "plain"))["step.0.layer.0.hidden"].double()
    drawn = []
    for seed in (1, 2):
        noisy = read(capture(model, ids, 8, f"full(noise=1,seed={seed})", tmp_path / f"{seed}"))
        assert noisy.keys() == read(tmp_path / "plain").keys()
        drawn.append(noisy["step.0.layer.0.hidden"].double())
        # Gaussian noise of that size, rounded once more.
        moved = float((drawn[-1] - plain).norm() / plain.norm())
        assert 0.75 * 2.0**-8 < moved < 1.5 * 2.0**-8
    assert not torch.equal(*drawn)


def test_prefixes_are_left_out_of_every_tensor(tmp_path: Path) -> None:
    model, ids = make_model("llama"), text(24).numpy()
    folder = capture(model, ids, 8, "reprime", tmp_path / "out", cache=True)
    tensors = read(folder)
    assert tensors["step.2.block.1.cache_key"].shape[1] == 24
    joined = torch.cat([tensors[f"step.{k}.block.1.key"] for k in range(3)], 1)
    assert torch.equal(tensors["step.2.block.1.cache_key"], joined)
    assert open_dump(folder).boundaries == [0, 8, 16, 24]


def test_logits_of_the_last_tokens_line_up(tmp_path: Path) -> None:
    model, ids = make_model("llama"), text(24).numpy()
    every, last = (read(capture(model, ids, 8, "append", tmp_path / w, logits=w)) for w in ("all", "last"))
    for k in range(3):
        assert torch.equal(every[f"step.{k}.logits"][-1:], last[f"step.{k}.logits"])


def test_metadata_say_what_it_was_made_with(tmp_path: Path) -> None:
    folder = capture(make_model("llama"), text(16).numpy(), 8, "append", tmp_path / "out", attrs={"corpus": "mine"})
    for path in folder.iterdir():
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        assert {"drift_version", "versions_json", "tokens_sha256", "numerics_json", "threads"} <= metadata.keys()
        assert (metadata["dtype"], metadata["protocol"], metadata["corpus"]) == ("fp32", "append", "mine")
        assert metadata["experts"] == "0"


@pytest.mark.parametrize("family", ["qwen3-moe", "olmoe"])
def test_metadata_say_how_many_experts_there_are(tmp_path: Path, family: str) -> None:
    folder = capture(make_model(family), text(16).numpy(), 8, "append", tmp_path / "out")
    assert open_dump(folder).metadata["experts"] == "4"


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model("llama"), text(16).numpy()
    with pytest.raises(ConfigError, match="means nothing"):
        capture(model, ids, 0, "restart", tmp_path / "out")
    with pytest.raises(ConfigError, match="One lane holds one document"):
        capture(model, np.stack([ids, ids]), 8, "append", tmp_path / "out")
    with pytest.raises(ConfigError, match="logits is"):
        capture(model, ids, 8, "append", tmp_path / "out", logits="some")
    with pytest.raises(ConfigError, match="chunk_size is -1"):
        capture(model, ids, -1, "append", tmp_path / "out")
    with pytest.raises(ConfigError, match="the model is in"):
        capture(model, ids, 8, "append", tmp_path / "out", dtype="bf16")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not an empty folder"):
        capture(model, ids, 8, "append", tmp_path / "taken")

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(DatasetError, match="No space left"):
        capture(model, ids, 8, "append", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny_checkpoint(tmp_path / "tiny"))
    words = f"file:{text_file(tmp_path / 'text.txt')}"
    common = [model, "--tokens", "64", "--corpus", words, "--dtype", "fp32"]
    assert main([*common, "--full", "--out", str(tmp_path / "a")]) == 0
    assert main([*common, "--chunk-size", "16", "--cache", "--out", str(tmp_path / "b")]) == 0
    assert "files" in capsys.readouterr().out
    assert diagnose(open_dump(tmp_path / "a"), open_dump(tmp_path / "b")).exit_code == 0
    assert main([*common, "--full", "--out", str(tmp_path / "a")]) == 2
    assert main([*common, "--chunk-size", "65", "--out", str(tmp_path / "c")]) == 2
    assert main([*common, "--protocol", "nonsense", "--out", str(tmp_path / "c")]) == 2
    assert capsys.readouterr().err.count("drift.capture: ") == 3
    assert not (tmp_path / "c").exists()


def test_help_costs_no_torch() -> None:
    program = (
        "import sys; sys.argv[1:] = ['--help']; import drift.capture\n"
        "try: drift.capture.main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
    assert time.monotonic() - start < 10  # 0.2 s on an idle machine
