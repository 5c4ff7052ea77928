"""Parts of the error against float64, as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from drift.reading import ladder
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import make_figure, set_style
from drift.reading.statistics import intervals
from drift.reading.wording.numbers import coverage
from drift.reading.wording.windows import late_rule

__all__ = ["attribution"]

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
    with set_style():
        figure = make_figure(max(3.1 * len(models) + 3.2, 7.6), 0.48 * len(rows) + 1.9)
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
            ax.set_xlabel("share of the\nsquared error [%]")
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
        caption = (
            "Error of the fold against full attention in float64, as a sum of three vectors: shares of its squared "
            "length along each, which add to 100 % and are negative where a part points against the sum. Mean "
            f"{late_rule()}; bars: {coverage(intervals.ALPHA)} interval over documents (none with one document). "
            "Smallest chunk size."
        )
        return finish_figure(figure, _parts_title(list(chosen.values())), caption, [("part of the error", handles)])


def _share(ax: Axes, y: float, interval: intervals.Interval, part: str) -> None:
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
