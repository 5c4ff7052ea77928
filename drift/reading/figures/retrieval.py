"""What was found again: by depth and length, beside full attention, beyond a window, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift.dataset.sweep import scalar
from drift.reading.claims.cost import growth_of_steps, whole_steps
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    DPI,
    MARKERS,
    MOST_PANELS,
    STYLES,
    WIDEST,
    colours_of,
    cut_words,
    cycle_styles,
    legend_lines,
    log2_x,
    log_y,
    make_figure,
    panel_columns,
    say_empty,
    set_style,
    wrap_panels,
)
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.proportions import effective_share
from drift.reading.tasks import PREDICTORS, costs, is_folded, items, predicting, retrieval
from drift.reading.wording.numbers import coverage
from drift.reading.wording.tasks import found_words, predictor_words, within_words

__all__ = ["costs_of_steps", "failure_against_drift", "found_by_depth", "found_by_distance", "likelihood_by_task"]

_DEPTHS = 5  # bands of depth in a text
_FULL = "full attention"


def _panels(frame: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Model, lane and items of every panel: full attention of a model once, then each fold and chunk size."""
    found: list[tuple[str, str, pd.DataFrame]] = []
    for model, own in frame.groupby("model", sort=True):
        once = own.drop_duplicates(["dtype", "task", "tokens", "document", "question"])
        found.append((str(model), _FULL, once.assign(exact=once["exact_full"])))
        for (protocol, size), part in own.groupby(["protocol", "chunk_size"], sort=True):
            found.append((str(model), f"{protocol}, chunk {size}", part.assign(exact=part["exact_fold"])))
    return found


def found_by_depth(cells: Sequence[xr.Dataset]) -> Figure | None:
    """Draw the share of single needles that is found, by length and depth: a panel per fold."""
    frame = items(retrieval(cells))
    if not len(frame):
        return None
    there = _panels(frame)
    panels, lengths = there[:MOST_PANELS], sorted(frame["tokens"].unique())
    with set_style():
        figure, axes = wrap_panels(len(panels), height=2.3, width=3.0, sharey=True)
        images = []
        for ax, (model, lane, part) in zip(axes, panels, strict=True):
            images.append(_heat(ax, part, lengths))
            ax.set_title(f"{lane}\n{model}", fontsize=9)
            ax.set_xlabel("tokens of the prompt", fontsize=8.5)
        for ax in axes[:: panel_columns(len(axes))]:
            ax.set_ylabel("depth of the needle\n(0 = first token)", fontsize=8.5)
        figure.colorbar(images[-1], ax=axes, label="share found [1]", shrink=0.7)
        caption = (
            "Numbers: exact answers of trials. Empty: nothing was hidden there."
            f"{cut_words(len(panels), len(there), 'folds and models')}"
        )
        return finish_figure(figure, f"What is found again? {found_words(frame)}", caption)


def _heat(ax: Axes, part: pd.DataFrame, lengths: Sequence[int]) -> Any:
    band = np.minimum((part["depth"] * _DEPTHS).astype(int), _DEPTHS - 1)
    grid = np.full((_DEPTHS, len(lengths)), np.nan)
    for (row, tokens), own in part.groupby([band, "tokens"]):
        column = lengths.index(tokens)
        grid[row, column] = own["exact"].mean()
        ax.text(column, row, f"{int(own['exact'].sum())}/{len(own)}", ha="center", va="center", fontsize=7.5,
                color="white" if grid[row, column] < 0.5 else "black")  # fmt: skip
    image = ax.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="upper")
    ax.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], fontsize=7.5)
    ax.set_yticks(np.arange(_DEPTHS + 1) - 0.5, [f"{k / _DEPTHS:g}" for k in range(_DEPTHS + 1)], fontsize=7.5)
    ax.grid(False)
    return image


def found_by_distance(cells: Sequence[xr.Dataset]) -> Figure | None:
    """Draw the share of single needles that is found over their distance from the question: a line per fold."""
    frame = items(retrieval(cells))
    if not len(frame):
        return None
    frame = frame.assign(away=frame["distance"] * frame["chunk_size"])
    models = list(frame["model"].unique())
    protocols = list(frame["protocol"].unique())
    colour, style, marker = colours_of(protocols), cycle_styles(protocols, STYLES), cycle_styles(protocols, MARKERS)
    with set_style():
        figure, axes = wrap_panels(len(models), height=3.2, width=4.4, sharey=True)
        for ax, model in zip(axes, models, strict=True):
            own = frame[frame["model"] == model]
            edges = 2.0 ** np.arange(math.floor(np.log2(own["away"].min())), math.ceil(np.log2(own["away"].max())) + 2)
            for place, protocol in enumerate(protocols):
                part = own[own["protocol"] == protocol]
                at = np.digitize(part["away"], edges) - 1
                rows = [(k, effective_share(g["exact_fold"].to_numpy()[:, None])) for k, g in part.groupby(at)]
                if not rows:
                    continue
                x = np.array([edges[k] * 2 ** (0.4 + 0.06 * place) for k, _ in rows])
                y = np.array([share.value for _, share in rows])
                ends = np.array([[s.value - s.low, s.high - s.value] for _, s in rows]).T
                ax.errorbar(x, y, yerr=ends, color=colour[protocol], linestyle=style[protocol],
                            marker=marker[protocol], markersize=4.5, linewidth=1.2, capsize=2)  # fmt: skip
            log2_x(ax, [edges[0], edges[-1]])
            ax.set_title(model, fontsize=9.5)
            ax.set_xlabel("tokens from needle to question\n(whole chunks)", fontsize=8.5)
            ax.set_ylim(-0.05, 1.05)
        axes[0].set_ylabel("share found [1]", fontsize=8.5)
        lines = {
            p: {"color": colour[p], "linestyle": style[p], "marker": marker[p], "markersize": 5} for p in protocols
        }
        caption = f"Shares within each doubling of the distance; bars: {coverage(ALPHA)} intervals (Clopper-Pearson)."
        title = f"How far back is it found? {found_words(frame)}"
        return finish_figure(figure, title, caption, [("reading", legend_lines(lines))])


def likelihood_by_task(cells: Sequence[xr.Dataset]) -> Figure | None:
    """Draw by how much the log-likelihood of the right answer changes in the fold: a row per task, a point per text."""
    frame = items(cells)
    if not len(frame):
        return None
    tasks, protocols = list(frame["task"].unique()), list(frame["protocol"].unique())
    colour, marker = colours_of(protocols), cycle_styles(protocols, MARKERS)
    with set_style():
        figure = make_figure(WIDEST / DPI, max(0.5 * len(tasks) * max(len(protocols) / 3, 1) + 1.8, 3.0))
        ax = figure.subplots()
        for (task, protocol), own in frame.groupby(["task", "protocol"], sort=False):
            by_text: Float = own.groupby(["tokens", "file", "document"])["change"].mean().to_numpy()
            y = tasks.index(task) + 0.7 * ((protocols.index(protocol) + 0.5) / len(protocols) - 0.5)
            ax.plot(by_text, np.full(len(by_text), y), linestyle="none", color=colour[protocol],
                    marker=marker[protocol], markersize=3.5, alpha=0.6)  # fmt: skip
        ax.axvline(0, color="black", linewidth=0.9)
        ax.set_xscale("symlog", linthresh=0.1)
        ax.set_yticks(range(len(tasks)), tasks, fontsize=8.5)
        ax.set_ylim(len(tasks) - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.set_xlabel("change of the right answer's log-likelihood, fold − full attention [nat]", fontsize=9)
        lines = {p: {"color": colour[p], "marker": marker[p], "linestyle": "none"} for p in protocols}
        least = frame.groupby("protocol", sort=False)["change"].mean()
        worst = f"It loses most under {least.idxmin()}: {least.min():z.3g} nats"
        title = f"How likely is the right answer after folding? {worst}"
        return finish_figure(
            figure, title, "A point is the mean over the questions of a text; linear within ±0.1.",
            [("reading", legend_lines(lines))], strip=True,
        )  # fmt: skip


_PREDICTOR_NAMES = {
    "excess": "excess drift at the question\n(logits, over their rounding floor) [1]",
    "answer_kl": "KL(full ‖ fold)\nwhere the answer begins [nat]",
}
_PREDICTORS_IN_SHORT = {"excess": "Excess", "answer_kl": "KL"}


def failure_against_drift(cells: Sequence[xr.Dataset]) -> Figure | None:
    """Draw the change of the answer's log-likelihood over excess drift and KL at the question: a point per item."""
    frame = items(cells)
    if not len(frame):
        return None
    protocols = list(frame["protocol"].unique())
    colour, marker = colours_of(protocols), cycle_styles(protocols, MARKERS)
    floored = bool(np.isfinite(frame["excess"]).any())
    shown = [by for by in PREDICTORS if by != "excess" or floored]
    found = {by: predicting(frame, by) for by in shown}
    with set_style():
        figure, axes = wrap_panels(len(shown), height=3.4, width=4.4 if floored else 6.6, sharey=True)
        for ax, by in zip(axes, shown, strict=True):
            _items_over(ax, frame, by, colour, marker)
            ax.set_xlabel(_PREDICTOR_NAMES[by], fontsize=9)
        axes[0].set_ylabel("change of the answer's\nlog-likelihood [nat]", fontsize=9)
        lines = {p: {"color": colour[p], "marker": marker[p], "linestyle": "none"} for p in protocols}
        within = within_words({p: predicting(own).correlation for p, own in frame.groupby("protocol", sort=False)})
        caption = (
            "Filled: full attention answers, the fold does not. Not drawn: items that are exactly as likely, or have "
            f"no floor{'' if floored else ' (none of these has: no panel of the excess)'}. {within}"
        )
        said = [
            predictor_words(_PREDICTORS_IN_SHORT[by], one.correlation, one.count, one.larger, one.lost)
            for by, one in found.items()
        ]
        title = f"Does drift tell where the fold fails? {'; '.join(said)}"
        return finish_figure(figure, title, caption, [("reading", legend_lines(lines))])


def _items_over(ax: Axes, frame: pd.DataFrame, by: str, colour: dict[Any, Any], marker: dict[Any, Any]) -> None:
    """Items that changed, over one of the predictors; those that the fold loses are filled."""
    known = frame[np.isfinite(frame[by])]
    drawn = known[(known[by] > 0) & (known["change"] != 0)]
    if not len(drawn):
        say_empty(ax, "every answer is as likely as under full attention" if len(known) else "no number is finite")
        return
    for protocol, own in drawn.groupby("protocol", sort=False):
        for lost, fill in ((False, "none"), (True, "full")):
            part = own[(own["exact_full"] > own["exact_fold"]) == lost]
            ax.plot(part[by], part["change"].abs(), linestyle="none", color=colour[protocol],
                    marker=marker[protocol], markersize=4.5, fillstyle=fill)  # fmt: skip
    ax.set_xscale("log")
    log_y(ax)


def costs_of_steps(cells: Sequence[xr.Dataset]) -> Figure | None:
    """Draw what folding takes beside full attention: seconds and carried bytes over the length of the text."""
    frame = costs(cells)
    if not len(frame):
        return None
    protocols = list(frame["protocol"].unique())
    models = sorted(frame["model"].unique())
    colour, style, marker = colours_of(protocols), cycle_styles(models, STYLES), cycle_styles(protocols, MARKERS)
    with set_style():
        figure, axes = wrap_panels(3, height=3.2, width=3.4)
        columns = (("fold_seconds", "full_seconds", "seconds"), ("fold_bytes", "full_bytes", "carried cache"))
        for ax, (of, by, what) in zip(axes[:2], columns, strict=True):
            for (protocol, model, _), own in frame.groupby(["protocol", "model", "chunk_size"], sort=True):
                sums = own.groupby("tokens")[[of, by]].sum()
                ax.plot(sums.index, sums[of] / sums[by], color=colour[protocol], linestyle=style[model],
                        marker=marker[protocol], markersize=4.5, linewidth=1.2)  # fmt: skip
            ax.axhline(1, color="black", linewidth=0.9)
            log2_x(ax, [frame["tokens"].min(), frame["tokens"].max()])
            ax.set_xlabel("tokens of the prompt", fontsize=8.5)
            ax.set_ylabel(f"{what}, fold / full attention [1]", fontsize=8.5)
        _seconds_of_steps(axes[2], cells, colour, style)
        lines = {p: {"color": colour[p], "marker": marker[p], "markersize": 5} for p in protocols}
        legends = [("reading", legend_lines(lines))]
        if len(models) > 1:
            legends.append(("model", legend_lines({m: {"color": "0.25", "linestyle": style[m]} for m in models})))
        ratio = float(frame["fold_seconds"].sum() / frame["full_seconds"].sum())
        title = f"What does folding cost? {ratio:.2g} times the seconds of full attention, over all texts"
        caption = (
            "A line per model and chunk size; sums over the texts of a length. Black: as full attention. Right: the "
            "longest texts, median over texts; a line is fitted to all whole steps."
        )
        return finish_figure(figure, title, caption, legends)


def _seconds_of_steps(ax: Axes, cells: Sequence[xr.Dataset], colour: dict[Any, Any], style: dict[Any, Any]) -> None:
    """Seconds of every whole chain step of the longest texts, and the line through them: per model, fold and size."""
    longest: dict[tuple[object, ...], xr.Dataset] = {}
    for ds in sorted(filter(is_folded, cells), key=lambda ds: ds.sizes["step"]):
        longest[tuple(scalar(ds, name) for name in ("model", "dtype", "chunk_size", "protocol", "device"))] = ds
    for ds in longest.values():
        seconds, size = whole_steps(ds), int(scalar(ds, "chunk_size"))
        at = np.arange(seconds.shape[1])
        own = colour[scalar(ds, "protocol")]
        ax.plot(at * size, np.nanmedian(seconds, axis=0), linestyle="none", marker=".", markersize=2.5, color=own)
        first, slope = growth_of_steps(ds)
        ax.plot(at * size, first + slope * at, linewidth=0.9, color=own, linestyle=style[scalar(ds, "model")])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("tokens before the step", fontsize=8.5)
    ax.set_ylabel("a chain step [s]", fontsize=8.5)
