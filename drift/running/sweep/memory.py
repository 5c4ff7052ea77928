"""How much memory a descent takes at its peak, and how to run it within a budget.

Worked out from the shape of the model: what is held throughout (weights, hidden states, masks), and the largest of what
comes and goes (loading, a block at work, a recorder that compares, logits). On a CPU the interpreter and the libraries
come on top (`runtime_bytes`, measured); on a GPU it is the device's memory that is counted.

No torch here, unless free memory of a GPU is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from drift.errors import ConfigError
from drift.running.limits import COMPARED_AT_ONCE, LOGIT_ROWS, WIDENED_WEIGHTS

__all__ = [
    "ITEM_BYTES",
    "Footprint",
    "Sized",
    "choose",
    "footprint",
    "free",
    "give_back",
    "parse_size",
    "resident_bytes",
    "runtime_bytes",
    "task_footprint",
]

ITEM_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4, "fp64": 8}
#: Interpreter, libraries, tokenizer and text: between 0.5 (a tiny tokenizer) and 0.65 GB were measured.
_RUNTIME = 0.56e9
#: More where torch was built for CUDA, whatever device computes: 0.30 to 0.32 GB were measured.
_CUDA_RUNTIME = 0.31e9
_BUILT_FOR_CUDA = re.compile(r"^cuda\b[^=\n]*= *['\"]", re.MULTILINE)
_PUBLISHED_BYTES = 2  # checkpoints are published in 16 bits
_FEWEST_LOGIT_ROWS = 128
_COPIED = 16 * 8  # bytes: about sixteen copies in float64 of what measures take at once
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


@functools.cache
def runtime_bytes() -> float:
    """What a process takes before it holds a model: more where the torch that is installed was built for CUDA."""
    found = importlib.util.find_spec("torch")  # which does not import it
    if found is None or not found.origin:
        return _RUNTIME
    try:
        text = Path(found.origin).with_name("version.py").read_text("utf-8")
    except (OSError, ValueError):
        return _RUNTIME
    return _RUNTIME + (_CUDA_RUNTIME if _BUILT_FOR_CUDA.search(text) else 0.0)


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
    logit_rows: int = LOGIT_ROWS,
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
    item = ITEM_BYTES[dtype]
    descent = _Descent(
        shape=shape,
        item=item,
        widened=device == "cpu" and half_matmul == "float32" and item == 2,
        eager=attn_implementation == "eager",
        mask_item=1 if attn_implementation == "sdpa" else item,
        streamed=weights == "streamed",
        tokens=tokens,
        folds=folds,
        logit_stride=logit_stride,
    )
    held, loading = descent.weights()
    return Footprint(
        weights,
        keeps_calls,
        logit_rows,
        {
            "runtime": runtime_bytes() if device == "cpu" else 0.0,
            "weights": held,
            "states": descent.states(),
            "calls": descent.calls(keeps_calls),
            "loading": loading if device == "cpu" or descent.streamed else held,
            "block": descent.block_at_work(),
            "comparing": descent.comparing(),
            "logits": (0.0 if descent.streamed else held) + descent.logits(logit_rows),
        },
    )


def task_footprint(
    shape: Sized,
    *,
    dtype: str,
    device: str,
    half_matmul: str,
    attn_implementation: str,
    tokens: int,
    weights: str = "resident",
) -> Footprint:
    """Work out the peak memory of asking a task: whole forward passes, one lane after the other.

    Parameters
    ----------
    shape, dtype, device, half_matmul, attn_implementation, weights
        As for :func:`footprint`.
    tokens : int
        Length of a prompt.
    """
    way = footprint(
        shape, dtype=dtype, device=device, half_matmul=half_matmul, attn_implementation=attn_implementation,
        tokens=tokens, folds=(), logit_stride=tokens, weights=weights, keeps_calls=False, logit_rows=1,
    )  # fmt: skip
    # Beside the cache of a text stands that of what it shares with the next one, where a branch moved away from it.
    caches = 2 * shape.layers * 2.0 * tokens * shape.kv_heads * shape.head_dim * ITEM_BYTES[dtype]
    return replace(way, parts=way.parts | {"states": way.parts["states"] + caches, "comparing": 0.0})


@dataclass(frozen=True)
class _Descent:
    """What a descent holds, in bytes, by what takes them."""

    shape: Sized
    item: int
    widened: bool  # 16-bit products are computed in float32
    eager: bool
    mask_item: int
    streamed: bool
    tokens: int
    folds: Sequence[int]
    logit_stride: int

    @property
    def _lanes(self) -> list[int]:
        return [self.tokens, *self.folds]

    @property
    def _embedding(self) -> float:
        return float(self.shape.vocab_size * self.shape.hidden_size)

    @property
    def _narrow(self) -> float:
        return float(self.tokens * self.shape.hidden_size)

    @property
    def _cache(self) -> float:
        """Keys and values of one lane."""
        return 2.0 * self.tokens * self.shape.kv_heads * self.shape.head_dim * self.item

    def weights(self) -> tuple[float, float]:
        """What is held throughout, and what is held while loading."""
        shape, item, embedding = self.shape, self.item, self._embedding
        block = max(shape.parameters - embedding * (1 if shape.tied else 2), 1.0) / shape.layers
        if self.streamed:
            one = max(block / 3, 1.0)  # the largest matrix of a block: its published pages stand beside the copy
            held = 2 * block * item + one * _PUBLISHED_BYTES
            loading = embedding * (item + _PUBLISHED_BYTES)
        else:
            # The files that resident weights are loaded from are mapped until the last weight is widened.
            published = _PUBLISHED_BYTES if item > _PUBLISHED_BYTES else 0
            held = shape.parameters * item
            loading = shape.parameters * (item + published)
        if self.widened:
            copies = min(WIDENED_WEIGHTS / _MATRICES, shape.layers) if not self.streamed else 1.0
            held += 4 * copies * block
        return held, loading

    def states(self) -> float:
        """Hidden states of all lanes."""
        return float(len(self._lanes) * self.tokens * self.shape.hidden_size * self.item)

    def calls(self, kept: bool) -> float:
        """Masks and rotary tables: all of them, or the largest mask where they are made again for every block."""
        n, mask = self.tokens, self.mask_item
        # No mask for a single chunk with sdpa, which is told that it is causal.
        masked = [size for size in self._lanes if size < n or mask > 1]
        if not kept:
            return max((float(size * n * mask) for size in masked), default=0.0)
        tables = len(self._lanes) * 2.0 * n * self.shape.head_dim * self.item
        return tables + sum(n * (n + size) / 2.0 * mask for size in masked)

    def block_at_work(self) -> float:
        """A block at work. Full attention takes the whole text at once: its feed-forward part is the widest."""
        n, item, shape = self.tokens, self.item, self.shape
        cache, narrow = self._cache, self._narrow
        wide = float(n * shape.intermediate_size)
        heads = float(n * shape.heads * shape.head_dim)
        if self.widened:
            feeding = wide * (2 + 4 + 2) + narrow * (4 + 2 * item)
            attending = heads * (3 * item + 4 * 2 + item) + cache * (4 / item + 2)
        else:
            feeding = 3 * wide * item + 2 * narrow * item
            attending = 4 * heads * item + 2 * cache
        if self.eager:
            attending += float(shape.heads) * n * n * (4 + 2 * item)
        full = cache + max(feeding, attending)
        # A fold repeats the heads of its cache for the queries that share them.
        repeated = 2 * heads * (item + (4 if self.widened else 0)) if shape.heads > shape.kv_heads else 0.0
        return max(full, len(self._lanes) * cache + repeated)

    def comparing(self) -> float:
        """A recorder that compares caches or hidden states."""
        narrow = self._narrow
        held = max(2 * len(self._lanes) * self._cache, len(self.folds) * narrow * self.item)
        return held + _COPIED * min(COMPARED_AT_ONCE, narrow)

    def logits(self, most_rows: int) -> float:
        """Logits, beside the states: full attention holds a slice, each fold what of it has been compared last."""
        item, stride, vocabulary = self.item, self.logit_stride, self.shape.vocab_size
        rows = min(most_rows, self.tokens)
        piece = [min(size, rows) if stride == 1 else rows for size in self.folds]
        held_rows = (rows + sum(piece)) / stride
        logits = held_rows * vocabulary * item + _COPIED * min(COMPARED_AT_ONCE, held_rows * vocabulary)
        # A product stands beside what was compared before; one that was computed in float32, beside its rounding.
        logits += rows / stride * vocabulary * (4 if self.widened else item)
        outputs = self._embedding * (4 if self.widened else 0)
        if self.streamed:
            outputs += self._embedding * item
        return self.states() + outputs + logits


def _ways(weights: str) -> Iterator[tuple[str, bool, int]]:
    """Ways of running a descent, those that cost least time first."""
    for kept in ("resident", "streamed") if weights == "auto" else (weights,):
        yield kept, True, LOGIT_ROWS
        yield kept, False, LOGIT_ROWS
        rows = LOGIT_ROWS // 2
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
