"""A lane on its way down, and the step that it takes: one block, chunk after chunk, with the block's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import (
    Enough,
    RoomyLayer,
    TapeCache,
    carried_tensors,
    convolution_states,
    keeps_slots,
    recurrent_states,
    restore_snapshot,
    states_of,
    take_snapshot,
)
from drift.running.descent.carrying import CarriedStep, KeyRotation, held_by
from drift.running.descent.decoders import blocks_of, driving_of, new_cache
from drift.running.descent.lanes import Lane
from drift.running.descent.taps import (
    Between,
    Call,
    attention_as,
    attention_of,
    call_memory,
    noted_attention,
    tapped_calls,
)
from drift.running.protocols.base import Chunk

__all__ = ["Cached", "DescendingLane", "run_block"]

#: What a block's states [...] of convolutions and of recurrences are told to, with the tokens of the text before them.
OnStates = Callable[[int, list[Tensor], list[Tensor]], None]


@dataclass
class DescendingLane:
    """A lane on its way down.

    It has its hidden states per chunk, what its last block handed on beside them, what its blocks left for later ones,
    and the calls that the tap saw, if they are kept.
    """

    lane: Lane
    model: PreTrainedModel
    states: list[Tensor] = field(default_factory=list)
    calls: list[list[Call]] | None = None
    handed: list[tuple[Any, ...]] = field(default_factory=list)
    between: list[Between] = field(default_factory=list)
    _hands_on: bool = False
    _rotation: KeyRotation | None = None
    _marked: dict[int, DescendingLane] = field(default_factory=dict)

    def tap(self, allowed: float) -> int:
        """Take the lane to its first block; keep its calls if ``allowed`` bytes hold them; return their bytes."""
        kept, held = list[list[Call]](), 0
        disturb = None if self.lane.noise is None else self.lane.noise.stream()
        for chunk, (states, calls) in zip(self.lane.chunks, tapped_calls(self.model, self.lane), strict=True):
            if disturb is not None:
                first = len(chunk.prefix)
                text = disturb(states[0, first:])
                states = torch.cat([torch.cat([states[0, :first], text])[None], states[1:]])
            self.states.append(states)
            self.handed.append(())
            self.between.append({})
            self._hands_on |= any(call.hands_on for call in calls)
            if held <= allowed:
                held += call_memory(calls)
                kept.append(calls)
            if held > allowed:
                kept.clear()
        self.calls = kept if held <= allowed else None
        held = held if self.calls is not None else 0
        return held + self._tap_marks(allowed - held)

    def _tap_marks(self, allowed: float) -> int:
        """Find out how the blocks are called for the text up to each mark within its first chunk; as :meth:`tap`."""
        first, held = self.lane.chunks[0], 0
        if first.prefix or self._hands_on:
            return held
        for mark in self.lane.marks:
            if mark < first.stop:
                part = Chunk(0, mark, first_position=first.first_position)
                upto = DescendingLane(Lane(self.lane.tokens[:mark], (part,)), self.model)
                held += upto.tap(allowed - held)
                upto.states = [states[:, :1].clone() for states in upto.states]  # only what they are like is asked for
                self._marked[mark] = upto
        return held

    def states_at_marks(self, index: int, given: Tensor, written: int) -> Iterator[tuple[int, Any]]:
        """Give a block the text up to each mark once more.

        Parameters
        ----------
        index : int
            The block, from 0.
        given : Tensor
            [text, token, feature]: what it was given of the first chunk.
        written : int
            How often it wrote to its cache then: what comes after that is left out.

        Yields
        ------
        mark : int
        layer
            Of a cache that holds what the block carries on from there.
        """
        for mark, upto in self._marked.items():
            driving = driving_of(self.model)
            tape = new_cache(self.model, TapeCache, index=index, attentions=driving.attentions, enough=written)
            args, kwargs = next(upto.calls_of(index)).given(tape, (), {})
            with suppress(Enough):
                blocks_of(self.model)[index](driving.streams.parted(given[:1, :mark]), *args, **kwargs)
            yield mark, tape.layers[index]

    def forget_calls(self) -> None:
        """Let go of the calls that are kept, and of what blocks left for later ones."""
        self.calls = None
        self.between.clear()
        self._marked.clear()

    def calls_of(self, index: int) -> Iterator[Call]:
        """How a block is called, chunk after chunk."""
        if self.calls is not None:
            yield from (calls[index] for calls in self.calls)
        else:
            for _, calls in tapped_calls(self.model, self.lane, self.states[0]):
                yield calls[index]

    def put_out(self, place: int, out: Any) -> None:
        """Take what a block made of a chunk: its states, or a tuple that begins with them."""
        states, *rest = out if isinstance(out, tuple) else (out,)
        self.states[place] = driving_of(self.model).streams.joined(states)
        if self._hands_on:
            self.handed[place] = tuple(rest)

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
        with self.lane.scope(), attention_as(self.model, attention_of(self.lane.protocol)):
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
        if self._rotation is None:
            self._rotation = KeyRotation(self.model, self.lane.tokens.device)
        return self._rotation.rotate(index, keys, shift, len(self.lane.tokens))


@dataclass
class Cached:
    """What one lane carried in one block.

    Attributes
    ----------
    pair : tuple of Tensor, or None
        Keys and values [head, token, feature] that the text's tokens appended; None of a block that keeps none.
    sizes : list of int
        Bytes that the cache carries on after each chain step.
    states : dict
        States [...] of convolutions, then of recurrences, by the tokens of the text before them: at the ends of chunks
        and at marks, where they are kept.
    """

    pair: tuple[Tensor, Tensor] | None = None
    sizes: list[int] = field(default_factory=list)
    states: dict[int, list[Tensor]] = field(default_factory=dict)


def run_block(
    index: int,
    lane: DescendingLane,
    on_step: Callable[[int, Tensor, Tensor], None],
    source: Cached | None = None,
    on_states: OnStates = lambda tokens, convolved, recurrent: None,
    keep_states: bool = False,
) -> Cached:
    """Take one lane through one block.

    Parameters
    ----------
    index : int
        The block, from 0.
    lane : DescendingLane
        Its states are replaced by what the block puts out.
    on_step : callable
        Called with the chain step and what the cache then holds: keys and values [head, slot, feature].
    source : Cached, optional
        What another lane carried in the block, which is carried on in place of the lane's own.
    on_states : callable
        Called with the tokens of the text that a chunk or a mark ends at, and the states [...] of convolutions and of
        recurrences that the block then holds, if it has any.
    keep_states : bool
        Whether these are kept.

    Raises
    ------
    ProtocolError
        If the protocol leaves another number of slots than it says.
    UnsupportedModelError
        If the block does not cache what its kind of layer says, once per chunk.
    """
    protocol, chunks = lane.lane.protocol, lane.lane.chunks
    attentions = driving_of(lane.model).attentions
    tape = new_cache(lane.model, TapeCache, index=index, slots=lane.slots, attentions=attentions)
    slotted = keeps_slots(tape.layers[index])
    whole = isinstance(tape.layers[index], RoomyLayer) and source is None
    given, written = lane.states[0], 0
    appended: list[tuple[Tensor, Tensor]] = []
    sizes: dict[int, int] = {}
    notes: dict[str, Any] = {}
    found = Cached()
    block = blocks_of(lane.model)[index]
    wanted = slotted and protocol is not None and protocol.wants_attention
    with noted_attention(block, wanted) as probabilities:
        for place, (chunk, call) in enumerate(zip(chunks, lane.calls_of(index), strict=True)):
            probabilities.clear()
            pair = _take_chunk(index, block, lane, place, call, tape)
            if pair is not None and not whole:
                appended.append(pair)
            del pair
            layer, written = tape.layers[index], written or tape.written
            if chunk.kept:
                _tell_states(chunk.stop, layer, on_states, found.states if keep_states else None)
            if chunk.kept and source is not None:
                _take_over(index, lane, chunk, layer, source)
            if chunk.kept and protocol is not None and protocol.carries:
                attention = probabilities[-1] if probabilities else None
                step = CarriedStep(chunk, index, attention, partial(lane.rotate, index), lane.lane.unit_roundoff)
                step.carry(protocol, layer, notes)
            sizes[chunk.step] = sum(x[:1].numel() * x.element_size() for x in carried_tensors(layer))
            if slotted and isinstance(layer.keys, Tensor):
                on_step(chunk.step, layer.keys[0], layer.values[0])
    if recurrent_states(tape.layers[index]) or (keep_states and states_of(tape.layers[index])):
        for mark, layer in lane.states_at_marks(index, given, written):
            _tell_states(mark, layer, on_states, found.states if keep_states else None)
    held = held_by(tape.layers[index]) if whole else None
    found.pair = _of_text(lane, held, appended) if slotted else None
    found.sizes = list(sizes.values())
    return found


def _tell_states(tokens: int, layer: Any, told: OnStates, kept: dict[int, list[Tensor]] | None) -> None:
    """Tell what states a layer holds after so many tokens of the text, and keep them where that is wanted."""
    convolved, recurrent = ([x[0] for x in states] for states in (convolution_states(layer), recurrent_states(layer)))
    if convolved or recurrent:
        told(tokens, convolved, recurrent)
    if kept is not None:
        kept[tokens] = [state.clone() for state in (*convolved, *recurrent)]


def _of_text(
    lane: DescendingLane, held: tuple[Tensor, Tensor] | None, appended: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Keys and values [head, token, feature] of the text: of a cache that holds all, or as they were appended."""
    if held is not None:
        # Without prefixes, what was appended is what the cache holds.
        if not any(chunk.prefix for chunk in lane.lane.chunks):
            return held[0][0], held[1][0]
        lengths = [len(chunk) for chunk in lane.lane.chunks]
        appended = list(zip(held[0].split(lengths, dim=-2), held[1].split(lengths, dim=-2), strict=True))
    return lane.text([k for k, _ in appended]), lane.text([v for _, v in appended])


def _take_chunk(
    index: int, block: torch.nn.Module, lane: DescendingLane, place: int, call: Call, tape: TapeCache
) -> tuple[Tensor, Tensor] | None:
    """Take one chunk through the block; return the keys and values that it computed, and keep them if it is kept."""
    chunk, model = lane.lane.chunks[place], lane.model
    before = [] if chunk.kept else take_snapshot(tape)
    driving = driving_of(model)
    own = new_cache(model, TapeCache, attentions=driving.attentions) if chunk.alone else tape
    args, kwargs = call.given(own, lane.handed[place], lane.between[place])
    lane.put_out(place, block(driving.streams.parted(lane.states[place]), *args, **kwargs))
    if len(own.appended) != int(keeps_slots(own.layers[index])):
        raise UnsupportedModelError(
            f"{type(model).__name__}: block {index} does not cache keys and values of its own once per chunk "
            "(blocks are not supported that keep none where the configuration says that they do, or of which some "
            "attend more often than others)."
        )
    pair = own.appended.pop() if own.appended else None
    if not chunk.kept:
        if not chunk.alone:
            restore_snapshot(tape, before)
    elif chunk.alone and pair is not None:
        tape.layers[index].update(*pair)
    return pair


def _take_over(index: int, lane: DescendingLane, chunk: Chunk, layer: Any, source: Cached) -> None:
    """Put what another lane carries after a chunk in place of what the chunk has just left.

    Keys and values are replaced that the chunk's text appended, and states.
    """
    states = states_of(layer)
    if states and chunk.stop not in source.states:
        raise UnsupportedModelError(
            f"{type(lane.model).__name__}: block {index} is handed more than the states of the block before, so it "
            f"cannot be given the text up to token {chunk.stop} on its own, and no chunk can begin from what full "
            "attention carries there. Chunked inference is possible with it: protocols that go on from chunk to chunk "
            "work (append, restart, reprime)."
        )
    for mine, others in zip(states, source.states.get(chunk.stop, ()), strict=True):
        mine.copy_(others[None])
    if source.pair is None:
        return
    keys, values = held_by(layer)
    count = min(chunk.stop - chunk.start, keys.shape[-2])  # a sliding window may be shorter than the chunk
    moved = chunk.first_position + len(chunk.prefix) - chunk.start
    others, other_values = (x[None, :, chunk.stop - count : chunk.stop] for x in source.pair)
    if moved:
        others = lane.rotate(index, others, torch.full((count,), moved, device=others.device))
    # A layer of the cache has just made these for itself, or has room of its own for them.
    keys[..., -count:, :] = others
    values[..., -count:, :] = other_values
    layer.keys, layer.values = keys, values
