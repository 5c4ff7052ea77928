"""The answer to planted noise of a known size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from drift.reading import controls
from drift.reading.controls import firing
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    PROPORTIONAL,
    STYLES,
    cycle_styles,
    decade_ticks,
    legend_lines,
    name_x,
    note_below,
    panel_columns,
    precision_colours,
    precision_markers,
    set_style,
    wrap_panels,
)
from drift.reading.wording import numbers

__all__ = ["response"]


def response(found: controls.Checkup) -> Figure | None:
    """Draw drift against the size of the noise that was put in, one panel per model, with the floor of each precision.

    Hollow markers are sizes that the slope leaves out.
    """
    runs = [r for r in found.responses if np.isfinite(r.values).any()]
    if not runs:
        return None
    models = list(dict.fromkeys(r.setting[0] for r in runs))
    floors = {f.setting[1] for f in found.floor if f.setting[0] in models and f.level > 0}
    order = {r.setting[1]: r.unit_roundoff for r in runs}
    dtypes = sorted(order, key=lambda d: -order[d])
    with set_style():
        figure, axes = wrap_panels(len(models), height=3.1, sharex=True, sharey=True)
        for ax, model in zip(axes, models, strict=True):
            mine = [r for r in runs if r.setting[0] == model]
            _answers(ax, mine, dtypes)
            _floors(ax, {d: [f.level for f in found.floor if f.setting[:2] == (model, d)] for d in dtypes})
            _in_proportion(ax, mine)
            note_below(ax, sum(int((r.values == 0).sum()) for r in mine), 0)
            ax.set_title(model, fontsize=9.5)
            name_x(ax, "relative size of the noise [1]")
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(numticks=8))
            ax.xaxis.set_minor_locator(NullLocator())
        axes[0].set_yscale("log")
        decade_ticks(axes[0].yaxis)
        for ax in axes[:: panel_columns(len(axes))]:
            ax.set_ylabel("drift at the first step that can differ [1]")
        caption = (
            "Points: geometric mean over documents; bars: smallest to largest. Floor: full attention against itself in "
            f"another implementation or batch. Left out: sizes below {firing.DROWNED:g} unit roundoffs, responses "
            f"below {firing.DROWNED:g} floors or above {firing.TOLERANCE:g}."
        )
        return finish_figure(figure, _title(runs), caption, _legends(dtypes, floors))


def _answers(ax: Axes, runs: Sequence[controls.Response], dtypes: Sequence[str]) -> None:
    colour, marker = precision_colours(dtypes), precision_markers(dtypes)
    for r in runs:
        _answer(ax, r, colour[r.setting[1]], marker[r.setting[1]])


def _floors(ax: Axes, floors: dict[str, list[float]]) -> None:
    """Draw the highest floor of each precision."""
    colour, style = precision_colours(list(floors)), cycle_styles(list(floors), STYLES)
    for dtype, levels in floors.items():
        if levels and max(levels) > 0:
            ax.axhline(max(levels), color=colour[dtype], linestyle=style[dtype], linewidth=1, alpha=0.9, zorder=1)


def _in_proportion(ax: Axes, runs: Sequence[controls.Response]) -> None:
    """Draw what a proportional response would be, through the middle of the finest precision's."""
    usable = [r for r in runs if r.used.any()]
    if not usable:
        return
    r = min(usable, key=lambda r: r.unit_roundoff)
    at = float(np.exp(np.log(r.sizes[r.used]).mean()))
    y = float(np.exp(np.log(r.values[r.used]).mean()))
    span = np.array([min(r.sizes), max(r.sizes)])
    ax.plot(span, y * span / at, linewidth=1.1, zorder=1, **PROPORTIONAL)


def _title(runs: Sequence[controls.Response]) -> str:
    slopes = sorted(r.slope.value for r in runs if math.isfinite(r.slope.value))
    if not slopes:
        return "Drift answers to noise put into the cache"
    power = numbers.range_words(slopes, write=lambda v: f"{v:.2f}")
    good = all(abs(s - 1) <= firing.TOLERANCE for s in slopes)
    return f"Drift answers to noise {'in proportion' if good else 'NOT in proportion'}: to the power {power}"


def _legends(dtypes: Sequence[str], floors: set[str]) -> list[tuple[str, list[Line2D]]]:
    colour, marker, style = precision_colours(dtypes), precision_markers(dtypes), cycle_styles(dtypes, STYLES)
    marks: dict[Any, dict[str, Any]] = {
        "left out of the slope": {"color": "0.3", "marker": "o", "markerfacecolor": "white", "linestyle": "none"},
        "proportional": PROPORTIONAL,
    }
    return [
        ("precision", legend_lines({d: {"color": colour[d], "marker": marker[d]} for d in dtypes})),
        ("floor", legend_lines({d: {"color": colour[d], "linestyle": style[d]} for d in dtypes if d in floors})),
        ("marks", legend_lines(marks)),
    ]


def _answer(ax: Axes, r: controls.Response, colour: Any, marker: str) -> None:
    good = np.isfinite(r.values) & (r.values > 0)
    x, y, ends, used = [], [], [], []
    for size, row, there, in_use in zip(r.sizes, r.values, good, r.used, strict=True):
        if there.any():
            middle = float(np.exp(np.log(row[there]).mean()))
            x.append(size)
            y.append(middle)
            ends.append((max(middle - row[there].min(), 0), max(row[there].max() - middle, 0)))
            used.append(bool(in_use))
    if not x:
        return
    ax.errorbar(x, y, yerr=np.array(ends).T, color=colour, linewidth=1, capsize=2, marker="none")
    for here, fill in ((True, colour), (False, "white")):
        at = [k for k, u in enumerate(used) if u is here]
        ax.plot([x[k] for k in at], [y[k] for k in at], linestyle="none", marker=marker, markersize=6, color=colour,
                markerfacecolor=fill, zorder=3)  # fmt: skip
