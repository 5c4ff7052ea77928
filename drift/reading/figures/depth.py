"""Figures over the depth of the network."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drift.dataset.sweep import Sweep
from drift.reading import summary
from drift.reading.figures.captions import BAND, chosen_size, late_of
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    MARKERS,
    STYLES,
    axis_label,
    cell_title,
    choose,
    colours_of,
    cycle_styles,
    draw_line,
    dtypes_of,
    has_layer_gaps,
    legend_lines,
    line_widths,
    log_y,
    make_grid,
    model_title,
    name_x,
    need_cells,
    note_below,
    precision_colours,
    protocol_lines,
    say_empty,
    set_style,
    sizes_words,
    smallest_chunks,
)
from drift.reading.statistics import levels
from drift.reading.wording import numbers

__all__ = ["depth_growth", "heat_map", "keys_values", "worst_tokens"]

#: Most places that are not finite and get a cross of their own in one panel.
CROSSES = 2000


# ---------------------------------------------------------------------------------------------- by layer and step
@dataclass(frozen=True)
class _Grid:
    """One cell over depth and steps: ``means`` [layer or block, step], and counts of what they leave out."""

    ds: xr.Dataset
    axis: str
    means: np.ndarray
    zeros: np.ndarray
    nonfinite: np.ndarray

    @classmethod
    def of(cls, ds: xr.Dataset, measure: str) -> _Grid:
        axis = "layer" if "layer" in ds[measure].dims else "block"
        values = ds[measure].transpose("document", axis, "step").values
        stacked = levels.collapse_documents(values.reshape(values.shape[0], -1))
        means, zeros, bad = (stacked[n].to_numpy().reshape(values.shape[1:]) for n in ("value", "zeros", "nonfinite"))
        return cls(ds, axis, means, zeros, bad)


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
    grids = [_Grid.of(ds, measure) for ds in chosen]
    with set_style():
        figure, axes = make_grid(1, len(grids), height=3.7, width=3.0)
        norm = _common_scale(grids)
        for ax, grid in zip(axes[0], grids, strict=True):
            mesh = _heat_panel(ax, grid, norm)
        first = "layer (0 = embeddings, top = after the final norm)" if grids[0].axis == "layer" else "block"
        axes[0][0].set_ylabel(first)
        bar = figure.colorbar(mesh, ax=list(axes[0]), shrink=0.9, pad=0.015)
        bar.set_label(axis_label(measure))
        caption = "Geometric mean over documents, log colour scale. Grey: nothing above 0. Red cross: NaN or Inf."
        if any((grid.nonfinite > 0).sum() > CROSSES for grid in grids):
            caption += f" At most {CROSSES:,} crosses are drawn in a panel."
        if any(has_layer_gaps(ds) for ds in chosen):
            caption += f" Rows: the {grids[0].axis}s that were kept."
        return finish_figure(figure, _heat_title(grids), caption)


def _common_scale(grids: Sequence[_Grid]) -> LogNorm:
    everything = np.concatenate([grid.means.ravel() for grid in grids])
    positive = everything[np.isfinite(everything)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    return LogNorm(low, high if high > low else low * 10)


def _heat_panel(ax: Axes, grid: _Grid, norm: LogNorm) -> Any:
    """Draw one cell; returns what the colour bar is made of."""
    labels, gaps = grid.ds[grid.axis].values, has_layer_gaps(grid.ds)
    rows = np.arange(len(labels)) if gaps else labels  # what was not kept is not painted over
    steps = np.arange(1, grid.means.shape[1] + 1)
    colours = sns.color_palette("viridis", as_cmap=True).with_extremes(bad="0.85")
    mesh = ax.pcolormesh(steps, rows, np.ma.masked_invalid(grid.means), norm=norm, cmap=colours, rasterized=True)
    for y, s in np.argwhere(grid.nonfinite > 0)[:CROSSES]:
        ax.plot(s + 1, rows[y], marker="x", color="#d00000", markersize=3, linestyle="none")
    note_below(ax, int(grid.zeros.sum()), int(grid.nonfinite.sum()))
    ax.set_title(cell_title(grid.ds), fontsize=9)
    name_x(ax, "chain step (1 = first chunk)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if gaps:
        every = math.ceil(len(rows) / 16)
        ax.set_yticks(rows[::-every], labels[::-every])
    else:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.grid(False)
    return mesh


def _heat_title(grids: Sequence[_Grid]) -> str:
    """Compare how much drift varies along depth and along the chain."""
    down, along = [], []
    for grid in grids:
        logs = np.log(np.where(grid.means > 0, grid.means, np.nan))
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
    where = "the layers that were kept" if any(has_layer_gaps(g.ds) for g in grids) else "the network's depth"
    return f"Drift varies {depth}-fold over {where}, and {chain}-fold along the chain"


# ---------------------------------------------------------------------------------------------- by layer
def depth_growth(sweep: Sweep, measure: str = "hidden_rel_l2", chunk_size: int | None = None) -> Figure:
    """Draw drift through the network's depth: one panel per model, colour by precision, line style by protocol.

    Parameters
    ----------
    chunk_size : int, optional
        The smallest of each model and protocol by default.
    """
    need_cells(sweep)
    drawn = smallest_chunks(sweep, chunk_size)
    models, dtypes, protocols = drawn.values("model"), dtypes_of(drawn), drawn.values("protocol")
    colour, style, marker = precision_colours(dtypes), cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    factors, some = [], False
    with set_style():
        figure, axes = make_grid(1, len(models), height=3.4, sharey=True)
        for ax, model in zip(axes[0], models, strict=True):
            part = drawn.sel(model=model)
            zeros = bad = 0
            for ds in part:
                frame = summary.depth(sweep.derive([ds]), measure)
                frame["at"] = frame["layer"]
                zeros, bad = zeros + int(frame["zeros"].sum()), bad + int(frame["nonfinite"].sum())
                key, how = ds["dtype"].item(), ds["protocol"].item()
                draw_line(ax, frame, colour[key], style[how], marker[how], linewidth=line_widths(dtypes)[key])
                good = frame["value"].dropna()
                factors += [good.iloc[-1] / good.iloc[0]] if len(good) > 1 else []
                some |= len(good) > 0
            note_below(ax, zeros, bad)
            ax.set_title(f"{model_title(drawn, model)}, {sizes_words(part)}", fontsize=9.5)
            name_x(ax, "layer (0 = embeddings,\nlast = after the final norm)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if some:
            log_y(axes[0][0])
        axes[0][0].set_ylabel(axis_label(measure))
        title = "Drift by layer"
        if factors:
            first = "kept layer" if any(has_layer_gaps(ds) for ds in drawn) else "layer"
            title = f"From the first {first} that drifts to the last, drift grows {numbers.range_words(factors)}-fold"
        legends = [
            ("precision", legend_lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", protocol_lines(protocols)),
        ]
        caption = f"Level {late_of(ds.sizes['step'] for ds in drawn)}. {chosen_size(chunk_size)} {BAND}"
        return finish_figure(figure, title, caption, legends)


# ---------------------------------------------------------------------------------------------- by block
_QUANTITIES = {"key_rel_l2": "keys", "value_rel_l2": "values", "hidden_rel_l2": "hidden state after the block"}


def keys_values(sweep: Sweep, chunk_size: int | None = None) -> Figure:
    """Draw the drift of keys and values beside that of hidden states, per block; rows by protocol, columns by model.

    Parameters
    ----------
    chunk_size : int, optional
        The smallest of each model and protocol by default.
    """
    need_cells(sweep)
    dtypes = dtypes_of(sweep)
    ends = list(dict.fromkeys([dtypes[0], dtypes[-1]]))
    drawn = smallest_chunks(sweep.sel(dtype=ends), chunk_size)
    models, protocols, style = drawn.values("model"), drawn.values("protocol"), cycle_styles(ends, STYLES)
    ratios: list[float] = []
    with set_style():
        figure, axes = make_grid(len(protocols), len(models), height=2.5, sharex="col", sharey="row")
        for row, protocol in enumerate(protocols):
            some = False
            for column, model in enumerate(models):
                cells = [ds for ds in drawn if (ds["model"].item(), ds["protocol"].item()) == (model, protocol)]
                some |= _block_panel(axes[row][column], sweep, cells, style, ratios)
            axes[row][0].set_ylabel(textwrap.fill(protocol, 18), fontsize=8.5)
            if some:
                log_y(axes[row][0], 4 if len(protocols) > 2 else 8)
        for ax, model in zip(axes[0], models, strict=True):
            ax.set_title(model_title(drawn, model), fontsize=9.5)
        for ax in axes[-1]:
            name_x(ax, "transformer block")
        for ax in axes[:-1].ravel():
            ax.xaxis.label.set_fontsize(7.5)
        figure.supylabel("relative L2 drift", fontsize=9)
        title = "Drift of keys, values and hidden states"
        if ratios:
            blocks = "the blocks that were kept" if any(has_layer_gaps(ds) for ds in drawn) else "blocks"
            title = f"Averaged over {blocks}, values drift {numbers.range_words(ratios)} times as much as keys"
        colour, marker = colours_of(list(_QUANTITIES)), cycle_styles(list(_QUANTITIES), MARKERS)
        legends = [
            ("drift of", legend_lines({v: {"color": colour[k], "marker": marker[k]} for k, v in _QUANTITIES.items()})),
            ("precision", legend_lines({d: {"color": "0.25", "linestyle": style[d]} for d in ends})),
        ]
        caption = f"Level {late_of(ds.sizes['step'] for ds in drawn)}. {chosen_size(chunk_size)} {BAND}"
        if len(dtypes) > len(ends):
            caption += " Of the precisions the coarsest and the finest."
        return finish_figure(figure, title, caption, legends)


def _block_panel(
    ax: Axes, sweep: Sweep, cells: Sequence[xr.Dataset], style: dict[str, Any], ratios: list[float]
) -> bool:
    """Draw keys, values and states of some cells and note how values compare with keys; whether anything is drawn."""
    colour, marker = colours_of(list(_QUANTITIES)), cycle_styles(list(_QUANTITIES), MARKERS)
    zeros, bad, some = 0, 0, False
    for ds in cells:
        means = {}
        for name in _QUANTITIES:
            frame = summary.depth(sweep.derive([ds]), name)
            frame = frame[(frame["layer"] >= 1) & (frame["layer"] <= ds["block"].values[-1])]
            frame = frame.assign(at=frame["layer"])
            zeros, bad = zeros + int(frame["zeros"].sum()), bad + int(frame["nonfinite"].sum())
            draw_line(ax, frame, colour[name], style[ds["dtype"].item()], marker[name])
            means[name] = levels.geometric_mean(frame["value"].dropna().to_numpy())
            some |= bool(frame["value"].notna().any())
        if means["key_rel_l2"] > 0 and math.isfinite(means["value_rel_l2"]):
            ratios.append(means["value_rel_l2"] / means["key_rel_l2"])
    note_below(ax, zeros, bad)
    if not some:
        say_empty(ax, "nothing to draw" if cells else "no such cell")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return some


# ---------------------------------------------------------------------------------------------- by token
#: Quantiles over the tokens of a chunk that are drawn.
DRAWN_QUANTILES = (1.0, 0.99, 0.9, 0.5)
_WORST_X = {"step": "chain step (1 = first chunk),\nfinal layer", "layer": "layer (0 = embeddings),\nlate steps"}


def worst_tokens(
    sweep: Sweep, *, protocol: str | None = None, dtype: str | None = None, chunk_size: int | None = None
) -> Figure:
    """Draw quantiles over tokens, per step (top) and per layer (bottom), a cell per model (see :func:`choose`)."""
    chosen = choose(sweep, protocol=protocol, dtype=dtype, chunk_size=chunk_size)
    ratios, some = [], False
    with set_style():
        figure, axes = make_grid(2, len(chosen), height=2.6, sharey=True)
        for column, ds in enumerate(chosen):
            for row, by in enumerate(("step", "layer")):
                data = summary.tokens(sweep.derive([ds]), by)
                data = data[data["quantile"].isin(DRAWN_QUANTILES)]
                some |= _token_panel(axes[row][column], data, by)
                if by == "step":
                    middle, worst = (data[data["quantile"] == q]["value"].median() for q in (0.5, 1.0))
                    ratios += [worst / middle] if middle > 0 and math.isfinite(worst) else []
            axes[0][column].set_title(cell_title(ds), fontsize=9)
        if some:
            log_y(axes[0][0])
        for row in (0, 1):
            axes[row][0].set_ylabel("relative L2 drift\nof a token's hidden state")
        title = "Drift of single tokens"
        if ratios:
            title = f"A chunk's worst token drifts {numbers.range_words(ratios)} times as much as its median token"
        caption = (
            "Quantiles over the tokens of a chunk; lines: geometric mean over documents (and late steps: "
            f"{late_of(ds.sizes['step'] for ds in chosen)}); bands: from the smallest to the largest of what the mean "
            "is of."
        )
        lines = legend_lines({_quantile_name(q): how for q, how in _quantile_looks().items()})
        return finish_figure(figure, title, caption, [("quantile over tokens", lines)])


def _quantile_name(q: float) -> str:
    return {1.0: "worst token", 0.5: "median"}.get(q, f"{100 * q:g} %")


def _quantile_looks() -> dict[float, dict[str, Any]]:
    palette = sns.color_palette("rocket", 1 + len(DRAWN_QUANTILES))
    return {
        q: {"color": palette[k], "linestyle": STYLES[k], "marker": MARKERS[k]} for k, q in enumerate(DRAWN_QUANTILES)
    }


def _token_panel(ax: Axes, data: pd.DataFrame, by: str) -> bool:
    """Draw the quantiles of one cell; whether anything is drawn."""
    data = data.assign(at=data[by] + (by == "step"))
    for q, how in _quantile_looks().items():
        draw_line(ax, data[data["quantile"] == q], how["color"], how["linestyle"], how["marker"])
    note_below(ax, int(data["zeros"].sum()), int(data["nonfinite"].sum()))
    name_x(ax, _WORST_X[by])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return bool(data["value"].notna().any())
