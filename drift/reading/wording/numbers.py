"""Numbers as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from drift.reading.statistics.intervals import Interval

__all__ = [
    "chunk_words",
    "count",
    "coverage",
    "fixed_number",
    "interval_words",
    "number",
    "percent",
    "plain",
    "range_words",
    "rise_words",
    "signed_number",
]


def number(value: float, digits: int = 2) -> str:
    """Write a number as people say it: ``1.3e-2``, ``0.67``, ``16,000``, ``exactly 0``."""
    if math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "exactly 0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -1 <= size < 2:
        return f"{value:.{max(digits - 1 - size, 0)}f}"
    if 2 <= size < 7:
        return f"{round(value, digits - 1 - size):,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def range_words(values: Iterable[float], digits: int = 2, write: Callable[[float], str] | None = None) -> str:
    """Write the smallest and the largest of some values, NaN left out."""
    say = write or (lambda v: number(v, digits))
    good = sorted(v for v in values if not math.isnan(v))
    if not good:
        return "not measured"
    low, high = say(good[0]), say(good[-1])
    return low if low == high else f"{low} to {high}"


#: A rise beyond this is told as such: the first step was zero but for rounding, and its factor says nothing.
_RISES = 1e4


def rise_words(factor: float) -> str:
    """Write by what factor a curve rose above its first step."""
    if math.isnan(factor) or math.isinf(factor):
        return number(factor)
    if factor >= _RISES:
        return f"more than {_RISES:,.0f}"
    return f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}"


def chunk_words(values: Iterable[int]) -> str:
    """Name a set of chunk sizes."""
    sizes = sorted(set(values))
    return f"chunk size {sizes[0]}" if len(sizes) == 1 else f"chunk sizes {sizes[0]} to {sizes[-1]}"


def signed_number(value: float) -> str:
    """Write a number with its sign; exactly 0 is said in words."""
    return "exactly 0" if value == 0 else f"{'+' if value > 0 else '−'}{number(abs(value))}"


def plain(value: Any) -> Any:
    """Make a value fit for JSON: names for enumerations, ``None`` for what is not a number or not finite.

    Parameters
    ----------
    value : Any
        Numbers, words, enumerations, and dicts, lists and tuples of them.

    Returns
    -------
    Any
        The same with lists for tuples; ``json.dumps(..., allow_nan=False)`` takes it.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(x: float) -> str:
    """Write a fraction as a signed percentage."""
    if math.isnan(x):
        return "n/a"
    return f"{round(100 * x, 1) + 0.0:+.1f} %" if abs(x) < 10 else f"{100 * x:+.2g} %"


_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def count(value: float) -> str:
    """Write a number that people count with: ``nine`` (also for 8.997), ``16``, ``1.6``."""
    whole = round(value)
    if abs(value - whole) > 0.005:
        return f"{value:.3g}"
    return _COUNTS[whole] if 0 <= whole < len(_COUNTS) else str(whole)


def coverage(alpha: float) -> str:
    """Write the coverage of intervals whose ends are each left out at level `alpha`: ``90 %`` at 0.05."""
    return f"{100 * (1 - 2 * alpha):.4g} %"


def fixed_number(x: float, digits: int = 3) -> str:
    """Write a number with a fixed number of decimals; a dash for NaN."""
    return "–" if math.isnan(x) else f"{x:z.{digits}f}"


def interval_words(interval: Interval, digits: int = 3) -> str:
    """Write an interval in parentheses."""
    if math.isnan(interval.low):
        return "(no interval)"
    return f"({fixed_number(interval.low, digits)} to {fixed_number(interval.high, digits)})"
