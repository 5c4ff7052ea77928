"""Cells of other schema versions: an older one is whole, a newer one is read for what is known, none is thrown away."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import synthetic
import xarray as xr

from drift import dataset
from drift.dataset import building, contract, files, validating
from drift.dataset import sweep as dataset_sweep
from drift.errors import DatasetError
from drift.reading import summary
from drift.running.sweep import state

SMALL = {"model": "tiny", "layers": 2, "documents": 2, "tokens": 40, "chunk_size": 16}


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    return synthetic.cell(**SMALL)


@pytest.fixture(scope="module")
def written(small: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.write(small, tmp_path_factory.mktemp("cell") / "cell.nc")


NOW = int(dataset.SCHEMA_VERSION)
#: What cells were written with before the table grew. It never changes, or cells that took hours cannot be read.
FIRST = (
    "hidden_rel_l2 hidden_cosine_distance hidden_max_abs hidden_norm nonfinite_count hidden_rel_l2_token key_rel_l2 "
    "value_rel_l2 logit_kl logit_js logit_rel_l2 logit_max_abs top1_agreement delta_p_rms nll_full nll_fold "
    "logit_nonfinite_count logit_count target_count cache_bytes logit_kl_token"
)


def test_what_stored_cells_must_hold_does_not_grow() -> None:
    assert contract.required(1) == FIRST.split(), (
        "a new row of VARIABLES needs since=, one more than SCHEMA_VERSION was"
    )
    since = sorted({row.since for row in dataset.VARIABLES.values()})
    assert since == list(range(1, NOW + 1)), "versions have no gaps"


def newer(ds: xr.Dataset) -> xr.Dataset:
    """Return a cell of a later schema, with a variable on an axis that is not known here."""
    values = np.arange(2.0 * 3 * 5).reshape(2, 3, 5)
    head = xr.Variable(("head",), np.arange(5), {"long_name": "head", "units": "1"})
    ds = ds.assign(surprise=(("document", "step", "head"), values, {"long_name": "surprise", "units": "nat"}))
    return ds.assign_coords(head=head).assign_attrs(schema_version=str(NOW + 2))


def test_a_newer_cell_is_read_for_what_is_known_and_keeps_the_rest(small: xr.Dataset, tmp_path: Path) -> None:
    ds = newer(small)
    back = dataset.read(dataset.write(ds, tmp_path / "newer.nc"))
    assert dataset.same_data(ds, back) == []
    assert dataset.write(back, tmp_path / "again.nc").read_bytes() == (tmp_path / "newer.nc").read_bytes()
    thinned = dataset.read(dataset.write(dataset.thin(back, layers=3), tmp_path / "thin.nc"))
    np.testing.assert_array_equal(thinned["surprise"], ds["surprise"])
    (tmp_path / "again.nc").unlink()
    dataset.write(small, tmp_path / "now.nc")
    sweep = dataset.open_sweep(tmp_path)
    assert not sweep.problems
    assert sweep.notes == [
        f"2 cells of schema version {NOW + 2} (this drift: {NOW}) were read for what is known here; not known, and not "
        "shown: 'surprise'."
    ]
    assert sweep.notes[0] in summary.contents(sweep)
    assert dataset.Sweep([small]).notes == []
    with pytest.raises(DatasetError, match="unknown variables: surprise"):
        dataset.validate(ds.assign_attrs(schema_version=str(NOW)))


@pytest.fixture
def later_row(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a row that only the next schema version asks for."""
    row = dataset.Variable(("document", "step"), "1", "share of everything", since=NOW + 1)
    monkeypatch.setitem(dataset.VARIABLES, "later", row)
    for module in (building, contract, validating, files, state):
        monkeypatch.setattr(module, "SCHEMA_VERSION", str(NOW + 1))
    monkeypatch.setattr(dataset_sweep, "_SCHEMA", NOW + 1)
    return "later"


def test_an_older_cell_is_whole_without_rows_that_came_later(
    small: xr.Dataset, written: Path, later_row: str, tmp_path: Path
) -> None:
    old = dataset.read(written)
    assert later_row not in old
    assert dataset.write(old, tmp_path / "old.nc").read_bytes() == written.read_bytes()
    new = synthetic.cell(**SMALL | {"chunk_size": 8})
    assert (new.attrs["schema_version"], later_row in new) == (str(NOW + 1), True)
    with pytest.raises(DatasetError, match="missing variables: later"):
        dataset.validate(new.drop_vars(later_row))
    dataset.write(new, tmp_path / "new.nc")
    sweep = dataset.open_sweep(tmp_path)
    assert (len(sweep), sweep.problems) == (2, {})
    assert sweep.notes == [
        f"1 cell of schema version {NOW} (this drift: {NOW + 1}) was read for what it holds; measured only since: "
        "'later'."
    ]
    assert len(sweep.frame(later_row)) == new[later_row].size
    assert summary.nonfinite(sweep).empty


def test_the_resume_asks_for_what_the_plan_asks_for(written: Path, later_row: str, tmp_path: Path) -> None:
    """A cell of an older schema is whole for readers; under the hash of a plan that asks for more it is not done."""
    new = synthetic.cell(**SMALL)
    forged = dataset.read(written)
    dataset.write(new, tmp_path / "new.nc")
    dataset.write(forged, tmp_path / "forged.nc")
    dataset.write(forged, tmp_path / "old.nc")
    expected = {"new.nc": new.attrs["config_sha256"], "forged.nc": forged.attrs["config_sha256"]}
    found = state.Folder(tmp_path).survey(expected)
    assert found.done == {"new.nc"}
    assert found.strangers == ["old.nc"]
    assert f"schema version {NOW}, the plan asks for version {NOW + 1}" in found.broken["forged.nc"]
    assert dataset.open_sweep(tmp_path).problems == {}


def test_no_message_advises_to_delete() -> None:
    """Cells take hours, and what is wrong may be the reader: files are set aside, never thrown away."""
    package = Path(dataset.__file__).parents[1]
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and re.search(r"\bdelete\b", str(node.value), re.IGNORECASE)
    ]
    assert found == []
