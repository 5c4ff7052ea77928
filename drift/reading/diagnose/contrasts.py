"""What a pair tells of itself: its steps held against each other, and the tokens of a step held against each other.

Rounding of 16 bits hides bugs of several per cent, but it is the same from step to step. Two things are not:

A bug that enters. From some step on the lanes are further apart at the end of the network than in all steps before.
What rounding does there hardly depends on where it began, since every operation rounds again. A clean lane's levels,
one per step, scatter around a slow trend: by `SCATTER` of their logarithm for steps of `ENOUGH` tokens, more for
shorter ones, as the root of their number. On prose three trained models show a quarter of that; where prose turns to
code within a text, one of them showed all of it, and levels that from there on were 1.8 times what they had been. The
mean log level of the later steps minus that of the earlier ones, over its standard error, is held against the normal
quantile of `RATE`, shared out among all steps that it could begin with and all places that are looked at. Beyond that
it must be a factor of `FACTOR`, and no later step may lie below an earlier one. Steps that differ by less than a unit
roundoff do not count: most of their numbers have the same bits.

A bug at a boundary. Were the tokens of a chunk exchangeable, the rank of its first (or last) token's difference among m
would be uniform, and minus twice the log of the product of rank / m over n chunks at most chi-squared with 2 n degrees
of freedom (Fisher; ranks are discrete, which makes that conservative). It is held against `RATE`, shared out among
places and the two ends. Tokens are not quite exchangeable, and a kernel of its own may take a chunk's last rows: the
median chunk's token must stand out by `STANDS_OUT`, and differ by as many unit roundoffs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from drift.reading.diagnose.compare import Comparison, Profile
from drift.reading.diagnose.tensors import Place

__all__ = [
    "FACTOR", "MOST", "RATE", "STANDS_OUT", "Boundary", "Jump", "Start", "boundary", "first_to_grow", "jump", "level",
    "start", "stretches",
]  # fmt: skip

RATE = 1 / 300
"""How often a clean pair may be accused by one of these contrasts, at most."""
SCATTER = 0.35
"""Standard deviation of log levels of clean steps of `ENOUGH` tokens."""
ENOUGH = 64
"""Tokens of a step for which that holds."""
FACTOR = 3.0
"""A difference that enters must be that many times what it was before."""
STANDS_OUT = 3.0
"""A token at a boundary must be that many times its chunk's median."""
SHORTEST = 8
"""Tokens of a stretch at least; shorter steps are taken together."""
MOST = 64
"""Stretches at most."""
PIECES = 8
"""Stretches of a text that no lane cuts."""


@dataclass(frozen=True)
class Jump:
    """A difference that enters.

    Attributes
    ----------
    seen : Place
        Where the steps were held against each other.
    entry : Place
        The first place that grew as well, from the same token on.
    token : int
        The first one.
    before, after : float
        Geometric mean over stretches of the relative L2 difference, where it was seen.
    here : (float, float)
        The same where it enters; 0 is the same bits.
    score : float
        Difference of mean log levels over its standard error.
    """

    seen: Place
    entry: Place
    token: int
    before: float
    after: float
    here: tuple[float, float]
    score: float


@dataclass(frozen=True)
class Boundary:
    """Tokens at one end of chunk after chunk that differ more than the others.

    Attributes
    ----------
    place : Place
        The first where they do.
    last : bool
        Whether it is the last tokens; else the first ones.
    token : int
        The first one that does.
    ratio : float
        Median over chunks of its difference over that of the chunk's median token; Inf where that is the same bits.
    chunks : int
        How many.
    chance : float
        How often ranks of exchangeable tokens are so extreme, for this place and end alone.
    """

    place: Place
    last: bool
    token: int
    ratio: float
    chunks: int
    chance: float


@dataclass(frozen=True)
class Start:
    """A place that was the same bits in its first steps and is not later, although what it reads is throughout.

    Attributes
    ----------
    place : Place
    token : int
        The first of the first stretch that differs.
    levels : tuple of float
        Relative L2 differences, one per stretch.
    """

    place: Place
    token: int
    levels: tuple[float, ...]


def stretches(found: Comparison) -> list[tuple[int, int]]:
    """Steps of the finer cut, short ones taken together; equal pieces where there is but one step."""
    tokens = found.tokens
    if len(found.segments) == 1:
        edges = np.linspace(0, tokens, min(PIECES, max(1, tokens // SHORTEST)) + 1).astype(int).tolist()
        return list(pairwise(edges))
    shortest = max(SHORTEST, tokens // MOST)
    result: list[tuple[int, int]] = []
    for low, high in found.segments:
        if result and result[-1][1] - result[-1][0] < shortest:
            result[-1] = (result[-1][0], high)
        else:
            result.append((low, high))
    return result


def level(profile: Profile, low: int, high: int) -> tuple[float, int]:
    """Relative L2 difference over some tokens, and how many of them were dumped; NaN where none was."""
    d, r = profile.difference[low:high], profile.reference[low:high]
    seen = np.isfinite(d) & np.isfinite(r)
    total = float(np.sum(r[seen] ** 2))
    return (math.sqrt(float(np.sum(d[seen] ** 2)) / total) if total > 0 else math.nan), int(seen.sum())


def _ends(found: Comparison) -> list[Place]:
    """Where the end of the network was dumped: the last states, and the logits."""
    states = [p for p in found.profiles if p.kind in ("hidden", "final") and p != Place("hidden", 0)]
    return [*states[-1:], *(p for p in found.profiles if p.kind == "logits")]


def jump(found: Comparison, u: float) -> Jump | None:
    """Find the step from which on the lanes are further apart than in all steps before; None if there is none.

    Parameters
    ----------
    found : Comparison
        The lanes.
    u : float
        Unit roundoff. Steps that differ by less have bits in common that the others have not, and tell nothing.
    """
    pieces, places = stretches(found), _ends(found)
    best: tuple[float, int, Place, float, float] | None = None
    for place in places:
        measured = [level(found.profiles[place], *piece) for piece in pieces]
        levels = np.array([value for value, _ in measured])
        usual = np.isfinite(levels) & (levels >= u)
        if usual.sum() < 4:
            continue
        logs = np.log(levels[usual])
        tokens = np.array([n for _, n in measured])[usual]
        base = SCATTER * math.sqrt(max(1.0, ENOUGH / float(np.median(tokens))))
        needed = NormalDist().inv_cdf(1 - RATE / (len(places) * (len(logs) - 3)))
        where = np.flatnonzero(usual)
        for cut in range(2, len(logs) - 1):
            early, late = logs[:cut], logs[cut:]
            apart = float(late.mean() - early.mean())
            spread = math.hypot(base, float(early.std(ddof=1)))
            score = apart / (spread * math.sqrt(1 / len(early) + 1 / len(late)))
            if score < needed or apart < math.log(FACTOR) or late.min() <= early.max():
                continue
            if best is None or score > best[0]:
                best = score, int(where[cut]), place, float(early.mean()), float(late.mean())
    if best is None:
        return None
    score, cut, place, low, high = best
    entry, here = first_to_grow(found, pieces, cut, place)
    return Jump(place, entry, pieces[cut][0], math.exp(low), math.exp(high), here, score)


def first_to_grow(
    found: Comparison, pieces: list[tuple[int, int]], cut: int, seen: Place
) -> tuple[Place, tuple[float, float]]:
    """The first place that grew from the same stretch on, and its levels before and after."""
    for place, profile in found.profiles.items():
        levels = np.array([level(profile, *piece)[0] for piece in pieces])
        early, late = levels[:cut], levels[cut:]
        early, late = early[np.isfinite(early)], late[np.isfinite(late)]
        if not early.size or not late.size or not np.all(late > 0):
            continue
        before, after = float(np.sqrt(np.mean(early**2))), float(np.exp(np.mean(np.log(late))))
        if after > FACTOR * before or place == seen:
            return place, (before, after)
    return seen, (math.nan, math.nan)


def boundary(found: Comparison, u: float) -> Boundary | None:
    """Find tokens at one end of chunk after chunk that differ more than the others of their chunk.

    Parameters
    ----------
    found : Comparison
        The lanes.
    u : float
        Unit roundoff. Differences below a 64th of it count as that.
    """
    chunks = [(low, high) for low, high in found.segments[1:] if high - low >= SHORTEST]
    places = [p for p in found.profiles if p.kind in ("hidden", "final") and p != Place("hidden", 0)]
    if len(chunks) < 3 or not places:
        return None
    for place in places:
        relative = found.profiles[place].relative
        for last in (False, True):
            hit = _of_end(relative, chunks, last, u)
            if hit is None or hit[1] < STANDS_OUT or hit[0] > RATE / (2 * len(places)):
                continue
            chance, ratio, token, count = hit
            return Boundary(place, last, token, ratio, count, chance)
    return None


def _of_end(
    relative: np.ndarray, chunks: list[tuple[int, int]], last: bool, u: float
) -> tuple[float, float, int, int] | None:
    """Chance of the ranks of one end's tokens, their median ratio, the first that stands out, and how many chunks."""
    logs: list[float] = []
    ratios: list[float] = []
    sizes: list[float] = []
    first: int | None = None
    for low, high in chunks:
        piece = relative[low:high]
        if not np.isfinite(piece).all() or not piece.any():
            continue
        own = piece[-1 if last else 0]
        others = np.delete(piece, len(piece) - 1 if last else 0)
        logs.append(math.log(np.count_nonzero(piece >= own) / len(piece)))
        ratios.append(float(own / max(float(np.median(others)), u / 64)))
        sizes.append(float(own))
        if first is None and ratios[-1] >= STANDS_OUT:
            first = high - 1 if last else low
    # A row that another kernel took on differs by a rounding, in chunk after chunk.
    if len(logs) < 3 or first is None or float(np.median(sizes)) < STANDS_OUT * u:
        return None
    half = -sum(logs)
    terms = [-half + k * math.log(half) - math.lgamma(k + 1) for k in range(len(logs))] if half > 0 else [0.0]
    chance = min(1.0, math.fsum(map(math.exp, terms)))
    return chance, float(np.median(ratios)), first, len(logs)


def start(found: Comparison, incoming: dict[Place, np.ndarray]) -> Start | None:
    """Find a place that reads the same bits throughout, and is the same bits itself in its first steps only.

    Kernels that are chosen by length do that, too: it accuses nobody, but tells where to look.

    Parameters
    ----------
    found : Comparison
        The lanes.
    incoming : dict
        Per place, the difference of what it reads, float64 [token].
    """
    pieces = stretches(found)
    for place, profile in found.profiles.items():
        if not profile.differing or place == Place("hidden", 0):
            continue
        levels = [level(profile, *piece)[0] for piece in pieces]
        differs = [value > 0 for value in levels]
        first = differs.index(True) if True in differs else 0
        clean = not np.any(incoming[place])
        return Start(place, pieces[first][0], tuple(levels)) if clean and first >= 2 and all(differs[first:]) else None
    return None
