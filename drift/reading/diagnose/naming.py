"""The cause of a place that is structural: which pattern its difference follows."""

from __future__ import annotations

import math

import numpy as np

from drift.reading.diagnose import causes
from drift.reading.diagnose.causes import Rotation
from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.envelope import Envelope
from drift.reading.diagnose.model import Cause, Entry, Evidence, Finding
from drift.reading.diagnose.tensors import Place

__all__ = [
    "DOUBT",
    "FEWEST",
    "entry_of",
    "features_moved",
    "input_evidence",
    "named",
    "other_tokens",
    "rotated",
    "step_words",
]

DOUBT = 2.0
"""Beyond this many envelopes a difference is structural; between one and this many it is undetermined."""
FEWEST = 4
"""Tokens that must be beyond the envelope together."""
_ALIKE = 0.5
"""Centred cosine from which rows are taken to be the same row, changed."""


def _moved(found: Comparison, envelope: Envelope, segment: int) -> float:
    """Share of the pairs of features of keys or values that are beyond `DOUBT` envelopes in a segment."""
    profile = found.profiles[envelope.place]
    level = DOUBT * envelope.pooled(profile.reference, *found.segments[segment])
    return causes.moved_share(profile, segment, level)


def features_moved(found: Comparison, envelope: Envelope, segment: int) -> bool:
    """Whether that share is a quarter or more."""
    return _moved(found, envelope, segment) >= 0.25


def _values_agree(found: Comparison, block: int, start: int, stop: int, bound: float) -> bool | None:
    profile = found.profiles.get(Place("value", block))
    if profile is None:
        return None
    piece = profile.relative[start:stop]
    piece = piece[np.isfinite(piece)]
    return bool(np.median(piece) <= bound) if piece.size else None


def rotated(found: Comparison, envelope: Envelope, segment: int) -> Finding | None:
    """Test keys for a rotation, where their inputs and their values agree."""
    place, profile = envelope.place, found.profiles[envelope.place]
    start, stop = found.segments[segment]
    bound = envelope.pooled(profile.reference, start, stop)
    if causes.swollen_pair(profile, segment) <= bound:
        return None
    agree = _values_agree(found, place.block, start, stop, bound)
    if agree is False or not envelope.known or envelope.gap:
        return None
    # Of chunks of a token or two, more are needed than one to tell a rotation from chance.
    turned = causes.rotation(found, place, start, min(found.tokens, max(stop, start + 2 * causes.SOME)), bound)
    if turned is None:
        return None
    last = segment
    while last + 1 < len(found.segments) and causes.swollen_pair(profile, last + 1) > envelope.pooled(
        profile.reference, *found.segments[last + 1]
    ):
        last += 1
    tokens = (_first_turned(found, place, turned, start, stop, bound), found.segments[last][1])
    evidence = [
        Evidence(
            f"Block {place.block} of step {step_words(found, start)}: the values agree to rounding "
            f"(relative {_level_of(found, Place('value', place.block), start, stop):.2g})."
            if agree
            else f"The values of block {place.block} were not dumped.",
            {"value_rel_l2": _level_of(found, Place("value", place.block), start, stop)} if agree else {},
        ),
        Evidence(
            f"The keys do not (relative {profile.rel_l2(start, stop):.2g}; {turned.moved:.2g} in the pairs of features "
            f"that moved), but the magnitudes of those pairs do (relative {turned.magnitude:.2g}; "
            f"{turned.layout} pairs "
            f"of {turned.width} features): the keys were rotated.",
            {"key_rel_l2": profile.rel_l2(start, stop), "moved": turned.moved, "magnitude": turned.magnitude},
        ),
    ]
    cause, text = _rotation_words(turned)
    if cause is Cause.POSITION_OFFSET:
        evidence.append(
            Evidence(
                f"One offset of {turned.offset:+d} explains the angles of the pairs to {turned.misfit:.2g} radians "
                f"(the fastest pair turned by {turned.angle:+.4f}).",
                {"offset": turned.offset, "misfit_radians": turned.misfit, "angle_fastest_pair": turned.angle},
            )
        )
    return Finding(segment, place, "structural", tokens, turned.moved / bound, cause, evidence, text)


def _rotation_words(turned: Rotation) -> tuple[Cause, str]:
    if turned.offset is not None:
        return Cause.POSITION_OFFSET, (
            f"position offset of {turned.offset:+d}: B's keys are A's, rotated as if {abs(turned.offset)} "
            f"{'position' if abs(turned.offset) == 1 else 'positions'} {'later' if turned.offset > 0 else 'earlier'}"
        )
    if math.isnan(turned.angle):
        return Cause.ROTATION, (
            "B's keys are A's, rotated by angles that change from token to token: positions run differently, or the "
            "rotary frequencies differ"
        )
    return Cause.ROTATION, (
        f"B's keys are A's, rotated by the same angles for all tokens (fastest pair {turned.angle:+.3f} "
        "radians), which "
        "fits no whole number of positions"
    )


def _first_turned(found: Comparison, place: Place, turned: Rotation, start: int, stop: int, bound: float) -> int:
    """The first token of a step whose keys are beyond the envelope in any pair."""
    stop = min(stop, start + causes.MOST)
    a, b = (dump.read(place, start, stop).astype(np.float64) for dump in (found.a, found.b))
    change, size = np.sum((b - a) ** 2, axis=0), np.sum(a**2, axis=0)
    odd = np.any(change > bound**2 * np.maximum(size, np.median(size, axis=0)), axis=1)
    return start + int(np.argmax(odd)) if odd.any() else start


def _level_of(found: Comparison, place: Place, start: int, stop: int) -> float:
    """Relative L2 difference at a place; NaN where it was not dumped."""
    profile = found.profiles.get(place)
    return float("nan") if profile is None else profile.rel_l2(start, stop)


def entry_of(found: Comparison, place: Place, tokens: tuple[int, int]) -> Entry:
    """The entry point at some tokens of a place."""
    return Entry(place, found.a.step_of(tokens[0]), found.b.step_of(tokens[0]), *tokens)


def step_words(found: Comparison, token: int) -> str:
    """The step of a token, in the lane that has more of them."""
    a, b = found.a.step_of(token), found.b.step_of(token)
    return f"{b}" if found.b.steps >= found.a.steps else f"{a}"


def input_evidence(found: Comparison, envelope: Envelope, start: int, stop: int) -> Evidence:
    """What a place is computed from, and how far that differs."""
    if not envelope.inputs:
        text = "the text itself" if envelope.place.block == 0 else "the embeddings, taken to agree"
        return Evidence(f"It is computed from {text}.", {"input": 0.0})
    incoming = float(np.median(envelope.incoming[start:stop]))
    names = ", ".join(str(p) for p in envelope.inputs)
    agree = "agrees bit for bit" if incoming == 0 else f"differs by {incoming:.2g}"
    return Evidence(f"What it is computed from ({names}) {agree}.", {"input": incoming})


def named(found: Comparison, envelope: Envelope, segment: int, tokens: tuple[int, int]) -> Finding:
    """Name the cause of a place that is structural, if a pattern does."""
    place, profile = envelope.place, found.profiles[envelope.place]
    start, stop = tokens
    # A bug that stays makes all later tokens its own: what it is, its first chunk tells.
    stop = min(stop, found.segments[found.segment_of(start)][1])
    bound = float(np.median(envelope.bound[start:stop]))
    ratio = float(np.median(envelope.ratio[start:stop]))
    size = float(np.nanmedian(profile.felt[start:stop]))
    step = step_words(found, start)
    evidence = [
        Evidence(
            f"{str(place).capitalize()}, step {step}: the median token differs by {size:.2g} of its norm, "
            + (
                f"{ratio:.3g} times what rounding explains there ({bound:.2g})."
                if ratio > 1
                else f"which rounding could explain ({bound:.2g}); but a few large features fill that norm."
            ),
            {"difference": size, "envelope": bound, "ratio": ratio},
        ),
        input_evidence(found, envelope, start, stop),
    ]
    if place.kind in ("key", "value"):
        share = _moved(found, envelope, found.segment_of(start))
        evidence.append(
            Evidence(
                f"{100 * share:.0f} % of its pairs of features are beyond twice the envelope.", {"pairs_beyond": share}
            )
        )
    finding = Finding(segment, place, "structural", tokens, ratio, Cause.OTHER, evidence)
    if place.kind in ("key", "value") or place == Place("hidden", 0):
        _row_patterns(found, envelope, finding, (start, stop), bound)
    if finding.cause is Cause.OTHER and not finding.cause_text:
        finding.cause_text = _other_words(found, place, step)
    earlier = envelope.ratio[: found.segments[segment][0]]
    earlier = earlier[np.isfinite(earlier)]
    if earlier.size:
        usual = float(np.quantile(earlier, 0.95))
        stay = (
            f"stay below {usual:.2g} of the envelope at this place (95th percentile)" if usual else "agree bit for bit"
        )
        finding.evidence.append(Evidence(f"The {earlier.size} tokens before it {stay}.", {"ratio_before": usual}))
    return finding


def other_tokens(found: Comparison, envelope: Envelope, segment: int, odd: list[int]) -> Finding:
    """Name single tokens of a step whose embeddings are beyond the envelope: the lanes were given other ones."""
    place, profile = envelope.place, found.profiles[envelope.place]
    ratio, size = (float(np.median(x[odd])) for x in (envelope.ratio, profile.felt))
    cosine = float(np.median([causes.centred_cosine(found, place, t, t + 1) for t in odd]))
    which = f"token {odd[0]}" if len(odd) == 1 else f"tokens {', '.join(map(str, odd[:8]))}" + ", ..." * (len(odd) > 8)
    evidence = [
        Evidence(
            f"The embeddings of {which} (step {step_words(found, odd[0])}) differ by {size:.2g} of their norm, "
            f"{ratio:.3g} times what rounding explains there. Embeddings are looked up: nothing before them rounds.",
            {"difference": size, "ratio": ratio, "tokens_beyond": len(odd)},
        ),
        Evidence(f"Centred cosine of A's and B's rows there: {cosine:.2f} (1 would be the same).", {"cosine": cosine}),
    ]
    cause, text = Cause.OTHER_TOKENS, f"B was given other tokens than A: {which} of this step"
    if cosine >= _ALIKE:
        cause, text = Cause.OTHER, _other_words(found, place, step_words(found, odd[0]))
    return Finding(segment, place, "structural", (odd[0], odd[-1] + 1), ratio, cause, evidence, text)


def _row_patterns(
    found: Comparison, envelope: Envelope, finding: Finding, tokens: tuple[int, int], bound: float
) -> None:
    place = finding.place
    start, stop = tokens
    # Rows of the same token at another position have equal values but rotated keys: values find more.
    searched = place
    if place.kind == "key" and _values_agree(found, place.block, start, stop, bound) is False:
        searched = Place("value", place.block)
    elsewhere = causes.origin(found, searched, start, stop, 2 * bound)
    other = "value" if place.kind == "key" else "key"
    partner = found.profiles.get(Place(other, place.block)) if place.kind in ("key", "value") else None
    if elsewhere is not None:
        shift, mutual = elsewhere
        lane = found.a if found.a.steps > found.b.steps else found.b
        source = lane.step_of(start + shift)
        rows = f"{searched} of A's tokens {start + shift} to {stop + shift - 1} (step {source})"
        numbers = {"shift_tokens": shift, "from_step": source, "exchanged": mutual}
        own = lane.step_of(start)
        if abs(shift) < lane.boundaries[own + 1] - lane.boundaries[own]:
            finding.cause = Cause.OTHER_TOKENS
            finding.cause_text = f"B is {shift:+d} tokens off in the text: it holds {rows}"
        elif mutual:
            finding.cause = Cause.SWAPPED_CHUNK
            finding.cause_text = (
                f"swapped chunks: B holds {rows} at tokens {start} to {stop - 1}, and the other way round"
            )
        else:
            finding.cause = Cause.OTHER_TOKENS if place.kind == "hidden" else Cause.STALE_CACHE
            finding.cause_text = f"another chunk's rows: B holds {rows} at tokens {start} to {stop - 1}"
        finding.evidence.append(Evidence(f"{finding.cause_text[0].upper()}{finding.cause_text[1:]}.", numbers))
        return
    cosine = causes.centred_cosine(found, place, start, stop)
    finding.evidence.append(
        Evidence(f"Centred cosine of A's and B's rows there: {cosine:.2f} (1 would be the same).", {"cosine": cosine})
    )
    if cosine >= _ALIKE:
        return
    if place.kind == "hidden":
        finding.cause, finding.cause_text = Cause.OTHER_TOKENS, "B was given other tokens there"
        return
    clean = _clean_elsewhere(found, envelope, finding.tokens)
    segment = found.segment_of(start)
    both = partner is not None and causes.moved_share(partner, segment, DOUBT * bound) >= 0.25
    what = "keys and values" if both else f"{place.kind}s alone"
    if clean:
        finding.cause = Cause.STALE_CACHE
        finding.cause_text = (
            f"stale cache: the {what} of tokens {finding.tokens[0]} to {finding.tokens[1] - 1} are unrelated to this "
            "text, although the states they are computed from agree"
        )


def _clean_elsewhere(found: Comparison, envelope: Envelope, tokens: tuple[int, int]) -> bool:
    """Whether the place is within its envelope outside a stretch that ends with a chunk or before the text does."""
    outside = np.ones(found.tokens, dtype=bool)
    outside[slice(*tokens)] = False
    rest = envelope.ratio[outside]
    rest = rest[np.isfinite(rest)]
    one_chunk = found.segment_of(tokens[0]) == found.segment_of(tokens[1] - 1)
    segments = [s for s, (low, high) in enumerate(found.segments) if high <= tokens[0] or low >= tokens[1]]
    if envelope.place.kind in ("key", "value"):
        quiet = [not features_moved(found, envelope, s) for s in segments]
        if not quiet or np.mean(quiet) < 0.75:
            return False
    return bool(rest.size) and bool(np.mean(rest <= 1) >= 0.9) and (one_chunk or tokens[1] < found.tokens)


def _other_words(found: Comparison, place: Place, step: str) -> str:
    if place == Place("hidden", 0):
        return "the lanes were given other tokens, or embed them differently"
    if place.kind == "hidden":
        text = f"block {place.block} at step {step} computes something else from the same inputs"
        if Place("key", place.block) in found.profiles and step != "0":
            text += (
                ": what its attention reads (a stale or missing part of the cache), its mask or its scale, the "
                "queries' "
                "positions, or its own weights"
            )
        return text
    if place.kind in ("key", "value"):
        return f"block {place.block} makes other {place.kind}s of the same hidden states (weights, normalisation, cast)"
    return f"{place} are computed differently from the same states"
