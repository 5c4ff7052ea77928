"""Lanes that go down the network together, one layer at a time.

A lane is one way of running one text through the model: full attention, or a fold. All lanes descend together, so one
pass over the layers serves every fold, and only one layer's hidden states and one layer's cache are ever held.

This is the only module that touches the layer and cache interfaces of transformers. It re-implements no architecture:
the model's own ``forward`` is run with its layers tapped, which yields the arguments (masks, rotary tables, positions)
of every layer; the real layers are then called with them. The hidden states, keys, values and logits are bitwise those
of a plain ``model(chunk, past_key_values=cache)`` loop over the same chunks.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from drift.errors import UnsupportedModelError
from drift.protocols import Carried, Chunk, Protocol
from drift.weights import weights_of

__all__ = ["LOGIT_ROWS", "Lane", "Limits", "Recorder", "blocks_of", "check_supported", "descend"]

LOGIT_ROWS = 1024
"""Most rows of logits that are ever computed at once in one lane (for Gemma, one row in fp32 is 1 MB).

Up to this many rows a chunk's logits are bitwise those of a plain forward; a longer chunk's are computed in several
products with the output embedding, which may round differently from one.
"""


@dataclass(frozen=True)
class Limits:
    """What a descent may keep in memory. The numbers are the same within any limits.

    Attributes
    ----------
    call_bytes : float
        Most bytes of arguments (masks above all) that are kept from the tap until the last block. Those of lanes that
        would go beyond are made again for every block, one chunk at a time.
    logit_rows : int
        Most rows of logits computed at once of chunks longer than `LOGIT_ROWS`; shorter chunks are never cut. Where a
        chunk is cut decides nothing but how its products with the output embedding round.
    """

    call_bytes: float = float("inf")
    logit_rows: int = LOGIT_ROWS


@dataclass(frozen=True)
class Lane:
    """One way of running one text through the model.

    Attributes
    ----------
    tokens : Tensor
        int64 [token]: the text, the same in all lanes that are compared.
    chunks : tuple of Chunk
        How the text is cut; a single chunk is full attention.
    protocol : Protocol, optional
        What becomes of the cache after each chain step; by default everything stays.
    model : PreTrainedModel, optional
        The same model at another precision; by default the one that the descent was given.
    scope : callable
        Makes the context that the lane computes in: the numerical switches of its precision.
    companions : tuple of Tensor
        Other texts of the same length, computed in one batch with this one and not looked at.
    """

    tokens: Tensor
    chunks: tuple[Chunk, ...]
    protocol: Protocol | None = None
    model: PreTrainedModel | None = None
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    companions: tuple[Tensor, ...] = ()

    def token_ids(self, chunk: Chunk) -> Tensor:
        """int64 [text, token]: what the model is given for a chunk, prefix included."""
        texts = torch.stack([text[chunk.start : chunk.stop] for text in (self.tokens, *self.companions)])
        if chunk.prefix:
            texts = torch.cat([texts.new_tensor(chunk.prefix).expand(len(texts), -1), texts], dim=1)
        return texts


class Recorder(ABC):
    """Receives what the lanes hold, layer by layer; overrides what it wants to see.

    All tensors cover text tokens only: the prefixes of chunks are left out.
    """

    def hidden(self, layer: int, kind: str, states: Sequence[Tensor]) -> None:
        """Hidden states, one tensor [token, feature] per lane.

        ``layer`` 0 are the embeddings, k the output of block k; ``kind`` is ``embedding`` or ``block``.
        """

    def cache(self, block: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """What block ``block`` (1 is the first) cached, one tensor [head, token, feature] per lane."""

    def cached(self, lane: int, block: int, step: int, keys: Tensor, values: Tensor) -> None:
        """What the cache of block ``block`` holds after chain step ``step``: [head, token, feature], prefixes included.

        Layers with a sliding window hold their last tokens only.
        """

    def cache_bytes(self, block: int, sizes: Sequence[Sequence[int]]) -> None:
        """Bytes that the block's cache carries on after each chain step, per lane and step."""

    def final(self, lane: int, rows: Tensor, states: Tensor) -> None:
        """States after the final norm [row, feature] of a lane's tokens ``rows`` [row].

        For every stretch of the text, the lanes that others are compared with come first, each with the whole stretch;
        the other lanes follow with pieces that lie within it.
        """

    def logits(self, lane: int, rows: Tensor, logits: Tensor) -> None:
        """Logits [row, vocabulary] of a lane's tokens ``rows`` [row]; the order of calls is that of :meth:`final`."""


class _Roomy(DynamicLayer):
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


class _Tape(DynamicCache):
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
            self.layers[index] = _Roomy(slots)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note the new keys and values, then cache them as usual."""
        self.appended.append((key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _text_config(model: PreTrainedModel) -> Any:
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
    cache = DynamicCache(config=_text_config(model))
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin) or not isinstance(layer, DynamicLayer):
            raise UnsupportedModelError(
                f"{name}: layer {index} keeps {type(layer).__name__}, not keys and values. "
                "Recurrent, linear-attention and shared-cache layers have no KV cache of their own to fold."
            )


@contextmanager
def _replaced(blocks: Sequence[torch.nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
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
class _Call:
    """How the model calls one block for one chunk: its hidden states and cache left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def _attention(model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Have the model compute attention in another way for the duration."""
    configs = {id(c): c for c in (model.config, _text_config(model))}.values()
    before = [config._attn_implementation for config in configs]
    try:
        if implementation is not None:
            for config in configs:
                config._attn_implementation = implementation
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation = value


_Snapshot = list[tuple[Tensor | None, Tensor | None, int | None]]


def _snapshot(cache: DynamicCache) -> _Snapshot:
    """What a cache holds now. Its layers grow by making new tensors, so keeping the old ones is enough."""
    return [
        (layer.keys, layer.values, getattr(layer, "cumulative_length", None)) if layer.is_initialized else (None,) * 3
        for layer in cache.layers
    ]


def _restore(cache: DynamicCache, snapshot: _Snapshot) -> None:
    for layer, (keys, values, length) in zip(cache.layers, snapshot, strict=True):
        if keys is None:
            layer.is_initialized = False
        layer.keys, layer.values = keys, values
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = length or 0


class _Taps:
    """The model's own ``forward`` with its blocks tapped: embeddings, and how each block is called."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._decoder = model.get_decoder()
        self._blocks = blocks_of(model)
        self._seen: list[tuple[int, Tensor, _Call]] = []
        self._cache = DynamicCache(config=_text_config(model))
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
            self._seen.append((index, states, _Call(rest, kwargs)))
            # What the decoder does behind its last block is not looked at: one token of it will do.
            return states if index + 1 < len(self._blocks) else states[:, :1]

        return tap

    def run(self, cache: DynamicCache, tokens: Tensor, first_position: int) -> tuple[Tensor, list[_Call]]:
        """Embeddings [text, token, feature], and the call of each block.

        ``tokens`` are token ids [text, token], or what :func:`_nothing` gives, where only the calls are wanted.
        """
        name = type(self._model).__name__
        self._seen, self._cache = [], cache
        given = {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}
        positions = torch.arange(first_position, first_position + tokens.shape[1], device=tokens.device)
        with _replaced(self._blocks, self._taps):
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


def _nothing(like: Tensor, tokens: int) -> Tensor:
    """Embeddings of that many tokens [text, token, feature] that take neither memory nor the embedding's weights."""
    return like.new_zeros(()).expand(like.shape[0], tokens, like.shape[-1])


def _tap(model: PreTrainedModel, lane: Lane, like: Tensor | None = None) -> Iterator[tuple[Tensor, list[_Call]]]:
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
    calls : list of _Call
        How each block is called for it.
    """
    cache = DynamicCache(config=_text_config(model))
    taps = _Taps(model)
    for chunk in lane.chunks:
        before = [] if chunk.kept else _snapshot(cache)
        own = DynamicCache(config=_text_config(model)) if chunk.alone else cache
        tokens = lane.token_ids(chunk) if like is None else _nothing(like, len(chunk))
        states, called = taps.run(own, tokens, chunk.first_position)
        if not chunk.kept:
            if not chunk.alone:
                _restore(cache, before)
        else:
            if chunk.alone:
                stub = states.new_zeros((1, 1, states.shape[1], 1))
                for index in range(len(called)):
                    cache.update(stub, stub, index)
            if lane.protocol is not None and lane.protocol.carries:
                for layer in cache.layers:
                    if not layer.is_sliding:
                        held = lane.protocol.slots(chunk.step, layer.keys.shape[-2])
                        layer.keys, layer.values = layer.keys[..., :held, :], layer.values[..., :held, :]
        yield states, called


def _bytes(calls: Sequence[_Call]) -> int:
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


@dataclass
class _Descending:
    """A lane on its way down: its hidden states per chunk, and the calls that the tap saw, if they are kept."""

    lane: Lane
    model: PreTrainedModel
    states: list[Tensor] = field(default_factory=list)
    calls: list[list[_Call]] | None = None
    _tables: list[tuple[Tensor, Tensor]] | None = None

    def tap(self, allowed: float) -> int:
        """Take the lane to its first block; keep its calls if ``allowed`` bytes hold them; return their bytes."""
        kept, held = list[list[_Call]](), 0
        for states, calls in _tap(self.model, self.lane):
            self.states.append(states)
            if held <= allowed:
                held += _bytes(calls)
                kept.append(calls)
            if held > allowed:
                kept.clear()
        self.calls = kept if held <= allowed else None
        return held if self.calls is not None else 0

    def calls_of(self, index: int) -> Iterator[_Call]:
        """How a block is called, chunk after chunk."""
        if self.calls is not None:
            yield from (calls[index] for calls in self.calls)
        else:
            for _, calls in _tap(self.model, self.lane, self.states[0]):
                yield calls[index]

    @property
    def slots(self) -> int | None:
        """How much its cache will hold in all, if nothing is ever taken from it."""
        chunks, protocol = self.lane.chunks, self.lane.protocol
        if (protocol is not None and protocol.carries) or any(c.alone or not c.kept for c in chunks):
            return None
        return sum(len(chunk) for chunk in chunks)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The numerical switches and the attention implementation that the lane computes with."""
        protocol = self.lane.protocol
        wanted = None
        if protocol is not None:
            wanted = "eager" if protocol.wants_attention else protocol.attn_implementation
        with ExitStack() as stack:
            stack.enter_context(self.lane.scope())
            stack.enter_context(_attention(self.model, wanted))
            yield

    def text(self, per_chunk: Sequence[Tensor], dim: int = -2) -> Tensor:
        """Join per-chunk tensors along their token axis: what is measured, prefixes and companions left out."""
        parts = [
            part[:1].narrow(dim, len(chunk.prefix), chunk.stop - chunk.start)
            for part, chunk in zip(per_chunk, self.lane.chunks, strict=True)
            if chunk.measured
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim))[0]

    def rotate(self, index: int, keys: Tensor, shift: Tensor) -> Tensor:
        """Move keys [..., slot, feature] of a block by ``shift`` positions, int64 [slot]."""
        if self._tables is None:
            width = int(_text_config(self.model).hidden_size)
            like = torch.zeros((1, 1, width), dtype=self.model.dtype, device=self.lane.tokens.device)
            self._tables = _rotary_tables(self.model, _nothing(like, len(self.lane.tokens) + 1))
        cos, sin = self._tables[index]
        width = cos.shape[-1]
        wide = keys[..., :width].to(torch.promote_types(keys.dtype, torch.float32))
        c = cos[shift.abs()].to(wide.dtype)
        s = (sin[shift.abs()] * shift.sign()[:, None]).to(wide.dtype)
        half = torch.cat([-wide[..., width // 2 :], wide[..., : width // 2]], dim=-1)
        return torch.cat([(wide * c + half * s).to(keys.dtype), keys[..., width:]], dim=-1)


def _rotary_tables(model: PreTrainedModel, states: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cosines and sines [position, feature] by which each block rotates keys of ``states`` at positions 0, 1, ...

    They are what the model itself hands to its blocks. Rotations can only be added up where they are rotations: the
    layout of two halves, and no scaling.
    """
    _, calls = _Taps(model).run(DynamicCache(config=_text_config(model)), states, 0)
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
def _noted_attention(block: torch.nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
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


def _run_block(
    index: int, lane: _Descending, on_step: Callable[[int, Tensor, Tensor], None]
) -> tuple[Tensor, Tensor, list[int]]:
    """Take one lane through one block; return the keys, the values and the carried bytes per chain step."""
    model, protocol = lane.model, lane.lane.protocol
    block = blocks_of(model)[index]
    tape = _Tape(_text_config(model), index, lane.slots)
    whole = isinstance(tape.layers[index], _Roomy)
    appended: list[tuple[Tensor, Tensor]] = []
    sizes: dict[int, int] = {}
    notes: dict[str, Any] = {}
    with _noted_attention(block, protocol is not None and protocol.wants_attention) as probabilities:
        for place, (chunk, call) in enumerate(zip(lane.lane.chunks, lane.calls_of(index), strict=True)):
            before = [] if chunk.kept else _snapshot(tape)
            own = _Tape(_text_config(model)) if chunk.alone else tape
            probabilities.clear()
            lane.states[place] = block(lane.states[place], *call.args, past_key_values=own, **call.kwargs)
            if len(own.appended) != 1 or not isinstance(own.layers[index], DynamicLayer):
                raise UnsupportedModelError(
                    f"{type(model).__name__}: block {index} does not cache keys and values of its own once per chunk "
                    "(layers that share a cache, or keep none, are not supported)."
                )
            keys, values = own.appended.pop()
            if not whole:
                appended.append((keys, values))
            if not chunk.kept:
                if not chunk.alone:
                    _restore(tape, before)
            elif chunk.alone:
                tape.update(keys, values, index)
                tape.appended.clear()
            layer = tape.layers[index]
            if chunk.kept and protocol is not None and protocol.carries:
                assert layer.keys is not None
                assert layer.values is not None
                cache = Carried(
                    keys=layer.keys,
                    values=layer.values,
                    step=chunk.step,
                    block=index + 1,
                    new=len(chunk),
                    sliding=bool(layer.is_sliding),
                    attention=probabilities[-1] if probabilities else None,
                    rotate=lambda keys, shift: lane.rotate(index, keys, shift),
                    notes=notes,
                )
                protocol.carry(cache)
                layer.keys, layer.values = cache.keys, cache.values
            held = [x for x in (layer.keys, layer.values) if isinstance(x, Tensor)]
            sizes[chunk.step] = sum(x[:1].numel() * x.element_size() for x in held)
            if held:
                on_step(chunk.step, held[0][0], held[1][0])
    if whole:
        lengths = [len(chunk) for chunk in lane.lane.chunks]
        layer = tape.layers[index]
        assert layer.keys is not None
        assert layer.values is not None
        # Without prefixes, what was appended is what the cache holds.
        if not any(chunk.prefix for chunk in lane.lane.chunks):
            return layer.keys[0], layer.values[0], list(sizes.values())
        appended = list(zip(layer.keys.split(lengths, dim=-2), layer.values.split(lengths, dim=-2), strict=True))
    return lane.text([k for k, _ in appended]), lane.text([v for _, v in appended]), list(sizes.values())


Head = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@contextmanager
def _head(model: PreTrainedModel) -> Iterator[Head]:
    """Yield a function from the last block's output to (states after the final norm, logits).

    It is the model's own ``forward`` with the blocks bypassed: the final norm, the output embedding and whatever the
    model does to logits (scaling, soft capping) are computed by transformers. Its second argument names the rows whose
    logits are wanted; None takes all.
    """
    blocks = blocks_of(model)
    handed: list[Tensor] = []
    normed: list[Tensor] = []

    def bypass(*args: Any, **kwargs: Any) -> Tensor:
        return handed[0]

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        normed.append(output.last_hidden_state)

    def head(states: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        handed[:] = [states]
        normed.clear()
        options = {} if keep is None else {"logits_to_keep": keep.to(states.device)}
        # They are handed in as embeddings, too: nothing need be looked up for blocks that are bypassed.
        logits = model(inputs_embeds=states, use_cache=False, **options).logits
        handed.clear()
        return normed.pop()[0], logits[0]

    handle = model.get_decoder().register_forward_hook(note)
    try:
        with _replaced(blocks, [bypass] * len(blocks)), weights_of(model).head():
            yield head
    finally:
        handle.remove()


@dataclass
class _Piece:
    """States after the final norm of some tokens, and logits of those of them that are sampled."""

    rows: Tensor
    states: Tensor
    logit_rows: Tensor
    logits: Tensor

    def split(self, end: int) -> tuple[_Piece, _Piece]:
        """The piece up to and including token ``end``, and the rest."""
        i, j = int((self.rows <= end).sum()), int((self.logit_rows <= end).sum())
        return (
            _Piece(self.rows[:i], self.states[:i], self.logit_rows[:j], self.logits[:j]),
            _Piece(self.rows[i:], self.states[i:], self.logit_rows[j:], self.logits[j:]),
        )

    @classmethod
    def join(cls, pieces: Sequence[_Piece]) -> _Piece:
        """Consecutive pieces as one."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls)))

    def record(self, lane: int, recorder: Recorder) -> None:
        """Hand what there is to the recorder."""
        if len(self.rows):
            recorder.final(lane, self.rows, self.states)
        if len(self.logit_rows):
            recorder.logits(lane, self.logit_rows, self.logits)


def _pieces(lane: _Descending, head: Head, stride: int, logit_rows: int) -> Iterator[_Piece]:
    """Yield a lane's text tokens chunk by chunk, chunks longer than `LOGIT_ROWS` in slices of ``logit_rows``.

    Where logits are only sampled, the sampled rows of several chunks share one product with the output embedding: a
    large vocabulary is then read once for all of them, and not once a chunk.
    """
    if stride > 1:
        rows, text = torch.arange(len(lane.lane.tokens)), lane.text(lane.states)[None]
        size = min(LOGIT_ROWS, logit_rows * stride)
        for part, inputs in zip(rows.split(size), text.split(size, dim=1), strict=True):
            sampled = part % stride == 0
            with lane.scope():
                final, logits = head(inputs, sampled.nonzero()[:, 0])
            yield _Piece(part, final, part[sampled], logits)
        return
    for chunk, states in zip(lane.lane.chunks, lane.states, strict=True):
        if not chunk.measured:
            continue
        rows = torch.arange(chunk.start - len(chunk.prefix), chunk.stop)
        size = LOGIT_ROWS if len(rows) <= LOGIT_ROWS else min(LOGIT_ROWS, logit_rows)
        for part, inputs in zip(rows.split(size), states.split(size, dim=1), strict=True):
            with lane.scope():
                final, logits = head(inputs, None)
            text = part >= chunk.start
            if not bool(text.all()):
                part, keep = part[text], text.to(final.device)
                final, logits = final[keep], logits[keep]
            yield _Piece(part, final, part, logits)


def descend(
    model: PreTrainedModel,
    lanes: Sequence[Lane],
    recorder: Recorder,
    *,
    references: Sequence[int] = (0,),
    logit_stride: int = 1,
    limits: Limits | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> None:
    """Take all lanes down the network together.

    Parameters
    ----------
    model : PreTrainedModel
        A supported causal language model, in eval mode.
    lanes : sequence of Lane
        All hold the same text. A lane with a model of its own computes with that.
    recorder : Recorder
        Receives hidden states, keys, values and logits.
    references : sequence of int
        The lanes that others are compared with, in the order in which :meth:`Recorder.final` hears of them. The
        first one sets the stretches.
    logit_stride : int
        Logits are computed for every ``logit_stride``-th token of the text; 1 computes all.
    limits : Limits, optional
        What may be kept in memory.
    on_block : callable, optional
        Called with (blocks done, blocks) after every block.

    Raises
    ------
    UnsupportedModelError
        If the model turns out not to be one that can be driven layer by layer, or a protocol needs of it what it does
        not give.
    """
    limits = limits or Limits()
    depth = len(blocks_of(model))
    descending = [_Descending(lane, lane.model or model) for lane in lanes]
    models = {id(d.model): d.model for d in descending}
    allowed = limits.call_bytes
    for key, each in models.items():
        with weights_of(each).embedding():
            for d in descending:
                if id(d.model) == key:
                    with d.scope():
                        allowed -= d.tap(allowed)
    recorder.hidden(0, "embedding", [d.text(d.states) for d in descending])
    for index in range(depth):
        cached: dict[int, tuple[Tensor, Tensor, list[int]]] = {}
        for key, each in models.items():
            with weights_of(each).block(index):
                for lane, d in enumerate(descending):
                    if id(d.model) == key:
                        with d.scope():
                            cached[lane] = _run_block(index, d, partial(recorder.cached, lane, index + 1))
        in_order = [cached[lane] for lane in range(len(descending))]
        recorder.cache(index + 1, [keys for keys, _, _ in in_order], [values for _, values, _ in in_order])
        recorder.cache_bytes(index + 1, [sizes for _, _, sizes in in_order])
        del in_order
        del cached
        recorder.hidden(index + 1, "block", [d.text(d.states) for d in descending])
        if on_block is not None:
            on_block(index + 1, depth)
    for d in descending:
        d.calls = None
    with ExitStack() as stack:
        heads = {key: stack.enter_context(_head(each)) for key, each in models.items()}
        pieces = [_Pieces(_pieces(d, heads[id(d.model)], logit_stride, limits.logit_rows)) for d in descending]
        _compare_logits(pieces, list(references), recorder)


class _Pieces:
    """A lane's pieces, to be taken up to a token."""

    def __init__(self, pieces: Iterator[_Piece]) -> None:
        self.source = pieces
        self._waiting: deque[_Piece] = deque()

    def up_to(self, end: int) -> Iterator[_Piece]:
        """What there is up to and including token ``end``."""
        while True:
            piece = self._waiting.popleft() if self._waiting else next(self.source, None)
            if piece is None:
                return
            inside, rest = piece.split(end)
            yield inside
            if len(rest.rows):
                self._waiting.append(rest)
                return
            if int(piece.rows[-1]) == end:
                return


def _compare_logits(pieces: Sequence[_Pieces], references: Sequence[int], recorder: Recorder) -> None:
    """Walk the lanes in step: a stretch of the first reference, of the others, then what the other lanes have in it."""
    leader, *others = references
    for stretch in pieces[leader].source:
        stretch.record(leader, recorder)
        end = int(stretch.rows[-1])
        for lane in others:
            _Piece.join(list(pieces[lane].up_to(end))).record(lane, recorder)
        for lane, each in enumerate(pieces):
            if lane not in references:
                for piece in each.up_to(end):
                    piece.record(lane, recorder)
