"""Caches whose branches share the keys and values that they have in common."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from drift.running.descent.caches import branched, carried_tensors, keeps_states

__all__ = ["FoldCache", "SharedLayer"]

_GROWTH = 0.25  # of its length, is what a room that is full is made longer by


class _Room:
    """Memory for the keys and values of one block. Several layers may share it: each holds its first slots."""

    def __init__(self, keys: Tensor, values: Tensor, slots: int) -> None:
        self.keys, self.values = self._wider(keys, slots), self._wider(values, slots)
        self.layers: WeakSet[SharedLayer] = WeakSet()

    @staticmethod
    def _wider(x: Tensor, slots: int) -> Tensor:
        # No tensor of inference mode: those may not be written to by whoever goes on with the cache outside of it.
        with torch.inference_mode(False):
            room = torch.empty((*x.shape[:-2], slots, x.shape[-1]), dtype=x.dtype, device=x.device)
        room[..., : x.shape[-2], :] = x
        return room

    @property
    def slots(self) -> int:
        return int(self.keys.shape[-2])

    def free_from(self, slot: int, layer: SharedLayer) -> bool:
        """Whether no other layer holds anything from a slot on."""
        return all(other is layer or other.held <= slot for other in self.layers if other.at_home)

    def grow(self, slots: int) -> None:
        """Make room for more, for all who share it."""
        homes = [layer for layer in self.layers if layer.at_home]
        # One after the other: the old keys go before there are new values.
        self.keys = self._wider(self.keys, slots)
        for layer in homes:
            layer.keys = layer.seen = self.keys[..., : layer.held, :]
        self.values = self._wider(self.values, slots)
        for layer in homes:
            layer.look(layer.held)


class SharedLayer(DynamicLayer):
    """A cache layer in a room with space behind what is held; a branch writes there, and copies nothing.

    Where the space is taken, by another branch that is still there, a layer moves to a room of its own first.

    Parameters
    ----------
    slots : int
        How much it will hold at least.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.held = 0
        self.seen: Tensor | None = None
        self._slots = slots
        self._room: _Room | None = None

    @property
    def at_home(self) -> bool:
        """Whether its keys are those in the room, and not others that somebody put in their place."""
        return self._room is not None and self.keys is self.seen

    def look(self, held: int) -> None:
        """Hold the first slots of the room."""
        assert self._room is not None
        self.held = held
        self.keys, self.values = self._room.keys[..., :held, :], self._room.values[..., :held, :]
        self.seen = self.keys

    def branched(self) -> SharedLayer:
        """A layer that holds the same, in the same room."""
        other = copy.copy(self)
        if other._room is not None:
            other._room.layers.add(other)
        return other

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Cache new keys and values; returns views of all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            empty = key_states[..., :0, :], value_states[..., :0, :]
            self._move(*empty, max(self._slots, key_states.shape[-2]))
        assert self.keys is not None
        assert self.values is not None
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.at_home or not self._free_from(start):
            self._move(self.keys, self.values, stop + max(self._slots - start, 0))
        assert self._room is not None
        if stop > self._room.slots:
            self._room.grow(max(stop, int(self._room.slots * (1 + _GROWTH))))
        self._room.keys[..., start:stop, :] = key_states
        self._room.values[..., start:stop, :] = value_states
        self.look(stop)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their slots are free again."""
        at_home = self.at_home
        super().crop(tokens_to_remove)
        if at_home:
            assert self.keys is not None
            self.look(self.keys.shape[-2])

    def reset(self) -> None:
        """Forget everything, and leave the room: what others hold of it stays."""
        if self._room is not None:
            self._room.layers.discard(self)
        self._room, self.held, self.is_initialized = None, 0, False
        self.keys = self.values = self.seen = None

    def _free_from(self, slot: int) -> bool:
        return self._room is not None and self._room.free_from(slot, self)

    def _move(self, keys: Tensor, values: Tensor, slots: int) -> None:
        """Move to a room of its own."""
        if self._room is not None:
            self._room.layers.discard(self)
        self._room = _Room(keys, values, slots)
        self._room.layers.add(self)
        self.look(keys.shape[-2])


class FoldCache(DynamicCache):
    """The cache of a fold, which can be branched.

    Parameters
    ----------
    config : PretrainedConfig
        Of the text decoder.
    slots : int or None
        How much a block with full attention will hold, if nothing is ever taken from it; None where a protocol changes
        what is held, which makes new tensors at every step.
    """

    def __init__(self, config: Any, slots: int | None) -> None:
        super().__init__(config=config)
        self.layers: list[Any]
        if slots is not None:
            self.layers = [SharedLayer(slots) if type(layer) is DynamicLayer else layer for layer in self.layers]

    def branch(self) -> FoldCache:
        """A cache that holds the same and goes its own way from here; states are copied, no keys and values are.

        Layers that are not shared grow by making new tensors, so the old ones may belong to several.
        """
        other = copy.copy(self)
        other.layers = [
            layer.branched() if isinstance(layer, SharedLayer) else branched(layer) for layer in self.layers
        ]
        return other

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Keep the state of a convolution as usual, in memory that may be written to outside of inference mode."""
        layer = self.layers[layer_idx]
        if keeps_states(layer) and not layer.is_conv_states_initialized[state_idx]:
            size = {name: kwargs[name] for name in ("conv_kernel_size",) if name in kwargs}
            with torch.inference_mode(False):
                layer.lazy_initialization(conv_states=conv_states, state_idx=state_idx, **size)
        kept: Tensor = super().update_conv_state(conv_states, layer_idx, state_idx, **kwargs)
        return kept

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Any:
        """Keep the state of a recurrence as usual, in memory that may be written to outside of inference mode."""
        layer = self.layers[layer_idx]
        if keeps_states(layer) and not layer.is_recurrent_states_initialized[state_idx]:
            with torch.inference_mode(False):
                layer.lazy_initialization(recurrent_states=recurrent_states, state_idx=state_idx)
        return super().update_recurrent_state(recurrent_states, layer_idx, state_idx, **kwargs)

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values, and of the states, that are held."""
        held = (x for layer in self.layers for x in carried_tensors(layer))
        return sum(x.numel() * x.element_size() for x in held)
