"""What follows from all that was found, step by step, and what does not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pandas as pd

from drift.reading.controls.gating import WITHHELD
from drift.reading.excess import remedy
from drift.reading.floor.model import FACTOR
from drift.reading.plateau.model import Verdict
from drift.reading.statistics.intervals import ALPHA, LEVEL_ALPHA
from drift.reading.why.model import Adding, Chain, Explained, Position, Quantity, Responding, Response
from drift.reading.why.wording import ROOT, handed_most, of_chains
from drift.reading.wording.numbers import coverage, number, percent, range_words
from drift.reading.wording.tables import absent
from drift.reading.wording.windows import late_words

__all__ = [
    "RESPONSE_COMMAND",
    "explanation",
    "growth_table",
    "limits",
    "response_sentences",
    "response_table",
    "table",
    "table_legend",
]

#: What would measure the response to disturbances of several sizes.
RESPONSE_COMMAND = (
    "python -m drift.sweep SWEEP.yaml --set floor_draws=2 --set "
    "'protocol=full(noise=0.01),full(noise=0.2),full(noise=1),full(noise=100),full(noise=10000)'"
)


# ---------------------------------------------------------------------------------------------- response
def response_sentences(found: Explained) -> list[str]:
    """Say what becomes of disturbances of several sizes; how to measure that where it was not."""
    if not found.responses:
        return [absent("Full attention disturbed by more or less than one unit roundoff", RESPONSE_COMMAND)]
    if not found.gate.is_open:
        return [f"{WITHHELD[:1].upper()}{WITHHELD[1:]}."]
    return [f"{_responding(one)}: {_response_words(one)}." for one in found.responses]


def _responding(one: Response) -> str:
    return "{model}, {dtype}".format(**one.noise.labels)


def _response_words(one: Response) -> str:
    felt = [(s, v) for s, v in zip(one.noise.sizes.tolist(), one.levels, strict=True) if v > 0]
    quiet = one.noise.silent.tolist()
    unfelt = (
        f"; a disturbance of {range_words(quiet)} unit roundoffs changes no bit, since rounding undoes it" if quiet
        else ""
    )  # fmt: skip
    if not felt:
        return f"no response that could be held against that to one unit roundoff{unfelt}"
    (least, low), (most, high) = felt[0], felt[-1]
    near = f"one of {number(least)} unit roundoffs ends {number(low, 3)} floors away"
    words = {
        Responding.SATURATED: f"{near}, as if it had been of one: the network does not keep its size",
        Responding.SHRINKS: f"{near}: a smaller disturbance ends nearer",
        Responding.NOT_TESTED: f"none below one unit roundoff was felt; {near}",
    }[one.verdict]
    beyond = [(s, v) for s, v in felt if v > FACTOR]
    if beyond:
        first, away = beyond[0]
        words += f"; from {number(first)} unit roundoffs on it ends above the floor ({number(away, 3)} floors)"
        if most > first:
            words += f", and one of {number(most)} at {number(high, 3)}"
    else:
        words += f"; none up to {number(most)} unit roundoffs ends above the floor"
    ends = one.noise.proportional
    stretch = f"; in proportion to its size from {number(ends[0])} to {number(ends[1])}" if ends else ""
    return words + stretch + unfelt


def response_table(found: Explained) -> pd.DataFrame:
    """One row per model, precision and size, for reading."""
    return pd.DataFrame(
        [
            {
                "model": one.noise.labels["model"],
                "precision": one.noise.labels["dtype"],
                "disturbance, unit roundoffs": number(size),
                "response": number(absolute, 3),
                "in floors": "–" if math.isnan(level) else number(level, 3),
            }
            for one in found.responses
            for size, absolute, level in zip(one.noise.sizes, one.noise.level, one.levels, strict=True)
        ]
    )


# ---------------------------------------------------------------------------------------------- step by step
def explanation(found: Explained) -> list[str]:
    """Say what the data bear out of an explanation, one step after the other, and where they do not."""
    if not found.gate.is_open:
        return [f"{WITHHELD[:1].upper()}{WITHHELD[1:]}."]
    if not found.chains:
        return []
    return [*_saturation(found), *_handed(found), *_added(found), *_grown(found), *_walked(found)]


def _saturation(found: Explained) -> Iterator[str]:
    """Does the network keep the size of a disturbance?"""
    kinds = Counter(one.verdict for one in found.responses)
    shrinks, total = kinds[Responding.SHRINKS], kinds[Responding.SATURATED] + kinds[Responding.SHRINKS]
    starts = [one.noise.proportional[0] for one in found.responses if one.noise.proportional is not None]
    large = (
        f" Large ones are kept, in proportion from {range_words(starts)} unit roundoffs on, in {len(starts)} of "
        f"{len(found.responses)} responses." if starts else ""
    )  # fmt: skip
    about = "The size of a disturbance"
    if not total:
        yield (
            f"{about}: not tested below one unit roundoff; that the network ends any smaller one at its floor is not "
            f"shown.{large}"
        )
    elif shrinks:
        yield (
            f"{about}: kept in {shrinks} of {total} responses, where one below a unit roundoff ends nearer than the "
            f"floor: the floor is no common end of disturbances there.{large}"
        )
    else:
        yield (
            f"{about}: not kept below a unit roundoff: in {'all ' if total > 1 else ''}{total} "
            f"response{'s' * (total > 1)} a smaller one ends where one of a unit roundoff does, within a factor "
            f"{number(FACTOR, 3)}: at the floor.{large}"
        )


def _handed(found: Explained) -> Iterator[str]:
    """Is what a step inherits at the floor?"""
    most = {one.name: handed_most(one.depth) for one in found.chains if one.depth is not None}
    known = {name: value for name, value in most.items() if math.isfinite(value)}
    about = "What a step inherits"
    if not known:
        yield f"{about}: not measured in floors."
    elif max(known.values()) <= FACTOR:
        yield (
            f"{about}: keys and values that are at most {range_words(known.values())} floors from those of full "
            f"attention, in any block of {of_chains(len(known), len(found.chains))}: no more than one rounding makes."
        )
    else:
        above = [name for name, value in known.items() if value > FACTOR]
        yield (
            f"{about}: keys and values that in some block are up to {number(max(known.values()))} floors from those of "
            f"full attention ({'; '.join(above)}): more than one rounding makes."
        )


def _added(found: Explained) -> Iterator[str]:
    """Does a step add its own error?"""
    tested = [one.parts for one in found.chains if one.parts is not None and one.parts.adding is not Adding.NOT_TESTED]
    about = "What a step adds"
    if not tested:
        yield f"{about}: not tested: no chain has both steps that err by themselves and steps that do not."
        return
    counts, total = Counter(parts.adding for parts in tested), len(tested)
    sub = counts[Adding.NOTHING] + counts[Adding.PART]
    ratios = f"{range_words((p.ratio.value for p in tested), 3)} times the drift of steps that only inherit"
    wanted = range_words((p.expected for p in tested), 3)
    if sub == total:
        nothing = counts[Adding.NOTHING]
        yield (
            f"{about}: less than an independent error would: {ratios}, not {wanted}; in {of_chains(nothing, total)} "
            "nothing that is resolved. So errors do not add in squares, and the inherited part that is drawn where a "
            "step errs is too small."
        )
    else:
        yield (
            f"{about}: {ratios} ({wanted} for independent errors): less than an independent error in {sub} of {total} "
            f"chains, as much in {counts[Adding.SQUARES]}, more in {counts[Adding.MORE]}, undetermined in "
            f"{counts[Adding.UNDETERMINED]}."
        )


def _grown(found: Explained) -> Iterator[str]:
    """Does anything grow that is the chain's?"""
    judged = [one for one in found.chains if one.rounding is not None]
    about = "What grows"
    if not judged:
        yield f"{about}: whose growth it is cannot be said without a floor."
        return
    growth = [one.rounding.growth for one in judged if one.rounding is not None]
    rates = [g.growth_per_doubling for g in growth if not math.isnan(g.growth_per_doubling)]
    counts, total = Counter(one.position for one in judged), len(judged)
    if not rates:
        yield f"{about}: no growth against the floor could be estimated."
        return
    flat = sum(g.verdict.is_plateau for g in growth)
    words = (
        f"against the floor drift changes by {range_words(rates, write=percent)} per doubling of the chain, and is "
        f"flat in {flat} of {total} chains"
    )
    if counts[Position.FLOOR_TOO]:
        words += f"; in {counts[Position.FLOOR_TOO]} drift grows and full attention's own floor grows with it"
    if counts[Position.CHAIN]:
        words += f"; in {counts[Position.CHAIN]} it grows away from the floor, which is the chain's doing"
    highest = max((g.growth_interval[1] for g in growth), default=math.nan)
    known = not any(math.isnan(g.growth_interval[1]) for g in growth)
    if known and highest < ROOT:
        words += (
            f"; errors that add up from step to step as a random walk does would make it {percent(ROOT)}, which every "
            f"{coverage(ALPHA)} interval excludes (the highest ends at {percent(highest)})"
        )
    elif known:
        words += f"; {percent(ROOT)}, which errors would make that add up as a random walk does, is not excluded"
    yield f"{about}: {words}."


def _walked(found: Explained) -> Iterator[str]:
    """Would a chain that accumulates be seen?"""
    about = "Would accumulation be seen?"
    if not found.walks:
        return
    said = []
    for labels, rounding in found.walks:
        g = rounding.growth
        name = "{protocol}, {model}, {dtype}".format(**labels)
        verdict = g.verdict.value.replace("_", " ")
        said.append(f"{name}: {percent(g.growth_per_doubling)} a doubling against the floor, {verdict}")
    seen = sum(rounding.growth.verdict is Verdict.GROWING for _, rounding in found.walks)
    yield (
        f"{about} Chains whose whole cache was disturbed at every step, and kept so, were called growing in {seen} of "
        f"{len(found.walks)} cases ({'; '.join(said)})."
    )


# ---------------------------------------------------------------------------------------------- what it does not show
def _whole(x: float) -> str:
    return f"{x:.0f}"


def limits(found: Explained) -> list[str]:
    """List what the data do not show, from what they are."""
    if not found.chains:
        return []
    longest = max(one.labels["steps"] for one in found.chains) - 1
    documents = range_words((one.labels["documents"] for one in found.chains), write=_whole)
    texts = ", ".join(dict.fromkeys(str(one.ds.attrs.get("corpus", "unknown text")) for one in found.chains))
    devices = ", ".join(dict.fromkeys(str(one.ds.attrs.get("device_name", "unknown")) for one in found.chains))
    said = [
        f"Longer chains: nothing is said beyond {longest} transitions, nor of other texts than {texts} ({documents} "
        f"documents), nor of the kernels of another machine than {devices}.",
        "Why the network brings disturbances to this level: levels and responses show that it does or does not; no "
        "derivative of any block was measured.",
        "That full attention is right: drift and floor are both distances from full attention at the same precision, "
        "not from the exact result.",
        "What it does to a task: these are distances between states, not answers to questions.",
    ]
    formula = [
        one for one in found.chains if one.parts is not None and one.parts.adding in (Adding.NOTHING, Adding.PART)
    ]
    if formula:
        said.append(
            f"How much is inherited where a step errs: in {of_chains(len(formula), len(found.chains))} errors do not "
            "add in squares, so that the formula is no measure of it there; where no step errs, all is."
        )
    draws = sorted({one.ds.sizes["draw"] for one in found.chains if "draw" in one.ds.dims})
    if draws:
        said.append(
            f"Other ways to round: the floor disturbs embeddings alone, in {range_words(draws, write=_whole)} draws; "
            "another kernel or another batch rounds elsewhere."
        )
    return [*said, *_gaps(found)]


def _gaps(found: Explained) -> Iterator[str]:
    """What is missing in these cells."""
    missing: dict[str, list[Chain]] = {}
    for one in found.chains:
        for why in one.lacking:
            missing.setdefault(f"{why.value}; {remedy(why, found.protocol)}", []).append(one)
    for words, chains in missing.items():
        yield f"In {of_chains(len(chains), len(found.chains))}: {words}."
    bad = [one for one in found.chains if not one.finite]
    if bad:
        yield f"NaN or Inf: {'; '.join(f'{one.name} ({one.along.nonfinite} values)' for one in bad)}."
    undecided = [
        _undecided(one) for one in found.chains if one.rounding is not None and one.rounding.reason is not None
    ]
    if undecided:
        yield f"Where these chains stand to the floor: undetermined of {'; '.join(undecided)}."
    if not found.responses:
        yield absent("Response to disturbances of other sizes", RESPONSE_COMMAND)
    if found.others:
        yield f"Other chains of {found.protocol}: {found.others} more are in the sweep and not on this page."
    folds = [name for name in found.there if name != found.protocol]
    if folds:
        yield f"Other folds: {', '.join(folds)}; -p protocol=LABEL asks for one."


def _undecided(one: Chain) -> str:
    assert one.rounding is not None and one.rounding.reason is not None
    needed = [
        f"{_whole(wanted)} {what}"
        for wanted, what in (
            (one.rounding.growth.documents_needed, "documents"), (one.rounding.growth.steps_needed, "steps")
        )
        if math.isfinite(wanted)
    ]  # fmt: skip
    would = f"; about {' or '.join(needed)} would decide" if needed else ""
    return f"{one.name} ({one.rounding.reason.value}{would})"


# ---------------------------------------------------------------------------------------------- tables
def _known(x: float) -> str:
    return "–" if math.isnan(x) else number(x, 3)


def _ends(low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"{number(low, 3)} to {number(high, 3)}"


def table(found: Explained) -> pd.DataFrame:
    """One row per chain, for reading: sizes, and where they come from."""
    rows = []
    for one in found.chains:
        r, p, g = one.rounding, one.parts, one.growth
        standing = "no floor" if r is None else r.verdict.value.replace("_", " ")
        if r is not None and r.reason is not None:
            standing += f": {r.reason.value}"
        rows.append(
            {
                "chain": f"{one.labels['model']}, {one.labels['dtype']}",
                "steps × documents": f"{one.labels['steps']} × {one.labels['documents']}",
                "drift": _known(g[Quantity.DRIFT].level),
                "rounding floor": "–" if r is None else _known(g[Quantity.FLOOR].level),
                "drift / floor": "–" if r is None else _known(r.level),
                f"{coverage(LEVEL_ALPHA)} interval": "–" if r is None else _ends(*r.level_interval),
                "against the floor": standing,
                "all inherited at": "–" if p is None else f"{p.silent} of {p.values - p.nonfinite} values",
                "drift / floor there": "–" if p is None else _known(p.inherited.value),
                "where a step errs": "–" if p is None else _known(p.erring.value),
                "its own error / floor": "–" if p is None else _known(p.local.value),
            }
        )
    return pd.DataFrame(rows)


def growth_table(found: Explained) -> pd.DataFrame:
    """Growth per doubling of the chain over the same steps, with intervals, for reading."""
    rows = []
    for one in found.chains:
        judged = {quantity.value: result for quantity, result in one.growth.items()}
        if one.rounding is not None:
            judged["drift / floor"] = one.rounding.growth
        row: dict[str, str] = {"chain": f"{one.labels['model']}, {one.labels['dtype']}"}
        for name in (Quantity.DRIFT.value, Quantity.FLOOR.value, Quantity.ONE_STEP.value, "drift / floor"):
            result = judged.get(name)
            row[name] = (
                "–" if result is None
                else result.reason.value if math.isnan(result.growth_per_doubling) and result.reason is not None
                else f"{percent(result.growth_per_doubling)} ({percent(result.growth_interval[0])} to "
                f"{percent(result.growth_interval[1])})"
            )  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def table_legend() -> str:
    """Explain the table of :func:`table`, in Markdown."""
    return (
        f"Drift, floor and their quotient: geometric means {late_words()} of the chain, over documents. `drift / floor "
        "there`: where one step makes no error, so that all drift is inherited; the rows below it: where a step errs, "
        "and by how much alone. A value is one document at one step. A floor is how far full attention is from itself "
        "with its embeddings disturbed by one unit roundoff."
    )
