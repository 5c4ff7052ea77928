"""Is drift rounding? Verdicts from one precision on cells whose answer is known, and beside the ladder."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import synthetic
import synthetic_controls as made
import xarray as xr

from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import floor
from drift.reading.floor.model import FACTOR, FOREIGN, Contradiction, Standing, StandingReason
from drift.reading.plateau.model import Reason, Verdict
from drift.reading.statistics.intervals import LEVEL_ALPHA

STEPS = 128
FLOORS = {"bf16": 1.5e-2, "fp32": 8e-7}


def grows(share: float, level: float) -> synthetic.Curve:
    return lambda step: level * (step + 1) ** np.log2(1 + share)


def cell(excess: float = 0.95, growth: float = 0.0, dtype: str = "bf16", **options: Any) -> xr.Dataset:
    """A cell whose drift is `excess` floors after the first doublings; floor and drift share a trend of 4 %."""
    level = excess * FLOORS[dtype] / (STEPS / 2) ** np.log2(1 + growth)
    given: dict[str, Any] = {
        "layers": 2, "documents": 6, "chunk_size": 8, "tokens": 8 * STEPS, "noise": 0.03, "dtype": dtype,
        "level": grows(1.04 * (1 + growth) - 1, level), "floor": grows(0.04, FLOORS[dtype]),
    }  # fmt: skip
    return synthetic.cell(**(given | options))


# ------------------------------------------------------------------------------------------ one precision
@pytest.mark.parametrize(
    ("excess", "growth", "verdict", "reason"),
    [
        (0.95, 0.0, Standing.AT_FLOOR, None),
        (1.3, 0.0, Standing.AT_FLOOR, None),
        (0.78, 0.0, Standing.AT_FLOOR, None),
        (1.6, 0.0, Standing.ABOVE, None),
        (20_000.0, 0.0, Standing.ABOVE, None),
        (20_000.0, -0.2, Standing.ABOVE, None),
        (1.0, 0.1, Standing.GROWING, None),
        (300.0, 0.1, Standing.GROWING, None),
        (0.6, 0.0, Standing.BELOW, None),
        (1e-5, 0.0, Standing.BELOW, None),
        (1e-5, 0.2, Standing.BELOW, None),
        (1.0, -0.12, Standing.UNDETERMINED, StandingReason.DECAYING),
        (FACTOR, 0.0, Standing.UNDETERMINED, StandingReason.LEVEL),
        (1.0, 0.05, Standing.UNDETERMINED, StandingReason.GROWTH),
    ],
)
def test_every_verdict_is_reached(
    excess: float, growth: float, verdict: Standing, reason: StandingReason | None
) -> None:
    found = cell(excess, growth).drift.rounding()
    assert (found.verdict, found.reason) == (verdict, reason)
    assert found.is_rounding == (verdict is Standing.AT_FLOOR)
    low, high = found.level_interval
    assert low < found.level < high
    assert found.level == pytest.approx(excess, rel=0.1)
    assert str(found) == found.explanation
    assert f"{100 * (1 - 2 * LEVEL_ALPHA):g} % interval" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_curve_has_one_judge() -> None:
    ds = cell(1.0, 0.1)
    found, curve = ds.drift.rounding(), ds.drift.plateau(of="excess")
    assert found.growth.as_dict() == curve.as_dict()
    assert (found.level, found.level_interval) == (curve.level, curve.level_interval)


def test_a_level_passes_just_where_its_interval_lies_within_the_factor() -> None:
    ds = cell(1.0)
    low, high = ds.drift.rounding().level_interval
    edge = max(1 / low, high)
    assert ds.drift.rounding(factor=edge * 1.0001).verdict is Standing.AT_FLOOR
    assert ds.drift.rounding(factor=edge * 0.9999).reason is StandingReason.LEVEL


def test_a_floor_of_the_wrong_precision_does_not_pass() -> None:
    """Drift in fp32 against a floor in bf16 is small and flat, and no rounding of bf16."""
    fine, coarse = cell(dtype="fp32"), cell(dtype="bf16")
    fine["hidden_rel_l2_floor"].values[...] = coarse["hidden_rel_l2_floor"].values
    found = fine.drift.rounding()
    assert (found.verdict, found.is_rounding, found.is_foreign) == (Standing.BELOW, False, True)
    assert "the floor is not of this arithmetic" in str(found)
    low = cell(0.6).drift.rounding()  # a place where a fold rounds less is not said to have a wrong floor
    assert (low.verdict, low.is_foreign) == (Standing.BELOW, False)
    assert "not of this arithmetic" not in str(low)
    neighbours = cell(0.95 / 8).drift.rounding()  # fp16 against bf16, the closest pair of precisions
    assert neighbours.is_foreign
    assert pytest.approx(8**-0.5) == FOREIGN


def test_what_has_no_level_has_no_verdict() -> None:
    nan = cell()
    nan["hidden_rel_l2"].values[0, -1, 50] = np.nan
    zero = cell()
    zero["hidden_rel_l2"].values[...] = 0.0
    short = cell(tokens=8 * 6)
    few = cell(tokens=8 * 16, documents=2)
    found = [ds.drift.rounding() for ds in (nan, zero, short, few)]
    assert [one.reason for one in found] == [
        StandingReason.NONFINITE, StandingReason.ZEROS, StandingReason.TOO_SHORT, StandingReason.TOO_SHORT
    ]  # fmt: skip
    assert found[0].growth.reason is Reason.NONFINITE
    assert str(found[1]).startswith("undetermined (zeros)")
    assert all(not one.is_rounding for one in found)


def test_more_than_rounding_is_said_however_noisy_its_growth() -> None:
    found = cell(5000.0, noise=0.6, documents=4).drift.rounding()
    assert found.growth.verdict is Verdict.UNDETERMINED
    assert found.verdict is Standing.ABOVE
    assert "whether it grows against it is undetermined" in str(found)


def test_divergences_are_held_against_their_floor_as_amplitudes() -> None:
    ds = cell(1.0, noise=0.0)
    ds["logit_kl"].values[...] = 1.5 * ds["logit_kl_floor"].values.mean(axis=-1)
    assert ds.drift.rounding("logit_kl").level == pytest.approx(math.sqrt(1.5), rel=1e-9)
    assert ds.drift.rounding("logit_kl").verdict is Standing.AT_FLOOR


def test_cells_without_a_floor_are_listed_or_refused() -> None:
    bare = cell(floor=None, dtype="fp32")
    with pytest.raises(DatasetError, match="floor_draws=2"):
        bare.drift.rounding()
    table = Sweep([cell(), bare]).drift.rounding()
    assert (table["verdict"][0], table["verdict"].isna().tolist()) == ("at_floor", [False, True])
    assert table["is_rounding"].tolist()[0] is True
    assert "floor_draws=2" in table["remedy"].tolist()[1]


def test_a_failed_control_takes_the_verdict_back() -> None:
    ds = cell()
    spoilt = Sweep([ds], controls=made.controls([ds["model"].item()], ["bf16"], quiet=1e-6, kinds=("quiet",)))
    (row,) = spoilt.drift.rounding().to_dict("records")
    assert (row["verdict"], row["reason"], row["is_rounding"]) == (
        "undetermined", StandingReason.CONTROLS.value, False
    )  # fmt: skip
    assert row["level"] == pytest.approx(0.95, abs=0.02)


# ------------------------------------------------------------------------------------------ beside the ladder
def both(coarse: float, fine: float, growth: float = 0.0) -> Sweep:
    """One fold at two precisions, `coarse` and `fine` floors from full attention."""
    return Sweep([cell(coarse, growth, "bf16"), cell(fine, growth, "fp32")])


@pytest.mark.parametrize(
    ("coarse", "fine", "growth", "contradiction"),
    [
        (0.95, 0.97, 0.0, None),  # rounding, at the floor
        (0.1 / FLOORS["bf16"], 0.1 / FLOORS["fp32"], 0.0, None),  # structural, above
        (1.2, 1.6e-2 / FLOORS["fp32"], 0.0, None),  # structural, hidden below the rounding of bf16
        (3.0, 3.0, 0.0, Contradiction.MORE_THAN_ROUNDING),
        (1.0, 1.0, 0.1, Contradiction.MORE_THAN_ROUNDING),
        (1e-4, 1e-4, 0.0, Contradiction.FOREIGN_FLOOR),
    ],
)
def test_the_ladder_and_the_floor_agree_or_are_said_not_to(
    coarse: float, fine: float, growth: float, contradiction: Contradiction | None
) -> None:
    sweep = both(coarse, fine, growth)
    (found,) = floor.both_verdicts(sweep)
    assert found.contradiction is contradiction
    assert list(found.floors) == ["bf16", "fp32"]
    assert [c.contradiction for c in floor.contradictions(sweep)] == [contradiction] * (contradiction is not None)
    assert found.words.startswith("append, smollm2-135m-instruct, chunk 8: the ladder says ")


def test_drift_of_one_size_in_all_precisions_is_not_at_the_floor_of_the_finest() -> None:
    sweep = both(0.95, 0.97)
    for ds in sweep:  # a ladder that says structural, beside floors of the same, wrong size
        ds["hidden_rel_l2"].values[...] = sweep.cells[0]["hidden_rel_l2"].values
        ds["hidden_rel_l2_floor"].values[...] = sweep.cells[0]["hidden_rel_l2_floor"].values
    (found,) = floor.contradictions(sweep)
    assert found.contradiction is Contradiction.NO_MORE_THAN_ROUNDING
    assert "cannot stay at the floor" in found.words


def test_where_nothing_can_be_compared_nothing_contradicts() -> None:
    assert floor.both_verdicts(Sweep([cell(3.0)])) == []  # one precision
    assert floor.both_verdicts(Sweep([cell(3.0, floor=None), cell(3.0, dtype="fp32", floor=None)])) == []
    assert floor.both_verdicts(both(3.0, 3.0), "nll_gap") == []
    partly = Sweep([cell(3.0), cell(3.0, dtype="fp32", floor=None)])
    (found,) = floor.both_verdicts(partly)
    assert (list(found.floors), found.contradiction) == (["bf16"], Contradiction.MORE_THAN_ROUNDING)
    other_text = both(3.0, 3.0)
    other_text.cells[0].attrs["tokens_sha256"] = "c" * 64
    assert floor.both_verdicts(other_text) == []
    quiet = made.controls([other_text.cells[0]["model"].item()], ["bf16"], quiet=1e-6, kinds=("quiet",))
    (withheld,) = floor.both_verdicts(Sweep(both(3.0, 3.0).cells, controls=quiet))
    assert withheld.contradiction is None


def test_the_method_is_written_with_the_constants_that_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"factor {FACTOR:.3g}" in floor.method()
    monkeypatch.setattr("drift.reading.floor.wording.FACTOR", 3.0)
    assert "factor 3 of 1" in floor.method()
