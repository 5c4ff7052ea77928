"""Pictures of the precision ladder, of where errors come from, of the controls, and of what disturbances become.

As in :mod:`drift.plots`: one message per figure, said by its title and derived from the data; uncertainty is drawn, and
colour is always doubled by a marker, a line style or a hatch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from drift import controls, gain, ladder, summary
from drift.dataset import Sweep
from drift.labels import folds
from drift.plots import (
    _MARKERS,
    _STYLES,
    DPI,
    _colours,
    _cycle,
    _decades,
    _dtypes,
    _finish,
    _grid,
    _lines,
    _log_y,
    _name_x,
    _note,
    _rungs,
    _style,
)

__all__ = ["attribution", "gains", "levels", "readings", "response"]

_COLUMNS = 3
_GLYPHS = dict(zip(_MARKERS, "●■▲◆▼✚✖★", strict=True))
_COVER = f"{100 * (1 - 2 * ladder.ALPHA):g} %"


def _wrap(count: int, *, height: float, width: float = 3.4, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Make `count` panels, at most three in a row; what would be left over is not drawn."""
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure, axes = _grid(rows, columns, width=width, height=height, **shared)
    for ax in axes.ravel()[count:]:
        ax.set_axis_off()
    return figure, list(axes.ravel()[:count])


# ---------------------------------------------------------------------------------------------- the ladder
def levels(found: Sequence[ladder.Ladder]) -> Figure | None:
    """Draw level against unit roundoff, one panel per protocol, with slopes 1 and 0 through the coarsest level.

    Parameters
    ----------
    found : sequence of Ladder
        From :func:`drift.ladder.ladders`. Of each model and protocol the smallest chunk size is drawn.

    Returns
    -------
    Figure or None
        None where there is no ladder.
    """
    chosen = _smallest(found)
    if not chosen:
        return None
    protocols = list(dict.fromkeys(one.labels["protocol"] for one in chosen))
    models = list(dict.fromkeys(one.labels["model"] for one in chosen))
    colour, marker = _colours(models), _cycle(models, _MARKERS)
    rungs = {u: d for one in chosen for u, d in zip(one.unit_roundoff, one.dtypes, strict=True)}
    with _style():
        figure, axes = _wrap(len(protocols), height=2.6 + 0.16 * len(models), sharex=True, sharey=True)
        some = False
        for ax, protocol in zip(axes, protocols, strict=True):
            mine = [one for one in chosen if one.labels["protocol"] == protocol]
            zeros = bad = 0
            lines = textwrap.wrap(protocol, 46)
            for one in mine:
                model = one.labels["model"]
                zeros, bad = zeros + int((one.level == 0).sum()), bad + int((~np.isfinite(one.level)).sum())
                some |= _ladder(ax, one, models.index(model), len(models), colour[model], marker[model])
                lines.append(
                    f"{_GLYPHS[marker[model]]} {one.slope}"
                    if len(one.dtypes) > 1
                    else f"{_GLYPHS[marker[model]]} one precision only"
                )
            _slopes(ax, mine)
            if not any((one.level > 0).any() for one in mine):
                ax.text(0.5, 0.5, "no level above 0", transform=ax.transAxes, ha="center", color="0.4")
            _note(ax, zeros, bad)
            ax.set_title("\n".join(lines), fontsize=7.8, loc="left")
            _name_x(ax, "unit roundoff [1]")
        if some:
            _log_y(axes[0])
        for ax in axes:
            ax.set_xscale("log")
            _rungs(ax, rungs)
            ax.xaxis.set_minor_locator(NullLocator())
            room = max((max(rungs) / min(rungs)) ** 0.12, 4)
            ax.set_xlim(min(rungs) / room, max(rungs) * room)
            ax.tick_params(labelbottom=True)
        first = chosen[0].labels
        for ax in axes[:: min(len(axes), _COLUMNS)]:
            ax.set_ylabel("level: " + _measure(first["measure"], first["layer"]), fontsize=8.5)
        guides: dict[Any, dict[str, Any]] = {
            "slope 1: rounding": {"color": "0.45", "linestyle": (0, (4, 2))},
            "slope 0: structural": {"color": "0.45", "linestyle": (0, (1, 1.5))},
        }
        legends = [
            ("model", _lines({m: {"color": colour[m], "marker": marker[m], "markersize": 5} for m in models})),
            ("guides", _lines(guides)),
        ]
        caption = (
            "Points: geometric mean past the first quarter of the chain, over documents; bars: smallest to largest "
            f"document. Above: slope of each model, by its marker, with {_COVER} interval over documents. Smallest "
            "chunk size of each model; models stand side by side."
        )
        return _finish(figure, _levels_title(chosen), caption, legends)


def _smallest(found: Sequence[ladder.Ladder]) -> list[ladder.Ladder]:
    """Of each protocol and model the ladder with most rungs, of those the smallest chunk size."""
    best: dict[tuple[str, str], ladder.Ladder] = {}
    for one in found:
        key = (one.labels["protocol"], one.labels["model"])
        rank = (-len(one.dtypes), one.labels["chunk_size"])
        if key not in best or rank < (-len(best[key].dtypes), best[key].labels["chunk_size"]):
            best[key] = one
    return [best[key] for key in sorted(best)]


def _measure(measure: str, layer: int | str) -> str:
    from drift.claims.auditing import amplitude_power
    from drift.plots import _label

    return ("square root of\n" if amplitude_power(measure) != 1 else "") + _label(measure, layer)


def _ladder(ax: Axes, one: ladder.Ladder, place: int, of: int, colour: Any, marker: str) -> bool:
    nudge = 1.25 ** (place - (of - 1) / 2)  # side by side, or equal levels would hide one another
    good = np.isfinite(one.level) & (one.level > 0)
    x, y, low, high = [], [], [], []
    for u, row, there in zip(one.unit_roundoff, one.level, good, strict=True):
        if there.any():
            middle = float(np.exp(np.log(row[there]).mean()))
            x.append(u * nudge)
            y.append(middle)
            low.append(middle - row[there].min())
            high.append(row[there].max() - middle)
    if not x:
        return False
    ax.errorbar(x, y, yerr=np.maximum([low, high], 0), color=colour, marker=marker, markersize=5.5, capsize=2.5,
                linewidth=1, elinewidth=1, alpha=0.9)  # fmt: skip
    return True


def _slopes(ax: Axes, mine: Sequence[ladder.Ladder]) -> None:
    tops = [(one.unit_roundoff[0], summary._geometric(one.level[0])) for one in mine]
    tops = [(u, v) for u, v in tops if v > 0]
    if not tops:
        return
    top = max(u for u, _ in tops)
    anchor = math.exp(np.mean([math.log(v) for u, v in tops if u == top]))
    least = min(u for one in mine for u in one.unit_roundoff)
    ends = np.array([least if least < top else top / 16, top])
    ax.plot(ends, anchor * ends / top, color="0.45", linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)
    ax.plot(ends, [anchor, anchor], color="0.45", linestyle=(0, (1, 1.5)), linewidth=1.2, zorder=1)


def _levels_title(chosen: Sequence[ladder.Ladder]) -> str:
    by: dict[str, list[str]] = {}
    for protocol in dict.fromkeys(one.labels["protocol"] for one in chosen):
        kinds = {one.slope.verdict for one in chosen if one.labels["protocol"] == protocol}
        kind = kinds.pop().value if len(kinds) == 1 else "models differ"
        by.setdefault(kind, []).append(str(protocol))
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by.items())
    return f"Is drift proportional to the unit roundoff? {said[:1].upper()}{said[1:]}"


# ---------------------------------------------------------------------------------------------- attribution
_HATCHES = {"structural": "", "full_rounding": "////", "fold_rounding": "...."}
_FILLS = {"structural": "#c44e00", "full_rounding": "#9ecae1", "fold_rounding": "#0173b2"}


def attribution(found: Sequence[ladder.Attribution]) -> Figure | None:
    """Draw the shares of the squared error against float64: one panel per model, a row per protocol and precision."""
    chosen: dict[tuple[str, str, str], ladder.Attribution] = {}
    for one in found:
        key = (one.labels["model"], one.labels["protocol"], one.labels["dtype"])
        if key not in chosen or one.labels["chunk_size"] < chosen[key].labels["chunk_size"]:
            chosen[key] = one
    if not chosen:
        return None
    models = list(dict.fromkeys(m for m, _, _ in chosen))
    rows = sorted(
        {(p, -one.labels["unit_roundoff"], d) for (_, p, d), one in chosen.items()},
    )
    with _style():
        figure = Figure(
            figsize=(max(3.1 * len(models) + 3.2, 7.6), 0.48 * len(rows) + 1.9), dpi=DPI, layout="constrained"
        )
        axes = figure.subplots(1, len(models), squeeze=False, sharey=True, sharex=True)[0]
        for ax, model in zip(axes, models, strict=True):
            for y, (protocol, _, dtype) in enumerate(rows):
                here = chosen.get((model, protocol, dtype))
                if here is None or not math.isfinite(here.shares["structural"].value):
                    ax.text(50, y, "no such cell" if here is None else "no error to share out", ha="center",
                            va="center", fontsize=7.5, color="0.4")  # fmt: skip
                    continue
                for k, part in enumerate(ladder.PARTS):
                    _share(ax, y + 0.27 * (k - 1), here.shares[part], part)
            ax.axvline(0, color="black", linewidth=0.9)
            ax.set_title(model, fontsize=9.5)
            ax.set_xlabel("share of the squared error [%]")
            ax.grid(False, axis="y")
            for y in range(1, len(rows)):
                ax.axhline(y - 0.5, color="0.9", linewidth=0.8)
        axes[0].set_yticks(range(len(rows)), [f"{p}, {d}" for p, _, d in rows], fontsize=8.5)
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        low = min(
            0.0, *(100 * s.value for one in chosen.values() for s in one.shares.values() if math.isfinite(s.value))
        )
        axes[0].set_xlim(min(-4.0, 1.15 * low), max(106.0, 106.0 - low))
        handles: list[Any] = [
            Patch(facecolor=_FILLS[p], hatch=_HATCHES[p], edgecolor="white" if p != "full_rounding" else "0.3",
                  label=name.split(": ")[0].replace(" of ", " of\n").replace(" that ", "\nthat "))
            for p, name in ladder.PARTS.items()
        ]  # fmt: skip
        title, caption = (
            _parts_title(list(chosen.values())),
            (
                "Error of the fold against full attention in float64, as a sum of three vectors: shares of its squared "
                "length along each, which add to 100 % and are negative where a part points against the sum. Mean past "
                f"the first quarter of the chain; bars: {_COVER} interval over documents. Smallest chunk size."
            ),
        )
        return _finish(figure, title, caption, [("part of the error", handles)])


def _share(ax: Axes, y: float, interval: ladder.Interval, part: str) -> None:
    value = 100 * interval.value
    edge = "white" if part != "full_rounding" else "0.3"
    ax.barh(y, value, height=0.25, color=_FILLS[part], hatch=_HATCHES[part], edgecolor=edge, linewidth=0.4)
    if math.isfinite(interval.low):
        ends = [100 * interval.low, 100 * interval.high]
        ax.plot(ends, [y, y], color="black", linewidth=1, marker="|", markersize=4, clip_on=True)


def _parts_title(found: Sequence[ladder.Attribution]) -> str:
    if not all(one.believed for one in found):
        return "Shares of the error against float64: no conclusion is drawn, because controls failed"
    by: dict[str, list[str]] = {}
    for protocol in sorted({one.labels["protocol"] for one in found}):
        mine = [one for one in found if one.labels["protocol"] == protocol]
        kinds = dict.fromkeys(
            ladder.PARTS[one.largest].split(":")[0] for one in mine if math.isfinite(one.shares["structural"].value)
        )
        by.setdefault(" or ".join(kinds) or "nothing", []).append(protocol)
    said = "; ".join(f"{kind} under {', '.join(names)}" for kind, names in by.items())
    return f"The largest share of the error against float64 is {said}"


# ---------------------------------------------------------------------------------------------- controls
def response(found: controls.Summary) -> Figure | None:
    """Draw drift against the size of the noise that was put in, one panel per model, with the floor of each precision.

    Hollow markers are sizes that the slope leaves out.
    """
    runs = [r for r in found.responses if np.isfinite(r.values).any()]
    if not runs:
        return None
    models = list(dict.fromkeys(r.setting[0] for r in runs))
    order = {r.setting[1]: r.unit_roundoff for r in runs}
    dtypes = sorted(order, key=lambda d: -order[d])
    colour, marker, style = _colours(dtypes), _cycle(dtypes, _MARKERS), _cycle(dtypes, _STYLES)
    with _style():
        figure, axes = _wrap(len(models), height=3.1, sharex=True, sharey=True)
        for ax, model in zip(axes, models, strict=True):
            zeros = 0
            for r in (r for r in runs if r.setting[0] == model):
                dtype = r.setting[1]
                zeros += int((r.values == 0).sum())
                _answer(ax, r, colour[dtype], marker[dtype])
            floors = {d: [f.level for f in found.floor if f.setting[:2] == (model, d)] for d in dtypes}
            for dtype, bottom in floors.items():
                if bottom and max(bottom) > 0:
                    ax.axhline(
                        max(bottom), color=colour[dtype], linestyle=style[dtype], linewidth=1, alpha=0.9, zorder=1
                    )
            best = [r for r in runs if r.setting[0] == model and r.used.any()]
            if best:
                r = min(best, key=lambda r: r.unit_roundoff)
                at = float(np.exp(np.log(r.sizes[r.used]).mean()))
                y = float(np.exp(np.log(r.values[r.used]).mean()))
                span = np.array([min(r.sizes), max(r.sizes)])
                ax.plot(span, y * span / at, color="0.45", linestyle=(0, (4, 2)), linewidth=1.1, zorder=1)
            _note(ax, zeros, 0)
            ax.set_title(model, fontsize=9.5)
            _name_x(ax, "relative size of the noise [1]")
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(numticks=8))
            ax.xaxis.set_minor_locator(NullLocator())
        axes[0].set_yscale("log")
        _decades(axes[0].yaxis)
        for ax in axes[:: min(len(axes), _COLUMNS)]:
            ax.set_ylabel("drift at the first step that can differ [1]")
        slopes = sorted(r.slope.value for r in runs if math.isfinite(r.slope.value))
        title = "Drift answers to noise put into the cache"
        if slopes:
            ends = f"{slopes[0]:.2f}", f"{slopes[-1]:.2f}"
            power = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
            good = all(abs(s - 1) <= controls.TOLERANCE for s in slopes)
            title = f"Drift answers to noise {'in proportion' if good else 'NOT in proportion'}: to the power {power}"
        marks: dict[Any, dict[str, Any]] = {
            "left out of the slope": {"color": "0.3", "marker": "o", "markerfacecolor": "white", "linestyle": "none"},
            "proportional": {"color": "0.45", "linestyle": (0, (4, 2))},
        }
        legends = [
            ("precision", _lines({d: {"color": colour[d], "marker": marker[d]} for d in dtypes})),
            ("floor", _lines({d: {"color": colour[d], "linestyle": style[d]} for d in dtypes})),
            ("marks", _lines(marks)),
        ]
        caption = (
            "Points: geometric mean over documents; bars: smallest to largest. Floor: full attention against itself in "
            f"another implementation or batch. Left out: sizes below {controls.DROWNED:g} unit roundoffs, responses "
            f"below {controls.DROWNED:g} floors or above {controls.TOLERANCE:g}."
        )
        return _finish(figure, title, caption, legends)


def _answer(ax: Axes, r: controls.Response, colour: Any, marker: str) -> None:
    good = np.isfinite(r.values) & (r.values > 0)
    x, y, ends, used = [], [], [], []
    for size, row, there, in_use in zip(r.sizes, r.values, good, r.used, strict=True):
        if there.any():
            middle = float(np.exp(np.log(row[there]).mean()))
            x.append(size)
            y.append(middle)
            ends.append((max(middle - row[there].min(), 0), max(row[there].max() - middle, 0)))
            used.append(bool(in_use))
    if not x:
        return
    ax.errorbar(x, y, yerr=np.array(ends).T, color=colour, linewidth=1, capsize=2, marker="none")
    for here, fill in ((True, colour), (False, "white")):
        at = [k for k, u in enumerate(used) if u is here]
        ax.plot([x[k] for k in at], [y[k] for k in at], linestyle="none", marker=marker, markersize=6, color=colour,
                markerfacecolor=fill, zorder=3)  # fmt: skip


# ---------------------------------------------------------------------------------------------- gain
def gains(found: Sequence[gain.Gain]) -> Figure | None:
    """Draw the gain after a disturbance: one panel per fold and model, colour by precision, line style by step."""
    if not found:
        return None
    panels = sorted({(g.labels["fold"], g.labels["model"]) for g in found})
    order = {g.labels["dtype"]: g.labels["unit_roundoff"] for g in found}
    dtypes = sorted(order, key=lambda d: -order[d])
    steps = sorted({g.labels["step"] for g in found})
    colour, style, marker = _colours(dtypes), _cycle(steps, _STYLES), _cycle(dtypes, _MARKERS)
    with _style():
        figure, axes = _wrap(len(panels), height=3.0, sharey=True)
        for ax, (fold, model) in zip(axes, panels, strict=True):
            zeros = bad = 0
            for g in (g for g in found if (g.labels["fold"], g.labels["model"]) == (fold, model)):
                middle, low, high = g.band()
                zeros, bad = zeros + int((g.values == 0).sum()), bad + int((~np.isfinite(g.values)).sum())
                shade = colour[g.labels["dtype"]]
                k = np.arange(len(middle))
                ax.fill_between(k, low, high, where=np.isfinite(low), color=shade, alpha=0.18, linewidth=0)
                ax.plot(k, middle, color=shade, linestyle=style[g.labels["step"]], marker=marker[g.labels["dtype"]],
                        markevery=max(1, len(k) // 6), markersize=4, linewidth=1.3, markeredgecolor="white",
                        markeredgewidth=0.4)  # fmt: skip
            ax.axhline(1, color="black", linewidth=0.9, zorder=1)
            _note(ax, zeros, bad)
            ax.set_title(f"{fold}\n{model}", fontsize=9.5)
            _name_x(ax, "chain steps after the first affected one")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        _log_y(axes[0])
        for ax in axes[:: min(len(axes), _COLUMNS)]:
            ax.set_ylabel("gain: drift / drift at the\nfirst affected step [1]")
        kinds = [g.rate.verdict for g in found]
        counted = ", ".join(f"{kinds.count(v)} {v.value}" for v in dict.fromkeys(kinds))
        title = f"What becomes of a disturbance? {counted[:1].upper()}{counted[1:]}" + (
            f" of {len(found)} cells" if len(found) > 1 else ""
        )
        legends: list[tuple[str, list[Line2D]]] = [
            ("precision", _lines({d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes})),
            ("put in after step", _lines({s: {"color": "0.25", "linestyle": style[s]} for s in steps})),
        ]
        caption = (
            f"Lines: geometric mean over documents; bands: {_COVER} interval of it (none with one document). Steps "
            "count from 0. Black: carried along unchanged. Log scale."
        )
        return _finish(figure, title, caption, legends)


# ---------------------------------------------------------------------------------------------- readings
def readings(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Figure:
    """Draw level and change of NLL of every reading side by side: a row per protocol, its deepest chains."""
    from drift.readings import chains, side_by_side

    part = folds(sweep, generating=True)
    table = side_by_side(part, measure, layer)
    protocols = list(dict.fromkeys(table["protocol"]))
    models, dtypes = part.values("model"), _dtypes(chains(part))
    colour, marker = _colours(dtypes), _cycle(models, _MARKERS)
    fill = _cycle(dtypes, ("full", "none", "left", "top", "right"))
    with _style():
        row_height = max(0.46, 0.25 + 0.05 * len(models) * len(dtypes))
        figure = Figure(figsize=(12, row_height * len(protocols) + 2.3), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        zeros = bad = 0
        for _, row in table.iterrows():
            m, d = models.index(row["model"]), dtypes.index(row["dtype"])
            slots = len(models) * len(dtypes)
            y = protocols.index(row["protocol"]) + 0.7 * ((d * len(models) + m + 0.5) / slots - 0.5)
            how: dict[str, Any] = {"color": colour[row["dtype"]], "marker": marker[row["model"]], "markersize": 5,
                                   "linewidth": 1.1, "capsize": 2, "fillstyle": fill[row["dtype"]]}  # fmt: skip
            if row["level"] > 0:
                ends = [[max(row["level"] - row["level_low"], 0)], [max(row["level_high"] - row["level"], 0)]]
                left.errorbar([row["level"]], [y], xerr=ends if row["level_low"] > 0 else None, **how)
            else:
                zeros, bad = zeros + int(row["level"] == 0), bad + int(math.isnan(row["level"]))
            if math.isfinite(row["nll_gap"]):
                ends = [[row["nll_gap"] - row["gap_low"]], [row["gap_high"] - row["nll_gap"]]]
                right.errorbar([row["nll_gap"]], [y], xerr=np.maximum(ends, 0), **how)
        if (table["level"] > 0).any():
            left.set_xscale("log")
            left.xaxis.set_major_locator(LogLocator(numticks=6))
            left.xaxis.set_minor_locator(NullLocator())
        right.set_xscale("symlog", linthresh=1e-3, linscale=0.6)
        right.xaxis.set_minor_locator(NullLocator())
        right.axvline(0, color="black", linewidth=0.9)
        widest = table[["gap_low", "gap_high", "nll_gap"]].abs().max(axis=None)
        reach = 3 * float(widest) if widest > 1e-3 else 3e-3
        right.set_xlim(-reach if table["gap_low"].min() < -1e-3 else -2e-3, reach)
        left.set_yticks(range(len(protocols)), protocols, fontsize=8.5)
        left.set_ylim(len(protocols) - 0.5, -0.5)
        for ax in (left, right):
            ax.grid(False, axis="y")
            for y in range(1, len(protocols)):
                ax.axhline(y - 0.5, color="0.9", linewidth=0.8)
        left.set_xlabel("level: " + _measure(measure, layer), fontsize=9)
        right.set_xlabel("change of NLL, fold − full\n[nat per token]", fontsize=9)
        _note(left, zeros, bad)
        legends = [
            ("precision", _lines({d: {"color": colour[d], "marker": "o", "fillstyle": fill[d]} for d in dtypes})),
            ("model", _lines({m: {"color": "0.25", "marker": marker[m], "linestyle": "none"} for m in models})),
        ]
        caption = (
            "The deepest chain of each model and precision. Left: geometric mean past the first quarter of the chain; "
            "right: mean over the same steps (linear within ±0.001). Bars: smallest to largest document."
        )
        gaps = table.groupby("protocol", sort=False)["nll_gap"].agg(lambda v: v.abs().max()).dropna()
        title = f"Drift and NLL of {len(protocols)} reading{'s' * (len(protocols) != 1)} of the fold"
        if len(gaps):
            title += f": NLL changes most under {gaps.idxmax()}, by {summary.number(float(gaps.max()))} nat per token"
        return _finish(figure, title, caption, legends)
