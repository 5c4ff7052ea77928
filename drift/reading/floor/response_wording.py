"""The answer of full attention to disturbed embeddings, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from drift.reading.floor.responding import NoiseResponse
from drift.reading.statistics.levels import geometric_mean
from drift.reading.wording.numbers import number, range_words

__all__ = ["response_headline", "size_words"]

_SUBJECT = "Full attention answers to disturbed embeddings"


def size_words(size: float) -> str:
    """Write the size of a disturbance, in unit roundoffs: ``0.01``, ``10,000``."""
    return f"{size:,g}" if size < 1e6 else number(size)


def response_headline(found: Sequence[NoiseResponse]) -> str:
    """Say over which sizes the response is in proportion, and what it is below and above them."""
    if not any((one.values > 0).any() for one in found):
        return f"{_SUBJECT} with nothing: every response is exactly zero or not finite"
    parts = [_stretches(found), _floor(found), _grouped(found, _silent), _grouped(found, _saturated)]
    return f"{_SUBJECT} " + "; ".join(part for part in parts if part)


def _stretches(found: Sequence[NoiseResponse]) -> str:
    """Over which sizes the response is in proportion."""
    some = [one for one in found if one.proportional is not None]
    said = f"in proportion {_grouped(some, _stretch, found)}" if some else ""
    none = [one for one in found if one.proportional is None]
    return ", ".join(
        part for part in (said, _grouped(none, lambda _: f"nowhere{' in proportion' * (not some)}", found)) if part
    )


def _stretch(one: NoiseResponse) -> str:
    low, high = map(size_words, one.proportional or (math.nan, math.nan))
    return f"from {low} to {high} unit roundoffs"


def _floor(found: Sequence[NoiseResponse]) -> str:
    """How little less the smallest disturbance that is answered gets than the next, where not in proportion."""
    falls: dict[tuple[float, float], list[float]] = {}
    for one in found:
        heard = one.level > 0
        if heard.sum() > 1:
            (least, larger), (below, above) = one.sizes[heard][:2], one.level[heard][:2]
            inside = one.proportional is not None and least >= one.proportional[0]
            if not inside and above / below < larger / least:
                falls.setdefault((float(larger), float(least)), []).append(float(above / below))
    said = [
        f"from {size_words(larger)} down to {size_words(least)} it falls only {range_words(ratios)}-fold"
        for (larger, least), ratios in falls.items()
    ]
    return ", ".join(said)


def _silent(one: NoiseResponse) -> str:
    """Up to which size nothing is answered: one that has only silent sizes below it."""
    quiet = 0
    while quiet < len(one.sizes) and one.sizes[quiet] in one.silent:
        quiet += 1
    return f"to {size_words(one.sizes[quiet - 1])} and less not at all" if quiet else ""


def _saturated(one: NoiseResponse) -> str:
    if one.saturated is None:
        return ""
    top = geometric_mean(one.level[one.sizes >= one.saturated])
    return f"no more than {number(top)} from {size_words(one.saturated)} on"


def _grouped(
    mine: Sequence[NoiseResponse], say: Callable[[NoiseResponse], str], found: Sequence[NoiseResponse] = ()
) -> str:
    """Say a thing of some once for all of which it holds, and name these where it does not hold for all there are."""
    by: dict[str, list[NoiseResponse]] = {}
    for one in mine:
        by.setdefault(say(one), []).append(one)
    if len(by) == 1 and len(mine) == len(found or mine):
        return next(iter(by))
    return ", ".join(f"{words} ({_names(those, found or mine)})" for words, those in by.items() if words)


def _names(mine: Sequence[NoiseResponse], found: Sequence[NoiseResponse]) -> str:
    """Name some of the responses by precision, and by model where not all models of the precision are meant."""
    names = []
    for dtype in dict.fromkeys(one.labels["dtype"] for one in mine):
        here, there = ([one.labels["model"] for one in part if one.labels["dtype"] == dtype] for part in (mine, found))
        names.append(dtype if here == there else f"{dtype} of {', '.join(here)}")
    return ", ".join(names)
