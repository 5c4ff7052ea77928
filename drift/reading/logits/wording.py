"""A comparison of logits in words: what was found, and what to do next. It names no cause."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from drift.reading.logits.deciding import LEAST_POSITIONS, NEAR
from drift.reading.logits.model import BAND, Excess, LogitComparison, Quantity, Reason, Units, Verdict
from drift.reading.statistics.intervals import LEVEL_ALPHA
from drift.reading.statistics.windows import DOCUMENTS
from drift.reading.wording.numbers import count, coverage, number

__all__ = ["LLAMA", "SECTIONS", "due", "enough", "headline", "next_steps", "notes", "why", "written"]

_Q = Quantity
_HEADLINES = {
    Verdict.SAME: "SAME BITS. A and B hold the same numbers.",
    Verdict.WITHIN: "WITHIN THE FLOOR. B is no further from A than A's own repeats are.",
    Verdict.BEYOND: "BEYOND THE FLOOR. B is further from A than A's own repeats are.",
    Verdict.UNDETERMINED: "UNDETERMINED. These files do not decide.",
}
_BAND = f"{BAND[0]:g} to {BAND[1]:g}"

#: What is shown, in order: title, and rows of a number, what it is called, and whether it is a share.
SECTIONS: tuple[tuple[str, tuple[tuple[Quantity, str, bool], ...]], ...] = (
    ("KL(A||B), nats", ((_Q.KL_MEAN, "mean", False), (_Q.KL_MEDIAN, "median", False), (_Q.KL_90, "90 %", False),
                        (_Q.KL_99, "99 %", False), (_Q.KL_MAX, "largest", False))),
    ("Jensen-Shannon divergence, nats", ((_Q.JS_MEAN, "mean", False), (_Q.JS_MEDIAN, "median", False),
                                         (_Q.JS_99, "99 %", False), (_Q.JS_MAX, "largest", False))),
    ("log-probability of the token, B less A, nats", (
        (_Q.CHANGE_MEAN, "mean", False), (_Q.CHANGE_ABS, "mean size", False),
        (_Q.CHANGE_RMS, "root mean square", False), (_Q.CHANGE_99, "99 % of sizes", False),
        (_Q.CHANGE_MAX, "largest size", False))),
    ("probability ratio B / A", (
        (_Q.RATIO_MEAN, "mean", False), (_Q.RATIO_MIN, "smallest", False), (_Q.RATIO_01, "1 %", False),
        (_Q.RATIO_MEDIAN, "median", False), (_Q.RATIO_99, "99 %", False), (_Q.RATIO_MAX, "largest", False),
        (_Q.RATIO_OUTSIDE, f"outside {_BAND}", True), (_Q.RATIO_CLIPPED, "outside the clip", True),
        (_Q.ESS, "effective sample size, of all", True))),
    ("KL(A||B) from the tokens alone, nats (if A sampled them)", (
        (_Q.K1, "k1", False), (_Q.K2, "k2", False), (_Q.K3, "k3", False))),
    ("likeliest token", ((_Q.FLIPS, "another one", True),)),
)  # fmt: skip

#: What llama.cpp prints at the end of --kl-divergence, in its order; Q is B, base is A.
LLAMA: tuple[tuple[Quantity, str, bool], ...] = (
    (_Q.PPL_B, "Mean PPL(Q)", False), (_Q.PPL_A, "Mean PPL(base)", False),
    (_Q.PPL_CORRELATION, "Cor(ln(PPL(Q)), ln(PPL(base)))", True),
    (_Q.PPL_LOG_RATIO, "Mean ln(PPL(Q)/PPL(base))", False),
    (_Q.PPL_RATIO, "Mean PPL(Q)/PPL(base)", False), (_Q.PPL_DIFFERENCE, "Mean PPL(Q)-PPL(base)", False),
    (_Q.KL_MEAN, "Mean KLD", False), (_Q.KL_MAX, "Maximum KLD", False), (_Q.KL_99, "99.0% KLD", False),
    (_Q.KL_90, "90.0% KLD", False), (_Q.KL_MEDIAN, "Median KLD", False),
    (_Q.P_MEAN, "Mean Δp", True), (_Q.P_MAX, "Maximum Δp", True), (_Q.P_99, "99.0% Δp", True),
    (_Q.P_MEDIAN, "Median Δp", True), (_Q.P_01, "1.0% Δp", True), (_Q.P_MIN, "Minimum Δp", True),
    (_Q.P_RMS, "RMS Δp", True), (_Q.SAME_TOP, "Same top p", True),
)  # fmt: skip


def written(value: float, share: bool) -> str:
    """Write a number, or a share as percentage; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if share:
        return f"{100 * value:.3g} %"
    near_1 = BAND[0] < value < BAND[1]  # where what counts is how far from 1
    return "0" if value == 0 else f"{value:.6g}" if near_1 else f"{value:.4g}"


def headline(found: LogitComparison) -> str:
    """Say the verdict."""
    return _HEADLINES[found.verdict]


def why(found: LogitComparison) -> Iterator[str]:
    """Say what the verdict rests on."""
    over, odd = found.excess, int(found.pairs.odd.sum())
    if odd:
        yield (
            f"At {odd:,} of {len(found.pairs):,} positions one lane alone has NaN or infinities "
            f"(A at {int(found.pairs.bad_a.sum()):,}, B at {int(found.pairs.bad_b.sum()):,}); they are in no average."
        )
    if over is not None and math.isfinite(over.ratio):
        replicated = f"{over.replicates} {'parts of sequences' if over.parts else 'sequences'}"
        interval = (
            f"{coverage(LEVEL_ALPHA)} interval {number(over.low)} to {number(over.high)}, "
            if math.isfinite(over.low)
            else ""
        )
        yield (
            f"Distance over floor: {number(over.ratio)} ({interval}{replicated}); up to {over.factor:.3g} is within "
            "the floor."
        )
    if over is not None and over.tail:
        yield (
            f"{over.tail:,} of {len(found.pairs):,} positions are more than {over.tail_factor:g} times as far from A "
            "as any position of the repeats."
        )
    yield from _undecided(found)


def _undecided(found: LogitComparison) -> Iterator[str]:
    if found.verdict is not Verdict.UNDETERMINED:
        return
    over = found.excess
    if found.reason is Reason.NO_FLOOR:
        yield (
            "They differ, and nothing says by how much they may: give repeats of A with --floor (A again with another "
            "batch size, chunk size or attention kernel that you accept)."
        )
    elif found.reason is Reason.FLOOR_ZERO:
        yield "The repeats are the same bits as A and measure no floor: vary what you accept (batch, chunk, kernel)."
    elif found.reason is Reason.TOO_FEW:
        yield enough()
    elif found.reason is Reason.NONFINITE:
        yield "The repeats have NaN or infinities where A has none, too, or the other way round: mend these first."
    elif found.reason is Reason.CUT:
        yield "What both lanes have agrees; nothing is said of what one of them lacks."
    elif over is not None:
        yield due(over)


def enough() -> str:
    """Say how much is needed for an interval."""
    return (
        f"At least {LEAST_POSITIONS} positions and {DOCUMENTS} sequences, or parts of sequences, that differ are "
        "needed."
    )


def due(over: Excess) -> str:
    """Say that an interval does not decide, and how many sequences would."""
    more = ""
    if math.isfinite(over.needed):
        more = f" About {over.needed:.0f} such {'parts' if over.parts else 'sequences'} would decide."
    return f"The interval lies on both sides of {over.factor:.3g}.{more}"


def next_steps(found: LogitComparison) -> Iterator[str]:
    """Say what to dump next; a comparison of logits tells that two lanes differ, never why."""
    place = found.furthest
    if found.verdict in (Verdict.SAME, Verdict.WITHIN) or place is None:
        return
    yield (
        f"Dump hidden states, keys and values of both lanes for sequence {place[0]}, up to position {place[1]} (the "
        "furthest), and ask python -m drift.diagnose where the difference enters."
    )


def flips(found: LogitComparison) -> Iterator[str]:
    """Say how many of the flips were near-ties."""
    flipped = int((found.pairs.flip == 1).sum())
    if not flipped:
        return
    if found.near_ties is None:
        yield f"{flipped:,} flips of the likeliest token; which of them are near-ties, a --floor with margins tells."
        return
    yield (
        f"{found.near_ties:,} of {flipped:,} flips of the likeliest token were near-ties: A's margin is within what "
        f"{100 * NEAR:g} % of margins move by among the repeats."
    )


def _hidden(found: LogitComparison) -> Iterator[str]:
    """Say how large a difference could hide within the floor: one that adds to B's own rounding, which is a floor."""
    over = found.excess
    if found.verdict is not Verdict.WITHIN or over is None:
        return
    floors = math.sqrt(over.factor**2 - 1)
    size = ""
    if found.pairs.whole and (kl := found.numbers.get(_Q.KL_MEAN)) is not None:
        known = [value for value in kl.floor if math.isfinite(value)]
        size = f" (here a mean KL of {number(floors**2 * sum(known) / len(known))})" if known else ""
    elif (change := found.numbers.get(_Q.CHANGE_ABS)) is not None:
        known = [value for value in change.floor if math.isfinite(value)]
        size = f" (here a mean change of {number(floors * sum(known) / len(known))} nats)" if known else ""
    yield (
        f"Within the floor is not innocence: a bug that moves logits by no more than {number(floors)} floors{size} "
        "reads the same. Lanes in a finer precision have a lower floor, and show smaller ones."
    )


def notes(found: LogitComparison) -> Iterator[str]:
    """Say what to know about the numbers."""
    pairs = found.pairs
    yield from _hidden(found)
    yield from flips(found)
    both = int((pairs.bad_a & pairs.bad_b).sum())
    if both:
        yield f"At {both:,} positions both lanes have NaN or infinities; they are in no average."
    if pairs.cut:
        yield (
            f"{_sequences(pairs.cut)}: one lane has more positions, or other tokens from some position on. What comes "
            "before is compared."
        )
    if not pairs.tokens_known:
        yield "The lanes do not tell in one way which tokens they are of; these were taken for the same."
    if not pairs.whole:
        yield "Whole distributions are not known: distances are changes of the token's log-probability."
    if found.units is Units.SEQUENCE:
        yield "Ratios, k1 to k3 and the effective sample size are of whole sequences: products over their tokens."
    if found.excess is not None and found.excess.parts:
        yield f"Fewer than {DOCUMENTS} sequences: intervals are over parts of them, and say nothing of other texts."
    yield from found.notes


def _sequences(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"Sequence {numbers[0]}"
    return f"{count(len(numbers)).capitalize()} sequences (the first is {numbers[0]})"
