"""Chains with what certifies their plateau."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from drift.dataset.sweep import Sweep
from drift.reading import amplitudes, cells, controls
from drift.reading.claims import model as claims_model
from drift.reading.claims import saturation
from drift.reading.figures.captions import BAND, judged_of
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    amplitude_label,
    count_steps,
    decade_ticks,
    draw_line,
    dtypes_of,
    legend_lines,
    make_grid,
    name_x,
    need_cells,
    note_below,
    precision_colours,
    precision_markers,
    say_empty,
    set_style,
)
from drift.reading.plateau.model import Plateau, Verdict
from drift.reading.plateau.wording import certificate
from drift.reading.statistics import intervals, levels
from drift.reading.statistics.windows import late_start, windows
from drift.reading.wording.numbers import coverage, percent

__all__ = ["margin_percent", "plateau_fit"]


def plateau_fit(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    *,
    protocol: str | None = None,
    setting: claims_model.Setting | None = None,
) -> Figure:
    """Draw what decides whether drift is a plateau: the deepest chain of each model (columns) and precision (rows).

    Each panel has the curve, the level over the judging window, the growth over it, and what growth at the margin would
    look like. Divergences are drawn as amplitudes, as they are judged.

    Parameters
    ----------
    measure, layer
        See :func:`drift.reading.claims.auditing.audit`.
    protocol : str, optional
        Which reading of the fold; the first there is by default.
    setting : Setting, optional
        Margins and level.
    """
    need_cells(sweep)
    setting = setting or claims_model.Setting()
    part = sweep.sel(protocol=protocol or sweep.values("protocol")[0])
    believed = controls.gate(sweep).is_open
    chains = list(saturation.verdicts(part, measure, layer, setting))
    found = {(ds["model"].item(), ds["dtype"].item()): (ds, p) for ds, _, p in chains}
    models, every = part.values("model"), dtypes_of(part)
    dtypes = list(dict.fromkeys([every[0], every[-1]]))  # more rows than these do not fit on a screen
    colour, marker = precision_colours(dtypes), precision_markers(dtypes)
    clipped = 0
    with set_style():
        wide = 5.4 if len(models) == 1 else 3.3
        figure, axes = make_grid(len(dtypes), len(models), width=wide, height=3.1 + 1.1 / len(dtypes))
        for row, dtype in enumerate(dtypes):
            for ax, model in zip(axes[row], models, strict=True):
                if (model, dtype) not in found:
                    _no_chain(ax, f"{model} {dtype}")
                    continue
                ds, p = found[model, dtype]
                frame = levels.collapse_documents(amplitudes.amplitude(ds, measure, layer))
                frame = frame.assign(at=np.arange(1, len(frame) + 1))
                clipped += _fit_panel(ax, frame, p, setting, colour[dtype], marker[dtype])
                ax.set_title(_fit_title(ds, p, believed), fontsize=8.4, loc="left")
                if row == len(dtypes) - 1:
                    name_x(ax, "chain step (1 = first chunk)")
            axes[row][0].set_ylabel(f"{dtype}\n{amplitude_label(measure, layer)}")
        drawn = [p for ds, _, p in chains if ds["dtype"].item() in dtypes]
        title = _fits_title(part.values("protocol")[0], drawn, setting, believed)
        caption = (
            f"{BAND} Fits: {judged_of(p.steps for p in drawn)}. Bars on the right: "
            f"{coverage(intervals.LEVEL_ALPHA)} interval of the level, with arrows where it is wider than the panel. "
            "Triangle below: step by which drift has come to its level, median and range of documents. Every panel has "
            "its own vertical scale."
        )
        if clipped:
            caption += f" Arrows at the edge: {clipped} steps lie beyond the panel."
        if len(every) > len(dtypes):
            caption += " Of the precisions the coarsest and the finest."
        return finish_figure(figure, title, caption, _fit_legends(dtypes, colour, marker, setting))


def _no_chain(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    say_empty(ax, "no such cell")


def _fit_panel(
    ax: Axes, frame: pd.DataFrame, p: Plateau, setting: claims_model.Setting, colour: Any, marker: str
) -> int:
    """Draw one chain and what was fitted to it; returns how many steps lie beyond the panel."""
    clipped = 0
    # a long noisy line would hide what is fitted to it
    thin: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6} if len(frame) > 100 else {"linewidth": 1.1}
    draw_line(ax, frame, colour, "-", marker, zorder=2, **thin)
    if frame["value"].notna().any():
        clipped = _frame_curve(ax, frame, p, setting, colour)
        _window(ax, p, setting)
    else:
        say_empty(ax)
    note_below(ax, int(frame["zeros"].sum()), int(frame["nonfinite"].sum()))
    count_steps(ax, len(frame))
    ax.set_xlim(0.88, len(frame) * 1.25)
    return clipped


def _fits_title(protocol: str, found: Sequence[Plateau], setting: claims_model.Setting, believed: bool) -> str:
    """Ask the question, and count the verdicts."""
    kinds = [p.verdict.value.replace("_", " ") if believed else "no verdict" for p in found]
    counted = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
    return f"Is drift flat at depth under {protocol}, within {margin_percent(setting.growth)} per doubling? " + (
        f"Of {len(kinds)} chains: {counted}" if len(kinds) > 1 else f"One chain: {kinds[0]}"
    )


def margin_percent(x: float) -> str:
    """Write a margin as a percentage with both signs."""
    return f"±{100 * x:g} %"


def _fit_legends(
    dtypes: Sequence[str], colour: dict[Any, Any], marker: dict[Any, Any], setting: claims_model.Setting
) -> list[tuple[str, list[Line2D]]]:
    fits: dict[Any, dict[str, Any]] = {
        "level": {"color": "black", "linewidth": 1.6},
        "growth, fitted": {"color": "black", "linewidth": 1.6, "linestyle": (0, (4, 2))},
        f"{margin_percent(setting.growth)} per doubling": {"color": "0.72", "linewidth": 7},
        "onset": {"color": "black", "marker": "^", "markersize": 5, "linewidth": 1},
    }
    return [
        ("precision", legend_lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes})),
        ("judging window", legend_lines(fits)),
    ]


def _fit_title(ds: Any, p: Plateau, believed: bool = True) -> str:
    """Name the chain, and say its verdict and its growth."""
    status = claims_model.Status.SUPPORTED if p.verdict.is_plateau else claims_model.Status.UNDETERMINED
    if p.verdict in (Verdict.GROWING, Verdict.DECAYING):
        status = claims_model.Status.REFUTED
    words = p.verdict.value.replace("_", " ") + (f" ({p.reason.value})" if p.reason else "")
    if not believed:
        status, words = claims_model.Status.WITHHELD, "no verdict: controls failed"
    lines = [
        "{model}, chunk {chunk_size}".format(**cells.cell_identity(ds)),
        *textwrap.wrap(f"{claims_model.SIGNS[status]} {words}", 38),
    ]
    if math.isfinite(p.growth_per_doubling):
        low, high = (percent(x) for x in p.growth_interval)
        lines.append(f"{percent(p.growth_per_doubling)} per doubling ({low.rstrip(' %')} to {high})")
        if believed and (said := certificate(p)):
            lines += textwrap.wrap(said, 44)
    lines.append(f"{p.steps - 1} transitions, {p.documents} document{'s' * (p.documents != 1)}")
    return "\n".join(lines)


def _window(ax: Axes, p: Plateau, setting: claims_model.Setting) -> None:
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


def _frame_curve(ax: Axes, frame: pd.DataFrame, p: Plateau, setting: claims_model.Setting, colour: Any) -> int:
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
        decade_ticks(ax.yaxis)
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
