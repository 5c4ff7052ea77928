"""One cell of a plan: its settings, its hash, its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from drift.dataset.hashing import content_hash
from drift.running.protocols.full import floor_record

__all__ = ["Cell"]

#: Letters of the name of a cell's file before its hash: names may have 255 bytes, of which temporary files need some.
_MOST_WORDS = 160


@dataclass(frozen=True)
class Cell:
    """One point of the sweep: one file.

    Attributes
    ----------
    model : str
        As resolved by :func:`drift.running.checkpoints.resolving.resolve`; `label` is its short form.
    protocol : str
        Canonical label.
    reference : str
        What the fold is compared with.
    control : str
        ``quiet``, ``floor`` or ``fires``, see :mod:`drift.running.sweep.control_cells`; empty for a cell
        that was asked for.
    floor_draws : int
        Draws of the rounding floor.
    device : str
        ``cpu`` or ``cuda``; never ``auto``.
    half_matmul : str
        Resolved; ``native`` on the rungs it does not bear on.
    checkpoint, text : str
        sha256 of the weights with tokenizer and config, and of the corpus.
    versions : tuple of (str, str)
        What else the numbers depend on.
    beyond_context : bool
        Whether longer texts than the model's context are allowed. A permission, not part of the identity.
    kept : str
        ``auto``, ``resident`` or ``streamed``: where the weights may lie. The numbers are the same.
    only : tuple of int
        The documents to compute, all by default. What is computed of them is the same.
    task : str
        Canonical label of the task that is asked; empty for a cell that measures drift. Then `corpus` is the haystack.
    questions : int
        Most questions of a text of a task.
    """

    model: str
    label: str
    family: str
    dtype: str
    chunk_size: int
    protocol: str
    documents: int
    tokens: int
    corpus: str
    attn_implementation: str
    device: str
    logit_stride: int
    half_matmul: str
    seed: int
    checkpoint: str
    text: str
    versions: tuple[tuple[str, str], ...]
    reference: str = "full"
    control: str = ""
    floor_draws: int = 0
    beyond_context: bool = field(default=False, compare=False)
    kept: str = field(default="auto", compare=False)
    only: tuple[int, ...] = field(default=(), compare=False)
    task: str = ""
    questions: int = 0

    @property
    def axes(self) -> dict[str, str | int]:
        """The values a person chose, by axis."""
        compared = ("dtype", "chunk_size", "protocol", "reference")
        texts = ("documents", "tokens", "corpus")
        names = (*compared, *texts, "attn_implementation", "device")
        options = ("task", "questions", "half_matmul", "seed") if self.task else ("logit_stride", "half_matmul", "seed")
        return {"model": self.label, **{name: getattr(self, name) for name in (*names, *options)}}

    @cached_property
    def record(self) -> dict[str, Any]:
        """Everything the numbers in the cell depend on; its hash is the cell's identity."""
        # What most cells do without is left out, so that it is no part of their hash.
        rare: dict[str, Any] = {"control": self.control} if self.control else {}
        rare |= {"floor": floor_record(self.floor_draws)} if self.floor_draws else {}
        axes = {name: value for name, value in self.axes.items() if (name, value) != ("reference", "full")}
        return {
            **axes,
            **rare,
            "checkpoint_sha256": self.checkpoint,
            "corpus_sha256": self.text,
            "versions": dict(self.versions),
        }

    @cached_property
    def hash(self) -> str:
        """sha256 of :attr:`record` as canonical JSON."""
        return content_hash(self.record)

    @property
    def file(self) -> str:
        """Name of the cell's file."""
        protocol = re.sub(r"[^A-Za-z0-9]+", "-", self.protocol).strip("-")
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.") or "model"
        reference = "" if self.reference == "full" else f"_{self.reference}"
        words = f"{label}_{self.dtype}_{protocol}{reference}_c{self.chunk_size}"
        if self.task:
            asked = re.sub(r"[^A-Za-z0-9]+", "-", self.task).strip("-")
            words = f"{label}_{self.dtype}_{asked}_{protocol}_c{self.chunk_size}_t{self.tokens}"
        return f"{words[:_MOST_WORDS]}_{self.hash[:16]}.nc"  # the hash tells apart what is cut

    @property
    def descent(self) -> tuple[object, ...]:
        """Cells with the same value share one descent, or the same questions."""
        text = (self.documents, self.tokens, self.corpus, self.seed)
        if self.task:
            # Neither the size of chunks nor the protocol changes what full attention answers.
            return (*self.weights, *text, self.half_matmul, self.task, self.questions)
        return (*self.weights, *text, self.logit_stride, self.half_matmul, self.floor_draws)

    @property
    def weights(self) -> tuple[object, ...]:
        """Cells with the same value share the model in memory."""
        return (self.model, self.dtype, self.attn_implementation, self.device)

    def __str__(self) -> str:
        against = "" if self.reference == "full" else f" against {self.reference}"
        words = f"{self.label} {self.dtype} {self.protocol}{against} chunk {self.chunk_size}"
        return f"{words}, {self.task} in {self.tokens} tokens" if self.task else words
