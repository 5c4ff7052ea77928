"""C1 against the rounding floor and the one-step error: rows that say what the plateau is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import xarray as xr

from drift import dataset
from drift.claims import main as claims_main
from drift.dataset.sweep import Sweep
from drift.reading import claims, side_by_side
from drift.reading.claims import page
from drift.reading.claims.model import ClaimSummary, Setting, Status

STEPS = 128
SETTING = Setting()


def grows(share: float, level: float) -> synthetic.Curve:
    return lambda step: level * (step + 1) ** np.log2(1 + share)


def cell(level: synthetic.Curve, protocol: str = "append", **options: Any) -> xr.Dataset:
    given: dict[str, Any] = {
        "layers": 2, "documents": 6, "chunk_size": 8, "tokens": 8 * STEPS, "noise": 0.03, "floor": grows(0.08, 1e-2)
    }  # fmt: skip
    return synthetic.cell(**(given | options), protocol=protocol, level=level)


def row(cells: list[xr.Dataset], name: str, **options: Any) -> ClaimSummary:
    found = claims.audit(Sweep(cells), others=[], **options)
    (one,) = [s for s in found.summaries if s.claim.name == name]
    return one


# ------------------------------------------------------------------------------------------ excess
@pytest.mark.parametrize(
    ("growth", "status", "standing"),
    [
        (0.08, Status.SUPPORTED, "at_floor"),
        (0.25, Status.REFUTED, "growing"),
        (0.135, Status.UNDETERMINED, "undetermined"),
    ],
)
def test_growth_that_the_floor_shares_is_taken_out(growth: float, status: Status, standing: str) -> None:
    """The floor grows by 8 % per doubling: drift is refuted as published, and what is left of it is what is judged."""
    ds = cell(grows(growth, 9.5e-3 / (STEPS / 2) ** np.log2((1 + growth) / 1.08)))
    assert row([ds], "C1 plateau").status is Status.REFUTED
    one = row([ds], "C1 excess")
    (finding,) = one.findings
    assert (one.status, finding.detail["standing"]) == (status, standing)
    assert finding.estimate == pytest.approx((1 + growth) / 1.08 - 1, abs=0.02)
    assert "In floors " in finding.words
    curve = ds.drift.plateau(of="excess")
    assert (finding.estimate, finding.interval) == (curve.growth_per_doubling, curve.growth_interval)


def test_what_was_not_measured_is_not_tested_and_says_what_would() -> None:
    ds = cell(grows(0.0, 1e-2), floor=None)
    excess, accumulation = row([ds], "C1 excess"), row([ds], "C1 accumulation")
    assert (excess.status, accumulation.status) == (Status.NOT_TESTED, Status.NOT_TESTED)
    assert "--set floor_draws=2" in excess.words
    assert "--set protocol='append,one_step(append)'" in accumulation.words
    found = claims.audit(Sweep([ds]), others=[])
    assert list(claims.matrix(found).columns) == [
        "protocol", "C1 plateau", "C1 rise", "C2 precision", "C3 chunk size", "C4 level", "C4 plateau"
    ]  # fmt: skip
    assert not any("excess" in line for line in side_by_side.reproduced(found))
    assert "--of" not in claims.commands(found, Sweep([ds]))
    with_floor = claims.audit(Sweep([cell(grows(0.0, 1e-2))]), others=[])
    assert "C1 excess" in claims.matrix(with_floor)
    assert "python -m drift.plateau SWEEP --of excess --measure hidden_rel_l2" in claims.commands(
        with_floor, Sweep([ds])
    )
    assert row([cell(grows(0.0, 1e-2))], "C1 excess", measure="nll_gap").status is Status.NOT_TESTED


def test_the_longest_chain_with_a_floor_counts() -> None:
    longer = cell(grows(0.0, 1e-2), floor=None, tokens=16 * STEPS)
    (finding,) = row([cell(grows(0.0, 1e-2)), longer], "C1 excess").findings
    assert finding.detail["transitions"] == STEPS - 1


def test_an_undecided_excess_says_from_which_margin_it_would_be_flat() -> None:
    sweep = Sweep([cell(grows(0.135, 9.5e-3 / (STEPS / 2) ** np.log2(1.135 / 1.08)))])
    table = claims.undecided(claims.audit(sweep, others=[]), sweep).set_index("claim")
    share = float(table.loc["C1 excess", "supported from a margin of"].split(" %")[0])
    assert 5 < share < 10


# ------------------------------------------------------------------------------------------ accumulation
@pytest.mark.parametrize(("growth", "status"), [(0.08, Status.SUPPORTED), (0.3, Status.REFUTED)])
def test_what_is_inherited_grows_or_not(growth: float, status: Status) -> None:
    cells = [cell(grows(growth, 1e-2)), cell(grows(0.08, 8e-3), "one_step(append)")]
    one = row(cells, "C1 accumulation")
    assert one.status is status
    (finding,) = one.findings
    assert finding.estimate == pytest.approx((1 + growth) / 1.08 - 1, abs=0.02)
    assert len(finding.cells) == 2
    assert {s.protocol for s in claims.audit(Sweep(cells), others=[]).summaries if s.protocol} == {"append"}


def test_where_one_step_makes_no_error_all_is_inherited_and_nothing_is_tested() -> None:
    coarse = [cell(grows(0.0, 1e-2)), cell(grows(0.0, 8e-3), "one_step(append)")]
    fine = [cell(grows(0.0, 1e-2), dtype="fp32"), cell(grows(0.0, 8e-3), "one_step(append)", dtype="fp32")]
    fine[1]["hidden_rel_l2"].values[:, -1, 10:] = 0.0
    alone = row(fine, "C1 accumulation")
    assert alone.status is Status.NOT_TESTED
    assert "no step makes an error of its own" in alone.words
    other = [cell(grows(0.0, 1e-2), chunk_size=8, model="b"), cell(grows(0.0, 8e-3), "one_step(append)", model="b")]
    other[1]["hidden_rel_l2"].values[:, -1, 10:] = 0.0
    none = row([*fine, *other], "C1 accumulation")
    assert none.status is Status.NOT_TESTED
    assert "()" not in none.words, "no kinds to count"
    both = row([*coarse, *fine], "C1 accumulation")
    assert both.status is Status.SUPPORTED
    assert "1 supported, 1 not tested of 2" in both.words
    assert "drift is inherited" in both.words


# ------------------------------------------------------------------------------------------ contradictions
def test_a_contradiction_is_the_first_line_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype, level in (("bf16", 1e-2), ("fp32", 1e-2 * 2.0**-16)):
        dataset.write(
            cell(grows(0.0, 3 * level), dtype=dtype, floor=grows(0.0, level)), tmp_path / "sweep" / f"{dtype}.nc"
        )
    assert claims_main([str(tmp_path / "sweep")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Contradiction: append, smollm2-135m-instruct, chunk 8: the ladder says rounding")
    assert claims_main([str(tmp_path / "sweep"), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["contradictions"]
    assert first == f"Contradiction: {said}"
    assert claims_main([str(tmp_path / "sweep"), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("**Contradiction: ")
    found = claims.audit(dataset.open_sweep(tmp_path / "sweep"), others=[])
    assert page.html(found).startswith('<p class="contradiction" role="alert">Contradiction: append')
    sound = claims.audit(Sweep([cell(grows(0.0, 1e-2))]), others=[])
    assert sound.contradictions == ()
    assert page.html(sound).startswith('<div class="claims">')
