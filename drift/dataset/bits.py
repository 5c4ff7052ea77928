"""How much of a cell is kept as evidence: layers, significant bits, and how numbers are rounded to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BITS", "EXACT", "LAYERS", "WHOLE", "round_bits"]

LAYERS = 6
BITS = 26
#: Never rounded: what is read off these two is their difference, which may be smaller than the last bit kept.
EXACT = ("nll_full", "nll_fold")
WHOLE = 53  # significant bits of a float64


def round_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to `bits` significant bits, to nearest, ties to even.

    Parameters
    ----------
    values : ndarray of float64
        Any shape. NaN, Inf and the sign of zero are kept, and so is a number that would round to Inf.
    bits : int
        1 to 53; of the result's mantissa, the leading one included.

    Returns
    -------
    ndarray of float64
        Of the same shape; the relative error is at most ``2**-bits``, for subnormal numbers too.
    """
    import numpy as np  # here: a command line that shows the defaults above does not wait for it

    # Exact but for rint: scaling by a power of two, and what has fewer bits than a float64 fits wherever that did.
    mantissa, exponent = np.frexp(values)
    with np.errstate(over="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    return np.where(np.isinf(rounded), values, rounded)
