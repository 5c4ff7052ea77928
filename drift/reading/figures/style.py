"""What all figures share: colours, markers, axes, legends, and the choice of cells."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from drift import dataset
from drift.dataset.contract import VARIABLES
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import amplitudes
from drift.reading.amplitudes import amplitude_power
from drift.reading.cells import cell_identity

__all__ = [
    "COLUMNS",
    "CONSTANT",
    "DPI",
    "GLYPHS",
    "HIGHEST",
    "MARKERS",
    "MOST_PANELS",
    "PROPORTIONAL",
    "STYLES",
    "WIDEST",
    "amplitude_label",
    "axis_label",
    "cell_title",
    "choose",
    "colours_of",
    "count_steps",
    "cut_words",
    "cycle_styles",
    "decade_ticks",
    "draw_line",
    "dtypes_of",
    "groups",
    "has_layer_gaps",
    "legend_lines",
    "line_widths",
    "log2_x",
    "log_y",
    "make_figure",
    "make_grid",
    "model_title",
    "name_rungs",
    "name_x",
    "need_cells",
    "note_below",
    "panel_columns",
    "precision_colours",
    "precision_markers",
    "protocol_lines",
    "say_empty",
    "set_style",
    "sizes_words",
    "smallest_chunks",
    "wrap_panels",
]

DPI = 120
#: A figure fits on a screen: most pixels that one may have, at `DPI`.
WIDEST, HIGHEST = 1280, 900
#: Colours of precisions: each has its own in every figure, whatever is drawn beside it. People who see no red or no
#: green tell them apart, and so does who prints in grey: of two, one is clearly darker.
_RUNG_COLOURS = {"fp64": "#2b0a3d", "bf16": "#005fa8", "fp32": "#d55e00", "tf32": "#a8a060", "fp16": "#86c5f0"}
_RUNG_MARKERS = {"bf16": "o", "fp32": "s", "fp16": "^", "fp64": "D", "tf32": "v"}
STYLES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
)
#: How guides look: for what goes in proportion to the horizontal axis, and for what does not depend on it.
PROPORTIONAL: dict[str, Any] = {"color": "0.45", "linestyle": (0, (4, 2))}
CONSTANT: dict[str, Any] = {"color": "0.45", "linestyle": (0, (1, 1.5))}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


# ---------------------------------------------------------------------------------------------- style
@contextmanager
def set_style(scale: float = 1.0) -> Iterator[None]:
    """Draw in the style of all figures for the duration, with letters `scale` times as large."""
    with (
        mpl.rc_context(),
        sns.axes_style("whitegrid", {"grid.color": "0.9", "axes.edgecolor": "0.6"}),
        sns.plotting_context("notebook", font_scale=0.82 * scale),
    ):
        mpl.rcParams["font.family"] = "DejaVu Sans"
        yield


def make_figure(width: float, height: float) -> Figure:
    """Make a figure of that many inches, or as many as fit on a screen."""
    size = min(width, WIDEST / DPI), min(height, HIGHEST / DPI)
    return Figure(figsize=size, dpi=DPI, layout="constrained")


def make_grid(
    rows: int, columns: int, *, width: float = 3.3, height: float = 2.9, beside: float = 1.7, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure of panels, with so much room `beside` them for legends; all in inches, as far as a screen goes."""
    figure = make_figure(max(width * columns + beside, 6.4), height * rows + 1.1)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, axes


def colours_of(names: Sequence[Any]) -> dict[Any, Any]:
    """Give each name a colour that colour-blind people can tell from its neighbours."""
    palette = sns.color_palette("colorblind", 10)
    order = [0, 3, 2, 1, 4, 7, 9, 5, 6, 8]  # blue and vermilion first: they differ in lightness too
    return {name: palette[order[k % 10]] for k, name in enumerate(names)}


def precision_colours(dtypes: Sequence[str]) -> dict[str, Any]:
    """Give each precision its colour; what is no rung of the ladder gets one of the rest."""
    return colours_of(dtypes) | {d: _RUNG_COLOURS[d] for d in dtypes if d in _RUNG_COLOURS}


def precision_markers(dtypes: Sequence[str]) -> dict[str, str]:
    """Give each precision its marker, as :func:`precision_colours` its colour."""
    return cycle_styles(dtypes, MARKERS) | {d: _RUNG_MARKERS[d] for d in dtypes if d in _RUNG_MARKERS}


def cycle_styles(names: Sequence[Any], styles: Sequence[Any]) -> dict[Any, Any]:
    """Give each name a style, in turn."""
    return {name: styles[k % len(styles)] for k, name in enumerate(names)}


def line_widths(dtypes: Sequence[str]) -> dict[str, float]:
    """Draw coarser precisions thicker and first: where curves coincide, both remain visible."""
    return {name: 1.2 + 1.4 * (1 - k / max(len(dtypes) - 1, 1)) * (len(dtypes) > 1) for k, name in enumerate(dtypes)}


def dtypes_of(sweep: Sweep) -> list[str]:
    """Precisions, coarse first."""
    pairs = sorted({(-ds["unit_roundoff"].item(), ds["dtype"].item()) for ds in sweep})
    return [name for _, name in pairs]


def axis_label(measure: str, layer: int | str | None = None) -> str:
    """Name a measure and its units on an axis."""
    row = VARIABLES[measure]
    name = row.long_name if layer is None else amplitudes.measure_name(measure, layer)
    return textwrap.fill(name, 30) + (f"\n[{row.units}]" if row.units != "1" else "")


def name_rungs(ax: Axes, rungs: dict[float, str]) -> None:
    """Name the precisions on the horizontal axis; of two that stand close together, the second one line lower."""
    names, before, lower = [], 0.0, False
    for u in sorted(rungs):
        lower = not lower and bool(before) and math.log(u / before) < 0.16 * math.log(max(rungs) / min(rungs))
        names.append("\n\n" * lower + f"{rungs[u]}\n{u:.0e}".replace("e-0", "e-"))
        before = u
    ax.set_xticks(sorted(rungs), names, fontsize=7.5)


def decade_ticks(axis: Any, most: int = 8) -> None:
    """Mark the decades of a logarithmic axis, or every second or third of them, and nothing between."""
    axis.set_major_locator(LogLocator(numticks=most))
    axis.set_minor_locator(NullLocator())


def log_y(ax: Axes, most: int = 8) -> None:
    """Make the vertical axis logarithmic, with numbers on it whatever its range; about so many at most."""
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
        decade_ticks(ax.yaxis, most)
    ax.yaxis.set_minor_formatter(NullFormatter())


def log2_x(ax: Axes, values: Sequence[float]) -> None:
    """Base-2 axis with plain numbers."""
    ax.set_xscale("log", base=2)
    low, high = min(values), max(values)
    ticks = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    ticks = [t for t in ticks if low * 0.99 <= t <= high * 1.01] or [low]
    every = max(1, math.ceil(len(ticks) / 6))
    ax.set_xticks(ticks[::every])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())


def note_below(ax: Axes, zeros: int, bad: int) -> None:
    """Say below the panel what a log axis cannot show."""
    parts = [f"{n:,} {what}" for n, what in ((zeros, "exactly 0"), (bad, "NaN or Inf")) if n]
    if parts:
        text = "(not drawn: " + ", ".join(parts) + ")"
        ax.set_xlabel(f"{ax.get_xlabel()}\n{text}".lstrip("\n"))


def name_x(ax: Axes, name: str) -> None:
    """Name the horizontal axis; a note that is already there stays below the name."""
    ax.set_xlabel(f"{name}\n{ax.get_xlabel()}".rstrip("\n"))


def say_empty(ax: Axes, words: str = "nothing to draw") -> None:
    """Say in the middle of a panel why nothing is drawn."""
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color="0.4")


def legend_lines(label_to_style: dict[Any, dict[str, Any]]) -> list[Line2D]:
    """Handles of a legend from labels and line styles."""
    return [Line2D([], [], label=str(label), **style) for label, style in label_to_style.items()]


def protocol_lines(protocols: Sequence[str], markersize: float = 4) -> list[Line2D]:
    """Handles of a legend of protocols."""
    style, marker = cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    how = {"color": "0.25", "markersize": markersize}
    return legend_lines({p: {**how, "linestyle": style[p], "marker": marker[p]} for p in protocols})


def model_title(sweep: Sweep, model: str) -> str:
    """Title of a model's panel: its name and family."""
    family = next(str(ds["family"].item()) for ds in sweep if ds["model"].item() == model)
    return f"{model}\n({family})"


def cell_title(ds: Any) -> str:
    """Title of the panel of one cell."""
    return "{model}\n{protocol}, {dtype}, chunk {chunk_size}".format(**cell_identity(ds))


def count_steps(ax: Axes, last: int, bins: int = 8) -> None:
    """Mark chain steps as whole numbers; of a long chain its doublings."""
    if last > 8:
        log2_x(ax, [1, last])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=bins))


def has_layer_gaps(ds: Any) -> bool:
    """Whether layers were left out of the cell (see :mod:`drift.dataset.thinning`)."""
    return bool(ds.sizes["layer"] <= ds["layer"].values[-1])


def need_cells(sweep: Sweep) -> None:
    """Refuse a sweep without cells.

    Raises
    ------
    DatasetError
        There is nothing to draw.
    """
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
    need_cells(sweep)
    cells = []
    for model in sweep.values("model"):
        part = sweep.sel(model=model)
        part = part.sel(protocol=protocol or part.values("protocol")[0])
        part = part.sel(dtype=dtype or dtypes_of(part)[0])
        part = part.sel(chunk_size=chunk_size or min(part.values("chunk_size")))
        cells.append(max(part.cells, key=lambda ds: ds.sizes["step"]))
    return sweep.derive(cells)


def smallest_chunks(sweep: Sweep, chunk_size: int | None = None) -> Sweep:
    """Keep the cells of a chunk size; where none is given, of the smallest one of each model and protocol."""
    if chunk_size is not None:
        return sweep.sel(chunk_size=chunk_size)
    size: dict[tuple[str, str], int] = {}
    for ds in sweep:
        size[_fold(ds)] = min(size.get(_fold(ds), ds["chunk_size"].item()), ds["chunk_size"].item())
    return dataset.keep(sweep, lambda ds: ds["chunk_size"].item() == size[_fold(ds)])


def _fold(ds: Any) -> tuple[str, str]:
    return ds["model"].item(), ds["protocol"].item()


def sizes_words(sweep: Sweep) -> str:
    """Name the chunk sizes of cells in a panel's title: ``chunk 64``, ``chunks 64 to 128``."""
    sizes = sorted(sweep.values("chunk_size"))
    return f"chunk {sizes[0]}" if len(sizes) == 1 else f"chunks {sizes[0]} to {sizes[-1]}"


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


def draw_line(
    ax: Axes, frame: pd.DataFrame, colour: Any, style: Any, marker: str, x: str = "at", **options: Any
) -> None:
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


COLUMNS = 3
#: More panels than this do not fit on a screen, four in a row.
MOST_PANELS = 12
GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚✖★", strict=True))


def panel_columns(count: int) -> int:
    """How many of so many panels stand in a row."""
    if count == 4:
        return 2  # rather than three and one alone
    return min(count, COLUMNS if count <= COLUMNS**2 else COLUMNS + 1)


def cut_words(drawn: int, there: int, what: str) -> str:
    """Say in a caption, after its last sentence, what is not drawn of more than a screen holds."""
    return f" The first {drawn} of {there} {what} are drawn; the table lists all." if drawn < there else ""


def wrap_panels(count: int, *, height: float, width: float = 3.4, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Make `count` panels, at most three in a row (four where there are many); what would be left over is not drawn."""
    columns = panel_columns(count)
    rows = math.ceil(count / columns)
    figure, axes = make_grid(rows, columns, width=width, height=height, **shared)
    for ax in axes.ravel()[count:]:
        ax.set_axis_off()
    return figure, list(axes.ravel()[:count])


def amplitude_label(measure: str, layer: int | str) -> str:
    """Name the amplitude of a measure on an axis."""
    return ("square root of\n" if amplitude_power(measure) != 1 else "") + axis_label(measure, layer)
