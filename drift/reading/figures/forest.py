"""Every growth with its interval beside the margin."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from drift.errors import DatasetError
from drift.reading.claims import model, page
from drift.reading.figures.plateau import margin_percent
from drift.reading.figures.style import DPI, finish_figure, legend_lines, set_style
from drift.reading.wording.numbers import coverage

__all__ = ["EFFECTS", "Effect", "equivalence"]

_SHAPES = {model.Status.SUPPORTED: "o", model.Status.REFUTED: "X", model.Status.UNDETERMINED: "o",
           model.Status.WITHHELD: "s"}  # fmt: skip
_SHADES = {model.Status.SUPPORTED: "#0173b2", model.Status.REFUTED: "#c44e00", model.Status.UNDETERMINED: "0.35",
           model.Status.WITHHELD: "0.55"}  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """How a claim's estimates are drawn.

    Attributes
    ----------
    name : str
        Of the claim.
    question : str
        What the margin asks; a format string over the fields of :class:`drift.reading.claims.model.Setting`.
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


EFFECTS = {
    "C1": Effect(
        "C1 plateau", "Is growth per doubling of depth within {growth}?", "growth per doubling of chain depth [%]",
        0.0, False, True, (-0.9, 2.0),
    ),
    "C2": Effect(
        "C2 precision", "Is drift the same in every precision, within {precision}?",
        "log-log slope of drift on the unit roundoff [1]", 0.0, False, False, (-1.0, 2.5),
    ),
    "C3": Effect(
        "C3 chunk size", "Is the change per doubling of the chunk size within {chunk}?",
        "change per doubling of the chunk size [%]", 0.0, False, True, (-0.9, 2.0),
    ),
    "C4": Effect(
        "C4 level", "Are any two models' levels within a factor {family:g}?", "ratio of two models' levels [1]",
        1.0, True, False, (1 / 256, 256.0),
    ),
}  # fmt: skip


def equivalence(found: model.Audit, claim: str = "C1") -> Figure | None:
    """Draw estimates and intervals of one claim against its margin, one row per finding of the headline measure.

    Parameters
    ----------
    found : Audit
        From :func:`drift.reading.claims.auditing.audit`.
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
    if claim not in EFFECTS:
        raise DatasetError(f"there is no figure of claim {claim!r}; there are {', '.join(EFFECTS)}")
    effect, setting = EFFECTS[claim], found.setting
    summaries = [s for s in found.summaries if s.claim.name == effect.name]
    groups = [s for s in summaries if s.findings]
    if not any(math.isfinite(f.estimate) for s in groups for f in s.findings):
        return None
    shares = {n: margin_percent(getattr(setting, n)) for n in ("growth", "precision", "chunk")}
    title = f"{effect.question.format(**(vars(setting) | shares))} {page.by_protocol(summaries).capitalize()}"
    limits = _reach(effect, [f for s in groups for f in s.findings], setting)
    labels = [["\n".join(textwrap.wrap(f.scope, 42)) for f in s.findings] for s in groups]
    # A second line stands on the left, of a long name, or on the right, of what certifies a plateau.
    extra = [
        [max(label.count("\n"), "certified" in f.detail) for label, f in zip(column, s.findings, strict=True)]
        for column, s in zip(labels, groups, strict=True)
    ]
    heights = [sum(0.27 + 0.14 * lines for lines in column) + 0.42 for column in extra]
    with set_style():
        figure = Figure(figsize=(10.6, sum(heights) + 1.75), dpi=DPI, layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, s, names in zip(axes, groups, labels, strict=True):
            _forest(ax, effect, s, names, limits, setting)
        axes[-1].set_xlabel(effect.axis)
        for ax in axes[:-1]:
            ax.tick_params(labelbottom=False)
        caption = (
            f"One row per cell or group of cells; bars: {coverage(setting.alpha)} intervals, which lie within the "
            "shaded margin where two one-sided tests pass; arrows: further out than the panel. Signs: what each row "
            "says by itself; the verdict on a protocol needs all rows to be supported, or one to be refuted after "
            "Holm's correction."
        )
        if claim == "C1":
            caption += (
                " Bars are of the judging window; a plateau may be certified on a longer one, which thin bars show "
                "where it decides (intervals at the level of that test), and a change late in the chain can take it "
                "away."
            )
        return finish_figure(figure, title, caption, _forest_legends(claim, found))


def _forest_legends(claim: str, found: model.Audit) -> list[tuple[str, list[Line2D]]]:
    setting = found.setting
    drawn = [s for s in _SHAPES if (s is model.Status.WITHHELD) == bool(found.withheld)]
    signs: dict[Any, dict[str, Any]] = {s.value: {**_sign(s), "linestyle": "-", "linewidth": 1.3} for s in drawn}
    references: dict[Any, dict[str, Any]] = {
        "no effect": {"color": "black", "linewidth": 1},
        "margin": {"color": "0.8", "linewidth": 8},
    }
    if claim == "C2":
        near = f"proportional (1 ± {setting.proportional:g})"
        references[near] = {"color": "0.45", "linestyle": (0, (1, 1.2)), "linewidth": 3}
    return [("verdict", legend_lines(signs)), ("reference", legend_lines(references))]


def _sign(status: model.Status) -> dict[str, Any]:
    hollow = status is model.Status.UNDETERMINED
    return {
        "color": _SHADES[status],
        "marker": _SHAPES[status],
        "markersize": 6.5,
        "markerfacecolor": "white" if hollow else _SHADES[status],
        "markeredgecolor": _SHADES[status],
    }


def _reach(effect: Effect, findings: Sequence[model.Finding], setting: model.Setting) -> tuple[float, float]:
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
    effect: Effect,
    s: model.ClaimSummary,
    names: Sequence[str],
    limits: tuple[float, float],
    setting: model.Setting,
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
    ax.set_title(f"{s.protocol}: {model.SIGNS[s.status]} {s.status.value}", fontsize=10, loc="left", fontweight="bold")
    if effect.log:
        span = high / low
        subs = (1.0, 2.0, 5.0) if span < 2000 else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(9))


def _interval(ax: Axes, y: int, f: model.Finding, scale: float, limits: tuple[float, float]) -> None:
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
    words = page.estimate(f)
    if certified := f.detail.get("certified"):
        ends = [min(max(scale * x, low), high) for x in certified["interval"]]
        ax.plot(ends, [y + 0.28] * 2, color=colour, linewidth=0.9, marker="|", markersize=4, zorder=3)
        ax.plot([scale * certified["growth"]], [y + 0.28], color=colour, marker="|", markersize=6, zorder=3)
        longer = replace(f, estimate=certified["growth"], interval=certified["interval"])
        words += f"\nfrom step {certified['from_step']}: {page.estimate(longer)}"
    ax.text(1.012, y, words, color="0.15", **beside)
