"""What becomes of a block's cache after a chain step: the protocol's own carrying, on a layer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import TapeCache, keeps_slots, states_of
from drift.running.descent.decoders import blocks_of, driving_of, new_cache, text_config
from drift.running.descent.taps import Taps, rotary_tables
from drift.running.model.weights import weights_of
from drift.running.protocols.base import Carried, CarriedStates, Chunk, Protocol

__all__ = ["CarriedStep", "KeyRotation", "held_by"]

#: Keys that are moved to see whether that is a rotation, and by how many positions.
_FEW, _MOVED = 4, 3
#: Most that moved keys may be off, in unit roundoffs: they, the tables and the keys they stand for are rounded.
_ROUNDINGS = 16


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
        if protocol.carries_states and (states := states_of(layer)):
            held = CarriedStates([*states], self.chunk.step, self.index + 1, self.unit_roundoff)
            protocol.carry_states(held)
            for state, new in zip(states, held.states, strict=True):
                state.copy_(new)
        if not keeps_slots(layer):
            return
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
        self._borne_out: set[int] = set()

    def rotate(self, index: int, keys: Tensor, shift: Tensor, reach: int) -> Tensor:
        """Move keys [..., slot, feature] of block ``index`` by ``shift`` positions, int64 [slot], ``reach`` at most."""
        plain = driving_of(self._model).plain
        if reach > self._reach:
            if self._reach < 0 and not plain:
                self._made(_FEW + _MOVED)  # where there are none to be had, that is said before a long text is tried
            # A text that goes on asks for one more position at every token: tables are made for twice as many then.
            self._reach = reach if self._reach < 0 else 2 * reach
            self._tables = self._made(self._reach + 1)
        if not plain and index not in self._borne_out:
            self._bear_out(index)
            self._borne_out.add(index)
        return self._moved(index, keys, shift)

    def _made(self, positions: int) -> list[tuple[Tensor, Tensor]]:
        """Tables of the first positions."""
        width = int(text_config(self._model).hidden_size)
        like = torch.zeros((1, 1, width), dtype=self._model.dtype, device=self._device)
        return rotary_tables(self._model, like, positions)

    def _moved(self, index: int, keys: Tensor, shift: Tensor) -> Tensor:
        cos, sin = self._tables[index]
        width = cos.shape[-1]
        wide = keys[..., :width].to(torch.promote_types(keys.dtype, torch.float32))
        c = cos[shift.abs()].to(wide.dtype)
        s = (sin[shift.abs()] * shift.sign()[:, None]).to(wide.dtype)
        half = torch.cat([-wide[..., width // 2 :], wide[..., : width // 2]], dim=-1)
        return torch.cat([(wide * c + half * s).to(keys.dtype), keys[..., width:]], dim=-1)

    def _bear_out(self, index: int) -> None:
        """Refuse to move keys of a block that does not rotate them so: the block's own keys elsewhere say it."""
        model = self._model
        ids = torch.full((1, _FEW), driving_of(model).token, device=self._device)
        keys = []
        with weights_of(model).embedding():
            taps = Taps(model)
            states, _ = taps.run(new_cache(model), ids, 0)
            # States that differ from token to token, so that no token stands for another.
            states = states * torch.linspace(1, 2, _FEW, device=self._device, dtype=states.dtype)[:, None]
            for first in (0, _MOVED):
                _, calls = taps.run(new_cache(model), ids, first)
                tape = new_cache(model, TapeCache, index=index, attentions=driving_of(model).attentions)
                args, kwargs = calls[index].given(tape, (None,) * driving_of(model).outputs, {})
                blocks_of(model)[index](driving_of(model).streams.parted(states), *args, **kwargs)
                keys.append(tape.appended[0][0])
        off = float("inf")
        if self._tables[index][0].shape[-1] <= keys[0].shape[-1]:
            moved = self._moved(index, keys[0], torch.full((_FEW,), _MOVED, device=self._device))
            off = float((moved - keys[1]).to(torch.float64).norm() / keys[1].to(torch.float64).norm())
        if not off <= _ROUNDINGS * torch.finfo(keys[1].dtype).eps / 2:
            raise UnsupportedModelError(
                f"{type(model).__name__}: block {index} does not rotate its keys in the layout of two halves without "
                f"scaling (moved so, they are off by {off:.2g} of their norm), so cached keys cannot be moved to other "
                "positions. Chunked inference is possible with it: protocols that leave keys where they are work "
                "(append, and streaming with positions=text)."
            )
