"""Ladders and attributions in words and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from drift.dataset.contract import VARIABLES
from drift.reading.amplitudes import LADDER_MEASURES, amplitude_power
from drift.reading.ladder.attribution import PARTS, Attribution
from drift.reading.ladder.judging import Ladder, ladders
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.slope import ROUNDING_MARGIN, STRUCTURAL_MARGIN, Scaling, ScalingReason, Slope
from drift.reading.wording.numbers import coverage, fixed_number, interval_words, number
from drift.reading.wording.verdicts import SCALING_WORDS, STORAGE_WORDS, is_stored_coarsely
from drift.reading.wording.windows import late_words

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = [
    "amplitude_name",
    "attribution_frame",
    "attribution_sentences",
    "by_measure",
    "departure",
    "headlines",
    "ladder_frame",
    "method",
    "shown",
    "slope_words",
]

#: How far below 1 a slope is before it is asked why.
DEPARTURE = 0.05


def ladder_frame(found: Sequence[Ladder]) -> pd.DataFrame:
    """One row per ladder (``rungs`` all of them) and per adjacent pair of rungs."""
    rows = []
    for one in found:
        many = [("pair", f"{p.coarse}/{p.fine}", p.slope, _MIXED if p.mixed else "") for p in one.pairs]
        if len(one.dtypes) == 2:  # one pair, which is the ladder
            many = [("all", *pair[1:]) for pair in many]
        else:
            many = [("all", "/".join(one.dtypes), one.slope, ""), *many]
        many = many or [("all", "/".join(one.dtypes), one.slope, "")]
        for kind, dtypes, s, note in many:
            rows.append(
                {
                    **one.labels,
                    "rungs": kind,
                    "dtypes": dtypes,
                    "slope": s.interval.value,
                    "standard_error": s.interval.standard_error,
                    "low": s.interval.low,
                    "high": s.interval.high,
                    "misfit": s.misfit,
                    "zeros": s.zeros,
                    "points": s.points,
                    "verdict": s.verdict.value,
                    "reason": s.reason.value if s.reason else "",
                    "notes": "; ".join([*([note] if note else []), *(one.caveats if kind == "all" else ())]),
                }
            )
    return pd.DataFrame(rows)


def slope_words(found: Slope) -> str:
    """Write a slope with its interval and what it says."""
    reason = f" ({found.reason.value})" if found.reason else ""
    if math.isnan(found.interval.value):
        return f"{Scaling.UNDETERMINED.value}{reason}"
    interval = f"{fixed_number(found.interval.value)} {interval_words(found.interval)}"
    return f"slope {interval}: {found.verdict.value}{reason}"


_MIXED = "16-bit precisions accumulate in fp32, which lowers their constant"


def shown(found: Sequence[Ladder]) -> pd.DataFrame:
    """Write the table of slopes for reading."""
    table = ladder_frame(found)
    if table.empty:
        return table
    extra = [c for c in ("attn_implementation", "device", "tokens", "documents") if table[c].nunique() > 1]
    verdict = [v + (f" ({r})" if r else "") for v, r in zip(table["verdict"], table["reason"], strict=True)]
    return pd.DataFrame(
        {
            "protocol": table["protocol"],
            "model": table["model"],
            "chunk size": table["chunk_size"],
            **{c: table[c] for c in extra},
            "precisions": table["dtypes"],
            "slope": table["slope"].map(fixed_number),
            "standard error": table["standard_error"].map(fixed_number),
            f"{coverage(ALPHA)} interval": [
                "–" if math.isnan(a) else f"{fixed_number(a)} to {fixed_number(b)}"
                for a, b in zip(table["low"], table["high"], strict=True)
            ],
            "verdict": verdict,
            "notes": table["notes"].replace("", "–"),
        }
    )


def by_measure(sweep: Sweep, layer: int | str = "last", measures: Sequence[str] = LADDER_MEASURES) -> pd.DataFrame:
    """Slope over all rungs and verdict by every measure, for reading: one row per ladder."""
    rows: dict[str, dict[str, Any]] = {}
    for measure in measures:
        for one in ladders(sweep, measure, layer if measure == "hidden_rel_l2" else "last"):
            key = json.dumps({k: v for k, v in one.labels.items() if k not in ("measure", "layer")})
            first = {n: one.labels[n] for n in ("protocol", "model", "chunk_size")}
            names = {"chunk_size": "chunk size"}
            row = rows.setdefault(key, {names.get(n, n): v for n, v in first.items()})
            row[amplitude_name(measure)] = slope_words(one.slope)
    return pd.DataFrame(list(rows.values()))


def method() -> str:
    """Say in a paragraph how slopes are estimated and judged."""
    cover = coverage(ALPHA)
    return (
        "Slopes are least squares on the logarithms of drift and unit roundoff, for every document over the same text "
        f"and steps at every precision, {late_words()} of the chain. Intervals ({cover}) are "
        "Student's t over documents; with one document they are over the steps of its chain. **Rounding**: the whole "
        f"interval lies within 1 ± {ROUNDING_MARGIN:g}. **Structural**: within ± {STRUCTURAL_MARGIN:g}. **Both**: "
        f"between {STRUCTURAL_MARGIN:g} and {1 - ROUNDING_MARGIN:g}. Anything else is undetermined, with the reason."
    )


def departure(found: Sequence[Ladder]) -> str:
    """Say how many unit roundoffs rounding makes on each rung, and so why its slope is not exactly 1; or nothing."""
    rounding = [one for one in found if one.slope.verdict is Scaling.ROUNDING]
    constants: dict[tuple[float, str], list[float]] = {}
    most = max((len(one.dtypes) for one in rounding), default=0)
    for one in (one for one in rounding if len(one.dtypes) == most):  # the same ladders for every rung
        for dtype, u, level in zip(one.dtypes, one.unit_roundoff, one.level, strict=True):
            constants.setdefault((-u, dtype), []).extend(np.log(level[level > 0] / u))
    if not any(constants.values()):
        return ""
    said = [f"{math.exp(np.mean(logs)):.2g} in {dtype}" for (_, dtype), logs in sorted(constants.items()) if logs]
    text = f"Where drift is rounding, its level in unit roundoffs is {', '.join(said)}"
    text += " (geometric means over the folds that were run at most precisions)."
    alike, across = (
        [p.slope.interval.value for one in rounding for p in one.pairs if p.mixed is mixed] for mixed in (False, True)
    )
    if alike and across:
        text += (
            " bf16 and fp16 round what they store and accumulate in fp32; fp32 and fp64 accumulate in themselves, "
            "which is more roundings of size u. The slope between precisions of the same kind is "
            f"{_span(alike)}, between the two kinds {_span(across)}"
        )
        # Said only of what the numbers show: next to nothing is missing where rungs are of a kind.
        explained = max(across) < 1 - DEPARTURE and min(alike) > 1 - DEPARTURE
        text += ": this step is most of what takes the slope below 1." if explained else "."
    return text


def _span(values: Sequence[float]) -> str:
    low, high = fixed_number(min(values), 2), fixed_number(max(values), 2)
    return low if low == high else f"{low} to {high}"


def headlines(found: Sequence[Ladder], notes: bool = True) -> dict[str, str]:
    """Say per protocol what its ladders are: ``"append: rounding: drift is ..., in all 3 models; slope 0.88"``.

    Parameters
    ----------
    found : sequence of Ladder
    notes : bool
        Whether to say what the word means where the cache is stored in fewer bits.
    """
    said: dict[str, str] = {}
    for protocol in dict.fromkeys(str(one.labels["protocol"]) for one in found):
        mine = [one for one in found if one.labels["protocol"] == protocol]
        # What was run at one precision takes nothing from what was run at several.
        several = [one for one in mine if one.slope.reason is not ScalingReason.ONE_RUNG]
        words = _kinds_words(several or mine)
        models = len({one.labels["model"] for one in several})
        alone = len({one.labels["model"] for one in mine}) - models
        if several and alone:
            words += f" ({alone} more ran at one precision only)"
        slopes = [one.slope.interval.value for one in mine if math.isfinite(one.slope.interval.value)]
        words += f"; slope {_span(slopes)}" if slopes else ""
        note = f". {STORAGE_WORDS.rstrip('.')}" if notes and is_stored_coarsely(protocol) else ""
        said[protocol] = f"{protocol}: {words}{note}."
    return said


def _kinds_words(found: Sequence[Ladder]) -> str:
    """Say what ladders are, model by model where models differ, and why where that is undetermined."""
    per_model: dict[str, list[Scaling]] = {}
    for one in found:
        per_model.setdefault(one.labels["model"], []).append(one.slope.verdict)
    kinds = {tuple(dict.fromkeys(mine)) for mine in per_model.values()}
    if len(kinds) == 1 and len(next(iter(kinds))) == 1:
        words = SCALING_WORDS[next(iter(kinds))[0]]
        words += f", in all {len(per_model)} models" if len(per_model) > 1 else ""
    else:
        words = "; ".join(
            f"{model}: {' or '.join(SCALING_WORDS[kind] for kind in dict.fromkeys(mine))}"
            for model, mine in per_model.items()
        )
    reasons = dict.fromkeys(one.slope.reason.value for one in found if one.slope.reason)
    return words + (f" ({'; '.join(reasons)})" if reasons else "")


def attribution_frame(found: Sequence[Attribution]) -> pd.DataFrame:
    """Write the attribution as a table: one row per cell."""
    rows = []
    for one in found:
        row: dict[str, Any] = {
            "protocol": one.labels["protocol"],
            "model": one.labels["model"],
            "precision": one.labels["dtype"],
            "chunk size": one.labels["chunk_size"],
            "documents": one.documents,
            "error against float64": number(one.total, 3),
        }
        for part, name in PARTS.items():
            short = name.split(":")[0]
            interval = one.shares[part]
            row[short] = number(one.parts[part], 3)
            ends = "" if math.isnan(interval.low) else f" ({_percent(interval.low)} to {_percent(interval.high)})"
            row[f"share, {short} [%]"] = _percent(interval.value) + ends
        rows.append(row)
    return pd.DataFrame(rows)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:z.1f}"


def attribution_sentences(found: Sequence[Attribution]) -> list[str]:
    """Say per protocol and precision which part of the error is the largest."""
    if not all(one.believed for one in found):
        return ["No conclusion is drawn on the parts of the error, because controls of the instrument failed."]
    said = []
    keys = dict.fromkeys((one.labels["protocol"], one.labels["dtype"]) for one in found)
    for protocol, dtype in keys:
        mine = [one for one in found if (one.labels["protocol"], one.labels["dtype"]) == (protocol, dtype)]
        mine = [one for one in mine if math.isfinite(one.shares["structural"].value)]
        if not mine:
            said.append(f"{protocol}, {dtype}: the error is exactly zero, or NaN or Inf somewhere: it has no parts.")
            continue
        parts = []
        for part, name in PARTS.items():
            values = sorted(one.shares[part].value for one in mine)
            ends = _percent(values[0]), _percent(values[-1])
            parts.append(f"{ends[0]}{f' to {ends[1]}' if ends[0] != ends[1] else ''} % {name.split(':')[0]}")
        kinds = dict.fromkeys(PARTS[one.largest].split(":")[0] for one in mine)
        said.append(
            f"{protocol}, {dtype}: of the squared error against float64, {', '.join(parts)}; the largest share is "
            f"{' or '.join(kinds)}" + (f", over {len(mine)} cells." if len(mine) > 1 else ".")
        )
    return said


def amplitude_name(measure: str) -> str:
    """Name the amplitude of a measure in a sentence."""
    row = VARIABLES.get(measure)
    name = row.long_name if row else measure
    return f"square root of the {name}" if amplitude_power(measure) == 0.5 else name
