"""Figures and sentences that describe curves.

Levels, ratios and slopes are descriptions; their wording follows from the numbers by the thresholds below, which the
sentences name. Whether a curve is a plateau is a statistical question, put to :mod:`drift.plateau`; what that means for
the published claims stands in :mod:`drift.claims`. NumPy, SciPy and pandas only.

Values that have no logarithm are never dropped in silence: they are counted (``zeros``, ``nonfinite``), and a level
that is exactly zero is reported as exactly zero.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from drift import dataset, labels, ladder
from drift.dataset import SCALARS, VARIABLES, Sweep
from drift.errors import DatasetError
from drift.plateau import late_part, plateau
from drift.plateau.verdict import percent

__all__ = [
    "ROUNDING_SLOPE",
    "STRUCTURAL_SLOPE",
    "Figures",
    "absent",
    "bullets",
    "chunk_sentences",
    "contents",
    "curves",
    "depth",
    "depth_sentences",
    "failures",
    "figures",
    "headline",
    "html",
    "level",
    "logit_sentences",
    "longest",
    "measure_name",
    "nonfinite",
    "number",
    "problems",
    "provenance",
    "reproduce",
    "select",
    "sentences",
    "shown",
    "shown_slopes",
    "slopes",
    "table",
    "thresholds",
    "token_sentences",
    "tokens",
    "verdict",
]

#: Log-log slope of level against unit roundoff above which drift is said to scale with rounding ...
ROUNDING_SLOPE = 1 - ladder.ROUNDING_MARGIN
#: ... and the absolute value below which it is said not to.
STRUCTURAL_SLOPE = ladder.STRUCTURAL_MARGIN

_GROUP = ("model", "protocol")
_EXTRA = ("attn_implementation", "device", "tokens", "documents")


# ---------------------------------------------------------------------------------------------- one curve
@dataclass(frozen=True)
class Figures:
    """What one cell's curve looks like. NaN where there is nothing to say.

    Attributes
    ----------
    documents, steps : int
    first : float
        Geometric mean over documents of the first step.
    level : float
        Geometric mean past the first quarter of the chain, first within, then over documents.
    level_low, level_high : float
        Smallest and largest document.
    ratio : float
        `level` / `first`.
    growth, growth_low, growth_high : float
        Per doubling of chain depth, as a fraction, and its interval: see :class:`drift.plateau.Plateau`.
    verdict, reason : str
        Whether the curve is a plateau, and why that is undetermined.
    zeros, nonfinite : int
        Values of the whole curve that are not positive, and that are NaN or Inf: counted, left out of the above.
    points : int
        All values.
    """

    documents: int
    steps: int
    first: float
    level: float
    level_low: float
    level_high: float
    ratio: float
    growth: float
    growth_low: float
    growth_high: float
    verdict: str
    reason: str
    zeros: int
    nonfinite: int
    points: int


def _geometric(values: np.ndarray) -> float:
    """Geometric mean of the positive finite values; 0 if no finite one is positive, NaN if none is finite."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if positive.size:
        return float(np.exp(np.log(positive).mean()))
    return 0.0 if finite.size else math.nan


def level(values: np.ndarray) -> np.ndarray:
    """Return the late level of each document.

    Parameters
    ----------
    values : ndarray [document, step]

    Returns
    -------
    ndarray [document]
        Geometric mean past the first quarter of the chain; 0 where all of it is exactly zero, NaN where nothing is
        finite.
    """
    return np.array([_geometric(row) for row in late_part(values)])


def figures(values: np.ndarray) -> Figures:
    """Describe one curve.

    Parameters
    ----------
    values : ndarray [document, step]
        Non-negative; zeros, NaN and Inf are counted.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise DatasetError(f"a curve is an array [document, step], not one of shape {values.shape}")
    by_document = level(values)
    usable = by_document[np.isfinite(by_document)]
    first, late = _geometric(values[:, 0]), _geometric(by_document)
    # The contract lets divergences and cosine distances of equal states round to a hair below zero.
    judged = plateau(np.where(values < 0, 0.0, values))
    finite = np.isfinite(values)
    return Figures(
        documents=values.shape[0],
        steps=values.shape[1],
        first=first,
        level=late,
        level_low=float(usable.min()) if usable.size else math.nan,
        level_high=float(usable.max()) if usable.size else math.nan,
        ratio=late / first if first > 0 and math.isfinite(late) else math.nan,
        growth=judged.growth_per_doubling,
        growth_low=judged.growth_interval[0],
        growth_high=judged.growth_interval[1],
        verdict=judged.verdict.value,
        reason=judged.reason.value if judged.reason else "",
        zeros=int((finite & (values <= 0)).sum()),
        nonfinite=int((~finite).sum()),
        points=int(values.size),
    )


# ---------------------------------------------------------------------------------------------- from cells
def _believed(sweep: Sweep) -> bool:
    """Whether no control of the sweep failed: else nothing may be concluded from it."""
    from drift import controls  # which describes levels by this module

    return controls.evaluate(sweep).ok


_WITHHELD = "no conclusion is drawn, because controls of the instrument failed"


def _identity(ds: xr.Dataset) -> dict[str, Any]:
    return {name: ds[name].item() for name in SCALARS} | {"tokens": int(ds["token_stop"].values[-1])}


def table(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> pd.DataFrame:
    """Describe the curve of every cell, one row each.

    Returns
    -------
    pandas.DataFrame
        The scalar coordinates, ``tokens``, the fields of :class:`Figures`, and ``roundoffs``: the level in units of
        the unit roundoff.
    """
    rows = []
    believed = _believed(sweep)
    for ds in sweep:
        found = figures(dataset.curve(ds, measure, layer))
        if not believed:
            found = replace(found, verdict="not drawn", reason="controls failed")
        rows.append({**_identity(ds), **asdict(found), "roundoffs": found.level / ds["unit_roundoff"].item()})
    columns = [*SCALARS, "tokens", *Figures.__dataclass_fields__, "roundoffs"]
    return pd.DataFrame(rows, columns=columns)


def slopes(levels: pd.DataFrame) -> pd.DataFrame:
    """Slope of level against unit roundoff, per model, protocol and chunk size.

    Parameters
    ----------
    levels : pandas.DataFrame
        From :func:`table`.

    Returns
    -------
    pandas.DataFrame
        ``slope`` (log-log, least squares; NaN with fewer than two unit roundoffs at which the level is positive), the
        ``coarsest`` and ``finest`` precision, their ``level_coarsest`` and ``level_finest``, the ``dtypes`` that went
        into the slope, and how many were left out because their level is zero or not finite.
    """
    keys = [*_GROUP, "chunk_size", *_EXTRA]
    rows = []
    for key, group in levels.groupby(keys, sort=False):
        group = group.sort_values("unit_roundoff", ascending=False)
        good = group[np.isfinite(group["level"]) & (group["level"] > 0)]
        slope = math.nan
        if good["unit_roundoff"].nunique() >= 2:
            slope = float(np.polyfit(np.log(good["unit_roundoff"]), np.log(good["level"]), 1)[0])
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "slope": slope,
                "coarsest": group["dtype"].iloc[0],
                "finest": group["dtype"].iloc[-1],
                "level_coarsest": group["level"].iloc[0],
                "level_finest": group["level"].iloc[-1],
                "fold_roundoff": group["unit_roundoff"].iloc[0] / group["unit_roundoff"].iloc[-1],
                "dtypes": ", ".join(good["dtype"]),
                "left_out": len(group) - len(good),
            }
        )
    columns = [*keys, "slope", "coarsest", "finest", "level_coarsest", "level_finest", "fold_roundoff", "dtypes"]
    return pd.DataFrame(rows, columns=[*columns, "left_out"])


def curves(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> pd.DataFrame:
    """Collapse documents: per cell and step the geometric mean and the range, for drawing.

    Returns
    -------
    pandas.DataFrame
        Scalar coordinates, ``step``, ``token`` (end of the chunk), ``value``, ``low``, ``high`` (over documents, of
        what is positive and finite), ``zeros``, ``nonfinite``.
    """
    frames = []
    for ds in sweep:
        frame = _collapse(dataset.curve(ds, measure, layer))
        frame.insert(0, "step", ds["step"].values)
        frame.insert(1, "token", ds["token_stop"].values)
        frames.append(frame.assign(**_identity(ds)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _collapse(values: np.ndarray) -> pd.DataFrame:
    """Collapse [document, x] to one row per x."""
    finite = np.isfinite(values)
    good = finite & (values > 0)
    masked = np.where(good, values, np.nan)
    some = good.any(axis=0)
    filled = np.where(some, masked, 1.0)  # columns without a positive value are blanked below
    return pd.DataFrame(
        {
            "value": np.where(some, np.exp(np.nanmean(np.log(filled), axis=0)), np.nan),
            "low": np.where(some, np.nanmin(filled, axis=0), np.nan),
            "high": np.where(some, np.nanmax(filled, axis=0), np.nan),
            "zeros": (finite & (values <= 0)).sum(axis=0),
            "nonfinite": (~finite).sum(axis=0),
        }
    )


def depth(sweep: Sweep, measure: str = "hidden_rel_l2") -> pd.DataFrame:
    """Late level per layer (or block), collapsed over documents.

    Parameters
    ----------
    measure : str
        A variable on layers or blocks, without quantiles.

    Returns
    -------
    pandas.DataFrame
        Scalar coordinates, ``layer`` (block numbers for what a block caches), ``layers`` (how many blocks there are),
        ``value``, ``low``, ``high``, ``zeros``, ``nonfinite``.
    """
    frames = []
    for ds in sweep:
        array = ds[measure]
        dim = "layer" if "layer" in array.dims else "block"
        values = array.transpose("document", dim, "step").values
        late = np.stack([level(values[:, k, :]) for k in range(values.shape[1])], axis=1)
        frame = _collapse(late)
        late_values = late_part(values)
        frame["zeros"] = (late_values == 0).sum(axis=(0, 2))
        frame["nonfinite"] = (~np.isfinite(late_values)).sum(axis=(0, 2))
        frame.insert(0, "layer", ds[dim].values)
        frames.append(frame.assign(layers=int(ds["block"].values[-1]), **_identity(ds)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def tokens(sweep: Sweep, by: str = "step") -> pd.DataFrame:
    """Quantiles over tokens of the drift of the hidden state.

    Parameters
    ----------
    by : "step" or "layer"
        Per step after the final norm, or per layer past the first quarter of the chain.

    Returns
    -------
    pandas.DataFrame
        Scalar coordinates, ``quantile``, `by`, ``value`` and counts; geometric mean over documents (and late steps).
    """
    if by not in ("step", "layer"):
        raise DatasetError(f"tokens are shown by 'step' or by 'layer', not by {by!r}")
    frames = []
    for ds in sweep:
        array = ds["hidden_rel_l2_token"].transpose("document", "layer", "step", "quantile").values
        for k, q in enumerate(ds["quantile"].values):
            if by == "step":
                frame = _collapse(array[:, -1, :, k])
            else:
                late = late_part(array[..., k])
                frame = _collapse(late.transpose(0, 2, 1).reshape(-1, late.shape[1]))
            frame.insert(0, by, ds[by].values)
            frames.append(frame.assign(quantile=q, **_identity(ds)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def select(sweep: Sweep, models: Sequence[str] | str | None = None) -> Sweep:
    """Keep some models (a list, or text with commas); ``None`` keeps all."""
    if models is None:
        return sweep
    wanted = [m.strip() for m in models.split(",")] if isinstance(models, str) else list(models)
    return sweep.sel(model=wanted)


# ---------------------------------------------------------------------------------------------- words
def number(value: float, digits: int = 2) -> str:
    """Write a number as people say it: ``1.3e-2``, ``0.67``, ``16,000``, ``exactly 0``."""
    if math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "exactly 0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -1 <= size < 2:
        return f"{value:.{max(digits - 1 - size, 0)}f}"
    if 2 <= size < 7:
        return f"{round(value, digits - 1 - size):,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _range(values: Iterable[float], digits: int = 2, write: Callable[[float], str] | None = None) -> str:
    say = write or (lambda v: number(v, digits))
    good = sorted(v for v in values if not math.isnan(v))
    if not good:
        return "not measured"
    low, high = say(good[0]), say(good[-1])
    return low if low == high else f"{low} to {high}"


def _chunks(values: Iterable[int]) -> str:
    sizes = sorted(set(values))
    return f"chunk size {sizes[0]}" if len(sizes) == 1 else f"chunk sizes {sizes[0]} to {sizes[-1]}"


def bullets(lines: Sequence[str]) -> str:
    """Write sentences as a Markdown list; what stands before the first colon is what the sentence is about."""
    marked = [re.sub(r"^([^:(*]{1,90}): ", r"**\1:** ", escape(line, quote=False)) for line in lines]
    return "\n".join(f"- {line}" for line in marked) or "_Nothing to say: there are no such cells._"


def absent(what: str, command: str) -> str:
    """Say that something was not measured, and what would."""
    return f"{what}: not measured in this sweep; `{command}` measures it."


def measure_name(measure: str, layer: int | str = "last") -> str:
    """Name a measure in a sentence."""
    row = VARIABLES[measure]
    name = row.long_name
    if "layer" in row.dims:
        place = (
            "after the final norm" if layer == "last" else "of the embeddings" if layer == 0 else f"after block {layer}"
        )
        name = name.replace("hidden state", f"hidden state {place}")
        if measure == "hidden_rel_l2" and layer == "last":
            name = "relative drift of the final hidden state"
    if "block" in row.dims:
        name += " in the last block" if layer == "last" else f" in block {layer}"
    return name


def thresholds() -> str:
    """Say by which thresholds the sentences choose their words."""
    return (
        "How the words are chosen: the level is the geometric mean past the first quarter of the chain. Its log-log "
        "slope against the unit roundoff is 1 for pure rounding and 0 for an error that rounding did not make. It is "
        f"rounding where the slope's 90 % interval lies within 1 ± {ladder.ROUNDING_MARGIN:g}, structural where it "
        f"lies within ± {STRUCTURAL_SLOPE:g} of 0; sentences on single levels describe the slope itself by the same "
        "bounds. What a curve does along the chain is a verdict: two one-sided tests, growth per doubling of depth "
        "with its 90 % interval."
    )


def verdict(found: Sequence[float]) -> tuple[str, str]:
    """Choose the words for a set of slopes against unit roundoff.

    Returns
    -------
    kind : {"rounding", "structural", "reversed", "between", "unknown"}
    words : str
    """
    good = [s for s in found if math.isfinite(s)]
    slope = _range(good, write=lambda v: f"{v:z.2f}")
    if not good:
        return "unknown", "whether it scales with the unit roundoff cannot be said"
    if min(good) > ROUNDING_SLOPE:
        return "rounding", f"it scales with rounding (log-log slope {slope}, above {ROUNDING_SLOPE})"
    if max(abs(s) for s in good) < STRUCTURAL_SLOPE:
        words = "it does not scale with the unit roundoff, so it is structural"
        return "structural", f"{words} (log-log slope {slope}, within ±{STRUCTURAL_SLOPE})"
    if max(good) < -STRUCTURAL_SLOPE:
        return "reversed", f"it is larger at finer precision, which rounding does not do (log-log slope {slope})"
    words = f"it is neither plainly rounding (log-log slope above {ROUNDING_SLOPE}) nor plainly structural"
    return "between", f"{words} (within ±{STRUCTURAL_SLOPE}): slope {slope}"


_HEADLINES = {
    "rounding": "drift scales with the unit roundoff: it is rounding",
    "structural": "drift does not depend on the precision: it is structural",
    "both": "drift shrinks with the unit roundoff, but less than in proportion: rounding and more",
    "undetermined": "whether drift depends on the precision cannot be said from these cells",
}


def headline(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> dict[str, str]:
    """Say in one sentence per protocol whether drift scales with rounding, by the verdicts of :mod:`drift.ladder`.

    Returns
    -------
    dict of str to str
        Protocol to sentence.
    """
    from drift.plateau import curves

    if not _believed(sweep):
        return {str(p): f"{p}: {_WITHHELD}" for p in sweep.values("protocol")}
    for ds in sweep:
        dataset.curve(ds, measure, layer)  # says what is wrong with a measure or layer
    ladders = ladder.ladders(sweep, measure, layer) if measure in curves.MEASURES else []
    found: dict[str, str] = {}
    for protocol in map(str, sweep.values("protocol")):
        mine = [one for one in ladders if one.labels["protocol"] == protocol]
        # What was run at one precision takes nothing from what was run at several.
        mine = [one for one in mine if one.slope.reason is not ladder.Reason.ONE_RUNG] or mine
        per_model: dict[str, list[str]] = {}
        for one in mine:
            kinds = per_model.setdefault(one.labels["model"], [])
            kinds += [one.slope.verdict.value] if one.slope.verdict.value not in kinds else []
        alike = {tuple(kinds) for kinds in per_model.values()}
        if alike == {("undetermined",)} or not alike:
            reasons = dict.fromkeys(one.slope.reason.value for one in mine if one.slope.reason is not None)
            text = _HEADLINES["undetermined"] + (f" ({'; '.join(reasons)})" if reasons else "")
        elif len(alike) == 1 and len(next(iter(alike))) == 1:
            text = _HEADLINES[next(iter(alike))[0]]
            text += f", in all {len(per_model)} models" if len(per_model) > 1 else ""
            slopes_ = [one.slope.interval.value for one in mine]
            text += f" (slope {_range(slopes_, write=lambda v: f'{v:z.2f}')})"
        else:
            text = "; ".join(f"{m}: {' or '.join(_HEADLINES[k] for k in kinds)}" for m, kinds in per_model.items())
        found[protocol] = f"{protocol}: {text}"
    return found


def _groups(levels: pd.DataFrame, keys: Sequence[str]) -> Iterable[tuple[str, pd.DataFrame]]:
    """Yield label and rows of each group; axes that vary beyond `keys` are named in the label."""
    extra = [k for k in _EXTRA if levels[k].nunique() > 1]
    for key, group in levels.groupby([*keys, *extra], sort=True):  # by protocol first: that is how people read them
        named = dict(zip([*keys, *extra], key, strict=True))
        label = ", ".join(str(named[k]) for k in keys)
        for k in extra:
            label += f", {named[k]} {k}" if k in ("tokens", "documents") else f", {named[k]}"
        yield label, group


def sentences(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> list[str]:
    """Say what the curves look like, from the numbers.

    One sentence per protocol and model (and per value of any further axis that varies) on the level and how it goes
    with the precision, and one on how it goes along the chain.
    """
    levels = table(sweep, measure, layer)
    if levels.empty:
        return ["There are no cells to describe."]
    if not _believed(sweep):
        return [f"All protocols: {_WITHHELD}."]
    said = []
    for label, group in _groups(levels, ("protocol", "model")):
        said.append(f"{label}: {_level_sentence(group, measure, layer)}")
        said.append(f"{label}: {_chain_sentence(group)}")
    return said


def _level_sentence(group: pd.DataFrame, measure: str, layer: int | str) -> str:
    group = group.sort_values("unit_roundoff", ascending=False)
    parts = []
    for dtype, rows in group.groupby("dtype", sort=False):
        parts.append(f"{_range(rows['level'])} in {dtype}")
    unit = "" if VARIABLES[measure].units == "1" else f" ({VARIABLES[measure].units})"
    text = (
        f"{measure_name(measure, layer)}{unit} is " + ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    )
    text += f" ({_chunks(group['chunk_size'])})"
    by_chunk = slopes(group)
    kind, words = verdict(by_chunk["slope"].tolist())
    ends = by_chunk[(by_chunk["coarsest"] != by_chunk["finest"]) & (by_chunk["level_finest"] > 0)]
    if kind != "unknown" and len(ends):
        ratio = _range((ends["level_coarsest"] / ends["level_finest"]).tolist())
        text += f", a ratio of {ratio} for a {number(ends['fold_roundoff'].iloc[0], 5)}-fold change in unit roundoff"
    if group["unit_roundoff"].nunique() < 2:
        text += f"; with one precision only ({', '.join(group['dtype'].unique())}), {words}"
    else:
        text += f": {words}"
    return text + "." + _caveats(group)


def _caveats(group: pd.DataFrame) -> str:
    text = ""
    zero = group[group["level"] == 0]["dtype"].unique()
    if len(zero):
        text += f" In {', '.join(zero)} the level is exactly 0 in some cell, which has no place on a log scale."
    lost = group[group["level"].isna()]["dtype"].unique()
    if len(lost):
        text += f" In {', '.join(lost)} no value past the first quarter of some chain is finite."
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
    steps = _range(group.groupby("dtype")["steps"].max(), write=lambda v: f"{v:.0f}")
    return f"along the chain ({steps} steps {where}) " + "; ".join(parts) + "."


def _growth_words(row: pd.Series) -> str:
    if math.isnan(row["level"]):
        return "no finite value past the first quarter"
    if row["level"] == 0:
        return "exactly 0 past the first quarter"
    if math.isfinite(row["ratio"]):
        start = f"from {number(row['first'])} at the first step to {number(row['level'])} past the first quarter"
    else:
        start = f"first step {number(row['first'])}, level {number(row['level'])}"
    said = row["verdict"].replace("_", " ") + (f" ({row['reason']})" if row["reason"] else "")
    if math.isfinite(row["growth"]):
        said += f", {percent(row['growth'])} per doubling of depth (90 % interval "
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
            f"{label}: over {_chunks(good['chunk_size'])} the level changes by a factor of {number(ratio, 3)} (lowest "
            f"{number(good['level'][low])} at {good['chunk_size'][low]}, highest {number(good['level'][high])} at "
            f"{good['chunk_size'][high]})."
        )
    return said or ["There is no model and precision with more than one chunk size."]


def logit_sentences(sweep: Sweep) -> list[str]:
    """Say what the drift does to the next-token distribution, past the first quarter of the chain."""
    rows = []
    for ds in sweep:
        names = ("logit_kl", "top1_agreement", "nll_fold", "nll_full")
        kl, top, fold, full = (_late(ds, n) for n in names)
        rows.append({**_identity(ds), "documents": ds.sizes["document"], "kl": kl, "top": 100 * (1 - top),
                     "fold": fold, "full": full, "gap": fold - full, "bad": _late_nonfinite(ds, *names)})  # fmt: skip
    said = []
    if not rows:
        return ["There are no cells to describe."]
    for label, group in _groups(pd.DataFrame(rows), ("protocol", "model", "dtype")):
        if group[["kl", "top", "gap"]].isna().all(axis=None):
            said.append(f"{label}: no logits are finite past the first quarter of the chain.")
            continue
        said.append(
            f"{label}: KL(full ‖ fold) {_range(group['kl'])} nat per token, another most likely token for "
            f"{_range(group['top'])} % of tokens, NLL {_range(group['full'], 3)} → {_range(group['fold'], 3)} nat "
            f"(change {_range(group['gap'], write=_signed)}; {_chunks(group['chunk_size'])})."
            + _lost(group["bad"].sum())
        )
    return said


def _signed(value: float) -> str:
    return "exactly 0" if value == 0 else f"{'+' if value > 0 else '−'}{number(abs(value))}"


def _late(ds: xr.Dataset, measure: str) -> float:
    late = late_part(dataset.curve(ds, measure))
    late = late[np.isfinite(late)]
    return float(late.mean()) if late.size else math.nan


def _lost(count: int) -> str:
    """Say how many values a sentence leaves out because they are not finite; empty where none."""
    return f" {count:,} values are NaN or Inf and were left out." if count else ""


def _late_nonfinite(ds: xr.Dataset, *measures: str) -> int:
    """Count the late values of measures of logits that are NaN or Inf although tokens were compared."""
    count = 0
    for measure in measures:
        tokens = dataset.curve(ds, "target_count" if measure.startswith("nll_") else "logit_count")
        bad = ~np.isfinite(dataset.curve(ds, measure)) & (tokens > 0)
        count += int(late_part(bad).sum())
    return count


def depth_sentences(sweep: Sweep) -> list[str]:
    """Say where in the network's depth the drift grows, and how keys and values compare with hidden states."""
    said = []
    for ds in sweep:
        label = "{protocol}, {model}, {dtype}, chunk {chunk_size}".format(**_identity(ds))
        one = Sweep([ds])
        hidden = depth(one, "hidden_rel_l2").set_index("layer")["value"]
        positive = hidden.dropna()
        if len(positive) < 2:
            said.append(f"{label}: fewer than two layers have a drift that is positive and finite.")
            continue
        factor = (positive / positive.shift()).dropna()
        absolute = positive.diff().dropna()
        share = absolute.max() / positive.max()
        kept = "kept layer" if "thinned_json" in ds.attrs else "layer"
        text = (
            f"{label}: {number(positive.iloc[0])} after {_layer(ds, positive.index[0])}, "
            f"{number(positive.iloc[-1])} {_after(ds, positive.index[-1])}; the largest factor from one {kept} to the "
            f"next is {number(factor.max())} ({_layer(ds, factor.idxmax())})"
        )
        if absolute.max() > 0:
            place = _layer(ds, absolute.idxmax())
            text += f", the largest step up is at {place} ({100 * share:.0f} % of the highest layer)"
        key, value = (depth(one, n)["value"].dropna() for n in ("key_rel_l2", "value_rel_l2"))
        if len(key) and len(value):
            k, v = _geometric(key.to_numpy()), _geometric(value.to_numpy())
            blocks = positive[(positive.index >= 1) & (positive.index <= ds["block"].values[-1])]
            text += f". Averaged over blocks, keys drift by {number(k)}, values by {number(v)}"
            if len(blocks):
                text += f", hidden states by {number(_geometric(blocks.to_numpy()))}"
            text += _compare(k, v)
        said.append(text + ".")
    return said or ["There are no cells to describe."]


def _compare(key: float, value: float) -> str:
    ratio = value / key
    if 1 / 1.1 <= ratio <= 1.1:
        return ": keys and values alike (within 10 %)"
    return f": {'values' if ratio > 1 else 'keys'} drift {number(max(ratio, 1 / ratio))} times as much"


def _layer(ds: xr.Dataset, layer: int) -> str:
    kind = str(ds["layer_kind"].sel(layer=layer).item())
    return {"embedding": "the embeddings", "final_norm": "the final norm"}.get(kind, f"block {layer}")


def _after(ds: xr.Dataset, layer: int) -> str:
    return f"after {_layer(ds, layer)}"


def token_sentences(sweep: Sweep) -> list[str]:
    """Say how far the worst tokens are from the middle one, after the final norm, late in the chain."""
    said = []
    for ds in sweep:
        label = "{protocol}, {model}, {dtype}, chunk {chunk_size}".format(**_identity(ds))
        by_quantile = {
            q: _geometric(level(dataset.curve(ds, "hidden_rel_l2_token", "last", q))) for q in (0.5, 0.9, 0.99, 1.0)
        }
        middle = by_quantile[0.5]
        if not middle > 0:
            said.append(f"{label}: the drift of the median token is {number(middle)}.")
            continue
        worst = dataset.curve(ds, "hidden_rel_l2_token", "last", 1.0)
        finite = np.where(np.isfinite(worst), worst, -1)
        place = np.unravel_index(int(finite.argmax()), worst.shape)
        start, stop = (int(ds[n].values[place[1]]) for n in ("token_start", "token_stop"))
        said.append(
            f"{label}: median token {number(middle)}; the 90 % quantile is {number(by_quantile[0.9] / middle)} times "
            f"that, the 99 % quantile {number(by_quantile[0.99] / middle)} times, a chunk's worst token "
            f"{number(by_quantile[1.0] / middle)} times. The worst of all ({number(finite.max())}) is among tokens "
            f"{start} to {stop - 1} of document {place[0]} (chain step {place[1] + 1})."
        )
    return said or ["There are no cells to describe."]


# ---------------------------------------------------------------------------------------------- tables
def _settings(sweep: Sweep) -> pd.DataFrame:
    rows = []
    for ds in sweep:
        attrs, versions = ds.attrs, json.loads(ds.attrs["versions_json"])
        rows.append(
            {
                "model": ds["model"].item(),
                "family": ds["family"].item(),
                "checkpoint sha256": str(attrs["checkpoint_sha256"])[:12],
                "text sha256": str(attrs["tokens_sha256"])[:12],
                "documents": ds.sizes["document"],
                "tokens": int(ds["token_stop"].values[-1]),
                "precisions": ds["dtype"].item(),
                "protocols": ds["protocol"].item(),
                "chunk sizes": ds["chunk_size"].item(),
                "device": f"{ds['device'].item()} ({attrs['device_name']})",
                "attention": ds["attn_implementation"].item(),
                "threads": attrs["threads"],
                "seed": attrs["seed"],
                "torch": versions.get("torch", ""),
                "transformers": versions.get("transformers", ""),
                "drift": attrs["drift_version"],
                "commit": (str(attrs["git_commit"])[:10] or "unknown") + ("+" if attrs["git_dirty"] else ""),
            }
        )
    return pd.DataFrame(rows)


def provenance(sweep: Sweep) -> pd.DataFrame:
    """Say what was run on what: one row per model and setting, cells that differ in the swept axes only are merged."""
    settings = _settings(sweep)
    if settings.empty:
        return settings
    swept = ["precisions", "protocols", "chunk sizes", "text sha256"]
    fixed = [c for c in settings.columns if c not in swept]
    merged = settings.groupby(fixed, sort=False, as_index=False)[swept].agg(
        lambda column: ", ".join(str(v) for v in dict.fromkeys(column))
    )
    return merged[[c for c in settings.columns if c in merged.columns]]


def contents(sweep: Sweep, everything: Sweep | None = None) -> list[str]:
    """Say how many cells there are, how many failed and which files are unusable.

    Parameters
    ----------
    sweep : Sweep
    everything : Sweep, optional
        What `sweep` was selected from (see :func:`drift.labels.folds`): the cells that were not are named.
    """
    axes = []
    for name, words in (
        ("model", "models"),
        ("dtype", "precisions"),
        ("protocol", "protocols"),
        ("chunk_size", "chunk sizes"),
        ("reference", "references"),
    ):
        values = sweep.values(name)
        if name == "reference" and set(values) <= {"full"}:
            continue
        axes.append(f"{words}: {', '.join(map(str, sorted(values) if name == 'chunk_size' else values))}")
    said = [f"{len(sweep)} cells read ({'; '.join(axes)})."]
    if everything is not None and (text := labels.left_out(everything, sweep)):
        said.append(text)
    if sweep.failures:
        said.append(f"**{len(sweep.failures)} cells failed** and are missing from every picture; see “Failures”.")
    if sweep.problems:
        said.append(f"**{len(sweep.problems)} files could not be used**; see “Unusable files”.")
    count = nonfinite(sweep)["non-finite"].sum()
    if count:
        said.append(f"**{count:,} values are NaN or Inf**; see “Values that are not finite”.")
    thinned = [json.loads(ds.attrs["thinned_json"]) for ds in sweep if "thinned_json" in ds.attrs]
    if thinned:
        layers = sorted({f"{len(t['layers'])} of {t['layers_of']}" for t in thinned})
        bits = sorted({t["bits"] for t in thinned})
        said.append(
            f"{len(thinned)} cells are thinned: they keep {', '.join(layers)} layers, and values are rounded to "
            f"{', '.join(map(str, bits))} significant bits."
        )
    if sweep.left_out:
        said.append(f"{len(sweep.left_out)} files in the folder belong to another plan and were not read.")
    return said


def _figures_of(ds: xr.Dataset) -> Iterable[np.ndarray]:
    """Yield what a cell measured; not what the contract leaves NaN, such as the first step against the previous one."""
    previous = ds["reference"].item() == "previous"
    for name, row in VARIABLES.items():
        if row.optional or row.dtype != "float64":
            continue
        if not previous:
            yield ds[name].values
        elif row.dims[1] in ("layer", "block"):
            yield ds[name].isel(step=slice(1, None)).values


def nonfinite(sweep: Sweep) -> pd.DataFrame:
    """Count NaN and Inf: one row per cell that has any.

    Returns
    -------
    pandas.DataFrame
        ``non-finite`` (elements of hidden states and logits), the first layer and chain step with any, and
        ``figures not finite``: values of the dataset itself that are NaN or Inf.
    """
    rows = []
    for ds in sweep:
        hidden, logits = ds["nonfinite_count"], ds["logit_nonfinite_count"]
        bad = sum(int((~np.isfinite(values)).sum()) for values in _figures_of(ds))
        total = int(hidden.sum()) + int(logits.sum())
        if not total and not bad:
            continue
        where = np.argwhere(hidden.transpose("step", "layer", "document").values > 0)
        rows.append(
            {
                **{k: ds[k].item() for k in ("model", "dtype", "protocol", "chunk_size")},
                "non-finite": total,
                "hidden states": int(hidden.sum()),
                "logits": int(logits.sum()),
                "first chain step": int(where[0][0]) + 1 if len(where) else None,
                "first layer": _layer(ds, int(ds["layer"].values[where[0][1]])) if len(where) else None,
                "figures not finite": bad,
            }
        )
    columns = ["model", "dtype", "protocol", "chunk_size", "non-finite", "hidden states", "logits", "first chain step"]
    return pd.DataFrame(rows, columns=[*columns, "first layer", "figures not finite"])


def failures(sweep: Sweep) -> pd.DataFrame:
    """List the cells that the sweep could not compute, with the reason."""
    rows = []
    for failure in sweep.failures:
        cell: Any = failure.get("config") or failure.get("cell") or failure
        axes = {str(k): cell[k] for k in ("model", "dtype", "protocol", "chunk_size") if k in cell}
        reason = next((failure[k] for k in ("reason", "error", "message") if failure.get(k)), "unknown")
        rows.append({"file": str(failure.get("file", "")), **axes, "reason": str(reason)})
    return pd.DataFrame(rows)


def problems(sweep: Sweep) -> pd.DataFrame:
    """List the files that could not be used, with the reason."""
    rows = [
        {"file": Path(p).name, "reason": reason.removeprefix(f"{p}: ")} for p, reason in sorted(sweep.problems.items())
    ]
    return pd.DataFrame(rows, columns=["file", "reason"])


def longest(sweep: Sweep) -> Sweep:
    """Keep, per model, precision and protocol, the cells of the smallest chunk size: the longest chains."""
    smallest: dict[tuple[Any, ...], int] = {}
    for ds in sweep:
        key = tuple(ds[n].item() for n in ("model", "dtype", "protocol"))
        smallest[key] = min(smallest.get(key, ds["chunk_size"].item()), ds["chunk_size"].item())
    kept = [
        ds
        for ds in sweep
        if ds["chunk_size"].item() == smallest[tuple(ds[n].item() for n in ("model", "dtype", "protocol"))]
    ]
    return Sweep(
        kept, controls=sweep.controls, plan=sweep.plan, failures=sweep.failures, problems=sweep.problems,
        folder=sweep.folder,
    )  # fmt: skip


def shown(levels: pd.DataFrame) -> pd.DataFrame:
    """Write the table of levels for reading: rounded, columns that never vary left out."""
    columns = {
        "model": levels["model"],
        "protocol": levels["protocol"],
        "precision": levels["dtype"],
        "chunk size": levels["chunk_size"],
        **{k: levels[k] for k in ("attn_implementation", "device", "tokens") if levels[k].nunique() > 1},
        "steps": levels["steps"],
        "documents": levels["documents"],
        "first step": levels["first"].map(number),
        "level": levels["level"].map(lambda v: number(v, 3)),
        "low": levels["level_low"].map(lambda v: number(v, 3)),
        "high": levels["level_high"].map(lambda v: number(v, 3)),
        "level / first": levels["ratio"].map(lambda v: number(v, 3)),
        "level / unit roundoff": levels["roundoffs"].map(lambda v: number(v, 3)),
        "verdict": levels["verdict"].str.replace("_", " "),
        "growth per doubling": levels["growth"].map(lambda v: "–" if math.isnan(v) else percent(v)),
        "90 % interval": [
            "–" if math.isnan(a) else f"{percent(a)} to {percent(b)}"
            for a, b in zip(levels["growth_low"], levels["growth_high"], strict=True)
        ],
        "zeros": levels["zeros"],
        "non-finite": levels["nonfinite"],
    }
    return pd.DataFrame(columns)


def shown_slopes(found: pd.DataFrame) -> pd.DataFrame:
    """Write the table of slopes for reading."""
    return pd.DataFrame(
        {
            "model": found["model"],
            "protocol": found["protocol"],
            "chunk size": found["chunk_size"],
            **{k: found[k] for k in ("attn_implementation", "device", "tokens") if found[k].nunique() > 1},
            "slope": found["slope"].map(lambda v: "–" if math.isnan(v) else f"{v:z.2f}"),
            "precisions": found["dtypes"],
            "left out (zero or not finite)": found["left_out"],
        }
    )


def html(table: pd.DataFrame, empty: str = "Nothing to list.", upright: bool = False) -> str:
    """Write a table as HTML that scrolls inside the page.

    Parameters
    ----------
    table : pandas.DataFrame
    empty : str
        What is said where there are no rows.
    upright : bool
        Write a table of few rows with one column per row, so that it need not be scrolled.
    """
    if table.empty:
        return f"<p>{escape(empty)}</p>"
    text = table.astype(object).where(table.notna(), "–")
    how: dict[str, Any] = {"border": 0, "escape": True, "classes": "numbers", "max_cols": None, "max_rows": None}
    if upright and len(text) <= 6:
        first = text.columns[0]
        text = text.set_index(first).T
        text.columns.name = None
        body = text.to_html(**how)
    else:
        body = text.to_html(index=False, **how)
    return f'<div class="scroll">{body}</div>'


def reproduce(sweep: Sweep) -> str:
    """Write the commands that give these cells again, from what the cells say about themselves."""
    if not len(sweep):
        return ""
    commits = sorted({str(ds.attrs["git_commit"]) for ds in sweep})
    dirty = any(ds.attrs["git_dirty"] for ds in sweep)
    lines = []
    if len(commits) == 1 and len(commits[0]) >= 7 and set(commits[0]) <= set("0123456789abcdef"):
        lines.append(f"git checkout {commits[0]}" + ("   # with uncommitted changes" if dirty else ""))
    elif len(commits) > 1:
        lines.append(f"# cells of {len(commits)} commits: {', '.join(c[:10] for c in commits)}")
    # how 16-bit products were accumulated depends on the machine unless it is said
    halves = {
        json.loads(ds.attrs["config_json"]).get("half_matmul") for ds in sweep if ds["unit_roundoff"].item() > 1e-4
    }
    half_matmul = next(iter(halves)) if len(halves) == 1 else None
    out = shlex.quote(sweep.folder.name if sweep.folder else "SWEEP")
    if isinstance(sweep.plan.get("config"), dict):
        config = json.loads(json.dumps(sweep.plan["config"]))
        for grid in config.get("grids", ()):
            if half_matmul and grid.get("half_matmul") == "auto":
                grid["half_matmul"] = half_matmul
        written = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
        lines += ["cat > sweep.yaml <<'END'", written.rstrip(), "END", f"python -m drift.sweep sweep.yaml --out {out}"]
        return "\n".join([*lines, f"python -m drift.report {out}"])
    groups: dict[str, dict[str, list[Any]]] = {}
    for ds in sweep:
        config = json.loads(ds.attrs["config_json"])
        corpus = config.get("corpus") if isinstance(config, dict) else None
        attrs = ds.attrs
        fixed = {
            "documents": ds.sizes["document"],
            "tokens": int(ds["token_stop"].values[-1]),
            "corpus": corpus if isinstance(corpus, str) else None,
            "attn_implementation": ds["attn_implementation"].item(),
            "device": ds["device"].item(),
            "reference": ds["reference"].item() if ds["reference"].item() != "full" else None,
            "seed": int(attrs["seed"]),
            "logit_stride": int(attrs["logit_stride"]) if int(attrs["logit_stride"]) != 1 else None,
        }
        key = json.dumps({k: v for k, v in fixed.items() if v is not None})
        axes = groups.setdefault(key, {"model": [], "dtype": [], "protocol": [], "chunk_size": []})
        for name, values in axes.items():
            if ds[name].item() not in values:
                values.append(ds[name].item())
    for key, axes in groups.items():
        settings = {**{n: sorted(v) if n == "chunk_size" else v for n, v in axes.items()}, **json.loads(key)}
        if half_matmul:
            settings["half_matmul"] = half_matmul
        words = [
            f"--set {shlex.quote(name + '=' + ','.join(map(str, v if isinstance(v, list) else [v])))}"
            for name, v in settings.items()
        ]
        lines.append("python -m drift.sweep " + " ".join(words) + f" --out {out}")
    lines.append(f"python -m drift.report {out}")
    return "\n".join(lines)
