"""C3: the plateau does not move with the chunk size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import xarray as xr

from drift.dataset.curves import curve
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import amplitude
from drift.reading.cells import file_name, grouped_cells
from drift.reading.claims.model import Finding, Setting
from drift.reading.claims.testing import (
    NO_LEVEL,
    TOO_FEW_STEPS,
    decide_status,
    documents_words,
    log_levels,
    margin_tests,
    nothing_found,
    zeros_words,
)
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.noise import window_mean
from drift.reading.statistics.slope import least_squares
from drift.reading.wording.numbers import coverage, percent

__all__ = ["c3"]

# ---------------------------------------------------------------------------------------------- C3
_COUNTS = {  # tokens that a step's value is the mean of, where that is not all of them
    "logit_kl": "logit_count",
    "logit_js": "logit_count",
    "delta_p_rms": "target_count",
    "nll_gap": "target_count",
}


def _blocks(ds: xr.Dataset, values: Float, measure: str, size: int, layer: int | str = "last") -> Float:
    """Pool amplitudes [document, step] over blocks of `size` tokens: [document, block].

    A chunk that straddles a border counts in proportion to its tokens on either side. Squares are pooled; those of the
    hidden state by the norm of what they are relative to, which gives the drift of the block itself, whatever the
    chunks were. Of keys and values no norms are recorded: theirs are pooled by tokens, as if all had the same norm. The
    gap in NLL is a difference of means: it is pooled with its sign.
    """
    start, stop = ds["token_start"].values, ds["token_stop"].values
    borders = np.arange(0, stop[-1] // size + 1) * size
    overlap = np.minimum(stop, borders[1:, None]) - np.maximum(start, borders[:-1, None])
    share = np.clip(overlap, 0, None) / (stop - start)  # [block, step]
    weight = np.broadcast_to((stop - start).astype(float), values.shape)
    if measure == "hidden_rel_l2":
        weight = curve(ds, "hidden_norm", layer) ** 2
    if measure in _COUNTS:
        weight = curve(ds, _COUNTS[measure])
        values = np.where(weight == 0, 0.0, values)  # NaN: nothing was compared
    with np.errstate(invalid="ignore"):
        if measure == "nll_gap":
            # Signed gaps average out: their mean over a chunk is smaller in a longer one, whatever the drift.
            signed = np.where(weight == 0, 0.0, curve(ds, "nll_fold") - curve(ds, "nll_full"))
            return np.abs((weight * signed) @ share.T / (weight @ share.T))
        return np.sqrt(((weight * values**2) @ share.T) / (weight @ share.T))


def c3(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per model and precision, how the level of drift changes per doubling of the chunk size."""
    effect = "change per doubling of the chunk size"
    delta = math.log1p(setting.chunk)
    for axes, cells in grouped_cells(sweep, "model", "dtype"):
        cells = [ds for ds in cells if ds["chunk_size"].item() <= axes["tokens"]]  # no chunk is larger than the text
        cells = sorted({ds["chunk_size"].item(): ds for ds in cells}.values(), key=lambda ds: ds["chunk_size"].item())
        sizes = [ds["chunk_size"].item() for ds in cells]
        if len(sizes) < 2:
            continue
        scope = f"{axes['model']} {axes['dtype']}, chunks {', '.join(map(str, sizes))}"
        pooled = [_blocks(ds, amplitude(ds, measure, layer), measure, sizes[-1], layer) for ds in cells]
        logs = [log_levels(values) for values in pooled]
        if any(z is None for z in logs):
            yield nothing_found(("C3", "chunk size"), cells, measure, scope, effect, NO_LEVEL + ".")
            continue
        series = least_squares(np.log2(sizes), np.stack(logs))  # type: ignore[arg-type]
        found = window_mean(series[None])
        if found is None:
            yield nothing_found(("C3", "chunk size"), cells, measure, scope, effect, TOO_FEW_STEPS + ".")
            continue
        slope, half = found.estimate.item(), found.half_width(setting.alpha).item()
        support, refute = margin_tests(found, -delta, delta)
        low, high = math.expm1(slope - half), math.expm1(slope + half)
        words = (
            f"{percent(math.expm1(slope))} per doubling ({coverage(setting.alpha)} interval {percent(low)} "
            f"to {percent(high)}) from {sizes[0]} to {sizes[-1]} tokens, over the same text; "
            f"{documents_words(axes['documents'])}{zeros_words(*pooled)}."
        )
        yield Finding(
            "C3", "chunk size", cells[0]["protocol"].item(), measure, scope,
            decide_status(support, refute, setting.alpha), effect, math.expm1(slope), (low, high),
            (math.expm1(-delta), math.expm1(delta)), support, refute, words, "", tuple(file_name(ds) for ds in cells),
        )  # fmt: skip
