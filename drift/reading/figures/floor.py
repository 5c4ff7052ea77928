"""The picture that decides: drift and the rounding floor of full attention, and one over the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift.dataset.choosing import keep
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import floor as verdicts
from drift.reading.amplitudes import measure_values
from drift.reading.cells import deepest, judged_chains
from drift.reading.controls.gating import gate
from drift.reading.excess import excess_values, floor_values, missing
from drift.reading.figures.captions import BAND
from drift.reading.figures.finishing import Legends, finish_figure
from drift.reading.figures.style import (
    axis_label,
    count_steps,
    draw_line,
    dtypes_of,
    legend_lines,
    line_widths,
    log_y,
    make_grid,
    model_title,
    name_x,
    note_below,
    precision_colours,
    precision_markers,
    set_style,
)
from drift.reading.quantities import Of
from drift.reading.statistics.levels import collapse_documents
from drift.reading.wording.numbers import number

__all__ = ["drift_and_floor"]

_DRIFT, _FLOOR = "-", (0, (1, 1.2))
#: The first page is read on telephones, too: letters this much larger than elsewhere, on so many inches.
_LETTERS, _COLUMN, _ROW = 1.3, 2.75, 1.9
#: Levels of precisions that lie this factor apart leave room for their names between the lines.
_APART = 30.0
#: Inches that larger words over and under the panels take beside those of every figure.
_WORDS = 1.0
_DRAWN = "Drawn: of every model and precision the deepest chain. "
#: An excess this many times what is at the floor is drawn on a logarithmic axis.
_WIDE = 5.0


def drift_and_floor(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    protocol: str = "append",
    factor: float = verdicts.FACTOR,
) -> Figure:
    """Draw drift beside its rounding floor, a column per model, and the excess below it.

    Of every model and precision the deepest chain is drawn, and of chains as deep the one of more documents. The title
    counts all that verdicts on depth rest on (:func:`drift.reading.cells.judged_chains`), as the claims table does.

    Parameters
    ----------
    sweep : Sweep
        Cells without a floor are left out.
    measure : str
        A key of :data:`drift.dataset.contract.FLOORS`.
    layer : int or "last"
    protocol : str
    factor : float
        Around 1, within which a level is at the floor: drawn as a band.

    Raises
    ------
    DatasetError
        If no cell of the protocol has a floor for this measure.
    """
    there = keep(sweep, lambda ds: _has_floor(ds, measure, protocol))
    cells, judged = sweep.derive(deepest(there)), judged_chains(there)
    if not len(cells):
        raise DatasetError(f"no cell of {protocol} carries the rounding floor of {measure}")
    models, dtypes = cells.values("model"), dtypes_of(cells)
    with set_style(_LETTERS):
        figure, axes = make_grid(2, len(models), width=_COLUMN, height=_ROW, beside=0.2, sharey="row")
        figure.set_figheight(figure.get_figheight() + _WORDS)
        for column, model in enumerate(models):
            mine = {ds["dtype"].item(): ds for ds in cells if ds["model"].item() == model}
            _levels(axes[0][column], mine, dtypes, measure, layer)
            _excess(axes[1][column], mine, dtypes, measure, layer, factor)
            axes[0][column].set_title(model_title(cells, model), fontsize=8.5 * _LETTERS)
            last = max(ds.sizes["step"] for ds in mine.values())
            for ax in axes[:, column]:
                count_steps(ax, last, bins=5)
                ax.set_xlim(0.85, last * 1.2)
            name_x(axes[1][column], "chain step")
        log_y(axes[0][0], 5)
        axes[0][0].set_ylabel(axis_label(measure, layer), fontsize=8 * _LETTERS)
        axes[1][0].set_ylabel("drift / floor")
        low, high = axes[1][0].get_ylim()
        if wide := high > _WIDE * factor:
            log_y(axes[1][0], 5)
        else:
            axes[1][0].set_ylim(max(0.0, min(low, 0.8 / factor)), max(high, 1.2 * factor))
        named = _name_lines(axes[0], cells, models, dtypes, measure, layer)
        asked = gate(sweep)
        found = [verdicts.rounding(ds, measure, layer, asked, factor=factor) for ds in judged]
        caption = (
            f"{BAND} Floor: full attention against itself, its embeddings disturbed by one unit roundoff. Shaded: "
            f"within a factor {number(factor, 3)} of the floor. {_DRAWN * (len(judged) > len(cells))}Step 1 is the "
            f"first chunk. Log scale {'in both rows' if wide else 'above'}."
        )
        title = verdicts.headline(protocol, found)
        return finish_figure(figure, title, caption, _legends(dtypes, named), strip=True, scale=_LETTERS)


def _name_lines(
    axes: Sequence[Axes], cells: Sweep, models: Sequence[str], dtypes: Sequence[str], measure: str, layer: int | str
) -> bool:
    """Write the precisions beside their lines where these lie far enough apart in every panel; whether they do."""
    floors = {
        (ds["model"].item(), ds["dtype"].item()): _frame(floor_values(ds, measure, layer))["value"].iloc[0]
        for ds in cells
    }
    for model in models:
        mine = sorted(level for (name, _), level in floors.items() if name == model)
        if not all(level > 0 for level in mine) or any(b / a < _APART for a, b in itertools.pairwise(mine)):
            return False
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high * (high / low) ** 0.12)  # the name stands above the line
    colour = precision_colours(dtypes)
    for ax, model in zip(axes, models, strict=True):
        for dtype in dtypes:
            if (model, dtype) in floors:
                ax.annotate(dtype, (1, floors[model, dtype]), (0, 4), textcoords="offset points", color=colour[dtype],
                            fontweight="bold", fontsize=8 * _LETTERS, va="bottom", ha="left")  # fmt: skip
    return True


def _has_floor(ds: xr.Dataset, measure: str, protocol: str) -> bool:
    return bool(ds["protocol"].item() == protocol and missing(ds, measure, Of.EXCESS) is None)


def _frame(values: Any) -> pd.DataFrame:
    frame = collapse_documents(values)
    return frame.assign(at=range(1, len(frame) + 1))


def _levels(ax: Axes, cells: dict[str, xr.Dataset], dtypes: Sequence[str], measure: str, layer: int | str) -> None:
    """Draw drift and floor of one model."""
    colour, marker, width = precision_colours(dtypes), precision_markers(dtypes), line_widths(dtypes)
    zeros = bad = 0
    for dtype, ds in cells.items():
        drift = _frame(measure_values(ds, measure, layer))
        draw_line(ax, drift, colour[dtype], _DRIFT, marker[dtype], linewidth=width[dtype])
        draw_line(ax, _frame(floor_values(ds, measure, layer)), colour[dtype], _FLOOR, "", linewidth=width[dtype])
        zeros, bad = zeros + int(drift["zeros"].sum()), bad + int(drift["nonfinite"].sum())
    note_below(ax, zeros, bad)


def _excess(
    ax: Axes, cells: dict[str, xr.Dataset], dtypes: Sequence[str], measure: str, layer: int | str, factor: float
) -> None:
    """Draw drift over floor of one model."""
    colour, marker, width = precision_colours(dtypes), precision_markers(dtypes), line_widths(dtypes)
    ax.axhspan(1 / factor, factor, color="0.5", alpha=0.14, linewidth=0)
    ax.axhline(1, color="0.4", linewidth=0.9)
    for dtype, ds in cells.items():
        excess = _frame(excess_values(ds, measure, layer))
        draw_line(ax, excess, colour[dtype], _DRIFT, marker[dtype], linewidth=width[dtype])


def _legends(dtypes: Sequence[str], named: bool) -> Legends:
    colour, marker = precision_colours(dtypes), precision_markers(dtypes)
    precisions: dict[Any, Any] = {d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes}
    lines: dict[Any, Any] = {
        "drift": {"color": "0.25", "linestyle": _DRIFT},
        "rounding floor": {"color": "0.25", "linestyle": _FLOOR},
    }
    of_lines = ("line", legend_lines(lines))
    return [of_lines] if named else [("precision", legend_lines(precisions)), of_lines]
