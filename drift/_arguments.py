"""What is given from Python is held against what is wanted, and refused by the name of the argument.

True is no number, ``2.5`` and ``"16"`` are no whole ones, and NaN lies between no bounds. Needs the standard library
alone; numbers of NumPy count as numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from drift._bounds import MOST_OPTION
from drift.errors import ArgumentError

__all__ = ["between", "function", "mapping", "path", "text", "truth", "whole"]

_SHOWN = 60


def _show(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # an object whose own repr fails is a bad argument all the same
        return f"a {type(value).__name__}"
    shown = " ".join(shown.split())
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _refuse(name: str, value: object, wanted: str) -> ArgumentError:
    return ArgumentError(f"{name} is {_show(value)}; {wanted}.")


def whole(name: str, value: Any, least: int = 0, most: int = MOST_OPTION) -> int:
    """A whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise _refuse(
            name, value, f"it must be a whole number of at least {least}" + (f", at most {most:,}" if most else "")
        )
    return int(value)


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of whole numbers and fractions, which have no largest
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def between(name: str, value: Any, low: float, high: float = math.inf, wanted: str = "") -> float:
    """A number that lies between two others, and is neither of them; `wanted` says so in a message."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low < _as_float(value) < high:
        said = f"must lie between {low:g} and {high:g}" if high < math.inf else f"must be a number above {low:g}"
        raise _refuse(name, value, wanted or f"it {said}")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """True or False; NumPy's own count."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise _refuse(name, value, "it must be True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise _refuse(name, value, "it must be text")
    return value


def path(name: str, value: Any) -> str | os.PathLike[str]:
    """What may be the path of a file or folder; whether it can be looked up is for :mod:`drift.paths` to say."""
    if not isinstance(value, str | os.PathLike):
        raise _refuse(name, value, "it must be the path of a file or folder")
    return value


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise _refuse(name, value, "it must be a mapping")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise _refuse(name, value, "it must be a function")
    return value
