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
from matplotlib.ticker import NullLocator

from drift.reading import ladder
from drift.reading.figures.style import (
    COLUMNS,
    COVER,
    GLYPHS,
    MARKERS,
    amplitude_label,
    colours_of,
    cycle_styles,
    finish_figure,
    legend_lines,
    log_y,
    name_rungs,
    name_x,
    note_below,
    set_style,
    wrap_panels,
)
from drift.reading.statistics import levels as statistics_levels

__all__ = ["levels"]


# ---------------------------------------------------------------------------------------------- the ladder
def levels(found: Sequence[ladder.Ladder]) -> Figure | None:
    """Draw level against unit roundoff, one panel per protocol, with slopes 1 and 0 through the coarsest level.

    Parameters
    ----------
    found : sequence of Ladder
        From :func:`drift.reading.ladder.judging.ladders`. Of each model and protocol the smallest chunk size is drawn.

    Returns
    -------
    Figure or None
        None where there is no ladder.
    """
    chosen = _smallest(found)
    if not chosen:
        return None
    protocols = list(dict.fromkeys(one.labels["protocol"] for one in chosen))
    models = list(dict.fromkeys(one.labels["model"] for one in chosen))
    colour, marker = colours_of(models), cycle_styles(models, MARKERS)
    rungs = {u: d for one in chosen for u, d in zip(one.unit_roundoff, one.dtypes, strict=True)}
    with set_style():
        figure, axes = wrap_panels(len(protocols), height=2.6 + 0.16 * len(models), sharex=True, sharey=True)
        some = False
        for ax, protocol in zip(axes, protocols, strict=True):
            mine = [one for one in chosen if one.labels["protocol"] == protocol]
            zeros = bad = 0
            lines = textwrap.wrap(protocol, 46)
            for one in mine:
                model = one.labels["model"]
                zeros, bad = zeros + int((one.level == 0).sum()), bad + int((~np.isfinite(one.level)).sum())
                some |= _ladder(ax, one, models.index(model), len(models), colour[model], marker[model])
                lines.append(
                    f"{GLYPHS[marker[model]]} {one.slope}"
                    if len(one.dtypes) > 1
                    else f"{GLYPHS[marker[model]]} one precision only"
                )
            _slopes(ax, mine)
            if not any((one.level > 0).any() for one in mine):
                ax.text(0.5, 0.5, "no level above 0", transform=ax.transAxes, ha="center", color="0.4")
            note_below(ax, zeros, bad)
            ax.set_title("\n".join(lines), fontsize=7.8, loc="left")
            name_x(ax, "unit roundoff [1]")
        if some:
            log_y(axes[0])
        for ax in axes:
            ax.set_xscale("log")
            name_rungs(ax, rungs)
            ax.xaxis.set_minor_locator(NullLocator())
            room = max((max(rungs) / min(rungs)) ** 0.12, 4)
            ax.set_xlim(min(rungs) / room, max(rungs) * room)
            ax.tick_params(labelbottom=True)
        first = chosen[0].labels
        for ax in axes[:: min(len(axes), COLUMNS)]:
            ax.set_ylabel("level: " + amplitude_label(first["measure"], first["layer"]), fontsize=8.5)
        guides: dict[Any, dict[str, Any]] = {
            "slope 1: rounding": {"color": "0.45", "linestyle": (0, (4, 2))},
            "slope 0: structural": {"color": "0.45", "linestyle": (0, (1, 1.5))},
        }
        legends = [
            ("model", legend_lines({m: {"color": colour[m], "marker": marker[m], "markersize": 5} for m in models})),
            ("guides", legend_lines(guides)),
        ]
        caption = (
            "Points: geometric mean past the first quarter of the chain, over documents; bars: smallest to largest "
            f"document. Above: slope of each model, by its marker, with {COVER} interval over documents. Smallest "
            "chunk size of each model; models stand side by side."
        )
        return finish_figure(figure, _levels_title(chosen), caption, legends)


def _smallest(found: Sequence[ladder.Ladder]) -> list[ladder.Ladder]:
    """Of each protocol and model the ladder with most rungs, of those the smallest chunk size."""
    best: dict[tuple[str, str], ladder.Ladder] = {}
    for one in found:
        key = (one.labels["protocol"], one.labels["model"])
        rank = (-len(one.dtypes), one.labels["chunk_size"])
        if key not in best or rank < (-len(best[key].dtypes), best[key].labels["chunk_size"]):
            best[key] = one
    return [best[key] for key in sorted(best)]


def _ladder(ax: Axes, one: ladder.Ladder, place: int, of: int, colour: Any, marker: str) -> bool:
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
        return False
    ax.errorbar(x, y, yerr=np.maximum([low, high], 0), color=colour, marker=marker, markersize=5.5, capsize=2.5,
                linewidth=1, elinewidth=1, alpha=0.9)  # fmt: skip
    return True


def _slopes(ax: Axes, mine: Sequence[ladder.Ladder]) -> None:
    tops = [(one.unit_roundoff[0], statistics_levels.geometric_mean(one.level[0])) for one in mine]
    tops = [(u, v) for u, v in tops if v > 0]
    if not tops:
        return
    top = max(u for u, _ in tops)
    anchor = math.exp(np.mean([math.log(v) for u, v in tops if u == top]))
    least = min(u for one in mine for u in one.unit_roundoff)
    ends = np.array([least if least < top else top / 16, top])
    ax.plot(ends, anchor * ends / top, color="0.45", linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)
    ax.plot(ends, [anchor, anchor], color="0.45", linestyle=(0, (1, 1.5)), linewidth=1.2, zorder=1)


def _levels_title(chosen: Sequence[ladder.Ladder]) -> str:
    by: dict[str, list[str]] = {}
    for protocol in dict.fromkeys(one.labels["protocol"] for one in chosen):
        kinds = {one.slope.verdict for one in chosen if one.labels["protocol"] == protocol}
        kind = kinds.pop().value if len(kinds) == 1 else "models differ"
        by.setdefault(kind, []).append(str(protocol))
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by.items())
    return f"Is drift proportional to the unit roundoff? {said[:1].upper()}{said[1:]}"
