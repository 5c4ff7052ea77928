"""The data contract: what is built follows the table, and what breaks it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import synthetic
import xarray as xr

from drift import dataset
from drift.dataset import building
from drift.errors import DatasetError


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    return synthetic.cell(**synthetic.SMALL)


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
