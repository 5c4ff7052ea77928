"""Levels of drift against the unit roundoff and the chunk size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from drift.dataset.sweep import Sweep
from drift.reading import controls, summary
from drift.reading.figures.style import (
    MARKERS,
    STYLES,
    axis_label,
    colours_of,
    cycle_styles,
    draw_line,
    dtypes_of,
    finish_figure,
    legend_lines,
    line_widths,
    log2_x,
    log_y,
    make_grid,
    model_title,
    name_rungs,
    name_x,
    need_cells,
    note_below,
    protocol_lines,
    say_empty,
    set_style,
)
from drift.reading.wording import numbers

__all__ = ["level_vs_chunk_size", "level_vs_roundoff"]


# ---------------------------------------------------------------------------------------------- 4
def level_vs_roundoff(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level against unit roundoff: one panel per protocol, guides of slope 1 (rounding) and 0 (structural)."""
    need_cells(sweep)
    data = summary.table(sweep, measure, layer)
    protocols, models = sweep.values("protocol"), sweep.values("model")
    colour, marker = colours_of(models), cycle_styles(models, MARKERS)
    believed = controls.gate(sweep).is_open
    with set_style():
        figure, axes = make_grid(1, len(protocols), height=3.4, sharex=True, sharey=True)
        for ax, protocol in zip(axes[0], protocols, strict=True):
            here = data[data["protocol"] == protocol]
            good = here[np.isfinite(here["level"]) & (here["level"] > 0)]
            for k, model in enumerate(models):
                cell = good[good["model"] == model]
                if cell.empty:
                    continue
                nudge = 1.12 ** (k - (len(models) - 1) / 2)  # side by side, or equal levels would hide one another
                by = cell.groupby("unit_roundoff")
                middle = np.exp(by["level"].agg(lambda v: np.log(v).mean()))
                low, high = by["level_low"].min(), by["level_high"].max()
                low = low.where(low > 0, middle)
                ax.errorbar(
                    middle.index * nudge, middle, yerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
                    color=colour[model], marker=marker[model], markersize=6, capsize=2, linewidth=1, elinewidth=0.9,
                    linestyle="-", alpha=0.9,
                )  # fmt: skip
            if len(good):
                _guides(ax, good)
            else:
                say_empty(ax)
            zero = int((here["level"] == 0).sum())
            note_below(ax, zero, int(here["level"].isna().sum()))
            verdict, _ = summary.verdict(summary.slopes(here)["slope"].tolist())
            kind = verdict if believed and verdict in ("rounding", "structural", "reversed") else ""
            ax.set_title(f"{protocol}" + (f": {kind}" if kind else ""), fontsize=10)
            name_x(ax, "unit roundoff of the precision [1]")
        good = data[data["level"] > 0]
        if len(good):
            log_y(axes[0][0])
            for ax in axes[0]:
                ax.set_xscale("log")
                roundoffs = good.groupby("unit_roundoff")["dtype"].agg(lambda v: "/".join(dict.fromkeys(v)))
                name_rungs(ax, dict(roundoffs.items()))
                ax.xaxis.set_minor_locator(NullLocator())
                ends = roundoffs.index.min(), roundoffs.index.max()
                room = max((ends[1] / ends[0]) ** 0.15, 4)
                ax.set_xlim(ends[0] / room, ends[1] * room)
        axes[0][0].set_ylabel("level: " + axis_label(measure, layer))
        guides: dict[Any, dict[str, Any]] = {
            "slope 1: rounding": {"color": "0.45", "linestyle": (0, (4, 2))},
            "slope 0: structural": {"color": "0.45", "linestyle": (0, (1, 1.5))},
        }
        legends = [
            ("model", legend_lines({m: {"color": colour[m], "marker": marker[m]} for m in models})),
            ("guides", legend_lines(guides)),
        ]
        caption = (
            "Geometric mean past the first quarter of the chain, over documents and chunk sizes; bars: smallest to "
            "largest document and chunk size. Models are drawn side by side."
        )
        return finish_figure(figure, _roundoff_title(data), caption, legends)


def _roundoff_title(data: pd.DataFrame) -> str:
    parts = []
    for protocol, here in data.groupby("protocol", sort=False):
        found = summary.slopes(here)["slope"].dropna()
        if len(found):
            slope = numbers.range_words(found, write=lambda v: f"{v:z.2f}")
            parts.append(f"to the power {slope} under {protocol}")
    if not parts:
        return "Level of drift and unit roundoff: one precision only, or no level above 0"
    return "The level goes with the unit roundoff " + ", ".join(parts)


def _guides(ax: Axes, good: pd.DataFrame) -> None:
    """Draw both guides through the coarsest precision's middle."""
    top = good["unit_roundoff"].max()
    anchor = math.exp(np.log(good[good["unit_roundoff"] == top]["level"]).mean())
    ends = np.array([good["unit_roundoff"].min(), top])
    if ends[0] == ends[1]:
        ends[0] = top / 16
    ax.plot(ends, anchor * ends / top, color="0.45", linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)
    ax.plot(ends, [anchor, anchor], color="0.45", linestyle=(0, (1, 1.5)), linewidth=1.2, zorder=1)


# ---------------------------------------------------------------------------------------------- 5
def level_vs_chunk_size(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level against chunk size: one panel per model, colour by precision, line style by protocol."""
    need_cells(sweep)
    data = summary.table(sweep, measure, layer)
    models, dtypes, protocols = sweep.values("model"), dtypes_of(sweep), sweep.values("protocol")
    colour, style, marker = colours_of(dtypes), cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    with set_style():
        figure, axes = make_grid(1, len(models), height=3.3, sharey=True)
        for ax, model in zip(axes[0], models, strict=True):
            here = data[data["model"] == model]
            good = here[np.isfinite(here["level"]) & (here["level"] > 0)]
            for (dtype, protocol, *_), cell in good.groupby(["dtype", "protocol", "attn_implementation", "device"]):
                cell = cell.sort_values("chunk_size")
                frame = pd.DataFrame(
                    {
                        "at": cell["chunk_size"],
                        "value": cell["level"],
                        "low": cell["level_low"],
                        "high": cell["level_high"],
                    }
                )
                draw_line(
                    ax, frame, colour[dtype], style[protocol], marker[protocol], linewidth=line_widths(dtypes)[dtype]
                )
            note_below(ax, int((here["level"] == 0).sum()), int(here["level"].isna().sum()))
            if good.empty:
                say_empty(ax)
            ax.set_title(model_title(sweep, model), fontsize=9.5)
            name_x(ax, "chunk size [tokens]")
            log2_x(ax, sweep.values("chunk_size"))
            ax.set_xlim(min(sweep.values("chunk_size")) / 1.3, max(sweep.values("chunk_size")) * 1.3)
        if (data["level"] > 0).any():
            log_y(axes[0][0])
        axes[0][0].set_ylabel("level: " + axis_label(measure, layer))
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", protocol_lines(protocols, markersize=5)),
        ]
        caption = (
            "Level: geometric mean past the first quarter of the chain, over documents; bands: smallest to largest "
            "document."
        )
        return finish_figure(figure, _chunk_title(data), caption, legends)


def _chunk_title(data: pd.DataFrame) -> str:
    parts = []
    sizes = sorted(data["chunk_size"].unique())
    for protocol, here in data[data["level"] > 0].groupby("protocol", sort=False):
        by = here.groupby(["model", "dtype", "attn_implementation", "device"])["level"]
        ratio = (by.max() / by.min())[by.count() > 1]
        if len(ratio):
            parts.append(f"{numbers.number(ratio.max())}-fold under {protocol}")
    if not parts:
        return f"Level of drift at {numbers.chunk_words(sizes)}"
    return f"From chunk size {sizes[0]} to {sizes[-1]} the level varies at most " + ", ".join(parts)
