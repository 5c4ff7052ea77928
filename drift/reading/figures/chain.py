"""Pictures of drift along the chain, one message each.

Every function takes a :class:`~drift.dataset.sweep.Sweep` and returns a Matplotlib ``Figure`` of its own; pyplot's
global state is not touched. Colours come from seaborn's colour-blind palette and are always doubled by a line style or
a marker, so that the figures can be read in greyscale. Titles are derived from the data
(see :mod:`drift.reading.summary`). Values that a log axis cannot show are counted in the panel that lacks them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import summary
from drift.reading.cells import cell_identity
from drift.reading.figures.captions import BAND
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    MARKERS,
    STYLES,
    axis_label,
    colours_of,
    count_steps,
    cycle_styles,
    draw_line,
    dtypes_of,
    legend_lines,
    line_widths,
    log2_x,
    log_y,
    make_grid,
    model_title,
    name_x,
    need_cells,
    note_below,
    precision_colours,
    precision_markers,
    say_empty,
    set_style,
)

__all__ = ["drift_per_step", "nonfinite"]

#: Most cells that one picture tells apart.
MOST_CELLS = 10


def drift_per_step(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    protocol: str | None = None,
    x: str = "step",
) -> Figure:
    """Draw drift along the chain: one panel per model, colour by precision, line style by chunk size.

    Parameters
    ----------
    measure, layer
        See :func:`drift.dataset.curves.curve`.
    protocol : str, optional
        Which reading of the fold; the first there is by default.
    x : "step" or "token"
        Chain steps counted from 1, or tokens of text up to the end of the chunk.
    """
    need_cells(sweep)
    if x not in ("step", "token"):
        raise DatasetError(f"the horizontal axis is 'step' or 'token', not {x!r}")
    part = sweep.sel(protocol=protocol or sweep.values("protocol")[0])
    data = summary.curves(part, measure, layer)
    data["at"] = data["step"] + 1 if x == "step" else data["token"]
    dtypes, chunks = dtypes_of(part), sorted(part.values("chunk_size"))
    some = bool(data["value"].notna().any())
    with set_style():
        figure, axes = make_grid(1, len(part.values("model")), height=3.3, sharey=True)
        for ax, model in zip(axes[0], part.values("model"), strict=True):
            _chains(ax, data[data["model"] == model], dtypes, chunks)
            ax.set_title(model_title(part, model), fontsize=9.5)
            name_x(ax, "chain step (1 = first chunk)" if x == "step" else "tokens of text so far")
        if some:
            log_y(axes[0][0])
        for ax in axes[0]:
            if x == "token":
                log2_x(ax, data["at"].tolist())
            else:
                count_steps(ax, int(data["at"].max()))
        axes[0][0].set_ylabel(axis_label(measure, layer))
        title = summary.headline(part, measure, layer)[part.values("protocol")[0]]
        return finish_figure(figure, title, BAND + " Log scale." * some, _chain_legends(dtypes, chunks))


def _chains(ax: Axes, here: pd.DataFrame, dtypes: list[str], chunks: list[int]) -> None:
    """Draw the curves of one model."""
    colour, marker, width = precision_colours(dtypes), precision_markers(dtypes), line_widths(dtypes)
    style = cycle_styles(chunks, STYLES)
    for dtype in dtypes:
        for chunk in chunks:
            cell = here[(here["dtype"] == dtype) & (here["chunk_size"] == chunk)].sort_values("at")
            for _, one in cell.groupby(["attn_implementation", "device", "tokens"], sort=False):
                draw_line(ax, one, colour[dtype], style[chunk], marker[dtype], linewidth=width[dtype])
    note_below(ax, int(here["zeros"].sum()), int(here["nonfinite"].sum()))
    if not here["value"].notna().any():
        say_empty(ax)


def _chain_legends(dtypes: list[str], chunks: list[int]) -> list[tuple[str, list[Line2D]]]:
    colour, marker, style = precision_colours(dtypes), precision_markers(dtypes), cycle_styles(chunks, STYLES)
    precisions: dict[Any, Any] = {d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes}
    sizes: dict[Any, Any] = {c: {"color": "0.25", "linestyle": style[c]} for c in chunks}
    return [("precision", legend_lines(precisions)), ("chunk size", legend_lines(sizes))]


def nonfinite(sweep: Sweep) -> Figure | None:
    """Draw how many values are NaN or Inf per step, for the cells that have any; None if there are none."""
    bad = [ds for ds in sweep if int(ds["nonfinite_count"].sum()) or int(ds["logit_nonfinite_count"].sum())]
    if not bad:
        return None
    shown = bad[:MOST_CELLS]
    colour, style = colours_of(range(len(shown))), cycle_styles(range(len(shown)), STYLES)
    with set_style():
        figure, axes = make_grid(1, 2, width=3.6, height=3.2)
        lines = {}
        for k, ds in enumerate(shown):
            hidden = ds["nonfinite_count"].transpose("layer", "document", "step").values.sum(axis=1)
            logits = ds["logit_nonfinite_count"].values.sum(axis=0)
            how = {"color": colour[k], "linestyle": style[k], "marker": MARKERS[k % len(MARKERS)], "markersize": 4}
            axes[0][0].plot(np.arange(1, hidden.shape[1] + 1), hidden.sum(axis=0) + logits, **how)
            axes[0][1].plot(ds["layer"].values, hidden.sum(axis=1), **how)
            lines["{model}\n{dtype} {protocol} {chunk_size}".format(**cell_identity(ds))] = how
        for ax, name in zip(axes[0], ("chain step (1 = first chunk)", "layer (0 = embeddings)"), strict=True):
            ax.set_yscale("symlog", linthresh=1)
            ax.set_ylim(bottom=0)
            name_x(ax, name)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes[0][0].set_ylabel("values that are NaN or Inf\n(hidden states and logits)")
        axes[0][1].set_ylabel("(hidden states)")
        total = sum(int(ds["nonfinite_count"].sum()) + int(ds["logit_nonfinite_count"].sum()) for ds in bad)
        title = f"{total:,} values are NaN or Inf, in {len(bad)} of {len(sweep)} cells"
        caption = "Sum over documents; the axis is linear up to 1, then logarithmic."
        if len(bad) > len(shown):
            caption += f" The first {len(shown)} of {len(bad)} cells are drawn; the table lists all."
        return finish_figure(figure, title, caption, [("cell", legend_lines(lines))])
