"""Types of arguments that several command lines take: what argparse calls, and says where it refuses."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

__all__ = ["above_zero", "jobs", "whole_above_zero"]


def jobs(text: str) -> int | None:
    """Read how many things are done at once; None for ``auto``.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is no whole number of at least 1.
    """
    return None if text == "auto" else whole_above_zero(text)


def whole_above_zero(text: str) -> int:
    """Read a whole number of at least 1.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is none.
    """
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def above_zero(what: str, endless: bool = False) -> Callable[[str], float]:
    """Return what reads a number above 0.

    Parameters
    ----------
    what : str
        What it is, as a refusal says: "number of seconds", say.
    endless : bool
        Whether infinity is one.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not value > 0 or (value == math.inf and not endless):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} above 0")
        return value

    return read
