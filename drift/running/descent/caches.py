"""The KV caches of lanes while they descend."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

__all__ = [
    "Enough",
    "JoinedLayer",
    "RoomyLayer",
    "TapeCache",
    "branched",
    "carried_tensors",
    "convolution_states",
    "joined_heads",
    "keeps_slots",
    "keeps_states",
    "move_on",
    "recurrent_states",
    "restore_snapshot",
    "states_of",
    "take_snapshot",
    "with_states_by_index",
]


def keeps_slots(layer: object) -> bool:
    """Whether a layer of a cache holds keys and values, slot by slot."""
    return isinstance(layer, DynamicLayer)


def keeps_states(layer: object) -> bool:
    """Whether a layer of a cache holds states of convolutions or recurrences, which a pass writes over."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def convolution_states(layer: Any) -> list[Tensor]:
    """The states [text, ...] of a layer's convolutions, in the order of their indices; empty where it has none yet."""
    return _in_order(layer.conv_states) if keeps_states(layer) else []


def recurrent_states(layer: Any) -> list[Tensor]:
    """The states [text, ...] of a layer's recurrences, in the order of their indices; empty where it has none yet."""
    return _in_order(layer.recurrent_states) if keeps_states(layer) else []


def states_of(layer: Any) -> list[Tensor]:
    """All states [text, ...] that a layer holds: those of its convolutions, then those of its recurrences."""
    return [*convolution_states(layer), *recurrent_states(layer)]


def _in_order(states: dict[int, Tensor | None]) -> list[Tensor]:
    return [state for _, state in sorted(states.items()) if isinstance(state, Tensor)]


def carried_tensors(layer: Any) -> list[Tensor]:
    """All that a layer carries on: keys and values, and states."""
    slots = (layer.keys, layer.values) if keeps_slots(layer) else ()
    return [*(x for x in slots if isinstance(x, Tensor)), *states_of(layer)]


class Enough(Exception):
    """All that was wanted of a pass is in its cache: what the block would put out is not."""


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


class JoinedLayer(DynamicLayer):
    """The layers of a block that attends several times, as one: their heads side by side.

    Parameters
    ----------
    parts : sequence of DynamicLayer
        One for each time, in order.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)

    def __copy__(self) -> JoinedLayer:
        return JoinedLayer([copy.copy(part) for part in self.parts])

    def _joined(self, name: str) -> Tensor | None:
        held = [getattr(part, name) for part in self.parts if part.is_initialized]
        return torch.cat(held, dim=1) if len(held) == len(self.parts) else None

    def _parted(self, name: str, joined: Tensor) -> None:
        for part, own in zip(self.parts, joined.chunk(len(self.parts), dim=1), strict=True):
            setattr(part, name, own)

    @property
    def is_initialized(self) -> bool:
        """Whether all parts hold something."""
        return all(part.is_initialized for part in self.parts)

    @property
    def keys(self) -> Tensor | None:
        """Keys [text, head, slot, feature] of all parts; to be set, but not to be written into."""
        return self._joined("keys")

    @keys.setter
    def keys(self, joined: Tensor) -> None:
        self._parted("keys", joined)

    @property
    def values(self) -> Tensor | None:
        """Values [text, head, slot, feature] of all parts; to be set, but not to be written into."""
        return self._joined("values")

    @values.setter
    def values(self, joined: Tensor) -> None:
        self._parted("values", joined)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Cache new keys and values of all parts; returns all there are."""
        both = (x.chunk(len(self.parts), dim=1) for x in (key_states, value_states))
        for part, keys, values in zip(self.parts, *both, strict=True):
            part.update(keys, values)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many slots are held."""
        return int(self.parts[0].get_seq_length())


class TapeCache(DynamicCache):
    """A cache that also notes what each chunk appended (a sliding window forgets it), and how often it was written to.

    Parameters
    ----------
    config : PretrainedConfig
    index, slots : int, optional
        The block that is going to be used, and how much it will hold in all, if nothing is ever taken from it.
    attentions : int
        How often a block attends, each time with a layer of the cache of its own.
    enough : int, optional
        How often it is written to before it ends the pass by :class:`Enough`.
    """

    def __init__(
        self,
        config: Any,
        index: int = 0,
        slots: int | None = None,
        *,
        attentions: int = 1,
        enough: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.appended: list[tuple[Tensor, Tensor]] = []
        self.written = 0
        self._enough = enough
        self._attentions, self._waiting = attentions, list[tuple[Tensor, Tensor]]()
        if attentions > 1:
            starts = range(0, len(self.layers), attentions)
            self.layers: list[Any] = [JoinedLayer(self.layers[i : i + attentions]) for i in starts]
        if slots is not None and type(self.layers[index]) is DynamicLayer:
            self.layers[index] = RoomyLayer(slots)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note the new keys and values, then cache them as usual."""
        self._waiting.append((key_states, value_states))
        if len(self._waiting) == self._attentions:
            self.appended.append(joined_heads(self._waiting))
            self._waiting.clear()
        if self._attentions == 1:
            return self._wrote(super().update(key_states, value_states, layer_idx, *args, **kwargs))
        block, part = divmod(layer_idx, self._attentions)
        return self._wrote(self.layers[block].parts[part].update(key_states, value_states, *args, **kwargs))

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the state of a convolution as usual."""
        return self._wrote(super().update_conv_state(*args, **kwargs))

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the state of a recurrence as usual."""
        return self._wrote(super().update_recurrent_state(*args, **kwargs))

    def _wrote(self, value: Any) -> Any:
        self.written += 1
        if self.written == self._enough:
            raise Enough
        return value


def joined_heads(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values [text, head, token, feature] of several attentions as those of one, heads side by side."""
    if len(pairs) == 1:
        return pairs[0]
    keys, values = zip(*pairs, strict=True)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


class _StatesByIndex(DynamicCache):
    """Keeps what architectures set and get by a layer's index as that layer's recurrent state."""

    def __init__(self, config: Any) -> None:
        DynamicCache.__init__(self, config=config)  # with layers that are known beforehand

    def __len__(self) -> int:
        return len(self.layers)

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        """Keep the state of a recurrence."""
        layer: Any = self.layers[layer_idx]
        self.update_recurrent_state(linear_cache, layer_idx)
        layer.has_previous_state[0] = True

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        """The state of a recurrence, or None where there is none yet."""
        state: Tensor | None = self.get_recurrent_state(layer_idx)
        return state


@functools.cache
def with_states_by_index(kind: Any, own: Any) -> Any:
    """A class that is both ``kind``, a :class:`DynamicCache`, and ``own``, which an architecture asks for."""
    bases = (_StatesByIndex, own) if kind is DynamicCache else (kind, _StatesByIndex, own)
    return type(own.__name__, bases, {})


def branched(layer: Any) -> Any:
    """A layer that holds the same and goes its own way from here.

    Keys and values grow by making new tensors, so the old ones may belong to several; states stand in dictionaries and
    are written in place, so they are copied.
    """
    other = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(other, name, {key: x.clone() if isinstance(x, Tensor) else x for key, x in value.items()})
    return other


def take_snapshot(cache: DynamicCache) -> list[Any]:
    """What a cache holds now."""
    return [branched(layer) for layer in cache.layers]


def restore_snapshot(cache: DynamicCache, snapshot: list[Any]) -> None:
    """Give a cache back what it held when the snapshot was taken, which is then used up."""
    for layer, held in zip(cache.layers, snapshot, strict=True):
        vars(layer).clear()
        vars(layer).update(vars(held))


def move_on(cache: DynamicCache, index: int, states: Tensor, attentions: int = 1) -> None:
    """Move a block's layers on by the tokens of hidden states [text, token, .] without keys and values of them.

    Masks and positions of the next chunk depend on how many slots are held, and on nothing of a recurrence.
    """
    for layer in range(index * attentions, (index + 1) * attentions):
        if keeps_slots(cache.layers[layer]):
            stub = states.new_zeros((1, 1, states.shape[1], 1))
            cache.update(stub, stub, layer)
