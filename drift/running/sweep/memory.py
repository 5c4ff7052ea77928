"""How much memory a descent takes at its peak, and how to run it within a budget.

Worked out from the shape of the model: what is held throughout (weights, hidden states, masks), and the largest of what
comes and goes (loading, a block at work, a recorder that compares, logits). On a CPU the interpreter and the libraries
come on top (`RUNTIME_BYTES`, measured); on a GPU it is the device's memory that is counted.

No torch here, unless free memory of a GPU is asked for.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drift.errors import ConfigError

__all__ = [
    "ITEM_BYTES",
    "RUNTIME_BYTES",
    "Footprint",
    "Sized",
    "choose",
    "footprint",
    "free",
    "give_back",
    "parse_size",
    "resident_bytes",
]

ITEM_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4, "fp64": 8}
RUNTIME_BYTES = 0.56e9
"""Interpreter, libraries, tokenizer and text: between 0.5 (a tiny tokenizer) and 0.65 GB were measured."""
_PUBLISHED_BYTES = 2  # checkpoints are published in 16 bits
_LOGIT_ROWS = 1024  # drift.descent.LOGIT_ROWS, which needs torch
_FEWEST_LOGIT_ROWS = 128
_COMPARED = 1 << 17  # elements that measures take at once; about sixteen copies of them in float64
_WIDENED_WEIGHTS = 16  # as many 16-bit weights are kept widened to float32
_MATRICES = 7  # weight matrices of a block


class Sized(Protocol):
    """What is asked of a model's shape (see :class:`drift.running.checkpoints.names.Shape`)."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    parameters: int
    tied: bool


@dataclass(frozen=True)
class Footprint:
    """One way of running a descent, and its peak memory in bytes.

    Attributes
    ----------
    weights : str
        ``resident`` or ``streamed``.
    keeps_calls : bool
        Whether masks are kept from block to block, or made again.
    logit_rows : int
        Rows of logits computed at once.
    parts : dict of str to float
        Bytes by what takes them: ``runtime``, ``weights``, ``states``, ``calls``, and the phases ``loading``,
        ``block``, ``comparing``, ``logits``, of which only one is at work at a time.
    """

    weights: str
    keeps_calls: bool
    logit_rows: int
    parts: dict[str, float]

    @property
    def bytes(self) -> float:
        """Peak memory."""
        part = self.parts
        held = part["weights"] + part["states"] + part["calls"]
        return part["runtime"] + max(part["loading"], held + max(part["block"], part["comparing"]), part["logits"])


def footprint(
    shape: Sized,
    *,
    dtype: str,
    device: str,
    half_matmul: str,
    attn_implementation: str,
    tokens: int,
    folds: Sequence[int],
    logit_stride: int = 1,
    weights: str = "resident",
    keeps_calls: bool = True,
    logit_rows: int = _LOGIT_ROWS,
) -> Footprint:
    """Work out the peak memory of a descent.

    Parameters
    ----------
    shape : Sized
        The model's shape.
    dtype, device, half_matmul, attn_implementation : str
        Rung, ``cpu`` or ``cuda``, how 16-bit products are computed, ``sdpa`` or ``eager``.
    tokens : int
        Length of a text.
    folds : sequence of int
        Chunk size of every fold; full attention is added.
    logit_stride : int
        Logits of every n-th token are compared.
    weights, keeps_calls, logit_rows
        See :class:`Footprint`.
    """
    n, item = tokens, ITEM_BYTES[dtype]
    widened = device == "cpu" and half_matmul == "float32" and item == 2
    embedding = float(shape.vocab_size * shape.hidden_size)
    block = max(shape.parameters - embedding * (1 if shape.tied else 2), 1.0) / shape.layers
    lanes = [tokens, *folds]
    streamed = weights == "streamed"
    published = _PUBLISHED_BYTES if item > _PUBLISHED_BYTES else 0
    # Weights. The files that resident weights are loaded from are mapped until the last weight is widened.
    one = max(block / 3, 1.0)  # the largest matrix of a block: its published pages stand beside the copy
    if streamed:
        held = 2 * block * item + one * _PUBLISHED_BYTES
        loading = embedding * (item + _PUBLISHED_BYTES)
    else:
        held = shape.parameters * item
        loading = shape.parameters * (item + published)
    copies = min(_WIDENED_WEIGHTS / _MATRICES, shape.layers) if not streamed else 1.0
    if widened:
        held += 4 * copies * block
    states = float(len(lanes) * n * shape.hidden_size * item)
    # Masks: none for a single chunk with sdpa, which is told that it is causal.
    mask = 1 if attn_implementation == "sdpa" else item
    tables = len(lanes) * 2.0 * n * shape.head_dim * item
    masks = sum((n * (n + size) / 2.0 if size < n or mask > 1 else 0.0) * mask for size in lanes)
    largest = max((float(size * n * mask) for size in lanes if size < n or mask > 1), default=0.0)
    calls = tables + masks if keeps_calls else largest
    # A block at work. Full attention takes the whole text at once: its feed-forward part is the widest.
    cache = 2.0 * n * shape.kv_heads * shape.head_dim * item
    wide, narrow = float(n * shape.intermediate_size), float(n * shape.hidden_size)
    heads = float(n * shape.heads * shape.head_dim)
    if widened:
        feeding = wide * (2 + 4 + 2) + narrow * (4 + 2 * item)
        attending = heads * (3 * item + 4 * 2 + item) + cache * (4 / item + 2)
    else:
        feeding = 3 * wide * item + 2 * narrow * item
        attending = 4 * heads * item + 2 * cache
    if attn_implementation == "eager":
        attending += float(shape.heads) * n * n * (4 + 2 * item)
    full = cache + max(feeding, attending)
    # A fold repeats the heads of its cache for the queries that share them.
    repeated = 2 * heads * (item + (4 if widened else 0)) if shape.heads > shape.kv_heads else 0.0
    at_work = max(full, len(lanes) * cache + repeated)
    comparing = max(2 * len(lanes) * cache, len(folds) * narrow * item) + 128 * min(_COMPARED, narrow)
    # Logits: full attention holds a slice, and each fold what of it has been compared last.
    rows = min(logit_rows, n)
    piece = [min(size, rows) if logit_stride == 1 else rows for size in folds]
    held_rows = (rows + sum(piece)) / logit_stride
    logits = held_rows * shape.vocab_size * item + 128 * min(_COMPARED, held_rows * shape.vocab_size)
    # A product stands beside what was compared before; one that was computed in float32, beside its rounding.
    logits += rows / logit_stride * shape.vocab_size * (4 if widened else item)
    outputs = embedding * (4 if widened else 0)
    if streamed:
        outputs += embedding * item
        held_then = 0.0
    else:
        held_then = held
    return Footprint(
        weights,
        keeps_calls,
        logit_rows,
        {
            "runtime": RUNTIME_BYTES if device == "cpu" else 0.0,
            "weights": held,
            "states": states,
            "calls": calls,
            "loading": loading if device == "cpu" or streamed else held,
            "block": at_work,
            "comparing": comparing,
            "logits": held_then + states + outputs + logits,
        },
    )


def _ways(weights: str) -> Iterator[tuple[str, bool, int]]:
    """Ways of running a descent, those that cost least time first."""
    for kept in ("resident", "streamed") if weights == "auto" else (weights,):
        yield kept, True, _LOGIT_ROWS
        yield kept, False, _LOGIT_ROWS
        rows = _LOGIT_ROWS // 2
        while rows >= _FEWEST_LOGIT_ROWS:
            yield kept, False, rows
            rows //= 2


def choose(
    shape: Sized,
    *,
    budget: float | None,
    weights: str = "auto",
    beside: Callable[[Footprint], float] = lambda way: 0.0,
    **descent: object,
) -> tuple[Footprint, bool]:
    """The quickest way of running a descent that stays within a budget.

    Parameters
    ----------
    shape : Sized
        The model's shape.
    budget : float, optional
        Bytes; without, the quickest way is taken.
    weights : str
        ``auto``, ``resident`` or ``streamed``.
    beside : callable
        Bytes that are taken by something else, if the descent is run that way.
    **descent
        As for :func:`footprint`.

    Returns
    -------
    Footprint, bool
        The way, and whether it fits. Where none does, the one that needs least.
    """
    ways = [
        footprint(shape, weights=kept, keeps_calls=calls, logit_rows=rows, **descent)  # type: ignore[arg-type]
        for kept, calls, rows in _ways(weights)
    ]
    fitting = ways if budget is None else [way for way in ways if way.bytes + beside(way) <= budget]
    return (fitting[0], True) if fitting else (min(ways, key=lambda way: way.bytes + beside(way)), False)


_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("kMGT", 1)}}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``24GiB``, ``500 MB`` or ``8e9``.

    Raises
    ------
    ConfigError
        If it is none.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): size for name, size in _UNITS.items()}
    try:
        if match is None or match[2].lower() not in units:
            raise ValueError
        size = int(float(match[1]) * units[match[2].lower()])
        if size <= 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no amount of memory; write 24GiB, 500MB or a number of bytes.") from None
    return size


def free(device: str) -> int | None:
    """Bytes that a device has free now; None where the system does not say."""
    if device != "cpu":
        import torch

        # What torch has reserved here is free for what comes next, once it is let go.
        return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) if torch.cuda.is_available() else None
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        available = int(found[1]) * 1024
        allowed = _control_group()
        return available if allowed is None else max(0, min(available, allowed))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _control_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the control group of this process (a container, a batch job) still allows; None without a limit."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rsplit(":", 1)[-1].lstrip("/")
        for folder in (root / own, root):
            limit, used = folder / "memory.max", folder / "memory.current"
            if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
                return int(text) - int(used.read_text(encoding="ascii"))
    except (OSError, ValueError):
        pass
    return None


def resident_bytes() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Return to the system what was freed in this process but kept by the C library, where that is glibc.

    It keeps freed tensors of up to 32 MB for reuse, in pieces that the next ones need not fit into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
