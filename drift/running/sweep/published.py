"""What a sweep reckons that the published size would take, and a cell of its own: kept beside what was measured."""

from __future__ import annotations

from drift.running.checkpoints.names import Shape
from drift.running.sweep.cells import Cell
from drift.running.sweep.cost import fold_seconds
from drift.running.sweep.groups import shape_of
from drift.running.sweep.memory import Sized, task_footprint

__all__ = ["PUBLISHED", "PUBLISHED_TOKENS", "reckoned"]

#: Llama 3.1 8B, and how many tokens of it were published as folded.
PUBLISHED = Shape(32, 4096, 14336, 32, 8, 128, 128_256, 8_030_261_248, 131_072, False)
PUBLISHED_TOKENS = 131_072
_ON_A_GPU = {"dtype": "bf16", "device": "cuda", "half_matmul": "native"}
_SIZES = ("layers", "heads", "kv_heads", "head_dim", "parameters")  # what seconds and bytes of a fold grow with


def _sizes(shape: Sized) -> dict[str, int]:
    return {name: int(getattr(shape, name)) for name in _SIZES}


def reckoned(cell: Cell) -> dict[str, object]:
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
    given = {"attn_implementation": cell.attn_implementation}
    size = {"chunk_size": cell.chunk_size}
    found: dict[str, object] = {
        "published": {
            "tokens": PUBLISHED_TOKENS,
            "shape": _sizes(PUBLISHED),
            "dtype": _ON_A_GPU["dtype"],
            "device": _ON_A_GPU["device"],
            **size,
            "memory_bytes": task_footprint(PUBLISHED, tokens=PUBLISHED_TOKENS, **_ON_A_GPU, **given).bytes,
            "fold_seconds": fold_seconds(PUBLISHED, tokens=PUBLISHED_TOKENS, **_ON_A_GPU, **size),
        }
    }
    shape = shape_of(cell.model, cell.checkpoint)
    if shape is not None:
        way = {"dtype": cell.dtype, "device": cell.device, "half_matmul": cell.half_matmul}
        found["own"] = {
            "shape": _sizes(shape),
            "memory_bytes": task_footprint(shape, tokens=cell.tokens, **way, **given).bytes,
            "fold_seconds": fold_seconds(shape, tokens=cell.tokens, **way, **size),
        }
    return found
