"""One verdict of many cells: Holm's procedure against its definitions, and what refutes, supports or does neither."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from claims_tools import NOT_TESTED, REFUTED, SUPPORTED, UNDETERMINED, cell
from hypothesis import given
from hypothesis import strategies as st

from drift.dataset.sweep import Sweep
from drift.reading.claims import auditing, model, page, testing
from drift.reading.claims.auditing import audit
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.statistics.intervals import holm
from drift.reading.statistics.noise import window_mean

pytestmark = pytest.mark.numerical


# ------------------------------------------------------------------------------------------ Holm's procedure
@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, math.nan, 0.03], [0.04, math.nan, 0.04]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([math.nan], [math.nan]),
        ([], []),
    ],
)
def test_holm_worked_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted, nan_ok=True)


# Multiples of 1/256: products with small integers are exact, so that sets can be compared and not only numbers.
_P = st.lists(st.integers(0, 256).map(lambda k: k / 256), max_size=6)
_ALPHA = st.integers(1, 200).map(lambda k: k / 512)


def step_down(p: Sequence[float], alpha: float) -> set[int]:
    """Rejections by the definition: from the smallest p-value up, until the first that does not pass."""
    rejected: set[int] = set()
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if not p[place] * (len(p) - rank) < alpha:
            break
        rejected.add(place)
    return rejected


def closed(p: Sequence[float], alpha: float) -> set[int]:
    """Rejections by closed testing: every intersection that holds the hypothesis fails Bonferroni's test."""
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    return {i for i in range(len(p)) if all(min(p[j] for j in s) * len(s) < alpha for s in subsets if i in s)}


@given(p=_P, alpha=_ALPHA)
def test_holm_rejects_what_the_definition_and_closed_testing_reject(p: list[float], alpha: float) -> None:
    rejected = {i for i, value in enumerate(holm(p)) if value < alpha}
    assert rejected == step_down(p, alpha) == closed(p, alpha)


@given(p=st.lists(st.floats(0, 1), max_size=8), data=st.data())
def test_holm_is_monotone_conservative_and_blind_to_order_and_to_nan(p: list[float], data: st.DataObject) -> None:
    adjusted = holm(p)
    assert all(a >= raw for a, raw in zip(adjusted, p, strict=True))
    assert all(0 <= a <= 1 for a in adjusted)
    assert all(adjusted[i] <= adjusted[j] for i in range(len(p)) for j in range(len(p)) if p[i] <= p[j])
    order = data.draw(st.permutations(range(len(p))))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]
    place = data.draw(st.integers(0, len(p)))
    with_nan = holm([*p[:place], math.nan, *p[place:]])
    assert math.isnan(with_nan.pop(place))
    assert with_nan == adjusted


# ------------------------------------------------------------------------------------------ many cells, one verdict
def finding(status: Status, p_refute: float = math.nan, scope: str = "x", measure: str = "hidden_rel_l2") -> Finding:
    nan = math.nan
    return Finding(
        "C2", "precision", "append", measure, scope, status, "slope", 0.1, (0.0, 0.2), (-0.1, 0.1), nan, p_refute,
        f"words on {scope}.", cells=(f"{scope}.nc",),
    )  # fmt: skip


def combine(*findings: Finding) -> Status:
    return auditing._combine(findings, 0.05)


def test_support_needs_every_cell() -> None:
    good = finding(SUPPORTED, 0.999)
    assert combine() is NOT_TESTED
    assert combine(good) is SUPPORTED
    assert combine(*[good] * 9) is SUPPORTED
    assert combine(*[good] * 9, finding(UNDETERMINED, 0.5)) is UNDETERMINED
    assert combine(*[good] * 9, finding(UNDETERMINED)) is UNDETERMINED
    assert combine(*[finding(UNDETERMINED)] * 3) is UNDETERMINED


def test_refutation_survives_holm_or_is_none() -> None:
    rest = [finding(SUPPORTED, 0.9)] * 19
    assert combine(*rest, finding(REFUTED, 1e-6)) is REFUTED
    assert combine(*rest, finding(REFUTED, 0.01)) is UNDETERMINED  # 20 * 0.01 is 0.2
    assert combine(*rest[:3], finding(REFUTED, 0.01)) is REFUTED  # 4 * 0.01 is 0.04
    assert combine(finding(REFUTED, 0.049)) is REFUTED
    assert combine(finding(REFUTED, 0.03), finding(REFUTED, 0.03)) is UNDETERMINED
    assert combine(finding(REFUTED, 0.02), finding(REFUTED, 0.04)) is REFUTED


def test_what_was_not_tested_costs_no_correction() -> None:
    assert combine(*[finding(UNDETERMINED)] * 30, finding(REFUTED, 0.04)) is REFUTED
    assert combine(*[finding(SUPPORTED)] * 30, finding(REFUTED)) is REFUTED  # a refutation without a test of its own


@given(
    st.lists(st.tuples(st.sampled_from([SUPPORTED, REFUTED, UNDETERMINED]), st.floats(1e-6, 0.0499)), min_size=1),
    st.randoms(use_true_random=False),
)
def test_the_order_of_cells_decides_nothing(rows: list[tuple[Status, float]], rng: random.Random) -> None:
    findings = [finding(s, p if s is REFUTED else 0.5 + p) for s, p in rows]
    found = combine(*findings)
    assert (found is SUPPORTED) == all(s is SUPPORTED for s, _ in rows)
    refuted = [i for i, (s, _) in enumerate(rows) if s is REFUTED]
    assert (found is REFUTED) == bool(set(refuted) & step_down([f.p_refute for f in findings], 0.05))
    rng.shuffle(findings)
    assert combine(*findings) is found


def test_audit_asks_every_measure_and_shows_which_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "hidden_rel_l2": [finding(SUPPORTED, 0.9, "a"), finding(SUPPORTED, 0.9, "b | c")],
        "logit_kl": [finding(REFUTED, 1e-9, "a", "logit_kl"), finding(SUPPORTED, 0.9, "b", "logit_kl")],
        "nll_gap": [finding(REFUTED, 0.04, "a", "nll_gap"), finding(SUPPORTED, 0.9, "b", "nll_gap")],
        "key_rel_l2": [finding(SUPPORTED, 0.9, "a", "key_rel_l2")],
        "delta_p_rms": [],
    }
    asked = []

    def test(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
        asked.append((measure, layer, [ds["protocol"].item() for ds in sweep]))
        yield from answers[measure]

    claim = model.Claim("C9", "pipes", "x | y", "within {growth}", test, "", "nothing")
    monkeypatch.setattr(auditing, "CLAIMS", (claim,))
    sweep = Sweep([cell(steps=4, protocol=p) for p in ("append", "reprime")])
    found = audit(sweep, layer=1, others=list(answers))
    assert [s.protocol for s in found.summaries] == ["append", "reprime"]
    assert asked[:2] == [("hidden_rel_l2", 1, ["append"]), ("logit_kl", "last", ["append"])]
    row = found.summaries[0]
    assert row.status is SUPPORTED
    assert row.findings == tuple(answers["hidden_rel_l2"])
    assert row.others == {"logit_kl": REFUTED, "nll_gap": UNDETERMINED, "key_rel_l2": SUPPORTED}
    assert row.differing == {"logit_kl": REFUTED, "nll_gap": UNDETERMINED}
    assert page.differing(row) == "refuted: logits (KL); undetermined: NLL"
    assert len(found.findings) == 2 * sum(map(len, answers.values()))
    table = found.as_dict()["claims"]
    assert table[0]["cells"] == ["a.nc", "b | c.nc"]
    assert (table[0]["verdict"], table[0]["margin"]) == ("supported", "within 5 %")
    lines = page.markdown(found).splitlines()
    assert len(lines) == 2 + len(found.summaries)
    for line in lines:  # six columns: seven bars that are not escaped
        assert line.replace("\\|", "").count("|") == 7
    assert "x \\| y" in lines[2]


def test_refuting_takes_both_sides_into_account() -> None:
    """Without any effect, a margin that is small against the noise is refuted in no more than one run in twenty."""
    rng = np.random.default_rng(7)
    refuted = 0
    for _ in range(400):
        found = window_mean(0.2 * rng.standard_normal((1, 8, 24)))
        assert found is not None
        support, refute = testing.margin_tests(found, -1e-9, 1e-9)
        assert support > 0.4
        refuted += refute < 0.05
    assert refuted <= 400 * 0.05 + 2.33 * math.sqrt(400 * 0.05 * 0.95)
