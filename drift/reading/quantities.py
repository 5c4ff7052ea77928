"""What of a cell is judged as a curve: drift, what it is measured against, or the ratio of both."""

from __future__ import annotations

from enum import Enum

from drift.errors import DatasetError

__all__ = ["Of", "quantity"]


class Of(Enum):
    """What is judged. The value is what command lines, tables and JSON show."""

    DRIFT = "drift"
    EXCESS = "excess"
    FLOOR = "floor"
    ACCUMULATION = "accumulation"

    @property
    def words(self) -> str:
        """The quantity in the middle of a sentence."""
        return _WORDS[self]

    @property
    def is_ratio(self) -> bool:
        """Whether it is a ratio of two amplitudes, and not a measure as it was recorded."""
        return self in (Of.EXCESS, Of.ACCUMULATION)


_WORDS = {
    Of.DRIFT: "drift",
    Of.EXCESS: "drift over its rounding floor",
    Of.FLOOR: "the rounding floor",
    Of.ACCUMULATION: "drift over its one-step error",
}


def quantity(name: str) -> Of:
    """Return the quantity of that name.

    Raises
    ------
    DatasetError
        If there is none; the message lists the names.
    """
    try:
        return Of(name)
    except ValueError:
        raise DatasetError(
            f"there is no quantity {name!r} to judge; there are {', '.join(of.value for of in Of)}"
        ) from None
