"""Documents that were measured before an interruption are not measured again, and give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_tools import differences, text_file, tiny_checkpoint, write_config

from drift.running import keeping, tracing
from drift.running.keeping import KEPT_FOLDER, KeptDocuments, Measured
from drift.running.sweep.config import load_config
from drift.running.sweep.outcome import Interrupted
from drift.running.sweep.running import run
from drift.writing import temporary_name

SWITCHES = {"tf32": False, "half_matmul": "native"}


def measured() -> Measured:
    nan = np.array([np.nan, -0.0, np.inf, 5e-324])
    return [
        {"hidden_rel_l2": nan.reshape(2, 2), "steps": np.arange(3, dtype=np.int64)},
        {"hidden_rel_l2": nan.astype(np.float32), "one": np.float64(2.5), "said": np.array([True, False])},
    ]


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    kept = KeptDocuments(tmp_path, {"cells": [1]})
    assert kept.load(0, SWITCHES) is None
    kept.save(0, SWITCHES, measured())
    found = kept.load(0, SWITCHES)
    assert found is not None
    for got, want in zip(found, measured(), strict=True):
        assert got.keys() == want.keys()
        for name, values in want.items():
            values = np.asarray(values)
            assert (got[name].dtype, got[name].shape) == (values.dtype, values.shape)
            assert got[name].tobytes() == values.tobytes()


def test_another_identity_code_or_arithmetic_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptDocuments(tmp_path, {"cells": [1]})
    kept.save(0, SWITCHES, measured())
    assert kept.load(1, SWITCHES) is None
    assert kept.load(0, SWITCHES | {"tf32": True}) is None
    assert KeptDocuments(tmp_path, {"cells": [2]}).load(0, SWITCHES) is None
    monkeypatch.setattr(keeping, "_code", lambda: "another")
    assert KeptDocuments(tmp_path, {"cells": [1]}).load(0, SWITCHES) is None


@pytest.mark.parametrize("size", [0, 7, 40, -1])
def test_a_damaged_file_is_measured_again(tmp_path: Path, size: int) -> None:
    kept = KeptDocuments(tmp_path, {})
    kept.save(0, SWITCHES, measured())
    (path,) = (tmp_path / KEPT_FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:size])
    assert kept.load(0, SWITCHES) is None


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / KEPT_FOLDER).write_text("a file")
    kept = KeptDocuments(tmp_path, {})
    kept.save(0, SWITCHES, measured())
    assert kept.load(0, SWITCHES) is None
    kept.forget()


def test_nothing_is_written_or_removed_behind_a_link_or_under_another_name(tmp_path: Path) -> None:
    elsewhere, sweep = tmp_path / "elsewhere", tmp_path / "sweep"
    elsewhere.mkdir()
    sweep.mkdir()
    theirs = elsewhere / f"{'0' * 64}.0.safetensors"
    theirs.write_text("theirs")
    (sweep / KEPT_FOLDER).symlink_to(elsewhere)
    kept = KeptDocuments(sweep, {})
    kept.save(0, SWITCHES, measured())
    keeping.forget_documents(sweep)
    assert list(elsewhere.iterdir()) == [theirs]
    (sweep / KEPT_FOLDER).unlink()
    kept.save(0, SWITCHES, measured())
    (sweep / KEPT_FOLDER / "notes.txt").write_text("mine")
    keeping.forget_documents(sweep)
    assert [path.name for path in (sweep / KEPT_FOLDER).iterdir()] == ["notes.txt"]


def test_what_a_killed_process_left_goes_with_its_group(tmp_path: Path) -> None:
    kept, other = KeptDocuments(tmp_path, {"cells": [1]}), KeptDocuments(tmp_path, {"cells": [2]})
    kept.save(0, SWITCHES, measured())
    other.save(0, SWITCHES, measured())
    whole = next(path for path in (tmp_path / KEPT_FOLDER).iterdir() if kept._key in path.name)
    whole.rename(temporary_name(whole))
    kept.forget()
    assert other.load(0, SWITCHES) is not None
    other.forget()
    assert not (tmp_path / KEPT_FOLDER).exists()


def configuration(folder: Path) -> Path:
    tiny_checkpoint(folder / "tiny")
    text_file(folder / "text.txt")
    return write_config(
        folder / "kept.yaml",
        model=str(folder / "tiny"),
        dtype="fp32",
        chunk_size=[8, 16],
        protocol=["append", "decode(append,tokens=4)"],
        documents=3,
        tokens=32,
        corpus=str(folder / "text.txt"),
        device="cpu",
        floor_draws=1,
    )


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_group_goes_on_with_the_next_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    config = load_config(configuration(tmp_path))
    run(config, tmp_path / "undisturbed", jobs=1)
    assert not (tmp_path / "undisturbed" / KEPT_FOLDER).exists()

    document = tracing._Passes._document
    taken: list[int] = []

    def watched(self: Any, index: int, *rest: Any) -> Measured:
        if index == 2 and len(taken) == 2:
            taken.append(-1)
            raise KeyboardInterrupt
        taken.append(index)
        return document(self, index, *rest)

    monkeypatch.setattr(tracing._Passes, "_document", watched)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "resumed", jobs=1)
    assert len(list((tmp_path / "resumed" / KEPT_FOLDER).iterdir())) == 2
    run(config, tmp_path / "resumed", jobs=1, force=force)
    assert taken == [0, 1, -1, *([0, 1] if force else []), 2]
    assert not (tmp_path / "resumed" / KEPT_FOLDER).exists()
    names = sorted(path.name for path in (tmp_path / "undisturbed").glob("*.nc"))
    assert len(names) == 4
    assert differences(tmp_path / "undisturbed", tmp_path / "resumed", names) == []
