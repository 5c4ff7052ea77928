"""The data contract: what goes in comes out, what breaks it is refused, and a file is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
from drift.dataset import building
from drift.dataset.contract import FLOORS
from drift.dataset.curves import floor_curves
from drift.errors import DatasetError

SMALL = {"model": "tiny", "layers": 2, "documents": 2, "tokens": 40, "chunk_size": 16}


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    return synthetic.cell(**SMALL)


@pytest.fixture(scope="module")
def written(small: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.write(small, tmp_path_factory.mktemp("cell") / "cell.nc")


# ------------------------------------------------------------------------------------------ build
def test_build_follows_the_table(small: xr.Dataset) -> None:
    assert set(small.data_vars) == {name for name, row in dataset.VARIABLES.items() if not row.optional}
    assert dict(small.sizes) == {"document": 2, "layer": 4, "step": 3, "block": 2, "quantile": 9}
    for name in small.data_vars:
        row = dataset.VARIABLES[str(name)]
        assert (small[name].dims, small[name].dtype, small[name].attrs["units"]) == (row.dims, row.dtype, row.units)
    assert not set(small.dims) & set(small.data_vars)
    assert small["layer_kind"].values.tolist() == ["embedding", "block", "block", "final_norm"]
    assert small["token_stop"].values.tolist() == [16, 32, 40]
    assert small["chunk_size"].attrs["units"] == "token"


def test_build_encodes_attributes_that_netcdf_does_not_keep(small: xr.Dataset) -> None:
    assert small.attrs["git_dirty"] == 0
    assert type(small.attrs["git_dirty"]) is int
    assert json.loads(small.attrs["versions_json"])["python"] == "3.11.0"
    assert building._encode(None) == "null"
    assert building._encode([1, "a"]) == '[1,"a"]'
    assert building._encode(np.float64(2.5)) == 2.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, k: v.pop("logit_kl"), "missing variables: logit_kl"),
        (lambda v, k: v.update(surprise=np.zeros(3)), "no variable 'surprise'"),
        (lambda v, k: v.update(logit_kl=np.zeros((2, 4))), "logit_kl has 4 along 'step'"),
        (lambda v, k: v.update(logit_kl=np.zeros(3)), "its axes are"),
        (lambda v, k: v.update(logit_count=np.full((2, 3), 1.5)), "not whole numbers"),
        (lambda v, k: v.update(logit_count=np.full((2, 3), np.nan)), "not whole numbers"),
        (lambda v, k: v.update(logit_kl=np.full((2, 3), "x")), "cannot be stored"),
        (lambda v, k: k["scalars"].pop("dtype"), r"missing: \['dtype'\]"),
        (lambda v, k: k["scalars"].update(colour=1), r"unknown: \['colour'\]"),
        (lambda v, k: k.update(token_stop=np.array([16, 40])), "build:"),
        (lambda v, k: k.update(token_stop=np.zeros((3, 1))), "token_stop"),
        (lambda v, k: k["attrs"].pop("seed"), "missing attributes: seed"),
        (lambda v, k: k["attrs"].update(notes=float("nan") and [float("nan")]), "canonical JSON"),
    ],
)
def test_build_refuses(small: xr.Dataset, change: Callable[..., object], message: str) -> None:
    variables = {name: small[name].values.copy() for name in small.data_vars}
    keywords = {
        "scalars": {name: small[name].item() for name in dataset.SCALARS},
        "token_start": small["token_start"].values,
        "token_stop": small["token_stop"].values,
        "attrs": dict(small.attrs),
    }
    dataset.build(variables, **keywords)  # sound before the change
    change(variables, keywords)
    with pytest.raises(DatasetError, match=message):
        dataset.build(variables, **keywords)


# ------------------------------------------------------------------------------------------ validate
def _set(name: str, value: float, place: int = 0) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(ds: xr.Dataset) -> xr.Dataset:
        ds[name].values.reshape(-1)[place] = value
        return ds

    return change


def _coord(name: str, value: object) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign_coords({name: (ds[name].dims, np.asarray(value), ds[name].attrs)})

    return change


def _attr(name: str, value: object) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda ds: ds.assign_attrs({name: value})


def _meta(name: str, key: str, value: object) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(ds: xr.Dataset) -> xr.Dataset:
        ds[name].attrs[key] = value
        return ds

    return change


BROKEN: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "not ours": (lambda ds: xr.Dataset({"t": ("x", [1.0])}), "not a drift dataset"),
    "no schema version": (_attr("schema_version", "two"), "schema_version 'two' is not a whole number"),
    "schema version 0": (_attr("schema_version", "0"), "schema_version '0' is not a whole number"),
    "future schema, broken": (
        lambda ds: ds.drop_vars("logit_js").assign_attrs(schema_version="99"),
        "missing variables: logit_js (it was written under schema version 99; "
        f"this drift knows {dataset.SCHEMA_VERSION})",
    ),
    "future axis": (lambda ds: ds.assign_coords(mood=1).assign_attrs(schema_version="99"), "unknown coordinates: mood"),
    "missing attribute": (lambda ds: ds.assign_attrs({}).drop_attrs().assign_attrs(schema_version="1"), "config_json"),
    "attribute type": (_attr("note", [1, 2]), "note is a list"),
    "bool attribute": (_attr("git_dirty", True), "git_dirty is a bool"),
    "attribute JSON": (_attr("versions_json", "{"), "versions_json is not JSON"),
    "attribute number": (_attr("seed", "zero"), "seed is not a whole number"),
    "config hash": (_attr("config_sha256", "0" * 64), "not the sha256"),
    "missing coordinate": (lambda ds: ds.drop_vars("token_start"), "missing coordinates: token_start"),
    "unknown coordinate": (lambda ds: ds.assign_coords(mood=1), "unknown coordinates: mood"),
    "coordinate dims": (
        lambda ds: ds.assign_coords(model=("step", ["a"] * 3, ds.model.attrs)),
        "coordinate model is on",
    ),
    "coordinate text": (_coord("model", 3), "model is int64, not text"),
    "coordinate dtype": (_coord("chunk_size", 16.0), "chunk_size is float64"),
    "coordinate units": (_meta("chunk_size", "units", "s"), "chunk_size has units 's'"),
    "coordinate name": (_meta("token_start", "long_name", ""), "token_start has no long_name"),
    "missing variable": (lambda ds: ds.drop_vars("logit_js"), "missing variables: logit_js"),
    "unknown variable": (lambda ds: ds.assign(extra=1.0), "unknown variables: extra"),
    "dims": (lambda ds: ds.assign(logit_kl=ds.logit_kl.T), "logit_kl is on"),
    "dtype": (lambda ds: ds.assign(logit_kl=ds.logit_kl.astype("f4")), "logit_kl is float32"),
    "units": (_meta("logit_kl", "units", "1"), "logit_kl has units '1', not 'nat'"),
    "long name": (_meta("logit_kl", "long_name", ""), "logit_kl has no long_name"),
    "document": (_coord("document", [1, 2]), "document does not count"),
    "step": (_coord("step", [0, 2, 1]), "step does not count"),
    "no steps": (lambda ds: ds.isel(step=slice(0)), "step is empty"),
    "block": (_coord("block", [0, 1]), "block does not count from 1"),
    "layer": (_coord("layer", [1, 2, 3, 4]), "layer does not count"),
    "layers and blocks": (lambda ds: ds.isel(block=[0]), "4 layers do not go with 1 blocks"),
    "layer kind": (_coord("layer_kind", ["block"] * 4), "layer_kind is not"),
    "quantile": (_coord("quantile", np.linspace(0, 1, 9)), "quantile is not"),
    "roundoff": (_coord("unit_roundoff", 0.0), "unit_roundoff 0.0"),
    "empty name": (_coord("model", ""), "coordinate model is empty"),
    "chunk size": (_coord("chunk_size", 0), "chunk_size is 0"),
    "gap in the text": (_coord("token_start", [0, 17, 32]), "follow one another"),
    "empty chunk": (_coord("token_stop", [16, 32, 32]), "follow one another"),
    "long chunk": (_coord("chunk_size", 15), "more than chunk_size 15"),
    "negative norm": (_set("hidden_norm", -1.0), "hidden_norm has 1 values below 0"),
    "negative drift": (_set("hidden_rel_l2", -1e-9, 5), "hidden_rel_l2 has 1 values below 0"),
    "negative count": (_set("nonfinite_count", -1), "nonfinite_count has 1 values below 0"),
    "negative divergence": (_set("logit_kl", -1e-3), "logit_kl has 1 values below"),
    "share above one": (_set("top1_agreement", 1.5), "top1_agreement has 1 values above 1"),
    "divergence above ln 2": (_set("logit_js", 0.7), "logit_js has 1 values above"),
    "quantiles fall": (_set("logit_kl_token", 1e9, 3), "logit_kl_token falls along quantile"),
    "targets": (_set("target_count", 17), "target_count exceeds logit_count"),
    "counts": (_set("logit_count", 17), "logit_count exceeds the tokens"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_validate_refuses(small: xr.Dataset, name: str) -> None:
    change, message = BROKEN[name]
    dataset.validate(small)
    with pytest.raises(DatasetError, match=r"here\.nc") as caught:
        dataset.validate(change(small.copy(deep=True)), source="here.nc")
    assert message in str(caught.value)


def test_validate_names_every_fault(small: xr.Dataset) -> None:
    broken = small.drop_vars("logit_js").drop_vars("token_start")
    del broken.attrs["seed"]
    with pytest.raises(DatasetError) as caught:
        dataset.validate(broken)
    assert all(word in str(caught.value) for word in ("logit_js", "token_start", "seed"))


def test_values_that_are_not_finite_are_data(small: xr.Dataset) -> None:
    ds = small.copy(deep=True)
    for name, row in ((str(n), dataset.VARIABLES[str(n)]) for n in small.data_vars):
        if row.dtype == "float64":
            ds[name].values[...] = np.nan
    ds["hidden_max_abs"].values[...] = np.inf
    ds["nonfinite_count"].values[...] = 7
    dataset.validate(ds)


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


def test_long_attributes_survive(small: xr.Dataset, tmp_path: Path) -> None:
    config = {"text": "x" * 100_000, "empty": ""}
    ds = small.assign_attrs(
        config_json=dataset.canonical_json(config), config_sha256=dataset.content_hash(config), driver=""
    )
    back = dataset.read(dataset.write(ds, tmp_path / "long.nc"))
    assert json.loads(back.attrs["config_json"]) == config
    assert back.attrs["driver"] == ""


def test_a_rounding_floor_is_read_by_draw_and_asked_for_whole(tmp_path: Path) -> None:
    made = synthetic.cell(tokens=256, chunk_size=64, layers=3, floor=lambda step: 1e-3 + 0 * step, draws=(4, 7, 9))
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


# ------------------------------------------------------------------------------------------ same_data
def test_same_data_sees_every_kind_of_difference(small: xr.Dataset) -> None:
    assert dataset.same_data(small, small.assign_attrs(created_at="later", elapsed_s=9.0)) == []
    nan = _set("logit_kl", np.nan)(small.copy(deep=True))
    assert dataset.same_data(nan, nan.copy(deep=True)) == []
    assert dataset.same_data(small, nan) == ["logit_kl: 1 of 6 values differ"]
    tiny = small.copy(deep=True)
    tiny["logit_kl"].values[0, 0] = np.nextafter(tiny["logit_kl"].values[0, 0], 1)
    assert dataset.same_data(small, tiny) == ["logit_kl: 1 of 6 values differ"]
    zero, minus = (_set("logit_rel_l2", z)(small.copy(deep=True)) for z in (0.0, -0.0))
    assert dataset.same_data(zero, minus) == ["logit_rel_l2: 1 of 6 values differ"]
    assert dataset.same_data(small, small.assign_attrs(seed=5)) == ["attribute seed: 0 against 5"]
    assert "only in the first" in dataset.same_data(small, small.drop_vars("logit_js"))[0]
    assert any("model" in d for d in dataset.same_data(small, _coord("model", "other")(small.copy(deep=True))))
    assert any("against" in d for d in dataset.same_data(small, small.isel(document=[0])))
    assert dataset.same_data(small, small.assign(logit_kl=small.logit_kl.astype("f4")))
    assert "attributes differ" in dataset.same_data(small, _meta("logit_kl", "units", "1")(small.copy(deep=True)))[0]
    bare = small.assign_attrs()
    del bare.attrs["seed"]
    assert dataset.same_data(small, bare) == ["attribute seed: only in the first"]


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
