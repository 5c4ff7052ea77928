"""Which steps of a chain are late: windows that are fixed in advance."""

from __future__ import annotations

from math import ceil
from typing import Any

from numpy.typing import NDArray

__all__ = [
    "DOCUMENTS",
    "LAST_PARTS",
    "LATE_STEP",
    "WINDOWS",
    "last_start",
    "late_part",
    "late_start",
    "least_steps",
    "windows",
]

#: Shares of the chain left out at its beginning: the windows on which a plateau may be certified. The last one judges.
WINDOWS = (1 / 16, 1 / 8, 1 / 4)
#: Steps that no window begins before: the first steps of a chain are its rise.
FIRST = 3
#: Fewer steps than this in the judging window support no noise model.
LEAST_POINTS = 8
#: From this many documents on their spread is used, and a claim reaches beyond them.
DOCUMENTS = 4
#: With fewer documents than `DOCUMENTS`, fewer steps than this decide nothing.
FEW_STEPS = 24
#: Growth over the last one of this many parts of the chain may take a plateau away ...
LAST_PARTS = 2
#: ... and so may a step between this last share of the judging window and the rest of it.
LATE_STEP = 0.2
#: Largest share of exact zeros in a window.
ZEROS = 0.1


def windows(steps: int) -> list[int]:
    """Numbers of steps left out at the beginning: one per distinct window, the judging window last."""
    return sorted({max(FIRST, ceil(share * steps)) for share in WINDOWS})


def late_start(steps: int) -> int:
    """First step (counted from 0) of what is called late: the judging window, and half of a very short chain."""
    return min(windows(steps)[-1], steps // 2)


def last_start(steps: int) -> int:
    """First step (counted from 0) of the last part, whose growth may take a plateau away."""
    return max(windows(steps)[-1], steps - max(LEAST_POINTS, steps // LAST_PARTS))


def late_part(values: NDArray[Any]) -> NDArray[Any]:
    """Return what is late of values [..., step]: see :func:`late_start`."""
    return values[..., late_start(values.shape[-1]) :]


def least_steps() -> int:
    """Fewest steps that can be judged at all."""
    return next(n for n in range(1, 1000) if n - windows(n)[-1] >= LEAST_POINTS)
