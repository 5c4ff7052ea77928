"""What the columns of the tables of levels mean, in words made of the constants that decide."""

from __future__ import annotations

from drift.reading.statistics import intervals
from drift.reading.wording.numbers import coverage
from drift.reading.wording.windows import late_rule

__all__ = ["table_legend"]


def table_legend() -> str:
    """Explain the table of :func:`drift.reading.summary.levels.table`, in Markdown."""
    return (
        f"Level: geometric mean {late_rule()}, then over documents; `low` and `high` are the smallest and the largest "
        "document. Verdict and growth per doubling of chain depth, with its "
        f"{coverage(intervals.ALPHA)} interval: two one-sided tests, see the page on the claims. Zeros and non-finite "
        "values are counted, not averaged."
    )
