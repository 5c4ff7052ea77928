"""C4: the same across model families."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import amplitude
from drift.reading.cells import TEXT_AXES, axis_value, deepest, file_name
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.claims.saturation import c1_plateau
from drift.reading.claims.testing import (
    decide_status,
    documents_words,
    log_levels,
    margin_tests,
    nothing_found,
    zeros_words,
)
from drift.reading.statistics.intervals import holm
from drift.reading.statistics.noise import Estimate, window_mean
from drift.reading.wording.numbers import coverage

__all__ = ["c4_level", "c4_plateau"]


# ---------------------------------------------------------------------------------------------- C4
def _level(ds: xr.Dataset, measure: str, layer: int | str) -> Estimate | None:
    z = log_levels(amplitude(ds, measure, layer))
    return None if z is None else window_mean(z[None])


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two independent estimates; degrees of freedom after Welch and Satterthwaite."""

    def largest(e: Estimate) -> tuple[float, float]:
        return max((se.item(), df.item()) for se, df in e.errors)

    (sa, na), (sb, nb) = largest(a), largest(b)
    total = sa**2 + sb**2
    df = total**2 / (sa**4 / na + sb**4 / nb) if total > 0 else math.inf
    error = np.array([math.sqrt(total)]), np.array([min(df, 1e9)])
    return Estimate(a.estimate - b.estimate, [error])


def c4_level(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per pair of models measured alike, the ratio of their levels of drift."""
    effect = "ratio of two models' levels"
    delta = math.log(setting.family)
    groups: dict[tuple[Any, ...], list[xr.Dataset]] = {}
    for ds in sweep:
        groups.setdefault(tuple(axis_value(ds, k) for k in ("dtype", "chunk_size", *TEXT_AXES)), []).append(ds)
    chosen: dict[str, tuple[tuple[Any, ...], list[xr.Dataset]]] = {}
    for key, cells in groups.items():
        cells = sorted(cells, key=lambda ds: (ds["model"].item(), ds.sizes["document"]))
        cells = list({ds["model"].item(): ds for ds in cells}.values())  # of one model the cell with most documents
        best = chosen.get(key[0])
        # Per precision, the setting that most models share, and of those the deepest chain.
        rank = (len(cells), cells[0].sizes["step"])
        if len(cells) > 1 and (best is None or rank > (len(best[1]), best[1][0].sizes["step"])):
            chosen[key[0]] = key, cells
    for (dtype, size, tokens, *_), cells in chosen.values():
        levels = [(ds, _level(ds, measure, layer)) for ds in cells]
        for (a, la), (b, lb) in itertools.combinations(levels, 2):
            scope = f"{a['model'].item()} : {b['model'].item()}, {dtype}, chunk {size}, {tokens} tokens"
            if la is None or lb is None:
                why = "one of the two has no level to compare."
                yield nothing_found(("C4", "level"), (a, b), measure, scope, effect, why)
                continue
            found = _difference(la, lb)
            ratio, half = found.estimate.item(), found.half_width(setting.alpha).item()
            support, refute = margin_tests(found, -delta, delta)
            low, high = math.exp(ratio - half), math.exp(ratio + half)
            words = (
                f"ratio {math.exp(ratio):.2f} ({coverage(setting.alpha)} interval {low:.2f} to {high:.2f}); "
                f"{documents_words(min(a.sizes['document'], b.sizes['document']))}"
                f"{zeros_words(*(amplitude(ds, measure, layer) for ds in (a, b)))}."
            )
            yield Finding(
                "C4", "level", a["protocol"].item(), measure, scope, decide_status(support, refute, setting.alpha),
                effect, math.exp(ratio), (low, high), (1 / setting.family, setting.family), support, refute, words, "",
                (file_name(a), file_name(b)), {"families": [a["family"].item(), b["family"].item()]},
            )  # fmt: skip


def c4_plateau(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Whether every model has the plateau, per precision: C1 again, over models."""
    cells = deepest(sweep)
    found = c1_plateau(sweep.derive(cells), measure, layer, setting)
    by_dtype: dict[str, list[tuple[xr.Dataset, Finding]]] = {}
    for ds, finding in zip(cells, found, strict=True):
        by_dtype.setdefault(ds["dtype"].item(), []).append((ds, finding))
    for dtype, pairs in by_dtype.items():
        if len(pairs) < 2:
            continue
        kinds = {f.status for _, f in pairs}
        said = "; ".join(f"{ds['model'].item()}: {f.detail['verdict'].replace('_', ' ')}" for ds, f in pairs)
        status = Status.SUPPORTED if kinds == {Status.SUPPORTED} else Status.UNDETERMINED
        adjusted = holm([f.p_refute for _, f in pairs])
        if any(f.status is Status.REFUTED and q < setting.alpha for (_, f), q in zip(pairs, adjusted, strict=True)):
            status = Status.REFUTED
        p = max(f.p_support for _, f in pairs) if kinds == {Status.SUPPORTED} else math.nan
        yield Finding(
            "C4", "plateau", pairs[0][0]["protocol"].item(), measure, f"{len(pairs)} models, {dtype}", status,
            "verdict on C1", math.nan, (math.nan, math.nan), (math.nan, math.nan), p,
            min((q for q in adjusted if not math.isnan(q)), default=math.nan), f"{said}.", "",
            tuple(c for _, f in pairs for c in f.cells),
        )  # fmt: skip
