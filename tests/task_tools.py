"""Task cells made from nothing: whoever answers what is said, at whatever distance. For the tests of both wings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import synthetic
import xarray as xr

from drift import dataset
from drift.dataset.task_contract import NONE

TOLD = 1234567


def task_cell(
    full: Sequence[Sequence[int]] | np.ndarray,
    fold: Sequence[Sequence[int]] | np.ndarray,
    *,
    distances: Sequence[int] | None = None,
    change: float | np.ndarray = 0.0,
    kl: float | np.ndarray = 0.0,
    without: int = 0,
    again: int = 1,
    facts: int = 1,
    seconds: float = 0.5,
    **axes: Any,
) -> xr.Dataset:
    """Return a task cell.

    Parameters
    ----------
    full, fold : array_like
        1 where the answer is exact: [document, question].
    distances : sequence of int, optional
        Chunks between the facts of each document and its questions; spread evenly by default.
    change : float or array
        What is added to the answer's log-likelihood in the fold, nats.
    kl : float or array
        KL divergence at the question.
    without : int
        How many of the questions are answered without the facts.
    again : int
        Whether full attention asked twice gives the same bits.
    facts : int
        On how many facts an answer rests.
    seconds : float
        Of a chain step; full attention takes as long as all steps.
    **axes
        Scalar coordinates, as ``protocol="isolated"``.
    """
    found = {"full": np.asarray(full), "fold": np.asarray(fold)}
    shape = found["full"].shape
    names: dict[str, Any] = {
        "model": "tiny", "family": "Llama", "dtype": "bf16", "chunk_size": 64, "protocol": "append",
        "reference": "full", "attn_implementation": "sdpa", "device": "cpu", "task": "needle", "tokens": 1024,
    } | axes  # fmt: skip
    steps = -(-(names["tokens"] - 64) // names["chunk_size"])
    text = np.full(shape[0], steps * names["chunk_size"])
    away = np.linspace(steps, 1, shape[0]).round().astype(int) if distances is None else np.asarray(distances)
    start = (steps - away) * names["chunk_size"]
    base = {"full": np.full(shape, -0.4), "fold": np.full(shape, -0.4) + change}
    variables: dict[str, Any] = {}
    for lane, exact in found.items():
        ones = np.ones(shape, dtype=int)
        variables |= {
            f"said_{lane}": np.where(exact == 1, f" {TOLD}", " nothing"),
            f"exact_{lane}": exact,
            f"score_{lane}": exact.astype(float),
            f"log_likelihood_{lane}": base[lane],
            f"rank_{lane}": np.where(exact == 1, 1, 7),
            f"margin_{lane}": np.where(exact == 1, 3.0, -3.0),
            f"other_log_likelihood_{lane}": np.full(shape, -20.0),
            f"generated_tokens_{lane}": 9 * ones,
            f"nonfinite_count_{lane}": 0 * ones,
        }
    asked = (np.arange(shape[0] * shape[1]) < without).reshape(shape).astype(int)
    places = np.repeat(np.repeat(start[:, None, None], shape[1], 1), facts, 2)
    variables |= {
        "expected": np.full(shape, str(TOLD)),
        "text_tokens": text,
        "question_tokens": np.full(shape, 30),
        "answer_tokens": np.full(shape, 8),
        "fact_start": places,
        "fact_stop": places + 12,
        "fact_distance": np.broadcast_to(away[:, None, None], places.shape),
        "first_difference": np.where(found["full"] == found["fold"], NONE, 2),
        "answer_kl": np.broadcast_to(kl, shape),
        "answer_logit_rel_l2": np.sqrt(np.broadcast_to(kl, shape)),
        "without_exact": asked,
        "without_score": asked.astype(float),
        "without_log_likelihood": np.full(shape, -20.0),
        "again_same": np.array([again, *[NONE] * (shape[0] - 1)]),
        "fold_seconds": np.full((shape[0], steps), seconds),
        "fold_carried_bytes": np.tile(np.arange(1, steps + 1) * 1000, (shape[0], 1)),
        "fold_peak_bytes": np.full((shape[0], steps), 10**9),
        "full_seconds": np.full(shape[0], seconds * steps),
        "full_carried_bytes": np.full(shape[0], steps * 1000),
        "full_peak_bytes": np.full(shape[0], 2 * 10**9),
    }
    config = {k: v for k, v in names.items() if k != "reference"} | {"documents": shape[0], "questions": shape[1]}
    told = synthetic.attrs(config, title="Asked of the fold")
    told.pop("logit_stride")
    roundoff = synthetic.ROUNDOFF[names["dtype"]]
    return dataset.build_task(variables, scalars={**names, "unit_roundoff": roundoff}, attrs=told)
