"""Which lanes a set of folds needs, and where each of them continues."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift import _arguments as arguments
from drift._bounds import MOST_TOKENS
from drift.dataset.contract import FLOORS
from drift.dataset.rungs import Rung, rung
from drift.errors import ArgumentError
from drift.running.descent.decoders import cache_argument, carries_states, new_cache, takes
from drift.running.descent.lanes import Lane
from drift.running.limits import STATE_STEPS
from drift.running.model.numerics import numerics
from drift.running.model.weights import weights_of
from drift.running.noise import EmbeddingNoise
from drift.running.protocols import parse
from drift.running.protocols.base import Chunk, Protocol, Variation
from drift.running.protocols.decode import Decode
from drift.running.protocols.full import floor_draw
from drift.running.recording import Comparison

__all__ = ["FoldRequest", "LaneTable", "embedding_noise", "generated_continuation"]


@dataclass(frozen=True)
class FoldRequest:
    """One fold as it was asked for."""

    size: int
    protocol: Protocol
    bound: Protocol
    reference: str

    @classmethod
    def of(cls, fold: Sequence[Any], bos: Callable[[], int | None]) -> FoldRequest:
        """Read ``(chunk size, protocol)`` or ``(chunk size, protocol, reference)``."""
        size, protocol, reference = (*fold, "full") if len(fold) == 2 else fold
        arguments.whole("chunk_size", size, 1, MOST_TOKENS)
        parsed = parse(protocol)
        parsed.check_reference(arguments.text("reference", reference))
        return cls(int(size), parsed, parsed.bind(bos), reference)

    @staticmethod
    def listed(folds: Any) -> list[Sequence[Any]]:
        """Folds as :meth:`of` reads them; refused where they are none.

        Raises
        ------
        ArgumentError
        """
        if isinstance(folds, str) or not isinstance(folds, Sequence):
            raise ArgumentError(f"folds is a {type(folds).__name__}; it must be a list of (chunk_size, protocol).")
        if not folds:
            raise ArgumentError("No fold was asked for: give at least one (chunk_size, protocol).")
        for place, fold in enumerate(folds):
            if isinstance(fold, str) or not isinstance(fold, Sequence) or len(fold) not in (2, 3):
                raise ArgumentError(
                    f"folds[{place}] is {fold!r:.60}; it must be (chunk_size, protocol) or (chunk_size, protocol, "
                    "reference)."
                )
        return list(folds)

    @property
    def continued(self) -> Decode | None:
        """What decides the continuation of the text: nothing of the fold, but how tokens are chosen."""
        if not isinstance(self.bound, Decode) or not self.bound.continuation():
            return None
        return replace(self.bound, protocol=parse("append"))

    @property
    def needs_float64(self) -> bool:
        """Whether a lane runs in float64."""
        return self.reference in ("gold", "fold64")


def generated_continuation(model: PreTrainedModel, text: Tensor, protocol: Decode) -> Tensor:
    """The text [token] and the continuation that full attention generates."""
    cache = new_cache(model)
    name = cache_argument(model)
    last: dict[str, Any] = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    given = text
    with weights_of(model).whole():
        for _ in range(protocol.continuation()):
            logits = model(given[None], **{name: cache}, use_cache=True, **last).logits[0, -1:]
            given = protocol.choose(logits, torch.tensor([len(text) - 1])).to(text)
            text = torch.cat([text, given])
    return text


class LaneTable:
    """The lanes that a set of comparisons needs, each of them once. Lane 0 is full attention.

    Parameters
    ----------
    text : Tensor
        int64 [token].
    model, wide : PreTrainedModel
        The model, and the same one in float64 where a lane needs it.
    dtype : Rung
        What `model` computes in.
    """

    def __init__(self, text: Tensor, model: PreTrainedModel, wide: PreTrainedModel, dtype: Rung) -> None:
        self._text = text
        self._wide = wide
        self._dtype = dtype
        self._device = str(text.device)
        self._recurs = carries_states(model)
        self.lanes: list[Lane] = []
        self._places: dict[object, int] = {}

    def comparison(self, fold: FoldRequest) -> Comparison:
        """Find or make the lanes of a comparison."""
        full = self._full(fold.bound, False)
        lane = self._fold(fold.bound, fold.size, False)
        reference: int | None = full
        parts = None
        if fold.reference == "gold":
            reference = self._full(fold.bound, True)
            parts = full, self._fold(fold.bound, fold.size, True)
        elif fold.reference == "fold64":
            reference = self._fold(fold.bound, fold.size, True)
        elif fold.reference == "previous":
            reference = None
        elif fold.reference == "unperturbed":
            assert isinstance(fold.bound, Variation)
            reference = self._fold(fold.bound.protocol, fold.size, False)
        choose = fold.bound.choose if isinstance(fold.bound, Decode) else None
        starts = self._starts(fold)
        return Comparison(lane, reference, starts, parts, choose, stops=self._stops(starts, lane, reference))

    def floor(self, fold: FoldRequest, seed: int) -> Comparison:
        """Find or make the lanes of a draw of the rounding floor, over the steps of a fold.

        Whatever the fold is compared with, its floor is that of full attention on the rung that the fold computes on.
        """
        full = self._full(fold.bound, False)
        lane = self._lane(fold.bound.reference_chunks(len(self._text)), floor_draw(seed), False)
        starts = self._starts(fold)
        return Comparison(lane, full, starts, only=frozenset(FLOORS), stops=self._stops(starts, lane, full))

    def _stops(self, starts: tuple[int, ...], lane: int, reference: int | None) -> tuple[int, ...]:
        """Where the recurrent states of two lanes are compared: nowhere, if there are none, or too many steps."""
        if not self._recurs or reference is None or len(starts) > STATE_STEPS:
            return ()
        stops = (*starts[1:], len(self._text))
        self._mark(stops, lane, reference)
        return stops

    def _mark(self, stops: Sequence[int], *lanes: int) -> None:
        """Have lanes tell their states at the ends of steps."""
        for place in lanes:
            marks = tuple(sorted({*self.lanes[place].marks, *stops}))
            self.lanes[place] = replace(self.lanes[place], marks=marks)

    def _starts(self, fold: FoldRequest) -> tuple[int, ...]:
        return fold.bound.starts(len(self._text), fold.size)

    def _full(self, bound: Protocol, in_float64: bool) -> int:
        return self._lane(bound.reference_chunks(len(self._text)), None, in_float64)

    def _fold(self, bound: Protocol, size: int, in_float64: bool) -> int:
        source = self._full(bound, in_float64) if bound.takes_full_cache else None
        chunks = bound.chunks(len(self._text), size)
        if source is not None and self._recurs:
            self._mark([chunk.stop for chunk in chunks], source)
        return self._lane(chunks, bound, in_float64, source)

    def _lane(
        self, chunks: tuple[Chunk, ...], protocol: Protocol | None, in_float64: bool, source: int | None = None
    ) -> int:
        key = chunks, protocol, in_float64
        if key not in self._places:
            self._places[key] = len(self.lanes)
            batch = protocol.texts_at_once if protocol is not None else 1
            others = tuple(self._text.roll(-(len(self._text) * i // batch)) for i in range(1, batch))
            own = rung("fp64") if in_float64 else self._dtype
            lane = Lane(
                self._text,
                chunks,
                protocol,
                companions=others,
                noise=embedding_noise(protocol, self._text, own),
                source=source,
                unit_roundoff=own.unit_roundoff,
            )
            if in_float64:
                lane = replace(lane, model=self._wide, scope=partial(numerics, own, self._device))
            self.lanes.append(lane)
        return self._places[key]


def embedding_noise(protocol: Protocol | None, text: Tensor, dtype: Rung) -> EmbeddingNoise | None:
    """The noise that a protocol puts on embeddings; texts of different tokens get different noise.

    Parameters
    ----------
    protocol : Protocol, optional
    text : Tensor
        int64 [token].
    dtype : Rung
        What is computed in: noise is in its unit roundoffs.
    """
    if protocol is None or protocol.embedding_noise is None:
        return None
    size, seed = protocol.embedding_noise
    digest = hashlib.sha256(text.cpu().numpy().astype("<i8").tobytes()).digest()
    return EmbeddingNoise(size * dtype.unit_roundoff, (seed, *np.frombuffer(digest, dtype="<u4").tolist()))
