"""What came of tasks, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from drift.reading.statistics.intervals import Interval
from drift.reading.statistics.proportions import Share
from drift.reading.wording.numbers import coverage, fixed_number, number

__all__ = [
    "beyond_the_model",
    "change_words",
    "control_words",
    "cost_words",
    "difference_words",
    "found_words",
    "growth_words",
    "hits_words",
    "in_all_words",
    "lengths_words",
    "none_left",
    "points",
    "predicted_words",
    "predictor_words",
    "reached_words",
    "reckoned_words",
    "share_words",
    "step_words",
    "stretched_words",
    "trials_words",
    "unmeasured_words",
    "within_words",
]


def points(value: float) -> str:
    """Write a difference of shares in percentage points."""
    return f"{100 * value:+z.1f} points"


def lengths_words(tokens: Sequence[int]) -> str:
    """Write lengths of prompts: ``1024 to 16384 tokens``."""
    low, high = min(tokens), max(tokens)
    return f"{low} tokens" if low == high else f"{low} to {high} tokens"


def share_words(share: Share, alpha: float) -> str:
    """Write a share with its interval."""
    return f"{100 * share.value:.0f} % ({coverage(alpha)} interval {100 * share.low:.0f} to {100 * share.high:.0f} %)"


def trials_words(trials: int, texts: int) -> str:
    """Say how many trials there are, and of how many texts where several are of one."""
    return f"{trials} trials" if texts == trials else f"{trials} trials in {texts} texts, which count as clusters"


def hits_words(hits: int, trials: str, share: Share, alpha: float) -> str:
    """Say how many of the trials are exact."""
    return f"{hits} exact of {trials}: {share_words(share, alpha)}"


def difference_words(first: int, second: int, p: float, interval: Interval, alpha: float) -> str:
    """Say in how many pairs only one lane is exact, and how far the shares differ."""
    ends = " to ".join(points(end).removesuffix(" points") for end in interval.pair)
    return (
        f"exact in full attention alone {first}, in the fold alone {second} (McNemar, exact: p {p:.2g}); difference "
        f"{points(interval.value)} ({coverage(alpha)} interval {ends})"
    )


def step_words(held: Share, left: Share, step: Interval, alpha: float) -> str:
    """Say how the share of hits falls where the window no longer holds the fact."""
    said = f"out of the window {share_words(left, alpha)} of {left.trials:.0f}"
    if not held.trials:
        return f"{said}; none was asked within it"
    ends = " to ".join(points(end).removesuffix(" points") for end in step.pair)
    return (
        f"{said}, within it {share_words(held, alpha)} of {held.trials:.0f}; it falls by {points(step.value)} "
        f"({coverage(alpha)} interval {ends})"
    )


def change_words(change: Interval, texts: int, alpha: float) -> str:
    """Say by how much the answer's log-likelihood changes in the fold."""
    ends = f"{coverage(alpha)} interval {' to '.join(map(fixed_number, change.pair))}"
    known = ends if change.low == change.low else "no interval"
    return f"the answer's log-likelihood changes by {fixed_number(change.value)} nats ({known}) over {texts} texts"


def beyond_the_model(hits: int, trials: int) -> str:
    """Say that a model cannot do a task, so that nothing is said of the fold."""
    return f"cannot be tested on this model: full attention itself is exact in {hits} of {trials}"


def none_left() -> str:
    """Say that no fact had left the window."""
    return "no fact had left the window when it was asked for"


def control_words(name: str, without: int, unsteady: bool) -> str:
    """Say which control of a task failed."""
    said = [f"{without} questions were answered without the facts"] * bool(without)
    said += ["full attention, asked twice, gave other bits"] * unsteady
    return f"{name}: {' and '.join(said)}"


def cost_words(ratios: Sequence[float], growth: Sequence[float], cache: Sequence[float], device: str) -> str:
    """Say what folding takes, as shares of what full attention does over the same text, on one device."""

    def spread(values: Sequence[float]) -> str:
        low, high = number(min(values)), number(max(values))
        return low if low == high else f"{low} to {high}"

    return (
        f"on {device} folding takes {spread(ratios)} times the seconds of full attention over the same text and "
        f"carries {spread(cache)} times its cache; late steps take {spread(growth)} times as long as early ones"
    )


def growth_words(first: float, slope: float, steps: int) -> str:
    """Say how long a chain step takes at first, and how much longer each further one, by a line; empty without one."""
    if math.isnan(first):
        return ""
    each = f"{round(slope, 6):+z.2g}"
    return f"; by a line over up to {steps} steps, one takes {number(first)} s at first, and each further {each} s"


def predicted_words(tokens: int, parameters: float, cache: float, weights: float, published: float) -> str:
    """Say what a cache of the published size would take; predicted, not measured."""
    return (
        f"predicted, not measured: {tokens:,} tokens of a model of {parameters / 1e9:.1f}B parameters need "
        f"{(cache + weights) / 1e9:.1f} GB in bf16 ({cache / 1e9:.1f} GB of cache, {weights / 1e9:.1f} GB of weights; "
        f"published: {published / 1e9:.1f} GB)"
    )


def reckoned_words(memory: float, seconds: float, device: str) -> str:
    """Say what drift's own sweep reckons that asking a text of the published size takes."""
    return (
        f"; drift's sweep reckons with {memory / 1e9:.1f} GB for asking it, full attention of the same text and the "
        f"cache of a branch included (sweep/memory), and with {number(seconds)} s for the fold on {device} (sweep/cost)"
    )


def stretched_words(seconds: float, device: str) -> str:
    """Say how long the published fold would take by the line over the steps that were measured; empty without one."""
    if math.isnan(seconds):
        return ""
    return (
        f"; by the line over the measured steps and the two shapes it would take {number(seconds / 3600)} h on {device}"
    )


def in_all_words(
    tokens: int, fold: float, full: float, peak: float, full_peak: float, reckoned: float, device: str
) -> str:
    """Say what the longest texts took in all: seconds, and the most memory (bytes) that was held on a device."""
    so_far = ", of the process so far" if device == "cpu" else ""
    known = "" if math.isnan(reckoned) else f"; reckoned by sweep/memory: {reckoned / 1e9:.1f} GB"
    return (
        f"in all, {tokens} tokens take {number(fold)} s folded and {number(full)} s in one pass, at a peak of "
        f"{peak / 1e9:.1f} and {full_peak / 1e9:.1f} GB{so_far}{known}"
    )


def reached_words(seconds: float, memory: float, published_seconds: float, published: float) -> str:
    """Say what the published size took where it was measured."""
    return (
        f"measured at the published size: {number(seconds)} s and {memory / 1e9:.1f} GB at most (published: "
        f"{published_seconds:g} s, {published / 1e9:.1f} GB)"
    )


def unmeasured_words(tokens: int, published: int, parameters: float) -> str:
    """Say that what was published of larger models and texts was not measured."""
    return (
        f"Measured up to {tokens:,} tokens; not measured: {published:,} tokens, and a model of {parameters / 1e9:.1f}B "
        "parameters, as published."
    )


def within_words(correlations: Mapping[str, float]) -> str:
    """Say what the rank correlation comes to within each reading: that over all of them may be between them alone."""
    known = [f"{name} {value:z.2f}" for name, value in correlations.items() if not math.isnan(value)]
    return f"Rank correlation of KL within a reading: {', '.join(known)}." if known else ""


def found_words(frame: pd.DataFrame) -> str:
    """Say how many items each reading finds, and full attention: ``append 8 of 8, isolated 0 of 8 (full 8 of 8)``."""
    said = [
        f"{name} {int(own['exact_fold'].sum())} of {len(own)}" for name, own in frame.groupby("protocol", sort=False)
    ]
    once = frame.drop_duplicates(["model", "dtype", "task", "tokens", "document", "question"])
    return f"{', '.join(said)} (full attention {int(once['exact_full'].sum())} of {len(once)})"


def predictor_words(name: str, correlation: float, count: int, larger: float, lost: int) -> str:
    """Say how far something known at the question tells what becomes of the answer."""
    if math.isnan(correlation):
        return f"{name}: too few items to say ({count})"
    said = f"{name}: rank correlation {correlation:z.2f} with the change of the answer over {count} items"
    return (
        said
        if math.isnan(larger)
        else f"{said}, larger for a lost answer in {100 * larger:.0f} % of pairs ({lost} lost)"
    )
