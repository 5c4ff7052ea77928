"""Readings of the fold side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from drift.dataset.choosing import folds
from drift.dataset.sweep import Sweep
from drift.reading.figures.style import (
    DPI,
    MARKERS,
    amplitude_label,
    colours_of,
    cycle_styles,
    dtypes_of,
    finish_figure,
    legend_lines,
    note_below,
    set_style,
)
from drift.reading.side_by_side import chains, side_by_side
from drift.reading.wording import numbers

__all__ = ["readings"]


# ---------------------------------------------------------------------------------------------- readings
def readings(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level and change of NLL of every reading side by side: a row per protocol, its deepest chains."""
    part = folds(sweep, generating=True)
    table = side_by_side(part, measure, layer)
    protocols = list(dict.fromkeys(table["protocol"]))
    models, dtypes = part.values("model"), dtypes_of(chains(part))
    colour, marker = colours_of(dtypes), cycle_styles(models, MARKERS)
    fill = cycle_styles(dtypes, ("full", "none", "left", "top", "right"))
    with set_style():
        row_height = max(0.46, 0.25 + 0.05 * len(models) * len(dtypes))
        figure = Figure(figsize=(12, row_height * len(protocols) + 2.3), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        zeros = bad = 0
        for _, row in table.iterrows():
            m, d = models.index(row["model"]), dtypes.index(row["dtype"])
            slots = len(models) * len(dtypes)
            y = protocols.index(row["protocol"]) + 0.7 * ((d * len(models) + m + 0.5) / slots - 0.5)
            how: dict[str, Any] = {"color": colour[row["dtype"]], "marker": marker[row["model"]], "markersize": 5,
                                   "linewidth": 1.1, "capsize": 2, "fillstyle": fill[row["dtype"]]}  # fmt: skip
            if row["level"] > 0:
                ends = [[max(row["level"] - row["level_low"], 0)], [max(row["level_high"] - row["level"], 0)]]
                left.errorbar([row["level"]], [y], xerr=ends if row["level_low"] > 0 else None, **how)
            else:
                zeros, bad = zeros + int(row["level"] == 0), bad + int(math.isnan(row["level"]))
            if math.isfinite(row["nll_gap"]):
                ends = [[row["nll_gap"] - row["gap_low"]], [row["gap_high"] - row["nll_gap"]]]
                right.errorbar([row["nll_gap"]], [y], xerr=np.maximum(ends, 0), **how)
        if (table["level"] > 0).any():
            left.set_xscale("log")
            left.xaxis.set_major_locator(LogLocator(numticks=6))
            left.xaxis.set_minor_locator(NullLocator())
        right.set_xscale("symlog", linthresh=1e-3, linscale=0.6)
        right.xaxis.set_minor_locator(NullLocator())
        right.axvline(0, color="black", linewidth=0.9)
        widest = table[["gap_low", "gap_high", "nll_gap"]].abs().max(axis=None)
        reach = 3 * float(widest) if widest > 1e-3 else 3e-3
        right.set_xlim(-reach if table["gap_low"].min() < -1e-3 else -2e-3, reach)
        left.set_yticks(range(len(protocols)), protocols, fontsize=8.5)
        left.set_ylim(len(protocols) - 0.5, -0.5)
        for ax in (left, right):
            ax.grid(False, axis="y")
            for y in range(1, len(protocols)):
                ax.axhline(y - 0.5, color="0.9", linewidth=0.8)
        left.set_xlabel("level: " + amplitude_label(measure, layer), fontsize=9)
        right.set_xlabel("change of NLL, fold − full\n[nat per token]", fontsize=9)
        note_below(left, zeros, bad)
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "marker": "o", "fillstyle": fill[d]} for d in dtypes})),
            ("model", legend_lines({m: {"color": "0.25", "marker": marker[m], "linestyle": "none"} for m in models})),
        ]
        caption = (
            "The deepest chain of each model and precision. Left: geometric mean past the first quarter of the chain; "
            "right: mean over the same steps (linear within ±0.001). Bars: smallest to largest document."
        )
        gaps = table.groupby("protocol", sort=False)["nll_gap"].agg(lambda v: v.abs().max()).dropna()
        title = f"Drift and NLL of {len(protocols)} reading{'s' * (len(protocols) != 1)} of the fold"
        if len(gaps):
            title += f": NLL changes most under {gaps.idxmax()}, by {numbers.number(float(gaps.max()))} nat per token"
        return finish_figure(figure, title, caption, legends)
