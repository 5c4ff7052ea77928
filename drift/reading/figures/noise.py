"""How far full attention moves when its embeddings are disturbed: where any disturbance ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from drift.dataset.sweep import Sweep
from drift.reading import floor
from drift.reading.amplitudes import BOUNDED, UNRELATED
from drift.reading.figures.captions import late_of
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    CONSTANT,
    PROPORTIONAL,
    amplitude_label,
    decade_ticks,
    legend_lines,
    model_title,
    name_x,
    note_below,
    panel_columns,
    precision_colours,
    precision_markers,
    say_empty,
    set_style,
    wrap_panels,
)

__all__ = ["response_to_noise"]

#: Height in the panel at which a response of exactly zero is marked.
FOOT = 0.035


def response_to_noise(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw how full attention answers to disturbed embeddings: a panel per model, a line per precision.

    Parameters
    ----------
    sweep : Sweep
        Cells of ``full(noise=K)`` against full attention, of several K; others are left out.
    measure : str
        A key of :data:`drift.reading.amplitudes.DISTANCES`; divergences are drawn as amplitudes.
    layer : int or "last"

    Raises
    ------
    DatasetError
        If there is no such cell.
    """
    found = floor.noise_responses(sweep, measure, layer)
    models = list(dict.fromkeys(one.labels["model"] for one in found))
    order = {one.labels["dtype"]: one.unit_roundoff for one in found}
    dtypes = sorted(order, key=lambda d: -order[d])
    bounded = measure in BOUNDED
    with set_style():
        wide = 5.6 if len(models) == 1 else 3.4
        figure, axes = wrap_panels(len(models), height=3.7, width=wide, sharex=True, sharey=True)
        axes[0].set_yscale("log")
        for ax, model in zip(axes, models, strict=True):
            _panel(ax, [one for one in found if one.labels["model"] == model], dtypes, bounded)
            ax.set_title(model_title(sweep, model), fontsize=9.5)
            name_x(ax, "size of the disturbance of the\nembeddings [unit roundoffs]")
        _scales(axes, found)
        for ax in axes[:: panel_columns(len(axes))]:
            ax.set_ylabel(amplitude_label(measure, layer))
        title, legends = floor.response_headline(found), _legends(dtypes, found, bounded)
        return finish_figure(figure, title, _caption(found, bounded), legends, strip=True)


def _panel(ax: Axes, mine: Sequence[floor.NoiseResponse], dtypes: Sequence[str], bounded: bool) -> None:
    """Draw the answers of one model."""
    colour, marker = precision_colours(dtypes), precision_markers(dtypes)
    for place, one in enumerate(mine):
        dtype, level = one.labels["dtype"], one.level
        there = level > 0
        how: dict[str, Any] = {"color": colour[dtype], "marker": marker[dtype], "markersize": 5.5}
        if there.any():
            positive = np.where(one.values[there] > 0, one.values[there], np.nan)
            ends = level[there] - np.nanmin(positive, axis=1), np.nanmax(positive, axis=1) - level[there]
            ax.errorbar(one.sizes[there], level[there], yerr=np.maximum(ends, 0), capsize=2.5, linewidth=1.4, **how)
        foot = FOOT * (1 + 2 * place)  # one above the other, or one precision would hide another
        ax.plot(one.silent, np.full(len(one.silent), foot), transform=ax.get_xaxis_transform(), linestyle="none",
                markerfacecolor="white", clip_on=False, zorder=4, **how)  # fmt: skip
    if not any((one.level > 0).any() for one in mine):
        say_empty(ax, "no response above 0")
    zeros = sum(int((one.values == 0).sum()) - len(one.silent) * one.values.shape[1] for one in mine)
    note_below(ax, zeros, sum(int((~np.isfinite(one.values)).sum()) for one in mine))
    if bounded:
        ax.axhline(UNRELATED, zorder=1, linewidth=1.2, **CONSTANT)


def _scales(axes: Sequence[Axes], found: Sequence[floor.NoiseResponse]) -> None:
    """Log axes, and what would be in proportion: through the stretch that is, over the whole panel."""
    sizes = np.concatenate([one.sizes for one in found])
    positive = np.concatenate([one.values[one.values > 0] for one in found])
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xlim(sizes.min() / 2, sizes.max() * 2)
        ax.xaxis.set_major_locator(LogLocator(numticks=8))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}" if v < 1e5 else f"{v:.0e}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", labelsize=8, labelbottom=True)
    if not positive.size:
        return
    room = max((positive.max() / positive.min()) ** 0.06, 1.5)
    axes[0].set_ylim(positive.min() / room**2.5, positive.max() * room)  # what is exactly zero is marked at the foot
    decade_ticks(axes[0].yaxis)
    for ax, model in zip(axes, dict.fromkeys(one.labels["model"] for one in found), strict=True):
        for one in (one for one in found if one.labels["model"] == model):
            if (ends := one.proportional) is not None:
                here = one.sizes == ends[0]
                span = np.array(ax.get_xlim())
                per_unit = one.level[here][0] / ends[0] / one.above_proportion(ends[0])
                ax.plot(span, span * per_unit, linewidth=1.1, zorder=1, scalex=False, scaley=False, **PROPORTIONAL)


def _caption(found: Sequence[floor.NoiseResponse], bounded: bool) -> str:
    several = max(one.labels["documents"] for one in found) > 1
    text = (
        "Full attention against itself, its embeddings multiplied by 1 + K u g (u: unit roundoff of the precision, g "
        "standard normal, rounded), over K; K = 1 is the rounding floor. Geometric mean "
        f"{late_of(one.steps for one in found)} and over documents{'; bars: smallest to largest document' * several}. "
        "In proportion: log-log slope between neighbouring points within "
        f"{floor.RESPONSE_TOLERANCE:g} of 1, in every document."
    )
    if any(len(one.silent) for one in found):
        text += " Hollow, at the foot: exactly 0, the disturbance is rounded away."
    if bounded:
        text += f" Dotted: distance of unrelated states ({UNRELATED:.2f})."
    return text


def _legends(
    dtypes: Sequence[str], found: Sequence[floor.NoiseResponse], bounded: bool
) -> list[tuple[str, list[Line2D]]]:
    colour, marker = precision_colours(dtypes), precision_markers(dtypes)
    guides: dict[Any, dict[str, Any]] = {}
    if any(one.proportional for one in found):
        guides["in proportion"] = PROPORTIONAL
    if bounded:
        guides["unrelated states"] = CONSTANT
    if any(len(one.silent) for one in found):
        guides["exactly 0"] = {"color": "0.3", "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    return [
        ("precision", legend_lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes})),
        ("guides", legend_lines(guides)),
    ]
