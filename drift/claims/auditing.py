"""The published claims as data, and the audit that holds a sweep against them.

Every claim of arXiv 2605.12471 is a hypothesis with an effect, a margin of equivalence stated in advance and a test.
*Supported* means that equivalence was shown (two one-sided tests), *refuted* that its contrary was, *undetermined* that
neither was; a difference that failed to be significant supports nothing. Claims speak of every model and setting, so a
summary over cells is supported only if every cell supports it (an intersection-union test: each at level alpha, no
correction) and refuted if at least one cell refutes it after Holm's correction. What the cells say one by one is kept
beside it.

Divergences are quadratic in a small disturbance, so they enter as their square roots: all measures are then amplitudes,
and one margin means the same for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from drift import labels
from drift.dataset import Sweep, curve
from drift.errors import ConfigError, DatasetError
from drift.plateau import Plateau, curves, plateaus
from drift.plateau.kernel import DOCUMENTS, ZEROS, Estimate, late_part, window_mean
from drift.plateau.verdict import certificate, percent, plain

__all__ = [
    "BOUNDED",
    "CLAIMS",
    "MEASURES",
    "PUBLISHED_DEPTH",
    "SHORT",
    "SIGNS",
    "UNRELATED",
    "Audit",
    "Claim",
    "Finding",
    "Setting",
    "Status",
    "Summary",
    "amplitude",
    "amplitude_power",
    "audit",
    "deepest",
    "holm",
    "parse_margins",
    "settings",
    "span",
    "verdicts",
    "writer",
]

Float = NDArray[np.float64]


class Status(Enum):
    """What the data say about a claim. The value is what tables and JSON show."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDETERMINED = "undetermined"
    NOT_TESTED = "not tested"
    WITHHELD = "not drawn"


#: A sign for each verdict, so that colour is not needed to tell them apart.
SIGNS = {Status.SUPPORTED: "●", Status.REFUTED: "✖", Status.UNDETERMINED: "○", Status.NOT_TESTED: "–",
         Status.WITHHELD: "!"}  # fmt: skip
#: Measures that are held against the claims, the headline first, and the power that makes an amplitude of each.
MEASURES: dict[str, float] = {
    "hidden_rel_l2": 1.0,
    "key_rel_l2": 1.0,
    "value_rel_l2": 1.0,
    "logit_kl": 0.5,
    "delta_p_rms": 1.0,
    "nll_gap": 1.0,
}
SHORT = {
    "hidden_rel_l2": "hidden state",
    "key_rel_l2": "keys",
    "value_rel_l2": "values",
    "logit_kl": "logits (KL)",
    "delta_p_rms": "probability of the right token",
    "nll_gap": "NLL",
}
#: Chain depth to which the published plateau is claimed to persist.
PUBLISHED_DEPTH = 511
#: Published change of the plateau from bf16 to fp32, 2.8 %, as a log-log slope: their unit roundoffs are 2^16 apart.
PUBLISHED_SLOPE = -math.log(1 - 0.028) / (16 * math.log(2))
UNRELATED = math.sqrt(2)  # relative L2 distance of unrelated states of equal norm
BOUNDED = ("hidden_rel_l2", "key_rel_l2", "value_rel_l2")  # which that number is a bound of


@dataclass(frozen=True)
class Setting:
    """What an audit asks of the data.

    Attributes
    ----------
    growth : float
        Margin of C1: growth per doubling of depth that still counts as flat.
    precision : float
        Margin of C2: change over the tested range of precisions that still counts as none.
    chunk : float
        Margin of C3: change per doubling of the chunk size that still counts as none.
    family : float
        Margin of C4: ratio of two models' levels that still counts as the same.
    proportional : float
        How far from 1 the log-log slope may lie where drift is called proportional to the unit roundoff.
    rise : float
        Factor from the first step to the level from which on a curve is said to have risen.
    alpha : float
        Level of every test.
    """

    growth: float = 0.05
    precision: float = 0.10
    chunk: float = 0.05
    family: float = 2.0
    proportional: float = 0.2
    rise: float = 1.5
    alpha: float = 0.05


@dataclass(frozen=True)
class Claim:
    """One published claim, or one part of it.

    Attributes
    ----------
    key, part : str
        ``"C1"`` and what of it; unique together.
    published : str
        What the paper says.
    margin : str
        The margin of equivalence (a format string over the fields of :class:`Setting`) and its justification.
    audit : callable or None
        Yields findings for one protocol and measure; None where drift does not measure what the claim is about.
    not_tested : str
        Why, where there is nothing to test.
    changes : str
        What would change a verdict.
    """

    key: str
    part: str
    published: str
    margin: str
    audit: Callable[[Sweep, str, int | str, Setting], Iterator[Finding]] | None
    not_tested: str
    changes: str

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.key} {self.part}"

    def margin_text(self, setting: Setting) -> str:
        """The margin with its numbers."""
        shares = {n: f"{100 * getattr(setting, n):g} %" for n in ("growth", "precision", "chunk")}
        return self.margin.format(**{**vars(setting), **shares})


@dataclass(frozen=True)
class Finding:
    """What one set of cells says about one claim, by one measure.

    Attributes
    ----------
    claim, part, protocol, measure : str
    scope : str
        The cells in words.
    status : Status
    effect : str
        Name of what was estimated.
    estimate, interval : float, tuple of float
        In the units of `effect`; coverage 1 - 2 alpha.
    margin : tuple of float
        Of equivalence, in the same units.
    p_support, p_refute : float
        Of the test that supports, and of the test that refutes. NaN where there was nothing to test.
    words : str
        The finding in a sentence.
    needed : str
        What more data it would take, where undetermined.
    cells : tuple of str
        Files that it rests on.
    """

    claim: str
    part: str
    protocol: str
    measure: str
    scope: str
    status: Status
    effect: str
    estimate: float
    interval: tuple[float, float]
    margin: tuple[float, float]
    p_support: float
    p_refute: float
    words: str
    needed: str = ""
    cells: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return plain(dict(vars(self)))


@dataclass(frozen=True)
class Summary:
    """A claim under one protocol by the headline measure, over all cells.

    Attributes
    ----------
    claim : Claim
    protocol : str
        Empty where nothing was tested.
    status : Status
    words : str
    findings : tuple of Finding
        By the headline measure.
    others : dict of str to Status
        Verdict by each further measure.
    """

    claim: Claim
    protocol: str
    status: Status
    words: str
    findings: tuple[Finding, ...] = ()
    others: dict[str, Status] = field(default_factory=dict)

    @property
    def differing(self) -> dict[str, Status]:
        """Measures whose verdict is not that of the headline measure."""
        return {m: s for m, s in self.others.items() if s is not self.status}


@dataclass(frozen=True)
class Audit:
    """The claims table of a sweep.

    Attributes
    ----------
    summaries : tuple of Summary
    measure, layer, setting
        What was asked.
    findings : tuple of Finding
        By every measure.
    withheld : str
        Why no verdict is drawn; empty where verdicts are.
    scope : str
        Cells of the sweep that the claims are not about, in words.
    controls : str
        What the controls of the instrument say.
    """

    summaries: tuple[Summary, ...]
    measure: str
    layer: int | str
    setting: Setting
    findings: tuple[Finding, ...]
    withheld: str = ""
    scope: str = ""
    controls: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: ``claims`` (the table) and ``findings`` (every row of evidence)."""
        rows = [
            {
                "claim": s.claim.key,
                "part": s.claim.part,
                "protocol": s.protocol or None,
                "verdict": s.status,
                "finding": s.words,
                "measure": self.measure,
                "other_measures": s.others,
                "published": s.claim.published,
                "margin": s.claim.margin_text(self.setting),
                "cells": sorted({c for f in s.findings for c in f.cells}),
            }
            for s in self.summaries
        ]
        body = {"setting": vars(self.setting), "controls": self.controls, "withheld": self.withheld or None}
        return plain({**body, "claims": rows, "findings": [f.as_dict() for f in self.findings]})


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down procedure: a list of rejections with family-wise error alpha.

    NaN (nothing tested) stays NaN and does not count.
    """
    order = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted = [math.nan] * len(p)
    running = 0.0
    for rank, (value, place) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * value))
        adjusted[place] = running
    return adjusted


# ---------------------------------------------------------------------------------------------- cells
_QUADRATIC = ("logit_js", "logit_kl_token", "hidden_cosine_distance")  # beside those of MEASURES


def amplitude_power(measure: str) -> float:
    """Power that makes an amplitude of a measure: divergences are quadratic in a small disturbance."""
    return MEASURES.get(measure, 0.5 if measure in _QUADRATIC else 1.0)


def amplitude(ds: xr.Dataset, measure: str, layer: int | str) -> Float:
    """Values of a measure as amplitudes: [document, step]."""
    return curves.measure_values(ds, measure, layer) ** amplitude_power(measure)


def _file(ds: xr.Dataset) -> str:
    return Path(str(ds.encoding.get("source", ""))).name or str(ds.attrs.get("title", ""))


def _value(ds: xr.Dataset, axis: str) -> Any:
    return int(ds["token_stop"].values[-1]) if axis == "tokens" else ds[axis].item()


_TEXT = ("tokens", "attn_implementation", "device", "reference")  # what cells share beside the claim's axis


def _groups(sweep: Sweep, *keys: str) -> Iterator[tuple[dict[str, Any], list[xr.Dataset]]]:
    """Cells that agree in `keys`, in attention, device, and number of tokens and documents."""
    groups: dict[tuple[Any, ...], list[xr.Dataset]] = {}
    for ds in sweep:
        # Documents are compared one with one: they must be the same texts.
        text = str(ds.attrs.get("tokens_sha256", ""))
        key = (*(_value(ds, k) for k in (*keys, *_TEXT)), ds.sizes["document"], text)
        groups.setdefault(key, []).append(ds)
    for key, cells in groups.items():
        yield dict(zip((*keys, *_TEXT, "documents", "text"), key, strict=True)), cells


def deepest(sweep: Sweep) -> list[xr.Dataset]:
    """Per model and precision the longest chain; the one with more documents where two are equally long."""
    found: dict[tuple[str, str], xr.Dataset] = {}
    for ds in sweep:
        key = (ds["model"].item(), ds["dtype"].item())
        size = (ds.sizes["step"], ds.sizes["document"])
        if key not in found or size > (found[key].sizes["step"], found[key].sizes["document"]):
            found[key] = ds
    return list(found.values())


def _log(values: Float) -> Float | None:
    """Log of [document, step]; None where zeros or non-finite values leave none."""
    if not np.isfinite(values).all() or (late_part(values) == 0).mean() > ZEROS:
        return None
    positive = values[values > 0]
    return np.log(np.maximum(values, positive.min() / 2)) if positive.size else None


def _zeros(*values: Float) -> str:
    """Say how many values are exactly zero, which have no logarithm."""
    n = sum(int((v == 0).sum()) for v in values)
    return f"; {n} value{'s' * (n != 1)} exactly zero, taken as half the smallest" if n else ""


def _status(support: float, refute: float, alpha: float) -> Status:
    if refute < alpha:
        return Status.REFUTED
    return Status.SUPPORTED if support < alpha else Status.UNDETERMINED


def _tests(found: Estimate, low: float, high: float) -> tuple[float, float]:
    """P-values of the test that supports (the truth lies between the margins) and of the one that refutes (outside).

    Beyond either margin refutes, so that test has two sides and its p-value is doubled; equivalence needs both of its
    one-sided tests, each at the full level.
    """
    support = max(found.p_below(high).item(), found.p_above(low).item())
    refute = min(1.0, 2 * min(found.p_above(high).item(), found.p_below(low).item()))
    return support, refute


def _documents(n: int) -> str:
    within = "" if n >= DOCUMENTS else ", within these documents only"
    return f"{n} document{'s' * (n != 1)}{within}"


# ---------------------------------------------------------------------------------------------- C1
def verdicts(
    sweep: Sweep, measure: str, layer: int | str, setting: Setting
) -> Iterator[tuple[xr.Dataset, str, Plateau]]:
    """Yield each deepest chain with its name and the verdict on it."""
    cells = deepest(sweep)
    found = plateaus(
        [amplitude(ds, measure, layer) for ds in cells],
        margin=setting.growth,
        alpha=setting.alpha,
        rise_min=setting.rise,
    )
    for ds, plateau in zip(cells, found, strict=True):
        yield ds, f"{ds['model'].item()} {ds['dtype'].item()}, chunk {ds['chunk_size'].item()}", plateau


def _c1_plateau(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    for ds, scope, p in verdicts(sweep, measure, layer, setting):
        support = p.p_equivalence if p.reason is None or p.verdict.is_plateau else max(p.p_equivalence, setting.alpha)
        refute = min(1.0, 2 * min(p.p_growth, p.p_decay))  # growth refutes, and so does decay
        status = Status.UNDETERMINED
        if p.verdict.is_plateau:
            status = Status.SUPPORTED
        elif p.reason is None and refute < setting.alpha:
            status = Status.REFUTED
        words = str(p)
        if p.reason is None and status is Status.UNDETERMINED:
            words += f" As growth and decay both refute the claim, p is {refute:.2g}: not refuted."
        if p.zeros and math.isfinite(p.growth_per_doubling):
            words = words.rstrip(".") + f"{_zeros(amplitude(ds, measure, layer))}."
        if measure in BOUNDED and p.level > 0.5 * UNRELATED:
            words += f" The level {p.level:.2g} is near that of unrelated states ({UNRELATED:.2g}): flat means little."
        yield Finding(
            "C1", "plateau", ds["protocol"].item(), measure, scope, status, "growth per doubling of depth",
            p.growth_per_doubling, p.growth_interval, (1 / (1 + setting.growth) - 1, setting.growth), support, refute,
            words, _needed(p), (_file(ds),),
            {"verdict": p.verdict.value, "transitions": p.steps - 1, "documents": p.documents, "level": p.level,
             "level_interval": p.level_interval, "unit_roundoff": ds["unit_roundoff"].item(),
             "documents_needed": p.documents_needed, "steps_needed": p.steps_needed,
             **({"certified": {"from_step": p.certified_from, "growth": p.certified_growth,
                               "interval": p.certified_interval}} if certificate(p) else {})},
        )  # fmt: skip


def _needed(p: Plateau) -> str:
    options = []
    if p.reason is not None and math.isfinite(p.documents_needed) and p.documents_needed > p.documents:
        options.append(f"{p.documents_needed:.0f} documents")
    if p.reason is not None and math.isfinite(p.steps_needed) and p.steps_needed > p.steps:
        options.append(f"{p.steps_needed:.0f} steps")
    return " or ".join(options)


def _c1_rise(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    for ds, scope, p in verdicts(sweep, measure, layer, setting):
        low, high = p.rise_interval
        status = _status(p.p_rise, p.p_no_rise, setting.alpha)
        words = f"the level is {p.rise_factor:.3g} times the first step"
        if math.isinf(p.rise_factor):
            words = "the first step is exactly zero, both passes being the same bits there, and the level is not"
        elif math.isnan(p.rise_factor):
            words = "there is no level to compare with the first step"
        if math.isfinite(low):
            words += f" ({100 * (1 - 2 * setting.alpha):g} % interval {low:.3g} to {high:.3g})"
        if not math.isnan(p.onset_step):
            words += f"; within the margin of it by step {p.onset_step:.0f} of {p.steps}"
        if math.isfinite(p.rise_factor):
            words += _zeros(amplitude(ds, measure, layer))
        yield Finding(
            "C1", "rise", ds["protocol"].item(), measure, scope, status, "level / first step", p.rise_factor,
            p.rise_interval, (setting.rise, math.inf), p.p_rise, p.p_no_rise,
            f"{words}; {_documents(p.documents)}.", "", (_file(ds),),
            {"onset_step": p.onset_step, "steps": p.steps},
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- C2
def _nothing(
    claim: tuple[str, str], cells: Sequence[xr.Dataset], measure: str, scope: str, effect: str, why: str
) -> Finding:
    nan = math.nan
    return Finding(
        *claim, cells[0]["protocol"].item(), measure, scope, Status.UNDETERMINED, effect, nan, (nan, nan), (nan, nan),
        nan, nan, why, "", tuple(_file(ds) for ds in cells),
    )  # fmt: skip


def _weights(x: Sequence[float]) -> Float:
    """Least-squares weights: the slope of y on x is ``weights @ y``."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return np.asarray(centred / (centred @ centred))


_FEW = "too few steps for a noise model, and fewer than four documents"
_NO_LOG = "drift is exactly zero, NaN or Inf too often to have a level"


def _c2(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    effect = "log-log slope of drift on unit roundoff"
    for axes, cells in _groups(sweep, "model", "chunk_size"):
        cells = sorted({ds["dtype"].item(): ds for ds in cells}.values(), key=lambda ds: -ds["unit_roundoff"].item())
        if len({ds["unit_roundoff"].item() for ds in cells}) < 2:
            continue
        every = f"{axes['model']}, chunk {axes['chunk_size']}, {'/'.join(ds['dtype'].item() for ds in cells)}"
        levels = [(ds, values, _log(values)) for ds in cells for values in [amplitude(ds, measure, layer)]]
        lost = [ds["dtype"].item() for ds, _, z in levels if z is None]
        kept = [(ds, values, z) for ds, values, z in levels if z is not None]
        roundoffs = [ds["unit_roundoff"].item() for ds, _, _ in kept]
        if len(set(roundoffs)) < 2:
            yield _nothing(("C2", "precision"), cells, measure, every, effect, _NO_LOG + ".")
            continue
        cells, values, logs = (list(column) for column in zip(*kept, strict=True))
        scope = f"{axes['model']}, chunk {axes['chunk_size']}, {'/'.join(ds['dtype'].item() for ds in cells)}"
        ratio = math.log(roundoffs[0] / roundoffs[-1])
        series = np.tensordot(_weights([math.log(u) for u in roundoffs]), np.stack(logs), axes=1)
        found = window_mean(series[None])
        if found is None:
            yield _nothing(("C2", "precision"), cells, measure, scope, effect, _FEW + ".")
            continue
        gamma = math.log(1 + setting.precision) / ratio
        slope, half = found.estimate.item(), found.half_width(setting.alpha).item()
        support, refute = _tests(found, -gamma, gamma)
        status = _status(support, refute, setting.alpha)
        near = setting.proportional
        proportional = max(found.p_below(1 + near).item(), found.p_above(1 - near).item()) < setting.alpha
        kind = (
            "insensitive to precision" if status is Status.SUPPORTED
            else "proportional to the unit roundoff" if proportional
            else "partly sensitive to precision" if status is Status.REFUTED and 0 < slope < 1
            else "sensitive to precision" if status is Status.REFUTED
            else "undetermined"
        )  # fmt: skip
        words = (
            f"{kind}: slope {slope:z.3f} ({_interval(slope, half, setting)}), that is a factor "
            f"{math.exp(slope * ratio):.3g} from {cells[-1]['dtype'].item()} to {cells[0]['dtype'].item()}, over "
            f"{math.exp(ratio):,.0f}x in unit roundoff (published: slope {PUBLISHED_SLOPE:.4f}); "
            f"{_documents(axes['documents'])}{_zeros(*values)}"
            + (f"; {', '.join(lost)} left out: {_NO_LOG}." if lost else ".")
        )
        yield Finding(
            "C2", "precision", cells[0]["protocol"].item(), measure, scope, status, effect, slope,
            (slope - half, slope + half), (-gamma, gamma), support, refute, words, "",
            tuple(_file(ds) for ds in cells), {"kind": kind, "ratio": math.exp(ratio), "published": PUBLISHED_SLOPE},
        )  # fmt: skip


def _interval(estimate: float, half: float, setting: Setting) -> str:
    return f"{100 * (1 - 2 * setting.alpha):g} % interval {estimate - half:z.3f} to {estimate + half:z.3f}"


# ---------------------------------------------------------------------------------------------- C3
_COUNTS = {  # tokens that a step's value is the mean of, where that is not all of them
    "logit_kl": "logit_count",
    "logit_js": "logit_count",
    "delta_p_rms": "target_count",
    "nll_gap": "target_count",
}


def _blocks(ds: xr.Dataset, values: Float, measure: str, size: int, layer: int | str = "last") -> Float:
    """Pool amplitudes [document, step] over blocks of `size` tokens: [document, block].

    A chunk that straddles a border counts in proportion to its tokens on either side. Squares are pooled; those of the
    hidden state by the norm of what they are relative to, which gives the drift of the block itself, whatever the
    chunks were. Of keys and values no norms are recorded: theirs are pooled by tokens, as if all had the same norm. The
    gap in NLL is a difference of means: it is pooled with its sign.
    """
    start, stop = ds["token_start"].values, ds["token_stop"].values
    borders = np.arange(0, stop[-1] // size + 1) * size
    overlap = np.minimum(stop, borders[1:, None]) - np.maximum(start, borders[:-1, None])
    share = np.clip(overlap, 0, None) / (stop - start)  # [block, step]
    weight = np.broadcast_to((stop - start).astype(float), values.shape)
    if measure == "hidden_rel_l2":
        weight = curve(ds, "hidden_norm", layer) ** 2
    if measure in _COUNTS:
        weight = curve(ds, _COUNTS[measure])
        values = np.where(weight == 0, 0.0, values)  # NaN: nothing was compared
    with np.errstate(invalid="ignore"):
        if measure == "nll_gap":
            # Signed gaps average out: their mean over a chunk is smaller in a longer one, whatever the drift.
            signed = np.where(weight == 0, 0.0, curve(ds, "nll_fold") - curve(ds, "nll_full"))
            return np.abs((weight * signed) @ share.T / (weight @ share.T))
        return np.sqrt(((weight * values**2) @ share.T) / (weight @ share.T))


def _c3(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    effect = "change per doubling of the chunk size"
    delta = math.log1p(setting.chunk)
    for axes, cells in _groups(sweep, "model", "dtype"):
        cells = [ds for ds in cells if ds["chunk_size"].item() <= axes["tokens"]]  # no chunk is larger than the text
        cells = sorted({ds["chunk_size"].item(): ds for ds in cells}.values(), key=lambda ds: ds["chunk_size"].item())
        sizes = [ds["chunk_size"].item() for ds in cells]
        if len(sizes) < 2:
            continue
        scope = f"{axes['model']} {axes['dtype']}, chunks {', '.join(map(str, sizes))}"
        pooled = [_blocks(ds, amplitude(ds, measure, layer), measure, sizes[-1], layer) for ds in cells]
        logs = [_log(values) for values in pooled]
        if any(z is None for z in logs):
            yield _nothing(("C3", "chunk size"), cells, measure, scope, effect, _NO_LOG + ".")
            continue
        series = np.tensordot(_weights(np.log2(sizes)), np.stack(logs), axes=1)  # type: ignore[arg-type]
        found = window_mean(series[None])
        if found is None:
            yield _nothing(("C3", "chunk size"), cells, measure, scope, effect, _FEW + ".")
            continue
        slope, half = found.estimate.item(), found.half_width(setting.alpha).item()
        support, refute = _tests(found, -delta, delta)
        low, high = math.expm1(slope - half), math.expm1(slope + half)
        words = (
            f"{percent(math.expm1(slope))} per doubling ({100 * (1 - 2 * setting.alpha):g} % interval {percent(low)} "
            f"to {percent(high)}) from {sizes[0]} to {sizes[-1]} tokens, over the same text; "
            f"{_documents(axes['documents'])}{_zeros(*pooled)}."
        )
        yield Finding(
            "C3", "chunk size", cells[0]["protocol"].item(), measure, scope,
            _status(support, refute, setting.alpha), effect, math.expm1(slope), (low, high),
            (math.expm1(-delta), math.expm1(delta)), support, refute, words, "", tuple(_file(ds) for ds in cells),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- C4
def _level(ds: xr.Dataset, measure: str, layer: int | str) -> Estimate | None:
    z = _log(amplitude(ds, measure, layer))
    return None if z is None else window_mean(z[None])


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two independent estimates; degrees of freedom after Welch and Satterthwaite."""

    def largest(e: Estimate) -> tuple[float, float]:
        return max((se.item(), df.item()) for se, df in e.errors)

    (sa, na), (sb, nb) = largest(a), largest(b)
    total = sa**2 + sb**2
    df = total**2 / (sa**4 / na + sb**4 / nb) if total > 0 else math.inf
    error = np.array([math.sqrt(total)]), np.array([min(df, 1e9)])
    return Estimate(a.estimate - b.estimate, [error])


def _c4_level(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    effect = "ratio of two models' levels"
    delta = math.log(setting.family)
    groups: dict[tuple[Any, ...], list[xr.Dataset]] = {}
    for ds in sweep:
        groups.setdefault(tuple(_value(ds, k) for k in ("dtype", "chunk_size", *_TEXT)), []).append(ds)
    chosen: dict[str, tuple[tuple[Any, ...], list[xr.Dataset]]] = {}
    for key, cells in groups.items():
        cells = sorted(cells, key=lambda ds: (ds["model"].item(), ds.sizes["document"]))
        cells = list({ds["model"].item(): ds for ds in cells}.values())  # of one model the cell with most documents
        best = chosen.get(key[0])
        # Per precision, the setting that most models share, and of those the deepest chain.
        rank = (len(cells), cells[0].sizes["step"])
        if len(cells) > 1 and (best is None or rank > (len(best[1]), best[1][0].sizes["step"])):
            chosen[key[0]] = key, cells
    for (dtype, size, tokens, *_), cells in chosen.values():
        levels = [(ds, _level(ds, measure, layer)) for ds in cells]
        for (a, la), (b, lb) in itertools.combinations(levels, 2):
            scope = f"{a['model'].item()} : {b['model'].item()}, {dtype}, chunk {size}, {tokens} tokens"
            if la is None or lb is None:
                why = "one of the two has no level to compare."
                yield _nothing(("C4", "level"), (a, b), measure, scope, effect, why)
                continue
            found = _difference(la, lb)
            ratio, half = found.estimate.item(), found.half_width(setting.alpha).item()
            support, refute = _tests(found, -delta, delta)
            low, high = math.exp(ratio - half), math.exp(ratio + half)
            words = (
                f"ratio {math.exp(ratio):.2f} ({100 * (1 - 2 * setting.alpha):g} % interval {low:.2f} to {high:.2f}); "
                f"{_documents(min(a.sizes['document'], b.sizes['document']))}"
                f"{_zeros(*(amplitude(ds, measure, layer) for ds in (a, b)))}."
            )
            yield Finding(
                "C4", "level", a["protocol"].item(), measure, scope, _status(support, refute, setting.alpha), effect,
                math.exp(ratio), (low, high), (1 / setting.family, setting.family), support, refute, words, "",
                (_file(a), _file(b)), {"families": [a["family"].item(), b["family"].item()]},
            )  # fmt: skip


def _c4_plateau(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Whether every model has the plateau, per precision: C1 again, over models."""
    found = list(_c1_plateau(sweep, measure, layer, setting))
    by_dtype: dict[str, list[tuple[xr.Dataset, Finding]]] = {}
    for ds, finding in zip(deepest(sweep), found, strict=True):
        by_dtype.setdefault(ds["dtype"].item(), []).append((ds, finding))
    for dtype, pairs in by_dtype.items():
        if len(pairs) < 2:
            continue
        kinds = {f.status for _, f in pairs}
        said = "; ".join(f"{ds['model'].item()}: {f.detail['verdict'].replace('_', ' ')}" for ds, f in pairs)
        status = Status.SUPPORTED if kinds == {Status.SUPPORTED} else Status.UNDETERMINED
        adjusted = holm([f.p_refute for _, f in pairs])
        if any(f.status is Status.REFUTED and q < setting.alpha for (_, f), q in zip(pairs, adjusted, strict=True)):
            status = Status.REFUTED
        p = max(f.p_support for _, f in pairs) if kinds == {Status.SUPPORTED} else math.nan
        yield Finding(
            "C4", "plateau", pairs[0][0]["protocol"].item(), measure, f"{len(pairs)} models, {dtype}", status,
            "verdict on C1", math.nan, (math.nan, math.nan), (math.nan, math.nan), p,
            min((q for q in adjusted if not math.isnan(q)), default=math.nan), f"{said}.", "",
            tuple(c for _, f in pairs for c in f.cells),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the table
_MORE = "more documents or a deeper chain, where undetermined; a chain that changes beyond the depth measured here"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1", "plateau",
        "per-step drift saturates into a flat plateau that persists in deep chains, to depth 511",
        "growth per doubling of depth within {growth}: over the nine doublings to depth 511 at most a factor 1.55; "
        "a square root grows 41 % per doubling, a logarithm 13 % or more",
        _c1_plateau, "", _MORE,
    ),
    Claim(
        "C1", "rise",
        "drift rises briefly (about ten transitions) before it saturates",
        "level at least {rise:g} times the first step",
        _c1_rise, "", "another first step: where both passes are the same bits at first, any drift is a rise",
    ),
    Claim(
        "C2", "precision",
        "the plateau is insensitive to a 10,000x change of precision (bf16 to fp32: 2.8 % lower)",
        "change over the tested range of precisions within {precision}, over three times the published effect; the "
        "alternative, proportionality to the unit roundoff, is a log-log slope within {proportional:g} of 1",
        _c2, "", "more rungs (fp16, tf32, fp64), other kernels: bf16 rounds what it stores and accumulates in fp32",
    ),
    Claim(
        "C3", "chunk size",
        "robust across chunk sizes 64 to 1024",
        "change per doubling of the chunk size within {chunk}: at most 22 % over the published four doublings",
        _c3, "", "more documents, where undetermined; chunk sizes beyond those measured here",
    ),
    Claim(
        "C4", "level",
        "the same across model families (Llama, Qwen, Gemma, and OLMoE)",
        "levels of any two tested models within a factor {family:g}, at the same chunk size and number of tokens: one "
        "bit, where the precisions are 16 bits apart",
        _c4_level, "", "larger models; with fewer than six families nothing can be said of families at large",
    ),
    Claim(
        "C4", "plateau",
        "every family has the plateau",
        "C1 supported for every tested model; refuted by one that is refuted",
        _c4_plateau, "", "whatever changes C1 for one of the models",
    ),
    Claim(
        "C5", "retrieval",
        "100 % exact match, needle in a haystack, 152 trials, 16K to 128K tokens",
        "not applicable", None, "drift measures how far two passes are apart; it runs no retrieval task.",
        "a retrieval experiment",
    ),
    Claim(
        "C6", "cost",
        "128K tokens in 35.6 GB and 171 s on one A100 40 GB",
        "not applicable", None, "no pass of this size was run, and drift's own recording is part of its times.",
        "a run at this size on such a GPU",
    ),
)  # fmt: skip


def _combine(findings: Sequence[Finding], alpha: float) -> Status:
    """Summarise a claim about every cell: intersection-union for support, Holm for refutation."""
    if not findings:
        return Status.NOT_TESTED
    if all(f.status is Status.SUPPORTED for f in findings):
        return Status.SUPPORTED
    adjusted = holm([f.p_refute for f in findings])
    refuted = any(
        f.status is Status.REFUTED and (math.isnan(p) or p < alpha) for f, p in zip(findings, adjusted, strict=True)
    )
    return Status.REFUTED if refuted else Status.UNDETERMINED


def _count(findings: Sequence[Finding]) -> str:
    counts = [(s.value, sum(f.status is s for f in findings)) for s in Status]
    said = [f"{n} {name}" for name, n in counts if n]
    return ", ".join(said) + f" of {len(findings)}"


def _words(claim: Claim, findings: Sequence[Finding], status: Status) -> str:
    """One sentence on a summary, from the findings."""
    if len(findings) == 1:
        return f"{findings[0].scope}: {findings[0].words}"
    good = [f for f in findings if math.isfinite(f.estimate)]
    text = _count(findings)
    if status is not Status.REFUTED and any(f.status is Status.REFUTED for f in findings):
        text += ", none after Holm's correction"
    if claim.key == "C4" and claim.part == "plateau":
        return "; ".join(f"{f.scope}: {f.words.rstrip('.')}" for f in findings) + "."
    write = writer(claim)
    if good:
        low, high = write(min(f.estimate for f in good)), write(max(f.estimate for f in good))
        text += f"; {good[0].effect} {low}" + (f" to {high}" if high != low else "")
    zero = sum(math.isinf(f.estimate) for f in findings)
    if zero:
        text += f"; from exactly zero (the same bits at first) in {zero}"
    if not good and not zero:
        text += f"; no estimate of the {findings[0].effect}"
    if claim.key == "C1" and claim.part == "plateau":
        depths = sorted({f.detail["transitions"] for f in findings})
        text += f"; chains of {span(depths)} transitions"
        kinds = [f.detail["verdict"].replace("_", " ") for f in findings]
        text += " (" + ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)) + ")"
        needed = [f.detail["documents_needed"] for f in findings if f.status is Status.UNDETERMINED]
        if needed and all(math.isfinite(n) for n in needed):
            text += f"; to decide all, about {max(needed):.0f} documents of this depth"
    if claim.key == "C2":
        kinds = [f.detail["kind"] for f in findings if f.detail]
        if kinds:
            text += " (" + ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)) + ")"
    return text + "."


def span(values: Sequence[int]) -> str:
    """Write the smallest and the largest of sorted numbers."""
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def writer(claim: Claim) -> Callable[[float], str]:
    """How an estimate of a claim is written."""
    if claim.name in ("C1 plateau", "C3 chunk size"):
        return percent
    return lambda v: f"{v:.3g}" if abs(v) >= 0.0005 else f"{v:z.4f}"


def audit(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    *,
    others: Sequence[str] | None = None,
    setting: Setting | None = None,
) -> Audit:
    """Hold a sweep against the published claims.

    Parameters
    ----------
    sweep : Sweep
        Its folds against full attention at the same precision; other cells are named in ``scope`` and left alone.
        Where controls of the sweep failed, every verdict is withheld; estimates remain.
    measure : str
        The headline measure, by which the table is filled in.
    layer : int or "last"
        For measures that have layers.
    others : sequence of str, optional
        Further measures, whose verdicts are shown where they differ; all of :data:`MEASURES` by default.
    setting : Setting, optional
        Margins and level.

    Raises
    ------
    DatasetError
        If the sweep is empty or there is no such measure.
    ConfigError
        If a margin makes no sense.
    """
    setting = setting or Setting()
    _check(setting)
    if not len(sweep):
        raise DatasetError("the sweep holds no cell that can be read: there is nothing to hold against the claims")
    from drift import controls  # which judges by the ladder, which takes amplitudes from here

    checked = controls.evaluate(sweep)
    everything, sweep = sweep, labels.folds(sweep)
    rest = [m for m in (MEASURES if others is None else others) if m != measure]
    summaries: list[Summary] = []
    findings: list[Finding] = []
    for claim in CLAIMS:
        if claim.audit is None:
            summaries.append(Summary(claim, "", Status.NOT_TESTED, claim.not_tested))
            continue
        for protocol in sweep.values("protocol"):
            part = sweep.sel(protocol=protocol)
            mine = list(claim.audit(part, measure, layer, setting))
            others_found = {m: list(claim.audit(part, m, "last", setting)) for m in rest}
            findings += [*mine, *(f for found in others_found.values() for f in found)]
            if not mine:
                summaries.append(Summary(claim, protocol, Status.NOT_TESTED, "no cells to compare."))
                continue
            verdicts = {m: _combine(found, setting.alpha) for m, found in others_found.items() if found}
            status = _combine(mine, setting.alpha)
            summaries.append(Summary(claim, protocol, status, _words(claim, mine, status), tuple(mine), verdicts))
    found = Audit(
        tuple(summaries), measure, layer, setting, tuple(findings), scope=labels.left_out(everything, sweep),
        controls=checked.banner,
    )  # fmt: skip
    return found if checked.ok else _withhold(found, "; ".join(checked.failed))


def _withhold(found: Audit, why: str) -> Audit:
    """Take every verdict back that was drawn, and keep the estimates."""

    def silent(f: Finding) -> Finding:
        words = f"no verdict: controls failed. Estimated all the same: {f.words}"
        return replace(f, status=Status.WITHHELD, words=words)

    said = "no verdict is drawn: controls of the instrument failed."
    summaries = tuple(
        s if s.status is Status.NOT_TESTED
        else replace(s, status=Status.WITHHELD, words=said, findings=tuple(map(silent, s.findings)), others={})
        for s in found.summaries
    )  # fmt: skip
    return replace(found, summaries=summaries, findings=tuple(map(silent, found.findings)), withheld=why)


def _check(setting: Setting) -> None:
    for name in ("growth", "precision", "chunk", "proportional"):
        if not 0 < getattr(setting, name) < 1:
            raise ConfigError(f"the margin {name!r} is {getattr(setting, name)}; it must lie between 0 and 1")
    if not 1 < setting.family < math.inf or not 1 < setting.rise < math.inf:
        raise ConfigError(f"'family' ({setting.family}) and 'rise' ({setting.rise}) are finite ratios above 1")
    if not 0 < setting.alpha < 0.5:
        raise ConfigError(f"'alpha' is {setting.alpha}; it must lie between 0 and 0.5")


def parse_margins(margins: Sequence[str], alpha: float) -> Setting:
    """Read margins written NAME=NUMBER or NAME=NUMBER%.

    Raises
    ------
    ConfigError
        If one is written otherwise, or there is no such margin.
    """
    values: dict[str, float] = {"alpha": alpha}
    names = [n for n in Setting.__dataclass_fields__ if n != "alpha"]
    for text in margins:
        name, equals, number = text.partition("=")
        try:
            value = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
        except ValueError:
            value = math.nan
        if not equals or name not in names or math.isnan(value):
            raise ConfigError(f"--margin {text}: write NAME=NUMBER, with NAME one of {', '.join(names)}")
        values[name] = value
    return Setting(**values)


def settings(margins: Mapping[str, float | str] | None = None, alpha: float = 0.05) -> Setting:
    """Margins by name, as ``{"growth": 0.1}``, and the level; what is not named keeps its default."""
    return parse_margins([f"{name}={value}" for name, value in (margins or {}).items()], alpha)
