"""C2: the plateau does not move with precision."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import amplitude
from drift.reading.cells import file_name, grouped_cells
from drift.reading.claims.model import PUBLISHED_SLOPE, Finding, Setting, Status
from drift.reading.claims.testing import (
    NO_LEVEL,
    TOO_FEW_STEPS,
    decide_status,
    documents_words,
    log_levels,
    margin_tests,
    nothing_found,
    slope_interval_words,
    zeros_words,
)
from drift.reading.controls.gating import gate
from drift.reading.statistics.noise import window_mean
from drift.reading.statistics.slope import least_squares

__all__ = ["c2"]


def c2(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per model and chunk size, the log-log slope of drift on the unit roundoff."""
    effect = "log-log slope of drift on unit roundoff"
    for axes, cells in grouped_cells(sweep, "model", "chunk_size"):
        cells = sorted({ds["dtype"].item(): ds for ds in cells}.values(), key=lambda ds: -ds["unit_roundoff"].item())
        if len({ds["unit_roundoff"].item() for ds in cells}) < 2:
            continue
        every = f"{axes['model']}, chunk {axes['chunk_size']}, {'/'.join(ds['dtype'].item() for ds in cells)}"
        levels = [(ds, values, log_levels(values)) for ds in cells for values in [amplitude(ds, measure, layer)]]
        lost = [ds["dtype"].item() for ds, _, z in levels if z is None]
        kept = [(ds, values, z) for ds, values, z in levels if z is not None]
        roundoffs = [ds["unit_roundoff"].item() for ds, _, _ in kept]
        if len(set(roundoffs)) < 2:
            yield nothing_found(("C2", "precision"), cells, measure, every, effect, NO_LEVEL + ".")
            continue
        cells, values, logs = (list(column) for column in zip(*kept, strict=True))
        scope = f"{axes['model']}, chunk {axes['chunk_size']}, {'/'.join(ds['dtype'].item() for ds in cells)}"
        ratio = math.log(roundoffs[0] / roundoffs[-1])
        series = least_squares(np.log(roundoffs), np.stack(logs))
        found = window_mean(series[None])
        if found is None:
            yield nothing_found(("C2", "precision"), cells, measure, scope, effect, TOO_FEW_STEPS + ".")
            continue
        gamma = math.log(1 + setting.precision) / ratio
        slope, half = found.estimate.item(), found.half_width(setting.alpha).item()
        support, refute = margin_tests(found, -gamma, gamma)
        status = decide_status(support, refute, setting.alpha)
        near = setting.proportional
        proportional = max(found.p_below(1 + near).item(), found.p_above(1 - near).item()) < setting.alpha
        kind = (
            "undetermined" if not gate(sweep).is_open
            else "insensitive to precision" if status is Status.SUPPORTED
            else "proportional to the unit roundoff" if proportional
            else "partly sensitive to precision" if status is Status.REFUTED and 0 < slope < 1
            else "sensitive to precision" if status is Status.REFUTED
            else "undetermined"
        )  # fmt: skip
        words = (
            f"{kind}: slope {slope:z.3f} ({slope_interval_words(slope, half, setting)}), that is a factor "
            f"{math.exp(slope * ratio):.3g} from {cells[-1]['dtype'].item()} to {cells[0]['dtype'].item()}, over "
            f"{math.exp(ratio):,.0f}x in unit roundoff (published: slope {PUBLISHED_SLOPE:.4f}); "
            f"{documents_words(axes['documents'])}{zeros_words(*values)}"
            + (f"; {', '.join(lost)} left out: {NO_LEVEL}." if lost else ".")
        )
        yield Finding(
            "C2", "precision", cells[0]["protocol"].item(), measure, scope, status, effect, slope,
            (slope - half, slope + half), (-gamma, gamma), support, refute, words, "",
            tuple(file_name(ds) for ds in cells),
            {"kind": kind, "ratio": math.exp(ratio), "published": PUBLISHED_SLOPE},
        )  # fmt: skip
