"""Figures and sentences that describe curves.

Levels, ratios and slopes are descriptions; their wording follows from the numbers by the thresholds below, which the
sentences name. Whether a curve is a plateau is a statistical question, put to :mod:`drift.plateau`; what that means for
the published claims stands in :mod:`drift.claims`. NumPy, SciPy and pandas only.

Values that have no logarithm are never dropped in silence: they are counted (``zeros``, ``nonfinite``), and a level
that is exactly zero is reported as exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from drift import dataset
from drift.dataset.contract import VARIABLES
from drift.dataset.sweep import Sweep
from drift.reading import amplitudes, ladder
from drift.reading.amplitudes import amplitude_power, measure_name
from drift.reading.cells import after_layer, cell_identity, layer_words
from drift.reading.controls.gating import WITHHELD, gate
from drift.reading.statistics import intervals
from drift.reading.statistics import slope as statistics_slope
from drift.reading.statistics.levels import geometric_mean, level
from drift.reading.statistics.slope import Scaling
from drift.reading.summary.levels import (
    EXTRA_COLUMNS,
    depth,
    late_mean,
    late_nonfinite,
    slopes,
    table,
)
from drift.reading.wording.numbers import chunk_words, coverage, number, percent, range_words, signed_number
from drift.reading.wording.verdicts import SCALING_WORDS
from drift.reading.wording.windows import late_rule, late_words

__all__ = [
    "chunk_sentences",
    "curve_sentences",
    "depth_answer",
    "depth_sentences",
    "headline",
    "logit_sentences",
    "lost_words",
    "thresholds",
    "token_sentences",
]


#: Keys and values that differ by less are called alike.
ALIKE = 0.1
#: Quantiles over tokens that are described: the middle, two high ones, and the worst token.
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def thresholds() -> str:
    """Say by which thresholds the sentences choose their words."""
    cover = coverage(intervals.ALPHA)
    return (
        f"How the words are chosen: the level is the geometric mean {late_rule()}. Its log-log slope against the unit "
        "roundoff is 1 for pure rounding and 0 for an error that rounding did not make. It is rounding where the "
        f"slope's {cover} interval lies within 1 ± {statistics_slope.ROUNDING_MARGIN:g}, structural where it lies "
        f"within ± {statistics_slope.STRUCTURAL_MARGIN:g} of 0, both where it lies between the two; a slope without an "
        "interval has no verdict. What a curve does along the chain is a verdict, too: two one-sided tests, growth per "
        f"doubling of depth with its {cover} interval."
    )


def headline(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> dict[str, str]:
    """Say per protocol whether drift scales with rounding: :func:`drift.reading.ladder.headlines`, as titles have it.

    Returns
    -------
    dict of str to str
        Protocol to sentence.
    """
    if not gate(sweep).is_open:
        return {str(p): f"{p}: {WITHHELD}" for p in sweep.values("protocol")}
    for ds in amplitudes.holding(sweep, measure):
        dataset.curve(ds, measure, layer)  # says what is wrong with a measure or layer
    found = ladder.ladders(sweep, measure, layer) if measure in amplitudes.DISTANCES else []
    said = ladder.headlines(found, notes=False)
    unknown = f"{SCALING_WORDS[Scaling.UNDETERMINED]}."
    return {p: said.get(p, f"{p}: {unknown}").removesuffix(".") for p in map(str, sweep.values("protocol"))}


def _groups(levels: pd.DataFrame, keys: Sequence[str]) -> Iterable[tuple[str, pd.DataFrame]]:
    """Yield label and rows of each group; axes that vary beyond `keys` are named in the label."""
    extra = [k for k in EXTRA_COLUMNS if levels[k].nunique() > 1]
    for key, group in levels.groupby([*keys, *extra], sort=True):  # by protocol first: that is how people read them
        named = dict(zip([*keys, *extra], key, strict=True))
        label = ", ".join(str(named[k]) for k in keys)
        for k in extra:
            label += f", {named[k]} {k}" if k in ("tokens", "documents") else f", {named[k]}"
        yield label, group


def curve_sentences(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> list[str]:
    """Say what the curves look like, from the numbers.

    One sentence per protocol and model (and per value of any further axis that varies) on the level and how it goes
    with the precision, and one on how it goes along the chain.
    """
    levels = table(sweep, measure, layer)
    if levels.empty:
        return ["There are no cells to describe."]
    if not gate(sweep).is_open:
        return [f"All protocols: {WITHHELD}."]
    said = []
    found = ladder.ladders(sweep, measure, layer) if measure in amplitudes.DISTANCES else []
    for label, group in _groups(levels, ("protocol", "model")):
        said.append(f"{label}: {_level_sentence(group, measure, layer, _ladders_of(group, found))}")
        said.append(f"{label}: {_chain_sentence(group)}")
    return said


def _level_sentence(group: pd.DataFrame, measure: str, layer: int | str, ladders: Sequence[ladder.Ladder]) -> str:
    group = group.sort_values("unit_roundoff", ascending=False)
    parts = []
    for dtype, rows in group.groupby("dtype", sort=False):
        parts.append(f"{range_words(rows['level'])} in {dtype}")
    unit = "" if VARIABLES[measure].units == "1" else f" ({VARIABLES[measure].units})"
    text = (
        f"{measure_name(measure, layer)}{unit} is " + ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    )
    text += f" ({chunk_words(group['chunk_size'])})"
    by_chunk = slopes(group)
    words = _scaling_words(ladders, by_chunk["slope"].dropna().tolist(), amplitude_power(measure) != 1)
    ends = by_chunk[(by_chunk["coarsest"] != by_chunk["finest"]) & (by_chunk["level_finest"] > 0)]
    if by_chunk["slope"].notna().any() and len(ends):
        ratio = range_words((ends["level_coarsest"] / ends["level_finest"]).tolist())
        text += f", a ratio of {ratio} for a {number(ends['fold_roundoff'].iloc[0], 5)}-fold change in unit roundoff"
    if group["unit_roundoff"].nunique() < 2:
        dtypes = ", ".join(group["dtype"].unique())
        text += f"; with one precision only ({dtypes}), whether it scales with the unit roundoff cannot be said"
    else:
        text += f"; {words}"
    return text + "." + _caveats(group)


def _scaling_words(ladders: Sequence[ladder.Ladder], points: Sequence[float], squared: bool) -> str:
    """Say how a level goes with the unit roundoff, by the verdicts on its ladders; `points` are slopes without any."""
    root = "log-log slope of its square root" if squared else "log-log slope"
    if not ladders:
        if not points:
            return "whether it scales with the unit roundoff cannot be said"
        return f"its log-log slope is {_fixed(points)}, of points and without an interval: no verdict"
    kinds = [one.slope.verdict for one in ladders]
    if len(set(kinds)) == 1:
        text = SCALING_WORDS[kinds[0]]
    else:
        text = ", ".join(f"{kinds.count(k)} {k.value}" for k in dict.fromkeys(kinds)) + f" of {len(kinds)} ladders"
    reasons = dict.fromkeys(one.slope.reason.value for one in ladders if one.slope.reason)
    estimates = [one.slope.interval.value for one in ladders if math.isfinite(one.slope.interval.value)]
    said = [*reasons, *([f"{root} {_fixed(estimates)}"] if estimates else [])]
    return text + (f" ({'; '.join(said)})" if said else "")


def _fixed(values: Sequence[float]) -> str:
    return range_words(values, write=lambda v: f"{v:z.2f}")


def _ladders_of(group: pd.DataFrame, found: Sequence[ladder.Ladder]) -> list[ladder.Ladder]:
    """Ladders of the cells of a group, those of one precision left out."""
    axes = ("model", "protocol", "chunk_size", *EXTRA_COLUMNS)
    there = set(group[list(axes)].itertuples(index=False, name=None))
    several = [one for one in found if one.slope.reason is not statistics_slope.ScalingReason.ONE_RUNG]
    return [one for one in several if tuple(one.labels[n] for n in axes) in there]


def _caveats(group: pd.DataFrame) -> str:
    text = ""
    zero = group[group["level"] == 0]["dtype"].unique()
    if len(zero):
        text += f" In {', '.join(zero)} the level is exactly 0 in some cell, which has no place on a log scale."
    lost = group[group["level"].isna()]["dtype"].unique()
    if len(lost):
        text += f" In {', '.join(lost)} no value {late_words()} of some chain is finite."
    if group["nonfinite"].sum():
        text += f" {group['nonfinite'].sum():,} of {group['points'].sum():,} values are NaN or Inf and were left out."
    partly = group[(group["level"] > 0) & (group["zeros"] > 0)]["zeros"].sum()
    if partly:
        text += f" {partly:,} values are exactly 0 and were left out of the geometric means."
    return text


def _chain_sentence(group: pd.DataFrame) -> str:
    group = group.sort_values("unit_roundoff", ascending=False)
    parts = []
    for dtype, rows in group.groupby("dtype", sort=False):
        row = rows.loc[rows["steps"].idxmax()]  # the longest chain says most
        parts.append(f"{dtype}: {_growth_words(row)}")
    sizes = sorted(set(group.loc[group.groupby("dtype")["steps"].idxmax(), "chunk_size"]))
    where = f"with chunk size {', '.join(map(str, sizes))}"
    steps = range_words(group.groupby("dtype")["steps"].max(), write=lambda v: f"{v:.0f}")
    return f"along the chain ({steps} steps {where}) " + "; ".join(parts) + "."


def _growth_words(row: pd.Series) -> str:
    if math.isnan(row["level"]):
        return f"no finite value {late_words()}"
    if row["level"] == 0:
        return f"exactly 0 {late_words()}"
    if math.isfinite(row["ratio"]):
        start = f"from {number(row['first'])} at the first step to {number(row['level'])} {late_words()}"
    else:
        start = f"first step {number(row['first'])}, level {number(row['level'])}"
    said = row["verdict"].replace("_", " ") + (f" ({row['reason']})" if row["reason"] else "")
    if math.isfinite(row["growth"]):
        said += f", {percent(row['growth'])} per doubling of depth ({coverage(intervals.ALPHA)} interval "
        said += f"{percent(row['growth_low'])} to {percent(row['growth_high'])})"
    return f"{start}: {said}"


def chunk_sentences(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> list[str]:
    """Say how the level goes with the chunk size."""
    levels = table(sweep, measure, layer)
    said = []
    for label, group in _groups(levels, ("protocol", "model", "dtype")):
        good = group[np.isfinite(group["level"]) & (group["level"] > 0)].sort_values("chunk_size")
        if good["chunk_size"].nunique() < 2:
            continue
        low, high = good["level"].idxmin(), good["level"].idxmax()
        ratio = good["level"][high] / good["level"][low]
        said.append(
            f"{label}: over {chunk_words(good['chunk_size'])} the level changes by a factor of {number(ratio, 3)} "
            f"(lowest {number(good['level'][low])} at {good['chunk_size'][low]}, highest {number(good['level'][high])} "
            f"at {good['chunk_size'][high]})."
        )
    return said or ["There is no model and precision with more than one chunk size."]


def logit_sentences(sweep: Sweep) -> list[str]:
    """Say what the drift does to the next-token distribution, past the first quarter of the chain."""
    rows = []
    for ds in sweep:
        names = ("logit_kl", "top1_agreement", "nll_fold", "nll_full")
        kl, top, fold, full = (late_mean(ds, n) for n in names)
        rows.append({**cell_identity(ds), "documents": ds.sizes["document"], "kl": kl, "top": 100 * (1 - top),
                     "fold": fold, "full": full, "gap": fold - full, "bad": late_nonfinite(ds, *names)})  # fmt: skip
    said = []
    if not rows:
        return ["There are no cells to describe."]
    for label, group in _groups(pd.DataFrame(rows), ("protocol", "model", "dtype")):
        if group[["kl", "top", "gap"]].isna().all(axis=None):
            said.append(f"{label}: no logits are finite {late_words()} of the chain.")
            continue
        said.append(
            f"{label}: KL(full ‖ fold) {range_words(group['kl'])} nat per token, another most likely token for "
            f"{range_words(group['top'])} % of tokens, NLL {range_words(group['full'], 3)} → "
            f"{range_words(group['fold'], 3)} nat (change {range_words(group['gap'], write=signed_number)}; "
            f"{chunk_words(group['chunk_size'])})." + lost_words(group["bad"].sum())
        )
    return said


def lost_words(count: int) -> str:
    """Say how many values a sentence leaves out because they are not finite; empty where none."""
    return f" {count:,} values are NaN or Inf and were left out." if count else ""


def depth_sentences(sweep: Sweep) -> list[str]:
    """Say where in the network's depth the drift grows, and how keys and values compare with hidden states."""
    said = []
    for ds in sweep:
        label = "{protocol}, {model}, {dtype}, chunk {chunk_size}".format(**cell_identity(ds))
        one = sweep.derive([ds])
        hidden = depth(one, "hidden_rel_l2").set_index("layer")["value"]
        positive = hidden.dropna()
        if len(positive) < 2:
            said.append(f"{label}: {_NO_DEPTH}")
            continue
        factor = (positive / positive.shift()).dropna()
        absolute = positive.diff().dropna()
        share = absolute.max() / positive.max()
        kept = "kept layer" if "thinned_json" in ds.attrs else "layer"
        text = (
            f"{label}: {number(positive.iloc[0])} after {layer_words(ds, positive.index[0])}, "
            f"{number(positive.iloc[-1])} {after_layer(ds, positive.index[-1])}; the largest factor from one "
            f"{kept} to the next is {number(factor.max())} ({layer_words(ds, factor.idxmax())})"
        )
        if absolute.max() > 0:
            place = layer_words(ds, absolute.idxmax())
            text += f", the largest step up is at {place} ({100 * share:.0f} % of the highest layer)"
        key, value = (depth(one, n)["value"].dropna() for n in ("key_rel_l2", "value_rel_l2"))
        if len(key) and len(value):
            k, v = geometric_mean(key.to_numpy()), geometric_mean(value.to_numpy())
            blocks = positive[(positive.index >= 1) & (positive.index <= ds["block"].values[-1])]
            text += f". Averaged over blocks, keys drift by {number(k)}, values by {number(v)}"
            if len(blocks):
                text += f", hidden states by {number(geometric_mean(blocks.to_numpy()))}"
            text += _compare(k, v)
        said.append(text + ".")
    return said or ["There are no cells to describe."]


def depth_answer(sweep: Sweep) -> list[str]:
    """Say per reading how drift grows from the first block to the last state, and how keys and values compare."""
    said = []
    for protocol in map(str, sweep.values("protocol")):
        growth, keys = [], []
        cells = [ds for ds in sweep if ds["protocol"].item() == protocol]
        for ds in cells:
            one = sweep.derive([ds])
            hidden = depth(one, "hidden_rel_l2").set_index("layer")["value"]
            hidden = hidden[(hidden.index > 0) & (hidden > 0)]
            key, value = (geometric_mean(depth(one, n)["value"].to_numpy()) for n in ("key_rel_l2", "value_rel_l2"))
            growth += [hidden.iloc[-1] / hidden.iloc[0]] if len(hidden) > 1 else []
            keys += [value / key] if key > 0 and math.isfinite(value) else []
        text = f"{protocol}: after the final norm drift is {range_words(growth)} times that after the first block"
        text += f", values drift {range_words(keys)} times as much as keys" if keys else ""
        said.append(f"{text} ({len(cells)} chain{'s' * (len(cells) != 1)})." if growth else f"{protocol}: {_NO_DEPTH}")
    return said or ["There are no cells to describe."]


_NO_DEPTH = "fewer than two layers have a drift that is positive and finite."


def _compare(key: float, value: float) -> str:
    ratio = value / key
    if 1 / (1 + ALIKE) <= ratio <= 1 + ALIKE:
        return f": keys and values alike (within {100 * ALIKE:g} %)"
    return f": {'values' if ratio > 1 else 'keys'} drift {number(max(ratio, 1 / ratio))} times as much"


def token_sentences(sweep: Sweep) -> list[str]:
    """Say how far the worst tokens are from the middle one, after the final norm, late in the chain."""
    said = []
    median, high, higher, worst = QUANTILES
    for ds in sweep:
        label = "{protocol}, {model}, {dtype}, chunk {chunk_size}".format(**cell_identity(ds))
        by_quantile = {q: geometric_mean(level(dataset.curve(ds, "hidden_rel_l2_token", "last", q))) for q in QUANTILES}
        middle = by_quantile[median]
        if not middle > 0:
            said.append(f"{label}: the drift of the median token is {number(middle)}.")
            continue
        tokens = dataset.curve(ds, "hidden_rel_l2_token", "last", worst)
        finite = np.where(np.isfinite(tokens), tokens, -1)
        place = np.unravel_index(int(finite.argmax()), tokens.shape)
        start, stop = (int(ds[n].values[place[1]]) for n in ("token_start", "token_stop"))
        said.append(
            f"{label}: median token {number(middle)}; the {100 * high:g} % quantile is "
            f"{number(by_quantile[high] / middle)} times that, the {100 * higher:g} % quantile "
            f"{number(by_quantile[higher] / middle)} times, a chunk's worst token "
            f"{number(by_quantile[worst] / middle)} times. The worst of all ({number(finite.max())}) is among tokens "
            f"{start} to {stop - 1} of document {place[0]} (chain step {place[1] + 1})."
        )
    return said or ["There are no cells to describe."]
