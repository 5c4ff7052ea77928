"""C6: what folding costs beside full attention of the same text, and what the published size would take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from drift import _published as largest
from drift.dataset.sweep import scalar
from drift.reading.cells import file_name
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.statistics.arrays import Float
from drift.reading.tasks import costs, is_published_size, reckoned
from drift.reading.wording.tasks import (
    cost_words,
    growth_words,
    in_all_words,
    lengths_words,
    predicted_words,
    reached_words,
    reckoned_words,
    stretched_words,
)

__all__ = [
    "PUBLISHED_BYTES",
    "PUBLISHED_SECONDS",
    "c6_cost",
    "growth_of_steps",
    "predicted",
    "stretched",
    "whole_steps",
]

PUBLISHED_BYTES, PUBLISHED_SECONDS = 35.6e9, 171
_BF16 = 2  # bytes


def predicted() -> tuple[float, float]:
    """Bytes of the cache and of the weights of the published model at the published length, in bf16."""
    cache = 2.0 * largest.LAYERS * largest.KV_HEADS * largest.HEAD_DIM * _BF16 * largest.TOKENS
    return cache, float(largest.PARAMETERS * _BF16)


def whole_steps(ds: xr.Dataset) -> Float:
    """Seconds of the chain steps of every text, [document, step]; NaN behind its end.

    The last step of a text, which is shorter, is left out, unless it is the only one.
    """
    seconds = np.array(ds["fold_seconds"].values, dtype=np.float64)
    there = np.isfinite(seconds).sum(axis=1)
    for row, count in zip(seconds, there, strict=True):
        row[max(count - 1, 1) :] = np.nan
    return np.asarray(seconds[:, : max(int(there.max()) - 1, 1)])


def growth_of_steps(ds: xr.Dataset) -> tuple[float, float]:
    """Seconds of a chain step as a line over the depth: at the first step, and what each further one adds.

    It is that of :func:`whole_steps`; NaN where there are fewer than three.
    """
    seconds = whole_steps(ds)
    _, steps = np.nonzero(np.isfinite(seconds))
    if len(set(steps)) < 3:
        return math.nan, math.nan
    slope, first = np.polyfit(steps.astype(np.float64), seconds[np.isfinite(seconds)], 1)
    return float(first), float(slope)


def stretched(line: tuple[float, float], ds: xr.Dataset) -> float:
    """Seconds in which the published fold would be through on the device of a cell, by a line over its chain steps.

    What a step takes at first is that of the weights, and grows with their number; what each further one adds is that
    of attention, and grows with layers, heads and features.

    Parameters
    ----------
    line : tuple of float
        As :func:`growth_of_steps` has it: seconds of the first step, and what each further one adds. One that falls
        counts as level.
    ds : xarray.Dataset
        The cell that it is of.

    Returns
    -------
    float
        NaN where there is no line, or the cell does not say the shapes.
    """
    said = reckoned(ds)
    own, other = (said.get(name, {}).get("shape") for name in ("own", "published"))
    if not own or not other:
        return math.nan
    first, slope = line
    steps = largest.TOKENS / int(scalar(ds, "chunk_size"))
    wider = [math.prod(shape[name] for name in ("layers", "heads", "head_dim")) for shape in (own, other)]
    weights = other["parameters"] / own["parameters"]
    return first * weights * steps + max(slope, 0.0) * wider[1] / wider[0] * steps * (steps - 1) / 2


def c6_cost(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    """Yield, per model, precision and chunk size, what folding took; the published size is predicted, never tested."""
    frame = costs(cells)
    if not len(frame):
        return
    for (model, dtype, size, device), part in frame.groupby(["model", "dtype", "chunk_size", "device"], sort=True):
        scope = f"{model} {dtype}, chunk {size}, {lengths_words(part['tokens'].tolist())}"
        ratios = _by_length(part, "fold_seconds", "full_seconds")
        longest = max(
            (ds for ds in cells if file_name(ds) in set(part["file"])), key=lambda ds: ds.sizes["step"]
        )  # fmt: skip
        line, beyond = growth_of_steps(longest), _beyond(longest, part)
        words = [
            cost_words(
                ratios,
                [own["last_seconds"].median() / own["first_seconds"].median() for _, own in part.groupby("tokens")],
                _by_length(part, "fold_bytes", "full_bytes"),
                str(device),
            ),
            *_in_all(longest, part),
        ]
        said = "; ".join(words) + growth_words(*line, longest.sizes["step"])
        ends = (min(ratios), max(ratios))
        yield Finding(
            "C6", "cost", str(part["protocol"].iloc[0]), "seconds", scope, Status.NOT_TESTED,
            "seconds of the fold over those of full attention", ratios[-1], ends, (math.nan, math.nan), math.nan,
            math.nan, f"{said}; {beyond}.", "", tuple(sorted(set(part["file"]))),
            {"tokens": int(part["tokens"].max()), "beyond": beyond},
        )  # fmt: skip


def _in_all(longest: xr.Dataset, part: pd.DataFrame) -> Iterator[str]:
    """What the longest texts took in all, and what was reckoned."""
    own = part[part["file"] == file_name(longest)]
    yield in_all_words(
        int(own["tokens"].iloc[0]), own["fold_seconds"].mean(), own["full_seconds"].mean(),
        float(own["fold_peak"].max()), float(own["full_peak"].max()), float(own["reckoned_peak"].iloc[0]),
        str(own["device"].iloc[0]),
    )  # fmt: skip


def _beyond(longest: xr.Dataset, part: pd.DataFrame) -> str:
    """What the published size takes: as measured, where it was, on a GPU; else as predicted, three ways."""
    said = reckoned(longest)
    if is_published_size(longest) and scalar(longest, "device") != "cpu":
        own = part[part["file"] == file_name(longest)]
        return reached_words(own["fold_seconds"].mean(), own["fold_peak"].max(), PUBLISHED_SECONDS, PUBLISHED_BYTES)
    cache, weights = predicted()
    words = predicted_words(largest.TOKENS, largest.PARAMETERS, cache, weights, PUBLISHED_BYTES)
    published = said.get("published")
    if published is not None:
        words += reckoned_words(published["memory_bytes"], published["fold_seconds"], published["device"])
    return words + stretched_words(stretched(growth_of_steps(longest), longest), str(scalar(longest, "device")))


def _by_length(part: pd.DataFrame, of: str, by: str) -> list[float]:
    """Ratios of two sums, the shortest texts first."""
    return [float(own[of].sum() / own[by].sum()) for _, own in part.groupby("tokens", sort=True)]
