"""What drift does to the next-token distribution, along the chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.reading.figures.captions import chosen_size, late_of
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    MARKERS,
    STYLES,
    count_steps,
    cycle_styles,
    draw_line,
    dtypes_of,
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
from drift.reading.summary.levels import late_mean
from drift.reading.wording import numbers
from drift.reading.wording.windows import late_words

__all__ = ["logits_per_step"]


@dataclass(frozen=True)
class _Row:
    """A row of panels: what its axis is called, its values [document, step] of a cell, and whether its axis is log."""

    name: str
    take: Callable[[xr.Dataset], np.ndarray]
    log: bool = False


_ROWS = (
    _Row("KL(full ‖ fold)\n[nat per token]", lambda ds: dataset.curve(ds, "logit_kl"), log=True),
    _Row("other most likely token\n[% of tokens]", lambda ds: 100 * (1 - dataset.curve(ds, "top1_agreement"))),
    _Row("NLL, fold − full\n[nat per token]", lambda ds: dataset.curve(ds, "nll_fold") - dataset.curve(ds, "nll_full")),
    _Row("NLL\n[nat per token]", lambda ds: dataset.curve(ds, "nll_fold")),
)


def logits_per_step(sweep: Sweep, chunk_size: int | None = None) -> Figure:
    """Draw what drift does to the next-token distribution, per step; colour by precision, line style by protocol.

    Parameters
    ----------
    chunk_size : int, optional
        The smallest of each model and protocol by default.
    """
    need_cells(sweep)
    drawn = smallest_chunks(sweep, chunk_size)
    models, dtypes, protocols = drawn.values("model"), dtypes_of(drawn), drawn.values("protocol")
    with set_style():
        figure, axes = make_grid(len(_ROWS), len(models), height=1.6, sharex="col", sharey="row")
        for column, model in enumerate(models):
            part = drawn.sel(model=model)
            for row, what in enumerate(_ROWS):
                _panel(axes[row][column], part, what, dtypes, protocols)
            _full_attention(axes[-1][column], part)
            axes[0][column].set_title(f"{model_title(drawn, model)}, {sizes_words(part)}", fontsize=9.5)
            name_x(axes[-1][column], "chain step (1 = first chunk)")
        for row, what in enumerate(_ROWS):
            axes[row][0].set_ylabel(what.name)
            if what.log:
                log_y(axes[row][0], 5)
        for ax in axes.ravel():
            count_steps(ax, max(ds.sizes["step"] for ds in drawn))
        caption = (
            "Lines: mean over documents (KL: geometric); bands: smallest to largest document. Full attention: the NLL "
            "of the coarsest precision, along the longest chain. In the title: means "
            f"{late_of(ds.sizes['step'] for ds in drawn)}. {chosen_size(chunk_size)}"
        )
        return finish_figure(figure, _title(drawn), caption, _legends(dtypes, protocols))


def _panel(ax: Axes, part: Sweep, what: _Row, dtypes: list[str], protocols: list[str]) -> None:
    """Draw one quantity of one model's cells."""
    colour, width = precision_colours(dtypes), line_widths(dtypes)
    style, marker = cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    zeros, bad, drawn = 0, 0, False
    for ds in part:
        values = what.take(ds)
        frame = _mean(values, what.log)
        zeros, bad = zeros + int(frame["zeros"].sum()), bad + int((~np.isfinite(values)).sum())
        drawn |= bool(frame["value"].notna().any())
        key, how = ds["dtype"].item(), ds["protocol"].item()
        draw_line(ax, frame, colour[key], style[how], marker[how], linewidth=width[key], markersize=3.5)
    note_below(ax, zeros, bad)
    if not drawn:
        say_empty(ax)


def _full_attention(ax: Axes, part: Sweep) -> None:
    """Draw the NLL of full attention, at the coarsest precision there is, along the longest chain."""
    coarsest = max(part, key=lambda ds: (float(ds["unit_roundoff"].item()), ds.sizes["step"]))
    frame = _mean(dataset.curve(coarsest, "nll_full"), log=False)
    ax.plot(frame["at"], frame["value"], color="black", linewidth=0.9, zorder=5)


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


def _title(drawn: Sweep) -> str:
    """Say how often the most likely token is another one, in the cells that are drawn."""
    parts = []
    for protocol in drawn.values("protocol"):
        shares = [100 * (1 - late_mean(ds, "top1_agreement")) for ds in drawn.sel(protocol=protocol)]
        unit = " %" if np.isfinite(shares).any() else ""
        parts.append(f"{numbers.range_words(shares)}{unit} under {protocol}")
    return f"{late_words().capitalize()} of the chain the most likely next token differs for {', '.join(parts)}"


def _legends(dtypes: list[str], protocols: list[str]) -> list[tuple[str, list[Line2D]]]:
    colour = precision_colours(dtypes)
    full: dict[Any, Any] = {"full attention": {"color": "black", "linewidth": 0.9}}
    return [
        ("precision", legend_lines({d: {"color": colour[d], "linewidth": 3} for d in dtypes})),
        ("protocol", protocol_lines(protocols)),
        ("NLL row", legend_lines(full)),
    ]
