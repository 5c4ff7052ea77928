"""What becomes of a block's cache after a chain step: the protocol's own carrying, on a layer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.running.descent.taps import blank_embeddings, rotary_tables, text_config
from drift.running.protocols.base import Carried, Chunk, Protocol

__all__ = ["CarriedStep", "KeyRotation", "held_by"]


def held_by(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer of the cache that holds some."""
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


@dataclass(frozen=True)
class CarriedStep:
    """A chain step that a block has just taken, for a protocol to change the block's cache after it.

    Attributes
    ----------
    chunk : Chunk
        The pass.
    index : int
        The block, from 0.
    attention : Tensor or None
        [batch, query head, query, slot]: attention probabilities of the step, where the protocol asked for them.
    rotate : callable
        Moves keys of the block, see :class:`drift.running.protocols.base.Carried`.
    unit_roundoff : float
        Of the precision of the pass.
    """

    chunk: Chunk
    index: int
    attention: Tensor | None
    rotate: Callable[[Tensor, Tensor], Tensor]
    unit_roundoff: float

    def carry(self, protocol: Protocol, layer: Any, notes: dict[str, Any]) -> None:
        """Let the protocol change the layer; ``notes`` is its own memory of the block.

        Raises
        ------
        ProtocolError
            If the protocol leaves another number of slots than it says.
        """
        keys, values = held_by(layer)
        cache = Carried(
            keys=keys,
            values=values,
            step=self.chunk.step,
            block=self.index + 1,
            new=len(self.chunk),
            sliding=bool(layer.is_sliding),
            attention=self.attention,
            rotate=self.rotate,
            unit_roundoff=self.unit_roundoff,
            notes=notes,
        )
        protocol.carry(cache)
        protocol.check_carried(cache, keys.shape[-2])
        layer.keys, layer.values = cache.keys, cache.values


class KeyRotation:
    """Moves keys to other positions by the model's own tables, which are made when they are first needed.

    Parameters
    ----------
    model : PreTrainedModel
    device : torch.device
        Where its blocks compute.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._tables: list[tuple[Tensor, Tensor]] = []
        self._reach = -1

    def rotate(self, index: int, keys: Tensor, shift: Tensor, reach: int) -> Tensor:
        """Move keys [..., slot, feature] of block ``index`` by ``shift`` positions, int64 [slot], ``reach`` at most."""
        if reach > self._reach:
            width = int(text_config(self._model).hidden_size)
            like = torch.zeros((1, 1, width), dtype=self._model.dtype, device=self._device)
            # A text that goes on asks for one more position at every token: tables are made for twice as many then.
            self._reach = reach if self._reach < 0 else 2 * reach
            self._tables = rotary_tables(self._model, blank_embeddings(like, self._reach + 1))
        cos, sin = self._tables[index]
        width = cos.shape[-1]
        wide = keys[..., :width].to(torch.promote_types(keys.dtype, torch.float32))
        c = cos[shift.abs()].to(wide.dtype)
        s = (sin[shift.abs()] * shift.sign()[:, None]).to(wide.dtype)
        half = torch.cat([-wide[..., width // 2 :], wide[..., : width // 2]], dim=-1)
        return torch.cat([(wide * c + half * s).to(keys.dtype), keys[..., width:]], dim=-1)
