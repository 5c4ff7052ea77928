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
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.plateau import margin_percent
from drift.reading.figures.style import DPI, HIGHEST, WIDEST, legend_lines, make_figure, set_style
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
    plan = _Plan.of(groups)
    with set_style():
        figure, axes = plan.panels(len(groups))
        for place, (ax, s) in enumerate(zip(axes, groups, strict=True)):
            _forest(ax, effect, s, plan, limits, setting)
            ax.tick_params(labelleft=place % plan.columns == 0)
            if place + plan.columns < len(groups):
                ax.tick_params(labelbottom=False)
            else:
                ax.set_xlabel(textwrap.fill(effect.axis, 34), fontsize=8.5)
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
        return finish_figure(figure, title, caption + plan.left_out, _forest_legends(claim, found), strip=True)


#: Inches of a row that stands in one line of letters, and of every line more; of what stands around panels, and rows.
_LINE, _MORE, _HEAD, _AROUND = 0.175, 0.085, 0.34, 1.9
#: A row whose words are this much closer than that can still be read.
_DENSEST = 0.9
#: Where there is room, rows stand this much further apart.
_AIRY = 1.4
#: Size of the letters of a row, in points.
_LETTERS = 6.8
#: Letters in one line of a row's name.
_NAME = 44
#: Panels that stand beside one another, each with its numbers.
_BESIDE = 3


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """Names in one order, each once: what only a later order has stands before what follows it there."""
    merged: list[str] = []
    for order in orders:
        for place, name in enumerate(order):
            if name not in merged:
                after = next((merged.index(later) for later in order[place:] if later in merged), len(merged))
                merged.insert(after, name)
    return merged


@dataclass(frozen=True)
class _Plan:
    """How the rows of some protocols are set out on one screen: panels side by side, with their rows in one order.

    Attributes
    ----------
    names : tuple of str
        What the rows are of, in the order of the findings; those that are drawn.
    labels : tuple of str
        The same as they are written: without what all have in common, in lines.
    columns, blocks : int
        Panels side by side, and rows of panels.
    row : float
        Height of a row, in inches.
    certificates : bool
        Whether there is room for the numbers of what certifies a plateau.
    left_out : str
        What the caption says beside: of what all rows are, and of rows that are not drawn.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    columns: int
    blocks: int
    row: float
    certificates: bool
    left_out: str

    @classmethod
    def of(cls, groups: Sequence[model.ClaimSummary]) -> _Plan:
        """Set out; where a screen does not hold all rows, those that decide come first."""
        names = _merged([[f.scope for f in s.findings] for s in groups])
        decided = {f.scope for s in groups for f in s.findings if f.status is not model.Status.UNDETERMINED}
        said, common = _without_common(names)
        labels = {name: "\n".join(textwrap.wrap(words, _NAME)) for name, words in zip(names, said, strict=True)}
        columns = 1 if len(groups) == 1 else 2 if len(groups) in (2, 4) else _BESIDE
        blocks = math.ceil(len(groups) / columns)
        more = max(label.count("\n") for label in labels.values())
        room = (HIGHEST / DPI - _AROUND - _HEAD * blocks) / blocks
        least = _LINE + _MORE * more
        fits = max(1, int(room / (_DENSEST * least)))
        kept = sorted(sorted(names, key=lambda n: n not in decided)[:fits], key=names.index)
        asked = any("certified" in f.detail for s in groups for f in s.findings)
        wanted = _LINE + _MORE * max(more, 1)
        certificates = asked and wanted * len(kept) <= room
        row = min(wanted if certificates else least, room / len(kept)) * (
            1.25 if len(kept) * wanted * 1.3 < room else 1
        )
        out = f" All rows: {common}." * bool(common)
        if len(kept) < len(names):
            out += f" {len(kept)} of {len(names)} rows are drawn, first those that decide; the table lists all."
        return cls(tuple(kept), tuple(labels[n] for n in kept), columns, blocks, row, certificates, out)

    def panels(self, count: int) -> tuple[Figure, list[Axes]]:
        """Make the figure, and so many panels."""
        height = self.blocks * (self.row * len(self.names) + _HEAD) + _AROUND
        figure = make_figure(WIDEST / DPI, height)
        axes = figure.subplots(self.blocks, self.columns, squeeze=False).ravel()
        for ax in axes[count:]:
            ax.set_axis_off()
        return figure, list(axes[:count])


def _without_common(names: Sequence[str]) -> tuple[list[str], str]:
    """Take off names, between commas, what all of them have at their end."""
    parts = [name.split(", ") for name in names]
    count = 0
    while len(names) > 1 and min(map(len, parts)) - count > 1 and len({p[-1 - count] for p in parts}) == 1:
        count += 1
    return [", ".join(p[: len(p) - count]) for p in parts], ", ".join(parts[0][len(parts[0]) - count :])


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
        "markersize": 5.5,
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
    plan: _Plan,
    limits: tuple[float, float],
    setting: model.Setting,
) -> None:
    """Draw the rows of one protocol."""
    scale = 100.0 if effect.percent else 1.0
    low, high = (scale * x for x in limits)
    if effect.log:
        ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(len(plan.names) - 0.4, -0.6)
    margins = {f.margin for f in s.findings if all(map(math.isfinite, f.margin))}
    for f in s.findings:
        if f.scope not in plan.names:
            continue
        y = plan.names.index(f.scope)
        margin = f.margin if f.margin in margins else next(iter(margins)) if len(margins) == 1 else None
        if margin:
            ends = scale * margin[0], scale * margin[1]
            ax.fill_betweenx([y - 0.5, y + 0.5], *ends, color="0.8", linewidth=0, zorder=1)
        _interval(ax, y, f, scale, (low, high), plan.certificates)
    if effect.name == "C2 precision":
        near = setting.proportional
        ax.axvspan(1 - near, 1 + near, facecolor="none", edgecolor="0.6", hatch="....", linewidth=0, zorder=0.5)
        ax.axvline(1, color="0.45", linestyle=(0, (1, 1.2)), linewidth=1.2, zorder=1.5)
    ax.axvline(scale * effect.null, color="black", linewidth=1, zorder=1.5)
    ax.set_yticks(range(len(plan.names)), plan.labels, fontsize=_LETTERS)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(False, axis="y")
    title = "\n".join(textwrap.wrap(f"{s.protocol}: {model.SIGNS[s.status]} {s.status.value}", 32))
    ax.set_title(title, fontsize=9, loc="left", fontweight="bold")
    if effect.log:
        subs = (1.0, 2.0, 5.0) if high / low < 20 else (1.0, 3.0) if high / low < 100 else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))


def _interval(
    ax: Axes, y: int, f: model.Finding, scale: float, limits: tuple[float, float], certificates: bool
) -> None:
    """Draw one estimate with its interval, cut off at the panel; the numbers stand on the right."""
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": _LETTERS}
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
            ax.plot([edge], [y], marker=shape, color=colour, markersize=5, clip_on=False, zorder=4)
    if low <= at <= high:
        ax.plot([at], [y], linestyle="none", zorder=5, **_sign(f.status))
    words = page.estimate(f)
    if certified := f.detail.get("certified"):
        ends = [min(max(scale * x, low), high) for x in certified["interval"]]
        ax.plot(ends, [y + 0.28] * 2, color=colour, linewidth=0.9, marker="|", markersize=4, zorder=3)
        ax.plot([scale * certified["growth"]], [y + 0.28], color=colour, marker="|", markersize=6, zorder=3)
        longer = replace(f, estimate=certified["growth"], interval=certified["interval"])
        words += certificates * f"\nfrom step {certified['from_step']}: {page.estimate(longer)}"
    ax.text(1.012, y, words, color="0.15", **beside)
