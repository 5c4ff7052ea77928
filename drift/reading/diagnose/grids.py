"""Numbers of 8 bits behind a scale: what a cache in fp8 hands back once it was dequantised.

A scaled number of fp8 keeps its few significant bits: over the scale, mantissas are whole eighths (e4m3) or quarters
(e5m2). The scale is not known, but the largest number of its group is one of those mantissas times a power of two times
the scale, which leaves eight candidates, or four.
"""

from __future__ import annotations

import numpy as np

from drift.reading.diagnose.tensors import Format

__all__ = ["SCALED", "scaled_fp8", "within_a_rounding"]

SCALED: dict[str, Format] = {
    "e5m2": Format("fp8_e5m2 with scales", 3, float("inf"), 0.0),
    "e4m3": Format("fp8_e4m3 with scales", 4, float("inf"), 0.0),
}
"""Formats behind a scale, from the fewest significant bits to the most; their ends depend on the scale."""
SOME = 64
"""Tokens that are looked at."""
ENOUGH = 64
"""Numbers that must lie on the grid."""
SHARE = 0.99
"""Share of the numbers looked at that must."""
RANGE = 2.0**-5
"""Numbers smaller than this much of their group's largest may be below the normal numbers, and are not looked at."""
_GROUPS = ((0, 1, 2), (1, 2), (0, 2), (2,), (0, 1), (1,))
"""Axes of [head, token, feature] that share a scale: all; a head; a token; both; a feature; a head's feature."""


def scaled_fp8(values: np.ndarray, kept: Format) -> Format | None:
    """Find the format of 8 bits that keys or values were in, before they were multiplied by scales.

    Parameters
    ----------
    values : ndarray of float32 or float64 [head, token, feature]
        Keys or values.
    kept : Format
        What the products are kept in; its rounding is allowed for.

    Returns
    -------
    Format or None
        None unless nearly all numbers lie on a grid of that format. Where `kept` is so narrow that other numbers lie
        on it by chance, only groups of many numbers tell.
    """
    seen = np.asarray(values[:, :SOME], dtype=np.float64)
    if kept.bits <= 7 or np.count_nonzero(seen) < ENOUGH or not np.isfinite(seen).all():
        return None
    for form in SCALED.values():
        for axes in _GROUPS:
            rest = tuple(axis for axis in range(3) if axis not in axes)
            groups = np.transpose(seen, (*rest, *axes)).reshape(-1, np.prod([seen.shape[a] for a in axes], dtype=int))
            if _on_grid(np.abs(groups), form, kept):
                return form
    return None


def _on_grid(groups: np.ndarray, form: Format, kept: Format) -> bool:
    """Whether the numbers of every group [group, number] are a scale times numbers of a format."""
    largest = groups.max(axis=1, keepdims=True)
    looked = (groups > RANGE * largest) & (groups < largest)
    # A group of n numbers has as many candidates as there are mantissas: fewer numbers than bits prove nothing.
    if looked.sum() < max(ENOUGH / 2, 4 * len(groups)):
        return False
    steps = 2 ** (form.bits - 1)
    tolerance = 2 * kept.unit_roundoff
    best = np.zeros(len(groups), dtype=int)
    for mantissa in range(steps, 2 * steps):
        with np.errstate(all="ignore"):
            fraction = np.frexp(groups / largest * mantissa)[0] * 2 * steps
        near = np.abs(fraction - np.rint(fraction)) <= tolerance * fraction
        best = np.maximum(best, np.count_nonzero(near & looked, axis=1))
    return bool(best.sum() >= SHARE * looked.sum())


def within_a_rounding(coarse: np.ndarray, fine: np.ndarray, form: Format) -> float:
    """Share of the larger numbers of a tensor that differ by no more than one rounding to a format."""
    size = np.abs(fine)
    looked = size > RANGE * np.max(size, initial=0.0)
    if not looked.any():
        return 0.0
    return float(np.mean(np.abs(coarse - fine)[looked] <= 1.05 * form.unit_roundoff * size[looked]))
