"""What a sweep reckons that the published size would take, and a cell of its own: kept beside what was measured."""

from __future__ import annotations

from typing import Any

from drift import _published as largest
from drift.running.checkpoints.names import Shape
from drift.running.sweep.cells import Cell
from drift.running.sweep.cost import fold_seconds
from drift.running.sweep.groups import shape_of
from drift.running.sweep.memory import task_footprint

__all__ = ["PUBLISHED", "reckoned"]

#: The model whose fold was published.
PUBLISHED = Shape(
    largest.LAYERS, largest.HIDDEN, largest.INTERMEDIATE, largest.HEADS, largest.KV_HEADS, largest.HEAD_DIM,
    largest.VOCABULARY, largest.PARAMETERS, largest.CONTEXT, False,
)  # fmt: skip
_SIZES = ("layers", "heads", "kv_heads", "head_dim", "parameters")  # what seconds and bytes of a fold grow with


def _taken(shape: Any, cell: Cell, tokens: int, dtype: str, device: str, half_matmul: str) -> dict[str, Any]:
    """What asking a text of so many tokens takes of a model of this shape, with the chunks and attention of a cell."""
    way: dict[str, Any] = {"dtype": dtype, "device": device, "half_matmul": half_matmul, "tokens": tokens}
    return {
        "shape": {name: int(getattr(shape, name)) for name in _SIZES},
        "memory_bytes": task_footprint(shape, attn_implementation=cell.attn_implementation, **way).bytes,
        "fold_seconds": fold_seconds(shape, chunk_size=cell.chunk_size, **way),
    }


def reckoned(cell: Cell) -> dict[str, Any]:
    """What :mod:`drift.running.sweep.memory` and :mod:`drift.running.sweep.cost` predict, not what was measured.

    Parameters
    ----------
    cell : Cell
        One that asks a task.

    Returns
    -------
    dict
        ``published``: ``tokens``, ``dtype``, ``device``, ``chunk_size`` and ``shape`` of the published fold, and what
        asking it would take there: ``memory_bytes``, full attention of the same text included, and ``fold_seconds``.
        ``own``: ``memory_bytes``, ``fold_seconds`` and ``shape`` of a text of this cell; left out where its model does
        not say its shape.
    """
    there = {"tokens": largest.TOKENS, "dtype": "bf16", "device": "cuda", "chunk_size": cell.chunk_size}
    found = {"published": {**there, **_taken(PUBLISHED, cell, largest.TOKENS, "bf16", "cuda", "native")}}
    shape = shape_of(cell.model, cell.checkpoint)
    if shape is not None:
        found["own"] = _taken(shape, cell, cell.tokens, cell.dtype, cell.device, cell.half_matmul)
    return found
