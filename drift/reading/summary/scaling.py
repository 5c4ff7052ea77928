"""How drift goes with the precision: the ladder and the rounding floor in one table."""

from __future__ import annotations

import pandas as pd

from drift.dataset.choosing import is_fold, keep
from drift.dataset.sweep import Sweep
from drift.reading import floor, ladder
from drift.reading.excess import missing
from drift.reading.quantities import Of
from drift.reading.statistics.slope import ScalingReason
from drift.reading.wording.numbers import fixed_number, interval_words, number

__all__ = ["scaling_table"]


def scaling_table(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> pd.DataFrame:
    """Write what the ladder and the floor say of every fold that was run at several precisions, a row each."""
    rows = []
    with_floor = keep(sweep, lambda ds: is_fold(ds) and missing(ds, measure, Of.EXCESS) is None)
    standings: dict[tuple[object, ...], list[str]] = {}
    for curve, one in floor.from_sweep(with_floor, measure, layer) if len(with_floor) else []:
        said = f"{curve.labels['dtype']}: {one.verdict.value.replace('_', ' ')} ({number(one.level, 3)} floors)"
        standings.setdefault(_fold(curve.labels), []).append(said)
    for one_ladder in ladder.ladders(sweep, measure, layer):
        slope = one_ladder.slope
        if slope.reason is ScalingReason.ONE_RUNG:
            continue
        labels = one_ladder.labels
        rows.append(
            {
                "reading": labels["protocol"],
                "fold": f"{labels['model']}, chunk {labels['chunk_size']}",
                "precisions": "/".join(one_ladder.dtypes),
                "slope": f"{fixed_number(slope.interval.value)} {interval_words(slope.interval)}",
                "the ladder says": slope.verdict.value + (f" ({slope.reason.value})" if slope.reason else ""),
                "against the floor": "; ".join(standings.get(_fold(labels), ["not measured"])),
            }
        )
    return pd.DataFrame(rows)


def _fold(labels: dict[str, object]) -> tuple[object, ...]:
    return labels["protocol"], labels["model"], labels["chunk_size"], labels["attn_implementation"], labels["device"]
