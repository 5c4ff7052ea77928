"""The answer to planted noise of a known size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from drift.reading import controls
from drift.reading.controls import firing
from drift.reading.figures.style import (
    COLUMNS,
    MARKERS,
    STYLES,
    colours_of,
    cycle_styles,
    decade_ticks,
    finish_figure,
    legend_lines,
    name_x,
    note_below,
    set_style,
    wrap_panels,
)

__all__ = ["response"]


# ---------------------------------------------------------------------------------------------- controls
def response(found: controls.Summary) -> Figure | None:
    """Draw drift against the size of the noise that was put in, one panel per model, with the floor of each precision.

    Hollow markers are sizes that the slope leaves out.
    """
    runs = [r for r in found.responses if np.isfinite(r.values).any()]
    if not runs:
        return None
    models = list(dict.fromkeys(r.setting[0] for r in runs))
    order = {r.setting[1]: r.unit_roundoff for r in runs}
    dtypes = sorted(order, key=lambda d: -order[d])
    colour, marker, style = colours_of(dtypes), cycle_styles(dtypes, MARKERS), cycle_styles(dtypes, STYLES)
    with set_style():
        figure, axes = wrap_panels(len(models), height=3.1, sharex=True, sharey=True)
        for ax, model in zip(axes, models, strict=True):
            zeros = 0
            for r in (r for r in runs if r.setting[0] == model):
                dtype = r.setting[1]
                zeros += int((r.values == 0).sum())
                _answer(ax, r, colour[dtype], marker[dtype])
            floors = {d: [f.level for f in found.floor if f.setting[:2] == (model, d)] for d in dtypes}
            for dtype, bottom in floors.items():
                if bottom and max(bottom) > 0:
                    ax.axhline(
                        max(bottom), color=colour[dtype], linestyle=style[dtype], linewidth=1, alpha=0.9, zorder=1
                    )
            best = [r for r in runs if r.setting[0] == model and r.used.any()]
            if best:
                r = min(best, key=lambda r: r.unit_roundoff)
                at = float(np.exp(np.log(r.sizes[r.used]).mean()))
                y = float(np.exp(np.log(r.values[r.used]).mean()))
                span = np.array([min(r.sizes), max(r.sizes)])
                ax.plot(span, y * span / at, color="0.45", linestyle=(0, (4, 2)), linewidth=1.1, zorder=1)
            note_below(ax, zeros, 0)
            ax.set_title(model, fontsize=9.5)
            name_x(ax, "relative size of the noise [1]")
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(numticks=8))
            ax.xaxis.set_minor_locator(NullLocator())
        axes[0].set_yscale("log")
        decade_ticks(axes[0].yaxis)
        for ax in axes[:: min(len(axes), COLUMNS)]:
            ax.set_ylabel("drift at the first step that can differ [1]")
        slopes = sorted(r.slope.value for r in runs if math.isfinite(r.slope.value))
        title = "Drift answers to noise put into the cache"
        if slopes:
            ends = f"{slopes[0]:.2f}", f"{slopes[-1]:.2f}"
            power = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
            good = all(abs(s - 1) <= controls.TOLERANCE for s in slopes)
            title = f"Drift answers to noise {'in proportion' if good else 'NOT in proportion'}: to the power {power}"
        marks: dict[Any, dict[str, Any]] = {
            "left out of the slope": {"color": "0.3", "marker": "o", "markerfacecolor": "white", "linestyle": "none"},
            "proportional": {"color": "0.45", "linestyle": (0, (4, 2))},
        }
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "marker": marker[d]} for d in dtypes})),
            ("floor", legend_lines({d: {"color": colour[d], "linestyle": style[d]} for d in dtypes})),
            ("marks", legend_lines(marks)),
        ]
        caption = (
            "Points: geometric mean over documents; bars: smallest to largest. Floor: full attention against itself in "
            f"another implementation or batch. Left out: sizes below {firing.DROWNED:g} unit roundoffs, responses "
            f"below {firing.DROWNED:g} floors or above {controls.TOLERANCE:g}."
        )
        return finish_figure(figure, title, caption, legends)


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
