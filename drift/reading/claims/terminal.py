"""The claims table for a terminal."""

from __future__ import annotations

from drift.reading.amplitudes import SHORT
from drift.reading.claims.model import Audit
from drift.reading.claims.page import contradiction_lines, differing, matrix
from drift.shown import printable

__all__ = ["terminal"]


def terminal(found: Audit, details: bool) -> str:
    """Lay the claims table out for a terminal."""
    lines = [*contradiction_lines(found), *[""] * bool(found.contradictions)]
    lines += [f"Claims of arXiv 2605.12471, by {SHORT.get(found.measure, found.measure)}, layer {found.layer}", ""]
    if found.withheld:
        lines += [found.controls, ""]
    table = matrix(found)
    if len(table) > 1:
        columns = [[str(name), *map(str, table[name])] for name in table.columns]
        widths = [max(map(len, column)) for column in columns]
        rows = zip(*columns, strict=True)
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append("")
    last = ""
    width = max([10, *(len(s.protocol) for s in found.summaries)])
    for s in found.summaries:
        if s.claim.name != last:
            lines.append(f"{s.claim.name}: {s.claim.published}")
            last = s.claim.name
        lines.append(f"  {s.protocol or '-':<{width}} {s.status.value.upper():<13} {s.words}")
        if s.differing:
            lines.append(f"  {'':<{width}} {'':<13} other measures: {differing(s)}")
        if details and len(s.findings) > 1:
            lines += [f"      {f.scope}: {f.status.value}: {f.words}" for f in s.findings]
    alpha = found.setting.alpha
    lines += [
        "",
        f"Supported: every cell passes two one-sided tests at level {alpha:g}. Refuted: at least one cell passes the",
        "test of the contrary, after Holm's correction. Undetermined: neither.",
        *[text for text in (found.scope, "" if found.withheld else found.controls) if text],
    ]
    return "\n".join(map(printable, lines))
