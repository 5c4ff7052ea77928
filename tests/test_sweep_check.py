"""``--check``, and folders into which the cells of several machines were copied."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from sweep_tools import REPOSITORY, cells, text_file, tiny_checkpoint, write_config

from drift import dataset
from drift.errors import ConfigError
from drift.running.sweep import checking
from drift.running.sweep.checking import FINDINGS, check
from drift.running.sweep.running import run
from drift.sweep import main


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration of four cells, and the folder of a finished run."""
    here = tmp_path_factory.mktemp("check")
    tiny_checkpoint(here / "tiny")
    config = configure(here / "four.yaml", here)
    assert run(config, here / "finished").done == 4
    return config, here / "finished"


def configure(path: Path, here: Path, **changes: Any) -> Path:
    if not (here / "text.txt").exists():
        text_file(here / "text.txt")
    axes: dict[str, Any] = {
        "name": "four",
        "model": str(here / "tiny"),
        "dtype": ["bf16", "fp32"],
        "chunk_size": [8, 16],
        "tokens": 32,
        "corpus": f"file:{here / 'text.txt'}",
        "device": "cpu",
    }
    return write_config(path, **(axes | changes))


@pytest.fixture
def out(bench: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished folder, to be spoiled."""
    shutil.copytree(bench[1], tmp_path / "out")
    return tmp_path / "out"


# ---------------------------------------------------------------- each finding


def first(out: Path) -> Path:
    return sorted(out.glob("*.nc"))[0]


def second(out: Path) -> Path:
    return sorted(out.glob("*.nc"))[1]


def truncate(out: Path) -> str:
    path = first(out)
    path.write_bytes(path.read_bytes()[:3000])
    return path.name


def flip_a_bit(out: Path) -> str:
    """In the numbers, where nothing but a checksum can notice."""
    path = first(out)
    with h5py.File(path) as file:
        place = file["hidden_rel_l2"].id.get_chunk_info(0)
    payload = bytearray(path.read_bytes())
    payload[place.byte_offset + place.size // 2] ^= 1
    path.write_bytes(payload)
    return path.name


def other_file(out: Path) -> str:
    (out / "notes.nc").write_text("not a cell")
    return "notes.nc"


def break_the_contract(out: Path) -> str:
    with h5py.File(first(out), "r+") as file:
        del file.attrs["driver"]
    return first(out).name


def name_a_group_like_a_finding(out: Path) -> str:
    """What is wrong with a file is known where it is found, not read out of the words for it."""
    with h5py.File(first(out), "r+") as file:
        file.create_group("schema of the data contract")
    return first(out).name


def edit_the_record(out: Path) -> str:
    with h5py.File(first(out), "r+") as file:
        file.attrs["config_json"] = file.attrs["config_json"].replace('"seed":0', '"seed":1')
    return first(out).name


def edit_record_and_hash(out: Path) -> str:
    path = first(out)
    ds = dataset.read(path)
    record = json.loads(ds.attrs["config_json"]) | {"chunk_size": 4, "documents": 7}
    ds.attrs["config_json"], ds.attrs["config_sha256"] = dataset.canonical_json(record), dataset.content_hash(record)
    dataset.write(ds, path)
    return path.name


def rename(out: Path) -> str:
    path = first(out)
    path.rename(out / f"{path.stem[:-16]}{'0' * 16}.nc")
    return f"{path.stem[:-16]}{'0' * 16}.nc"


def lose(out: Path) -> str:
    name = first(out).name
    first(out).unlink()
    return name


def copy_beside(out: Path) -> str:
    shutil.copy(first(out), out / "copy.nc")
    return "copy.nc"


def copy_altered(out: Path) -> str:
    ds = dataset.read(first(out))
    ds["hidden_max_abs"] = ds["hidden_max_abs"] + 1.0
    ds["hidden_max_abs"].attrs = dataset.read(first(out))["hidden_max_abs"].attrs
    dataset.write(ds, out / "altered.nc")
    return "altered.nc"


def same_point_other_torch(out: Path) -> str:
    original = first(out)
    ds = dataset.read(original)
    record = json.loads(ds.attrs["config_json"])
    record["versions"]["torch"] = "1.0"
    ds.attrs["config_json"], ds.attrs["config_sha256"] = dataset.canonical_json(record), dataset.content_hash(record)
    name = f"{original.stem[:-16]}{ds.attrs['config_sha256'][:16]}.nc"
    dataset.write(ds, out / name)
    (out / "sweep.json").unlink()
    return max(name, original.name)


def foreign_cell(out: Path) -> str:
    record = json.loads((out / "sweep.json").read_text())
    record["cells"] = [cell for cell in record["cells"] if cell["file"] != first(out).name]
    (out / "sweep.json").write_text(json.dumps(record))
    return first(out).name


def damage_the_plan(out: Path) -> str:
    (out / "sweep.json").write_text('{"cells": [')
    return "sweep.json"


def plan_with(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], str]:
    def spoil(out: Path) -> str:
        record = json.loads((out / "sweep.json").read_text())
        change(record["cells"])
        (out / "sweep.json").write_text(json.dumps(record))
        return "sweep.json"

    return spoil


def half_a_file(out: Path) -> str:
    (out / f".{first(out).name}.12-ab.tmp").write_text("half")
    return f".{first(out).name}.12-ab.tmp"


def set_aside(out: Path) -> str:
    shutil.copy(first(out), out / f"{first(out).name}.broken1")
    return f"{first(out).name}.broken1"


CASES: dict[str, tuple[Callable[[Path], str], set[str], str]] = {
    "truncated": (truncate, {"damaged"}, "run the sweep again"),
    "a flipped bit": (flip_a_bit, {"damaged"}, "run the sweep again"),
    "not a cell": (other_file, {"damaged", "stranger"}, "move it"),
    "no driver": (break_the_contract, {"contract"}, "run the sweep again"),
    "a group of a telling name": (name_a_group_like_a_finding, {"damaged"}, "run the sweep again"),
    "record edited": (edit_the_record, {"config"}, "run the sweep again"),
    "record and hash edited": (edit_record_and_hash, {"config", "name"}, "rename it back"),
    "renamed": (rename, {"name", "missing", "stranger"}, "rename it back"),
    "lost": (lose, {"missing"}, "copy it here"),
    "copied beside": (copy_beside, {"duplicate", "name", "stranger"}, "move it out of the folder"),
    "copied and altered": (copy_altered, {"duplicate", "name", "stranger"}, "whose origin you trust"),
    "another torch": (same_point_other_torch, {"duplicate"}, "one set of circumstances"),
    "foreign": (foreign_cell, {"stranger"}, "rename sweep.json"),
    "plan damaged": (damage_the_plan, {"plan"}, "cells are kept"),
    "plan names a cell twice": (plan_with(lambda listed: listed.append(listed[0])), {"plan"}, "cells are kept"),
    "plan contradicts a name": (plan_with(lambda c: c[0].update(hash="f" * 64)), {"plan"}, "cells are kept"),
    "plan contradicts a cell": (
        plan_with(lambda c: c[0].update(hash=c[0]["hash"][:16] + "f" * 48)),
        {"plan"},
        "cells are kept",
    ),
    "half a file": (half_a_file, {"leftover"}, "which clears it away"),
    "set aside": (set_aside, {"leftover"}, "no reader takes it for a cell"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_finding_fires_and_says_what_to_do(case: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, kinds, remedy = CASES[case]
    file = spoil(out)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir())
    assert main(["--check", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {finding["kind"] for finding in found["findings"]} == kinds
    assert any(finding["file"] == file and remedy in finding["remedy"] for finding in found["findings"])
    assert all(finding["problem"] and finding["remedy"] for finding in found["findings"])
    assert found["exit_code"] == 1
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir()) == before, "it only looks"
    assert main(["--check", str(out)]) == 1
    text = capsys.readouterr().out
    assert file in text
    assert remedy in text


def test_every_kind_has_a_case() -> None:
    assert set().union(*(kinds for _, kinds, _ in CASES.values())) == set(FINDINGS)


def test_a_sound_folder(
    bench: tuple[Path, Path], out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--check", str(out)]) == 0
    assert "4 of 4 cells sound (4 planned); nothing wrong" in capsys.readouterr().out
    one = check(out)
    monkeypatch.setattr(checking, "_PARALLEL_FROM", 2)
    monkeypatch.setattr(checking, "cores", lambda: 2)
    first(out).unlink()
    (out / "sweep.json").unlink()
    several = check(out)
    assert (one.sound, several.sound, several.planned, several.exit) == (4, 3, None, 0)
    with pytest.raises(ConfigError, match="no such folder"):
        check(out / "nowhere")


def test_a_sweep_that_is_not_complete_is_not_wrong(bench: tuple[Path, Path], tmp_path: Path) -> None:
    assert run(bench[0], tmp_path / "out", limit=1).done == 1
    report = check(tmp_path / "out")
    assert (report.exit, report.pending, report.sound) == (0, 3, 1)
    assert "3 not computed yet" in report.lines()[-1]


def test_it_needs_neither_torch_nor_dask(out: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, dask=None, distributed=None); "
        f"from drift.sweep import main; sys.exit(main(['--check', {str(out)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- merging by copying


def copy_cells(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.glob("*.nc"):
        shutil.copy(path, target)


@pytest.mark.parametrize("kept", ["neither", "first", "second"])
def test_parts_of_one_plan_merge_by_copying(bench: tuple[Path, Path], tmp_path: Path, kept: str) -> None:
    config, undisturbed = bench
    parts = [tmp_path / "first", tmp_path / "second"]
    for part, dtype in zip(parts, ("bf16", "fp32"), strict=True):
        assert len(run(config, part, only=[f"dtype={dtype}"]).files) == 2
    merged = tmp_path / "merged"
    for part in parts:
        copy_cells(part, merged)
    if kept != "neither":
        shutil.copy(tmp_path / kept / "sweep.json", merged)
    before = cells(merged)
    assert sorted(before) == sorted(cells(undisturbed))
    # Before anything is run there ...
    assert check(merged).exit == 0
    assert len(dataset.open_sweep(merged)) == 4
    assert dataset.open_sweep(merged).failures == []
    # ... and after.
    assert run(config, merged).files == []
    assert cells(merged) == before
    assert check(merged).exit == 0
    assert len(dataset.open_sweep(merged)) == 4
    states = [cell["state"] for cell in json.loads((merged / "sweep.json").read_text())["cells"]]
    assert states == ["done"] * 4


def test_what_failed_here_and_was_computed_there(bench: tuple[Path, Path], out: Path) -> None:
    record = json.loads((out / "sweep.json").read_text())
    record["cells"][0]["state"] = "failed"
    record["failures"] = [{"file": record["cells"][0]["file"], "reason": "out of memory"}]
    (out / "sweep.json").write_text(json.dumps(record))
    assert dataset.open_sweep(out).failures == []
    assert check(out).exit == 0
    assert run(bench[0], out).failed == 0


def test_two_plans_merge_under_a_plan_that_has_both(bench: tuple[Path, Path], out: Path, tmp_path: Path) -> None:
    here = bench[0].parent
    other = configure(tmp_path / "other.yaml", here, name="other", dtype="fp64", chunk_size=8)
    assert len(run(other, tmp_path / "other").files) == 1
    copy_cells(tmp_path / "other", out)
    # Under the plan of one, the cells of the other are strangers.
    assert [finding.kind for finding in check(out).findings] == ["stranger"]
    assert len(dataset.open_sweep(out)) == 4
    # Without a plan, all count.
    record = (out / "sweep.json").read_bytes()
    (out / "sweep.json").unlink()
    assert check(out).exit == 0
    assert len(dataset.open_sweep(out)) == 5
    # Under a plan that has both, all count, and what neither had is computed.
    (out / "sweep.json").write_bytes(record)
    both = configure(
        tmp_path / "both.yaml", here, name="both",
        grids=[{"dtype": ["bf16", "fp32"]}, {"dtype": "fp64", "chunk_size": 8}],
    )  # fmt: skip
    before = cells(out)
    assert run(both, out).files == []
    assert cells(out) == before
    assert check(out).exit == 0
    assert len(dataset.open_sweep(out)) == 5
    assert min(dataset.open_sweep(out).values("unit_roundoff")) == 2.0**-53
