"""Words for windows, held against what the windows cut."""

from __future__ import annotations

import numpy as np
import pytest

from drift.reading.statistics import windows
from drift.reading.wording import windows as words


def test_words_are_those_of_the_constants() -> None:
    assert words.late_words() == "past the first quarter"
    assert words.judged_words() == "the last three quarters of the chain"
    assert words.last_words(128) == "the last half"
    assert words.late_step_words() == "the last fifth of that window"


@pytest.mark.parametrize(
    ("share", "late", "judged"),
    [
        (1 / 2, "half", "half"),
        (1 / 3, "third", "two thirds"),
        (0.15, "15 %", "85 %"),
        (2 / 5, "two fifths", "three fifths"),
    ],
)
def test_another_constant_makes_other_words(
    monkeypatch: pytest.MonkeyPatch, share: float, late: str, judged: str
) -> None:
    monkeypatch.setattr(windows, "WINDOWS", (1 / 16, share))
    assert words.late_words() == f"past the first {late}"
    assert words.judged_words() == f"the last {judged} of the chain"
    steps = np.arange(600)
    assert len(windows.late_part(steps)) == pytest.approx(600 * (1 - share), abs=1)  # what the words are about


def test_the_last_part_of_a_short_chain_is_counted() -> None:
    for steps in range(windows.least_steps(), 64):
        kept = steps - windows.last_start(steps)
        said = words.last_words(steps)
        assert said == ("the last half" if kept == steps // 2 else f"the last {kept} steps")
    assert words.last_words(12) == "the last 8 steps"


def test_the_rule_holds_for_every_length() -> None:
    assert words.late_rule() == (
        "past the first quarter of the chain (at least 3 steps are left out, and never more than half of them)"
    )
    for steps in range(1, 200):
        left = windows.late_start(steps)
        assert left == min(max(-(-steps // 4), 3), steps // 2)
