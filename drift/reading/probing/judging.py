"""Hold every lane of a probe against the cold one.

A floor is a lane of another kind, or a repeat: the lanes of a cache are never held against each other, for a bug of the
cache moves all of them. Each candidate is asked alone, and the one that excuses a lane does: beyond is what is beyond
all. What is beyond is no floor for others, which are then judged again.

Greedy texts may part where two tokens are all but equally likely. They are compared up to there, and the margin at
which they part is held against what the floor moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from drift.dataset.probes import Answer, AskedLane, Kind, Probe, View
from drift.reading.logits.comparing import decide_lanes
from drift.reading.logits.deciding import LEAST_POSITIONS, TAIL
from drift.reading.logits.importers.base import logprob_sequence
from drift.reading.logits.lanes import Lane
from drift.reading.logits.model import Decision, Reason, Verdict
from drift.reading.probing.model import CACHED, FLIP, KERNELS, SHARE, Found, Pair, Parting, Why

__all__ = ["judge"]

_FORM = "answers of a server"


def judge(probe: Probe) -> Found:
    """Judge a probe.

    Raises
    ------
    DatasetError
        If the answers hold what is no log-probability.
    """
    pairs: list[Pair] = []
    for view in View:
        lanes = probe.of(view)
        if lanes:
            pairs += _View(lanes).judged()
    return Found(probe, tuple(pairs))


def _lane(asked: AskedLane, lengths: Sequence[int] | None = None) -> Lane:
    """A lane as it is compared: of each answer so many positions."""
    ends = [len(one.tokens) for one in asked.answers] if lengths is None else lengths
    numbered = all(isinstance(token, int) for one in asked.answers for token in one.tokens)
    found = []
    for one, end in zip(asked.answers, ends, strict=True):
        made = logprob_sequence(None, list(one.logprobs[:end]), list(one.tops[:end]) or None)
        # Nothing at all has no type of its own, and is none of another text.
        found.append(replace(made, tokens=np.array(one.tokens[:end], dtype=np.int64 if numbered else object)))
    return Lane(asked.name, _FORM, tuple(found))


def _compared(a: Lane, b: Lane, floor: Sequence[Lane] = ()) -> Decision | None:
    """Compare; None where they have no token in common."""
    if not any(one.given is not None and one.given.any() for one in b.sequences):
        return None
    return decide_lanes(a, b, floor)


def _common(a: Answer, b: Answer) -> int:
    """Tokens up to which two answers are the same."""
    shorter = min(len(a.tokens), len(b.tokens))
    return next((n for n in range(shorter) if a.tokens[n] != b.tokens[n]), shorter)


def _parting(prompt: int, cold: Answer, other: Answer) -> Parting | None:
    """Where an answer goes on otherwise; None where it does not."""
    at = _common(cold, other)
    if at == len(cold.tokens) == len(other.tokens):
        return None
    margin = math.nan
    if at < min(len(cold.names), len(other.names)) and at < len(cold.tops):
        top, value = cold.tops[at], cold.logprobs[at]
        if value is not None and other.names[at] in top:
            margin = value - top[other.names[at]]
    return Parting(prompt, at, margin)


def _anew(lane: AskedLane) -> bool:
    """Whether a lane was computed, and not taken from a cache: what the server tells counts before what it was told."""
    share = lane.cached_share
    return lane.anew if share is None else share <= CACHED


def _kind(lane: AskedLane) -> Kind:
    """What a lane varies: a repeat that came from a cache, or may have, is a lane of the cache."""
    return Kind.CACHE if lane.kind is Kind.REPEAT and not _anew(lane) else lane.kind


@dataclass(frozen=True)
class _Held:
    """A lane held against one candidate for a floor, or against all that vary something else together."""

    floor: str
    found: Decision
    own: bool  # of the lane's own kind

    @property
    def tells(self) -> bool:
        """Whether there is enough for an interval."""
        return self.found.verdict is not Verdict.UNDETERMINED or self.found.reason is not Reason.TOO_FEW

    @property
    def low(self) -> float:
        """Lower end of distance over floor; NaN where there is none."""
        return math.nan if self.found.excess is None else self.found.excess.low

    @property
    def order(self) -> tuple[bool, bool, bool, float]:
        """What excuses comes first, then what tells more, then what accuses less."""
        over, verdict = self.found.excess, self.found.verdict
        ratio = over.ratio if over is not None and math.isfinite(over.ratio) else math.inf
        return verdict is not Verdict.WITHIN, not self.tells, verdict is Verdict.BEYOND, ratio


class _View:
    """The lanes of one view."""

    def __init__(self, lanes: Sequence[AskedLane]) -> None:
        self.cold = next(one for one in lanes if one.kind is Kind.COLD)
        self.models = [one for one in lanes if one.kind is Kind.MODEL]
        self.others = [one for one in lanes if one.kind not in (Kind.COLD, Kind.MODEL)]
        self._plain = {one.name: self._against_cold(one) for one in self.others}

    def judged(self) -> list[Pair]:
        """All pairs; those beyond are left out of the floors of the others, until nothing changes."""
        beyond: dict[str, Pair] = {}
        while True:
            pairs = {one.name: beyond.get(one.name) or self._pair(one, beyond) for one in self.others}
            more = {name: pair for name, pair in pairs.items() if pair.verdict is Verdict.BEYOND}
            if len(more) == len(beyond):
                return [*pairs.values(), *self._of_model()]
            beyond = more

    def _lengths(self, lane: AskedLane) -> list[int]:
        return [_common(a, b) for a, b in zip(self.cold.answers, lane.answers, strict=True)]

    def _against_cold(self, lane: AskedLane, floor: Sequence[AskedLane] = ()) -> Decision | None:
        lengths = self._lengths(lane)
        return _compared(_lane(self.cold, lengths), _lane(lane, lengths), [*map(self._floor, floor)])

    def _floor(self, lane: AskedLane) -> Lane:
        """A lane as a floor: of each answer what comes from the first difference on.

        What is the same bits up to there was not computed otherwise, and measures nothing.
        """
        answers = []
        for cold, answer in zip(self.cold.answers, lane.answers, strict=True):
            end = _common(cold, answer)
            first = next((n for n in range(end) if cold.logprobs[n] != answer.logprobs[n]), end)
            answers.append(replace(answer, logprobs=(*[None] * first, *answer.logprobs[first:])))
        return _lane(replace(lane, answers=tuple(answers)), self._lengths(lane))

    def _candidates(self, lane: AskedLane, beyond: dict[str, Pair]) -> list[AskedLane]:
        """Lanes that tell how far rounding moves this one."""
        kind, found = _kind(lane), []
        for other in self.others:
            plain = self._plain[other.name]
            if other is lane or other.name in beyond or plain is None or plain.pairs.same.all():
                continue
            if kind is Kind.CACHE and (_kind(other) is Kind.CACHE or not _anew(other)):
                continue
            if kind is Kind.REPEAT and _kind(other) is Kind.CACHE:
                continue
            found.append(other)
        return found

    def _pair(self, lane: AskedLane, beyond: dict[str, Pair]) -> Pair:
        kind, plain = _kind(lane), self._plain[lane.name]
        parted = [_parting(n, a, b) for n, (a, b) in enumerate(zip(self.cold.answers, lane.answers, strict=True))]
        base = Pair(
            lane.view, lane.name, kind, Verdict.UNDETERMINED, Why.NO_FLOOR, "", plain,
            tuple(one for one in parted if one is not None), math.nan, lane.cached_share,
        )  # fmt: skip
        if kind is Kind.CACHE and lane.cached_share == 0:
            return replace(base, why=Why.NOT_CACHED)
        if not _anew(self.cold) and self.cold.cached_share is not None:
            return replace(base, why=Why.NOT_COLD)
        if plain is not None and plain.verdict is Verdict.SAME and not base.partings:
            return replace(base, verdict=Verdict.SAME, why=Why.SAME)
        if plain is not None and plain.reason is Reason.NONFINITE:
            return replace(base, verdict=Verdict.BEYOND, why=Why.NONFINITE)
        candidates = self._candidates(lane, beyond)
        held = self._held(lane, candidates)
        decided = _with_partings(_decided(base, held), [*map(self._moved, candidates)])
        return self._by_model(lane, decided) if decided.verdict is Verdict.UNDETERMINED else decided

    def _held(self, lane: AskedLane, candidates: Sequence[AskedLane]) -> list[_Held]:
        """A lane held against each candidate alone, and against all of another kind together."""
        own = [one for one in candidates if _kind(lane) is Kind.BATCH and one.kind is Kind.BATCH]
        cross = [one for one in candidates if one not in own]
        groups = [[one] for one in candidates] + ([cross] if len(cross) > 1 else [])
        found = [(group, self._against_cold(lane, group)) for group in groups if self._measures(group, lane)]
        return [
            _Held(" and ".join(one.name for one in group), one, group[0] in own)
            for group, one in found
            if one is not None
        ]

    def _measures(self, group: Sequence[AskedLane], lane: AskedLane) -> bool:
        """Whether floors have enough positions for a lane: the furthest of a few is not the furthest of many."""
        known = sum(int(one.given.sum()) for of in group for one in self._floor(of).sequences if one.given is not None)
        return known >= max(LEAST_POSITIONS, SHARE * sum(self._lengths(lane)))

    def _moved(self, lane: AskedLane) -> float:
        """The furthest that a lane moves a log-probability, or the margin of the likeliest token."""
        found = self._plain[lane.name]
        assert found is not None
        return _furthest(found)

    def _by_model(self, lane: AskedLane, pair: Pair) -> Pair:
        """Where no lane decides: is it further from the model than the cold one is?"""
        if not self.models or pair.why not in (Why.NO_FLOOR, Why.FLOOR):
            return pair
        model, lengths = self.models[0], self._lengths(lane)
        a, b, cold = (_lane(one, lengths) for one in (model, lane, self.cold))
        found, whole = _compared(a, b, [cold]), _compared(_lane(model), _lane(self.cold))
        held = pair if found is None else replace(pair, why=Why.MODEL, floor=model.name, comparison=found)
        if found is not None and found.verdict in (Verdict.WITHIN, Verdict.BEYOND):
            held = replace(held, verdict=found.verdict)
        judged = _with_partings(held, [] if whole is None else [_furthest(whole)])
        return pair if judged.verdict is Verdict.UNDETERMINED else judged

    def _of_model(self) -> list[Pair]:
        """The model and the cold lane, held against the model in another precision."""
        if not self.models:
            return []
        model, *floor = self.models
        found = _compared(_lane(model), _lane(self.cold), [_lane(one) for one in floor])
        if found is None:
            return []
        why = {Verdict.SAME: Why.SAME, Verdict.UNDETERMINED: Why.FLOOR if floor else Why.NO_FLOOR}
        reason = Why.NONFINITE if found.reason is Reason.NONFINITE else why.get(found.verdict, Why.FLOOR)
        name = floor[0].name if floor else ""
        return [Pair(self.cold.view, model.name, Kind.MODEL, found.verdict, reason, name, found)]


def _furthest(found: Decision) -> float:
    sizes = np.concatenate([np.abs(found.pairs.change), found.pairs.margin_change])
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _decided(base: Pair, held: Sequence[_Held]) -> Pair:
    """Decide by the candidates: what excuses is enough, what accuses must be all."""
    if not held:
        return base
    nearest = min(held, key=lambda one: one.order)
    shown = replace(base, why=Why.FLOOR, floor=nearest.floor, comparison=nearest.found)
    telling = [one for one in held if one.tells]
    cross = [one for one in telling if not one.own]
    if base.kind is Kind.BATCH:
        # A comparison with NaN is false: what has no interval accuses nobody.
        if cross and all(one.low > KERNELS for one in cross):
            worst = min(cross, key=lambda one: one.order)
            return replace(shown, verdict=Verdict.BEYOND, floor=worst.floor, comparison=worst.found)
    elif telling and all(one.found.verdict is Verdict.BEYOND for one in telling):
        return replace(shown, verdict=Verdict.BEYOND)
    if nearest.found.verdict is Verdict.WITHIN:
        return replace(shown, verdict=Verdict.WITHIN)
    return shown


def _with_partings(pair: Pair, moved: Sequence[float]) -> Pair:
    """Hold the margins at which texts part against what the floors move."""
    most = max(moved, default=math.nan)
    pair = replace(pair, moved=most)
    if not pair.partings or math.isnan(most) or pair.verdict is Verdict.BEYOND:
        return pair
    margins = [one.margin for one in pair.partings]
    if any(margin > TAIL * most for margin in margins):
        return replace(pair, verdict=Verdict.BEYOND, why=Why.PARTED)
    # NaN is at most nothing: where a server does not tell the margin, a parting is not explained.
    if not all(margin <= FLIP * most for margin in margins):
        return replace(pair, verdict=Verdict.UNDETERMINED, why=Why.PARTED)
    return pair
