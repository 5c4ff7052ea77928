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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from drift.errors import UnsupportedModelError
from drift.protocols import Chunk

__all__ = ["LOGIT_ROWS", "Lane", "Recorder", "check_supported", "descend"]

LOGIT_ROWS = 1024
"""Most rows of logits that are ever computed at once in one lane (for Gemma, one row in fp32 is 1 MB).

Up to this many rows a chunk's logits are bitwise those of a plain forward; a longer chunk's are computed in several
products with the output embedding, which may round differently from one.
"""


@dataclass(frozen=True)
class Lane:
    """One way of running one text through the model.

    Attributes
    ----------
    tokens : Tensor
        int64 [token]: the text, the same in all lanes that are compared.
    chunks : tuple of Chunk
        How the text is cut; a single chunk is full attention.
    """

    tokens: Tensor
    chunks: tuple[Chunk, ...]

    def token_ids(self, chunk: Chunk) -> Tensor:
        """int64 [1, token]: what the model is given for a chunk, prefix included."""
        text = self.tokens[chunk.start : chunk.stop]
        if chunk.prefix:
            text = torch.cat([text.new_tensor(chunk.prefix), text])
        return text[None]


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
        """Bytes that the block's cache carries on after each chunk, per lane and chunk."""

    def final(self, lane: int, rows: Tensor, states: Tensor) -> None:
        """States after the final norm [row, feature] of a lane's tokens ``rows`` [row].

        Lane 0 is called first for every stretch of the text; the other lanes follow with pieces that lie within it.
        """

    def logits(self, lane: int, rows: Tensor, logits: Tensor) -> None:
        """Logits [row, vocabulary] of a lane's tokens ``rows`` [row]; the order of calls is that of :meth:`final`."""


class _Tape(DynamicCache):
    """A cache that also keeps what each chunk appended (a sliding window forgets it)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.appended: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note the new keys and values, then cache them as usual."""
        self.appended.append((key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
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


def _tap(model: PreTrainedModel, lane: Lane) -> tuple[list[Tensor], list[list[_Call]]]:
    """Run the model with its blocks tapped.

    Returns
    -------
    embeddings : list of Tensor
        [1, token, feature] per chunk, prefix included.
    calls : list of list of _Call
        Per chunk and block.
    """
    decoder = model.get_decoder()
    blocks = _blocks(model)
    cache = DynamicCache(config=_text_config(model))
    seen: list[tuple[int, Tensor, _Call]] = []

    def make_tap(index: int) -> Callable[..., Tensor]:
        def tap(*args: Any, **kwargs: Any) -> Tensor:
            states = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
            rest = () if not args else args[1:]
            if not isinstance(states, Tensor) or states.ndim != 3:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: block {index} is not called with hidden states [batch, token, feature]; "
                    "this architecture cannot be driven layer by layer."
                )
            if any(a is cache for a in rest) or kwargs.pop("past_key_values", None) is not cache:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: block {index} is not handed the KV cache as past_key_values."
                )
            # A stub of one number per token moves the cache on, as the real keys and values would: masks and
            # positions of the next chunk depend on how much is cached.
            stub = states.new_zeros((1, 1, states.shape[1], 1))
            cache.update(stub, stub, index)
            seen.append((index, states, _Call(rest, kwargs)))
            return states

        return tap

    embeddings: list[Tensor] = []
    calls: list[list[_Call]] = []
    with _replaced(blocks, [make_tap(i) for i in range(len(blocks))]):
        for chunk in lane.chunks:
            seen.clear()
            positions = torch.arange(chunk.first_position, chunk.first_position + len(chunk), device=lane.tokens.device)
            decoder(
                input_ids=lane.token_ids(chunk),
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
            )
            if [index for index, _, _ in seen] != list(range(len(blocks))):
                raise UnsupportedModelError(
                    f"{type(model).__name__} does not call its {len(blocks)} decoder layers once each, in order."
                )
            if any(states is not seen[0][1] for _, states, _ in seen):
                raise UnsupportedModelError(
                    f"{type(model).__name__} does something to the hidden states between its decoder layers, "
                    "which a layer-by-layer descent would miss."
                )
            embeddings.append(seen[0][1])
            calls.append([call for _, _, call in seen])
    return embeddings, calls


@dataclass
class _Descending:
    """A lane on its way down: its hidden states per chunk, and the calls that the tap saw."""

    lane: Lane
    states: list[Tensor]
    calls: list[list[_Call]]

    def text(self, per_chunk: Sequence[Tensor], dim: int = -2) -> Tensor:
        """Join per-chunk tensors along their token axis, prefixes left out."""
        parts = [
            part.narrow(dim, len(chunk.prefix), chunk.stop - chunk.start) if chunk.prefix else part
            for part, chunk in zip(per_chunk, self.lane.chunks, strict=True)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim))[0]


def _run_block(
    model: PreTrainedModel,
    block: torch.nn.Module,
    index: int,
    lane: _Descending,
    on_step: Callable[[int, Tensor, Tensor], None],
) -> tuple[Tensor, Tensor, list[int]]:
    """Take one lane through one block; return the keys, the values and the carried bytes per chunk."""
    tape = _Tape(_text_config(model))
    sizes: list[int] = []
    for step, call in enumerate(calls[index] for calls in lane.calls):
        lane.states[step] = block(lane.states[step], *call.args, past_key_values=tape, **call.kwargs)
        layer = tape.layers[index]
        if len(tape.appended) != step + 1 or not isinstance(layer, DynamicLayer) or layer.keys is None:
            raise UnsupportedModelError(
                f"{type(model).__name__}: block {index} does not cache keys and values of its own once per chunk "
                "(layers that share a cache, or keep none, are not supported)."
            )
        assert layer.values is not None
        on_step(step, layer.keys[0], layer.values[0])
        sizes.append(
            layer.keys.numel() * layer.keys.element_size() + layer.values.numel() * layer.values.element_size()
        )
    keys = lane.text([k for k, _ in tape.appended])
    values = lane.text([v for _, v in tape.appended])
    return keys, values, sizes


Head = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@contextmanager
def _head(model: PreTrainedModel) -> Iterator[Head]:
    """Yield a function from the last block's output to (states after the final norm, logits).

    It is the model's own ``forward`` with the blocks bypassed: the final norm, the output embedding and whatever the
    model does to logits (scaling, soft capping) are computed by transformers. Its second argument names the rows whose
    logits are wanted; None takes all.
    """
    blocks = _blocks(model)
    handed: list[Tensor] = []
    normed: list[Tensor] = []

    def bypass(*args: Any, **kwargs: Any) -> Tensor:
        return handed[0]

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        normed.append(output.last_hidden_state)

    def head(states: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        handed[:] = [states]
        normed.clear()
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        options = {} if keep is None else {"logits_to_keep": keep.to(states.device)}
        logits = model(input_ids=ids, use_cache=False, **options).logits
        handed.clear()
        return normed.pop()[0], logits[0]

    handle = model.get_decoder().register_forward_hook(note)
    try:
        with _replaced(blocks, [bypass] * len(blocks)):
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

    def record(self, lane: int, recorder: Recorder) -> None:
        """Hand what there is to the recorder."""
        if len(self.rows):
            recorder.final(lane, self.rows, self.states)
        if len(self.logit_rows):
            recorder.logits(lane, self.logit_rows, self.logits)


def _pieces(lane: _Descending, head: Head, stride: int) -> Iterator[_Piece]:
    """Yield a lane's text tokens chunk by chunk, at most `LOGIT_ROWS` at a time.

    Where logits are only sampled, the sampled rows of several chunks share one product with the output embedding: a
    large vocabulary is then read once for all of them, and not once a chunk.
    """
    if stride > 1:
        rows, text = torch.arange(len(lane.lane.tokens)), lane.text(lane.states)[None]
        for part, inputs in zip(rows.split(LOGIT_ROWS), text.split(LOGIT_ROWS, dim=1), strict=True):
            sampled = part % stride == 0
            final, logits = head(inputs, sampled.nonzero()[:, 0])
            yield _Piece(part, final, part[sampled], logits)
        return
    for chunk, states in zip(lane.lane.chunks, lane.states, strict=True):
        rows = torch.arange(chunk.start - len(chunk.prefix), chunk.stop)
        for part, inputs in zip(rows.split(LOGIT_ROWS), states.split(LOGIT_ROWS, dim=1), strict=True):
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
    logit_stride: int = 1,
    on_block: Callable[[int, int], None] | None = None,
) -> None:
    """Take all lanes down the network together.

    Parameters
    ----------
    model : PreTrainedModel
        A supported causal language model, in eval mode.
    lanes : sequence of Lane
        Lane 0 is the reference that the others are compared with. All hold the same text.
    recorder : Recorder
        Receives hidden states, keys, values and logits.
    logit_stride : int
        Logits are computed for every ``logit_stride``-th token of the text; 1 computes all.
    on_block : callable, optional
        Called with (blocks done, blocks) after every block.

    Raises
    ------
    UnsupportedModelError
        If the model turns out not to be one that can be driven layer by layer.
    """
    blocks = _blocks(model)
    descending = [_Descending(lane, *_tap(model, lane)) for lane in lanes]
    recorder.hidden(0, "embedding", [d.text(d.states) for d in descending])
    for index, block in enumerate(blocks):
        cached = [
            _run_block(model, block, index, d, partial(recorder.cached, lane, index + 1))
            for lane, d in enumerate(descending)
        ]
        recorder.cache(index + 1, [keys for keys, _, _ in cached], [values for _, values, _ in cached])
        recorder.cache_bytes(index + 1, [sizes for _, _, sizes in cached])
        del cached
        recorder.hidden(index + 1, "block", [d.text(d.states) for d in descending])
        if on_block is not None:
            on_block(index + 1, len(blocks))
    for d in descending:
        d.calls.clear()
    with _head(model) as head:
        _compare_logits([_pieces(d, head, logit_stride) for d in descending], recorder)


def _compare_logits(pieces: Sequence[Iterator[_Piece]], recorder: Recorder) -> None:
    """Walk the lanes in step: a stretch of lane 0, then what the other lanes have within it."""
    waiting: list[deque[_Piece]] = [deque() for _ in pieces]
    for reference in pieces[0]:
        reference.record(0, recorder)
        end = int(reference.rows[-1])
        for lane in range(1, len(pieces)):
            while True:
                piece = waiting[lane].popleft() if waiting[lane] else next(pieces[lane], None)
                if piece is None:
                    break
                inside, rest = piece.split(end)
                inside.record(lane, recorder)
                if len(rest.rows):
                    waiting[lane].append(rest)
                    break
