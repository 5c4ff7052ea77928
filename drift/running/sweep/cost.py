"""What a sweep will take: time, memory and disk, estimated from the shape of the model.

The model of time: per layer and chunk the longer of computing (operations by the throughput of the device and rung) and
of reading weights and cache (what small chunks pay), plus a fixed price per call; plus a price per compared logit. The
constants were measured on two cores of a server CPU; they are right within a factor of about two. Once groups of a
folder are finished, their measured times correct the rest (:func:`correction`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift._cores import cores
from drift.running.sweep.memory import ITEM_BYTES, Footprint, Sized, footprint

__all__ = [
    "Cost",
    "cell_bytes",
    "correction",
    "fold_seconds",
    "group_cost",
    "show_bytes",
    "show_seconds",
    "task_bytes",
    "task_cost",
]

# Operations per second: per core on a CPU, per device on a GPU.
_THROUGHPUT = {
    ("cpu", "bf16", "native"): 60e9,
    ("cpu", "fp16", "native"): 60e9,
    ("cpu", "bf16", "float32"): 28e9,
    ("cpu", "fp16", "float32"): 28e9,
    ("cpu", "fp32", "native"): 32e9,
    ("cpu", "fp64", "native"): 14e9,
    ("cuda", "bf16", "native"): 200e12,
    ("cuda", "fp16", "native"): 200e12,
    ("cuda", "tf32", "native"): 100e12,
    ("cuda", "fp32", "native"): 25e12,
    ("cuda", "fp64", "native"): 20e12,
}
_BANDWIDTH = {"cpu": 4.5e9, "cuda": 1.5e12}  # bytes of weights and cache per second; per core on a CPU
_CALL_SECONDS = {"cpu": 6e-4, "cuda": 4e-4}  # one layer called for one chunk, whatever its size
_LOGIT_SECONDS = {"cpu": 1.6e-8, "cuda": 4e-11}  # one entry of the vocabulary compared for one token; per core
_ANSWER_TOKENS = 24  # passes of an answer: of the question, teacher forcing twice, and of every generated token
_LOAD_BYTES_PER_SECOND = 0.5e9
_LOAD_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """An estimate: seconds of computing, seconds of loading weights, peak memory in bytes."""

    seconds: float
    load_seconds: float
    memory_bytes: float


class _Pace:
    """How long a model takes on this machine."""

    def __init__(self, shape: Sized, dtype: str, device: str, half_matmul: str) -> None:
        usable = cores() if device == "cpu" else 1
        item = ITEM_BYTES[dtype]
        self._shape, self._device = shape, device
        self._embedding = shape.vocab_size * shape.hidden_size
        self._in_blocks = max(shape.parameters - self._embedding * (1 if shape.tied else 2), 1)
        each = _THROUGHPUT.get((device, dtype, half_matmul), _THROUGHPUT[(device, dtype, "native")])
        self._throughput = each * usable
        self._bandwidth = _BANDWIDTH[device] * usable
        # Products of 16-bit numbers widened to float32 read float32 weights.
        self._weight_item = 4 if half_matmul == "float32" else item
        # Per call the cache is joined (read and written once), and its heads are repeated for the queries.
        self._cached = 2 * shape.head_dim * item * 2 * (shape.kv_heads + shape.heads)

    def lane(self, tokens: int, size: int, logits: int) -> float:
        """Seconds of a text of `tokens` tokens in chunks of `size`, with the logits of `logits` tokens."""
        shape, chunks = self._shape, -(-tokens // size)
        operations = 2.0 * self._in_blocks / shape.layers * tokens / chunks
        operations += 2.0 * shape.heads * shape.head_dim * float(tokens) ** 2 / chunks
        cached = tokens / 2 * self._cached if chunks > 1 else 0.0
        call = max(operations / self._throughput, self._reading(cached)) + _CALL_SECONDS[self._device]
        return shape.layers * chunks * call + 2.0 * self._embedding * logits / self._throughput

    def token(self, behind: int) -> float:
        """Seconds of generating a token behind `behind` others."""
        cached, outputs = behind * self._cached, self._embedding * self._weight_item / self._bandwidth
        return self._shape.layers * (self._reading(cached) + _CALL_SECONDS[self._device]) + outputs

    def _reading(self, cached: float) -> float:
        """Seconds of reading a block's weights, and bytes of its cache."""
        return (self._in_blocks / self._shape.layers * self._weight_item + cached) / self._bandwidth


def group_cost(
    shape: Sized,
    *,
    dtype: str,
    device: str,
    half_matmul: str,
    documents: int,
    tokens: int,
    folds: Sequence[int],
    logit_stride: int = 1,
    way: Footprint | None = None,
) -> Cost:
    """Estimate one descent.

    Parameters
    ----------
    shape : Sized
        The model's shape.
    dtype, device, half_matmul : str
        Rung, ``cpu`` or ``cuda``, and how 16-bit products are computed.
    documents, tokens : int
        Number of texts and their length.
    folds : sequence of int
        Chunk size of every fold in the descent; full attention is added.
    logit_stride : int
        Logits of every n-th token are compared.
    way : Footprint, optional
        How it is run; by default with all weights in memory, and sdpa.

    Returns
    -------
    Cost
    """
    usable = cores() if device == "cpu" else 1
    compared = -(-tokens // logit_stride)
    pace = _Pace(shape, dtype, device, half_matmul)
    logits = float(compared) * shape.vocab_size * len(folds)
    lanes = sum(pace.lane(tokens, size, compared) for size in (tokens, *folds))
    seconds = documents * (lanes + logits * _LOGIT_SECONDS[device] / usable)
    way = way or footprint(
        shape, dtype=dtype, device=device, half_matmul=half_matmul, attn_implementation="sdpa", tokens=tokens,
        folds=folds, logit_stride=logit_stride,
    )  # fmt: skip
    load = 2.0 * shape.parameters / _LOAD_BYTES_PER_SECOND
    # Streamed weights are read again for every document, beside the computing.
    if way.weights == "streamed":
        seconds = max(seconds, documents * load)
    return Cost(seconds=seconds, load_seconds=_LOAD_SECONDS + load, memory_bytes=way.bytes)


def task_cost(
    shape: Sized,
    *,
    dtype: str,
    device: str,
    half_matmul: str,
    documents: int,
    questions: int,
    tokens: int,
    folds: Sequence[int],
    way: Footprint,
) -> Cost:
    """Estimate the asking of a task; what texts share is not taken off.

    Parameters
    ----------
    shape, dtype, device, half_matmul, folds, way
        As for :func:`group_cost`.
    documents, questions, tokens : int
        Number of texts, of questions of each, and tokens of a prompt.
    """
    pace = _Pace(shape, dtype, device, half_matmul)
    each = questions * _ANSWER_TOKENS * pace.token(tokens)
    # Full attention takes the first text once more, and one without facts with the questions of all texts.
    full = (documents + 2) * pace.lane(tokens, tokens, 1) + (2 * documents + 1) * each
    seconds = full + sum(documents * (pace.lane(tokens, size, -(-tokens // size)) + each) for size in folds)
    load = 2.0 * shape.parameters / _LOAD_BYTES_PER_SECOND
    return Cost(seconds=seconds, load_seconds=_LOAD_SECONDS + load, memory_bytes=way.bytes)


def fold_seconds(shape: Sized, *, dtype: str, device: str, half_matmul: str, tokens: int, chunk_size: int) -> float:
    """Estimate the folding of one text, in seconds; as for :func:`group_cost`."""
    return _Pace(shape, dtype, device, half_matmul).lane(tokens, chunk_size, -(-tokens // chunk_size))


def task_bytes(*, documents: int, questions: int, tokens: int, chunk_size: int) -> float:
    """Estimate the size of a task cell's file on disk, in bytes: some thirty numbers and three texts of a question."""
    steps = -(-tokens // chunk_size)
    return 120_000 + 8.0 * documents * (60 * questions + 3 * steps)


def cell_bytes(shape: Sized, *, documents: int, tokens: int, chunk_size: int) -> float:
    """Estimate the size of a cell's file on disk, in bytes.

    Five numbers and nine quantiles per document, layer and step, two per block, and a score per document and step;
    compression takes off four tenths, names and attributes
    add a tenth of a megabyte.
    """
    steps = -(-tokens // chunk_size)
    numbers = documents * steps * ((shape.layers + 2) * (5 + 9) + 2 * shape.layers + 13 + 9)
    return 110_000 + 0.6 * 8 * numbers


def correction(finished: Iterable[Mapping[str, Any]], *, device: str, dtype: str) -> float:
    """How many times longer than estimated finished groups took: the median of the nearest kin there is.

    Parameters
    ----------
    finished : iterable of mapping
        Records of groups with ``device``, ``dtype``, ``elapsed_s`` and ``estimated_s``.
    device, dtype : str
        Groups of the same device and rung are preferred, then of the same device, then any.
    """
    kin: tuple[list[float], list[float], list[float]] = ([], [], [])
    for group in finished:
        estimated, elapsed = float(group.get("estimated_s") or 0), float(group.get("elapsed_s") or 0)
        if estimated <= 0 or elapsed <= 0:
            continue
        same_device = group.get("device") == device
        kin[2].append(elapsed / estimated)
        if same_device:
            kin[1].append(elapsed / estimated)
        if same_device and group.get("dtype") == dtype:
            kin[0].append(elapsed / estimated)
    return next((statistics.median(ratios) for ratios in kin if ratios), 1.0)


def show_seconds(seconds: float) -> str:
    """A duration in the digits it deserves: ``7 s``, ``25 s``, ``3 min``, ``1.5 h``."""
    if seconds < 10:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 90:
        return f"{round(seconds / 5) * 5} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def show_bytes(count: float) -> str:
    """A size in the digits it deserves: ``80 kB``, ``1.3 MB``, ``12 GB``."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            value = count / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{max(round(count / 1e4) * 10, 10)} kB"
