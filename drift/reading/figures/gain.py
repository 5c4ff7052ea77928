"""What becomes of a perturbation, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from drift.reading import gain
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    MOST_PANELS,
    STYLES,
    cut_words,
    cycle_styles,
    legend_lines,
    log_y,
    name_x,
    note_below,
    panel_columns,
    precision_colours,
    precision_markers,
    set_style,
    wrap_panels,
)
from drift.reading.statistics import intervals
from drift.reading.wording.numbers import coverage

__all__ = ["gains"]


# ---------------------------------------------------------------------------------------------- gain
def gains(found: Sequence[gain.Gain]) -> Figure | None:
    """Draw the gain after a disturbance: one panel per fold and model, colour by precision, line style by step."""
    if not found:
        return None
    there = sorted({(g.labels["fold"], g.labels["model"]) for g in found})
    panels = there[:MOST_PANELS]
    order = {g.labels["dtype"]: g.labels["unit_roundoff"] for g in found}
    dtypes = sorted(order, key=lambda d: -order[d])
    steps = sorted({g.labels["step"] for g in found})
    colour, style, marker = precision_colours(dtypes), cycle_styles(steps, STYLES), precision_markers(dtypes)
    with set_style():
        figure, axes = wrap_panels(len(panels), height=3.0, sharey=True)
        for ax, (fold, model) in zip(axes, panels, strict=True):
            zeros = bad = 0
            for g in (g for g in found if (g.labels["fold"], g.labels["model"]) == (fold, model)):
                middle, low, high = g.band(intervals.ALPHA)
                zeros, bad = zeros + int((g.values == 0).sum()), bad + int((~np.isfinite(g.values)).sum())
                shade = colour[g.labels["dtype"]]
                k = np.arange(len(middle))
                ax.fill_between(k, low, high, where=np.isfinite(low), color=shade, alpha=0.18, linewidth=0)
                ax.plot(k, middle, color=shade, linestyle=style[g.labels["step"]], marker=marker[g.labels["dtype"]],
                        markevery=max(1, len(k) // 6), markersize=4, linewidth=1.3, markeredgecolor="white",
                        markeredgewidth=0.4)  # fmt: skip
            ax.axhline(1, color="black", linewidth=0.9, zorder=1)
            note_below(ax, zeros, bad)
            ax.set_title(f"{fold}\n{model}", fontsize=9.5)
            name_x(ax, "chain steps after the\nfirst affected one")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        log_y(axes[0])
        for ax in axes[:: panel_columns(len(axes))]:
            ax.set_ylabel("drift / drift at the\nfirst affected step [1]", fontsize=8.5)
        kinds = [g.rate.verdict for g in found]
        counted = ", ".join(f"{kinds.count(v)} {v.value}" for v in dict.fromkeys(kinds))
        title = f"What becomes of a disturbance? {counted[:1].upper()}{counted[1:]}" + (
            f" of {len(found)} cells" if len(found) > 1 else ""
        )
        legends: list[tuple[str, list[Line2D]]] = [
            (
                "precision",
                legend_lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes}),
            ),
            ("put in after step", legend_lines({s: {"color": "0.25", "linestyle": style[s]} for s in steps})),
        ]
        caption = (
            f"Lines: geometric mean over documents; bands: {coverage(intervals.ALPHA)} interval of it (none with one "
            "document). Steps count from 0. Black: carried along unchanged. Log scale."
            f"{cut_words(len(panels), len(there), 'folds and models')}"
        )
        return finish_figure(figure, title, caption, legends)
