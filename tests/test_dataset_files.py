"""Files and sweeps: what goes in comes out, what is damaged is refused, and a file is whole or absent."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import synthetic
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drift import dataset
from drift.dataset.contract import FLOORS
from drift.dataset.curves import floor_curves
from drift.dataset.netcdf import encode
from drift.errors import DatasetError


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    return synthetic.cell(**synthetic.SMALL)


@pytest.fixture(scope="module")
def written(small: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.write(small, tmp_path_factory.mktemp("cell") / "cell.nc")


# ------------------------------------------------------------------------------------------ round trips
FLOATS = st.one_of(st.floats(min_value=0, allow_infinity=True), st.sampled_from([0.0, np.inf, np.nan]))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), documents=st.integers(1, 3), steps=st.integers(1, 7), blocks=st.integers(1, 3))
def test_round_trip(data: st.DataObject, documents: int, steps: int, blocks: int, tmp_path: Path) -> None:
    tokens = steps * 4 - data.draw(st.integers(0, 3))
    ds = synthetic.cell(model="tiny", layers=blocks, documents=documents, tokens=tokens, chunk_size=4)
    for name in ("hidden_rel_l2", "logit_rel_l2", "key_rel_l2"):
        ds[name].values[...] = data.draw(hnp.arrays(np.float64, ds[name].shape, elements=FLOATS))
    ds.attrs["title"] = data.draw(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
    ds.attrs["seed"] = data.draw(st.integers(-(2**63), 2**63 - 1))
    back = dataset.read(dataset.write(ds, tmp_path / "cell.nc"))
    assert dataset.same_data(ds, back) == []
    assert ds.sizes == back.sizes
    assert {k: type(v) for k, v in ds.attrs.items()} == {k: type(v) for k, v in back.attrs.items()}


def test_same_dataset_same_bytes(small: xr.Dataset, written: Path, tmp_path: Path) -> None:
    again = dataset.write(small, tmp_path / "another name.nc")
    once_more = dataset.write(dataset.read(written), tmp_path / "third.nc")
    assert written.read_bytes() == again.read_bytes() == once_more.read_bytes()


def test_any_netcdf_reader_sees_the_same(written: Path) -> None:
    with xr.open_dataset(written, engine="h5netcdf", mask_and_scale=False, decode_times=False) as opened:
        assert dataset.same_data(opened.load(), dataset.read(written)) == []


def test_a_file_is_laid_out_as_xarray_lays_it_out(small: xr.Dataset) -> None:
    """What netCDF asks of a file, and the filters that find a flipped bit, held against h5netcdf's own writing."""
    coded = small.drop_encoding()
    filters = {"zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True}
    numbers = {name: {"_FillValue": None} for name, item in coded.variables.items() if item.dtype.kind == "f"}
    wanted = {str(name): {**numbers.get(name, {}), **filters} for name in coded.data_vars}
    theirs = bytes(coded.to_netcdf(None, engine="h5netcdf", encoding={**numbers, **wanted}))
    options: dict[str, Any] = {"engine": "h5netcdf", "mask_and_scale": False, "decode_times": False}
    with (
        xr.open_dataset(io.BytesIO(encode(coded)), **options) as ours,
        xr.open_dataset(io.BytesIO(theirs), **options) as expected,
    ):
        xr.testing.assert_identical(ours, expected)
    with h5py.File(io.BytesIO(encode(coded))) as mine, h5py.File(io.BytesIO(theirs)) as other:
        assert set(mine) == set(other)
        for name, item in mine.items():
            told = [(i.dtype, i.shape, i.compression, i.compression_opts, i.shuffle, i.fletcher32, i.fillvalue == 0)
                    for i in (item, other[name])]  # fmt: skip
            assert told[0] == told[1], name
            assert set(item.attrs) | {"_Netcdf4Coordinates", "_Netcdf4Dimid"} >= set(other[name].attrs), name
            assert item.attrs.get("CLASS") == other[name].attrs.get("CLASS")


def test_an_array_that_is_large_is_cut_and_read_alike(small: xr.Dataset) -> None:
    steps = small.sizes["step"]
    wide = xr.Dataset({"wide": (("step", "slot"), np.arange(steps * 300_000.0).reshape(steps, -1))},
                      {"step": small["step"], "slot": np.arange(300_000)})  # fmt: skip
    payload = encode(wide)
    with h5py.File(io.BytesIO(payload)) as file:
        assert file["wide"].chunks != file["wide"].shape
    with xr.open_dataset(io.BytesIO(payload), engine="h5netcdf") as back:
        xr.testing.assert_equal(back, wide)


def test_what_netcdf_cannot_hold_is_refused(small: xr.Dataset) -> None:
    with pytest.raises(DatasetError, match="'flag' holds bool; a cell holds numbers and text"):
        encode(small.assign(flag=("step", np.ones(small.sizes["step"], dtype=bool))))
    with pytest.raises(DatasetError, match="dimension 'slot' has no coordinate of its name"):
        encode(small.assign(more=("slot", np.ones(3))))


def test_long_attributes_survive(small: xr.Dataset, tmp_path: Path) -> None:
    config = {"text": "x" * 100_000, "empty": ""}
    ds = small.assign_attrs(
        config_json=dataset.canonical_json(config), config_sha256=dataset.content_hash(config), driver=""
    )
    back = dataset.read(dataset.write(ds, tmp_path / "long.nc"))
    assert json.loads(back.attrs["config_json"]) == config
    assert back.attrs["driver"] == ""


def test_a_rounding_floor_is_read_by_draw_and_asked_for_whole(tmp_path: Path) -> None:
    made = synthetic.cell(
        tokens=256, chunk_size=64, layers=3, floor=lambda step: 1e-3 + 0 * step, draws=(4, 7, 9), recurrent=True
    )
    dataset.write(made, tmp_path / "cell.nc")
    cell = dataset.read(tmp_path / "cell.nc")
    assert cell["draw"].values.tolist() == [4, 7, 9]
    for name, floor in FLOORS.items():
        assert cell[floor].dims == (*dataset.VARIABLES[name].dims, "draw")
        assert np.array_equal(cell[floor], made[floor])
        assert floor_curves(cell, name, "last").shape == (3, 2, 4)
    block = floor_curves(cell, "key_rel_l2", 2)
    assert np.array_equal(block[1], cell["key_rel_l2_floor"].sel(block=2, draw=7))
    with pytest.raises(DatasetError, match="has no rounding floor; measures that have: hidden_rel_l2"):
        floor_curves(cell, "logit_js")
    with pytest.raises(DatasetError, match="floor_draws=2"):
        floor_curves(synthetic.cell(tokens=256, layers=3))
    with pytest.raises(DatasetError, match="missing coordinates: draw"):
        dataset.validate(cell.drop_vars("draw"))
    with pytest.raises(DatasetError, match=r"logit_kl_floor is on .*, not \('document', 'step', 'draw'\)"):
        dataset.validate(cell.assign(logit_kl_floor=cell["logit_kl"].assign_attrs(units="nat")))
    with pytest.raises(DatasetError, match="there is no measure 'logit_kl_floor'"):
        dataset.curve(cell, "logit_kl_floor")


def test_hash_ignores_order_and_sees_values() -> None:
    assert dataset.content_hash({"a": 1, "b": [1, 2]}) == dataset.content_hash({"b": (1, 2), "a": np.int64(1)})
    assert dataset.content_hash({"a": 1}) != dataset.content_hash({"a": 2})
    assert dataset.canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    for bad in (float("nan"), object(), {1, 2}):
        with pytest.raises(DatasetError):
            dataset.canonical_json({"x": bad})


# ------------------------------------------------------------------------------------------ files
def test_read_leaves_no_file_open(written: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    dataset.read(written)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_truncated_files_are_refused(written: Path, tmp_path: Path) -> None:
    payload = written.read_bytes()
    rng = np.random.default_rng(0)
    lengths = [0, 1, 7, 8, 100, len(payload) // 2, len(payload) - 1, *rng.integers(0, len(payload), 12).tolist()]
    for length in lengths:
        path = tmp_path / "cut.nc"
        path.write_bytes(payload[:length])
        with pytest.raises(DatasetError, match=r"cut\.nc.*Copy it again from where it was sound; or rename it"):
            dataset.read(path)


def test_flipped_bits_in_the_data_are_refused(written: Path, tmp_path: Path) -> None:
    with h5py.File(written) as file:
        chunk = file["hidden_rel_l2_token"].id.get_chunk_info(0)
    payload = bytearray(written.read_bytes())
    payload[chunk.byte_offset + chunk.size // 2] ^= 0x10
    path = tmp_path / "flipped.nc"
    path.write_bytes(payload)
    with pytest.raises(DatasetError, match="damaged"):
        dataset.read(path)


def test_foreign_files_are_refused(small: xr.Dataset, tmp_path: Path) -> None:
    text = tmp_path / "text.nc"
    text.write_text("this is not netCDF, whatever its name says")
    with pytest.raises(DatasetError, match="not a netCDF-4 file"):
        dataset.read(text)
    foreign = tmp_path / "foreign.nc"
    xr.Dataset({"t2m": (("lat", "lon"), np.zeros((2, 3)))}).to_netcdf(foreign, engine="h5netcdf")
    with pytest.raises(DatasetError, match="not a drift dataset"):
        dataset.read(foreign)
    nested = tmp_path / "nested.nc"
    with h5py.File(nested, "w") as file:
        file.create_group("inner")
    with pytest.raises(DatasetError, match="group"):
        dataset.read(nested)
    lacking = tmp_path / "lacking.nc"
    small.drop_vars("logit_js").to_netcdf(lacking, engine="h5netcdf")
    with pytest.raises(DatasetError, match="missing variables: logit_js"):
        dataset.read(lacking)
    future = tmp_path / "future.nc"
    small.drop_vars("logit_js").assign_attrs(schema_version="99").to_netcdf(future, engine="h5netcdf")
    with pytest.raises(DatasetError, match=r"schema version 99.*Upgrade drift"):
        dataset.read(future)
    with pytest.raises(DatasetError, match="no such file"):
        dataset.read(tmp_path / "absent.nc")


def test_broken_datasets_are_not_written(small: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing variables"):
        dataset.write(small.drop_vars("logit_js"), tmp_path / "cell.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_else(
    small: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = dataset.write(small, tmp_path / "cell.nc")
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DatasetError, match=r"No space left on device.*MB free"):
        dataset.write(small.assign_attrs(seed=3), path)
    assert [p.name for p in tmp_path.iterdir()] == ["cell.nc"]
    assert path.read_bytes() == before


def test_a_folder_that_is_a_file_is_named(small: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DatasetError, match="taken"):
        dataset.write(small, tmp_path / "taken" / "cell.nc")


def test_killed_while_writing_the_target_is_whole_or_absent(small: xr.Dataset, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from drift import dataset\n"
        "ds = dataset.read(sys.argv[1])\n"
        "for k in range(10**6):\n"
        "    dataset.write(ds, pathlib.Path(sys.argv[2]) / f'cell{k}.nc')\n"
        "    print('written', flush=True)\n"
    )
    source = dataset.write(small, tmp_path / "source.nc")
    root = Path(dataset.__file__).parents[2]
    out = tmp_path / "out"
    rng = np.random.default_rng(7)
    complete = 0
    with subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(out)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"  # one is whole, however slow the machine is
        try:
            process.wait(timeout=float(rng.random()))
        except subprocess.TimeoutExpired:
            process.kill()
    for path in out.glob("*.nc"):
        assert dataset.same_data(dataset.read(path), small) == []
        complete += 1
    assert complete >= 1
    assert dataset.open_sweep(out).problems == {}


# ------------------------------------------------------------------------------------------ sweeps
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for model, layers in (("one", 2), ("two", 3)):
        for dtype in ("bf16", "fp32"):
            for chunk in (16, 8):
                ds = synthetic.cell(model=model, layers=layers, dtype=dtype, chunk_size=chunk, tokens=40)
                dataset.write(ds, root / f"{model}_{dtype}_{chunk}.nc")
    return root


def test_open_sweep_and_select(folder: Path) -> None:
    sweep = dataset.open_sweep(folder)
    assert len(sweep) == 8
    assert not sweep.problems
    assert sweep.plan == {}
    assert sweep.failures == []
    assert sweep.values("chunk_size") == [8, 16]
    assert sweep.values("dtype") == ["bf16", "fp32"]
    assert len(sweep.sel(model="one")) == 4
    assert len(sweep.sel(dtype=["bf16"], chunk_size=[8, 16])) == 4
    cell = sweep.sel(model="two", dtype="fp32", chunk_size=8).only()
    assert cell["step"].size == 5
    assert sweep.table[["model", "dtype", "chunk_size", "steps"]].iloc[0].tolist() == ["one", "bf16", 8, 5]
    assert all(Path(p).is_file() for p in sweep.table["path"])
    assert [c["model"].item() for c in sweep] == ["one"] * 4 + ["two"] * 4
    assert len(dataset.open_sweep(folder / "one_bf16_8.nc")) == 1


def test_selecting_what_is_not_there_says_what_is(folder: Path) -> None:
    sweep = dataset.open_sweep(folder)
    with pytest.raises(DatasetError, match="axes are model, family"):
        sweep.sel(colour="red")
    with pytest.raises(DatasetError, match="there are 'one', 'two'"):
        sweep.sel(model="three")
    with pytest.raises(DatasetError, match="found 8"):
        sweep.only()
    with pytest.raises(DatasetError, match="no variable 'drift'"):
        sweep.frame("drift")
    with pytest.raises(DatasetError, match="has no layer 9; there are 0 to 3"):
        sweep.frame("hidden_rel_l2", layer=9)
    with pytest.raises(DatasetError, match=r"no quantile 0\.42"):
        sweep.frame("logit_kl_token", quantile=0.42)
    with pytest.raises(DatasetError, match="axes are"):
        sweep.frame("logit_kl", layer=2)


def test_frame_holds_exactly_the_values(folder: Path) -> None:
    sweep = dataset.open_sweep(folder)
    frame = sweep.frame("hidden_rel_l2", layer="last")
    assert list(frame.columns) == [*dataset.SCALARS, "document", "step", "token_start", "token_stop", "value"]
    assert len(frame) == sum(c.sizes["document"] * c.sizes["step"] for c in sweep)
    for cell in sweep:
        name = {k: cell[k].item() for k in ("model", "dtype", "chunk_size")}
        rows = frame[(frame[list(name)] == pd.Series(name)).all(axis=1)]
        wide = rows.pivot(index="document", columns="step", values="value").to_numpy()
        np.testing.assert_array_equal(wide, cell["hidden_rel_l2"].values[:, -1, :])
        stops = rows[rows.document == 0].token_stop.to_numpy()
        np.testing.assert_array_equal(stops, cell["token_stop"].values)
    layers = sweep.frame("hidden_rel_l2", model="two", step=-1)
    assert set(layers["layer"]) == {0, 1, 2, 3, 4}
    assert set(layers["step"]) == {2, 4}
    token = sweep.frame("hidden_rel_l2_token", layer=[1, 2], quantile=[0.5, 1.0], document=0, model="one")
    assert list(token.columns[-3:]) == ["layer", "quantile", "value"]
    assert set(token["quantile"]) == {0.5, 1.0}
    one = sweep.frame("logit_kl", model="one", dtype="bf16", chunk_size=8, document=1, step=2)
    assert one["value"].item() == sweep.sel(model="one", dtype="bf16", chunk_size=8).only()["logit_kl"].values[1, 2]
    assert (one["document"].item(), one["token_start"].item()) == (1, 16)


def test_combine_stacks_unequal_cells(folder: Path) -> None:
    sweep = dataset.open_sweep(folder)
    both = sweep.combine("hidden_rel_l2")
    assert both.sizes == {"cell": 8, "document": 2, "layer": 5, "step": 5}
    for k, cell in enumerate(sweep):
        values = cell["hidden_rel_l2"].values
        np.testing.assert_array_equal(both.values[k, :, : values.shape[1], : values.shape[2]], values)
        assert both["model"].values[k] == cell["model"].item()
    assert np.isnan(both.sel(cell=0, layer=4)).all()
    assert both.attrs["units"] == "1"


def test_bad_files_are_reported_and_the_rest_is_read(small: xr.Dataset, tmp_path: Path) -> None:
    good = dataset.write(small, tmp_path / "good.nc")
    (tmp_path / "cut.nc").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text.nc").write_text("hello")
    sweep = dataset.open_sweep(tmp_path)
    assert len(sweep) == 1
    assert {Path(p).name for p in sweep.problems} == {"cut.nc", "text.nc"}
    assert "2 unreadable files" in repr(sweep)


def test_sweep_json_says_which_files_belong(small: xr.Dataset, tmp_path: Path) -> None:
    for name in ("a.nc", "b.nc", "old.nc"):
        dataset.write(small, tmp_path / name)
    plan = {
        "name": "test",
        "cells": [
            {"file": "a.nc", "state": "done"},
            {"file": "b.nc", "state": "done"},
            {"file": "lost.nc", "state": "done"},
            {"file": "todo.nc", "state": "pending"},
            {"file": "bad.nc", "state": "failed", "reason": "out of memory"},
        ],
    }
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    sweep = dataset.open_sweep(tmp_path)
    assert len(sweep) == 2
    assert sweep.plan["name"] == "test"
    assert [Path(p).name for p in sweep.left_out] == ["old.nc"]
    assert [Path(p).name for p in sweep.problems] == ["lost.nc"]
    assert [f["reason"] for f in sweep.failures] == ["out of memory"]
    by_name = {"cells": {c["file"]: c for c in plan["cells"]}, "failures": [{"reason": "no network"}]}
    (tmp_path / "sweep.json").write_text(json.dumps(by_name))
    sweep = dataset.open_sweep(tmp_path)
    assert len(sweep) == 2
    assert sweep.failures == [{"reason": "no network"}]


def test_folders_that_are_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        dataset.open_sweep(tmp_path / "nowhere")
    empty = dataset.open_sweep(tmp_path)
    assert len(empty) == 0
    assert empty.frame("logit_kl").empty
    assert empty.table.empty
    with pytest.raises(DatasetError, match="empty"):
        empty.combine("logit_kl")
    with pytest.raises(DatasetError, match="empty"):
        empty.sel()
    for text in ("{", "[1]"):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(DatasetError, match=r"sweep\.json.*Rename it"):
            dataset.open_sweep(tmp_path)


def test_reading_wing_does_not_import_torch() -> None:
    code = "import sys, drift.dataset; assert not {'torch', 'transformers'} & sys.modules.keys()"
    root = Path(dataset.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(root)})


@pytest.mark.parametrize("place", ["config_json", "title", "units"])
def test_text_that_is_no_utf8_is_damage(tmp_path: Path, place: str) -> None:
    """Bytes of attributes have no checksum: one of them was flipped on the disk."""
    path = dataset.write(synthetic.cell(**synthetic.SMALL), tmp_path / "a.nc")
    text = {"config_json": b'"model"', "title": b"against full attention", "units": b"relative L2"}[place]
    payload = path.read_bytes()
    assert text in payload
    path.write_bytes(payload.replace(text, b"\x80" + text[1:]))
    with pytest.raises(DatasetError, match="truncated or damaged"):
        dataset.read(path)
