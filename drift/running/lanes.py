"""Which lanes a set of folds needs, and where each of them continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from drift.dataset.rungs import rung
from drift.running.descent.lanes import Lane
from drift.running.model.numerics import numerics
from drift.running.model.weights import weights_of
from drift.running.protocols import parse
from drift.running.protocols.base import Chunk, Protocol, Variation
from drift.running.protocols.decode import Decode
from drift.running.recording import Comparison

__all__ = ["FoldRequest", "LaneTable", "generated_continuation"]


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
        parsed = parse(protocol)
        parsed.check_reference(reference)
        return cls(size, parsed, parsed.bind(bos), reference)

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
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    given = text
    with weights_of(model).whole():
        for _ in range(protocol.continuation()):
            logits = model(given[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]
            given = protocol.choose(logits, torch.tensor([len(text) - 1])).to(text)
            text = torch.cat([text, given])
    return text


class LaneTable:
    """The lanes that a set of comparisons needs, each of them once. Lane 0 is full attention."""

    def __init__(self, text: Tensor, model: PreTrainedModel, wide: PreTrainedModel) -> None:
        self._text = text
        self._wide = wide
        self._device = str(text.device)
        self._own = model
        self.lanes: list[Lane] = []
        self._places: dict[object, int] = {}

    def comparison(self, fold: FoldRequest) -> Comparison:
        """Find or make the lanes of a comparison."""
        n = len(self._text)
        full = self._full(fold, False)
        lane = self._fold(fold.bound, fold.size, False)
        reference: int | None = full
        parts = None
        if fold.reference == "gold":
            reference = self._full(fold, True)
            parts = full, self._fold(fold.bound, fold.size, True)
        elif fold.reference == "fold64":
            reference = self._fold(fold.bound, fold.size, True)
        elif fold.reference == "previous":
            reference = None
        elif fold.reference == "unperturbed":
            assert isinstance(fold.bound, Variation)
            reference = self._fold(fold.bound.protocol, fold.size, False)
        choose = fold.bound.choose if isinstance(fold.bound, Decode) else None
        return Comparison(lane, reference, fold.bound.starts(n, fold.size), parts, choose)

    def _full(self, fold: FoldRequest, in_float64: bool) -> int:
        chunks = fold.bound.reference_chunks(len(self._text))
        return self._lane(("full", in_float64), in_float64, chunks, None)

    def _fold(self, bound: Protocol, size: int, in_float64: bool) -> int:
        chunks = bound.chunks(len(self._text), size)
        return self._lane((bound, size, in_float64), in_float64, chunks, bound)

    def _lane(self, key: object, in_float64: bool, chunks: tuple[Chunk, ...], protocol: Protocol | None) -> int:
        if key not in self._places:
            self._places[key] = len(self.lanes)
            batch = protocol.texts_at_once if protocol is not None else 1
            others = tuple(self._text.roll(-(len(self._text) * i // batch)) for i in range(1, batch))
            lane = Lane(self._text, chunks, protocol, companions=others)
            if in_float64:
                scope = partial(numerics, rung("fp64"), self._device)
                lane = replace(lane, model=self._wide, scope=scope)
            self.lanes.append(lane)
        return self._places[key]
