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
    decide_status,
    documents_words,
    margin_tests,
    nothing_found,
    zeros_words,
)
from drift.reading.controls.gating import gate
from drift.reading.statistics.noise import Estimate
from drift.reading.statistics.slope import slope_of_levels
from drift.reading.wording.numbers import coverage, fixed_number

__all__ = ["c2"]


def c2(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per model and chunk size, the log-log slope of drift on the unit roundoff.

    It is the slope of the precision ladder, with its interval and what it says (:mod:`drift.reading.ladder`); held
    against the claim's margin, which is another question.
    """
    effect = "log-log slope of drift on unit roundoff"
    asked = gate(sweep)
    for axes, cells in grouped_cells(sweep, "model", "chunk_size"):
        cells = sorted({ds["dtype"].item(): ds for ds in cells}.values(), key=lambda ds: -ds["unit_roundoff"].item())
        roundoffs = [ds["unit_roundoff"].item() for ds in cells]
        if len(set(roundoffs)) < 2:
            continue
        values = [amplitude(ds, measure, layer) for ds in cells]
        judged, used = slope_of_levels(roundoffs, values, setting.alpha, setting.proportional)
        judged = asked.let(judged)
        lost = [ds["dtype"].item() for place, ds in enumerate(cells) if place not in used]
        cells, values, roundoffs = ([column[place] for place in used] for column in (cells, values, roundoffs))  # type: ignore[assignment]
        scope = f"{axes['model']}, chunk {axes['chunk_size']}, {'/'.join(ds['dtype'].item() for ds in cells)}"
        interval = judged.interval
        if math.isnan(interval.value):
            yield nothing_found(("C2", "precision"), cells, measure, scope, effect, NO_LEVEL + ".")
            continue
        ratio = math.log(roundoffs[0] / roundoffs[-1])
        gamma = math.log(1 + setting.precision) / ratio
        found = Estimate(np.array([interval.value]), [(np.array([interval.standard_error]), np.array([interval.df]))])
        known = not math.isnan(interval.low)
        support, refute = margin_tests(found, -gamma, gamma) if known else (math.nan, math.nan)
        status = decide_status(support, refute, setting.alpha) if known else Status.UNDETERMINED
        ends = f"{coverage(setting.alpha)} interval {' to '.join(map(fixed_number, interval.pair))}"
        words = (
            f"{judged.verdict.value}{f' ({judged.reason.value})' if judged.reason else ''}: slope "
            f"{fixed_number(interval.value)} ({ends if known else 'no interval'}), that is a factor "
            f"{math.exp(interval.value * ratio):.3g} from {cells[-1]['dtype'].item()} to {cells[0]['dtype'].item()}, "
            f"over {math.exp(ratio):,.0f}x in unit roundoff (published: slope {PUBLISHED_SLOPE:.4f}); "
            f"{documents_words(axes['documents'])}{zeros_words(*values, said='left out')}"
            + (f"; {', '.join(lost)} left out: {NO_LEVEL}." if lost else ".")
        )
        yield Finding(
            "C2", "precision", cells[0]["protocol"].item(), measure, scope, status, effect, interval.value,
            interval.pair, (-gamma, gamma), support, refute, words, "",
            tuple(file_name(ds) for ds in cells),
            {"kind": judged.verdict.value, "ratio": math.exp(ratio), "published": PUBLISHED_SLOPE},
        )  # fmt: skip
