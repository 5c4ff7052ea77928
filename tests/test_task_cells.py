"""Task cells as files: what the contract asks for, what it refuses, and what readers of other cells make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import xarray as xr
from task_tools import task_cell

from drift import claims, dataset, ladder, plateau
from drift.dataset.task_contract import NONE, TASK_VARIABLES
from drift.errors import DatasetError, Obstacle
from drift.running.sweep.checking import check
from drift.running.sweep.recomputing import requests


@pytest.fixture
def cell() -> xr.Dataset:
    return task_cell([[1, 1], [0, 1], [1, 1]], [[1, 0], [0, 1], [1, 1]])


def changed(ds: xr.Dataset, **values: Any) -> xr.Dataset:
    ds = ds.copy(deep=True)
    for name, value in values.items():
        ds[name].values[...] = value
    return ds


def test_what_is_written_is_read(cell: xr.Dataset, tmp_path: Path) -> None:
    path = dataset.write(cell, tmp_path / "cell.nc")
    back = dataset.read(path)
    assert dataset.same_data(cell, back) == []
    assert [*back.data_vars] == [*TASK_VARIABLES]
    assert dataset.write(back, tmp_path / "again.nc").read_bytes() == path.read_bytes()
    assert back["said_fold"].values.tolist()[0] == [" 1234567", " nothing"]
    unusual = cell.assign(said_fold=(cell["said_fold"].dims, np.array([["", "ä\n"], ["漢字", " "], ["x", "😀"]])))
    unusual["said_fold"].attrs = cell["said_fold"].attrs
    again = dataset.read(dataset.write(unusual, tmp_path / "unusual.nc"))
    assert again["said_fold"].values.tolist() == unusual["said_fold"].values.tolist()


def test_what_was_timed_makes_no_other_cell(cell: xr.Dataset) -> None:
    assert dataset.same_data(cell, changed(cell, fold_seconds=7.0, full_peak_bytes=5)) == []
    assert dataset.same_data(cell, changed(cell, fold_carried_bytes=7)) != []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"exact_fold": 2}, "exact_fold has 6 values above 1"),
        ({"log_likelihood_full": 0.1}, "log_likelihood_full has 6 values above"),
        ({"fact_distance": 0}, "fact_distance is less than 1"),
        ({"fact_stop": 5000}, "a fact is no stretch of its text"),
        ({"fact_start": NONE}, "not there for the same facts"),
        ({"fact_start": NONE, "fact_stop": NONE, "fact_distance": NONE}, "an answer rests on no fact"),
        ({"fold_peak_bytes": NONE}, "not there for the same steps"),
        ({"first_difference": 10}, "first_difference lies behind the answer"),
        ({"tokens": 0}, "tokens is 0"),
        ({"answer_kl": -1.0}, "answer_kl has 6 values below"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_refused(cell: xr.Dataset, values: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        dataset.validate(changed(cell, **values))


def test_what_is_missing_or_unknown_is_refused(cell: xr.Dataset) -> None:
    with pytest.raises(DatasetError, match="missing variables: exact_fold"):
        dataset.validate(cell.drop_vars("exact_fold"))
    with pytest.raises(DatasetError, match="unknown variables: surprise"):
        dataset.validate(cell.assign(surprise=cell["exact_fold"]))
    newer = cell.assign(surprise=cell["exact_fold"]).assign_attrs(schema_version="9")
    dataset.validate(newer)
    with pytest.raises(DatasetError, match="missing variables"):
        dataset.validate(cell.drop_vars("task"))
    with pytest.raises(DatasetError, match="unknown coordinates: surprise"):
        dataset.validate(cell.assign_coords(surprise=1))
    with pytest.raises(DatasetError, match="missing: exact_fold"):
        dataset.build_task({k: v.values for k, v in cell.items() if k != "exact_fold"}, scalars=scalars(cell), attrs={})
    wrong = {k: v.values for k, v in cell.items()} | {"exact_fold": np.ones(3)}
    with pytest.raises(DatasetError, match="exact_fold has shape"):
        dataset.build_task(wrong, scalars=scalars(cell), attrs={})


def scalars(ds: xr.Dataset) -> dict[str, Any]:
    return {name: ds[name].item() for name in dataset.TASK_SCALARS}


def kept(folder: Path, *cells: xr.Dataset) -> Path:
    for ds in cells:
        dataset.write(ds, folder / f"cell_{ds.attrs['config_sha256'][:16]}.nc")
    return folder


def test_a_sweep_keeps_task_cells_apart(cell: xr.Dataset, tmp_path: Path) -> None:
    longer = task_cell([[1]], [[1]], tokens=2048)
    drift = synthetic.cell(**synthetic.SMALL)
    sweep = dataset.open_sweep(kept(tmp_path, longer, cell, drift))
    assert not sweep.problems
    assert (len(sweep), len(sweep.controls)) == (1, 0)
    assert [ds["tokens"].item() for ds in sweep.tasks] == [1024, 2048]
    assert sweep.tasks.table["questions"].tolist() == [2, 1]
    assert sweep.sel(protocol="append").tasks is sweep.tasks
    assert "2 task cells" in repr(sweep)
    one = dataset.open_sweep(sweep.tasks[0].encoding["source"])
    assert (len(one), len(one.tasks)) == (0, 1)


def test_thinning_copies_them(cell: xr.Dataset, tmp_path: Path) -> None:
    source = kept(tmp_path / "source", cell, synthetic.cell(**synthetic.SMALL))
    dataset.thin_sweep(source, tmp_path / "thin", layers=3, report=lambda line: None)
    sweep = dataset.open_sweep(tmp_path / "thin")
    assert len(sweep) == len(sweep.tasks) == 1
    assert dataset.same_data(sweep.tasks[0], cell) == []
    with pytest.raises(DatasetError, match="neither layers nor steps"):
        dataset.thin(cell)


def test_check_holds_them_against_what_they_say(cell: xr.Dataset, tmp_path: Path) -> None:
    assert check(kept(tmp_path, cell)).findings == []
    other = cell.assign_coords(task=xr.Variable((), np.array("hops"), cell["task"].attrs))
    dataset.write(other, tmp_path / f"cell_{cell.attrs['config_sha256'][:16]}.nc")
    (finding,) = check(tmp_path).findings
    assert finding.kind == "config"
    assert "task 'hops' (configuration: 'needle')" in finding.problem


def test_a_cell_whose_record_knows_of_no_task_is_found(tmp_path: Path) -> None:
    ds = task_cell([[1]], [[1]])
    config = {k: v for k, v in json.loads(ds.attrs["config_json"]).items() if k != "task"}
    told = {"config_json": dataset.canonical_json(config), "config_sha256": dataset.content_hash(config)}
    (finding,) = check(kept(tmp_path, ds.assign_attrs(told))).findings
    assert finding.problem == "its contents are of another cell: it asks a task"


def test_verify_says_that_it_does_not_compute_them_again(cell: xr.Dataset, tmp_path: Path) -> None:
    (request,) = requests(kept(tmp_path, cell))
    assert request.obstacle is Obstacle.SETTINGS
    assert "asks a task" in request.why


@pytest.mark.parametrize("door", [plateau, claims, ladder])
@pytest.mark.parametrize("mixed", [False, True])
def test_readers_of_drift_leave_them_alone(
    door: Any, mixed: bool, cell: xr.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drift = [synthetic.cell(**synthetic.SMALL | {"tokens": 256})]
    plain, both = kept(tmp_path / "plain", *drift), kept(tmp_path / "both", *(drift if mixed else ()), cell)
    said = []
    for folder in (plain, both):
        code = door.main([str(folder)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        said.append((code, out.replace(str(folder), "FOLDER")))
    if door is claims:
        assert said[1][0] == 0
        assert "C5 as full attention" in said[1][1]
        assert "C5 as full attention" not in said[0][1]
    elif mixed:
        assert said[0] == said[1]
