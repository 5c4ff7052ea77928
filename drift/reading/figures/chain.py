"""Pictures of a sweep, one message each.

Every function takes a :class:`~drift.dataset.sweep.Sweep` and returns a Matplotlib ``Figure`` of its own; pyplot's
global state is not touched. Colours come from seaborn's colour-blind palette and are always doubled by a line style or
a marker, so that the figures can be read in greyscale. Titles are derived from the data
(see :mod:`drift.reading.summary`). Values that a log axis cannot show are counted in the panel that lacks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import cells, summary
from drift.reading.figures.style import (
    BAND,
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
    name_x,
    need_cells,
    note_below,
    protocol_lines,
    say_empty,
    set_style,
)
from drift.reading.statistics import levels
from drift.reading.summary import levels as summary_levels
from drift.reading.wording import numbers

__all__ = ["drift_per_step", "logits_per_step", "nonfinite"]


# ---------------------------------------------------------------------------------------------- 1
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
    models, dtypes, chunks = part.values("model"), dtypes_of(part), sorted(part.values("chunk_size"))
    colour, style = colours_of(dtypes), cycle_styles(chunks, STYLES)
    marker, width = cycle_styles(dtypes, MARKERS), line_widths(dtypes)
    with set_style():
        figure, axes = make_grid(1, len(models), height=3.3, sharey=True)
        for ax, model in zip(axes[0], models, strict=True):
            here = data[data["model"] == model]
            for dtype in dtypes:
                for chunk in chunks:
                    cell = here[(here["dtype"] == dtype) & (here["chunk_size"] == chunk)].sort_values("at")
                    for _, one in cell.groupby(["attn_implementation", "device", "tokens"], sort=False):
                        draw_line(ax, one, colour[dtype], style[chunk], marker[dtype], linewidth=width[dtype])
            note_below(ax, int(here["zeros"].sum()), int(here["nonfinite"].sum()))
            if not here["value"].notna().any():
                say_empty(ax)
            ax.set_title(model_title(part, model), fontsize=9.5)
            name_x(ax, "chain step (1 = first chunk)" if x == "step" else "tokens of text so far")
        if data["value"].notna().any():
            log_y(axes[0][0])
        for ax in axes[0]:
            if x == "token" or data["at"].max() > 8:
                log2_x(ax, data["at"].tolist())
            else:
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes[0][0].set_ylabel(axis_label(measure, layer))
        legends = [
            (
                "precision",
                legend_lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes}),
            ),
            ("chunk size", legend_lines({c: {"color": "0.25", "linestyle": style[c]} for c in chunks})),
        ]
        title = summary.headline(part, measure, layer)[part.values("protocol")[0]]
        return finish_figure(figure, title, BAND + " Log scale.", legends)


# ---------------------------------------------------------------------------------------------- 3
def logits_per_step(sweep: Sweep, chunk_size: int | None = None) -> Figure:
    """Draw what drift does to the next-token distribution, per step; colour by precision, line style by protocol.

    Parameters
    ----------
    chunk_size : int, optional
        The smallest of each model by default.
    """
    need_cells(sweep)
    models, dtypes, protocols = sweep.values("model"), dtypes_of(sweep), sweep.values("protocol")
    colour, style = colours_of(dtypes), cycle_styles(protocols, STYLES)
    marker = cycle_styles(protocols, MARKERS)
    rows: list[tuple[str, Callable[[Any], np.ndarray], bool]] = [
        ("KL(full ‖ fold)\n[nat per token]", lambda ds: dataset.curve(ds, "logit_kl"), True),
        ("other most likely token\n[% of tokens]", lambda ds: 100 * (1 - dataset.curve(ds, "top1_agreement")), False),
        ("NLL, fold − full\n[nat per token]", _gap, False),
        ("NLL\n[nat per token]", lambda ds: dataset.curve(ds, "nll_fold"), False),
    ]
    with set_style():
        figure, axes = make_grid(len(rows), len(models), height=2.0, sharex="col", sharey="row")
        depth = 1
        for column, model in enumerate(models):
            part = sweep.sel(model=model)
            part = part.sel(chunk_size=chunk_size or min(part.values("chunk_size")))
            depth = max(depth, *(ds.sizes["step"] for ds in part))
            for row, (_, take, log) in enumerate(rows):
                ax, zeros, bad, drawn = axes[row][column], 0, 0, False
                for ds in part:
                    values = take(ds)
                    frame = _mean(values, log)
                    zeros, bad = zeros + int(frame["zeros"].sum()), bad + int((~np.isfinite(values)).sum())
                    key, how = ds["dtype"].item(), ds["protocol"].item()
                    drawn |= bool(frame["value"].notna().any())
                    draw_line(
                        ax,
                        frame,
                        colour[key],
                        style[how],
                        marker[how],
                        linewidth=line_widths(dtypes)[key],
                        markersize=3.5,
                    )
                if row == len(rows) - 1:
                    for ds in part.cells[:1]:
                        frame = _mean(dataset.curve(ds, "nll_full"), False)
                        ax.plot(frame["at"], frame["value"], color="black", linewidth=0.9, zorder=5)
                note_below(ax, zeros, bad)
                if not drawn:
                    say_empty(ax)
            chunk = part.values("chunk_size")[0]
            axes[0][column].set_title(f"{model_title(sweep, model)}, chunk {chunk}", fontsize=9.5)
            name_x(axes[-1][column], "chain step (1 = first chunk)")
        for row, (name, _, log) in enumerate(rows):
            axes[row][0].set_ylabel(name)
            if log:
                log_y(axes[row][0])
        for ax in axes.ravel():
            if depth > 8:
                log2_x(ax, [1, depth])
            else:
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", protocol_lines(protocols)),
            ("NLL row", legend_lines({"full attention": {"color": "black", "linewidth": 0.9}})),
        ]
        caption = (
            "Lines: mean over documents (KL: geometric); bands: smallest to largest document. Full attention: the NLL "
            "of the coarsest precision."
        )
        return finish_figure(figure, _logit_title(sweep), caption, legends)


def _gap(ds: Any) -> np.ndarray:
    return dataset.curve(ds, "nll_fold") - dataset.curve(ds, "nll_full")


def _mean(values: np.ndarray, log: bool) -> pd.DataFrame:
    """Collapse [document, step]: geometric where the axis is, else arithmetic over what is finite."""
    if log:
        frame = levels.collapse_documents(values)
    else:
        finite = np.isfinite(values)
        some = finite.any(axis=0)
        filled = np.where(some, np.where(finite, values, np.nan), 0.0)
        blank = np.where(some, 0.0, np.nan)
        frame = pd.DataFrame(
            {
                "value": np.nanmean(filled, axis=0) + blank,
                "low": np.nanmin(filled, axis=0) + blank,
                "high": np.nanmax(filled, axis=0) + blank,
                "zeros": 0,
            }
        )
    return frame.assign(at=np.arange(1, values.shape[1] + 1))


def _logit_title(sweep: Sweep) -> str:
    parts = []
    for protocol in sweep.values("protocol"):
        late = [100 * (1 - summary_levels.late_mean(ds, "top1_agreement")) for ds in sweep.sel(protocol=protocol)]
        parts.append(f"{numbers.range_words(late)} % under {protocol}")
    return "Late in the chain the most likely next token differs for " + ", ".join(parts)


# ---------------------------------------------------------------------------------------------- 9
def nonfinite(sweep: Sweep) -> Figure | None:
    """Draw how many values are NaN or Inf per step, for the cells that have any; None if there are none."""
    bad = [ds for ds in sweep if int(ds["nonfinite_count"].sum()) or int(ds["logit_nonfinite_count"].sum())]
    if not bad:
        return None
    shown = bad[:10]
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
            lines["{model}\n{dtype} {protocol} {chunk_size}".format(**cells.cell_identity(ds))] = how
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
