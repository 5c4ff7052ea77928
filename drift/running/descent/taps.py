"""Run a model's own forward pass with its layers tapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import restore_snapshot, take_snapshot
from drift.running.descent.lanes import Lane
from drift.running.protocols.base import Chunk, Protocol

__all__ = [
    "Call",
    "attention_as",
    "attention_of",
    "blank_embeddings",
    "blocks_of",
    "call_memory",
    "check_supported",
    "noted_attention",
    "replaced_forwards",
    "rotary_tables",
    "tapped_calls",
    "text_config",
]


def text_config(model: PreTrainedModel) -> Any:
    """Configuration of a model's text decoder."""
    return model.config.get_text_config(decoder=True)


def blocks_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder layers of a supported model, in the order in which they are called."""
    blocks = getattr(model.get_decoder(), "layers", None)
    assert isinstance(blocks, torch.nn.ModuleList)
    return blocks


def check_supported(model: object) -> None:
    """Refuse a model that the descent cannot drive.

    Raises
    ------
    UnsupportedModelError
        If the object is no transformers causal language model, keeps no KV cache, shares one cache between layers, or
        has no list of decoder layers. The message says which.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(f"{name} is not a transformers model (PreTrainedModel).")
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head: load it with AutoModelForCausalLM.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; drift understands decoder-only models.")
    decoder = model.get_decoder()
    parameters = inspect.signature(decoder.forward).parameters
    if "past_key_values" not in parameters:
        raise UnsupportedModelError(
            f"{name} keeps no KV cache (its forward takes no past_key_values), so there is nothing to fold."
        )
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise UnsupportedModelError(
            f"{name}: {type(decoder).__name__} has no ModuleList named `layers`, so its layers cannot be tapped."
        )
    cache = DynamicCache(config=text_config(model))
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin) or not isinstance(layer, DynamicLayer):
            raise UnsupportedModelError(
                f"{name}: layer {index} keeps {type(layer).__name__}, not keys and values. "
                "Recurrent, linear-attention and shared-cache layers have no KV cache of their own to fold."
            )


@contextmanager
def replaced_forwards(blocks: Sequence[torch.nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Give each block another ``forward`` for the duration, whatever happens."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, original in zip(blocks, before, strict=True):
            if original is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = original


@dataclass
class Call:
    """How the model calls one block for one chunk: its hidden states and cache left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def attention_as(model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Have the model compute attention in another way for the duration."""
    configs = {id(c): c for c in (model.config, text_config(model))}.values()
    before = [config._attn_implementation for config in configs]
    try:
        if implementation is not None:
            for config in configs:
                config._attn_implementation = implementation
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation = value


def attention_of(protocol: Protocol | None) -> str | None:
    """The attention implementation that a protocol is run with; None is the model's own."""
    if protocol is None:
        return None
    return "eager" if protocol.wants_attention else protocol.attn_implementation


class _Taps:
    """The model's own ``forward`` with its blocks tapped: embeddings, and how each block is called."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._decoder = model.get_decoder()
        self._blocks = blocks_of(model)
        self._seen: list[tuple[int, Tensor, Call]] = []
        self._cache = DynamicCache(config=text_config(model))
        self._taps = [self._make_tap(i) for i in range(len(self._blocks))]

    def _make_tap(self, index: int) -> Callable[..., Tensor]:
        name = type(self._model).__name__

        def tap(*args: Any, **kwargs: Any) -> Tensor:
            states = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
            rest = () if not args else args[1:]
            if not isinstance(states, Tensor) or states.ndim != 3:
                raise UnsupportedModelError(
                    f"{name}: block {index} is not called with hidden states [batch, token, feature]; "
                    "this architecture cannot be driven layer by layer."
                )
            if any(a is self._cache for a in rest) or kwargs.pop("past_key_values", None) is not self._cache:
                raise UnsupportedModelError(f"{name}: block {index} is not handed the KV cache as past_key_values.")
            # A stub of one number per token moves the cache on, as the real keys and values would: masks and
            # positions of the next chunk depend on how much is cached.
            stub = states.new_zeros((1, 1, states.shape[1], 1))
            self._cache.update(stub, stub, index)
            self._seen.append((index, states, Call(rest, kwargs)))
            # What the decoder does behind its last block is not looked at: one token of it will do.
            return states if index + 1 < len(self._blocks) else states[:, :1]

        return tap

    def run(self, cache: DynamicCache, tokens: Tensor, first_position: int) -> tuple[Tensor, list[Call]]:
        """Embeddings [text, token, feature], and the call of each block.

        ``tokens`` are token ids [text, token], or what :func:`blank_embeddings` gives, where only the calls are wanted.
        """
        name = type(self._model).__name__
        self._seen, self._cache = [], cache
        given = {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}
        positions = torch.arange(first_position, first_position + tokens.shape[1], device=tokens.device)
        with replaced_forwards(self._blocks, self._taps):
            self._decoder(**given, position_ids=positions[None], past_key_values=cache, use_cache=True)
        seen, self._seen = self._seen, []
        if [index for index, _, _ in seen] != list(range(len(self._blocks))):
            raise UnsupportedModelError(
                f"{name} does not call its {len(self._blocks)} decoder layers once each, in order."
            )
        if any(states is not seen[0][1] for _, states, _ in seen):
            raise UnsupportedModelError(
                f"{name} does something to the hidden states between its decoder layers, "
                "which a layer-by-layer descent would miss."
            )
        return seen[0][1], [call for _, _, call in seen]


def blank_embeddings(like: Tensor, tokens: int) -> Tensor:
    """Embeddings of that many tokens [text, token, feature] that take neither memory nor the embedding's weights."""
    return like.new_zeros(()).expand(like.shape[0], tokens, like.shape[-1])


def tapped_calls(model: PreTrainedModel, lane: Lane, like: Tensor | None = None) -> Iterator[tuple[Tensor, list[Call]]]:
    """Take a lane through the model with its blocks tapped.

    Parameters
    ----------
    model, lane
        The lane and the model that it runs on.
    like : Tensor, optional
        Embeddings of the lane, of which shape and dtype count: only the calls are wanted.

    Yields
    ------
    embeddings : Tensor
        [text, token, feature] of each chunk, prefix included.
    calls : list of Call
        How each block is called for it.
    """
    cache = DynamicCache(config=text_config(model))
    taps = _Taps(model)
    for chunk in lane.chunks:
        before = [] if chunk.kept else take_snapshot(cache)
        own = DynamicCache(config=text_config(model)) if chunk.alone else cache
        tokens = lane.token_ids(chunk) if like is None else blank_embeddings(like, len(chunk))
        states, called = taps.run(own, tokens, chunk.first_position)
        if not chunk.kept:
            if not chunk.alone:
                restore_snapshot(cache, before)
        else:
            if chunk.alone:
                stub = states.new_zeros((1, 1, states.shape[1], 1))
                for index in range(len(called)):
                    cache.update(stub, stub, index)
            if lane.protocol is not None and lane.protocol.carries:
                _carry_stubs(lane.protocol, chunk, cache)
        yield states, called


def _carry_stubs(protocol: Protocol, chunk: Chunk, cache: DynamicCache) -> None:
    """Leave as many stubs in a tapped cache as the protocol says that it leaves slots."""
    for layer in cache.layers:
        if not layer.is_sliding:
            held = layer.keys.shape[-2]
            # Less than none is refused where the number is held against the real cache.
            left = max(0, protocol.slots(chunk.step, held, len(chunk)))
            if left != held:
                layer.keys, layer.values = (x.new_zeros((*x.shape[:-2], left, 1)) for x in (layer.keys, layer.values))


def call_memory(calls: Sequence[Call]) -> int:
    """Memory that the tensors among the arguments of calls take; one that several calls share counts once."""
    found: dict[int, int] = {}

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (list, tuple)):
            for each in value:
                look(each)
        elif isinstance(value, dict):
            look(list(value.values()))

    for call in calls:
        look(call.args)
        look(call.kwargs)
    return sum(found.values())


def rotary_tables(model: PreTrainedModel, states: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cosines and sines [position, feature] by which each block rotates keys of ``states`` at positions 0, 1, ...

    They are what the model itself hands to its blocks. Rotations can only be added up where they are rotations: the
    layout of two halves, and no scaling.
    """
    _, calls = _Taps(model).run(DynamicCache(config=text_config(model)), states, 0)
    tables = []
    for index, call in enumerate(calls):
        pair = call.kwargs.get("position_embeddings")
        sound = False
        if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair):
            cos, sin = (x[0].to(torch.promote_types(x.dtype, torch.float32)) for x in pair)
            half = cos.shape[-1] // 2
            sound = bool(
                torch.equal(cos[:, :half], cos[:, half:])
                and torch.equal(sin[:, :half], sin[:, half:])
                and ((cos**2 + sin**2 - 1).abs() < 2.0**-6).all()
            )
        if not sound:
            raise UnsupportedModelError(
                f"{type(model).__name__}: block {index} does not rotate its keys in the layout of two halves without "
                "scaling, so cached keys cannot be moved to other positions (positions=cache)."
            )
        tables.append((cos, sin))
    return tables


@contextmanager
def noted_attention(block: torch.nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Yield a list that receives the attention probabilities of each call of the block."""
    noted: list[Tensor] = []
    if not wanted:
        yield noted
        return
    attention = getattr(block, "self_attn", None)
    if not isinstance(attention, torch.nn.Module):
        raise UnsupportedModelError(
            f"{type(block).__name__} has no module `self_attn` to read attention probabilities from."
        )

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, tuple) or len(output) < 2 or not isinstance(output[1], Tensor):
            raise UnsupportedModelError(f"{type(module).__name__} does not return attention probabilities.")
        noted.append(output[1])

    handle = attention.register_forward_hook(note)
    try:
        yield noted
    finally:
        handle.remove()
