"""What the tests of the claims share: cells of known truth, and the row that is said of one claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import synthetic
import xarray as xr
from scipy.signal import lfilter

from drift.dataset.sweep import Sweep
from drift.reading import amplitudes
from drift.reading.claims import auditing, chunking, model
from drift.reading.claims import published as claims_published
from drift.reading.claims.auditing import audit
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.statistics.windows import late_start

SUPPORTED, REFUTED, UNDETERMINED, NOT_TESTED, WITHHELD = Status
UNIT = synthetic.ROUNDOFF


def saturated(step: np.ndarray) -> np.ndarray:
    return 0.1 * (1 - 0.8 * np.exp(-step / 3))


def flat(level: float = 0.1) -> Callable[[np.ndarray], np.ndarray]:
    return lambda step: np.full(step.shape, level)


def power(exponent: float, level: float = 0.02) -> Callable[[np.ndarray], np.ndarray]:
    return lambda step: level * (step + 1) ** exponent


def ar1(rng: np.random.Generator, shape: tuple[int, ...], rho: float = 0.3) -> np.ndarray:
    noise = rng.standard_normal(shape)
    noise[..., 1:] *= math.sqrt(1 - rho**2)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise, axis=-1))


def errors(noise: float = 0.05, *, slope: bool = False) -> float:
    """Four standard errors of the mean log of six documents in the judging window of 128 steps, or of its slope.

    Noise with the autocorrelation of :func:`ar1` counts (1 + rho) / (1 - rho) times in the variance.
    """
    x = np.log2(np.arange(late_start(128) + 1, 129))
    spread = math.sqrt(float(((x - x.mean()) ** 2).sum())) if slope else math.sqrt(len(x))
    return 4 * noise * math.sqrt(1.3 / 0.7 / 6) / spread


def put(ds: xr.Dataset, amplitude: np.ndarray) -> xr.Dataset:
    """Make every measure of the claims follow one amplitude [document, step]."""
    ds["hidden_rel_l2"].values[:, -1] = amplitude
    ds["key_rel_l2"].values[:, -1] = 0.7 * amplitude
    ds["value_rel_l2"].values[:, -1] = 1.1 * amplitude
    ds["logit_kl"].values[...] = amplitude**2
    ds["delta_p_rms"].values[...] = 0.3 * amplitude
    ds["nll_full"].values[...] = 3.0
    ds["nll_fold"].values[...] = 3.0 + 0.5 * amplitude
    return ds


def amplitude(ds: xr.Dataset) -> np.ndarray:
    return np.array(ds["hidden_rel_l2"].values[:, -1])


def cell(
    law: Callable[[np.ndarray], np.ndarray] = saturated,
    *,
    noise: float = 0.05,
    between: float = 0.0,
    seed: int = 0,
    documents: int = 6,
    steps: int = 128,
    chunk_size: int = 64,
    tokens: int | None = None,
    **options: Any,
) -> xr.Dataset:
    """One cell: autocorrelated noise on every step; `between` is the spread of the documents' levels."""
    given = {"model": "a", "layers": 2, "protocol": "reprime", "tokens": tokens or steps * chunk_size} | options
    ds = synthetic.cell(**given, chunk_size=chunk_size, documents=documents, noise=0.0, level=law)  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, chunk_size, *str(given).encode()])
    shape = documents, ds.sizes["step"]
    noisy = noise * ar1(rng, shape) + between * rng.standard_normal((documents, 1))
    return put(ds, amplitude(ds) * np.exp(noisy))


def pair(ratio: float, *, dtypes: tuple[str, str] = ("bf16", "fp32"), **options: Any) -> list[xr.Dataset]:
    """Two precisions, the second with `ratio` times the drift of the first."""
    return [cell(flat(0.1 * r), dtype=d, **options) for r, d in zip((1.0, ratio), dtypes, strict=True)]


def held(
    cells: Sequence[xr.Dataset], name: str, measure: str = "hidden_rel_l2", **margins: float
) -> model.ClaimSummary:
    """The row on one claim of a sweep with one protocol."""
    with mock.patch.object(auditing, "CLAIMS", [c for c in claims_published.CLAIMS if c.name == name]):
        (row,) = audit(Sweep(cells), measure, others=[], setting=Setting(**margins)).summaries
    return row


def only(cells: Sequence[xr.Dataset], name: str, measure: str = "hidden_rel_l2", **margins: float) -> Finding:
    row = held(cells, name, measure, **margins)
    (finding,) = row.findings
    assert row.status is finding.status
    assert row.words == f"{finding.scope}: {finding.words}"
    return finding


def pooled(ds: xr.Dataset, measure: str, size: int, layer: int | str = "last") -> np.ndarray:
    return chunking._blocks(ds, amplitudes.amplitude(ds, measure, layer), measure, size, layer)
