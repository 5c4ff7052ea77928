"""Levels of drift against the unit roundoff and the chunk size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from drift.dataset.sweep import Sweep
from drift.reading import ladder, summary
from drift.reading.amplitudes import DISTANCES, amplitude_power
from drift.reading.figures.captions import late_of, several_rungs
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    CONSTANT,
    MARKERS,
    PROPORTIONAL,
    STYLES,
    axis_label,
    colours_of,
    cycle_styles,
    draw_line,
    dtypes_of,
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
    panel_columns,
    precision_colours,
    protocol_lines,
    say_empty,
    set_style,
    wrap_panels,
)
from drift.reading.statistics.slope import Slope
from drift.reading.wording import numbers

__all__ = ["level_vs_chunk_size", "level_vs_roundoff"]


# ---------------------------------------------------------------------------------------------- unit roundoff
def level_vs_roundoff(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level against unit roundoff: one panel per protocol, with guides for rounding and for what it did not make.

    Panels are titled by the verdicts of :mod:`drift.reading.ladder`, and the title has its slopes. A divergence is
    quadratic in the error, so that rounding makes it follow the square of the unit roundoff.
    """
    need_cells(sweep)
    data = summary.table(sweep, measure, layer)
    found = _slopes(sweep, measure, layer)
    power = 1 / amplitude_power(measure)
    protocols, models = sweep.values("protocol"), sweep.values("model")
    with set_style():
        figure, axes = wrap_panels(len(protocols), height=3.4, sharex=True, sharey=True)
        for ax, protocol in zip(axes, protocols, strict=True):
            _rung_levels(ax, data[data["protocol"] == protocol], models, power)
            ax.set_title(_verdict_title(protocol, found.get(protocol, ())), fontsize=9.5)
            name_x(ax, "unit roundoff of the precision [1]")
        good = data[data["level"] > 0]
        if len(good):
            log_y(axes[0])
            for ax in axes:
                _rung_axis(ax, good)
                ax.tick_params(labelbottom=True)
        for ax in axes[:: panel_columns(len(axes))]:
            ax.set_ylabel("level: " + axis_label(measure, layer))
        caption = (
            f"Geometric mean {late_of(data['steps'])}, over documents and chunk sizes; bars: smallest to largest "
            "document and chunk size. Models are drawn side by side."
        )
        return finish_figure(figure, _roundoff_title(found, power), caption, _rung_legends(models, power), strip=True)


def _slopes(sweep: Sweep, measure: str, layer: int | str) -> dict[str, list[Slope]]:
    """Judged slopes of each protocol; none of a measure that is no distance."""
    if measure not in DISTANCES:
        return {}
    found: dict[str, list[Slope]] = {}
    for one in ladder.ladders(sweep, measure, layer):
        found.setdefault(str(one.labels["protocol"]), []).append(one.slope)
    return {protocol: several_rungs(mine) for protocol, mine in found.items()}


def _verdict_title(protocol: str, mine: Sequence[Slope]) -> str:
    """Name the protocol, and what its ladders are: each verdict once, with the reasons of those without one."""
    kinds = dict.fromkeys(s.verdict.value for s in mine)
    reasons = dict.fromkeys(s.reason.value for s in mine if s.reason)
    named = f"{protocol}: {' or '.join(kinds)}" if kinds else protocol
    lines = [named, *(f"({reason})" for reason in reasons)]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 38))


def _rung_levels(ax: Axes, here: pd.DataFrame, models: Sequence[str], power: float) -> None:
    """Draw the levels of one protocol, model by model."""
    colour, marker = colours_of(models), cycle_styles(models, MARKERS)
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
        _guides(ax, good, power)
    else:
        say_empty(ax)
    note_below(ax, int((here["level"] == 0).sum()), int(here["level"].isna().sum()))


def _guides(ax: Axes, good: pd.DataFrame, power: float) -> None:
    """Draw both guides through the coarsest precision's middle."""
    top = good["unit_roundoff"].max()
    anchor = math.exp(np.log(good[good["unit_roundoff"] == top]["level"]).mean())
    ends = np.array([good["unit_roundoff"].min(), top])
    if ends[0] == ends[1]:
        ends[0] = top / 16
    ax.plot(ends, anchor * (ends / top) ** power, linewidth=1.2, zorder=1, **PROPORTIONAL)
    ax.plot(ends, [anchor, anchor], linewidth=1.2, zorder=1, **CONSTANT)


def _rung_axis(ax: Axes, good: pd.DataFrame) -> None:
    """Name the precisions on the horizontal axis."""
    ax.set_xscale("log")
    roundoffs = good.groupby("unit_roundoff")["dtype"].agg(lambda v: "/".join(dict.fromkeys(v)))
    name_rungs(ax, dict(roundoffs.items()))
    ax.xaxis.set_minor_locator(NullLocator())
    ends = roundoffs.index.min(), roundoffs.index.max()
    room = max((ends[1] / ends[0]) ** 0.15, 4)
    ax.set_xlim(ends[0] / room, ends[1] * room)


def _rung_legends(models: Sequence[str], power: float) -> list[tuple[str, list[Line2D]]]:
    colour, marker = colours_of(models), cycle_styles(models, MARKERS)
    guides: dict[Any, dict[str, Any]] = {
        f"slope {power:g}: rounding": PROPORTIONAL,
        "slope 0: structural": CONSTANT,
    }
    return [
        ("model", legend_lines({m: {"color": colour[m], "marker": marker[m]} for m in models})),
        ("guides", legend_lines(guides)),
    ]


def _roundoff_title(found: dict[str, list[Slope]], power: float) -> str:
    """Say how the level that is drawn goes with the unit roundoff, by the slopes of its amplitude."""
    parts = []
    for protocol, mine in found.items():
        values = [power * s.interval.value for s in mine if math.isfinite(s.interval.value)]
        if values:
            slope = numbers.range_words(values, write=lambda v: f"{v:z.2f}")
            parts.append(f"to the power {slope} under {protocol}")
    if not parts:
        reasons = dict.fromkeys(s.reason.value for mine in found.values() for s in mine if s.reason)
        why = "; ".join(reasons) or "nothing here is a distance of a fold from full attention"
        return f"Level against the unit roundoff: no slope ({why})"
    return "The level goes with the unit roundoff " + ", ".join(parts)


# ---------------------------------------------------------------------------------------------- chunk size
def level_vs_chunk_size(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level against chunk size: one panel per model, colour by precision, line style by protocol.

    Where one chunk size was run in all, the levels stand by protocol instead: an axis with one point says nothing.
    """
    need_cells(sweep)
    data = summary.table(sweep, measure, layer)
    sizes = sorted(sweep.values("chunk_size"))
    models, dtypes, protocols = sweep.values("model"), dtypes_of(sweep), sweep.values("protocol")
    with set_style():
        figure, axes = make_grid(1, len(models), height=3.3, sharey=True)
        for ax, model in zip(axes[0], models, strict=True):
            here = data[data["model"] == model]
            if len(sizes) > 1:
                _against_sizes(ax, here, sizes, dtypes, protocols)
            else:
                _by_protocol(ax, here, dtypes, protocols)
            note_below(ax, int((here["level"] == 0).sum()), int(here["level"].isna().sum()))
            if not (here["level"] > 0).any():
                say_empty(ax)
            ax.set_title(model_title(sweep, model), fontsize=9.5)
            name_x(ax, _sizes_name(here, sizes))
        if (data["level"] > 0).any():
            log_y(axes[0][0])
        axes[0][0].set_ylabel("level: " + axis_label(measure, layer))
        colour = precision_colours(dtypes)
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", protocol_lines(protocols, markersize=5)),
        ]
        spread = "bands" if len(sizes) > 1 else "bars"
        caption = (
            f"Level: geometric mean {late_of(data['steps'])}, over documents; {spread}: smallest to largest document."
        )
        if len(sizes) > 1 and (data.groupby(["model", "dtype", "protocol"])["chunk_size"].nunique() == 1).any():
            caption += " A point without a line was run at one chunk size."
        return finish_figure(figure, _chunk_title(data), caption, legends)


def _sizes_name(here: pd.DataFrame, sizes: Sequence[int]) -> str:
    """Name the horizontal axis of one model; where one chunk size was run, say which."""
    mine = sorted(here["chunk_size"].unique())
    name = "chunk size [tokens]" if len(sizes) > 1 else ""
    return f"{name}\none size was run: {mine[0]}".strip() if len(mine) == 1 else name


def _positive(here: pd.DataFrame) -> pd.DataFrame:
    return here[np.isfinite(here["level"]) & (here["level"] > 0)]


def _against_sizes(
    ax: Axes, here: pd.DataFrame, sizes: Sequence[int], dtypes: Sequence[str], protocols: Sequence[str]
) -> None:
    """Draw the levels of one model over the chunk sizes of all."""
    colour, width = precision_colours(dtypes), line_widths(dtypes)
    style, marker = cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    for (dtype, protocol, *_), cell in _positive(here).groupby(["dtype", "protocol", "attn_implementation", "device"]):
        cell = cell.sort_values("chunk_size")
        columns = {"at": "chunk_size", "value": "level", "low": "level_low", "high": "level_high"}
        frame = pd.DataFrame({name: cell[column] for name, column in columns.items()})
        draw_line(ax, frame, colour[dtype], style[protocol], marker[protocol], linewidth=width[dtype])
    log2_x(ax, sizes)
    ax.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)


def _by_protocol(ax: Axes, here: pd.DataFrame, dtypes: Sequence[str], protocols: Sequence[str]) -> None:
    """Draw the levels of one model at the one chunk size there is, side by side."""
    colour, marker = precision_colours(dtypes), cycle_styles(protocols, MARKERS)
    for _, row in _positive(here).iterrows():
        low = row["level_low"] if row["level_low"] > 0 else row["level"]
        ends = np.maximum([[row["level"] - low], [row["level_high"] - row["level"]]], 0)
        at = protocols.index(row["protocol"]) + 0.16 * (dtypes.index(row["dtype"]) - (len(dtypes) - 1) / 2)
        ax.errorbar([at], [row["level"]], yerr=ends, color=colour[row["dtype"]], marker=marker[row["protocol"]],
                    markersize=5.5, capsize=2.5, linewidth=1.2)  # fmt: skip
    ax.set_xticks([])
    ax.set_xlim(-0.6, len(protocols) - 0.4)


def _chunk_title(data: pd.DataFrame) -> str:
    parts = []
    sizes = sorted(data["chunk_size"].unique())
    for protocol, here in data[data["level"] > 0].groupby("protocol", sort=False):
        by = here.groupby(["model", "dtype", "attn_implementation", "device"])["level"]
        ratio = (by.max() / by.min())[by.count() > 1]
        if len(ratio):
            parts.append(f"{_at_most(float(ratio.max()))} under {protocol}")
    if parts:
        return f"From chunk size {sizes[0]} to {sizes[-1]} the level varies at most " + ", ".join(parts)
    levels = data[data["level"] > 0].groupby("protocol", sort=False)["level"]
    said = ", ".join(f"{numbers.range_words(here)} under {protocol}" for protocol, here in levels)
    return f"Level of drift at {numbers.chunk_words(sizes)}" + (f": {said}" if said else "")


def _at_most(ratio: float) -> str:
    """Write a ratio of levels: ``1.4-fold``; where that would be 1.0-fold, as a percentage."""
    return f"{numbers.number(ratio)}-fold" if ratio >= 1.1 else f"{round(100 * (ratio - 1), 1):g} %"
