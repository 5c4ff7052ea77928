"""Run a model's own forward pass with its layers tapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import TapeCache, keeps_slots, move_on, restore_snapshot, take_snapshot
from drift.running.descent.decoders import blocks_of, cache_argument, decoder_of, driving_of, new_cache, text_config
from drift.running.descent.lanes import Lane
from drift.running.model.weights import weights_of
from drift.running.noise import EmbeddingNoise
from drift.running.protocols.base import Chunk, Protocol

__all__ = [
    "Between",
    "Call",
    "Taps",
    "attention_as",
    "attention_of",
    "call_memory",
    "disturbed_states",
    "noted_attention",
    "replaced_forwards",
    "rotary_tables",
    "tapped_calls",
]


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


#: How far from 1 probabilities may sum up, which are rounded to 16 bits.
_NEARLY_ONE = 2.0**-5
_WITHOUT_ATTENTION = "Chunked inference is possible with it: protocols that need none work (append, merge, quantized)."


class _Stand(Enum):
    """What stands in a noted call for what is different at every call."""

    CACHE = "the cache"


@dataclass(frozen=True)
class _Handed:
    """What stands in a noted call for an output of the block before, beside its states; 0 is the first of them."""

    place: int


@dataclass(frozen=True)
class _Between:
    """What stands in a noted call for a mapping in which blocks of a pass leave keys and values for later ones."""

    kind: type[MutableMapping[Any, Any]]


Between = dict[type[MutableMapping[Any, Any]], MutableMapping[Any, Any]]
"""The mappings of one pass that its blocks leave something in for each other, by their kind."""


@dataclass
class Call:
    """How the model calls one block for one chunk: its hidden states and cache left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def noted(cls, cache: DynamicCache, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """A call with a cache, as it is kept."""

        def left_out(value: Any) -> Any:
            if value is cache:
                return _Stand.CACHE
            if isinstance(value, MutableMapping) and not value:
                return _Between(type(value))
            return value

        return cls(tuple(left_out(v) for v in args), {name: left_out(v) for name, v in kwargs.items()})

    @property
    def hands_on(self) -> bool:
        """Whether the block is given anything that the block before put out beside its states."""
        return any(isinstance(value, _Handed) for value in (*self.args, *self.kwargs.values()))

    def given(
        self, cache: DynamicCache, handed: Sequence[Any], between: Between
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the block behind its states: with a cache, and with what the block before handed on.

        ``between`` has the mappings of the pass; one that is missing is put there.
        """

        def filled(value: Any) -> Any:
            if isinstance(value, _Handed):
                return handed[value.place]
            if isinstance(value, _Between):
                return between.setdefault(value.kind, value.kind())
            return cache if value is _Stand.CACHE else value

        return tuple(filled(v) for v in self.args), {name: filled(v) for name, v in self.kwargs.items()}


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


class Taps:
    """The model's own ``forward`` with its blocks tapped: embeddings, and how each block is called."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._decoder = decoder_of(model)
        self._blocks = blocks_of(model)
        self._driving = driving_of(model)
        self._seen: list[tuple[int, Tensor, Call]] = []
        self._cache = DynamicCache(config=text_config(model))
        self._taps = [self._make_tap(i) for i in range(len(self._blocks))]

    def _make_tap(self, index: int) -> Callable[..., Any]:
        name = type(self._model).__name__
        handed = tuple(_Handed(place) for place in range(self._driving.outputs - 1))

        def tap(*args: Any, **kwargs: Any) -> Any:
            states = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
            rest = () if not args else args[1:]
            if not self._driving.streams.fits(states):
                raise UnsupportedModelError(
                    f"{name}: block {index} is not called with the hidden states that the block before put out; "
                    "this architecture cannot be driven layer by layer."
                )
            call = Call.noted(self._cache, rest, kwargs)
            if sum(value is _Stand.CACHE for value in (*call.args, *call.kwargs.values())) != 1:
                raise UnsupportedModelError(
                    f"{name}: block {index} is not handed the KV cache that the model was given."
                )
            move_on(self._cache, index, self._driving.streams.first(states), self._driving.attentions)
            self._seen.append((index, states, call))
            # What the decoder does behind its last block is not looked at: one token of it will do.
            short = self._driving.plain and index + 1 == len(self._blocks)
            out = states[:, :1] if short else states
            return (out, *handed) if self._driving.outputs else out

        return tap

    def run(self, cache: DynamicCache, tokens: Tensor, first_position: int | None) -> tuple[Tensor, list[Call]]:
        """Embeddings [text, token, feature], and the call of each block.

        ``tokens`` are token ids [text, token], or embeddings in their place; without a first position the model counts
        by itself.
        """
        name = type(self._model).__name__
        self._seen, self._cache = [], cache
        given = {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}
        if first_position is not None and self._driving.positions:
            first = first_position + self._driving.origin
            given["position_ids"] = torch.arange(first, first + tokens.shape[1], device=tokens.device)[None]
        with replaced_forwards(self._blocks, self._taps):
            self._decoder(**given, **{cache_argument(self._decoder): cache}, use_cache=True)
        seen, self._seen = self._seen, []
        if [index for index, _, _ in seen] != list(range(len(self._blocks))):
            raise UnsupportedModelError(
                f"{name} does not call its {len(self._blocks)} decoder layers once each, in order."
            )
        if not all(_same(states, seen[0][1]) for _, states, _ in seen):
            raise UnsupportedModelError(
                f"{name} does something to the hidden states between its decoder layers, "
                "which a layer-by-layer descent would miss."
            )
        return self._driving.streams.joined(seen[0][1]), [call for _, _, call in seen]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or views of all of it."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


def _blank(model: PreTrainedModel, like: Tensor, tokens: int) -> Tensor:
    """What stands for the tokens of texts where only the calls are wanted, ``like`` other embeddings [text, ., .].

    Embeddings [text, token, feature] that take neither memory nor the embedding's weights; or token ids, where a model
    looks more up by them than embeddings.
    """
    driving = driving_of(model)
    if not driving.plain:
        return torch.full((like.shape[0], tokens), driving.token, dtype=torch.int64, device=like.device)
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
    cache = new_cache(model)
    taps = Taps(model)
    again = like is not None
    for chunk in lane.chunks:
        before = [] if chunk.kept else take_snapshot(cache)
        own = new_cache(model) if chunk.alone else cache
        plain = again and driving_of(model).plain
        tokens = _blank(model, like, len(chunk)) if plain and like is not None else lane.token_ids(chunk)
        with weights_of(model).embedding() if again and not plain else nullcontext():
            states, called = taps.run(own, tokens, chunk.first_position)
        if not chunk.kept:
            if not chunk.alone:
                restore_snapshot(cache, before)
        else:
            if chunk.alone:
                for index in range(len(called)):
                    move_on(cache, index, states, driving_of(model).attentions)
            if lane.protocol is not None and lane.protocol.carries:
                _carry_stubs(lane.protocol, chunk, cache)
        yield states, called


def _carry_stubs(protocol: Protocol, chunk: Chunk, cache: DynamicCache) -> None:
    """Leave as many stubs in a tapped cache as the protocol says that it leaves slots."""
    for layer in cache.layers:
        if keeps_slots(layer) and not layer.is_sliding:
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


def rotary_tables(model: PreTrainedModel, like: Tensor, positions: int) -> list[tuple[Tensor, Tensor]]:
    """Cosines and sines [position, feature] by which each block rotates keys at that many positions: 0, 1, ...

    They are what the model itself hands to its blocks, whose embeddings are ``like`` a tensor [1, 1, feature].
    Rotations can only be added up where they are rotations: the layout of two halves, and no scaling.
    """
    with nullcontext() if driving_of(model).plain else weights_of(model).embedding():
        _, calls = Taps(model).run(new_cache(model), _blank(model, like, positions), 0)
    tables = []
    layers = new_cache(model, TapeCache, attentions=driving_of(model).attentions).layers
    for index, (call, layer) in enumerate(zip(calls, layers, strict=True)):
        if not keeps_slots(layer):  # nothing of it is ever moved
            tables.append((like.new_zeros(0), like.new_zeros(0)))
            continue
        pairs = (value for value in call.args if isinstance(value, tuple))
        pair = call.kwargs.get("position_embeddings", next(pairs, None))
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
                "scaling, so cached keys cannot be moved to other positions (positions=cache). Chunked inference is "
                "possible with it: protocols that leave keys where they are work (append, and streaming with "
                "positions=text)."
            )
        tables.append((cos, sin))
    return tables


@contextmanager
def disturbed_states(model: PreTrainedModel, noise: EmbeddingNoise | None) -> Iterator[None]:
    """Within it, the first block is given the states of one text with noise on them, if there is any."""
    if noise is None:
        yield
        return
    disturb, streams = noise.stream(), driving_of(model).streams

    def disturbed(states: Tensor) -> Tensor:
        return streams.parted(disturb(streams.joined(states)[0])[None])

    def put(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (disturbed(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": disturbed(kwargs["hidden_states"])}

    handle = blocks_of(model)[0].register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def noted_attention(block: torch.nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Yield a list that receives the attention probabilities of each call of the block.

    They are what the module `self_attn` puts out second; in a block that has none, the one tensor among the outputs of
    its modules that can be probabilities.
    """
    noted: list[Tensor] = []
    if not wanted:
        yield noted
        return
    attention = getattr(block, "self_attn", None)

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise UnsupportedModelError(
                f"{type(module).__name__} does not return attention probabilities. {_WITHOUT_ATTENTION}"
            )
        noted.append(found)

    def look(module: torch.nn.Module, args: Any, output: Any) -> None:
        for value in output if isinstance(output, tuple) else ():
            # Modules hand on what the modules within them put out.
            if _may_be_probabilities(value) and all(value is not other for other in noted):
                noted.append(value)

    def settle(module: torch.nn.Module, args: Any, output: Any) -> None:
        if len(noted) != 1:
            raise UnsupportedModelError(
                f"{type(block).__name__} has no module `self_attn`, and {len(noted)} outputs of its modules may be "
                f"attention probabilities. {_WITHOUT_ATTENTION}"
            )

    with ExitStack() as stack:
        if isinstance(attention, torch.nn.Module) and not isinstance(attention, torch.nn.ModuleList):
            stack.callback(attention.register_forward_hook(note).remove)
        else:
            inner = [module for module in block.modules() if module is not block]
            for handle in (*(m.register_forward_hook(look) for m in inner), block.register_forward_hook(settle)):
                stack.callback(handle.remove)
        yield noted


def _may_be_probabilities(value: object) -> bool:
    """Whether an output may be attention probabilities [text, head, query, slot]: all rows sum to 1."""
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point() or not value.numel():
        return False
    sums = value.to(torch.float32).sum(-1)
    return bool((value >= 0).all() and ((sums - 1).abs() < _NEARLY_ONE).all())
