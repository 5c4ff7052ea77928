"""Why drift is flat, or is not, in sentences: each stands on what was found, and another stands where it was not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from drift.reading.cells import after_layer
from drift.reading.controls.gating import WITHHELD
from drift.reading.excess import Missing, remedy
from drift.reading.floor.model import FACTOR, Rounding
from drift.reading.plateau.model import Verdict
from drift.reading.statistics.intervals import ALPHA, LEVEL_ALPHA
from drift.reading.why.model import Adding, Answer, Chain, Depth, Explained, Level, Meeting, Parts, Position, Quantity
from drift.reading.wording.numbers import count, coverage, number, percent, range_words
from drift.reading.wording.windows import late_words

__all__ = [
    "ROOT",
    "answer",
    "depth_sentences",
    "formula",
    "of_chains",
    "parts_sentences",
    "position_sentences",
]

#: Growth per doubling of errors that add in squares from step to step.
ROOT = math.sqrt(2) - 1
_UNITS = {1: "one chain", 2: "both chains"}


# ---------------------------------------------------------------------------------------------- helpers
def of_chains(some: int, of: int) -> str:
    """Say how many of the chains: ``all 6 chains``, ``2 of 6 chains``."""
    if some == of:
        return _UNITS.get(of, f"all {of} chains")
    return f"{some} of {of} chains"


def _times(x: float) -> str:
    return number(x, 3)


def _interval(found: Level, alpha: float) -> str:
    ends = "" if math.isnan(found.low) else f" ({coverage(alpha)} interval {_times(found.low)} to {_times(found.high)})"
    return _times(found.value) + ends


def _share(x: float) -> str:
    return "an unknown share" if math.isnan(x) else f"{100 * x:.3g} %"


def _grouped(found: Explained, said: Sequence[str]) -> list[str]:
    """One sentence per chain; what is said of several in the same words is said once."""
    chains: dict[str, list[Chain]] = {}
    for one, words in zip(found.chains, said, strict=True):
        chains.setdefault(words, []).append(one)
    subjects = (_subject(mine, len(found.chains)) for mine in chains.values())
    return [f"{subject}: {words}." for subject, words in zip(subjects, chains, strict=True)]


def _subject(mine: Sequence[Chain], total: int) -> str:
    if len(mine) == 1:
        return mine[0].name
    words = of_chains(len(mine), total)
    return f"{words[:1].upper()}{words[1:]}" if len(mine) == total else "; ".join(one.name for one in mine)


def _judged(found: Explained) -> list[tuple[Chain, Rounding]]:
    return [(one, one.rounding) for one in found.chains if one.rounding is not None]


# ---------------------------------------------------------------------------------------------- the answer
def answer(found: Explained) -> str:
    """Why drift is flat, or that it is not, in one sentence: the first on the page."""
    if found.answer is Answer.CONTROLS:
        return f"{WITHHELD[:1].upper()}{WITHHELD[1:]}: why drift is flat, or is not, cannot be said."
    if found.answer is Answer.NO_CHAIN:
        return (
            f"There is no chain of {found.protocol} in this sweep that holds {found.measure}: why its drift is flat, "
            f"or is not, cannot be said. There are {', '.join(found.there)}: ask for one with -p protocol=LABEL."
        )
    judged = _judged(found)
    total = len(judged)
    which = of_chains(total, total)
    if found.answer is Answer.NO_FLOOR:
        why = found.chains[0].lacking[0]
        return (
            f"Why drift of {found.protocol} is flat, or is not, cannot be said from this sweep: "
            f"{of_chains(len(found.chains), len(found.chains))} came without what it has to be measured against "
            f"({why.value}): {remedy(why, found.protocol)}."
        )
    floors = range_words((r.level for _, r in judged), 2)
    without = len(found.chains) - total
    rest = f"; {of_chains(without, len(found.chains))} have no floor, and are not meant" if without else ""
    said = {
        Answer.AT_FLOOR: lambda: _at_floor(found, floors, which),
        Answer.ABOVE: lambda: (
            f"Rounding is not why drift of {found.protocol} is as large as it is: it lies {floors} rounding floors "
            f"from full attention in {which}, and against the floor it is flat in "
            f"{sum(r.growth.verdict.is_plateau for _, r in judged)} of {total}"
        ),
        Answer.GROWING: lambda: (
            f"Drift of {found.protocol} is not flat: against full attention's own rounding floor it grows by "
            f"{range_words((r.growth.growth_per_doubling for _, r in judged), write=percent)} per doubling of the "
            f"chain in {which}, so that the chain accumulates error"
        ),
        Answer.BELOW: lambda: (
            f"Drift of {found.protocol} lies below full attention's own rounding floor in {which} ({floors} floors): "
            "the floor is no measure of what this fold rounds"
        ),
        Answer.DIFFERENT: lambda: _mixed(found, judged),
        Answer.UNDETERMINED: lambda: _mixed(found, judged),
    }[found.answer]()
    return f"{said}{rest}."


def _at_floor(found: Explained, floors: str, which: str) -> str:
    """The sentence of drift that is rounding in all chains: why errors do not build up, as far as it was tested."""
    size = (
        f"it stays as far from full attention as one rounding of its input takes full attention from itself "
        f"({floors} floors in {which}, flat against it)"
    )
    tested = _tested(found)
    kinds = {parts.adding for _, parts in tested}
    total = len(found.chains)
    asked = "," if len(tested) == total else f", in {of_chains(len(tested), total)} that could be asked,"
    ratios = range_words((p.ratio.value for _, p in tested), 3)
    wanted = range_words((p.expected for _, p in tested), 3)
    if kinds == {Adding.NOTHING}:
        return (
            f"Drift of {found.protocol} does not build up because errors do not add up: {size}, and where a step makes "
            f"an error of its own{asked} drift is {ratios} times what it is where it only inherits (independent errors "
            f"would make it {wanted} times)"
        )
    if kinds and kinds <= {Adding.NOTHING, Adding.PART}:
        return (
            f"Drift of {found.protocol} does not build up because errors hardly add up: {size}, and where a step makes "
            f"an error of its own{asked} drift is {ratios} times what it is where it only inherits: less than the "
            f"{wanted} times that independent errors would make it"
        )
    if kinds:
        return (
            f"Drift of {found.protocol} is rounding: {size}; why errors do not build up is not decided by these data "
            f"({_adding_counts(tested)})"
        )
    return (
        f"Drift of {found.protocol} is rounding: {size}; why errors do not build up was not tested, which takes steps "
        "that make an error of their own beside steps that make none"
    )


def _mixed(found: Explained, judged: Sequence[tuple[Chain, Rounding]]) -> str:
    """The sentence where chains differ, or do not decide: what can be said of level and growth all the same."""
    total = len(judged)
    known = [r for _, r in judged if not math.isnan(r.level)]
    if not known:
        reasons = dict.fromkeys(r.reason.value for _, r in judged if r.reason is not None)
        return (
            f"Why drift of {found.protocol} is flat, or is not, these data do not decide: it cannot be held against "
            f"its floor in {of_chains(total, total)} ({'; '.join(reasons)})"
        )
    floors = range_words(r.level for r in known)
    near = sum(r.level_interval[0] >= 1 / FACTOR and r.level_interval[1] <= FACTOR for r in known)
    size = (
        f"is as large as full attention's own rounding floor in {of_chains(near, total)} ({floors} floors)"
        if near == total
        else f"is {floors} rounding floors of full attention, within a factor {_times(FACTOR)} of the floor in {near} "
        f"of {total} chains"
    )
    counts = Counter(_FLATNESS.get(r.growth.verdict, "flat") for _, r in judged)
    kinds = ", ".join(f"{kind} in {n}" for kind, n in counts.items())
    rates = [r.growth.growth_per_doubling for r in known if not math.isnan(r.growth.growth_per_doubling)]
    growth = f" (growth {range_words(rates, write=percent)} per doubling of the chain)" if rates else ""
    return f"Drift of {found.protocol} {size}; against the floor it is {kinds} of {total}{growth}"


_FLATNESS = {Verdict.GROWING: "growing", Verdict.DECAYING: "falling", Verdict.UNDETERMINED: "undetermined"}


# ---------------------------------------------------------------------------------------------- the parts
def _tested(found: Explained) -> list[tuple[Chain, Parts]]:
    return [(c, c.parts) for c in found.chains if c.parts is not None and c.parts.adding is not Adding.NOT_TESTED]


_ADDING = {
    Adding.NOTHING: "an own error adds nothing that is resolved",
    Adding.PART: "an own error adds less than an independent one would",
    Adding.SQUARES: "an own error adds as an independent one does",
    Adding.MORE: "where a step errs there is more drift than an independent error would add",
    Adding.UNDETERMINED: "whether an own error adds anything is undetermined",
}


def _adding_counts(tested: Sequence[tuple[Chain, Parts]]) -> str:
    counts = Counter(parts.adding for _, parts in tested)
    return "; ".join(f"{_ADDING[kind]} in {n} of {len(tested)}" for kind, n in counts.items())


def formula() -> str:
    """Say in a paragraph what the inherited part is, and when the formula holds."""
    return (
        "A *value* is one document at one step. The error of one step is that of a chunk computed on full attention's "
        "own keys and values: it inherits nothing. Where it is exactly zero, **all** drift is inherited. Elsewhere the "
        "inherited part is drawn by inherited² = drift² − (error of one step)², of root mean squares. That holds if "
        "both errors are independent, so that they add in squares. They are not where the error of one step is itself "
        "as large as the floor: two results that both lie as far from full attention as rounding goes are equally far "
        "from it, whether they have a digit in common or not, and the formula gives little where all may be inherited. "
        "So it is put to a test: drift where a step errs over drift where it does not, in floors; independent errors "
        "would make that ratio √(1 + (error of one step / inherited drift)²), errors that do not add up make it 1. "
        f"Where its interval ({coverage(ALPHA)}, over documents) holds one of the two and not the other, it is decided."
    )


def parts_sentences(found: Explained) -> list[str]:
    """Say per chain where its steps err, what is inherited, and what one adds to the other."""
    return _grouped(found, [_parts_words(one) for one in found.chains])


def _parts_words(one: Chain) -> str:
    p = one.parts
    if p is None:
        return f"{Missing.ONE_STEP.value}; {remedy(Missing.ONE_STEP, str(one.labels['protocol']))}"
    bad = f" ({p.nonfinite} more are NaN or Inf)" if p.nonfinite else ""
    if not p.silent:
        return (
            f"{_silence(p)}{bad}; past the start, its own error is {_own(p)}, and of its square "
            f"{_share(p.share.value)} is inherited by the formula"
        )
    return f"{_silence(p)}{bad}; {_tested_words(p)}; of its square {_share(p.share.value)} is inherited by the formula"


def _silence(p: Parts) -> str:
    """Where steps make no error."""
    known = p.values - p.nonfinite
    if not p.silent:
        return f"at each of the {known - p.same} values that drift, the step makes an error of its own"
    where = (
        f"at the same {count(p.silent_steps)} of {p.steps} steps in every document"
        if not p.mixed_steps
        else f"in every document at {p.silent_steps} of {p.steps} steps, at {p.mixed_steps} in some"
    )
    return (
        f"at {p.silent} of {known} values one step makes no error, and all drift is inherited ({where}); at {p.same} "
        "the fold itself gives the same bits as full attention"
    )


def _own(p: Parts) -> str:
    if math.isnan(p.local.value):
        return "not known in floors"
    size = f"{_interval(p.local, LEVEL_ALPHA)} floors"
    return f"{size}, of the floor's size by itself" if p.local.value >= 1 / FACTOR else size


def _tested_words(p: Parts) -> str:
    """What an own error adds to inherited drift."""
    if p.adding is Adding.NOT_TESTED:
        reason = (
            "no floor" if math.isnan(p.inherited.value) and math.isnan(p.erring.value)
            else f"{late_words()} no step only inherits" if math.isnan(p.inherited.value)
            else f"{late_words()} no step errs" if math.isnan(p.erring.value)
            else "too few documents"
        )  # fmt: skip
        level = "" if math.isnan(p.inherited.value) else f", and inherited drift is {_times(p.inherited.value)} floors"
        return f"what an own error adds is not tested ({reason}{level})"
    return (
        f"{late_words()}, drift is {_interval(p.inherited, LEVEL_ALPHA)} floors where it is inherited, and "
        f"{_interval(p.erring, LEVEL_ALPHA)} where the step errs, by {_own(p)}: {_ADDING[p.adding]} (ratio "
        f"{_interval(p.ratio, ALPHA)}; independent errors: {_times(p.expected)})"
    )


# ---------------------------------------------------------------------------------------------- depth of the network
def depth_sentences(found: Explained) -> list[str]:
    """Say per chain where in the network drift comes to its floor, and what the blocks hand on."""
    return _grouped(found, [_through_words(found, one) for one in found.chains])


def _through_words(found: Explained, one: Chain) -> str:
    if one.through is None:
        return f"{found.measure} is not measured layer by layer"
    if one.depth is None:
        return f"{one.lacking[0].value}; {remedy(one.lacking[0], found.protocol)}"
    return _depth_words(one, one.depth)


def _place(one: Chain, place: int) -> str:
    assert one.through is not None
    layers = len(one.through.at) == one.ds.sizes["layer"]
    return after_layer(one.ds, place) if layers else f"in block {place}"


def _depth_words(one: Chain, d: Depth) -> str:
    if d.meeting is Meeting.NOT_FINITE:
        return "there is no drift through the network that could be held against its floor"
    words = {
        Meeting.LATER: (
            f"drift begins at {_times(d.first_ratio)} floors {_place(one, d.first)}, is within a factor "
            f"{_times(FACTOR)} of the floor from {_place(one, d.reached).removeprefix('after ')} on, and ends at "
            f"{_times(d.last_ratio)}"
            if d.reached >= 0 else ""
        ),
        Meeting.EVERYWHERE: (
            f"wherever there is drift, from {_place(one, d.first).removeprefix('after ')} on, it is within a factor "
            f"{_times(FACTOR)} of the floor, and ends at {_times(d.last_ratio)} floors"
        ),
        Meeting.ABOVE: (
            f"drift begins at {_times(d.first_ratio)} floors {_place(one, d.first)} and ends above the floor, at "
            f"{_times(d.last_ratio)}"
        ),
        Meeting.BELOW: (
            f"drift begins at {_times(d.first_ratio)} floors {_place(one, d.first)} and ends below the floor, at "
            f"{_times(d.last_ratio)}"
        ),
    }[d.meeting]  # fmt: skip
    if not math.isnan(d.share_last):
        words += (
            f"; of its square {_share(d.share_first)} is inherited {_place(one, d.first)}, and "
            f"{_share(d.share_last)} at the end"
        )
    most = handed_most(d)
    if math.isfinite(most):
        words += f"; keys and values, which later steps inherit, are off by {_times(most)} floors at most in any block"
    return words


def handed_most(d: Depth) -> float:
    """Most floors by which keys or values of a block are off; NaN where that was not measured."""
    known = [float(x) for values in d.handed.values() for x in values if not math.isnan(x)]
    return max(known, default=math.nan)


# ---------------------------------------------------------------------------------------------- growth
_POSITION = {
    Position.FLOOR_TOO: "drift grows, the floor, which has no chain, grows too, and one over the other is flat: the "
    "growth is that of the position",
    Position.FLOOR_UNRESOLVED: "drift grows and is flat against the floor, whose own growth is not resolved",
    Position.NONE: "no growth of drift is resolved, and against the floor it is flat",
    Position.FALLS: "drift falls, and is flat against the floor",
    Position.CHAIN: "drift grows away from the floor: that growth is the chain's",
    Position.UNDETERMINED: "whether drift grows against the floor is undetermined",
}


def position_sentences(found: Explained) -> list[str]:
    """Say per chain what grows with the position, with a chain and without one."""
    said = []
    for one in found.chains:
        rates = [
            f"{quantity.value} {percent(judged.growth_per_doubling)} ({percent(judged.growth_interval[0])} to "
            f"{percent(judged.growth_interval[1])})"
            for quantity, judged in one.growth.items()
            if not math.isnan(judged.growth_per_doubling)
        ]
        judged = ", ".join(rates) or "no growth can be estimated"
        if one.rounding is None:
            said.append(f"{one.name}: {judged}; {one.lacking[0].value}, so that nothing says whose growth that is.")
            continue
        g = one.rounding.growth
        over = "" if math.isnan(g.growth_per_doubling) else (
            f", drift over floor {percent(g.growth_per_doubling)} ({percent(g.growth_interval[0])} to "
            f"{percent(g.growth_interval[1])})"
        )  # fmt: skip
        silent = "" if Quantity.ONE_STEP not in one.growth or not math.isnan(
            one.growth[Quantity.ONE_STEP].growth_per_doubling
        ) else "; the error of one step is exactly zero too often for a growth of its own"  # fmt: skip
        verdict = f": {_POSITION[one.position]}" if found.gate.is_open else ""
        said.append(f"{one.name}: {judged}{over}{silent}{verdict}.")
    return said
