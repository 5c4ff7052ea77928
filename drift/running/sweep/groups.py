"""Cells that share a descent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from drift.errors import CheckpointError
from drift.running.checkpoints import shapes
from drift.running.sweep.cells import Cell
from drift.running.sweep.cost import Cost, group_cost, task_cost
from drift.running.sweep.memory import Footprint, Sized, choose, footprint, task_footprint

__all__ = ["Group", "shape_of"]


@dataclass(frozen=True)
class Group:
    """Cells that one descent computes: folds of the same texts through the same weights."""

    cells: tuple[Cell, ...]

    @property
    def subject(self) -> str:
        """What descends, and where."""
        cell = self.cells[0]
        return f"{cell.label} {cell.dtype} on {cell.device} ({cell.attn_implementation})"

    @property
    def title(self) -> str:
        """One line for progress reports."""
        cell = self.cells[0]
        folds = ", ".join(f"{c.protocol}/{c.chunk_size}" for c in self.cells)
        if all(c.control for c in self.cells):
            folds = "controls"
        size = f"{cell.documents} x {cell.tokens} tokens of {cell.corpus}"
        if cell.task:
            size = f"{cell.task} in {cell.documents} x {cell.tokens} tokens"
        return f"{self.subject}, {size}: {folds}"

    def way(self, budget: float | None = None) -> tuple[Footprint, bool] | None:
        """How to run the descent within a budget [bytes], and whether it fits; None where the shape is not known.

        Its bytes are those of everything, a float64 copy of the model included.
        """
        cell = self.cells[0]
        shape = shape_of(cell.model, cell.checkpoint)
        if shape is None:
            return None
        asked = next((c.kept for c in self.cells if c.kept != "auto"), "auto")
        if cell.task:
            return self._way_of_asking(shape, asked, budget)
        given: dict[str, Any] = {
            "device": cell.device,
            "attn_implementation": cell.attn_implementation,
            "tokens": cell.tokens,
            "logit_stride": cell.logit_stride,
            "weights": asked,
        }
        narrow, wide = self._folds()
        own: dict[str, Any] = {"dtype": cell.dtype, "half_matmul": cell.half_matmul, "folds": narrow}
        if not wide:
            return choose(shape, budget=budget, **given, **own)
        # The same model stands beside itself in float64, and is kept in the same way.
        for kept in ("resident", "streamed") if given["weights"] == "auto" else (given["weights"],):
            wanted = given | {"weights": kept}

            def beside(way: Footprint, wanted: dict[str, Any] = wanted) -> float:
                run = wanted | {"keeps_calls": way.keeps_calls, "logit_rows": way.logit_rows}
                extra = footprint(shape, dtype="fp64", half_matmul="native", folds=wide, **run)
                return extra.bytes - extra.parts["runtime"]

            way, fits = choose(shape, budget=budget, beside=beside, **wanted, **own)
            if fits:
                break
        return replace(way, parts=way.parts | {"runtime": way.parts["runtime"] + beside(way)}), fits

    def _way_of_asking(self, shape: Sized, asked: str, budget: float | None) -> tuple[Footprint, bool]:
        """How to ask a task: with all weights in memory, if that fits, or read block by block."""
        cell = self.cells[0]
        ways = [
            task_footprint(
                shape, dtype=cell.dtype, device=cell.device, half_matmul=cell.half_matmul,
                attn_implementation=cell.attn_implementation, tokens=cell.tokens, weights=kept,
            )
            for kept in (("resident", "streamed") if asked == "auto" else (asked,))
        ]  # fmt: skip
        fitting = [way for way in ways if budget is None or way.bytes <= budget]
        return (fitting[0], True) if fitting else (min(ways, key=lambda way: way.bytes), False)

    def _folds(self) -> tuple[list[int], list[int]]:
        """Chunk sizes of the folds on the cells' own rung, draws of the floor among them, and of those in float64."""
        lanes = {(c.protocol, c.chunk_size) for c in self.cells}
        lanes |= {(f"{c.protocol} unperturbed", c.chunk_size) for c in self.cells if c.reference == "unperturbed"}
        wide = {(c.protocol, c.chunk_size) for c in self.cells if c.reference in ("gold", "fold64")}
        draws = [self.cells[0].tokens] * self.cells[0].floor_draws
        return [*(size for _, size in sorted(lanes)), *draws], [size for _, size in sorted(wide)]

    def cost(self, budget: float | None = None) -> Cost | None:
        """Estimate the descent; None where the model's shape is not known yet."""
        cell = self.cells[0]
        found = self.way(budget)
        if found is None:
            return None
        shape = shape_of(cell.model, cell.checkpoint)
        if cell.task:
            return task_cost(
                shape, dtype=cell.dtype, device=cell.device, half_matmul=cell.half_matmul, documents=cell.documents,
                questions=cell.questions, tokens=cell.tokens, folds=[c.chunk_size for c in self.cells], way=found[0],
            )  # fmt: skip
        given: dict[str, Any] = {
            "device": cell.device,
            "documents": cell.documents,
            "tokens": cell.tokens,
            "logit_stride": cell.logit_stride,
            "way": found[0],
        }
        narrow, wide = self._folds()
        cost = group_cost(shape, dtype=cell.dtype, half_matmul=cell.half_matmul, folds=narrow, **given)
        if not wide:
            return cost
        extra = group_cost(shape, dtype="fp64", half_matmul="native", folds=wide, **given)
        return replace(cost, seconds=cost.seconds + extra.seconds)


@lru_cache(maxsize=256)
def shape_of(model: str, identity: str) -> Any:
    """The model's shape, None where it is not known. `identity` is only there to notice other weights of that name."""
    try:
        return shapes.shape(model)
    except CheckpointError:  # weights cut short: loading them will say so, and only their cells fail
        return None
