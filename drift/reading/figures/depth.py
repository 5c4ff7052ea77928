"""Figures over the depth of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drift.dataset.sweep import Sweep
from drift.reading import cells as reading_cells
from drift.reading import summary
from drift.reading.figures.style import (
    BAND,
    MARKERS,
    STYLES,
    axis_label,
    choose,
    colours_of,
    cycle_styles,
    draw_line,
    dtypes_of,
    finish_figure,
    has_layer_gaps,
    legend_lines,
    line_widths,
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
from drift.reading.statistics import levels as statistics_levels
from drift.reading.wording import numbers

__all__ = ["depth_growth", "heat_map", "keys_values", "worst_tokens"]


# ---------------------------------------------------------------------------------------------- 2
def heat_map(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    *,
    protocol: str | None = None,
    dtype: str | None = None,
    chunk_size: int | None = None,
) -> Figure:
    """Draw drift by layer and step, one panel per model, for one chosen cell each (see :func:`choose`)."""
    chosen = choose(sweep, protocol=protocol, dtype=dtype, chunk_size=chunk_size)
    grids = []
    for ds in chosen:
        array = ds[measure]
        dim = "layer" if "layer" in array.dims else "block"
        values = array.transpose("document", dim, "step").values
        stacked = statistics_levels.collapse_documents(values.reshape(values.shape[0], -1))
        means = stacked["value"].to_numpy().reshape(values.shape[1:])
        zero, bad = (stacked[n].to_numpy().reshape(values.shape[1:]) for n in ("zeros", "nonfinite"))
        grids.append((ds, dim, means, zero, bad))
    everything = np.concatenate([g[2].ravel() for g in grids])
    positive = everything[np.isfinite(everything)]
    with set_style():
        figure, axes = make_grid(1, len(grids), height=3.7, width=3.0)
        colours = sns.color_palette("viridis", as_cmap=True).with_extremes(bad="0.85")
        low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
        norm = LogNorm(low, high if high > low else low * 10)
        mesh = None
        for ax, (ds, dim, means, zero, bad) in zip(axes[0], grids, strict=True):
            labels = ds[dim].values
            rows = np.arange(len(labels)) if has_layer_gaps(ds) else labels  # what was not kept is not painted over
            steps = np.arange(1, means.shape[1] + 1)
            mesh = ax.pcolormesh(steps, rows, np.ma.masked_invalid(means), norm=norm, cmap=colours, rasterized=True)
            for y, s in np.argwhere(bad > 0)[:2000]:
                ax.plot(s + 1, rows[y], marker="x", color="#d00000", markersize=3, linestyle="none")
            if zero.any() or bad.any():
                note_below(ax, int(zero.sum()), int(bad.sum()))
            title = "{model}\n{protocol}, {dtype}, chunk {chunk_size}".format(**reading_cells.cell_identity(ds))
            ax.set_title(title, fontsize=9)
            name_x(ax, "chain step (1 = first chunk)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            if has_layer_gaps(ds):
                every = math.ceil(len(rows) / 16)
                ax.set_yticks(rows[::-every], labels[::-every])
            else:
                ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            ax.grid(False)
        first = "layer (0 = embeddings, top = after the final norm)" if grids[0][1] == "layer" else "block"
        axes[0][0].set_ylabel(first)
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=list(axes[0]), shrink=0.9, pad=0.015)
            bar.set_label(axis_label(measure))
        title = _heat_title(grids)
        caption = "Geometric mean over documents, log colour scale. Grey: nothing above 0. Red cross: NaN or Inf."
        if any(has_layer_gaps(ds) for ds in chosen):
            caption += f" Rows: the {dim}s that were kept."
        return finish_figure(figure, title, caption)


def _heat_title(grids: Sequence[tuple[Any, ...]]) -> str:
    """Compare how much drift varies along depth and along the chain."""
    down, along = [], []
    for _, _, means, _, _ in grids:
        logs = np.log(np.where(means > 0, means, np.nan))
        rows = np.isfinite(logs).any(axis=1)
        columns = np.isfinite(logs).any(axis=0)
        if rows.sum() > 1 and columns.any():
            per_layer = np.nanmean(logs[rows], axis=1)
            per_step = np.nanmean(logs[:, columns], axis=0)
            down.append(math.exp(np.ptp(per_layer)))
            along.append(math.exp(np.ptp(per_step)))
    if not down:
        return "Drift by layer and step"
    depth, chain = numbers.range_words(down), numbers.range_words(along)
    where = "the layers that were kept" if any(has_layer_gaps(ds) for ds, *_ in grids) else "the network's depth"
    return f"Drift varies {depth}-fold over {where}, and {chain}-fold along the chain"


# ---------------------------------------------------------------------------------------------- 6
def depth_growth(sweep: Sweep, measure: str = "hidden_rel_l2", chunk_size: int | None = None) -> Figure:
    """Draw drift through the network's depth: one panel per model, colour by precision, line style by protocol."""
    need_cells(sweep)
    models, dtypes, protocols = sweep.values("model"), dtypes_of(sweep), sweep.values("protocol")
    colour, style, marker = colours_of(dtypes), cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    with set_style():
        figure, axes = make_grid(1, len(models), height=3.4, sharey=True)
        factors, some = [], False
        for ax, model in zip(axes[0], models, strict=True):
            part = sweep.sel(model=model)
            part = part.sel(chunk_size=chunk_size or min(part.values("chunk_size")))
            zeros = bad = 0
            for ds in part:
                frame = summary.depth(sweep.derive([ds]), measure)
                frame["at"] = frame["layer"]
                zeros, bad = zeros + int(frame["zeros"].sum()), bad + int(frame["nonfinite"].sum())
                key, how = ds["dtype"].item(), ds["protocol"].item()
                draw_line(ax, frame, colour[key], style[how], marker[how], linewidth=line_widths(dtypes)[key])
                good = frame["value"].dropna()
                some |= len(good) > 0
                if len(good) > 1:
                    factors.append(good.iloc[-1] / good.iloc[0])
            note_below(ax, zeros, bad)
            ax.set_title(f"{model_title(sweep, model)}, chunk {part.values('chunk_size')[0]}", fontsize=9.5)
            name_x(ax, "layer (0 = embeddings,\nlast = after the final norm)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if some:
            log_y(axes[0][0])
        axes[0][0].set_ylabel(axis_label(measure))
        title = "Drift by layer"
        if factors:
            first = "kept layer" if any(has_layer_gaps(ds) for ds in sweep) else "layer"
            title = f"From the first {first} that drifts to the last, drift grows {numbers.range_words(factors)}-fold"
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", protocol_lines(protocols)),
        ]
        return finish_figure(figure, title, "Last half of the chain. " + BAND, legends)


# ---------------------------------------------------------------------------------------------- 7
def keys_values(sweep: Sweep, chunk_size: int | None = None) -> Figure:
    """Draw the drift of keys and values beside that of hidden states, per block; rows by protocol, columns by model."""
    need_cells(sweep)
    models, protocols, dtypes = sweep.values("model"), sweep.values("protocol"), dtypes_of(sweep)
    dtypes = [dtypes[0], dtypes[-1]] if len(dtypes) > 1 else dtypes
    quantities = {"key_rel_l2": "keys", "value_rel_l2": "values", "hidden_rel_l2": "hidden state after the block"}
    colour, marker, style = (
        colours_of(list(quantities)),
        cycle_styles(list(quantities), MARKERS),
        cycle_styles(dtypes, STYLES),
    )
    with set_style():
        figure, axes = make_grid(len(protocols), len(models), height=2.5, sharex="col", sharey="row")
        ratios = []
        for row, protocol in enumerate(protocols):
            some = False
            for column, model in enumerate(models):
                ax, zeros, bad, here = axes[row][column], 0, 0, False
                cells = [ds for ds in sweep if (ds["model"].item(), ds["protocol"].item()) == (model, protocol)]
                cells = [ds for ds in cells if ds["dtype"].item() in dtypes]
                smallest = min((ds["chunk_size"].item() for ds in cells), default=0)
                for ds in (ds for ds in cells if ds["chunk_size"].item() == (chunk_size or smallest)):
                    levels = {}
                    for name in quantities:
                        frame = summary.depth(sweep.derive([ds]), name)
                        frame = frame[(frame["layer"] >= 1) & (frame["layer"] <= ds["block"].values[-1])]
                        frame = frame.assign(at=frame["layer"])
                        zeros, bad = zeros + int(frame["zeros"].sum()), bad + int(frame["nonfinite"].sum())
                        draw_line(ax, frame, colour[name], style[ds["dtype"].item()], marker[name])
                        levels[name] = statistics_levels.geometric_mean(frame["value"].dropna().to_numpy())
                        here |= bool(frame["value"].notna().any())
                    if levels["key_rel_l2"] > 0 and math.isfinite(levels["value_rel_l2"]):
                        ratios.append(levels["value_rel_l2"] / levels["key_rel_l2"])
                note_below(ax, zeros, bad)
                some |= here
                if not here:
                    say_empty(ax, "no such cell" if not cells else "nothing to draw")
                if row == 0:
                    ax.set_title(model_title(sweep, model), fontsize=9.5)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            axes[row][0].set_ylabel(f"{protocol}\nrelative L2 drift")
            if some:
                log_y(axes[row][0])
        for ax in axes[-1]:
            name_x(ax, "transformer block")
        title = "Drift of keys, values and hidden states"
        if ratios:
            blocks = "the blocks that were kept" if any(has_layer_gaps(ds) for ds in sweep) else "blocks"
            title = f"Averaged over {blocks}, values drift {numbers.range_words(ratios)} times as much as keys"
        legends = [
            ("drift of", legend_lines({v: {"color": colour[k], "marker": marker[k]} for k, v in quantities.items()})),
            ("precision", legend_lines({d: {"color": "0.25", "linestyle": style[d]} for d in dtypes})),
        ]
        return finish_figure(figure, title, "Last half of the chain, smallest chunk size. " + BAND, legends)


# ---------------------------------------------------------------------------------------------- 8
def worst_tokens(
    sweep: Sweep, *, protocol: str | None = None, dtype: str | None = None, chunk_size: int | None = None
) -> Figure:
    """Draw quantiles over tokens, per step (top) and per layer (bottom), a cell per model (see :func:`choose`)."""
    chosen = choose(sweep, protocol=protocol, dtype=dtype, chunk_size=chunk_size)
    names = {1.0: "worst token", 0.99: "99 %", 0.9: "90 %", 0.5: "median"}
    palette = sns.color_palette("rocket", 5)
    colour = dict(zip(names, palette[:4], strict=True))
    style, marker = cycle_styles(list(names), STYLES), cycle_styles(list(names), MARKERS)
    with set_style():
        figure, axes = make_grid(2, len(chosen), height=2.6, sharey=True)
        ratios, some = [], False
        for column, ds in enumerate(chosen):
            for row, by in enumerate(("step", "layer")):
                ax = axes[row][column]
                data = summary.tokens(sweep.derive([ds]), by)
                data = data[data["quantile"].isin(list(names))].assign(at=lambda f, by=by: f[by] + (by == "step"))
                for q in names:
                    frame = data[data["quantile"] == q]
                    draw_line(ax, frame.assign(low=np.nan, high=np.nan), colour[q], style[q], marker[q])
                    some |= bool(frame["value"].notna().any())
                note_below(ax, int(data["zeros"].sum()), int(data["nonfinite"].sum()))
                if row == 0:
                    middle, worst = (data[data["quantile"] == q]["value"].median() for q in (0.5, 1.0))
                    if middle > 0 and math.isfinite(worst):
                        ratios.append(worst / middle)
                    title = "{model}\n{protocol}, {dtype}, chunk {chunk_size}".format(**reading_cells.cell_identity(ds))
                    ax.set_title(title, fontsize=9)
                name_x(
                    ax,
                    "chain step (1 = first chunk), final layer"
                    if row == 0
                    else "layer (0 = embeddings),\npast the first quarter of the chain",
                )
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if some:
            log_y(axes[0][0])
        for row in (0, 1):
            axes[row][0].set_ylabel("relative L2 drift\nof a token's hidden state")
        lines = legend_lines(
            {names[q]: {"color": colour[q], "linestyle": style[q], "marker": marker[q]} for q in names}
        )
        title = "Drift of single tokens"
        if ratios:
            title = f"A chunk's worst token drifts {numbers.range_words(ratios)} times as much as its median token"
        caption = "Quantiles over the tokens of a chunk; lines: geometric mean over documents (and late steps)."
        return finish_figure(figure, title, caption, [("quantile over tokens", lines)])
