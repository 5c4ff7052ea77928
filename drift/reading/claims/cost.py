"""C6: what folding costs beside full attention of the same text, and what the published size would take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from drift.reading.cells import file_name
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.tasks import costs
from drift.reading.wording.tasks import cost_words, growth_words, lengths_words, predicted_words

__all__ = ["PUBLISHED_BYTES", "PUBLISHED_SECONDS", "PUBLISHED_TOKENS", "c6_cost", "growth_of_steps", "predicted"]

PUBLISHED_TOKENS, PUBLISHED_BYTES, PUBLISHED_SECONDS = 131_072, 35.6e9, 171
# Llama 3.1 8B, which was published: layers, heads of keys and values, features of each, parameters.
_LAYERS, _HEADS, _FEATURES, _PARAMETERS = 32, 8, 128, 8.03e9
_BF16 = 2  # bytes


def predicted() -> tuple[float, float]:
    """Bytes of the cache and of the weights of the published model at the published length, in bf16."""
    return 2.0 * _LAYERS * _HEADS * _FEATURES * _BF16 * PUBLISHED_TOKENS, _PARAMETERS * _BF16


def growth_of_steps(ds: xr.Dataset) -> tuple[float, float]:
    """Seconds of a chain step as a line over the depth: at the first step, and what each further one adds.

    The last step of a text, which is shorter, is left out; NaN where fewer than three are left.
    """
    seconds = ds["fold_seconds"].values
    points = [
        (step, value)
        for row in seconds
        for step, value in enumerate(row[np.isfinite(row)][:-1])
    ]  # fmt: skip
    if len({step for step, _ in points}) < 3:
        return math.nan, math.nan
    slope, first = np.polyfit(*np.array(points).T, 1)
    return float(first), float(slope)


def c6_cost(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    """Yield, per model, precision and chunk size, what folding took; the published size is predicted, never tested."""
    frame = costs(cells)
    if not len(frame):
        return
    cache, weights = predicted()
    beyond = predicted_words(PUBLISHED_TOKENS, _PARAMETERS, cache, weights, PUBLISHED_BYTES)
    for (model, dtype, size, device), part in frame.groupby(["model", "dtype", "chunk_size", "device"], sort=True):
        scope = f"{model} {dtype}, chunk {size}, {lengths_words(part['tokens'].tolist())}"
        ratios = _by_length(part, "fold_seconds", "full_seconds")
        words = cost_words(
            ratios,
            [own["last_seconds"].median() / own["first_seconds"].median() for _, own in part.groupby("tokens")],
            _by_length(part, "fold_bytes", "full_bytes"),
            str(device),
        )
        longest = max(
            (ds for ds in cells if file_name(ds) in set(part["file"])), key=lambda ds: ds.sizes["step"]
        )  # fmt: skip
        words += growth_words(*growth_of_steps(longest), longest.sizes["step"])
        ends = (min(ratios), max(ratios))
        yield Finding(
            "C6", "cost", str(part["protocol"].iloc[0]), "seconds", scope, Status.NOT_TESTED,
            "seconds of the fold over those of full attention", ratios[-1], ends, (math.nan, math.nan), math.nan,
            math.nan, f"{words}; {beyond}.", "", tuple(sorted(set(part["file"]))),
            {"tokens": int(part["tokens"].max()), "beyond": beyond},
        )  # fmt: skip


def _by_length(part: pd.DataFrame, of: str, by: str) -> list[float]:
    """Ratios of two sums, the shortest texts first."""
    return [float(own[of].sum() / own[by].sum()) for _, own in part.groupby("tokens", sort=True)]
