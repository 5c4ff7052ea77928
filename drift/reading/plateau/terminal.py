"""Verdicts on curves for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from drift.dataset.opening import open_sweep
from drift.errors import DatasetError
from drift.paths import outside_path
from drift.reading import controls
from drift.reading.plateau import csv_files
from drift.reading.plateau.curves import Curve, LeftOut, from_sweep, left_out
from drift.reading.plateau.model import Plateau, Reason
from drift.reading.plateau.wording import certificate
from drift.reading.quantities import Of
from drift.reading.statistics.intervals import LEVEL_ALPHA
from drift.reading.wording.numbers import coverage, percent
from drift.reading.wording.tables import first_few
from drift.shown import printable

__all__ = ["curves_of", "left_out_lines", "table"]


def table(curves: Sequence[Curve], found: Sequence[Plateau], gate: controls.Gate) -> str:
    """Lay verdicts out as text: one line per curve, then what the verdicts mean and what to know about them."""
    rows = [("curve", "verdict", "growth per doubling", "level", "documents x steps")]
    for curve, p in zip(curves, found, strict=True):
        low, high = p.growth_interval
        growth = percent(p.growth_per_doubling)
        interval = f" ({percent(low)} to {percent(high)})" if growth != "n/a" else ""
        verdict = p.verdict.value + (f": {p.reason.value}" if p.reason else "")
        level = "n/a"
        if not math.isnan(p.level):
            level = f"{p.level:.3g} ({p.level_interval[0]:.3g} to {p.level_interval[1]:.3g})"
        rows.append((curve.name, verdict, growth + interval, level, f"{p.documents} x {p.steps}"))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    if found:
        lines.append(
            f"Plateau: growth per doubling of chain depth within {percent(found[0].margin).lstrip('+')} "
            f"(two one-sided tests, level {found[0].alpha:g}). "
            f"Intervals of growth: {coverage(found[0].alpha)}, of the level: {coverage(LEVEL_ALPHA)}."
        )
    if any(p.reason is Reason.CONTROLS for p in found):
        lines.append(f"No verdict is drawn, because controls of the instrument failed: {first_few(gate.failed)}.")
    undecided = [(c, p) for c, p in zip(curves, found, strict=True) if p.reason not in (None, Reason.CONTROLS)]
    lines += [f"{c.name}: {p.explanation}" for c, p in undecided[:20]]
    if len(undecided) > 20:
        lines.append(f"... and {len(undecided) - 20} more undetermined (--json has all)")
    lines += [f"{c.name}: {said}." for c, p in zip(curves, found, strict=True) if (said := certificate(p))]
    caveats: dict[str, list[str]] = {}
    for c, p in zip(curves, found, strict=True):
        for caveat in p.caveats:
            caveats.setdefault(caveat, []).append(c.name)
    for caveat, names in list(caveats.items())[:20]:
        who = "all curves" if len(names) == len(found) else ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        lines.append(f"Note ({who}): {caveat}.")
    return "\n".join(map(printable, lines))


def left_out_lines(without: Sequence[LeftOut]) -> list[str]:
    """Say which cells were left out, why, and what to do: one line per reason and remedy."""
    names: dict[tuple[str, str], list[str]] = {}
    for one in without:
        names.setdefault((one.why.value, one.remedy), []).append(one.name)
    said = [f"Left out ({len(mine)}): {why}; {remedy}. {first_few(mine)}." for (why, remedy), mine in names.items()]
    return [printable(line) for line in said]


def curves_of(
    source: str, measures: Sequence[str], layer: int | str, report: Callable[[str], None], of: Of = Of.DRIFT
) -> tuple[list[Curve], controls.Gate, list[LeftOut]]:
    """Read the curves of a sweep's folder, or of a CSV file.

    Parameters
    ----------
    source : str
        A folder, or a file.
    measures : sequence of str
        Measures of a sweep, or ``["all"]``.
    layer : int, "last" or "all"
        For measures that have layers.
    report : callable
        Is told in a line what could not be read, and what the controls say where one failed.
    of : Of
        What of every cell: drift, or a ratio, or the floor. A CSV file has its values alone.

    Returns
    -------
    list of Curve
    Gate
        That their verdicts go through.
    list of LeftOut
        Cells of which there is no such curve.

    Raises
    ------
    DatasetError
        Nothing there can be read, or a file is asked for what it does not hold.
    """
    path = outside_path(source, DatasetError)
    if not path.is_dir():
        if of is not Of.DRIFT:
            raise DatasetError(
                f"{path}: a file of curves holds its values alone; {of.value} is formed from a sweep's cells"
            )
        return csv_files.from_csv(path), controls.NO_CONTROLS, []
    sweep = open_sweep(path)
    for name, problem in sweep.problems.items():
        report(f"{name} was left out: {problem}")
    if not len(sweep):
        raise DatasetError(f"{path}: the sweep holds no cell that can be read")
    checked = controls.evaluate(sweep)
    if not checked.ok:
        report(checked.banner)
    without = left_out(sweep, measures, layer, of)
    return list(from_sweep(sweep, measures, layer, of)), controls.gate(sweep), without
