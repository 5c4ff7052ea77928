"""One tensor in a file, wherever the file has it: its place in the network, its bytes, and how rows of it are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drift.errors import DatasetError
from drift.reading.diagnose.formats import FORMATS, SIZES, STORED, decoded, written

__all__ = ["OF_HEADS", "Place", "Stored", "part", "squeezed", "with_heads", "without_batch"]

#: Kinds whose tensors have an axis of heads.
OF_HEADS = ("key", "value", "cache_key", "cache_value")
_FLAT = "If it is [token, head * feature], say how many heads: --heads N."


@dataclass(frozen=True, order=True)
class Place:
    """Where in the network a tensor is from: its kind, and its layer or block (0 for `final` and `logits`)."""

    kind: str
    block: int

    def __str__(self) -> str:
        """The place, in words."""
        if self.kind == "hidden":
            return "the embeddings" if self.block == 0 else f"the hidden state after block {self.block}"
        if self.kind in ("final", "logits"):
            return "the state after the final norm" if self.kind == "final" else "the logits"
        what = {"key": "keys", "value": "values", "cache_key": "cached keys", "cache_value": "cached values"}
        return f"the {what[self.kind]} of block {self.block}"


@dataclass(frozen=True)
class Stored:
    """One tensor in a file.

    Attributes
    ----------
    name : str
        As the file has it.
    path : Path
        The file.
    dtype : str
        Format of a number, as safetensors names it.
    shape : tuple of int
        As it is read: [..., token, feature].
    begin : int
        Byte of the file at which its first number lies.
    strides : tuple of int, optional
        Numbers from one item of an axis to the next; one after the other, the last axis fastest, by default.
    plus : Stored, optional
        A tensor of the same shape and format that is added: what engines with fused norms hand on is the pair.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    strides: tuple[int, ...] = ()
    plus: Stored | None = None

    @property
    def tokens(self) -> int:
        """Rows that it has."""
        return self.shape[-2]

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers from one item of each axis to the next."""
        return self.strides or tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    @property
    def axes(self) -> tuple[int, ...]:
        """Shape without the token axis."""
        return (*self.shape[:-2], *self.shape[-1:])

    def axis(self, axis: int, start: int, count: int) -> Stored:
        """Some items of an axis; the axis goes if `count` is 0."""
        steps = self.steps
        begin = self.begin + start * steps[axis] * SIZES.get(self.dtype, 1)
        if not count:
            shape, left = self.shape[:axis] + self.shape[axis + 1 :], steps[:axis] + steps[axis + 1 :]
        else:
            shape, left = (*self.shape[:axis], count, *self.shape[axis + 1 :]), steps
        plus = None if self.plus is None else self.plus.axis(axis, start, count)
        return replace(self, shape=shape, strides=left, begin=begin, plus=plus)

    def moved(self, source: int, target: int) -> Stored:
        """The same numbers with an axis elsewhere."""
        order = list(range(len(self.shape)))
        order.insert(target, order.pop(source))
        steps = self.steps
        plus = None if self.plus is None else self.plus.moved(source, target)
        return replace(
            self, shape=tuple(self.shape[i] for i in order), strides=tuple(steps[i] for i in order), plus=plus
        )

    def rows(self, raw: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Read some rows.

        Parameters
        ----------
        raw : ndarray of uint8
            The file's bytes.
        start, stop : int

        Returns
        -------
        ndarray of float32 or float64
            [..., row, feature].

        Raises
        ------
        ValueError, TypeError
            If they do not lie in the file.
        """
        some = self.axis(len(self.shape) - 2, start, stop - start)
        kind = np.dtype(STORED[self.dtype])
        steps = tuple(step * kind.itemsize for step in some.steps)
        return decoded(np.ndarray(some.shape, kind, raw, some.begin, steps), self.dtype)

    def added(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The sum of its own rows and those of `plus`, rounded to the format that both are stored in."""
        total = one + other
        return total if total.dtype.itemsize == SIZES[self.dtype] else written(total, FORMATS[self.dtype]).astype("f4")


def part(stored: Stored, tokens: tuple[int, int], total: int, which: tuple[int, int]) -> Stored | None:
    """One sequence's rows of a packed tensor; None where the pack has rows of others only.

    Parameters
    ----------
    stored : Stored
        Of a step.
    tokens : tuple of int
        First row of the sequence, and how many it has.
    total : int
        Rows of the step.
    which : tuple of int
        Which sequence it is, and of how many.
    """
    if stored.tokens == total:
        first, count = tokens
    elif stored.tokens == which[1]:
        first, count = which[0], 1
    else:
        return None
    return stored.axis(len(stored.shape) - 2, first, count)


def without_batch(stored: Stored, axes: int) -> Stored:
    """Drop a leading axis of 1 that is one more than there should be."""
    return stored.axis(0, 0, 0) if len(stored.shape) == axes + 1 and stored.shape[0] == 1 else stored


def with_heads(stored: Stored, heads: int, token_first: bool) -> Stored:
    """Keys or values in the layout that they are read in, whatever the file's.

    Raises
    ------
    DatasetError
        If no axis is that of so many heads.
    """
    shape = stored.shape
    if len(shape) == 4 or (len(shape) == 3 and heads > 1 and heads not in shape[:2]):
        stored = stored.axis(0, 0, 0) if shape[0] == 1 else stored
    shape = stored.shape
    if len(shape) == 2 and shape[1] % heads == 0:
        step, features = stored.steps, shape[1] // heads
        plain = replace(stored, shape=(shape[0], heads, features), strides=(step[0], features * step[1], step[1]))
        return plain.moved(1, 0)
    if len(shape) == 3 and shape[1] == heads and (token_first or shape[0] != heads):
        return stored.moved(1, 0)
    if len(shape) == 3 and shape[0] == heads:
        return stored
    raise DatasetError(
        f"{stored.path}: {stored.name} has shape {list(stored.shape)}, which is neither [head, token, feature], "
        f"[token, head, feature] nor [token, head * feature] of {heads} heads. Give the heads that keys and values "
        "have (of grouped queries, those of the cache), and dump one sequence at a time."
    )


def squeezed(stored: Stored, kind: str) -> Stored:
    """Drop a batch axis of 1, and refuse shapes that do not fit the kind.

    Raises
    ------
    DatasetError
        With the shape.
    """
    want = 3 if kind in OF_HEADS else 2
    found = without_batch(stored, want)
    if len(found.shape) != want or 0 in found.shape:
        axes = "[head, token, feature]" if want == 3 else "[token, feature]"
        raise DatasetError(
            f"{stored.path}: {stored.name} has shape {list(stored.shape)}; it must be {axes}, none of them 0, with at "
            "most a leading batch axis of 1. Dump one sequence at a time."
            + (f" {_FLAT}" if want == 3 and len(found.shape) == 2 else "")
        )
    return found
