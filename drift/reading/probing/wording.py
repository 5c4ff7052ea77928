"""A probe in words: what was found of each pair, what it rests on, and what would decide."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from drift.dataset.probes import Kind, View
from drift.reading.logits.model import Reason, Verdict
from drift.reading.logits.wording import due, enough
from drift.reading.probing.model import FLIP, KERNELS, Found, Pair, Why
from drift.reading.statistics.intervals import LEVEL_ALPHA
from drift.reading.wording.numbers import coverage, number

__all__ = ["headline", "notes", "numbers", "short", "why"]

_WORDS = {
    Verdict.SAME: "same bits",
    Verdict.WITHIN: "within the floor",
    Verdict.BEYOND: "BEYOND THE FLOOR",
    Verdict.UNDETERMINED: "undetermined",
}
_VARIES = {
    Kind.REPEAT: "The same asked again, alone and computed anew",
    Kind.CACHE: "A prompt whose beginning comes from the cache",
    Kind.BATCH: "A prompt in a batch with others",
    Kind.MODEL: "The server, beside the model",
}
_OF = {View.GENERATED: "generated tokens", View.PROMPT: "the prompt's tokens"}


def short(pair: Pair) -> str:
    """Write the verdict on a pair."""
    return _WORDS[pair.verdict]


def _named(pair: Pair) -> str:
    return f"{pair.lane} ({_OF[pair.view]})"


def headline(found: Found) -> str:
    """Say the verdict on all pairs."""
    count = len(found.pairs)
    beyond, open_ = found.having(Verdict.BEYOND), found.having(Verdict.UNDETERMINED)
    if not found.pairs:
        return "UNDETERMINED. Nothing was compared."
    if beyond:
        return f"BEYOND THE FLOOR in {len(beyond)} of {count} pairs: {', '.join(map(_named, beyond))}."
    if open_:
        return f"UNDETERMINED in {len(open_)} of {count} pairs: {', '.join(map(_named, open_))}."
    if found.verdict is Verdict.SAME:
        return f"SAME BITS in all {count} pairs."
    return f"WITHIN THE FLOOR: none of {count} pairs is further from the cold lane than rounding explains."


def numbers(pair: Pair) -> tuple[str, ...]:
    """Write the row of a pair: positions, share that differs, mean and largest change, distance over floor."""
    sizes = pair.sizes
    mean, most = (number(float(x)) if sizes.size else "–" for x in (_mean(sizes), sizes.max(initial=0.0)))
    over = None if pair.comparison is None else pair.comparison.excess
    excess = "–"
    if over is not None and math.isfinite(over.ratio):
        excess = number(over.ratio)
        if math.isfinite(over.low):
            excess += f" ({number(over.low)} to {number(over.high)})"
    share = "–" if math.isnan(pair.differing) else f"{100 * pair.differing:.3g} %"
    cached = "–" if pair.cached is None else f"{100 * pair.cached:.3g} %"
    return f"{pair.positions:,}", cached, share, mean, most, excess, pair.floor or "–"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def why(pair: Pair) -> Iterator[str]:
    """Say what the verdict on a pair rests on, and what would decide."""
    yield from _REASONS[pair.why](pair)
    if pair.partings:
        yield _parted(pair)


def _same(pair: Pair) -> Iterator[str]:
    yield f"{_VARIES[pair.kind]} gives the same bits."


def _level(pair: Pair) -> Iterator[str]:
    over = None if pair.comparison is None else pair.comparison.excess
    if over is None or not math.isfinite(over.ratio):
        yield f"{_VARIES[pair.kind]} differs; {enough()}"
        return
    interval = (
        f" ({coverage(LEVEL_ALPHA)} interval {number(over.low)} to {number(over.high)})"
        if math.isfinite(over.low)
        else ""
    )
    if pair.why is Why.MODEL:
        said = f"is {number(over.ratio)}{interval} times as far from the {pair.floor} as the cold lane is"
    elif pair.kind is Kind.MODEL:
        said = f"is {number(over.ratio)}{interval} times as far from the {pair.lane} as the {pair.floor} is"
    else:
        said = f"is {number(over.ratio)}{interval} times as far from the cold lane as '{pair.floor}' is"
    yield f"{_VARIES[pair.kind]} {said}; up to {over.factor:.3g} is within the floor."
    if pair.kind is Kind.BATCH and pair.verdict is Verdict.BEYOND:
        yield f"A batch is beyond the floor where it is more than {KERNELS:g} times as far: it runs other kernels."
    elif over.tail and pair.verdict is Verdict.BEYOND:
        yield f"{over.tail:,} positions are more than {over.tail_factor:g} times as far as any of that."
    if pair.verdict is Verdict.UNDETERMINED and pair.comparison is not None:
        if pair.comparison.reason is Reason.TOO_FEW or not math.isfinite(over.low):
            yield enough()
        elif over.low <= over.factor:
            yield due(over)
        else:
            yield (
                f"A batch runs other kernels, so that up to {KERNELS:g} times as far nothing is said against it. "
                "--against MODEL would decide: whether it is further from the model than the cold lane."
            )


def _no_floor(pair: Pair) -> Iterator[str]:
    if pair.kind is Kind.MODEL:
        yield "They differ, and nothing says by how much they may: name a second precision with --floor-dtype."
        return
    yield (
        f"{_VARIES[pair.kind]} differs, and no lane of another kind tells how far rounding moves: they are the same "
        "bits as the cold one but for a few tokens, or beyond the floor, or may come from the cache as well. --against "
        "MODEL would decide: whether it is further from the model than the cold lane."
    )


def _nonfinite(pair: Pair) -> Iterator[str]:
    yield "One lane alone has NaN or infinities, or a log-probability where the other has none."


def _unexplained(pair: Pair) -> Iterator[str]:
    yield "Its texts go on otherwise where the cold lane was not near a tie, or does not tell."


def _not_cached(pair: Pair) -> Iterator[str]:
    yield (
        "The server says that nothing came from its cache, so this tells nothing of it: switch its prefix cache on, or "
        "leave the lane out with --lanes."
    )


def _not_cold(pair: Pair) -> Iterator[str]:
    yield (
        "The server took the cold lane from its cache: name another --nonce, or with --anew what makes it compute a "
        "prompt anew."
    )


_REASONS = {
    Why.SAME: _same,
    Why.FLOOR: _level,
    Why.MODEL: _level,
    Why.NONFINITE: _nonfinite,
    Why.PARTED: _unexplained,
    Why.NO_FLOOR: _no_floor,
    Why.NOT_CACHED: _not_cached,
    Why.NOT_COLD: _not_cold,
}


def _parted(pair: Pair) -> str:
    known = [one.margin for one in pair.partings if not math.isnan(one.margin)]
    margins = f", by margins of up to {number(max(known))} nats" if known else ""
    rule = "" if math.isnan(pair.moved) else f"; up to {number(FLIP * pair.moved)} is a near-tie"
    first = pair.partings[0]
    return (
        f"{len(pair.partings)} texts part (the first: prompt {first.prompt}, token {first.position}){margins}{rule}. "
        "What comes before is compared."
    )


def notes(found: Found) -> Iterator[str]:
    """Say what to know of the probe."""
    for view in View:
        repeats = [pair for pair in found.pairs if pair.view is view and pair.kind is Kind.REPEAT]
        if repeats and all(pair.verdict is Verdict.SAME for pair in repeats):
            yield (
                f"{_OF[view].capitalize()}: asked again alone, the server gives the same bits. Whatever differs is no "
                "noise; but such repeats are no floor, and other lanes have to be."
            )
    if any(pair.kind is Kind.CACHE and pair.cached is None for pair in found.pairs):
        yield (
            "The server does not tell how much came from its cache (vLLM: --enable-prompt-tokens-details, SGLang: "
            "--enable-cache-report), so that nothing shows whether the cache was used at all."
        )
    if any(pair.view is View.PROMPT for pair in found.pairs):
        yield "Where a prompt's own log-probabilities are asked for, vLLM and SGLang read no prefix cache."
    if found.having(Verdict.WITHIN):
        yield (
            "Within the floor is not innocence: a bug that is no larger than rounding reads the same, and so does one "
            f"that batches of both sizes have and that is no more than {KERNELS:g} times what a cache moves."
        )
    for text in found.probe.left_out:
        yield f"Not asked: {text}."
