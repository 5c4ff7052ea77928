"""Windows of a chain in words, made of the constants that cut them: see :mod:`drift.reading.statistics.windows`."""

from __future__ import annotations

from fractions import Fraction

from drift.reading.statistics import windows

__all__ = ["judged_words", "last_words", "late_rule", "late_step_words", "late_words", "share_name"]

_PARTS = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 8: "eighth", 10: "tenth", 16: "sixteenth"}
_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


def share_name(share: float) -> str:
    """Name a share of something: ``quarter``, ``three quarters``; as a percentage where people have no word for it."""
    part = Fraction(share).limit_denominator(100)
    name = _PARTS.get(part.denominator)
    if name is None or abs(float(part) - share) > 1e-9 or not 0 < part.numerator < 10:
        return f"{100 * share:.3g} %"
    return name if part.numerator == 1 else f"{_COUNTS[part.numerator]} {name}s"


def late_words() -> str:
    """Say which steps of a chain are late: ``past the first quarter``."""
    return f"past the first {share_name(windows.WINDOWS[-1])}"


def late_rule() -> str:
    """Say the same with the rule for short chains, as :func:`drift.reading.statistics.windows.late_start` has it."""
    return (
        f"{late_words()} of the chain (at least {windows.FIRST} steps are left out, and never more than half of them)"
    )


def judged_words() -> str:
    """Name the window that growth is judged on: ``the last three quarters of the chain``."""
    return f"the last {share_name(1 - windows.WINDOWS[-1])} of the chain"


def last_words(steps: int) -> str:
    """Name the part at the end of a chain of `steps` steps whose growth may take a plateau away: ``the last half``."""
    kept = steps - windows.last_start(steps)
    if kept == steps // windows.LAST_PARTS:
        return f"the last {share_name(1 / windows.LAST_PARTS)}"
    return f"the last {kept} steps"


def late_step_words() -> str:
    """Name the end of the judging window, held against the rest of it: ``the last fifth of the judging window``."""
    return f"the last {share_name(windows.LATE_STEP)} of the judging window"
