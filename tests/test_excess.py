"""Drift over its rounding floor and over its one-step error: what the ratios are, and what becomes of zeros and NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import synthetic_controls as made
import xarray as xr
from rounding import linear

from drift import dataset
from drift.dataset.contract import FLOORS
from drift.dataset.curves import floor_curves
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.plateau import main
from drift.reading.amplitudes import amplitude
from drift.reading.controls import NO_CONTROLS
from drift.reading.excess import Missing, accumulations, excess_values, floor_values
from drift.reading.plateau import curves
from drift.reading.plateau.model import Reason, Verdict
from drift.reading.quantities import Of

STEPS = 64


def flat(level: float) -> synthetic.Curve:
    return lambda step: level + 0 * step


DRIFT, FLOOR, LOCAL = flat(9e-3), flat(1e-2), flat(8e-3)


def cell(level: synthetic.Curve = DRIFT, floor: synthetic.Curve | None = FLOOR, **options: Any) -> xr.Dataset:
    given = {"layers": 2, "documents": 4, "chunk_size": 8, "tokens": 8 * STEPS, "noise": 0.02}
    return synthetic.cell(**(given | options), level=level, floor=floor)  # type: ignore[arg-type]


def one_step(level: synthetic.Curve = LOCAL, of: str = "append", **options: Any) -> xr.Dataset:
    return cell(level, protocol=f"one_step({of})", **options)


# ------------------------------------------------------------------------------------------ excess
@pytest.mark.parametrize("measure", list(FLOORS))
def test_the_excess_is_the_ratio_of_amplitudes_over_the_geometric_mean_of_the_draws(measure: str) -> None:
    ds = cell(draws=(3, 5, 8), recurrent=True)
    a, b, c = floor_curves(ds, measure)
    bottom = np.cbrt(a * b * c)
    power = 0.5 if measure == "logit_kl" else 1.0  # a divergence is quadratic in a small disturbance
    wanted = (dataset.curve(ds, measure) / bottom) ** power
    # Logarithms of up to 20 in size, of which an ulp each is an ulp of the mean's exponential.
    np.testing.assert_allclose(excess_values(ds, measure), wanted, rtol=linear(8, 20), atol=0)
    np.testing.assert_allclose(floor_values(ds, measure), bottom, rtol=linear(8, 20), atol=0)


def test_an_excess_means_the_same_by_every_measure() -> None:
    """A fold that is three times its floor is so by a divergence, too, whose own ratio is nine."""
    ds = cell(noise=0.0)
    ds["logit_kl"].values[...] = 9e-4
    ds["logit_kl_floor"].values[...] = 1e-4
    np.testing.assert_allclose(excess_values(ds, "logit_kl"), 3.0, rtol=1e-14)


def test_the_array_has_the_cells_coordinates_and_says_what_it_is() -> None:
    ds = cell()
    found = ds.drift.excess("key_rel_l2", layer=2)
    assert (found.name, found.dims, found.dtype) == ("excess", ("document", "step"), np.float64)
    assert found.attrs["units"] == "1"
    assert found.attrs["long_name"] == (
        "relative L2 drift of the keys that the chunk appended in block 2, over its rounding floor"
    )
    assert (found.attrs["draws"], found.attrs["measure"], found.attrs["layer"]) == (2, "key_rel_l2", 2)
    for name in ("document", "step", "token_start", "token_stop", *dataset.SCALARS):
        assert found[name].equals(ds[name].drop_vars([n for n in ds[name].coords if n not in found.coords]))
    assert np.array_equal(found, excess_values(ds, "key_rel_l2", 2))
    assert np.array_equal(ds.drift.excess(), excess_values(ds, "hidden_rel_l2", "last"))


def test_zero_over_a_floor_is_zero_and_over_no_floor_a_finding() -> None:
    ds = cell(noise=0.0)
    drift, floor = ds["hidden_rel_l2"].values[:, -1], ds["hidden_rel_l2_floor"].values[:, -1]
    drift[0, 0] = 0.0
    drift[1, 1], floor[1, 1] = 0.0, 0.0
    floor[2, 2, 0] = 0.0  # one draw of two
    floor[3, 3, 1] = np.inf  # would make an innocent zero of the ratio
    drift[0, 4] = np.nan
    found = ds.drift.excess()
    assert found.values[0, 0] == 0.0
    assert np.isnan(found.values[1, 1])
    assert np.isposinf(found.values[2, 2])
    assert np.isnan(found.values[3, 3])
    assert np.isnan(found.values[0, 4])
    assert (found.attrs["zeros"], found.attrs["nonfinite"]) == (1, 4)
    verdict = ds.drift.plateau(of="excess")
    assert (verdict.verdict, verdict.reason, verdict.nonfinite) == (Verdict.UNDETERMINED, Reason.NONFINITE, 4)
    assert "the floor is exactly zero at 2 of 256 values: no ratio there" in verdict.caveats


def test_embeddings_have_a_floor_and_no_drift() -> None:
    ds = cell()
    ds["hidden_rel_l2"].values[:, 0] = 0.0
    ds["hidden_rel_l2_floor"].values[:, 0] = 2.0**-8
    found = ds.drift.excess(layer=0)
    assert (found == 0).all()
    assert found.attrs["zeros"] == found.size
    assert ds.drift.plateau(layer=0, of="excess").reason is Reason.ZEROS


def test_what_has_no_floor_says_so() -> None:
    with pytest.raises(DatasetError, match="floor_draws=2"):
        cell(floor=None).drift.excess()
    with pytest.raises(DatasetError, match="measures that have: hidden_rel_l2"):
        cell().drift.excess("nll_gap")
    gold = made.remake(cell(floor=None), reference="gold")
    with pytest.raises(DatasetError, match=r"compared with something else \(gold\).*reference=full"):
        gold.drift.excess()
    with pytest.raises(DatasetError, match="takes two cells"):
        cell().drift.plateau(of="accumulation")
    with pytest.raises(DatasetError, match=r"no quantity 'exces'.*drift, excess, floor, accumulation"):
        cell().drift.plateau(of="exces")


# ------------------------------------------------------------------------------------------ verdicts on them
def growing(share: float, level: float = 1e-2) -> synthetic.Curve:
    return lambda step: level * (step + 1) ** np.log2(1 + share)


def test_growth_that_the_floor_has_as_well_is_not_the_folds() -> None:
    ds = cell(growing(0.08), growing(0.08))
    assert ds.drift.plateau().verdict is Verdict.GROWING
    assert ds.drift.plateau(of="floor").verdict is Verdict.GROWING
    found = ds.drift.plateau(of="excess")
    assert found.verdict is Verdict.FLAT
    assert found.level == pytest.approx(1.0, abs=0.02)
    away = cell(growing(0.12), growing(0.02)).drift.plateau(of="excess")
    assert away.verdict is Verdict.GROWING
    assert away.explanation.startswith("growing: drift over its rounding floor increases with chain depth")
    ratio = 1.12 / 1.02 - 1
    low, high = away.growth_interval
    assert low < ratio < high


def test_a_table_of_a_sweep_lists_what_was_left_out_with_the_remedy() -> None:
    sweep = Sweep([cell(), cell(floor=None, dtype="fp32"), made.remake(cell(), reference="gold")])
    table = sweep.drift.plateau(of="excess").set_index("curve")
    assert table["verdict"].notna().sum() == 1
    assert set(table["of"]) == {"excess"}
    without = table[table["verdict"].isna()]
    assert dict(zip(without["reference"], without["left_out"], strict=True)) == {
        "full": Missing.FLOOR.value, "gold": Missing.REFERENCE.value
    }  # fmt: skip
    assert without["remedy"].str.contains("floor_draws=2").all()
    assert len(sweep.drift.plateau()) == 3
    assert "left_out" not in sweep.drift.plateau()
    assert set(sweep.drift.plateau(["hidden_rel_l2", "nll_gap"], of="floor")["left_out"].dropna()) == {
        Missing.FLOOR.value, Missing.REFERENCE.value, Missing.MEASURE_HAS_NO_FLOOR.value
    }  # fmt: skip
    every = sweep.drift.plateau("all", of="excess")
    assert set(every.loc[every["verdict"].notna(), "measure"]) == set(FLOORS) - {"state_rel_l2"}
    with pytest.raises(DatasetError, match="'hidden_rel'"):
        sweep.drift.plateau("hidden_rel", of="accumulation")


# ------------------------------------------------------------------------------------------ accumulation
def test_accumulation_pairs_what_agrees_in_everything() -> None:
    mine, local = cell(), one_step()
    strangers = [
        one_step(of="restart"), one_step(dtype="fp32"), one_step(model="other"), one_step(chunk_size=16),
        one_step(documents=3), made.remake(one_step(), reference="gold"), made.remake(one_step(), device="cuda"),
        made.remake(one_step(), attn_implementation="eager"),
    ]  # fmt: skip
    other_text = one_step()
    other_text.attrs["tokens_sha256"] = "c" * 64
    assert list(accumulations(Sweep([mine, *strangers, other_text]))) == []
    (found,) = accumulations(Sweep([mine, *strangers, other_text, local]))
    assert found.ds is mine
    assert found.one_step is local
    assert found.inherited == 0
    assert np.array_equal(
        found.values, amplitude(mine, "hidden_rel_l2", "last") / amplitude(local, "hidden_rel_l2", "last")
    )
    quantized = cell(protocol="quantized(format=int8)")
    (found,) = accumulations(Sweep([quantized, one_step(of="quantized(format=int8)")]))
    assert found.ds is quantized


def test_where_no_step_makes_an_error_all_drift_is_inherited() -> None:
    mine, local = cell(noise=0.0), one_step(noise=0.0)
    error = local["hidden_rel_l2"].values[:, -1]
    error[:, 0] = 0.0
    mine["hidden_rel_l2"].values[:, -1, 0] = 0.0  # the first step has nothing to inherit: the same bits there
    (found,) = accumulations(Sweep([mine, local]))
    assert found.inherited == 0
    assert (found.values[:, 0] == 1).all()
    assert np.isfinite(found.values).all()
    error[1, 5:15] = 0.0
    (found,) = accumulations(Sweep([mine, local]))
    assert found.inherited == 10
    assert np.isnan(found.values[1, 5:15]).all()
    (row,) = Sweep([mine, local]).drift.plateau(of="accumulation").to_dict("records")
    assert (row["verdict"], row["reason"], row["nonfinite"]) == ("undetermined", Reason.INHERITED.value, 0)
    assert "at 10 of 256 values no step makes an error of its own" in row["explanation"]
    mine["hidden_rel_l2"].values[0, -1, 20] = np.nan  # a finding, and no matter of the one-step error
    (row,) = Sweep([mine, local]).drift.plateau(of="accumulation").to_dict("records")
    assert (row["reason"], row["nonfinite"]) == (Reason.NONFINITE.value, 11)
    error[1, 5:15] = 1.0
    error[0, 20] = 0.0
    (found,) = accumulations(Sweep([mine, local]))
    assert (found.inherited, np.isnan(found.values).sum()) == (0, 1)


def test_what_the_chain_inherits_is_seen_whatever_one_step_does() -> None:
    sweep = Sweep([cell(growing(0.15)), one_step(growing(0.04)), cell(dtype="fp32")])
    table = sweep.drift.plateau(of="accumulation").set_index("dtype")
    assert table.loc["bf16", "verdict"] == "growing"
    assert table.loc["bf16", "growth_per_doubling"] == pytest.approx(1.15 / 1.04 - 1, abs=0.02)
    assert table.loc["fp32", "left_out"] == Missing.ONE_STEP.value
    assert "protocol='append,one_step(append)'" in table.loc["fp32", "remedy"]
    assert len(table) == 2  # the one-step error is the denominator, and is not asked for one of its own


def test_all_layers_are_paired_by_layer() -> None:
    mine, local = cell(), one_step()
    found = list(curves.from_sweep(Sweep([mine, local]), ["hidden_rel_l2"], "all", Of.ACCUMULATION))
    # The state after the embeddings is the same bits in both.
    assert [c.labels["layer"] for c in found] == [0, 1, 2, 3]
    for curve in found[1:]:
        layer = curve.labels["layer"]
        wanted = amplitude(mine, "hidden_rel_l2", layer) / amplitude(local, "hidden_rel_l2", layer)
        assert np.array_equal(curve.values, wanted)
    assert [p.verdict for p in curves.judge(found[1:], NO_CONTROLS)][-1] is Verdict.FLAT


def test_one_step_errors_and_random_walks_are_no_folds() -> None:
    sweep = Sweep([cell(), one_step(), cell(protocol="random_walk(append,noise=3)")])
    assert dataset.folds(sweep).values("protocol") == ["append"]
    assert "one_step" in dataset.left_out(sweep, dataset.folds(sweep))


# ------------------------------------------------------------------------------------------ command line
def write(folder: Path, *cells: xr.Dataset) -> str:
    for place, ds in enumerate(cells):
        dataset.write(ds, folder / f"{place}.nc")
    return str(folder)


def test_the_command_line_judges_ratios_and_lists_what_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "sweep", cell(), one_step(), cell(floor=None, dtype="fp32"))
    assert main([folder, "--of", "excess"]) == 0
    out = capsys.readouterr().out
    assert "append/8 hidden_rel_l2 last excess" in out
    assert "Left out (1): no rounding floor; python -m drift.sweep SWEEP.yaml --set floor_draws=2." in out
    assert main([folder, "--of", "accumulation", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [(r["dtype"], r["verdict"], r["of"], r["left_out"] is None) for r in rows] == [
        ("bf16", "flat", "accumulation", True), ("fp32", None, "accumulation", False)
    ]  # fmt: skip
    assert rows[0]["level"] == pytest.approx(9 / 8, abs=0.02)
    assert main([folder, "--of", "floor", "--csv"]) == 0
    assert "no rounding floor" in capsys.readouterr().out


def test_a_sweep_without_any_floor_is_told_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "sweep", cell(floor=None))
    assert main([folder, "--of", "excess", "--json"]) == 2
    told = capsys.readouterr()
    (row,) = json.loads(told.out)
    assert (row["verdict"], row["left_out"]) == (None, Missing.FLOOR.value)
    assert "no cell has what --of excess asks for" in told.err
    (tmp_path / "a.csv").write_text("document,step,value\n0,0,1\n")
    assert main([str(tmp_path / "a.csv"), "--of", "excess"]) == 2
    assert "excess is formed from a sweep's cells" in capsys.readouterr().err
