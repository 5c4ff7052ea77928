"""The KV caches of lanes while they descend."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["RoomyLayer", "TapeCache", "restore_snapshot", "take_snapshot"]


class RoomyLayer(DynamicLayer):
    """A cache layer with room for all that is going to come: chunks are written into it, and none is copied again."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self._slots = slots
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Cache new keys and values; returns views of all there are."""
        if self._room is None:
            self.lazy_initialization(key_states, value_states)
            both = (key_states, value_states)
            keys, values = (x.new_empty((*x.shape[:-2], self._slots, x.shape[-1])) for x in both)
            self._room = keys, values
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        keys, values = self._room
        keys[..., start:stop, :] = key_states
        values[..., start:stop, :] = value_states
        self.keys, self.values = keys[..., :stop, :], values[..., :stop, :]
        return self.keys, self.values


class TapeCache(DynamicCache):
    """A cache that also notes what each chunk appended (a sliding window forgets it).

    Parameters
    ----------
    config : PretrainedConfig
    index, slots : int, optional
        The layer that is going to be used, and how much it will hold in all, if nothing is ever taken from it.
    """

    def __init__(self, config: Any, index: int = 0, slots: int | None = None) -> None:
        super().__init__(config=config)
        self.appended: list[tuple[Tensor, Tensor]] = []
        if slots is not None and type(self.layers[index]) is DynamicLayer:
            self.layers[index] = RoomyLayer(slots)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note the new keys and values, then cache them as usual."""
        self.appended.append((key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


_Snapshot = list[tuple[Tensor | None, Tensor | None, int | None]]


def take_snapshot(cache: DynamicCache) -> _Snapshot:
    """What a cache holds now. Its layers grow by making new tensors, so keeping the old ones is enough."""
    return [
        (layer.keys, layer.values, getattr(layer, "cumulative_length", None)) if layer.is_initialized else (None,) * 3
        for layer in cache.layers
    ]


def restore_snapshot(cache: DynamicCache, snapshot: _Snapshot) -> None:
    """Give a cache back what it held when the snapshot was taken."""
    for layer, (keys, values, length) in zip(cache.layers, snapshot, strict=True):
        if keys is None:
            layer.is_initialized = False
        layer.keys, layer.values = keys, values
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = length or 0
