"""Thinned cells: what is kept is what the record says, rounding is exact, and every reader takes them."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import synthetic
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drift import dataset, thin
from drift.dataset import thinning
from drift.dataset.bits import EXACT, round_bits
from drift.errors import ConfigError, DatasetError
from drift.reading import figures, summary

DEEP = {"model": "tiny", "layers": 12, "documents": 2, "tokens": 160, "chunk_size": 16}
KEPT = [0, 1, 5, 8, 12, 13]


@pytest.fixture(scope="module")
def whole() -> xr.Dataset:
    return synthetic.cell(**DEEP)


@pytest.fixture(scope="module")
def small(whole: xr.Dataset) -> xr.Dataset:
    return dataset.thin(whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweeps") / "deep"
    synthetic.sweep(root, chunk_sizes=[16], protocols=["append"], tokens=256)
    control = synthetic.cell(protocol="full", chunk_size=16, tokens=64).assign_attrs(control="quiet")
    dataset.write(control, root / "control.nc")
    plan = {"name": "deep", "cells": [{"file": p.name, "state": "done"} for p in sorted(root.glob("*.nc"))]}
    plan["cells"].append({"file": "bad.nc", "state": "failed", "reason": "out of memory"})
    (root / "sweep.json").write_text(json.dumps(plan))
    (root / "stranger.nc").write_bytes(next(root.glob("*.nc")).read_bytes())
    return root


@pytest.fixture(scope="module")
def thinned(folder: Path) -> Path:
    dataset.thin_sweep(folder, folder.with_name("thin"), report=lambda line: None)
    return folder.with_name("thin")


def record(ds: xr.Dataset) -> dict[str, object]:
    found = json.loads(ds.attrs["thinned_json"])
    assert isinstance(found, dict)
    return found


def faults(whole: xr.Dataset, small: xr.Dataset) -> list[str]:
    """Say in what `small` differs from `whole` other than as its record says; empty if in nothing."""
    said, kept = record(small), whole.sel(layer=small["layer"].values, block=small["block"].values)
    expected = kept.assign_attrs(thinned_json=small.attrs["thinned_json"])
    rounded = [
        n for n, v in dataset.VARIABLES.items() if v.dtype == "float64" and not v.optional and n not in said["exact"]
    ]  # type: ignore[operator]
    found = [d for d in dataset.same_data(expected, small) if d.split(":")[0] not in rounded]
    for name in rounded:
        x, y = kept[name].values, small[name].values
        finite = np.isfinite(x) & np.isfinite(y)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or (np.signbit(x) != np.signbit(y))[finite].any():
            found.append(f"{name}: a sign or a value that is not finite differs")
        if (np.abs(y[finite] - x[finite]) > said["relative_error"] * np.abs(x[finite])).any():
            found.append(f"{name}: further off than {said['relative_error']}")
        if not np.array_equal(round_bits(y, said["bits"]), y, equal_nan=True):  # type: ignore[arg-type]
            found.append(f"{name}: has more than {said['bits']} bits")
    return found


# ------------------------------------------------------------------------------------------ rounding
def rounded_by_definition(value: float, bits: int) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    unit = Fraction(2) ** (math.frexp(value)[1] - bits)
    exact = round(Fraction(value) / unit) * unit  # Python rounds a half to even
    return value if abs(exact) > Fraction(sys.float_info.max) else float(exact)


EDGES = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 3 * 5e-324, sys.float_info.min, sys.float_info.max,
         -sys.float_info.max, math.nextafter(sys.float_info.min, 0), 1.0, 1.5, 2.5, math.nextafter(1, 0)]  # fmt: skip
NUMBERS = st.one_of(st.floats(allow_subnormal=True), st.sampled_from(EDGES), st.floats(0, 1e-300))


@settings(max_examples=200, deadline=None)
@given(values=hnp.arrays(np.float64, st.integers(1, 12), elements=NUMBERS), bits=st.integers(1, 53))
def test_rounding_is_to_nearest_even_and_within_its_bound(values: np.ndarray, bits: int) -> None:
    rounded = round_bits(values, bits)
    np.testing.assert_array_equal(rounded, [rounded_by_definition(v, bits) for v in values.tolist()])
    special = ~np.isfinite(values) | (values == 0)
    np.testing.assert_array_equal(rounded[special], values[special])
    assert (np.isnan(values) | (np.signbit(rounded) == np.signbit(values))).all()
    for x, y in zip(values[~special].tolist(), rounded[~special].tolist(), strict=True):
        assert abs(Fraction(y) - Fraction(x)) <= abs(Fraction(x)) / 2**bits
    np.testing.assert_array_equal(round_bits(rounded, bits), rounded)
    rising = rounded[np.argsort(values)]
    assert not (rising[1:] < rising[:-1]).any(), "quantiles would cross"


@pytest.mark.parametrize("bits", [1, 2, 26, 53])
def test_rounding_at_the_edges(bits: int) -> None:
    expected = [rounded_by_definition(v, bits) for v in EDGES]
    np.testing.assert_array_equal(round_bits(np.array(EDGES), bits), expected)
    assert round_bits(np.array(EDGES), 53).tobytes() == np.array(EDGES).tobytes()


# ------------------------------------------------------------------------------------------ layers
@given(count=st.integers(3, 200), keep=st.integers(3, 40))
def test_layers_are_spread_evenly_with_both_ends(count: int, keep: int) -> None:
    places = thinning._spread(count, keep)
    assert len(places) == min(count, keep)
    assert places == sorted(set(places))
    assert {0, count - 2, count - 1} <= set(places)
    if keep > 3:
        assert 1 in places  # a planted position is looked for in the keys of the first block
        gaps = np.diff(places[1:-1])
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_layers_by_hand() -> None:
    assert thinning._spread(32, 6) == [0, 1, 11, 20, 30, 31]
    assert thinning._spread(20, 3) == [0, 18, 19]
    assert thinning._spread(4, 6) == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------ cells
def test_a_thinned_cell_is_a_valid_cell_that_says_what_was_kept(whole: xr.Dataset, small: xr.Dataset) -> None:
    dataset.validate(small)
    assert small["layer"].values.tolist() == KEPT
    assert small["block"].values.tolist() == KEPT[1:-1]
    assert small["layer_kind"].values.tolist() == ["embedding", *["block"] * 4, "final_norm"]
    said = record(small)
    assert (said["layers"], said["layers_of"], said["bits"]) == (KEPT, 14, 26)
    assert (said["relative_error"], said["exact"]) == (2.0**-26, ["nll_full", "nll_fold"])
    assert faults(whole, small) == []
    assert "thinned_json" not in whole.attrs


def test_what_is_read_off_as_a_difference_is_exact(whole: xr.Dataset, small: xr.Dataset) -> None:
    for name in EXACT:
        np.testing.assert_array_equal(small[name], whole[name])
    assert not np.array_equal(small["logit_kl"], whole["logit_kl"])


SPOILED: dict[str, Callable[[xr.Dataset], object]] = {
    "further off": lambda ds: ds["logit_kl"].values.__imul__(1 + 2.0**-20),
    "more than 26 bits": lambda ds: ds["key_rel_l2"].values.__imul__(1 + 2.0**-40),
    "not finite": lambda ds: ds["hidden_rel_l2"].values[0].fill(np.nan),
    "a sign": lambda ds: np.negative(ds["hidden_rel_l2"].values, out=ds["hidden_rel_l2"].values),
    "nll_fold: 1 of": lambda ds: ds["nll_fold"].values[0].__setitem__(0, 2.5),
    "logit_count: 20 of": lambda ds: ds["logit_count"].values.__iadd__(1),
    "attribute seed": lambda ds: ds.attrs.update(seed=9),
    "token_start": lambda ds: ds["token_start"].values.__iadd__(1),
}


@pytest.mark.parametrize("message", SPOILED)
def test_the_comparison_sees_what_is_spoiled(whole: xr.Dataset, small: xr.Dataset, message: str) -> None:
    spoiled = small.copy(deep=True)
    assert faults(whole, spoiled) == []
    SPOILED[message](spoiled)
    assert any(message in fault for fault in faults(whole, spoiled))


def test_the_comparison_sees_layers_that_were_swapped(whole: xr.Dataset, small: xr.Dataset) -> None:
    swapped = small.hidden_norm.copy(data=small.hidden_norm.values[:, ::-1])
    assert any("further off" in fault for fault in faults(whole, small.assign(hidden_norm=swapped)))


def test_values_that_are_not_finite_are_kept_and_counted(whole: xr.Dataset) -> None:
    ds = whole.copy(deep=True)
    ds["hidden_rel_l2"].values[0, 3] = np.nan
    ds["hidden_max_abs"].values[1, 0] = np.inf
    ds["nonfinite_count"].values[:, 1:5, 2] = 7
    small = dataset.thin(ds)
    assert faults(ds, small) == []
    assert record(small)["nonfinite_dropped"] == 2 * 3 * 7  # layers 1, 2 and 4 of 1 to 4
    assert record(dataset.thin(small, layers=3))["nonfinite_dropped"] == 2 * 4 * 7


@pytest.mark.parametrize("bits", [1, 2, 3, 10])
def test_rounding_never_breaks_a_bound(whole: xr.Dataset, bits: int) -> None:
    ds = whole.copy(deep=True)
    ds["logit_js"].values[...] = math.log(2)
    ds["logit_kl"].values[...] = ds["hidden_cosine_distance"].values[...] = -1e-6
    ds["delta_p_rms"].values[...] = 1 + 1e-6
    dataset.validate(ds)
    small = dataset.thin(ds, bits=bits)
    dataset.validate(small)
    assert dataset.same_data(dataset.thin(small, bits=bits), small) == []


def test_thinning_twice_is_said_and_never_gives_back(whole: xr.Dataset, small: xr.Dataset) -> None:
    assert dataset.same_data(dataset.thin(small), small) == []
    again = dataset.thin(small, layers=4, bits=20)
    assert record(again)["layers"] == [0, 1, 12, 13]
    assert (record(again)["layers_of"], record(again)["bits"]) == (14, 20)
    assert record(again)["relative_error"] == 2.0**-26 + 2.0**-20  # a half may be rounded to a half, and then again
    assert faults(whole, again) == []
    for more in ({"bits": 27}, {"layers": 7}):
        with pytest.raises(
            DatasetError, match=r"was thinned to 6 of 14 layers and 26 significant bits.*Thin the whole"
        ):
            dataset.thin(small, **more)


def test_a_shallow_cell_keeps_all_its_layers() -> None:
    ds = synthetic.cell(**DEEP | {"layers": 1})
    small = dataset.thin(ds)
    assert small["layer"].values.tolist() == [0, 1, 2]
    assert faults(ds, small) == []
    assert dataset.same_data(dataset.thin(small, layers=9), small) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 2}, "layers is 2; at least 3"),
        ({"bits": 0}, "bits is 0; a float64 has 1 to 53"),
        ({"bits": 54}, "54"),
    ],
)
def test_what_cannot_be_kept_is_refused(whole: xr.Dataset, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset.thin(whole, **options)


def test_what_is_no_cell_is_refused() -> None:
    with pytest.raises(DatasetError, match="not a drift dataset"):
        dataset.thin(xr.Dataset())


# ------------------------------------------------------------------------------------------ the contract
def _said(**changes: object) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda ds: ds.assign_attrs(thinned_json=json.dumps(record(ds) | changes))


BROKEN: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "no record": (lambda ds: _bare(ds), "layer does not count from 0"),
    "no record, blocks": (lambda ds: _bare(ds), "block does not count from 1"),
    "not JSON": (lambda ds: ds.assign_attrs(thinned_json="{"), "thinned_json is not JSON"),
    "not an object": (lambda ds: ds.assign_attrs(thinned_json="[]"), "thinned_json does not say"),
    "no layers": (_said(layers=None), "thinned_json does not say"),
    "no bits": (_said(bits=None), "thinned_json does not say"),
    "not whole numbers": (_said(layers=[0.0, *KEPT[1:]]), "thinned_json does not say"),
    "other layers": (_said(layers=[0, 2, 6, 9, 12, 13]), "but thinned_json says that [0, 2, 6, 9, 12, 13] were kept"),
    "falling layers": (_said(layers=[0, 6, 3, 9, 12, 13]), "thinned_json does not say"),
    "repeated layers": (_said(layers=[0, 3, 3, 9, 12, 13]), "thinned_json does not say"),
    "no embeddings": (_said(layers=[1, 2, 5, 8, 12, 13]), "thinned_json does not say"),
    "other depth": (_said(layers_of=20), "thinned_json does not say"),
    "no final norm": (lambda ds: ds.isel(layer=slice(5)), "but thinned_json says"),
    "layer": (lambda ds: ds.assign_coords(layer=ds.layer + 1), "layer is [1, 2, 6, "),
    "block": (lambda ds: ds.assign_coords(block=ds.block + 1), "block is [2, 6, 9, 13], which does not go with"),
    "blocks": (lambda ds: ds.isel(block=slice(3)), "6 layers do not go with 3 blocks"),
    "kinds": (lambda ds: ds.assign_coords(layer_kind=ds.layer_kind.copy(data=["block"] * 6)), "layer_kind is not"),
}  # fmt: skip


def _bare(ds: xr.Dataset) -> xr.Dataset:
    del ds.attrs["thinned_json"]
    return ds


@pytest.mark.parametrize("name", BROKEN)
def test_the_contract_refuses(small: xr.Dataset, name: str) -> None:
    change, message = BROKEN[name]
    with xr.set_options(keep_attrs=True), pytest.raises(DatasetError) as caught:
        dataset.validate(change(small.copy(deep=True)))
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------ sweeps
def test_a_sweep_keeps_its_files_and_its_plan(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "thin").mkdir()
    before, after = dataset.thin_sweep(folder, tmp_path / "thin", report=said.append)
    names = sorted(p.name for p in folder.iterdir() if p.name != "stranger.nc")
    assert sorted(p.name for p in (tmp_path / "thin").iterdir()) == names
    assert (tmp_path / "thin" / "sweep.json").read_bytes() == (folder / "sweep.json").read_bytes()
    assert after == sum(p.stat().st_size for p in (tmp_path / "thin").glob("*.nc"))
    assert after < 0.75 * before
    assert "stranger.nc: not in sweep.json" in said[0]
    assert f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after" in said[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["thin"]
    opened = dataset.open_sweep(folder)
    assert [c.protocol.item() for c in dataset.open_sweep(tmp_path / "thin").controls] == ["full"]
    for whole in (*opened, *opened.controls):
        path = Path(whole.encoding["source"])
        cell = dataset.read(tmp_path / "thin" / path.name)
        assert faults(whole, cell) == []
        assert dataset.same_data(cell, dataset.thin(whole)) == []


def test_readers_take_a_thinned_sweep(folder: Path, thinned: Path) -> None:
    whole, small = dataset.open_sweep(folder), dataset.open_sweep(thinned)
    assert small.problems == {}
    assert [f["reason"] for f in small.failures] == ["out of memory"]
    for options in ({"layer": "last"}, {"layer": 0}, {"layer": "last", "step": -1}):
        a, b = (s.frame("hidden_rel_l2", **options) for s in (whole, small))
        assert a.drop(columns="value").equals(b.drop(columns="value"))
        np.testing.assert_allclose(b["value"], a["value"], rtol=2.0**-26)
    np.testing.assert_allclose(
        small.frame("key_rel_l2", block="last")["value"],
        whole.frame("key_rel_l2", block="last")["value"],
        rtol=2.0**-26,
    )
    with pytest.raises(DatasetError, match="no layer 2; there are 0, 1, 7, 12, 18, 19"):
        small.frame("hidden_rel_l2", model="gemma-3-270m", layer=2)
    both = small.combine("hidden_rel_l2")
    for k, cell in enumerate(small):
        values = both.isel(cell=k).sel(layer=cell["layer"], step=cell["step"])
        np.testing.assert_array_equal(values, cell["hidden_rel_l2"])
    depth = summary.depth(small)
    assert set(depth["layer"]) == {n for cell in small for n in cell["layer"].values.tolist()}
    assert summary.headline(small) == summary.headline(whole)


@pytest.mark.parametrize("measure", ["hidden_rel_l2", "value_rel_l2"])
def test_a_heat_map_names_the_layers_that_were_kept(thinned: Path, measure: str) -> None:
    sweep = dataset.open_sweep(thinned)
    figure = figures.heat_map(sweep, measure)
    figure.draw_without_rendering()
    for ax, cell in zip(figure.axes, figures.choose(sweep), strict=False):
        labels = cell["layer" if measure.startswith("hidden") else "block"].values
        assert [text.get_text() for text in ax.get_yticklabels()][::-1] == [str(n) for n in labels]
        assert ax.get_yticks()[::-1].tolist() == list(range(len(labels)))
        assert ax.collections[0].get_array().shape == (len(labels), cell.sizes["step"])
    assert "layers that were kept" in " ".join(figure.get_suptitle().split())
    assert "that were kept" in figure.get_supxlabel()


def test_other_figures_stand_at_the_true_layers(thinned: Path) -> None:
    sweep = dataset.open_sweep(thinned)
    models = sweep.values("model")
    kept = {model: sweep.sel(model=model).cells[0]["layer"].values.tolist() for model in models}
    depth, caches, tokens = figures.depth_growth(sweep), figures.keys_values(sweep), figures.worst_tokens(sweep)
    for column, model in enumerate(models):
        for line in depth.axes[column].lines:
            assert set(line.get_xdata()) <= set(kept[model])
        for line in caches.axes[column].lines:
            assert list(line.get_xdata()) == kept[model][1:-1]
        for line in tokens.axes[len(models) + column].lines:
            assert set(line.get_xdata()) <= set(kept[model])
    assert "first kept layer" in depth.get_suptitle()
    assert "blocks that were kept" in " ".join(caches.get_suptitle().split())


def test_where_values_are_not_finite_is_drawn_at_the_true_layer(whole: xr.Dataset) -> None:
    ds = whole.copy(deep=True)
    ds["nonfinite_count"].values[:, 9:, :] = 3
    figure = figures.nonfinite(dataset.Sweep([dataset.thin(ds)]))
    assert figure is not None
    line = figure.axes[1].lines[0]
    assert list(line.get_xdata()) == KEPT
    assert [x for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y] == [12, 13]


# ------------------------------------------------------------------------------------------ refusals
def test_a_folder_in_use_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "note.txt", folder):
        with pytest.raises(ConfigError, match="is there already, and is not an empty folder"):
            dataset.thin_sweep(folder, target)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_what_is_no_whole_sweep_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no cell"):
        dataset.thin_sweep(tmp_path / "empty", out)
    with pytest.raises(DatasetError, match="no such folder"):
        dataset.thin_sweep(tmp_path / "absent", out)
    with pytest.raises(DatasetError, match="is a file"):
        dataset.thin_sweep(next(folder.glob("*.nc")), out)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cell.nc").write_bytes(next(folder.glob("*.nc")).read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"1 files of the sweep are unusable.*truncated or damaged"):
        dataset.thin_sweep(tmp_path / "cut", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "empty"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left on device"), DatasetError)],
)
def test_stopped_halfway_nothing_is_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, expected: type[BaseException]
) -> None:
    replace, calls = os.replace, []

    def refuse(*args: str) -> None:
        calls.append(args)
        if len(calls) > 2:
            raise stop
        replace(*args)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        expected, match="No space left on device.*Nothing was left" if expected is DatasetError else None
    ):
        dataset.thin_sweep(folder, tmp_path / "out")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ command line
def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert thin.main([str(folder), str(out), "--layers", "4", "--bits", "12"]) == 0
    assert "at most 4 layers, 12 significant bits" in capsys.readouterr().out
    assert {record(ds)["bits"] for ds in dataset.open_sweep(out)} == {12}
    assert {ds.sizes["layer"] for ds in dataset.open_sweep(out)} == {4}
    for bad, message in (
        ([str(folder), str(out)], "is not an empty folder"),
        ([str(folder), str(tmp_path / "b"), "--bits", "99"], "bits is 99"),
        ([str(tmp_path / "absent"), str(tmp_path / "b")], "no such folder"),
        ([str(out), str(tmp_path / "b")], "was thinned to 4 of"),
    ):
        assert thin.main(bad) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said
    with pytest.raises(SystemExit, match="2"):
        thin.main([str(folder), str(tmp_path / "b"), "--bits", "many"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom drift import thin\n"
        "try:\n    thin.main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'xarray', 'pandas', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(thin.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout
