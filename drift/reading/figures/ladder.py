"""Pictures of the precision ladder, of where errors come from, of the controls, and of what disturbances become.

As in :mod:`drift.reading.figures`: one message per figure, said by its title and derived from the data; uncertainty is
drawn, and colour is always doubled by a marker, a line style or a hatch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from drift.reading import ladder
from drift.reading.figures.captions import several_rungs
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    COLUMNS,
    CONSTANT,
    GLYPHS,
    MARKERS,
    MOST_PANELS,
    PROPORTIONAL,
    amplitude_label,
    colours_of,
    cut_words,
    cycle_styles,
    legend_lines,
    log_y,
    name_rungs,
    name_x,
    note_below,
    panel_columns,
    say_empty,
    set_style,
    wrap_panels,
)
from drift.reading.statistics import intervals
from drift.reading.statistics import levels as statistics_levels
from drift.reading.statistics.slope import Scaling, Slope
from drift.reading.wording.numbers import coverage
from drift.reading.wording.windows import late_rule

__all__ = ["levels"]


def levels(found: Sequence[ladder.Ladder]) -> Figure | None:
    """Draw level against unit roundoff, one panel per protocol, with slopes 1 and 0 through the coarsest level.

    Parameters
    ----------
    found : sequence of Ladder
        From :func:`drift.reading.ladder.judging.ladders`. Of each model and protocol one is drawn: of those with most
        precisions the one of the smallest chunk size.

    Returns
    -------
    Figure or None
        None where there is no ladder.
    """
    chosen = _smallest(found)
    if not chosen:
        return None
    there = list(dict.fromkeys(one.labels["protocol"] for one in chosen))
    protocols = there[:MOST_PANELS]
    chosen = [one for one in chosen if one.labels["protocol"] in protocols]
    models = list(dict.fromkeys(one.labels["model"] for one in chosen))
    rungs = {u: d for one in chosen for u, d in zip(one.unit_roundoff, one.dtypes, strict=True)}
    with set_style():
        dense = panel_columns(len(protocols)) > COLUMNS
        figure, axes = wrap_panels(len(protocols), height=2.6 + 0.16 * len(models), sharex=True, sharey=True)
        for ax, protocol in zip(axes, protocols, strict=True):
            mine = [one for one in chosen if one.labels["protocol"] == protocol]
            _protocol_panel(ax, mine, models)
            ax.set_title(_panel_title(protocol, mine, models, dense), fontsize=7.8, loc="left")
            name_x(ax, "unit roundoff [1]")
        if any((one.level > 0).any() for one in chosen):
            log_y(axes[0])
        for ax in axes:
            _rung_axis(ax, rungs)
        first = chosen[0].labels
        name = "level: " + amplitude_label(first["measure"], first["layer"])
        if dense:  # rows are lower than the name is long
            figure.supylabel(name, fontsize=8.5)
        else:
            for ax in axes[:: panel_columns(len(axes))]:
                ax.set_ylabel(name, fontsize=8.5)
        caption = _caption(chosen, dense) + cut_words(len(protocols), len(there), "readings")
        return finish_figure(figure, _levels_title(chosen), caption, _legends(models), strip=True)


def _protocol_panel(ax: Axes, mine: Sequence[ladder.Ladder], models: Sequence[str]) -> None:
    """Draw the ladders of one protocol."""
    colour, marker = colours_of(models), cycle_styles(models, MARKERS)
    for one in mine:
        model = one.labels["model"]
        _ladder(ax, one, models.index(model), len(models), colour[model], marker[model])
    _slopes(ax, mine)
    if not any((one.level > 0).any() for one in mine):
        say_empty(ax, "no level above 0")
    zeros, bad = (sum(int(count) for count in counts) for counts in zip(*map(_not_drawn, mine), strict=True))
    note_below(ax, zeros, bad)


def _not_drawn(one: ladder.Ladder) -> tuple[int, int]:
    return int((one.level == 0).sum()), int((~np.isfinite(one.level)).sum())


def _panel_title(protocol: str, mine: Sequence[ladder.Ladder], models: Sequence[str], dense: bool) -> str:
    """Name the protocol, and the slope of each model by its marker; without intervals where panels stand densely."""
    say = _brief if dense else ladder.slope_words
    marker = cycle_styles(models, MARKERS)
    said = [(one.labels["model"], say(one.slope) if len(one.dtypes) > 1 else "one precision only") for one in mine]
    return "\n".join(
        [*textwrap.wrap(protocol, 30 if dense else 46), *(f"{GLYPHS[marker[model]]} {words}" for model, words in said)]
    )


def _brief(found: Slope) -> str:
    return f"slope {found.interval.value:.3f}, {found.verdict.value}"


def _rung_axis(ax: Axes, rungs: dict[float, str]) -> None:
    """Name the precisions on the horizontal axis."""
    ax.set_xscale("log")
    name_rungs(ax, rungs)
    ax.xaxis.set_minor_locator(NullLocator())
    room = max((max(rungs) / min(rungs)) ** 0.12, 4)
    ax.set_xlim(min(rungs) / room, max(rungs) * room)
    ax.tick_params(labelbottom=True)


def _legends(models: Sequence[str]) -> list[tuple[str, list[Line2D]]]:
    colour, marker = colours_of(models), cycle_styles(models, MARKERS)
    guides: dict[Any, dict[str, Any]] = {"slope 1: rounding": PROPORTIONAL, "slope 0: structural": CONSTANT}
    return [
        ("model", legend_lines({m: {"color": colour[m], "marker": marker[m], "markersize": 5} for m in models})),
        ("guides", legend_lines(guides)),
    ]


def _caption(chosen: Sequence[ladder.Ladder], dense: bool) -> str:
    alone = any(one.labels["documents"] == 1 for one in chosen)
    over = "over documents" + alone * " (over the steps of the chain where there is one document)"
    spread = "" if dense else f", with {coverage(intervals.ALPHA)} interval {over}"
    return (
        f"Points: geometric mean {late_rule()}, over documents; bars: smallest to largest document. Above: slope of "
        f"each model, by its marker{spread}. Of each model the ladder with most precisions, and of those the smallest "
        "chunk size; models stand side by side."
    )


def _smallest(found: Sequence[ladder.Ladder]) -> list[ladder.Ladder]:
    """Of each protocol and model the ladder with most rungs, of those the smallest chunk size."""
    best: dict[tuple[str, str], ladder.Ladder] = {}
    for one in found:
        key = (one.labels["protocol"], one.labels["model"])
        rank = (-len(one.dtypes), one.labels["chunk_size"])
        if key not in best or rank < (-len(best[key].dtypes), best[key].labels["chunk_size"]):
            best[key] = one
    return [best[key] for key in sorted(best)]


def _ladder(ax: Axes, one: ladder.Ladder, place: int, of: int, colour: Any, marker: str) -> None:
    nudge = 1.25 ** (place - (of - 1) / 2)  # side by side, or equal levels would hide one another
    good = np.isfinite(one.level) & (one.level > 0)
    x, y, low, high = [], [], [], []
    for u, row, there in zip(one.unit_roundoff, one.level, good, strict=True):
        if there.any():
            middle = float(np.exp(np.log(row[there]).mean()))
            x.append(u * nudge)
            y.append(middle)
            low.append(middle - row[there].min())
            high.append(row[there].max() - middle)
    if not x:
        return
    ax.errorbar(x, y, yerr=np.maximum([low, high], 0), color=colour, marker=marker, markersize=5.5, capsize=2.5,
                linewidth=1, elinewidth=1, alpha=0.9)  # fmt: skip


def _slopes(ax: Axes, mine: Sequence[ladder.Ladder]) -> None:
    tops = [(one.unit_roundoff[0], statistics_levels.geometric_mean(one.level[0])) for one in mine]
    tops = [(u, v) for u, v in tops if v > 0]
    if not tops:
        return
    top = max(u for u, _ in tops)
    anchor = math.exp(np.mean([math.log(v) for u, v in tops if u == top]))
    least = min(u for one in mine for u in one.unit_roundoff)
    ends = np.array([least if least < top else top / 16, top])
    ax.plot(ends, anchor * ends / top, linewidth=1.2, zorder=1, **PROPORTIONAL)
    ax.plot(ends, [anchor, anchor], linewidth=1.2, zorder=1, **CONSTANT)


def _levels_title(chosen: Sequence[ladder.Ladder]) -> str:
    """Say what the ladders of each protocol are; models differ where two of them were decided in two ways."""
    by: dict[str, list[str]] = {}
    for protocol in dict.fromkeys(one.labels["protocol"] for one in chosen):
        mine = several_rungs([one.slope for one in chosen if one.labels["protocol"] == protocol])
        kinds = list(dict.fromkeys(slope.verdict for slope in mine if slope.verdict is not Scaling.UNDETERMINED))
        without = sum(slope.verdict is Scaling.UNDETERMINED for slope in mine)
        kind = "models differ" if len(kinds) > 1 else kinds[0].value if kinds else Scaling.UNDETERMINED.value
        aside = f" ({without} of {len(mine)} models undetermined)" if kinds and without else ""
        by.setdefault(kind, []).append(f"{protocol}{aside}")
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by.items())
    return f"Is drift proportional to the unit roundoff? {said[:1].upper()}{said[1:]}"
