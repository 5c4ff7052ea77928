"""Ladders and attributions for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drift.reading.ladder.attribution import PARTS_COMMAND, Attribution
from drift.reading.ladder.judging import Ladder
from drift.reading.ladder.wording import amplitude_name, attribution_sentences
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.slope import ROUNDING_MARGIN, STRUCTURAL_MARGIN
from drift.reading.wording.numbers import coverage, fixed_number, interval_words
from drift.shown import printable

__all__ = ["terminal"]


def terminal(found: Sequence[Ladder], parts: Sequence[Attribution]) -> str:
    """Lay ladders and attributions out as text."""
    lines = []
    for measure in dict.fromkeys(one.labels["measure"] for one in found):
        lines.append(f"Log-log slope of drift on the unit roundoff: {amplitude_name(measure)}")
        rows = [("protocol", "model", "chunk", "precisions", "slope", "interval", "verdict")]
        mine = [one for one in found if one.labels["measure"] == measure]
        for one in mine:
            many = [("/".join(one.dtypes), one.slope), *((f"  {p.coarse}/{p.fine}", p.slope) for p in one.pairs)]
            for dtypes, s in many if len(one.pairs) > 1 else many[:1]:
                verdict = s.verdict.value + (f": {s.reason.value}" if s.reason else "")
                ends = interval_words(s.interval).strip("()") if math.isfinite(s.interval.value) else "–"
                rows.append(
                    (one.labels["protocol"], one.labels["model"], str(one.labels["chunk_size"]), dtypes,
                     fixed_number(s.interval.value), ends, verdict)
                )  # fmt: skip
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes: dict[str, list[str]] = {}
        for one in mine:
            for caveat in one.caveats:
                notes.setdefault(caveat, []).append(one.name)
        lines += [f"Note ({'; '.join(n[:3])}{'; ...' * (len(n) > 3)}): {c}." for c, n in list(notes.items())[:12]]
        lines.append("")
    lines.append(
        f"Rounding: the {coverage(ALPHA)} interval lies within 1 ± {ROUNDING_MARGIN:g}. Structural: within "
        f"± {STRUCTURAL_MARGIN:g}. Both: between the two."
    )
    lines.append("")
    lines += attribution_sentences(parts) or [
        f"Parts of the error against float64: not measured in this sweep; `{PARTS_COMMAND}` measures them."
    ]
    return "\n".join(map(printable, lines))
