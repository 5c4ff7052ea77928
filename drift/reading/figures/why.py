"""Why drift is flat, or is not: drift, its floor, the error of one step and what is inherited; what grows of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift.dataset.contract import VARIABLES
from drift.reading.amplitudes import amplitude_power, measure_name
from drift.reading.figures.captions import late_of
from drift.reading.figures.finishing import finish_figure
from drift.reading.figures.style import (
    MARKERS,
    STYLES,
    colours_of,
    count_steps,
    cycle_styles,
    draw_line,
    legend_lines,
    log_y,
    make_grid,
    name_x,
    say_empty,
    set_style,
)
from drift.reading.plateau.model import Plateau
from drift.reading.why import Chain, Explained, Quantity
from drift.reading.wording.numbers import coverage, percent, range_words
from drift.reading.wording.windows import judged_words

__all__ = ["growth_with_position", "inherited_per_step", "inherited_through_depth"]

_FORMULA = (
    " Inherited part: inherited² = drift² − (error of one step)²: all drift where that error is exactly 0, elsewhere "
    "only if both errors are independent."
)
_EXCESS = "drift / floor"
_GROWING = (*(q.value for q in (Quantity.DRIFT, Quantity.FLOOR, Quantity.ONE_STEP)), _EXCESS)


def _looks() -> dict[Quantity, dict[str, Any]]:
    names = list(Quantity)
    colour, style, marker = colours_of(names), cycle_styles(names, STYLES), cycle_styles(names, MARKERS)
    return {q: {"color": colour[q], "linestyle": style[q], "marker": marker[q]} for q in names}


def _dtypes(found: Explained) -> list[str]:
    pairs = sorted({(-one.ds["unit_roundoff"].item(), one.labels["dtype"]) for one in found.chains})
    return [dtype for _, dtype in pairs]


def _ends(found: Explained) -> list[str]:
    """The coarsest and the finest precision: a row of panels each."""
    dtypes = _dtypes(found)
    return list(dict.fromkeys([dtypes[0], dtypes[-1]]))


def _models(found: Explained) -> dict[str, str]:
    return {one.labels["model"]: one.labels["family"] for one in found.chains}


def _label(measure: str, layer: int | str | None) -> str:
    root = "square root of\n" if amplitude_power(measure) != 1 else ""
    name = VARIABLES[measure].long_name if layer is None else measure_name(measure, layer)
    return root + textwrap.fill(name, 30)


# ---------------------------------------------------------------------------------------------- along and through
def inherited_per_step(found: Explained) -> Figure | None:
    """Draw drift, its floor, the error of one step and the inherited part along the chain.

    A column per model, a row for the coarsest and one for the finest precision. None where there is no chain.
    """
    if not found.chains:
        return None
    with set_style():
        figure, axes = _grid(found)
        for ax, one in _panels(found, axes):
            _draw(ax, one, through=False)
            count_steps(ax, one.labels["steps"])
            name_x(ax, "chain step (1 = first chunk)")
        _scales(found, axes, found.layer)
        late = late_of(one.labels["steps"] for one in found.chains)
        caption = f"{_caption(found, '')} Late: {late}.{_precisions(found)}"
        return finish_figure(figure, _chain_title(found), caption, _legend(found.chains))


def inherited_through_depth(found: Explained) -> Figure | None:
    """Draw the same through the depth of the network; None for a measure without layers."""
    drawn = [one for one in found.chains if one.through is not None]
    if not drawn:
        return None
    with set_style():
        figure, axes = _grid(found)
        for ax, one in _panels(found, axes):
            _draw(ax, one, through=True)
            layers = one.through is not None and len(one.through.at) == one.ds.sizes["layer"]
            name_x(ax, "layer (0 = embeddings, last = after\nthe final norm)" if layers else "block")
        _scales(found, axes, None)
        late = late_of(one.labels["steps"] for one in drawn)
        caption = _caption(found, f" and steps {late}") + _precisions(found)
        return finish_figure(figure, _depth_title(drawn), caption, _legend(drawn))


def _caption(found: Explained, more: str) -> str:
    formula = _FORMULA if any(one.parts is not None for one in found.chains) else ""
    return f"Root mean squares over documents{more}; bands: smallest to largest document.{formula} Log scale."


def _grid(found: Explained) -> tuple[Figure, np.ndarray]:
    return make_grid(len(_ends(found)), len(_models(found)), height=2.3, sharey="row")


def _panels(found: Explained, axes: np.ndarray) -> list[tuple[Axes, Chain]]:
    """Panels with the chain that each shows; what has none says so."""
    models, dtypes = _models(found), _ends(found)
    chains = {(one.labels["dtype"], one.labels["model"]): one for one in found.chains}
    panels = []
    for row, dtype in enumerate(dtypes):
        for column, (model, family) in enumerate(models.items()):
            ax = axes[row][column]
            if row == 0:
                ax.set_title(f"{model}\n({family})", fontsize=9.5)
            if (dtype, model) in chains:
                panels.append((ax, chains[dtype, model]))
            else:
                say_empty(ax, f"no chain in {dtype}")
                ax.tick_params(bottom=False, labelbottom=False)  # the first panel of a row bears its scale all the same
                ax.grid(False)
    return panels


def _scales(found: Explained, axes: np.ndarray, layer: int | str | None) -> None:
    for row, dtype in enumerate(_ends(found)):
        if any(len(line.get_xdata()) for ax in axes[row] for line in ax.lines):
            log_y(axes[row][0])
        axes[row][0].set_ylabel(f"{dtype}\n{_label(found.measure, layer)}")


def _draw(ax: Axes, one: Chain, through: bool) -> None:
    profile = one.through if through else one.along
    if profile is None:
        return
    looks, notes = _looks(), []
    for quantity, line in profile.lines.items():
        how = looks[quantity]
        frame = line.assign(at=profile.at, value=line["value"].where(line["value"] > 0))
        draw_line(ax, frame, how["color"], how["linestyle"], how["marker"])
        zeros = int((line["value"] == 0).sum())
        if zeros:
            notes.append(f"{quantity.value} {zeros}")
    said = [f"exactly 0: {', '.join(notes)}"] if notes else []
    if profile.negative:
        said.append(f"inherited part negative: {profile.negative}")
    if profile.nonfinite:
        said.append(f"NaN or Inf: {profile.nonfinite:,} values")
    if said:
        text = textwrap.fill(f"(not drawn, of {len(profile.at)} places: {'; '.join(said)})", 46)
        ax.set_xlabel(text, fontsize=7.5)


def _legend(chains: Sequence[Chain]) -> list[tuple[str, list[Any]]]:
    measured = {quantity for one in chains for quantity in one.along.lines}
    looks = {q.value: {**how, "markersize": 5} for q, how in _looks().items() if q in measured}
    return [("line", legend_lines(looks))]


def _precisions(found: Explained) -> str:
    left = len(_dtypes(found)) - len(_ends(found))
    return " Of the precisions the coarsest and the finest." if left else ""


def _chain_title(found: Explained) -> str:
    parts = [one.parts for one in found.chains if one.parts is not None]
    levels = [p.inherited.value for p in parts if not math.isnan(p.inherited.value)]
    if levels:
        shares = range_words((100 * p.silent / (p.values - p.nonfinite) for p in parts if p.values > p.nonfinite), 2)
        return (
            f"At {shares} % of values one step makes no error and all drift is inherited: late in the chain, "
            f"{range_words(levels, 2)} floors there"
        )
    if parts:
        return f"Drift of {found.protocol}, its floor, and the error of one step along the chain"
    floors = [one.rounding.level for one in found.chains if one.rounding is not None]
    if floors:
        return f"Drift of {found.protocol} is {range_words(floors)} floors; the error of one step was not measured"
    return f"Drift of {found.protocol} along the chain; neither its floor nor the error of one step was measured"


def _depth_title(drawn: Sequence[Chain]) -> str:
    known = [one.depth for one in drawn if one.depth is not None and math.isfinite(one.depth.first_ratio)]
    if not known:
        return "Drift through the network"
    first = range_words((d.first_ratio for d in known), 2)
    last = range_words((d.last_ratio for d in known), 2)
    return f"Where drift begins in the network it is {first} floors; at the end it is {last}"


# ---------------------------------------------------------------------------------------------- growth
def growth_with_position(found: Explained) -> Figure | None:
    """Draw growth per doubling of drift, floor, one-step error and drift over floor, with their intervals.

    A panel per model, colour by precision. None where nothing can be estimated.
    """
    rows = [(one, name, judged) for one in found.chains for name, judged in _rates(one).items()]
    drawn = [(one, name, judged) for one, name, judged in rows if not math.isnan(judged.growth_interval[0])]
    if not drawn:
        return None
    models, dtypes = _models(found), _dtypes(found)
    colour, marker = colours_of(dtypes), cycle_styles(dtypes, MARKERS)
    margin = drawn[0][2].margin
    with set_style():
        figure, axes = make_grid(1, len(models), height=2.6, sharex=True, sharey=True)
        for ax, (model, family) in zip(axes[0], models.items(), strict=True):
            ax.axvspan(100 * (1 / (1 + margin) - 1), 100 * margin, color="0.5", alpha=0.14, linewidth=0)
            ax.axvline(0, color="0.4", linewidth=0.9)
            for one, name, judged in drawn:
                if one.labels["model"] != model:
                    continue
                place = dtypes.index(one.labels["dtype"])
                y = _GROWING.index(name) + 0.18 * (place - (len(dtypes) - 1) / 2)
                ends, key = [100 * end for end in judged.growth_interval], one.labels["dtype"]
                ax.plot(ends, [y, y], color=colour[key], linewidth=1.5)
                ax.plot([100 * judged.growth_per_doubling], [y], color=colour[key], marker=marker[key], markersize=5)
            ax.set_title(f"{model}\n({family})", fontsize=9.5)
            name_x(ax, "growth per doubling\nof the chain [%]")
        axes[0][0].set_yticks(range(len(_GROWING)), _GROWING)
        axes[0][0].set_ylim(len(_GROWING) - 0.5, -0.5)
        caption = _growth_caption(drawn[0][2], margin)
        looks = {d: {"color": colour[d], "marker": marker[d], "markersize": 5} for d in dtypes}
        return finish_figure(figure, _growth_title(found), caption, [("precision", legend_lines(looks))])


def _rates(one: Chain) -> dict[str, Plateau]:
    found = {quantity.value: judged for quantity, judged in one.growth.items()}
    return found if one.rounding is None else {**found, _EXCESS: one.rounding.growth}


def _growth_caption(judged: Plateau, margin: float) -> str:
    return (
        f"Amplitudes over {judged_words()}, the same steps for all; bars: {coverage(judged.alpha)} intervals. Shaded: "
        f"within the margin of {100 * margin:g} %. Floor and error of one step have no chain. What is exactly 0 "
        "too often has no growth."
    )


def _growth_title(found: Explained) -> str:
    both = [(one.growth, one.rounding.growth) for one in found.chains if one.rounding is not None]
    if not both:
        return "Growth of drift with the position; without a floor, nothing says whose growth it is"

    def words(rates: list[float]) -> str:
        return range_words(rates, write=percent)

    drift = words([g[Quantity.DRIFT].growth_per_doubling for g, _ in both])
    under = words([g[Quantity.FLOOR].growth_per_doubling for g, _ in both])
    over = words([e.growth_per_doubling for _, e in both])
    return (
        f"Per doubling of the chain drift grows by {drift}, full attention's own floor by {under}, their quotient by "
        f"{over}"
    )
