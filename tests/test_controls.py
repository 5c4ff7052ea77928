"""Controls that pass, each of them failing, and what a failure does to every conclusion."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import synthetic
import synthetic_controls as made

from drift import dataset
from drift import ladder as drift_ladder
from drift.claims import main as claims_main
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.plateau import main as plateau_main
from drift.reading import controls, figures, gain, ladder, side_by_side, summary
from drift.reading.claims import auditing, model
from drift.reading.controls.evaluating import evaluate
from drift.reading.controls.model import State
from drift.reading.statistics import rate, slope


def sweep(**options: Any) -> Sweep:
    dtypes = options.get("dtypes", ("bf16", "fp32"))
    cells = synthetic.cells(["tiny"], dtypes, ["append", "restart"], [16, 32], layers=2, tokens=256)
    return Sweep(cells, controls=made.controls(**options))


def states(found: controls.Checkup) -> dict[tuple[str, str], State]:
    return {(c.kind, c.setting[1]): c.state for c in found.controls}


@pytest.mark.numerical
def test_all_pass() -> None:
    found = evaluate(sweep(dtypes=("bf16", "fp32", "fp64")))
    assert found.ok
    assert found.failed == []
    assert found.missing == []
    assert set(states(found).values()) == {State.PASSED, State.UNDECIDED}
    # Two sizes of noise are above the roundoff of bf16, one of them not far enough for a slope.
    assert {key for key, state in states(found).items() if state is State.UNDECIDED} == {("response", "bf16")}
    assert len(found.controls) == 12
    assert found.banner == (
        "All 11 controls of the instrument that could be decided passed; 1 cannot be decided at their precision "
        "(response in bf16)."
    )
    for r in found.responses:
        if r.used.sum() > 1:
            # The made response is bent where noise is large, most at 0.1, and a decade lies between two sizes at least.
            # Where it is small, a tenth of the floor is added in quadrature: nothing, beside that.
            assert r.slope.value == pytest.approx(1, abs=math.log10(1 + made.GAIN * 0.1 / 4))
    assert len(found.frame()) == 12
    assert json.loads(json.dumps(found.as_dict()))["ok"] is True


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("quiet", {"quiet": 1e-12}, "are not exactly 0, the largest 1.0e-12"),
        ("quiet", {"quiet": math.nan}, "are NaN or Inf"),
        ("floor", {"floor_power": 0.0}, "another computation, not another order of sums"),
        ("response", {"power": 0.8}, "response to the power 0.8"),
        ("response", {"early": 1e-9}, "before the perturbation (append, step 2), where it must be 0"),
        ("shifted", {"shift_at": 5}, "at step 5; the bug was planted at step 4"),
        ("shifted", {"shift_at": 8}, "the planted bug was not seen"),
        ("shifted", {"shift_power": 0.07}, "where one within 0.05 of 0 was planted"),
    ],
)
def test_each_control_can_fail(kind: str, options: dict[str, Any], words: str) -> None:
    found = evaluate(sweep(**options))
    assert not found.ok
    assert {k for (k, _), state in states(found).items() if state is State.FAILED} == {kind} | (
        {"shifted"} if "floor_power" in options else set()  # whose bound rests on the floor
    )
    assert any(words in text for text in found.failed), found.failed
    assert found.banner.startswith("No conclusion is drawn: ")


def test_noise_that_is_not_heard_fails() -> None:
    cells = made.controls()
    for ds in cells:
        if "size=0.001" in ds["protocol"].item():
            made.set_drift(ds, np.zeros((2, 8)))
    found = evaluate(Sweep([], controls=cells))
    assert any("no drift after noise of size 0.001" in text for text in found.failed)


def test_a_floor_that_is_not_finite_fails() -> None:
    cells = made.controls()
    next(ds for ds in cells if ds.attrs["control"] == "floor")["hidden_rel_l2"].values[0, -1, 3] = np.inf
    found = evaluate(Sweep([], controls=cells))
    assert states(found)["floor", "bf16"] is State.FAILED


def test_what_was_not_run_is_said() -> None:
    found = evaluate(sweep(kinds=("quiet", "floor"), dtypes=("bf16",)))
    assert found.ok
    assert states(found)["shifted", "bf16"] is State.NOT_RUN
    assert len(found.missing) == 2
    assert "2 were not run" in found.banner
    none = evaluate(Sweep(synthetic.cells(["tiny"], ["bf16"], ["append"], [16], layers=2, tokens=64)))
    assert none.ok
    assert not none.run
    assert none.missing == ["controls were not run"]
    other = sweep()
    more = Sweep([*other.cells, synthetic.cell(model="else", tokens=64, layers=2)], controls=other.controls)
    assert any("else bf16" in text for text in evaluate(more).missing)


@pytest.mark.numerical
def test_small_and_large_noise_is_left_out_and_shown() -> None:
    found = evaluate(sweep(dtypes=("bf16", "fp32")))
    coarse, fine = found.responses
    assert coarse.sizes.tolist() == pytest.approx([1e-2, 1e-1])
    assert coarse.used.tolist() == [False, True]
    assert fine.used.tolist() == [True] * 6
    assert fine.step == 3
    figure = figures.response(found)
    assert figure is not None
    hollow = [line for ax in figure.axes for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert sum(len(line.get_xdata()) for line in hollow) == 1
    assert "in proportion" in figure.get_suptitle()


@pytest.mark.numerical
def test_the_floor_is_a_unit_of_drift() -> None:
    s = sweep()
    found = evaluate(s)
    ds = s.sel(protocol="restart", chunk_size=32, dtype="fp32").only()
    bottom = max(
        math.exp(np.log(c["hidden_rel_l2"].values[:, -1]).mean())
        for c in s.controls
        if c.attrs["control"] == "floor" and c["dtype"].item() == "fp32"
    )
    top = math.exp(np.log(ds["hidden_rel_l2"].values[:, -1, 3:]).mean())
    assert found.in_floors(ds) == pytest.approx(top / bottom)
    assert len(controls.in_floors(s, found)) == 4
    assert math.isnan(evaluate(Sweep(s.cells)).in_floors(ds))
    broken = ds["hidden_rel_l2"].copy()
    broken[{"layer": -1, "document": 0, "step": -1}] = math.nan
    shown = controls.in_floors(Sweep([ds.assign(hidden_rel_l2=broken)]), found)
    assert "values are NaN or Inf and were left out" in shown["fp32"].item()


@pytest.mark.numerical
def test_the_bound_on_rounding_holds_for_rounding() -> None:
    rng = np.random.default_rng(0)
    over = 0
    for _ in range(300):
        values = 1e-3 * np.exp(0.2 * rng.standard_normal((2, 8)))
        floor = controls.Floor("full(batch=2)", ("m", "bf16", "cpu", "sdpa"), 2.0**-8, values, "")
        fresh = math.sqrt(2) * 1e-3 * np.exp(0.2 * rng.standard_normal((2, 8)))
        over += bool((fresh > controls.threshold([floor], 2.0**-8)).any())
    # One in a thousand floors is passed, for errors that are log-normal as here.
    assert over <= scipy.stats.binom.ppf(0.999, 300, 0.001)
    assert controls.threshold([], 2.0**-24) == 2.0**-12


# ---------------------------------------------------------------------------------------------- conclusions
def test_no_conclusion_is_drawn_where_a_control_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = sweep(), sweep(quiet=1e-6)
    disturbed = made.disturbed(lambda k: 0.8**k)
    gold = made.gold(made.make(np.full((2, 8), 0.1)), 0.5, 0.1, 0.1)
    audits = {s: auditing.audit(s, others=()) for s in (good, bad)}
    assert {s.status for s in audits[bad].summaries} == {model.Status.WITHHELD, model.Status.NOT_TESTED}
    assert {f.status for f in audits[bad].findings} == {model.Status.WITHHELD}
    assert model.Status.WITHHELD not in {s.status for s in audits[good].summaries}
    assert [f.estimate for f in audits[bad].findings] == pytest.approx(
        [f.estimate for f in audits[good].findings], nan_ok=True
    )
    assert {one.slope.reason for one in ladder.ladders(bad)} == {slope.ScalingReason.CONTROLS}
    assert all("no conclusion is drawn" in text for text in summary.headline(bad).values())
    assert "no conclusion is drawn" in summary.curve_sentences(bad)[0]
    assert set(summary.table(bad)["verdict"]) == {"not drawn"}
    with_more = Sweep([*bad.cells, disturbed, gold], controls=bad.controls)
    assert gain.gains(with_more)[0].rate.reason is rate.TrendReason.CONTROLS
    parts = ladder.attributions(with_more)
    assert "No conclusion" in ladder.attribution_sentences(parts)[0]
    assert "no conclusion" in figures.attribution(parts).get_suptitle()  # type: ignore[union-attr]
    assert "No conclusion" in side_by_side.reproduced(audits[bad])[0]
    for k, ds in enumerate([*bad.cells, *bad.controls]):
        dataset.write(ds, tmp_path / f"{k}.nc")
    for command in (claims_main, plateau_main, drift_ladder.main):
        assert command([str(tmp_path)]) == 0
        assert "No conclusion is drawn" in capsys.readouterr().err


def test_noise_at_one_size_decides_nothing_and_nan_before_it_fails() -> None:
    found = sweep(dtypes=("bf16", "fp32"))
    assert [c.state for c in evaluate(found).controls if c.kind == "response"] == [State.UNDECIDED, State.PASSED]
    hit = max(
        (ds for ds in found.controls if ds["protocol"].item().startswith("perturbed") and ds["dtype"].item() == "fp32"),
        key=lambda ds: parse_label(ds["protocol"].item()).number("size"),
    )
    hit["hidden_rel_l2"].values[0, 0, 0] = math.nan
    spoilt = evaluate(
        Sweep(list(found), controls=list(found.controls))
    )  # what was evaluated is kept beside the old one
    assert [c.state for c in spoilt.controls if c.kind == "response"] == [State.UNDECIDED, State.FAILED]


def test_a_planted_position_is_looked_for_in_the_first_block_only() -> None:
    found = sweep(dtypes=("fp32",))
    later = [ds.assign_coords(block=ds["block"] + 1) for ds in found.controls]
    (shifted,) = [c for c in evaluate(Sweep(list(found), controls=later)).controls if c.kind == "shifted"]
    assert shifted.state is State.NOT_RUN
    assert "block 1" in shifted.words
