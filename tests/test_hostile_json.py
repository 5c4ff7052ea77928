"""JSON from outside: one reader, by size, depth and form; one broken entry takes no other along."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import pytest
import synthetic
import xarray as xr

from drift import dataset, report
from drift._bounds import MOST_DEPTH, MOST_PARAMETER_BYTES
from drift._outside import Form, OutsideError, parse_json, read_bytes, read_json
from drift.dataset.plans import read_plan
from drift.errors import DatasetError
from drift.reading.diagnose.tensors import open_dump
from drift.reading.summary.inventory import failures
from drift.reading.summary.reproducing import reproduce
from drift.running.sweep.checking import check
from drift.running.sweep.recomputing import requests
from drift.running.sweep.state import Folder

SMALL: dict[str, Any] = {"model": "tiny", "layers": 4, "documents": 1, "tokens": 48, "chunk_size": 16}
DEEP = "[" * 10_000 + "]" * 10_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound cells."""
    folder = tmp_path_factory.mktemp("sound")
    for protocol in ("append", "restart"):
        dataset.write(synthetic.cell(**SMALL, protocol=protocol), folder / f"{protocol}.nc")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """The two, to be spoiled."""
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def entry(file: str) -> dict[str, Any]:
    return {"file": file, "state": "done"}


# ---------------------------------------------------------------- the reader
@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"a":' * 10_000,
        "[" * 200_000,
        "[]" * 100_000,
        "9" * 5000,
        "\ud800",
        "nul",
        "",
        '"\\ud800',
        "{1: 2}",
        "[1,]",
    ],
)
def test_what_is_no_json_of_a_sane_depth_is_refused(text: str) -> None:
    with pytest.raises(OutsideError):
        parse_json(text)


def test_depth_is_that_of_brackets_outside_texts() -> None:
    assert parse_json(json.dumps("[" * 1000 + '"\\')) == "[" * 1000 + '"\\'
    nested = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert parse_json(nested)
    with pytest.raises(OutsideError, match="deep"):
        parse_json(f"[{nested}]")


def test_files_are_read_up_to_a_bound_and_only_where_they_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", Form.OBJECT) == {"a": 1}
    with pytest.raises(OutsideError, match="8 bytes long; at most 7"):
        read_bytes(tmp_path / "a.json", 7)
    assert read_bytes("/proc/self/status", 1 << 20).startswith(b"Name:")  # of size 0, the system says
    with pytest.raises(OutsideError, match="more than 4 bytes"):
        read_bytes("/proc/self/status", 4)
    tracemalloc.start()
    try:
        read_bytes(tmp_path / "a.json", 1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # no room is made for the bound
    finally:
        tracemalloc.stop()
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "pipe"), (tmp_path, "folder"), ("/dev/zero", "device"), ("a\0b", "no name")):
        with pytest.raises(OutsideError, match=said):
            read_bytes(path, 100)


@pytest.mark.parametrize("value", [DEEP, "[" * 20_000, "[" * 2 * MOST_PARAMETER_BYTES])
def test_a_parameter_on_the_command_line_may_be_nested_as_it_likes(value: str) -> None:
    assert report._plain(value) == value  # text, then: it is no JSON that is taken


# ---------------------------------------------------------------- sweep.json
BROKEN: dict[str, Any] = {
    "cells null": {"cells": None},
    "cells a number": {"cells": 7},
    "cells of numbers": {"cells": [1, 2, None, [[]], "x"]},
    "a file that is a list": {"cells": [{"file": ["append.nc"]}]},
    "a file elsewhere": {"cells": [{"file": "../../append.nc"}]},
    "failures a number": {"cells": [], "failures": 3},
    "failures of anything": {"failures": [1, None, {"file": 3}, {"reason": []}, {"config": 5}]},
    "a failure without a reason": {"failures": [{"file": "gone.nc"}]},
    "a failure that is a text": {"failures": ["no network"]},
    "a cell that is a text": {"failures": [{"cell": "a model in bf16"}]},
    "config a list": {"config": []},
    "grids null": {"config": {"grids": None}},
    "grids of numbers": {"config": {"grids": [1]}},
    "groups": {"groups": [{"device": 1, "dtype": "bf16", "estimated_s": "1"}, 3]},
    "times that are none": {"groups": [{"device": "cpu", "dtype": "bf16", "estimated_s": float("nan")}]},
    "name": {"name": {"a": 1}},
    "at work on": {"at_work_on": [1]},
    "state": {"cells": [{"file": "append.nc", "state": {}}]},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plan_takes_no_cell_along(folder: Path, case: str) -> None:
    (folder / "sweep.json").write_text(json.dumps(BROKEN[case]))
    sweep = dataset.open_sweep(folder)
    assert len(sweep) == 2
    failures(sweep)
    assert "python -m drift" in reproduce(sweep)
    check(folder).lines()
    survey = Folder(folder).survey({"append.nc": "0" * 64, "gone.nc": "1" * 64})
    assert all(isinstance(failure["reason"], str) for failure in survey.failures.values())
    assert len(requests(folder, [])) == 2


@pytest.mark.parametrize("text", ['{"cells": [', "[1]", "null", DEEP, '{"cells": ' + DEEP + "}", "\0", "\ud800"])
def test_a_plan_that_is_none_is_a_problem_and_the_cells_are_read(folder: Path, text: str) -> None:
    (folder / "sweep.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    sweep = dataset.open_sweep(folder)
    assert len(sweep) == 2
    assert list(sweep.problems) == [str(folder / "sweep.json")]
    assert [finding.kind for finding in check(folder).findings].count("plan") == 1
    assert "unreadable" in Folder(folder).survey({}).notes[0]


def test_a_broken_entry_is_told_and_the_others_count(folder: Path) -> None:
    plan = {"cells": [entry("append.nc"), {"file": 5}, entry("restart.nc")], "failures": [{"reason": "no network"}, 7]}
    (folder / "sweep.json").write_text(json.dumps(plan))
    read = read_plan(folder / "sweep.json")
    assert [e["file"] for e in read.cells] == ["append.nc", "restart.nc"]
    assert [f["reason"] for f in read.failures or []] == ["no network"]
    assert [problem.split(":")[0] for problem in read.problems] == ["cells[1]", "failures[1]"]
    (told,) = dataset.open_sweep(folder).problems.values()
    assert "cells[1]" in told
    assert "1 more" in told


# ---------------------------------------------------------------- attributes of cells
ATTRIBUTES: dict[str, list[str]] = {
    "config_json": ["[]", "3", '"text"', "null", DEEP, '{"tokens": "many"}', '{"versions": []}', '{"documents": true}'],
    "versions_json": ["[]", "null", '{"torch": 2}', '{"torch": null}', DEEP],
    "numerics_json": ["[]", "null", DEEP],
    "thinned_json": ["[]", "{}", '{"layers": 3}', '{"layers": [0, 1, 2], "layers_of": 3, "bits": "4"}', DEEP],
    "other_json": [DEEP, "{"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ATTRIBUTES.items() for value in values])
def test_one_damaged_cell_takes_no_other_along(folder: Path, name: str, value: str) -> None:
    ds = dataset.read(folder / "append.nc")
    ds.attrs[name] = value
    if name == "config_json":
        ds.attrs["config_sha256"] = synthetic_hash(value)
    with pytest.raises(DatasetError, match=name):
        dataset.validate(ds)
    unchecked(ds, folder / "append.nc")
    sweep = dataset.open_sweep(folder)
    assert len(sweep) == 1
    assert name in sweep.problems[str(folder / "append.nc")]
    assert {finding.file for finding in check(folder).findings if finding.kind == "contract"} == {"append.nc"}
    assert len(requests(folder, [])) == 2


def synthetic_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def unchecked(ds: xr.Dataset, path: Path) -> None:
    """Write a cell that breaks the contract."""
    path.unlink()
    ds.drop_encoding().to_netcdf(path, engine="h5netcdf")


def test_a_cell_that_claims_a_terabyte_is_refused_at_once(folder: Path) -> None:
    with h5py.File(folder / "huge.nc", "w") as file:
        file.create_dataset("logit_kl", shape=(1 << 20, 1 << 20), dtype="f8", chunks=(64, 64), compression="gzip")
    with h5py.File(folder / "outside.nc", "w") as file:
        file.create_dataset("logit_kl", shape=(4,), dtype="f8", external=[("/etc/passwd", 0, 32)])
    sweep = dataset.open_sweep(folder)
    assert len(sweep) == 2
    assert "bytes of memory" in sweep.problems[str(folder / "huge.nc")]
    assert "another file" in sweep.problems[str(folder / "outside.nc")]


def test_a_pipe_named_like_a_cell_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe.nc")
    sweep = dataset.open_sweep(folder)
    assert "pipe" in sweep.problems[str(folder / "pipe.nc")]


# ---------------------------------------------------------------- dumps
@pytest.mark.parametrize(
    "name", ["step.9999999999.layer.0.hidden", f"step.{'9' * 5000}.layer.0.hidden", "step.0.layer.9999999999.hidden"]
)
def test_a_number_in_the_name_of_a_tensor_builds_nothing(tmp_path: Path, name: str) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(DatasetError, match=r"beyond what a dump may hold|no tensor is named as expected"):
        open_dump(tmp_path)
