"""What becomes of a disturbance further down the chain: is it forgotten, carried along, or amplified?

A fold into whose cache noise was put once (protocols ``perturbed(FOLD,step=S,size=...)``) is compared with the same
fold left alone (reference ``unperturbed``). The gain G(k) is drift k steps after the first step that can differ,
divided by drift at that step; it does not depend on the size of the noise as long as the response is linear. Its
exponential rate per chain step, the slope of log G on k, has a sign: a negative rate forgets, a positive one amplifies
every rounding error that the chain makes, too.

The rate is estimated past a burn-in (the first quarter, as elsewhere in drift), per document; its interval is one of
Student's t over documents, or allows for autocorrelated noise around the line where there is one document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from drift import dataset
from drift.dataset.contract import SCALARS
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.reading import controls
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import ALPHA, mean_interval
from drift.reading.statistics.rate import Rate, TrendReason, rate
from drift.reading.statistics.slope import log_log
from drift.reading.wording.numbers import coverage
from drift.reading.wording.verdicts import TREND_WORDS

__all__ = ["GAIN_COMMAND", "Gain", "by_layer", "by_step", "gain_frame", "gain_sentences", "gains"]

#: What would measure gains.
GAIN_COMMAND = (
    "python -m drift.sweep SWEEP.yaml --set 'protocol=[\"perturbed(append,step=4,size=0.001)\"]' "
    "--set reference=unperturbed"
)


# ---------------------------------------------------------------------------------------------- from sweeps
@dataclass(frozen=True)
class Gain:
    """The gain of one cell.

    Attributes
    ----------
    labels : dict
        Scalar coordinates of the cell; ``fold`` (which was disturbed), ``step`` (after which, counted from 0), ``size``
        (of the noise, relative), ``layer`` (where drift is read).
    values : ndarray [document, k]
        NaN where the first affected step does not differ.
    rate : Rate
    """

    labels: dict[str, Any]
    values: Float
    rate: Rate

    @property
    def name(self) -> str:
        """What tables call it."""
        return "{fold}, {model}, {dtype}, chunk {chunk_size}, step {step}, size {size:g}".format(**self.labels)

    def band(self, alpha: float = ALPHA) -> tuple[Float, Float, Float]:
        """Geometric mean over documents, and the band around it, each [k]; the band is NaN with one document.

        Documents whose gain is exactly 0 have no logarithm and are left out of both.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.values)
        found = [mean_interval(column, alpha) for column in np.where(np.isfinite(logs), logs, np.nan).T]
        middle, low, high = (np.exp([getattr(i, n) for i in found]) for n in ("value", "low", "high"))
        return middle, low, high


def gains(sweep: Sweep, layer: int | str = "last") -> list[Gain]:
    """Take the gain of every disturbed fold of a sweep; verdicts are withheld where the sweep's controls failed."""
    return list(_gains(sweep, layer, controls.gate(sweep)))


def _gains(sweep: Sweep, layer: int | str, gate: controls.Gate) -> Iterator[Gain]:
    for ds in sweep:
        label = parse_label(ds["protocol"].item())
        if ds["reference"].item() != "unperturbed" or label.name != "perturbed":
            continue
        step = int(label.number("step"))
        drift = dataset.curve(ds, "hidden_rel_l2", layer)[:, step + 1 :]
        if not drift.shape[1]:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(drift[:, :1] > 0, drift / drift[:, :1], np.nan)
        found = gate.let(rate(values))
        labels = {n: ds[n].item() for n in SCALARS}
        labels |= {"fold": label.inner, "step": step, "size": label.number("size"), "layer": layer}
        labels["text"] = str(ds.attrs.get("tokens_sha256", ""))
        yield Gain(labels, values, found)


_SAME = ("fold", "model", "dtype", "chunk_size", "size", "attn_implementation", "device", "text")


def by_step(found: Sequence[Gain]) -> pd.DataFrame:
    """Say how the gain depends on the step that the noise was put in after.

    Returns
    -------
    pandas.DataFrame
        One row per fold, model, precision, chunk size and size of noise that was put in at two steps or more:
        ``steps``, ``after`` (how many steps later gains are compared: the most that all have), ``gain`` at each, and
        the log-log slope of that gain on the step number counted from 1, with its ``low`` and ``high`` over documents,
        ``zeros`` (gains that are exactly 0 there, which have no logarithm; their documents are left out of the slope).
    """
    groups: dict[tuple[Any, ...], list[Gain]] = {}
    for one in found:
        groups.setdefault(tuple(one.labels[n] for n in _SAME), []).append(one)
    rows = []
    for key, mine in groups.items():
        mine = sorted(mine, key=lambda g: g.labels["step"])
        after = min(g.values.shape[1] for g in mine) - 1
        if len(mine) < 2 or after < 1 or len({len(g.values) for g in mine}) > 1:
            continue
        at = np.stack([g.values[:, after] for g in mine])  # [step, document]
        interval = log_log([g.labels["step"] + 1.0 for g in mine], at)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(at)
        middle = [
            0.0 if not row.any() else math.exp(mean_interval(log).value) for row, log in zip(at, logs, strict=True)
        ]
        rows.append(
            {
                **dict(zip(_SAME, key, strict=True)),
                "steps": tuple(g.labels["step"] for g in mine),
                "after": after,
                "gain": tuple(middle),
                "slope": interval.value,
                "low": interval.low,
                "high": interval.high,
                "zeros": int((at == 0).sum()),
            }
        )
    return pd.DataFrame(rows, columns=[*_SAME, "steps", "after", "gain", "slope", "low", "high", "zeros"])


def gain_frame(found: Sequence[Gain]) -> pd.DataFrame:
    """Write the rates as a table for reading."""
    rows = []
    for one in found:
        r, middle = one.rate, one.band()[0]
        known = math.isfinite(r.interval.low)
        rows.append(
            {
                "fold": one.labels["fold"],
                "model": one.labels["model"],
                "precision": one.labels["dtype"],
                "chunk size": one.labels["chunk_size"],
                "put in after step": one.labels["step"],
                "size": f"{one.labels['size']:g}",
                "documents": len(one.values),
                "steps after": one.values.shape[1] - 1,
                "gain at the end": "–" if not middle[-1] > 0 else f"{middle[-1]:.3g}",
                "rate per step": "–" if math.isnan(r.interval.value) else f"{r.interval.value:+.4f}",
                f"{coverage(ALPHA)} interval": (f"{r.interval.low:+.4f} to {r.interval.high:+.4f}" if known else "–"),
                "neutral within": f"± {r.margin:.4f}",
                "exactly zero": r.zeros,
                "verdict": r.verdict.value + (f" ({r.reason.value})" if r.reason else ""),
            }
        )
    return pd.DataFrame(rows)


def by_layer(sweep: Sweep) -> pd.DataFrame:
    """Rate per step at a few layers (embeddings left out), for reading: one row per cell."""
    rows: dict[str, dict[str, Any]] = {}
    gate = controls.gate(sweep)
    for ds in sweep:
        if ds["reference"].item() != "unperturbed":
            continue
        numbers = [int(n) for n in ds["layer"].values if n > 0]
        # The last one is the final norm; a thinned cell has not all of those before it.
        depth = np.array([(n - 1) / max(numbers[-1] - 1, 1) for n in numbers])
        for place in sorted({int(np.argmin(np.abs(depth - k / 3))) for k in range(4)}):
            last = place == len(numbers) - 1
            for one in _gains(sweep.derive([ds]), numbers[place], gate):
                names = ("fold", "model", "dtype", "chunk_size", "step", "size")
                first = {n.replace("_", " "): one.labels[n] for n in names}
                row = rows.setdefault(one.name + one.labels["text"] + str(id(ds)), first)
                i = one.rate.interval
                ends = "" if math.isnan(i.low) else f" ({i.low:+.3f} to {i.high:+.3f})"
                where = "final norm" if last else f"{depth[place]:.0%} of depth"
                row[f"rate, {where}"] = "–" if math.isnan(i.value) else f"{i.value:+.3f}{ends}"
    return pd.DataFrame(list(rows.values()))


def gain_sentences(found: Sequence[Gain]) -> list[str]:
    """Say per fold and precision what becomes of a disturbance, and how that depends on where it was put in."""
    said = []
    for fold, dtype in dict.fromkeys((g.labels["fold"], g.labels["dtype"]) for g in found):
        mine = [g for g in found if (g.labels["fold"], g.labels["dtype"]) == (fold, dtype)]
        kinds = [g.rate.verdict for g in mine]
        if len(set(kinds)) == 1:
            words = TREND_WORDS[kinds[0]] + (f", in all {len(mine)} cells" if len(mine) > 1 else "")
        else:
            words = ", ".join(f"{kinds.count(k)} {k.value}" for k in dict.fromkeys(kinds)) + f" of {len(mine)} cells"
        rates = sorted(g.rate.interval.value for g in mine if math.isfinite(g.rate.interval.value))
        if rates:
            ends = f"{100 * math.expm1(rates[0]):+.2g} %", f"{100 * math.expm1(rates[-1]):+.2g} %"
            words += f"; {ends[0]}" + (f" to {ends[1]}" if ends[0] != ends[1] else "") + " per chain step"
        reasons = dict.fromkeys(g.rate.reason.value for g in mine if g.rate.reason)
        said.append(f"{fold}, {dtype}: {words}" + (f" ({'; '.join(reasons)})." if reasons else "."))
    if any(g.rate.reason is TrendReason.CONTROLS for g in found):
        return said
    for _, row in by_step(found).iterrows():
        values = ", ".join(f"{g:.3g} after step {s}" for g, s in zip(row["gain"], row["steps"], strict=True))
        interval = "" if math.isnan(row["low"]) else f" ({row['low']:.2f} to {row['high']:.2f})"
        kind = (
            "whether the gain depends on the step cannot be said" if math.isnan(row["low"])
            else "the deeper it is put in, the less is forgotten" if row["low"] > 0
            else "the deeper it is put in, the less remains" if row["high"] < 0
            else "no dependence on the step is resolved"
        )  # fmt: skip
        cell = f"{row['fold']}, {row['model']}, {row['dtype']}, chunk {row['chunk_size']}"
        said.append(
            f"{cell}: {row['after']} steps on, the gain of noise that was put in is {values}; log-log slope on the "
            f"step {row['slope']:.2f}{interval}: {kind}."
            + (f" Exactly 0 there, and left out: {row['zeros']}." if row["zeros"] else "")
        )
    return said
