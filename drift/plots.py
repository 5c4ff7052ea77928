"""Pictures of a sweep, one message each.

Every function takes a :class:`~drift.dataset.Sweep` and returns a Matplotlib ``Figure`` of its own; pyplot's global
state is not touched. Colours come from seaborn's colour-blind palette and are always doubled by a line style or a
marker, so that the figures can be read in greyscale. Titles are derived from the data (see :mod:`drift.summary`).
Values that a log axis cannot show are counted in the panel that lacks them.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from drift import claims, controls, dataset, summary
from drift.dataset import VARIABLES, Sweep
from drift.errors import DatasetError
from drift.plateau import Plateau, Verdict, late_start
from drift.plateau.kernel import windows
from drift.plateau.verdict import certificate, percent

__all__ = [
    "choose",
    "depth_growth",
    "drift_per_step",
    "equivalence",
    "groups",
    "heat_map",
    "keys_values",
    "level_vs_chunk_size",
    "level_vs_roundoff",
    "logits_per_step",
    "nonfinite",
    "plateau_fit",
    "png",
    "show",
    "worst_tokens",
]

DPI = 120
_STYLES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_BAND = "Lines: geometric mean over documents; bands: smallest to largest document."


# ---------------------------------------------------------------------------------------------- style
@contextmanager
def _style() -> Iterator[None]:
    with (
        mpl.rc_context(),
        sns.axes_style("whitegrid", {"grid.color": "0.9", "axes.edgecolor": "0.6"}),
        sns.plotting_context("notebook", font_scale=0.82),
    ):
        mpl.rcParams["font.family"] = "DejaVu Sans"
        yield


def _grid(
    rows: int, columns: int, *, width: float = 3.3, height: float = 2.9, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with room on the right for legends."""
    figure = Figure(figsize=(max(width * columns + 1.7, 6.4), height * rows + 1.1), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, axes


def _finish(figure: Figure, title: str, caption: str, legends: Sequence[tuple[str, list[Line2D]]] = ()) -> Figure:
    """Set title above, caption below, and legends beside the panels."""
    width = figure.get_figwidth()
    room = width - (2.3 if legends else 0)  # legends stand to the right of the title
    figure.suptitle(textwrap.fill(title, int(room * 10.6)), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    figure.supxlabel(textwrap.fill(caption, int(width * 14.5)), x=0.01, ha="left", fontsize=8, color="0.35")
    handles: list[Line2D] = []
    for name, lines in legends:
        if lines:
            handles += [Line2D([], [], linestyle="none", label=name), *lines]
    if handles:
        legend = figure.legend(
            handles=handles, loc="outside right upper", frameon=False, fontsize=8.5, handlelength=3.0, alignment="left"
        )
        headings = {name for name, _ in legends}
        for text in legend.get_texts():
            if text.get_text() in headings:
                text.set_fontweight("bold")
                text.set_x(-38)
    figure.align_ylabels()
    return figure


def _colours(names: Sequence[Any]) -> dict[Any, Any]:
    palette = sns.color_palette("colorblind", 10)
    order = [0, 3, 2, 1, 4, 7, 9, 5, 6, 8]  # blue and vermilion first: they differ in lightness too
    return {name: palette[order[k % 10]] for k, name in enumerate(names)}


def _cycle(names: Sequence[Any], styles: Sequence[Any]) -> dict[Any, Any]:
    return {name: styles[k % len(styles)] for k, name in enumerate(names)}


def _widths(dtypes: Sequence[str]) -> dict[str, float]:
    """Draw coarser precisions thicker and first: where curves coincide, both remain visible."""
    return {name: 1.2 + 1.4 * (1 - k / max(len(dtypes) - 1, 1)) * (len(dtypes) > 1) for k, name in enumerate(dtypes)}


def _dtypes(sweep: Sweep) -> list[str]:
    """Precisions, coarse first."""
    pairs = sorted({(-ds["unit_roundoff"].item(), ds["dtype"].item()) for ds in sweep})
    return [name for _, name in pairs]


def _label(measure: str, layer: int | str | None = None) -> str:
    row = VARIABLES[measure]
    name = row.long_name if layer is None else summary.measure_name(measure, layer)
    return textwrap.fill(name, 30) + (f"\n[{row.units}]" if row.units != "1" else "")


def _rungs(ax: Axes, rungs: dict[float, str]) -> None:
    """Name the precisions on the horizontal axis; of two that stand close together, the second one line lower."""
    names, before, lower = [], 0.0, False
    for u in sorted(rungs):
        lower = not lower and bool(before) and math.log(u / before) < 0.16 * math.log(max(rungs) / min(rungs))
        names.append("\n\n" * lower + f"{rungs[u]}\n{u:.0e}".replace("e-0", "e-"))
        before = u
    ax.set_xticks(sorted(rungs), names, fontsize=7.5)


def _decades(axis: Any) -> None:
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_minor_locator(NullLocator())


def _log_y(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if low > 0 and high / low < 200:  # within a decade or so the decades alone would leave an axis without numbers
        middle = math.sqrt(low * high)
        room = max(math.sqrt(high / low), 2.2)
        ax.set_ylim(middle / room, middle * room)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0), numticks=12))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        _decades(ax.yaxis)
    ax.yaxis.set_minor_formatter(NullFormatter())


def _log2_x(ax: Axes, values: Sequence[float]) -> None:
    """Base-2 axis with plain numbers."""
    ax.set_xscale("log", base=2)
    low, high = min(values), max(values)
    ticks = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    ticks = [t for t in ticks if low * 0.99 <= t <= high * 1.01] or [low]
    every = max(1, math.ceil(len(ticks) / 6))
    ax.set_xticks(ticks[::every])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _note(ax: Axes, zeros: int, bad: int) -> None:
    """Say below the panel what a log axis cannot show."""
    parts = [f"{n:,} {what}" for n, what in ((zeros, "exactly 0"), (bad, "NaN or Inf")) if n]
    if parts:
        text = "(not drawn: " + ", ".join(parts) + ")"
        ax.set_xlabel(f"{ax.get_xlabel()}\n{text}".lstrip("\n"))


def _name_x(ax: Axes, name: str) -> None:
    """Name the horizontal axis; a note that is already there stays below the name."""
    ax.set_xlabel(f"{name}\n{ax.get_xlabel()}".rstrip("\n"))


def _empty(ax: Axes, words: str = "nothing to draw") -> None:
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color="0.4")


def _lines(label_to_style: dict[Any, dict[str, Any]]) -> list[Line2D]:
    return [Line2D([], [], label=str(label), **style) for label, style in label_to_style.items()]


def _protocol_lines(protocols: Sequence[str], markersize: float = 4) -> list[Line2D]:
    style, marker = _cycle(protocols, _STYLES), _cycle(protocols, _MARKERS)
    how = {"color": "0.25", "markersize": markersize}
    return _lines({p: {**how, "linestyle": style[p], "marker": marker[p]} for p in protocols})


def _model_title(sweep: Sweep, model: str) -> str:
    family = next(str(ds["family"].item()) for ds in sweep if ds["model"].item() == model)
    return f"{model}\n({family})"


def _gaps(ds: Any) -> bool:
    """Whether layers were left out of the cell (see :mod:`drift.thin`)."""
    return bool(ds.sizes["layer"] <= ds["layer"].values[-1])


def _need(sweep: Sweep) -> None:
    if not len(sweep):
        raise DatasetError("the sweep holds no readable cell: there is nothing to draw")


def choose(
    sweep: Sweep, *, protocol: str | None = None, dtype: str | None = None, chunk_size: int | None = None
) -> Sweep:
    """Choose one cell per model.

    Parameters
    ----------
    protocol, dtype, chunk_size
        What to take; where absent, per model the first protocol, the coarsest precision and the smallest chunk size
        (the longest chain) there are.
    """
    _need(sweep)
    cells = []
    for model in sweep.values("model"):
        part = sweep.sel(model=model)
        part = part.sel(protocol=protocol or part.values("protocol")[0])
        part = part.sel(dtype=dtype or _dtypes(part)[0])
        part = part.sel(chunk_size=chunk_size or min(part.values("chunk_size")))
        cells.append(max(part.cells, key=lambda ds: ds.sizes["step"]))
    return Sweep(cells, folder=sweep.folder)


def groups(sweep: Sweep, name: str, size: int = 4) -> Iterator[tuple[str, Sweep]]:
    """Share out a sweep of many protocols to figures that tell them apart by line style.

    Yields
    ------
    name, part : str, Sweep
        ``name`` itself and the whole sweep where there are at most `size` protocols; else ``name-1``, ``name-2`` ...
        with that many protocols each.
    """
    protocols = sweep.values("protocol")
    if len(protocols) <= size:
        yield name, sweep
        return
    for k in range(0, len(protocols), size):
        yield f"{name}-{k // size + 1}", sweep.sel(protocol=protocols[k : k + size])


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
        See :func:`drift.dataset.curve`.
    protocol : str, optional
        Which reading of the fold; the first there is by default.
    x : "step" or "token"
        Chain steps counted from 1, or tokens of text up to the end of the chunk.
    """
    _need(sweep)
    if x not in ("step", "token"):
        raise DatasetError(f"the horizontal axis is 'step' or 'token', not {x!r}")
    part = sweep.sel(protocol=protocol or sweep.values("protocol")[0])
    data = summary.curves(part, measure, layer)
    data["at"] = data["step"] + 1 if x == "step" else data["token"]
    models, dtypes, chunks = part.values("model"), _dtypes(part), sorted(part.values("chunk_size"))
    colour, style = _colours(dtypes), _cycle(chunks, _STYLES)
    marker, width = _cycle(dtypes, _MARKERS), _widths(dtypes)
    with _style():
        figure, axes = _grid(1, len(models), height=3.3, sharey=True)
        for ax, model in zip(axes[0], models, strict=True):
            here = data[data["model"] == model]
            for dtype in dtypes:
                for chunk in chunks:
                    cell = here[(here["dtype"] == dtype) & (here["chunk_size"] == chunk)].sort_values("at")
                    for _, one in cell.groupby(["attn_implementation", "device", "tokens"], sort=False):
                        _draw(ax, one, colour[dtype], style[chunk], marker[dtype], linewidth=width[dtype])
            _note(ax, int(here["zeros"].sum()), int(here["nonfinite"].sum()))
            if not here["value"].notna().any():
                _empty(ax)
            ax.set_title(_model_title(part, model), fontsize=9.5)
            _name_x(ax, "chain step (1 = first chunk)" if x == "step" else "tokens of text so far")
        if data["value"].notna().any():
            _log_y(axes[0][0])
        for ax in axes[0]:
            if x == "token" or data["at"].max() > 8:
                _log2_x(ax, data["at"].tolist())
            else:
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes[0][0].set_ylabel(_label(measure, layer))
        legends = [
            ("precision", _lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes})),
            ("chunk size", _lines({c: {"color": "0.25", "linestyle": style[c]} for c in chunks})),
        ]
        title = summary.headline(part, measure, layer)[part.values("protocol")[0]]
        return _finish(figure, title, _BAND + " Log scale.", legends)


def _draw(ax: Axes, frame: pd.DataFrame, colour: Any, style: Any, marker: str, x: str = "at", **options: Any) -> None:
    """Draw one line with its band; markers are thinned so that they tell lines apart without hiding them."""
    good = frame["value"].notna()
    if not good.any():
        return
    ax.fill_between(frame[x], frame["low"], frame["high"], where=good, color=colour, alpha=0.13, linewidth=0)
    every = max(1, math.ceil(len(frame) / 6))
    settings = {"linewidth": 1.3, "markersize": 4, **options}
    ax.plot(
        frame[x], frame["value"], color=colour, linestyle=style, marker=marker, markevery=every,
        markeredgecolor="white", markeredgewidth=0.4, **settings,
    )  # fmt: skip


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
        stacked = summary._collapse(values.reshape(values.shape[0], -1))
        means = stacked["value"].to_numpy().reshape(values.shape[1:])
        zero, bad = (stacked[n].to_numpy().reshape(values.shape[1:]) for n in ("zeros", "nonfinite"))
        grids.append((ds, dim, means, zero, bad))
    everything = np.concatenate([g[2].ravel() for g in grids])
    positive = everything[np.isfinite(everything)]
    with _style():
        figure, axes = _grid(1, len(grids), height=3.7, width=3.0)
        colours = sns.color_palette("viridis", as_cmap=True).with_extremes(bad="0.85")
        low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
        norm = LogNorm(low, high if high > low else low * 10)
        mesh = None
        for ax, (ds, dim, means, zero, bad) in zip(axes[0], grids, strict=True):
            labels = ds[dim].values
            rows = np.arange(len(labels)) if _gaps(ds) else labels  # what was not kept is not painted over
            steps = np.arange(1, means.shape[1] + 1)
            mesh = ax.pcolormesh(steps, rows, np.ma.masked_invalid(means), norm=norm, cmap=colours, rasterized=True)
            for y, s in np.argwhere(bad > 0)[:2000]:
                ax.plot(s + 1, rows[y], marker="x", color="#d00000", markersize=3, linestyle="none")
            if zero.any() or bad.any():
                _note(ax, int(zero.sum()), int(bad.sum()))
            title = "{model}\n{protocol}, {dtype}, chunk {chunk_size}".format(**summary._identity(ds))
            ax.set_title(title, fontsize=9)
            _name_x(ax, "chain step (1 = first chunk)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            if _gaps(ds):
                every = math.ceil(len(rows) / 16)
                ax.set_yticks(rows[::-every], labels[::-every])
            else:
                ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            ax.grid(False)
        first = "layer (0 = embeddings, top = after the final norm)" if grids[0][1] == "layer" else "block"
        axes[0][0].set_ylabel(first)
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=list(axes[0]), shrink=0.9, pad=0.015)
            bar.set_label(_label(measure))
        title = _heat_title(grids)
        caption = "Geometric mean over documents, log colour scale. Grey: nothing above 0. Red cross: NaN or Inf."
        if any(_gaps(ds) for ds in chosen):
            caption += f" Rows: the {dim}s that were kept."
        return _finish(figure, title, caption)


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
    depth, chain = summary._range(down), summary._range(along)
    where = "the layers that were kept" if any(_gaps(ds) for ds, *_ in grids) else "the network's depth"
    return f"Drift varies {depth}-fold over {where}, and {chain}-fold along the chain"


# ---------------------------------------------------------------------------------------------- 3
def logits_per_step(sweep: Sweep, chunk_size: int | None = None) -> Figure:
    """Draw what drift does to the next-token distribution, per step; colour by precision, line style by protocol.

    Parameters
    ----------
    chunk_size : int, optional
        The smallest of each model by default.
    """
    _need(sweep)
    models, dtypes, protocols = sweep.values("model"), _dtypes(sweep), sweep.values("protocol")
    colour, style = _colours(dtypes), _cycle(protocols, _STYLES)
    marker = _cycle(protocols, _MARKERS)
    rows: list[tuple[str, Callable[[Any], np.ndarray], bool]] = [
        ("KL(full ‖ fold)\n[nat per token]", lambda ds: dataset.curve(ds, "logit_kl"), True),
        ("other most likely token\n[% of tokens]", lambda ds: 100 * (1 - dataset.curve(ds, "top1_agreement")), False),
        ("NLL, fold − full\n[nat per token]", _gap, False),
        ("NLL\n[nat per token]", lambda ds: dataset.curve(ds, "nll_fold"), False),
    ]
    with _style():
        figure, axes = _grid(len(rows), len(models), height=2.0, sharex="col", sharey="row")
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
                    _draw(
                        ax, frame, colour[key], style[how], marker[how], linewidth=_widths(dtypes)[key], markersize=3.5
                    )
                if row == len(rows) - 1:
                    for ds in part.cells[:1]:
                        frame = _mean(dataset.curve(ds, "nll_full"), False)
                        ax.plot(frame["at"], frame["value"], color="black", linewidth=0.9, zorder=5)
                _note(ax, zeros, bad)
                if not drawn:
                    _empty(ax)
            chunk = part.values("chunk_size")[0]
            axes[0][column].set_title(f"{_model_title(sweep, model)}, chunk {chunk}", fontsize=9.5)
            _name_x(axes[-1][column], "chain step (1 = first chunk)")
        for row, (name, _, log) in enumerate(rows):
            axes[row][0].set_ylabel(name)
            if log:
                _log_y(axes[row][0])
        for ax in axes.ravel():
            if depth > 8:
                _log2_x(ax, [1, depth])
            else:
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        legends = [
            ("precision", _lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", _protocol_lines(protocols)),
            ("NLL row", _lines({"full attention": {"color": "black", "linewidth": 0.9}})),
        ]
        caption = (
            "Lines: mean over documents (KL: geometric); bands: smallest to largest document. Full attention: the NLL "
            "of the coarsest precision."
        )
        return _finish(figure, _logit_title(sweep), caption, legends)


def _gap(ds: Any) -> np.ndarray:
    return dataset.curve(ds, "nll_fold") - dataset.curve(ds, "nll_full")


def _mean(values: np.ndarray, log: bool) -> pd.DataFrame:
    """Collapse [document, step]: geometric where the axis is, else arithmetic over what is finite."""
    if log:
        frame = summary._collapse(values)
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
        late = [100 * (1 - summary._late(ds, "top1_agreement")) for ds in sweep.sel(protocol=protocol)]
        parts.append(f"{summary._range(late)} % under {protocol}")
    return "Late in the chain the most likely next token differs for " + ", ".join(parts)


# ---------------------------------------------------------------------------------------------- 4
def level_vs_roundoff(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level against unit roundoff: one panel per protocol, guides of slope 1 (rounding) and 0 (structural)."""
    _need(sweep)
    data = summary.table(sweep, measure, layer)
    protocols, models = sweep.values("protocol"), sweep.values("model")
    colour, marker = _colours(models), _cycle(models, _MARKERS)
    believed = controls.evaluate(sweep).ok
    with _style():
        figure, axes = _grid(1, len(protocols), height=3.4, sharex=True, sharey=True)
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
                _empty(ax)
            zero = int((here["level"] == 0).sum())
            _note(ax, zero, int(here["level"].isna().sum()))
            verdict, _ = summary.verdict(summary.slopes(here)["slope"].tolist())
            kind = verdict if believed and verdict in ("rounding", "structural", "reversed") else ""
            ax.set_title(f"{protocol}" + (f": {kind}" if kind else ""), fontsize=10)
            _name_x(ax, "unit roundoff of the precision [1]")
        good = data[data["level"] > 0]
        if len(good):
            _log_y(axes[0][0])
            for ax in axes[0]:
                ax.set_xscale("log")
                roundoffs = good.groupby("unit_roundoff")["dtype"].agg(lambda v: "/".join(dict.fromkeys(v)))
                _rungs(ax, dict(roundoffs.items()))
                ax.xaxis.set_minor_locator(NullLocator())
                ends = roundoffs.index.min(), roundoffs.index.max()
                room = max((ends[1] / ends[0]) ** 0.15, 4)
                ax.set_xlim(ends[0] / room, ends[1] * room)
        axes[0][0].set_ylabel("level: " + _label(measure, layer))
        guides: dict[Any, dict[str, Any]] = {
            "slope 1: rounding": {"color": "0.45", "linestyle": (0, (4, 2))},
            "slope 0: structural": {"color": "0.45", "linestyle": (0, (1, 1.5))},
        }
        legends = [
            ("model", _lines({m: {"color": colour[m], "marker": marker[m]} for m in models})),
            ("guides", _lines(guides)),
        ]
        caption = (
            "Geometric mean past the first quarter of the chain, over documents and chunk sizes; bars: smallest to "
            "largest document and chunk size. Models are drawn side by side."
        )
        return _finish(figure, _roundoff_title(data), caption, legends)


def _roundoff_title(data: pd.DataFrame) -> str:
    parts = []
    for protocol, here in data.groupby("protocol", sort=False):
        found = summary.slopes(here)["slope"].dropna()
        if len(found):
            slope = summary._range(found, write=lambda v: f"{v:z.2f}")
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
    _need(sweep)
    data = summary.table(sweep, measure, layer)
    models, dtypes, protocols = sweep.values("model"), _dtypes(sweep), sweep.values("protocol")
    colour, style, marker = _colours(dtypes), _cycle(protocols, _STYLES), _cycle(protocols, _MARKERS)
    with _style():
        figure, axes = _grid(1, len(models), height=3.3, sharey=True)
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
                _draw(ax, frame, colour[dtype], style[protocol], marker[protocol], linewidth=_widths(dtypes)[dtype])
            _note(ax, int((here["level"] == 0).sum()), int(here["level"].isna().sum()))
            if good.empty:
                _empty(ax)
            ax.set_title(_model_title(sweep, model), fontsize=9.5)
            _name_x(ax, "chunk size [tokens]")
            _log2_x(ax, sweep.values("chunk_size"))
            ax.set_xlim(min(sweep.values("chunk_size")) / 1.3, max(sweep.values("chunk_size")) * 1.3)
        if (data["level"] > 0).any():
            _log_y(axes[0][0])
        axes[0][0].set_ylabel("level: " + _label(measure, layer))
        legends = [
            ("precision", _lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", _protocol_lines(protocols, markersize=5)),
        ]
        caption = (
            "Level: geometric mean past the first quarter of the chain, over documents; bands: smallest to largest "
            "document."
        )
        return _finish(figure, _chunk_title(data), caption, legends)


def _chunk_title(data: pd.DataFrame) -> str:
    parts = []
    sizes = sorted(data["chunk_size"].unique())
    for protocol, here in data[data["level"] > 0].groupby("protocol", sort=False):
        by = here.groupby(["model", "dtype", "attn_implementation", "device"])["level"]
        ratio = (by.max() / by.min())[by.count() > 1]
        if len(ratio):
            parts.append(f"{summary.number(ratio.max())}-fold under {protocol}")
    if not parts:
        return f"Level of drift at {summary._chunks(sizes)}"
    return f"From chunk size {sizes[0]} to {sizes[-1]} the level varies at most " + ", ".join(parts)


# ---------------------------------------------------------------------------------------------- 6
def depth_growth(sweep: Sweep, measure: str = "hidden_rel_l2", chunk_size: int | None = None) -> Figure:
    """Draw drift through the network's depth: one panel per model, colour by precision, line style by protocol."""
    _need(sweep)
    models, dtypes, protocols = sweep.values("model"), _dtypes(sweep), sweep.values("protocol")
    colour, style, marker = _colours(dtypes), _cycle(protocols, _STYLES), _cycle(protocols, _MARKERS)
    with _style():
        figure, axes = _grid(1, len(models), height=3.4, sharey=True)
        factors, some = [], False
        for ax, model in zip(axes[0], models, strict=True):
            part = sweep.sel(model=model)
            part = part.sel(chunk_size=chunk_size or min(part.values("chunk_size")))
            zeros = bad = 0
            for ds in part:
                frame = summary.depth(Sweep([ds]), measure)
                frame["at"] = frame["layer"]
                zeros, bad = zeros + int(frame["zeros"].sum()), bad + int(frame["nonfinite"].sum())
                key, how = ds["dtype"].item(), ds["protocol"].item()
                _draw(ax, frame, colour[key], style[how], marker[how], linewidth=_widths(dtypes)[key])
                good = frame["value"].dropna()
                some |= len(good) > 0
                if len(good) > 1:
                    factors.append(good.iloc[-1] / good.iloc[0])
            _note(ax, zeros, bad)
            ax.set_title(f"{_model_title(sweep, model)}, chunk {part.values('chunk_size')[0]}", fontsize=9.5)
            _name_x(ax, "layer (0 = embeddings,\nlast = after the final norm)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if some:
            _log_y(axes[0][0])
        axes[0][0].set_ylabel(_label(measure))
        title = "Drift by layer"
        if factors:
            first = "kept layer" if any(_gaps(ds) for ds in sweep) else "layer"
            title = f"From the first {first} that drifts to the last, drift grows {summary._range(factors)}-fold"
        legends = [
            ("precision", _lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
            ("protocol", _protocol_lines(protocols)),
        ]
        return _finish(figure, title, "Last half of the chain. " + _BAND, legends)


# ---------------------------------------------------------------------------------------------- 7
def keys_values(sweep: Sweep, chunk_size: int | None = None) -> Figure:
    """Draw the drift of keys and values beside that of hidden states, per block; rows by protocol, columns by model."""
    _need(sweep)
    models, protocols, dtypes = sweep.values("model"), sweep.values("protocol"), _dtypes(sweep)
    dtypes = [dtypes[0], dtypes[-1]] if len(dtypes) > 1 else dtypes
    quantities = {"key_rel_l2": "keys", "value_rel_l2": "values", "hidden_rel_l2": "hidden state after the block"}
    colour, marker, style = _colours(list(quantities)), _cycle(list(quantities), _MARKERS), _cycle(dtypes, _STYLES)
    with _style():
        figure, axes = _grid(len(protocols), len(models), height=2.5, sharex="col", sharey="row")
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
                        frame = summary.depth(Sweep([ds]), name)
                        frame = frame[(frame["layer"] >= 1) & (frame["layer"] <= ds["block"].values[-1])]
                        frame = frame.assign(at=frame["layer"])
                        zeros, bad = zeros + int(frame["zeros"].sum()), bad + int(frame["nonfinite"].sum())
                        _draw(ax, frame, colour[name], style[ds["dtype"].item()], marker[name])
                        levels[name] = summary._geometric(frame["value"].dropna().to_numpy())
                        here |= bool(frame["value"].notna().any())
                    if levels["key_rel_l2"] > 0 and math.isfinite(levels["value_rel_l2"]):
                        ratios.append(levels["value_rel_l2"] / levels["key_rel_l2"])
                _note(ax, zeros, bad)
                some |= here
                if not here:
                    _empty(ax, "no such cell" if not cells else "nothing to draw")
                if row == 0:
                    ax.set_title(_model_title(sweep, model), fontsize=9.5)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            axes[row][0].set_ylabel(f"{protocol}\nrelative L2 drift")
            if some:
                _log_y(axes[row][0])
        for ax in axes[-1]:
            _name_x(ax, "transformer block")
        title = "Drift of keys, values and hidden states"
        if ratios:
            blocks = "the blocks that were kept" if any(_gaps(ds) for ds in sweep) else "blocks"
            title = f"Averaged over {blocks}, values drift {summary._range(ratios)} times as much as keys"
        legends = [
            ("drift of", _lines({v: {"color": colour[k], "marker": marker[k]} for k, v in quantities.items()})),
            ("precision", _lines({d: {"color": "0.25", "linestyle": style[d]} for d in dtypes})),
        ]
        return _finish(figure, title, "Last half of the chain, smallest chunk size. " + _BAND, legends)


# ---------------------------------------------------------------------------------------------- 8
def worst_tokens(
    sweep: Sweep, *, protocol: str | None = None, dtype: str | None = None, chunk_size: int | None = None
) -> Figure:
    """Draw quantiles over tokens, per step (top) and per layer (bottom), a cell per model (see :func:`choose`)."""
    chosen = choose(sweep, protocol=protocol, dtype=dtype, chunk_size=chunk_size)
    names = {1.0: "worst token", 0.99: "99 %", 0.9: "90 %", 0.5: "median"}
    palette = sns.color_palette("rocket", 5)
    colour = dict(zip(names, palette[:4], strict=True))
    style, marker = _cycle(list(names), _STYLES), _cycle(list(names), _MARKERS)
    with _style():
        figure, axes = _grid(2, len(chosen), height=2.6, sharey=True)
        ratios, some = [], False
        for column, ds in enumerate(chosen):
            for row, by in enumerate(("step", "layer")):
                ax = axes[row][column]
                data = summary.tokens(Sweep([ds]), by)
                data = data[data["quantile"].isin(list(names))].assign(at=lambda f, by=by: f[by] + (by == "step"))
                for q in names:
                    frame = data[data["quantile"] == q]
                    _draw(ax, frame.assign(low=np.nan, high=np.nan), colour[q], style[q], marker[q])
                    some |= bool(frame["value"].notna().any())
                _note(ax, int(data["zeros"].sum()), int(data["nonfinite"].sum()))
                if row == 0:
                    middle, worst = (data[data["quantile"] == q]["value"].median() for q in (0.5, 1.0))
                    if middle > 0 and math.isfinite(worst):
                        ratios.append(worst / middle)
                    title = "{model}\n{protocol}, {dtype}, chunk {chunk_size}".format(**summary._identity(ds))
                    ax.set_title(title, fontsize=9)
                _name_x(
                    ax,
                    "chain step (1 = first chunk), final layer"
                    if row == 0
                    else "layer (0 = embeddings),\npast the first quarter of the chain",
                )
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if some:
            _log_y(axes[0][0])
        for row in (0, 1):
            axes[row][0].set_ylabel("relative L2 drift\nof a token's hidden state")
        lines = _lines({names[q]: {"color": colour[q], "linestyle": style[q], "marker": marker[q]} for q in names})
        title = "Drift of single tokens"
        if ratios:
            title = f"A chunk's worst token drifts {summary._range(ratios)} times as much as its median token"
        caption = "Quantiles over the tokens of a chunk; lines: geometric mean over documents (and late steps)."
        return _finish(figure, title, caption, [("quantile over tokens", lines)])


# ---------------------------------------------------------------------------------------------- 9
def nonfinite(sweep: Sweep) -> Figure | None:
    """Draw how many values are NaN or Inf per step, for the cells that have any; None if there are none."""
    bad = [ds for ds in sweep if int(ds["nonfinite_count"].sum()) or int(ds["logit_nonfinite_count"].sum())]
    if not bad:
        return None
    shown = bad[:10]
    colour, style = _colours(range(len(shown))), _cycle(range(len(shown)), _STYLES)
    with _style():
        figure, axes = _grid(1, 2, width=3.6, height=3.2)
        lines = {}
        for k, ds in enumerate(shown):
            hidden = ds["nonfinite_count"].transpose("layer", "document", "step").values.sum(axis=1)
            logits = ds["logit_nonfinite_count"].values.sum(axis=0)
            how = {"color": colour[k], "linestyle": style[k], "marker": _MARKERS[k % len(_MARKERS)], "markersize": 4}
            axes[0][0].plot(np.arange(1, hidden.shape[1] + 1), hidden.sum(axis=0) + logits, **how)
            axes[0][1].plot(ds["layer"].values, hidden.sum(axis=1), **how)
            lines["{model}\n{dtype} {protocol} {chunk_size}".format(**summary._identity(ds))] = how
        for ax, name in zip(axes[0], ("chain step (1 = first chunk)", "layer (0 = embeddings)"), strict=True):
            ax.set_yscale("symlog", linthresh=1)
            ax.set_ylim(bottom=0)
            _name_x(ax, name)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes[0][0].set_ylabel("values that are NaN or Inf\n(hidden states and logits)")
        axes[0][1].set_ylabel("(hidden states)")
        total = sum(int(ds["nonfinite_count"].sum()) + int(ds["logit_nonfinite_count"].sum()) for ds in bad)
        title = f"{total:,} values are NaN or Inf, in {len(bad)} of {len(sweep)} cells"
        caption = "Sum over documents; the axis is linear up to 1, then logarithmic."
        if len(bad) > len(shown):
            caption += f" The first {len(shown)} of {len(bad)} cells are drawn; the table lists all."
        return _finish(figure, title, caption, [("cell", _lines(lines))])


# ---------------------------------------------------------------------------------------------- 10
_SHAPES = {claims.Status.SUPPORTED: "o", claims.Status.REFUTED: "X", claims.Status.UNDETERMINED: "o",
           claims.Status.WITHHELD: "s"}  # fmt: skip
_SHADES = {claims.Status.SUPPORTED: "#0173b2", claims.Status.REFUTED: "#c44e00", claims.Status.UNDETERMINED: "0.35",
           claims.Status.WITHHELD: "0.55"}  # fmt: skip


def plateau_fit(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    *,
    protocol: str | None = None,
    setting: claims.Setting | None = None,
) -> Figure:
    """Draw what decides whether drift is a plateau: the deepest chain of each model (columns) and precision (rows).

    Each panel has the curve, the level over the judging window, the growth over it, and what growth at the margin would
    look like. Divergences are drawn as amplitudes, as they are judged.

    Parameters
    ----------
    measure, layer
        See :func:`drift.claims.audit`.
    protocol : str, optional
        Which reading of the fold; the first there is by default.
    setting : Setting, optional
        Margins and level.
    """
    _need(sweep)
    setting = setting or claims.Setting()
    part = sweep.sel(protocol=protocol or sweep.values("protocol")[0])
    believed = controls.evaluate(sweep).ok
    chains = list(claims.verdicts(part, measure, layer, setting))
    found = {(ds["model"].item(), ds["dtype"].item()): (ds, p) for ds, _, p in chains}
    models, dtypes = part.values("model"), _dtypes(part)
    colour, marker = _colours(dtypes), _cycle(dtypes, _MARKERS)
    clipped = 0
    with _style():
        wide = 5.4 if len(models) == 1 else 3.3
        figure, axes = _grid(len(dtypes), len(models), width=wide, height=3.1 + 1.1 / len(dtypes))
        for row, dtype in enumerate(dtypes):
            for column, model in enumerate(models):
                ax = axes[row][column]
                if (model, dtype) not in found:
                    ax.set_title(f"{model} {dtype}", fontsize=9)
                    ax.set_xticks([])
                    ax.set_yticks([])
                    _empty(ax, "no such cell")
                    continue
                ds, p = found[model, dtype]
                frame = summary._collapse(claims.amplitude(ds, measure, layer))
                frame = frame.assign(at=np.arange(1, len(frame) + 1))
                # a long noisy line would hide what is fitted to it
                thin: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6} if len(frame) > 100 else {"linewidth": 1.1}
                _draw(ax, frame, colour[dtype], "-", marker[dtype], zorder=2, **thin)
                if frame["value"].notna().any():
                    clipped += _frame_curve(ax, frame, p, setting, colour[dtype])
                    _window(ax, p, setting)
                else:
                    _empty(ax)
                _note(ax, int(frame["zeros"].sum()), int(frame["nonfinite"].sum()))
                ax.set_title(_fit_title(ds, p, believed), fontsize=8.4, loc="left")
                if row == len(dtypes) - 1:
                    _name_x(ax, "chain step (1 = first chunk)")
                if len(frame) > 8:
                    _log2_x(ax, frame["at"].tolist())
                else:
                    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
                ax.set_xlim(0.88, len(frame) * 1.25)
            root = "square root of\n" if claims.amplitude_power(measure) != 1 else ""
            axes[row][0].set_ylabel(f"{dtype}\n{root}{_label(measure, layer)}")
        kinds = [p.verdict.value.replace("_", " ") if believed else "no verdict" for _, _, p in chains]
        counted = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
        title = (
            f"Is drift flat at depth under {part.values('protocol')[0]}, within {_percent(setting.growth)} per "
            f"doubling? " + (f"Of {len(kinds)} chains: {counted}" if len(kinds) > 1 else f"One chain: {kinds[0]}")
        )
        caption = (
            f"{_BAND} Fits: last three quarters of the chain. Bars on the right: 95 % interval of the level, with "
            "arrows where it is wider than the panel. Triangle below: step by which drift has come to its level, "
            "median and range of documents. Every panel has its own vertical scale."
        )
        if clipped:
            caption += f" Arrows at the edge: {clipped} steps lie beyond the panel."
        return _finish(figure, title, caption, _fit_legends(dtypes, colour, marker, setting))


def _percent(x: float) -> str:
    return f"±{100 * x:g} %"


def _fit_legends(
    dtypes: Sequence[str], colour: dict[Any, Any], marker: dict[Any, Any], setting: claims.Setting
) -> list[tuple[str, list[Line2D]]]:
    fits: dict[Any, dict[str, Any]] = {
        "level": {"color": "black", "linewidth": 1.6},
        "growth, fitted": {"color": "black", "linewidth": 1.6, "linestyle": (0, (4, 2))},
        f"{_percent(setting.growth)} per doubling": {"color": "0.72", "linewidth": 7},
        "onset": {"color": "black", "marker": "^", "markersize": 5, "linewidth": 1},
    }
    return [
        ("precision", _lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes})),
        ("judging window", _lines(fits)),
    ]


def _fit_title(ds: Any, p: Plateau, believed: bool = True) -> str:
    """Name the chain, and say its verdict and its growth."""
    status = claims.Status.SUPPORTED if p.verdict.is_plateau else claims.Status.UNDETERMINED
    if p.verdict in (Verdict.GROWING, Verdict.DECAYING):
        status = claims.Status.REFUTED
    words = p.verdict.value.replace("_", " ") + (f" ({p.reason.value})" if p.reason else "")
    if not believed:
        status, words = claims.Status.WITHHELD, "no verdict: controls failed"
    lines = [
        "{model}, chunk {chunk_size}".format(**summary._identity(ds)),
        *textwrap.wrap(f"{claims.SIGNS[status]} {words}", 38),
    ]
    if math.isfinite(p.growth_per_doubling):
        low, high = (percent(x) for x in p.growth_interval)
        lines.append(f"{percent(p.growth_per_doubling)} per doubling ({low.rstrip(' %')} to {high})")
        if believed and (said := certificate(p)):
            lines += textwrap.wrap(said, 44)
    lines.append(f"{p.steps - 1} transitions, {p.documents} document{'s' * (p.documents != 1)}")
    return "\n".join(lines)


def _window(ax: Axes, p: Plateau, setting: claims.Setting) -> None:
    """Draw level, growth and margin over the judging window."""
    if not p.level > 0:
        return
    first = late_start(p.steps)
    steps = np.arange(first + 1, p.steps + 1)
    doublings = np.log2(steps)
    doublings = doublings - doublings.mean()  # the fitted line passes through the level here
    edge = math.log1p(setting.growth) * np.abs(doublings)
    fan = p.level * np.exp(-edge), p.level * np.exp(edge)
    ax.fill_between(steps, *fan, color="0.66", alpha=0.75, linewidth=0, zorder=3)
    ax.plot(steps[[0, -1]], [p.level, p.level], color="black", linewidth=1.6, zorder=4)
    if math.isfinite(p.growth_per_doubling) and p.growth_per_doubling > -1:
        growth = p.level * np.exp(math.log1p(p.growth_per_doubling) * doublings)
        ax.plot(steps, growth, color="black", linewidth=1.6, linestyle=(0, (4, 2)), zorder=4)
    bottom, top = ax.get_ylim()
    at = p.steps * 1.12
    ends = [max(p.level_interval[0], bottom), min(p.level_interval[1], top)]
    ax.plot([at, at], ends, color="black", linewidth=1.2, zorder=4)
    for end, edge, shape in zip(ends, (bottom, top), ("v", "^"), strict=True):
        shape = shape if end == edge else "_"  # an arrow where the interval goes on
        ax.plot([at], [end], color="black", marker=shape, markersize=5, clip_on=False, zorder=4)
    if math.isfinite(p.onset_step):
        foot = ax.get_xaxis_transform()
        ax.plot(p.onset_range, [0.04, 0.04], color="black", linewidth=1, transform=foot, zorder=5)
        ax.plot([p.onset_step], [0.04], color="black", marker="^", markersize=5, transform=foot, zorder=5)


def _frame_curve(ax: Axes, frame: pd.DataFrame, p: Plateau, setting: claims.Setting, colour: Any) -> int:
    """Choose the vertical axis by the late steps, so that a steep start does not squash them; count what is beyond."""
    late = frame[frame["at"] > windows(p.steps)[0]] if p.level > 0 else frame
    late = late if late["value"].notna().any() else frame
    low, high = late["low"].min(), late["high"].max()
    if p.level > 0:
        room = (1 + setting.growth) ** 1.2
        low, high = min(low, p.level / room), max(high, p.level * room)
    least, most = frame["low"].min(), frame["high"].max()
    low, high = least if least > low / 6 else low / 2, most if most < high * 6 else high * 2
    pad = max((high / low) ** 0.12, 1.06)
    low, high = low / pad**1.6, high * pad  # the onset's marker stands below
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    if high / low < 6:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    elif high / low < 200:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0), numticks=12))
    else:
        _decades(ax.yaxis)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}".replace("e-0", "e-")))
    ax.yaxis.set_minor_locator(NullLocator())
    beyond = 0
    for outside, height, shape in ((frame["value"] < low, 0.0, "v"), (frame["value"] > high, 1.0, "^")):
        steps = frame["at"][outside]
        how = {"color": colour, "marker": shape, "linestyle": "none", "markersize": 5, "clip_on": False}
        if len(steps):  # an empty line that is not clipped would count as lying at the figure's corner
            ax.plot(steps, np.full(len(steps), height), transform=ax.get_xaxis_transform(), zorder=6, **how)
        beyond += len(steps)
    return beyond


# ---------------------------------------------------------------------------------------------- 11
@dataclass(frozen=True)
class _Effect:
    """How a claim's estimates are drawn.

    Attributes
    ----------
    name : str
        Of the claim.
    question : str
        What the margin asks; a format string over the fields of :class:`drift.claims.Setting`.
    axis : str
    null : float
        No effect.
    log, percent : bool
        Of the axis.
    widest : tuple of float
        Estimates beyond are drawn as arrows.
    """

    name: str
    question: str
    axis: str
    null: float
    log: bool
    percent: bool
    widest: tuple[float, float]


_EFFECTS = {
    "C1": _Effect(
        "C1 plateau", "Is growth per doubling of depth within {growth}?", "growth per doubling of chain depth [%]",
        0.0, False, True, (-0.9, 2.0),
    ),
    "C2": _Effect(
        "C2 precision", "Is drift the same in every precision, within {precision}?",
        "log-log slope of drift on the unit roundoff [1]", 0.0, False, False, (-1.0, 2.5),
    ),
    "C3": _Effect(
        "C3 chunk size", "Is the change per doubling of the chunk size within {chunk}?",
        "change per doubling of the chunk size [%]", 0.0, False, True, (-0.9, 2.0),
    ),
    "C4": _Effect(
        "C4 level", "Are any two models' levels within a factor {family:g}?", "ratio of two models' levels [1]",
        1.0, True, False, (1 / 256, 256.0),
    ),
}  # fmt: skip


def equivalence(found: claims.Audit, claim: str = "C1") -> Figure | None:
    """Draw estimates and intervals of one claim against its margin, one row per finding of the headline measure.

    Parameters
    ----------
    found : Audit
        From :func:`drift.claims.audit`.
    claim : {"C1", "C2", "C3", "C4"}
        Growth with depth, slope on the unit roundoff, change with the chunk size, ratio of models.

    Returns
    -------
    Figure or None
        None where nothing could be estimated.

    Raises
    ------
    DatasetError
        If there is no such figure.
    """
    if claim not in _EFFECTS:
        raise DatasetError(f"there is no figure of claim {claim!r}; there are {', '.join(_EFFECTS)}")
    effect, setting = _EFFECTS[claim], found.setting
    summaries = [s for s in found.summaries if s.claim.name == effect.name]
    groups = [s for s in summaries if s.findings]
    if not any(math.isfinite(f.estimate) for s in groups for f in s.findings):
        return None
    shares = {n: _percent(getattr(setting, n)) for n in ("growth", "precision", "chunk")}
    title = f"{effect.question.format(**(vars(setting) | shares))} {claims.by_protocol(summaries).capitalize()}"
    limits = _reach(effect, [f for s in groups for f in s.findings], setting)
    labels = [["\n".join(textwrap.wrap(f.scope, 42)) for f in s.findings] for s in groups]
    # A second line stands on the left, of a long name, or on the right, of what certifies a plateau.
    extra = [
        [max(label.count("\n"), "certified" in f.detail) for label, f in zip(column, s.findings, strict=True)]
        for column, s in zip(labels, groups, strict=True)
    ]
    heights = [sum(0.27 + 0.14 * lines for lines in column) + 0.42 for column in extra]
    with _style():
        figure = Figure(figsize=(10.6, sum(heights) + 1.75), dpi=DPI, layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, s, names in zip(axes, groups, labels, strict=True):
            _forest(ax, effect, s, names, limits, setting)
        axes[-1].set_xlabel(effect.axis)
        for ax in axes[:-1]:
            ax.tick_params(labelbottom=False)
        cover = f"{100 * (1 - 2 * setting.alpha):g} %"
        caption = (
            f"One row per cell or group of cells; bars: {cover} intervals, which lie within the shaded margin where "
            "two one-sided tests pass; arrows: further out than the panel. Signs: what each row says by itself; the "
            "verdict on a protocol needs all rows to be supported, or one to be refuted after Holm's correction."
        )
        if claim == "C1":
            caption += (
                " Bars are of the judging window; a plateau may be certified on a longer one, which thin bars show "
                "where it decides (intervals at the level of that test), and a change late in the chain can take it "
                "away."
            )
        return _finish(figure, title, caption, _forest_legends(claim, found))


def _forest_legends(claim: str, found: claims.Audit) -> list[tuple[str, list[Line2D]]]:
    setting = found.setting
    drawn = [s for s in _SHAPES if (s is claims.Status.WITHHELD) == bool(found.withheld)]
    signs: dict[Any, dict[str, Any]] = {s.value: {**_sign(s), "linestyle": "-", "linewidth": 1.3} for s in drawn}
    references: dict[Any, dict[str, Any]] = {
        "no effect": {"color": "black", "linewidth": 1},
        "margin": {"color": "0.8", "linewidth": 8},
    }
    if claim == "C2":
        near = f"proportional (1 ± {setting.proportional:g})"
        references[near] = {"color": "0.45", "linestyle": (0, (1, 1.2)), "linewidth": 3}
    return [("verdict", _lines(signs)), ("reference", _lines(references))]


def _sign(status: claims.Status) -> dict[str, Any]:
    hollow = status is claims.Status.UNDETERMINED
    return {
        "color": _SHADES[status],
        "marker": _SHAPES[status],
        "markersize": 6.5,
        "markerfacecolor": "white" if hollow else _SHADES[status],
        "markeredgecolor": _SHADES[status],
    }


def _reach(effect: _Effect, findings: Sequence[claims.Finding], setting: claims.Setting) -> tuple[float, float]:
    """Choose the horizontal axis: margins and estimates, and of the intervals what does not squash them."""
    move: Callable[[float], float] = math.log if effect.log else float
    least, most = (move(x) for x in effect.widest)
    margins = [x for f in findings for x in f.margin if math.isfinite(x)]
    points = [move(x) for x in margins] + [move(effect.null)]
    wide = 3 * max((abs(p - move(effect.null)) for p in points), default=0.0)
    low, high = move(effect.null) - wide, move(effect.null) + wide
    if effect.name == "C2 precision":
        low, high = min(low, -0.15), max(high, 1 + 1.5 * setting.proportional)
    estimates = [f.estimate for f in findings if math.isfinite(f.estimate) and (f.estimate > 0 or not effect.log)]
    estimates = [min(max(move(x), least), most) for x in estimates]
    low, high = min([low, *estimates]), max([high, *estimates])
    core = high - low
    ends = [x for f in findings for x in f.interval if math.isfinite(x) and (x > 0 or not effect.log)]
    ends = [move(x) for x in ends]
    low = max(min([low, *ends]), low - 0.4 * core)
    high = min(max([high, *ends]), high + 0.4 * core)
    pad = 0.04 * (high - low)
    back: Callable[[float], float] = math.exp if effect.log else float
    return back(low - pad), back(high + pad)


def _forest(
    ax: Axes,
    effect: _Effect,
    s: claims.Summary,
    names: Sequence[str],
    limits: tuple[float, float],
    setting: claims.Setting,
) -> None:
    """Draw the rows of one protocol."""
    scale = 100.0 if effect.percent else 1.0
    low, high = (scale * x for x in limits)
    if effect.log:
        ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(len(names) - 0.4, -0.6)
    margins = {f.margin for f in s.findings if all(map(math.isfinite, f.margin))}
    for y, f in enumerate(s.findings):
        margin = f.margin if f.margin in margins else next(iter(margins)) if len(margins) == 1 else None
        if margin:
            ends = scale * margin[0], scale * margin[1]
            ax.fill_betweenx([y - 0.5, y + 0.5], *ends, color="0.8", linewidth=0, zorder=1)
        _interval(ax, y, f, scale, (low, high))
    if effect.name == "C2 precision":
        near = setting.proportional
        ax.axvspan(1 - near, 1 + near, facecolor="none", edgecolor="0.6", hatch="....", linewidth=0, zorder=0.5)
        ax.axvline(1, color="0.45", linestyle=(0, (1, 1.2)), linewidth=1.2, zorder=1.5)
    ax.axvline(scale * effect.null, color="black", linewidth=1, zorder=1.5)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.tick_params(axis="x", labelsize=8.5)
    ax.grid(False, axis="y")
    ax.set_title(f"{s.protocol}: {claims.SIGNS[s.status]} {s.status.value}", fontsize=10, loc="left", fontweight="bold")
    if effect.log:
        span = high / low
        subs = (1.0, 2.0, 5.0) if span < 2000 else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(9))


def _interval(ax: Axes, y: int, f: claims.Finding, scale: float, limits: tuple[float, float]) -> None:
    """Draw one estimate with its interval, cut off at the panel; the numbers stand on the right."""
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}
    if not math.isfinite(f.estimate):
        ax.text(1.012, y, f"no estimate ({f.status.value})", color="0.4", **beside)
        return
    low, high = limits
    ends = [scale * (x if math.isfinite(x) else math.copysign(math.inf, side))
            for x, side in zip(f.interval, (-1, 1), strict=True)]  # fmt: skip
    colour, at = _SHADES[f.status], scale * f.estimate
    inside = [min(max(x, low), high) for x in ends]
    ax.plot(inside, [y, y], color=colour, linewidth=1.5, solid_capstyle="butt", zorder=3)
    for end, edge, shape in ((ends[0] < low, low, "<"), (ends[1] > high, high, ">")):
        if end:
            ax.plot([edge], [y], marker=shape, color=colour, markersize=6, clip_on=False, zorder=4)
    if low <= at <= high:
        ax.plot([at], [y], linestyle="none", zorder=5, **_sign(f.status))
    words = claims.estimate(f)
    if certified := f.detail.get("certified"):
        ends = [min(max(scale * x, low), high) for x in certified["interval"]]
        ax.plot(ends, [y + 0.28] * 2, color=colour, linewidth=0.9, marker="|", markersize=4, zorder=3)
        ax.plot([scale * certified["growth"]], [y + 0.28], color=colour, marker="|", markersize=6, zorder=3)
        longer = replace(f, estimate=certified["growth"], interval=certified["interval"])
        words += f"\nfrom step {certified['from_step']}: {claims.estimate(longer)}"
    ax.text(1.012, y, words, color="0.15", **beside)


# ---------------------------------------------------------------------------------------------- output
def png(figure: Figure, colours: int = 192) -> bytes:
    """Render a figure as a small PNG (a palette of `colours`; the eye sees no difference, the file is a third)."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    buffer.seek(0)
    with Image.open(buffer) as image:
        small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="png", optimize=True)
    return out.getvalue()


def show(figure: Figure | None, name: str) -> None:
    """Show a figure in a notebook, with a name for its file and its title and caption for those who cannot see it."""
    if figure is None:
        return
    import base64

    from IPython.display import display

    title, caption = figure.get_suptitle(), figure.get_supxlabel()
    alt = " ".join(f"{title}. {caption}".split())
    display(
        {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": alt},
        raw=True,
        metadata={"image/png": {"alt": alt, "name": name}},
    )
