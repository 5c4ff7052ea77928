"""The first place whose difference rounding cannot explain.

A step of a chain reads earlier steps, and a block reads the blocks below it. Places are therefore gone through step by
step and, within a step, upwards: embeddings, keys and values of block 1, its output, and so on. The first place that
:mod:`drift.reading.diagnose.envelope` cannot explain from what the place reads is where the difference enters.

A place is structural if at least a quarter of a step's tokens, and no fewer than four, lie beyond `DOUBT` envelopes, or
if a pattern names the cause. Single tokens never make a bug: where experts are routed, or two scores tie, a difference
of one bit may turn a whole token. Tokens at the same offset in chunk after chunk are another matter, and so are
embeddings: they are looked up, and nothing before them can turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.envelope import Envelope
from drift.reading.diagnose.model import Cause, Evidence, Finding
from drift.reading.diagnose.naming import DOUBT, FEWEST, features_moved, named, other_tokens, rotated
from drift.reading.diagnose.tensors import Place

__all__ = ["findings"]

WINDOW = 8
"""Tokens that are looked at together at least, where steps are shorter."""
LONE = 8.0
"""A single token beyond this many envelopes is reported."""


def _window(found: Comparison, segment: int) -> slice:
    start, stop = found.segments[segment]
    return slice(start, min(found.tokens, max(stop, start + WINDOW)))


def findings(found: Comparison, envelopes: dict[Place, Envelope]) -> Iterator[Finding]:
    """Yield the places beyond their envelopes in causal order, up to the first that is structural."""
    for segment in range(len(found.segments)):
        for envelope in envelopes.values():
            finding = _judge(found, envelope, segment)
            if finding is not None:
                yield finding
                if finding.level == "structural":
                    return
    for envelope in envelopes.values():
        regular = _regular(found, envelope)
        if regular is not None:
            yield regular
            return


def _judge(found: Comparison, envelope: Envelope, segment: int) -> Finding | None:
    place, profile = envelope.place, found.profiles[envelope.place]
    start, stop = found.segments[segment]
    if segment in profile.nonfinite:
        return _nonfinite(found, envelope, segment)
    window = _window(found, segment)
    ratio = envelope.ratio[window]
    seen = np.isfinite(ratio)
    if not seen.any():
        return None
    ratio = np.where(seen, ratio, 0.0)
    if place.kind == "key" and profile.differing:
        turned = rotated(found, envelope, segment)
        if turned is not None:
            return turned
    needed = max(FEWEST, math.ceil(int(seen.sum()) / 4))
    beyond = np.flatnonzero(ratio > DOUBT)
    doubtful = np.flatnonzero(ratio > 1)
    # The window may reach into later steps; what begins there is theirs.
    if len(beyond) >= needed and beyond[0] < stop - start and envelope.known and envelope.gap == 0:
        return named(found, envelope, segment, _tokens(envelope, window.start + int(beyond[0]), DOUBT))
    if (
        place.kind in ("key", "value")
        and envelope.known
        and envelope.gap == 0
        and stop - start >= FEWEST
        and features_moved(found, envelope, segment)
    ):
        last = segment
        while last + 1 < len(found.segments) and features_moved(found, envelope, last + 1):
            last += 1
        return named(found, envelope, segment, (start, found.segments[last][1]))
    if len(doubtful) >= needed and doubtful[0] < stop - start:
        where = (window.start + int(doubtful[0]), window.start + int(doubtful[-1]) + 1)
        return Finding(segment, place, "doubt", where, float(np.median(ratio[doubtful])))
    lone = np.flatnonzero(ratio[: stop - start] > LONE)
    if len(lone) and place == Place("hidden", 0):
        return other_tokens(found, envelope, segment, [start + int(t) for t in lone])
    if len(lone):
        where = (start + int(lone[0]), start + int(lone[-1]) + 1)
        return Finding(segment, place, "lone", where, float(ratio.max()))
    return None


def _tokens(envelope: Envelope, first: int, level: float) -> tuple[int, int]:
    """The stretch of tokens beyond a level that begins at one of them; holes of single tokens do not end it."""
    beyond = np.flatnonzero(np.nan_to_num(envelope.ratio, posinf=np.inf) > level)
    beyond = beyond[beyond >= first]
    ends = np.flatnonzero(np.diff(beyond) > WINDOW)
    return first, int(beyond[ends[0] if len(ends) else -1]) + 1


def _nonfinite(found: Comparison, envelope: Envelope, segment: int) -> Finding:
    in_a, in_b = found.profiles[envelope.place].nonfinite[segment]
    start, stop = found.segments[segment]
    odd = start + np.flatnonzero(np.isinf(found.profiles[envelope.place].difference[start:stop]))
    where = (int(odd[0]), int(odd[-1]) + 1) if len(odd) else (start, stop)
    text = f"{str(envelope.place).capitalize()} hold NaN or Inf that the other lane does not: {in_a} in A, {in_b} in B."
    evidence = [Evidence(text, {"nonfinite_a": in_a, "nonfinite_b": in_b})]
    return Finding(segment, envelope.place, "structural", where, math.inf, Cause.NONFINITE, evidence, text)


def _regular(found: Comparison, envelope: Envelope) -> Finding | None:
    """Look for tokens that stand out at the same offset in chunk after chunk."""
    lane = found.a if found.a.steps > found.b.steps else found.b
    if lane.steps < 4 or not envelope.known or envelope.gap:
        return None
    odd = np.flatnonzero(np.nan_to_num(envelope.ratio, posinf=np.inf) > LONE)
    steps = [lane.step_of(int(t)) for t in odd]
    offsets = np.array([int(t) - lane.boundaries[s] for t, s in zip(odd, steps, strict=True)])
    for offset in np.unique(offsets):
        hit = sorted({s for s, o in zip(steps, offsets, strict=True) if o == offset})
        possible = [s for s in range(hit[0], lane.steps) if lane.boundaries[s] + offset < lane.boundaries[s + 1]]
        if len(hit) >= 4 and len(hit) >= 0.75 * len(possible) and len(set(offsets.tolist())) <= 4:
            token = lane.boundaries[hit[0]] + int(offset)
            text = (
                f"Token {offset} of the chunk is beyond {LONE:g} envelopes in {len(hit)} of {len(possible)} "
                "chunks, from "
                f"step {hit[0]} on; other tokens are not. Chunk boundaries are handled differently."
            )
            numbers = {"offset_in_chunk": int(offset), "chunks": len(hit), "of": len(possible)}
            segment = found.segment_of(token)
            ratio = float(np.median(envelope.ratio[odd[offsets == offset]]))
            evidence = [Evidence(text, numbers)]
            return Finding(
                segment, envelope.place, "structural", (token, token + 1), ratio, Cause.OTHER, evidence, text
            )
    return None
