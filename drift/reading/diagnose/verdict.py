"""From two dumps to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drift.dataset.rungs import RUNGS
from drift.errors import DatasetError
from drift.reading.diagnose.arithmetic import like_narrow_arithmetic, of_unknown_size
from drift.reading.diagnose.compare import Comparison, compare
from drift.reading.diagnose.envelope import COARSEST, derive, roundoff
from drift.reading.diagnose.finding import findings
from drift.reading.diagnose.floored import against_floor
from drift.reading.diagnose.floors import Text
from drift.reading.diagnose.hiding import nothing_hides
from drift.reading.diagnose.model import Cause, Diagnosis, Entry, Evidence, Finding, Verdict
from drift.reading.diagnose.naming import DOUBT, entry_of, input_evidence, step_words
from drift.reading.diagnose.narrowed import KIND_NAMES, computed_narrower, narrow_verdict
from drift.reading.diagnose.precision import with_other_precision
from drift.reading.diagnose.reach import Shortfall, absent, shortfalls
from drift.reading.diagnose.storage import CacheFault, cache_faults, narrowings
from drift.reading.diagnose.tensors import Dump, Place
from drift.reading.diagnose.unplaced import left_out

__all__ = ["diagnose"]

Floor = Dump | Comparison
"""A lane of the floor, or what was found of A and it."""


def diagnose(
    a: Dump,
    b: Dump,
    *,
    floor: Floor | Sequence[Floor] | None = None,
    texts: Sequence[tuple[Dump, Dump, Sequence[Floor]]] = (),
    unit_roundoff: float | None = None,
    other: tuple[Dump, Dump] | None = None,
) -> Diagnosis:
    """Say where two dumps begin to differ, and whether that is rounding.

    Parameters
    ----------
    a, b : Dump
        The lanes; A is the reference.
    floor : Dump, Comparison, or sequence of these, optional
        Other accepted ways to compute A, from which the rounding of each place is then measured; or what
        :func:`drift.reading.diagnose.compare.compare` found of A and one of them.
    texts : sequence of (Dump, Dump, sequence), optional
        The same of more texts: A, B and its floor each. With them, `floor` is needed.
    unit_roundoff : float, optional
        Of the arithmetic, if the numbers' format does not tell (TF32).
    other : (Dump, Dump), optional
        The same two lanes at another precision.

    Returns
    -------
    Diagnosis
        See :class:`Verdict` and :class:`Cause`. Where there are several texts, its entry, places and envelopes are of
        the first that is structural, or of the first that differs.

    Raises
    ------
    DatasetError
        If two dumps have nothing in common, or a text has no floor.
    """
    floors = [] if floor is None else [floor] if isinstance(floor, Dump | Comparison) else list(floor)
    if texts and not (floors and all(rest for _, _, rest in texts)):
        raise DatasetError("Several texts are held against floors: give each its A, its B and at least one floor.")
    judged = [_judge_pair(x, y, rest, unit_roundoff) for x, y, rest in [(a, b, floors), *texts]]
    judged.sort(key=lambda one: _TELLING.index(one.verdict))
    found = judged[0]
    if floors:
        against_floor(found, [Text(one.comparison, tuple(one.floors)) for one in judged])
    _finished(found)
    if other is not None:
        second = _judge_pair(*other, [], None)
        _finished(second)
        found = with_other_precision(found, second)
        _vouch_no_further(found)
    return found


_TELLING = [Verdict.STRUCTURAL, Verdict.NARROWER, Verdict.UNDETERMINED, Verdict.ROUNDING, Verdict.SAME]
"""Which of several texts' verdicts goes before which."""


def _finished(diagnosis: Diagnosis) -> None:
    """Take back what cannot be vouched for: numbers that nobody sees, and a lane that ends early."""
    unseen = {place: p for place, p in diagnosis.comparison.profiles.items() if p.unseen}
    if unseen:
        place, profile = next(iter(unseen.items()))
        text = (
            f"{sum(p.unseen for p in unseen.values()):,} numbers at {len(unseen)} places are NaN or Inf in both lanes, "
            f"first {profile.unseen:,} of {profile.elements:,} at {place}: what a bug does there cannot be seen"
        )
        diagnosis.notes.append(f"{text}.")
        if diagnosis.verdict in (Verdict.SAME, Verdict.ROUNDING, Verdict.NARROWER):
            diagnosis.verdict, diagnosis.cause, diagnosis.cause_text = Verdict.UNDETERMINED, Cause.NONE, ""
            diagnosis.reason = f"{text}. Compare lanes in a precision that does not overflow"
    _vouch_no_further(diagnosis)


def _vouch_no_further(diagnosis: Diagnosis) -> None:
    """Say what is missing on one side, and take back a verdict that would speak for it."""
    short = shortfalls(diagnosis.comparison)
    diagnosis.missing = [_shortfall_words(one) for one in short]
    for lane, kinds in absent(diagnosis.comparison).items():
        if kinds:
            names = " and ".join(KIND_NAMES[kind] for kind in kinds)
            diagnosis.missing.append(f"{lane} holds no {names} at all; they were not compared")
    if not short or diagnosis.verdict not in (Verdict.SAME, Verdict.ROUNDING):
        return
    agree = "is the same bits" if diagnosis.verdict is Verdict.SAME else "agrees to rounding"
    diagnosis.verdict = Verdict.UNDETERMINED
    diagnosis.reason = (
        f"{diagnosis.missing[0]}, and nothing beyond that is vouched for. What both lanes have {agree}. "
        f"Run lane {short[0].lane} to its end, or compare dumps that end at the same place"
    )


def _shortfall_words(short: Shortfall) -> str:
    other = "B" if short.lane == "A" else "A"
    if short.place is None:
        return (
            f"{short.lane} ends early: it has {short.held} tokens, its last step is {short.step}, and {other} goes on "
            f"to {short.other} tokens"
        )
    where = f"from step {short.step} (token {short.start}) on"
    if short.place.kind in ("final", "logits"):
        return f"{short.lane} ends early: {where} it lacks {short.place}, which {other} has"
    return (
        f"{short.lane} ends early: {where} it lacks {short.place} and all of that kind after it, which {other} has up "
        f"to block {short.other}"
    )


def _judge_pair(a: Dump, b: Dump, floors: Sequence[Floor], unit_roundoff: float | None) -> Diagnosis:
    found = compare(a, b)
    u = roundoff(found, unit_roundoff)
    faults = [f for dump, lane in ((a, "A"), (b, "B")) for f in cache_faults(dump, lane, u.value)]
    narrow_caches = {f.place.block: f.narrow.unit_roundoff for f in faults if f.narrow is not None}
    measured = [floor if isinstance(floor, Comparison) else compare(a, floor) for floor in floors]
    envelopes = derive(found, u, measured, narrow_caches)
    diagnosis = Diagnosis(
        Verdict.ROUNDING, Cause.NONE, "", None, [], _notes(found), found, u, envelopes, floors=measured
    )  # fmt: skip
    broken = [f for f in faults if f.narrow is None]
    if not broken and not narrow_caches and all(p.differing == 0 for p in found.profiles.values()):
        diagnosis.verdict = Verdict.SAME
        diagnosis.evidence.append(
            Evidence(f"All {sum(p.elements for p in found.profiles.values()):,} numbers that were compared are equal.")
        )
        return diagnosis
    beyond = list(findings(found, envelopes))
    structural = next((f for f in beyond if f.level == "structural"), None)
    fault = min(broken, key=lambda f: (f.step, f.place.block, f.lane), default=None)
    if fault is not None and (structural is None or _earlier(fault, structural, found)):
        _cache_verdict(diagnosis, fault)
    elif structural is not None:
        _structural_verdict(diagnosis, structural)
    else:
        _no_bug(diagnosis, beyond, [f for f in faults if f.narrow is not None])
    return diagnosis


def _notes(found: Comparison) -> list[str]:
    notes = []
    if found.reordered is not None:
        lane, width = found.reordered.lane, found.reordered.width
        notes.append(
            f"{lane}'s keys have their rotary pairs side by side (features 0, {width // 2}, 1, {width // 2 + 1}, ... "
            "of the other lane's heads), as GGUF files keep Llama's. That is the same computation; they were compared "
            "in the other's order."
        )
    for lane, places in found.only.items():
        if places:
            shown = ", ".join(str(p) for p in places[:4]) + (", ..." if len(places) > 4 else "")
            notes.append(f"Not compared, because only {lane} has them ({len(places)} places): {shown}.")
    notes += [f"Not compared: {m}." for m in found.mismatched]
    if found.a.tokens != found.b.tokens:
        notes.append(
            f"A has {found.a.tokens} tokens and B has {found.b.tokens}: the first {found.tokens} were compared."
        )
    for lane, dump in (("A", found.a), ("B", found.b)):
        notes += left_out(lane, dump)
    sources = {"tokens_sha256": "other tokens", "model": "another model"}
    for key, what in sources.items():
        values = found.a.metadata.get(key), found.b.metadata.get(key)
        if None not in values and values[0] != values[1]:
            notes.append(f"The files' own metadata say that B was made from {what} ({values[0]} and {values[1]}).")
    if Place("hidden", 0) not in found.profiles:
        notes.append("The embeddings were not dumped: the lanes are taken to have been given the same tokens.")
    return notes


def _earlier(fault: CacheFault, finding: Finding, found: Comparison) -> bool:
    """Whether a cache was wrong no later than a place that is beyond its envelope was computed.

    The cache after a step is what later steps read; whether the step itself read it so, an engine alone knows.
    """
    dump = found.a if fault.lane == "A" else found.b
    step = dump.step_of(found.segments[finding.segment][0])
    if finding.cause is not Cause.OTHER and finding.place.kind in ("key", "value"):
        return fault.step < step
    return fault.step <= step


def _cache_verdict(diagnosis: Diagnosis, fault: CacheFault) -> None:
    found = diagnosis.comparison
    dump = found.a if fault.lane == "A" else found.b
    what = f"{fault.lane}'s {str(fault.place).removeprefix('the ')} after step {fault.step}"
    diagnosis.verdict, diagnosis.cause = Verdict.STRUCTURAL, Cause.STALE_CACHE
    diagnosis.entry = Entry(
        fault.place,
        fault.step if fault.lane == "A" else found.a.step_of(min(fault.start, found.tokens - 1)),
        fault.step if fault.lane == "B" else found.b.step_of(min(fault.start, found.tokens - 1)),
        fault.start,
        fault.stop,
    )
    if fault.length is not None:
        diagnosis.cause_text = (
            f"{what} hold {fault.length[0]} tokens, but only {fault.length[1]} were appended: something was left "
            "in the "
            "cache from before"
        )
        diagnosis.evidence.append(Evidence(f"{diagnosis.cause_text}.", {"cached": fault.length[0]}))
        return
    steps = f"appended at step {dump.step_of(fault.start)}"
    if dump.step_of(fault.stop - 1) != dump.step_of(fault.start):
        steps = f"appended at steps {dump.step_of(fault.start)} to {dump.step_of(fault.stop - 1)}"
    diagnosis.cause_text = (
        f"stale cache: {what} do not hold what was {steps} (tokens {fault.start} to {fault.stop - 1})"
    )
    diagnosis.evidence.append(
        Evidence(
            f"{what[0].upper()}{what[1:]} differ from what {fault.lane} itself appended for tokens {fault.start} to "
            f"{fault.stop - 1} by {fault.relative:.2g} of their norm. A cache only keeps: these must be the same bits.",
            {"relative": fault.relative},
        )
    )
    if fault.shift is not None:
        source = fault.start + fault.shift
        diagnosis.evidence.append(
            Evidence(
                f"It holds there what was appended for tokens {source} to {fault.stop - 1 + fault.shift} "
                f"(step {dump.step_of(max(0, source))}).",
                {"shift_tokens": fault.shift},
            )
        )
        diagnosis.cause_text += f"; it holds those of step {dump.step_of(max(0, source))}"


def _structural_verdict(diagnosis: Diagnosis, finding: Finding) -> None:
    found = diagnosis.comparison
    diagnosis.entry = entry_of(found, finding.place, finding.tokens)
    diagnosis.evidence += finding.evidence
    diagnosis.cause, diagnosis.cause_text = finding.cause, finding.cause_text
    diagnosis.verdict = Verdict.STRUCTURAL
    if finding.cause is not Cause.OTHER:
        return
    if like_narrow_arithmetic(diagnosis, finding):
        diagnosis.verdict, diagnosis.cause, diagnosis.cause_text = Verdict.UNDETERMINED, Cause.NONE, ""
        diagnosis.reason = (
            "the difference is as even over all tokens, and as small, as the rounding of a lane that multiplies "
            "in TF32 "
            "or 16 bits (or whose weights were quantised) would be. If one does, say --unit-roundoff tf32; if neither "
            "does, it is structural"
        )
    elif of_unknown_size(diagnosis, finding):
        diagnosis.verdict, diagnosis.cause, diagnosis.cause_text = Verdict.UNDETERMINED, Cause.NONE, ""
        measure = f", or measure it with {_FLOOR}"
        if diagnosis.floors:
            measure = "; the floor that was given holds the same bits as A, and measures nothing"
        diagnosis.reason = (
            f"rounding of which size? The difference is {finding.ratio:.3g} times what a unit roundoff of "
            f"{diagnosis.roundoff.value:.3g} explains ({diagnosis.roundoff.why}). How numbers were kept does not tell "
            f"how they were computed, and arithmetic of {COARSEST:.3g} would explain it. Say what the engine uses "
            f"(--unit-roundoff {', '.join(RUNGS)} or a number){measure}"
        )


_FLOOR = "a second accepted way to compute A (--floor)"


def _lone_words(found: Comparison) -> str:
    """What makes single tokens stand out, as far as the dumps say what model it was."""
    bug = "a bug that hits single tokens does"
    experts = {dump.metadata.get("experts") for dump in (found.a, found.b)} - {None}
    if not experts:
        return f"Where one bit decides between two ways (routing, top-k), rounding does that, and {bug}, too"
    if experts == {"0"}:
        return f"The model is dense, so no choice of one bit turns them: {bug} that"
    return f"An expert chosen otherwise because of one bit does that, and {bug}, too"


def _sentence(place: Place) -> str:
    """A place at the beginning of a sentence."""
    words = str(place)
    return words[0].upper() + words[1:]


def _no_bug(diagnosis: Diagnosis, beyond: list[Finding], narrow_caches: list[CacheFault]) -> None:
    found, floored = diagnosis.comparison, bool(diagnosis.floors)
    narrow = [one for one in narrowings(found) if not computed_narrower(diagnosis, one)]
    doubt = [f for f in beyond if f.level == "doubt"]
    narrowed = {p.block for item in narrow for p in item.places} | {f.place.block for f in narrow_caches}
    if doubt and all(f.place.kind == "hidden" and f.place.block in narrowed for f in doubt):
        # A format that is proven takes precedence over what it may do to a block's output.
        diagnosis.notes.append(
            f"{_sentence(doubt[0].place)} is {max(f.ratio for f in doubt):.2g} times its envelope away: more than the "
            "narrower numbers should do, less than a bug for sure. Compare lanes that store alike."
        )
        doubt = []
    lone = [f for f in beyond if f.level == "lone"]
    if doubt:
        first = doubt[0]
        envelope = diagnosis.envelopes[first.place]
        diagnosis.verdict = Verdict.UNDETERMINED
        diagnosis.entry = entry_of(found, first.place, first.tokens)
        diagnosis.evidence.append(input_evidence(found, envelope, *first.tokens))
        if not envelope.known or envelope.gap:
            diagnosis.reason = (
                f"at {first.place} the difference is {first.ratio:.2g} times what one place's rounding explains, "
                "but what "
                "they were "
                "computed from was not dumped. Dump hidden states, keys and values of every block"
            )
        else:
            floor = "" if floored else f", or {_FLOOR}"
            diagnosis.reason = (
                f"at {first.place} the difference is {first.ratio:.2g} times the envelope, where {DOUBT:g} would "
                f"be structural. Dump the pair at a finer precision (--other-precision){floor}"
            )
    elif lone:
        first = max(lone, key=lambda f: f.ratio)
        diagnosis.verdict = Verdict.UNDETERMINED
        diagnosis.entry = entry_of(found, first.place, first.tokens)
        diagnosis.reason = (
            f"single tokens stand out ({first.place}, first token {first.tokens[0]}, {first.ratio:.2g} envelopes). "
            f"{_lone_words(found)}. Dump {'the pair at a finer precision (--other-precision)' if floored else _FLOOR}"
        )
    elif narrow or narrow_caches:
        narrow_verdict(diagnosis, narrow, narrow_caches)
    else:
        _rounding_evidence(diagnosis)
        nothing_hides(diagnosis)


def _rounding_evidence(diagnosis: Diagnosis) -> None:
    found = diagnosis.comparison
    worst, at = 0.0, None
    for place, envelope in diagnosis.envelopes.items():
        for start, stop in found.segments:
            piece = envelope.ratio[start:stop]
            piece = piece[np.isfinite(piece)]
            if piece.size and float(np.quantile(piece, 0.75)) > worst:
                worst, at = float(np.quantile(piece, 0.75)), (place, start)
    if at is not None:
        diagnosis.evidence.append(
            Evidence(
                f"Closest to its envelope: {at[0]}, step {step_words(found, at[1])}: three quarters of the tokens "
                f"stay below {worst:.2g} of it.",
                {"largest_ratio": worst},
            )
        )
    first = next((p for p in diagnosis.envelopes if found.profiles[p].differing), None)
    if first is not None:
        size = found.profiles[first].difference
        token = int(np.flatnonzero(np.nan_to_num(size) > 0)[0])
        diagnosis.entry = entry_of(found, first, (token, token + 1))
        diagnosis.evidence.append(
            Evidence(
                f"The first bits that differ are in {first}, token {token}, step {step_words(found, token)}.",
                {"token": token},
            )
        )
    bounds = [DOUBT * float(np.nanmedian(e.bound)) for e in diagnosis.envelopes.values()]
    diagnosis.notes.append(
        f"Rounding is not innocence: a bug that changes the tokens of one place by less than {DOUBT:g} envelopes "
        f"({min(bounds):.2g} to {max(bounds):.2g} of their norm here) reads the same. A finer precision sees "
        "smaller ones."
    )
    blind = [p for p, e in diagnosis.envelopes.items() if float(np.nanmedian(e.bound)) * DOUBT > 0.7]
    if blind:
        diagnosis.notes.append(
            f"At {len(blind)} of {len(diagnosis.envelopes)} places, first {blind[0]}, rounding may change a "
            "token by more "
            "than 0.35 of its norm: a bug that enters only there would not be seen. A finer precision shows it."
        )
