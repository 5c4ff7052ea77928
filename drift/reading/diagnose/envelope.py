"""What rounding can explain: an envelope for every token at every place, given what the place reads.

The test is local. At a place the lanes' difference ``d`` of a token (relative to its norm) is held against ::

    E = kappa * (d_in + sqrt(m) * u)              in formats of at most 11 significant bits
    E = kappa * (d_in + sqrt(m + n) * u)          in fp32 and fp64

``d_in`` is the difference of what the place reads, as measured: for keys and values that of the token's own hidden
state, for a block's output the token's hidden state and the largest of all keys and values up to it. Differences that
were inherited, however large, therefore accuse nobody; what counts is the first place whose inputs agree and whose
output does not.

``sqrt(m) * u`` is the probabilistic bound of rounding-error analysis (Higham and Mary, SIAM J. Sci. Comput. 41, 2019):
``m`` roundings in a row add up like a random walk, to the square root of their number times the unit roundoff ``u``.
`ROUNDINGS` counts them along the longest path from a place's inputs to its output. Inner products of ``n`` terms count
where they are summed in ``u`` itself; matrix units sum 16-bit products in fp32, so ``n`` does not enter there.

Of a block's roundings, `SCORES` are those of attention scores. What all keys have in common (biases, mostly) is part of
every score, but softmax takes no notice of it, so it is cancelled: where the keys' norm is ``chi`` times that of their
deviations from their mean, these roundings count ``chi**2`` times in ``m``, and differences of keys count ``chi`` times
in ``d_in``.

``kappa`` (`ALLOWANCE`) is how much a place may magnify relative errors beyond that: cancellation in its products,
softmax of large scores. It is one number for all models, so that no bug can widen its own envelope. Of 145,000 steps at
places of 1,600 random clean pairs, with weights up to four times as large as usual, four had a quarter of their tokens
beyond the envelope, and none beyond twice the envelope.

With a floor, another accepted way to compute lane A, the measured difference of the two accepted ways (the 95th
percentile over a step's tokens, or the token's own where that is larger) takes the place of ``sqrt(m) * u`` wherever it
is larger. Where it is smaller the two ways have much in common, and what is known of the arithmetic stays true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from drift.dataset.rungs import known_rung
from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.tensors import FORMATS, Place

__all__ = ["ALLOWANCE", "COARSEST", "ROUNDINGS", "SCORES", "Envelope", "Roundoff", "Source", "derive", "roundoff"]

ALLOWANCE = 4.0
"""Magnification of relative errors that every block is granted."""
ROUNDINGS = {"embeddings": 1, "key": 8, "value": 5, "hidden": 24, "final": 4, "logits": 2}
"""Roundings from a place's inputs to its output: norm 4, product and bias 2, rotation 3; scores, softmax, weighted sum,
output product and residual 8; norm, gate, activation, product, down product and residual 9; and so on."""
SCORES = 2
"""Of the roundings of a block, those of its attention scores."""
COARSEST = 2.0**-8
"""The largest unit roundoff of arithmetic: that of bf16, which rounding activations to 8 bits comes to as well."""
_SINGLE = 2.0**-24
_HALF = 2.0**-11


class Source(Enum):
    """Where a unit roundoff is from: given, said by both dumps' metadata, or no more than what numbers are kept in."""

    GIVEN = "given"
    SAID = "metadata"
    FORMAT = "format"


@dataclass(frozen=True)
class Roundoff:
    """Unit roundoff that the envelope counts with.

    Attributes
    ----------
    value : float
        The unit roundoff.
    why : str
        Where it is from, in words.
    source : Source
        The same.
    """

    value: float
    why: str
    source: Source = Source.FORMAT

    @property
    def known(self) -> bool:
        """Whether the arithmetic is known to round no coarser.

        What numbers are kept in says that they were rounded to it, not how they were computed: an engine may multiply
        in 8 or 16 bits and hand out fp32.
        """
        return self.source is not Source.FORMAT or self.value >= COARSEST


def roundoff(found: Comparison, given: float | None = None) -> Roundoff:
    """Infer the unit roundoff that the lanes computed with.

    It is that of the narrowest format in which a hidden state after a block, or keys and values of both lanes, were
    written; numbers of bf16 in a tensor of fp32 count as bf16. fp8 is taken as storage and not as arithmetic. For
    tensors of fp64 it is that of fp32, because softmax, normalisation and rotary tables are commonly computed in fp32
    whatever the model's format is; only ``given`` overrules this. Where both dumps' metadata say under ``dtype`` what
    was computed in, the coarser of that and of the numbers counts.
    """
    if given is not None:
        return Roundoff(given, "as given", Source.GIVEN)
    written = _of_numbers(found)
    said = [known_rung(dump.metadata.get("dtype", "")) for dump in (found.a, found.b)]
    if said[0] is None or said[1] is None:
        return written
    coarser = max((r for r in said if r is not None), key=lambda r: r.unit_roundoff)
    if coarser.unit_roundoff <= written.value:
        return Roundoff(written.value, written.why, Source.SAID)
    return Roundoff(coarser.unit_roundoff, f"that of {coarser.name}, as the files' metadata say", Source.SAID)


def _of_numbers(found: Comparison) -> Roundoff:
    """The unit roundoff of what the lanes' numbers are written in."""
    hidden: list[float] = []
    cached: list[float] = []
    rest: list[float] = []
    for place, profile in found.profiles.items():
        stored = [max(2.0 ** -FORMATS[d].bits for d in dump.dtypes(place)) for dump in (found.a, found.b)]
        pairs = [(f.unit_roundoff, g.unit_roundoff) for f, g in filter(None, profile.formats)] or [
            (stored[0], stored[1])
        ]
        if place.kind in ("final", "hidden"):
            (rest if place.block == 0 and place.kind == "hidden" else hidden).extend(max(p) for p in pairs)
        elif place.kind in ("key", "value"):
            cached.extend(min(p) for p in pairs)
        else:
            rest.extend(max(p) for p in pairs)
    values = [u for u in (hidden + cached or rest) if u <= 2.0**-8] or [2.0**-8]
    largest = max(values)
    if largest < _SINGLE:
        return Roundoff(_SINGLE, "that of fp32: parts of an fp64 pass are commonly computed in it")
    name = next(f.name for f in FORMATS.values() if f.unit_roundoff == largest)
    return Roundoff(largest, f"that of {name}, the narrowest format that the lanes' numbers are written in")


@dataclass
class Envelope:
    """What rounding can explain at one place.

    Attributes
    ----------
    place : Place
        The place.
    inputs : list of Place
        What it was held against; empty for the first place of all.
    gap : int
        Blocks between inputs and place that were not dumped.
    known : bool
        Whether the inputs are known: dumped, or the token ids themselves.
    incoming : ndarray [token]
        Relative difference of the inputs.
    local : ndarray [token]
        Rounding of the place itself.
    bound : ndarray [token]
        The envelope.
    ratio : ndarray [token]
        Difference over envelope.
    """

    place: Place
    inputs: list[Place]
    gap: int
    known: bool
    incoming: np.ndarray
    local: np.ndarray
    bound: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ratio: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def pooled(self, reference: np.ndarray, start: int, stop: int) -> float:
        """The envelope of sums of squares over tokens: its quadratic mean, weighted by the tokens' squared norms.

        A single token whose inputs differ much may make up most of such a sum.
        """
        bound, weight = self.bound[start:stop], reference[start:stop] ** 2
        seen = np.isfinite(bound) & np.isfinite(weight)
        total = float(weight[seen].sum())
        return float(np.sqrt(np.sum(bound[seen] ** 2 * weight[seen]) / total)) if total > 0 else float("inf")


def _running_most(values: np.ndarray) -> np.ndarray:
    """Largest value up to each token; infinities and gaps count as nothing."""
    return np.maximum.accumulate(np.where(np.isfinite(values), values, 0.0))


def _inputs(found: Comparison, place: Place) -> tuple[list[Place], int, bool]:
    """What a place reads, the blocks in between that were not dumped, and whether anything is known at all."""
    here = found.profiles
    if place.kind == "hidden" and place.block == 0:
        return [], 0, True
    if place.kind in ("final", "logits"):
        if place.kind == "logits" and Place("final", 0) in here:
            return [Place("final", 0)], 0, True
        top = max([p.block for p in here if p.kind not in ("final", "logits")], default=None)
        if not top:
            # How many blocks lie between the embeddings and here, the dump does not say.
            return [], 0, False
        block, first = top, 0
    else:
        block = place.block - 1
        if place.kind == "hidden":
            cached = [p for p in (Place("key", place.block), Place("value", place.block)) if p in here]
            below = [p for p in (Place("hidden", block),) if p in here]
            if cached:
                return below + cached, 0, True
        first = block
    for lower in range(block, -1, -1):
        gap = first - lower if place.kind not in ("final", "logits") else 0
        if Place("hidden", lower) in here:
            return [Place("hidden", lower)], gap, True
        cached = [p for p in (Place("key", lower), Place("value", lower)) if p in here]
        if cached:
            return cached, gap, True
    # Nothing before the first block was dumped: the same token ids are taken to give the same embeddings.
    return [], max(0, block), place.kind in ("key", "value", "hidden") and place.block == 1


def _incoming(found: Comparison, place: Place, inputs: list[Place]) -> np.ndarray:
    total = np.zeros(found.tokens)
    for source in inputs:
        profile = found.profiles[source]
        felt = np.where(np.isfinite(profile.felt), profile.felt, 0.0)
        if source.kind == "key":
            felt = felt * profile.common
        # Attention reads all tokens so far; everything else a token's own state only.
        own = source.kind == "hidden" and (
            place.kind != "hidden" or (source.block == place.block - 1 and Place("key", place.block) in found.profiles)
        )
        adjacent = source.block == place.block - 1 or place.kind in ("final", "logits")
        total = np.maximum(total, felt if (own and adjacent) or source.kind == "final" else _running_most(felt))
    return total


def _local(kind: str, gap: int, u: float, width: int, common: float) -> float:
    roundings = ROUNDINGS[kind] + gap * ROUNDINGS["hidden"] + SCORES * (common**2 - 1)
    if u >= _HALF:
        return math.sqrt(roundings) * u
    return math.sqrt(roundings + width) * u


def derive(
    found: Comparison,
    u: Roundoff,
    floors: Sequence[Comparison] = (),
    attended: dict[int, float] | None = None,
) -> dict[Place, Envelope]:
    """Derive the envelope at every place.

    Parameters
    ----------
    found : Comparison
        The lanes.
    u : Roundoff
        Unit roundoff of their arithmetic.
    floors : sequence of Comparison
        Lane A and other accepted ways to compute it; the largest difference counts.
    attended : dict, optional
        Per block, the unit roundoff of the format that a lane keeps its cache in where that is narrower than what it
        appended.

    Returns
    -------
    dict
        Per place, in computing order.
    """
    envelopes: dict[Place, Envelope] = {}
    for place, profile in found.profiles.items():
        inputs, gap, known = _inputs(found, place)
        kind = "embeddings" if place == Place("hidden", 0) else place.kind
        here, stored = u.value, 0.0
        if place.kind in ("key", "value"):
            narrow = max([here, *(max(f.unit_roundoff, g.unit_roundoff) for f, g in filter(None, profile.formats))])
            # Nothing is computed in 8 bits: numbers are rounded to them once.
            here, stored = (here, narrow) if narrow > COARSEST else (narrow, 0.0)
        keys = found.profiles.get(Place("key", place.block)) if place.kind == "hidden" else None
        common = 1.0 if keys is None else keys.common
        local = np.full(found.tokens, math.hypot(_local(kind, gap, here, found.width, common), stored))
        for floor in floors:
            if place not in floor.profiles:
                continue
            accepted = floor.profiles[place].relative
            for start, stop in found.segments:
                piece = accepted[start:stop]
                seen = np.isfinite(piece)
                if seen.any():
                    usual = float(np.quantile(piece[seen], 0.95))
                    local[start:stop] = np.maximum(local[start:stop], np.maximum(usual, np.where(seen, piece, 0.0)))
        incoming = _incoming(found, place, inputs)
        if attended and place.kind == "hidden" and place.block in attended:
            incoming = np.maximum(incoming, attended[place.block])
        envelopes[place] = Envelope(place, inputs, gap, known, incoming, local)
        envelopes[place].bound = ALLOWANCE ** (gap + 1) * (incoming + local)
        envelopes[place].ratio = profile.felt / envelopes[place].bound
    return envelopes
