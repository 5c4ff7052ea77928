"""Geometric levels."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from drift.reading.statistics.windows import late_part

__all__ = ["collapse_documents", "geometric_mean", "level"]


def geometric_mean(values: np.ndarray) -> float:
    """Geometric mean of the positive finite values; 0 if no finite one is positive, NaN if none is finite."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if positive.size:
        return float(np.exp(np.log(positive).mean()))
    return 0.0 if finite.size else math.nan


def level(values: np.ndarray) -> np.ndarray:
    """Return the late level of each document.

    Parameters
    ----------
    values : ndarray [document, step]

    Returns
    -------
    ndarray [document]
        Geometric mean past the first quarter of the chain; 0 where all of it is exactly zero, NaN where nothing is
        finite.
    """
    return np.array([geometric_mean(row) for row in late_part(values)])


def collapse_documents(values: np.ndarray) -> pd.DataFrame:
    """Collapse [document, x] to one row per x."""
    finite = np.isfinite(values)
    good = finite & (values > 0)
    masked = np.where(good, values, np.nan)
    some = good.any(axis=0)
    filled = np.where(some, masked, 1.0)  # columns without a positive value are blanked below
    return pd.DataFrame(
        {
            "value": np.where(some, np.exp(np.nanmean(np.log(filled), axis=0)), np.nan),
            "low": np.where(some, np.nanmin(filled, axis=0), np.nan),
            "high": np.where(some, np.nanmax(filled, axis=0), np.nan),
            "zeros": (finite & (values <= 0)).sum(axis=0),
            "nonfinite": (~finite).sum(axis=0),
        }
    )
