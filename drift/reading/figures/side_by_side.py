"""Readings of the fold side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from drift.dataset.choosing import folds
from drift.dataset.sweep import Sweep
from drift.reading.figures.captions import late_of
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    DPI,
    MARKERS,
    WIDEST,
    axis_label,
    cycle_styles,
    dtypes_of,
    legend_lines,
    make_figure,
    note_below,
    precision_colours,
    set_style,
)
from drift.reading.side_by_side import chains, side_by_side
from drift.reading.wording import numbers

__all__ = ["readings"]


#: Changes of NLL up to this size are drawn on a linear axis, larger ones on a logarithmic one.
LINEAR = 1e-3


def readings(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level and change of NLL of every reading side by side: a row per protocol, its deepest chains."""
    part = folds(sweep, generating=True)
    table = side_by_side(part, measure, layer)
    protocols = list(dict.fromkeys(table["protocol"]))
    models, dtypes = part.values("model"), dtypes_of(chains(part))
    colour, marker = precision_colours(dtypes), cycle_styles(models, MARKERS)
    fill = cycle_styles(dtypes, ("full", "none", "left", "top", "right"))
    with set_style():
        row_height = max(0.46, 0.25 + 0.05 * len(models) * len(dtypes))
        figure = make_figure(WIDEST / DPI, row_height * len(protocols) + 2.3)
        left, right = figure.subplots(1, 2, sharey=True)
        slots = len(models) * len(dtypes)
        for _, row in table.iterrows():
            m, d = models.index(row["model"]), dtypes.index(row["dtype"])
            y = protocols.index(row["protocol"]) + 0.7 * ((d * len(models) + m + 0.5) / slots - 0.5)
            how: dict[str, Any] = {"color": colour[row["dtype"]], "marker": marker[row["model"]], "markersize": 5,
                                   "linewidth": 1.1, "capsize": 2, "fillstyle": fill[row["dtype"]]}  # fmt: skip
            _point(left, row["level"], row["level_low"], row["level_high"], y, positive=True, **how)
            _point(right, row["nll_gap"], row["gap_low"], row["gap_high"], y, **how)
        _axes(left, right, table, protocols)
        left.set_xlabel("level: " + axis_label(measure, layer), fontsize=9)
        right.set_xlabel("change of NLL, fold − full\n[nat per token]", fontsize=9)
        note_below(left, int((table["level"] == 0).sum()), int(table["level"].isna().sum()))
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "marker": "o", "fillstyle": fill[d]} for d in dtypes})),
            ("model", legend_lines({m: {"color": "0.25", "marker": marker[m], "linestyle": "none"} for m in models})),
        ]
        caption = (
            f"The deepest chain of each model and precision. Left: geometric mean {late_of(table['steps'])}; right: "
            f"mean over the same steps (linear within ±{LINEAR:g}). Bars: smallest to largest document."
        )
        return finish_figure(figure, _title(table), caption, legends)


def _point(ax: Axes, value: float, low: float, high: float, y: float, *, positive: bool = False, **how: Any) -> None:
    """Draw a value with its range over documents, where it can be drawn."""
    if not math.isfinite(value) or (positive and not value > 0):
        return
    ends = None if positive and not low > 0 else np.maximum([[value - low], [high - value]], 0)
    ax.errorbar([value], [y], xerr=ends, **how)


def _axes(left: Axes, right: Axes, table: pd.DataFrame, protocols: Sequence[str]) -> None:
    """Choose the scales, and name the rows."""
    if (table["level"] > 0).any():
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(numticks=6))
        left.xaxis.set_minor_locator(NullLocator())
    right.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    right.axvline(0, color="black", linewidth=0.9)
    widest = float(table[["gap_low", "gap_high", "nll_gap"]].abs().max(axis=None))
    reach = 3 * max(widest, LINEAR) if math.isfinite(widest) else 3 * LINEAR
    least = float(table[["gap_low", "nll_gap"]].min(axis=None))
    right.set_xlim(-3 * max(-least, LINEAR) if math.isfinite(least) else -3 * LINEAR, reach)
    right.set_xticks(_decades(*right.get_xlim()))
    right.xaxis.set_minor_locator(NullLocator())
    left.set_yticks(range(len(protocols)), protocols, fontsize=8.5)
    left.set_ylim(len(protocols) - 0.5, -0.5)
    for ax in (left, right):
        ax.grid(False, axis="y")
        for y in range(1, len(protocols)):
            ax.axhline(y - 0.5, color="0.9", linewidth=0.8)


def _decades(low: float, high: float) -> list[float]:
    """Ticks of an axis that is linear around 0: decades, so few that their names have room."""
    sides = [math.floor(math.log10(max(abs(end), LINEAR)) + 1e-9) for end in (low, high)]
    first = round(math.log10(LINEAR))
    every = max(1, math.ceil(sum(side - first + 1 for side in sides) / 6))
    left, right = (range(side, first - 1, -every) for side in sides)
    return [*(-(10.0**k) for k in left), 0.0, *sorted(10.0**k for k in right)]


def _title(table: pd.DataFrame) -> str:
    count = table["protocol"].nunique()
    title = f"Drift and NLL of {count} reading{'s' * (count != 1)} of the fold"
    gaps = table.groupby("protocol", sort=False)["nll_gap"].agg(lambda v: v.abs().max()).dropna()
    if len(gaps):
        title += f": NLL changes most under {gaps.idxmax()}, by {numbers.number(float(gaps.max()))} nat per token"
    return title
