"""Take drift apart: what it is measured against, what a step makes of it, and what it inherits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from drift.dataset.choosing import folds, is_fold, keep
from drift.dataset.contract import VARIABLES
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.reading import floor
from drift.reading.amplitudes import amplitude, amplitude_power, check_distance, has_measure
from drift.reading.cells import cell_identity
from drift.reading.controls.gating import Gate, gate
from drift.reading.excess import Missing, accumulations, floor_values, missing
from drift.reading.floor.model import FACTOR, Rounding, Standing
from drift.reading.plateau.deciding import plateaus
from drift.reading.plateau.model import Plateau, Verdict
from drift.reading.quantities import Of
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import ALPHA, LEVEL_ALPHA, mean_interval
from drift.reading.statistics.windows import late_start
from drift.reading.why.model import (
    Adding,
    Answer,
    Chain,
    Depth,
    Explained,
    Level,
    Meeting,
    Parts,
    Position,
    Profile,
    Quantity,
)
from drift.reading.why.responding import responses

__all__ = ["explain", "growth_position", "profile", "take_apart"]

#: The protocol that puts noise on the whole carried cache at every step: a chain that does accumulate.
_WALK = "random_walk"
#: What a block hands on to later steps.
_HANDED = ("key_rel_l2", "value_rel_l2")
_ANSWERS = {
    Standing.AT_FLOOR: Answer.AT_FLOOR,
    Standing.ABOVE: Answer.ABOVE,
    Standing.GROWING: Answer.GROWING,
    Standing.BELOW: Answer.BELOW,
    Standing.UNDETERMINED: Answer.UNDETERMINED,
}


# ---------------------------------------------------------------------------------------------- the whole
def explain(
    sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last", protocol: str = "append"
) -> Explained:
    """Find out of a sweep why the drift of a fold is flat, or is not.

    Parameters
    ----------
    sweep : Sweep
        With its floors, one-step errors and disturbed full attention, where it has them.
    measure : str
        A key of :data:`drift.reading.amplitudes.DISTANCES`.
    layer : int or "last"
    protocol : str
        The fold that is explained.

    Raises
    ------
    DatasetError
        If there is no such measure or layer, or no cell is a fold.
    """
    check_distance(measure)
    there = [str(name) for name in folds(sweep).values("protocol")]
    asked = gate(sweep)
    pairs = {id(one.ds): one.one_step for one in accumulations(sweep, measure, layer)}
    mine = keep(sweep, lambda ds: _is(ds, protocol) and is_fold(ds) and has_measure(ds, measure))
    chosen = _choose(mine, pairs, measure)
    chains = [_chain(ds, pairs.get(id(ds)), measure, layer, asked) for ds in chosen]
    walks = [
        (cell_identity(ds), floor.rounding(ds, measure, layer, asked))
        for ds in sweep
        if _walks(ds, protocol) and missing(ds, measure, Of.EXCESS) is None
    ]
    return Explained(
        protocol=protocol,
        measure=measure,
        layer=layer,
        answer=_answer(chains, asked),
        chains=chains,
        others=len(mine) - len(chosen),
        there=there,
        responses=responses(sweep, measure, layer),
        walks=walks,
        gate=asked,
    )


def _is(ds: xr.Dataset, protocol: str) -> bool:
    return bool(ds["protocol"].item() == protocol)


def _walks(ds: xr.Dataset, protocol: str) -> bool:
    label = parse_label(str(ds["protocol"].item()))
    return bool(label.name == _WALK and label.inner == protocol and ds["reference"].item() == "full")


def _choose(cells: Sweep, pairs: dict[int, xr.Dataset], measure: str) -> list[xr.Dataset]:
    """Per model and precision the chain that most is known of: floor, one-step error, then steps, then documents."""

    def known(ds: xr.Dataset) -> tuple[bool, bool, int, int]:
        return missing(ds, measure, Of.EXCESS) is None, id(ds) in pairs, ds.sizes["step"], ds.sizes["document"]

    best: dict[tuple[str, str], xr.Dataset] = {}
    for ds in cells:
        key = (ds["model"].item(), ds["dtype"].item())
        if key not in best or known(ds) > known(best[key]):
            best[key] = ds
    return list(best.values())


def _answer(chains: Sequence[Chain], asked: Gate) -> Answer:
    if not asked.is_open:
        return Answer.CONTROLS
    if not chains:
        return Answer.NO_CHAIN
    kinds = {one.rounding.verdict for one in chains if one.rounding is not None}
    if not kinds:
        return Answer.NO_FLOOR
    return _ANSWERS[kinds.pop()] if len(kinds) == 1 else Answer.DIFFERENT


def _chain(ds: xr.Dataset, one_step: xr.Dataset | None, measure: str, layer: int | str, asked: Gate) -> Chain:
    """Explain one chain."""
    lack = missing(ds, measure, Of.EXCESS)
    power = amplitude_power(measure)
    drift = amplitude(ds, measure, layer)
    under = None if lack else floor_values(ds, measure, layer) ** power
    local = None if one_step is None else amplitude(one_step, measure, layer)
    rounding = None if lack else floor.rounding(ds, measure, layer, asked)
    curves = {Quantity.DRIFT: drift, Quantity.FLOOR: under, Quantity.ONE_STEP: local}
    measured = {quantity: values for quantity, values in curves.items() if values is not None}
    growth = dict(zip(measured, map(asked.let, plateaus(list(measured.values()))), strict=True))
    through = _through(ds, one_step, measure, lack)
    return Chain(
        ds=ds,
        one_step=one_step,
        lacking=tuple(why for why in (lack, None if one_step is not None else Missing.ONE_STEP) if why),
        rounding=rounding,
        growth=growth,
        position=growth_position(growth, rounding),
        parts=None if local is None else take_apart(drift, local, under),
        along=profile({q: v[:, :, None] for q, v in measured.items()}, np.arange(1, drift.shape[1] + 1)),
        through=through,
        depth=None if through is None or lack else _depth(ds, through),
    )


# ---------------------------------------------------------------------------------------------- the parts
def _level(by_document: Float, alpha: float = LEVEL_ALPHA) -> Level:
    """Geometric mean of documents, given as logarithms."""
    found = mean_interval(by_document, alpha)
    return Level(*(math.exp(x) for x in (found.value, found.low, found.high)))


def _means(logs: Float, there: NDArray[np.bool_]) -> Float:
    """Mean of each document [document, step] over some of its steps; NaN where it has none."""
    counts = there.sum(axis=1)
    return np.where(counts > 0, np.where(there, logs, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def take_apart(drift: Float, local: Float, under: Float | None) -> Parts:
    """Take drift apart by the error that each step makes.

    Parameters
    ----------
    drift, local : ndarray [document, step]
        Amplitudes of the fold and of its one-step error.
    under : ndarray [document, step], optional
        Of the floor; without it nothing is said in floors, and what errors add is not tested.
    """
    known = np.isfinite(drift) & np.isfinite(local)
    silent, erring = known & (local == 0) & (drift > 0), known & (local > 0)
    late = np.arange(drift.shape[1]) >= late_start(drift.shape[1])
    squares = [np.where(known & late, v, 0.0) ** 2 for v in (drift, local)]
    total, own = (s.sum(axis=1) for s in squares)
    share = mean_interval(np.where(total > 0, 1 - own / np.where(total > 0, total, 1.0), np.nan), LEVEL_ALPHA)
    bottom = np.full(drift.shape, np.nan) if under is None else under
    with np.errstate(divide="ignore", invalid="ignore"):
        excess, in_floors = np.log(drift / bottom), np.log(local / bottom)
    inherited, errs = (_means(excess, there & late & np.isfinite(excess)) for there in (silent, erring))
    makes = _means(in_floors, erring & late & np.isfinite(in_floors))
    ratio, made = _level(errs - inherited, ALPHA), _level(makes - inherited)
    expected = math.sqrt(1 + made.value**2)
    return Parts(
        values=drift.size,
        nonfinite=int((~known).sum()),
        silent=int(silent.sum()),
        same=int((known & (local == 0) & (drift == 0)).sum()),
        smaller=int((known & (drift < local)).sum()),
        steps=drift.shape[1],
        silent_steps=int(silent.all(axis=0).sum()),
        mixed_steps=int((silent.any(axis=0) & ~silent.all(axis=0)).sum()),
        share=Level(share.value, share.low, share.high),
        inherited=_level(inherited),
        erring=_level(errs),
        local=_level(makes),
        ratio=ratio,
        expected=expected,
        adding=_adding(ratio, expected),
    )


def _adding(ratio: Level, expected: float) -> Adding:
    """Decide between two values that the ratio would have: 1, and that of independent errors."""
    if math.isnan(ratio.low) or math.isnan(expected):
        return Adding.NOT_TESTED
    one, squares = ratio.low <= 1, ratio.high >= expected
    if one and squares:
        return Adding.UNDETERMINED
    if one:
        return Adding.NOTHING
    if not squares:
        return Adding.PART
    return Adding.SQUARES if ratio.low <= expected else Adding.MORE


# ---------------------------------------------------------------------------------------------- along and through
def profile(curves: dict[Quantity, Float], at: Sequence[int] | np.ndarray) -> Profile:
    """Root mean squares over documents, and over what else is averaged, and the inherited part between two of them.

    Parameters
    ----------
    curves : dict of Quantity to ndarray [document, place, sample]
        Amplitudes; drift always, the others where they were measured.
    at : sequence of int
        What the places are called.
    """
    lines: dict[Quantity, pd.DataFrame] = {}
    bad = 0
    for quantity, values in curves.items():
        finite = np.isfinite(values)
        bad += int((~finite).sum())
        by_document, whole = _squares(values, finite)
        roots = np.sqrt(by_document)
        some = (roots > 0).any(axis=0)  # NaN, of a document in which nothing is finite, is not
        positive = np.where(roots > 0, roots, np.nan)
        low, high = np.where(some, positive, 1.0), np.where(some, positive, 1.0)
        lines[quantity] = pd.DataFrame(
            {
                "value": np.sqrt(whole),
                "low": np.where(some, np.nanmin(low, axis=0), np.nan),
                "high": np.where(some, np.nanmax(high, axis=0), np.nan),
            }
        )
    negative = 0
    if Quantity.ONE_STEP in curves:
        drift, local = curves[Quantity.DRIFT], curves[Quantity.ONE_STEP]
        both = np.isfinite(drift) & np.isfinite(local)
        rest = _squares(drift, both)[1] - _squares(local, both)[1]
        negative = int((rest < 0).sum())
        inherited = np.sqrt(np.where(rest >= 0, rest, np.nan))
        lines[Quantity.INHERITED] = pd.DataFrame({"value": inherited, "low": np.nan, "high": np.nan})
    return Profile(np.asarray(at), lines, negative, bad)


def _squares(values: Float, there: NDArray[np.bool_]) -> tuple[Float, Float]:
    """Mean squares of some of [document, place, sample]: by document [document, place], and of all [place]."""
    squares, counts = np.where(there, values, 0.0) ** 2, there.sum(axis=2)
    sums = squares.sum(axis=2)
    by_document = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    number = counts.sum(axis=0)
    return by_document, np.where(number > 0, sums.sum(axis=0) / np.maximum(number, 1), np.nan)


def _places(ds: xr.Dataset, measure: str) -> list[int]:
    """Layers or blocks of a measure."""
    dims = VARIABLES[measure].dims if measure in VARIABLES else ()
    dim = next((d for d in ("layer", "block") if d in dims), None)
    return [] if dim is None else [int(k) for k in ds[dim].values]


def _through(ds: xr.Dataset, one_step: xr.Dataset | None, measure: str, lack: Missing | None) -> Profile | None:
    """Late root mean squares at every layer."""
    places, power = _places(ds, measure), amplitude_power(measure)
    if not places:
        return None
    late = slice(late_start(ds.sizes["step"]), None)

    def stack(take: Any) -> Float:
        return np.stack([take(place)[:, late] for place in places], axis=1)

    curves = {Quantity.DRIFT: stack(lambda k: amplitude(ds, measure, k))}
    if lack is None:
        curves[Quantity.FLOOR] = stack(lambda k: floor_values(ds, measure, k) ** power)
    if one_step is not None:
        curves[Quantity.ONE_STEP] = stack(lambda k: amplitude(one_step, measure, k))
    return profile(curves, places)


def _over_floor(found: Profile) -> Float:
    """Drift / floor [place]; NaN without a floor."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(found.values(Quantity.DRIFT) / found.values(Quantity.FLOOR))


def _depth(ds: xr.Dataset, through: Profile) -> Depth:
    """Say where in the network drift comes to its floor, and what each block hands on."""
    ratios = _over_floor(through)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = 1 - (through.values(Quantity.ONE_STEP) / through.values(Quantity.DRIFT)) ** 2
    handed = {name: _over_floor(_through_of(ds, name)) for name in _HANDED if missing(ds, name, Of.EXCESS) is None}
    drifting = np.flatnonzero(through.values(Quantity.DRIFT) > 0)
    last = float(ratios[-1])
    if not drifting.size or not math.isfinite(last):
        return Depth(Meeting.NOT_FINITE, -1, -1, math.nan, last, math.nan, float(shares[-1]), handed)
    within = (ratios >= 1 / FACTOR) & (ratios <= FACTOR)
    first = int(drifting[0])
    outside = np.flatnonzero(~within[first:])
    start = first + (int(outside[-1]) + 1 if outside.size else 0)
    meeting = (
        Meeting.ABOVE if last > FACTOR
        else Meeting.BELOW if last < 1 / FACTOR
        else Meeting.EVERYWHERE if start == first
        else Meeting.LATER
    )  # fmt: skip
    return Depth(
        meeting=meeting,
        first=int(through.at[first]),
        reached=int(through.at[start]) if start < len(ratios) else -1,
        first_ratio=float(ratios[first]),
        last_ratio=last,
        share_first=float(shares[first]),
        share_last=float(shares[-1]),
        handed=handed,
    )


def _through_of(ds: xr.Dataset, measure: str) -> Profile:
    found = _through(ds, None, measure, None)
    assert found is not None, f"{measure} has blocks"
    return found


# ---------------------------------------------------------------------------------------------- growth
def growth_position(growth: dict[Quantity, Plateau], rounding: Rounding | None) -> Position:
    """Say whether what grows with the position grows in the floor, too.

    Parameters
    ----------
    growth : dict of Quantity to Plateau
        Of drift and floor.
    rounding : Rounding or None
        Whose growth is that of drift over floor.
    """
    if rounding is None:
        return Position.UNDETERMINED
    if rounding.growth.verdict is Verdict.GROWING:
        return Position.CHAIN
    if not rounding.growth.verdict.is_plateau:
        return Position.UNDETERMINED
    drift, under = growth[Quantity.DRIFT].growth_interval, growth[Quantity.FLOOR].growth_interval
    if drift[0] > 0:
        return Position.FLOOR_TOO if under[0] > 0 else Position.FLOOR_UNRESOLVED
    if drift[1] < 0:
        return Position.FALLS
    return Position.NONE
