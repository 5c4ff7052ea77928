"""Shapes in which blocks hand on states, keys and values: several streams, several attentions, short contexts."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from conftest import make_model
from lane_tools import lane_of
from transformers.cache_utils import DynamicLayer

import drift
from drift.errors import UnsupportedModelError
from drift.running.descent.caches import JoinedLayer, joined_heads, keeps_slots
from drift.running.descent.decoders import context_of
from drift.running.descent.streams import Streams
from drift.running.descent.trials import trial_chunk, trial_text

TOKENS, STREAMS, WIDTH = 5, 3, 4


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, TOKENS, WIDTH), None), ((1, TOKENS, STREAMS, WIDTH), 2), ((STREAMS, 1, TOKENS, WIDTH), 0)],
)
def test_streams_lie_side_by_side_and_go_back_as_they_were(shape: tuple[int, ...], axis: int | None) -> None:
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    streams = Streams.of("Block", states, TOKENS)
    assert streams == Streams(axis, 1 if axis is None else STREAMS)
    joined, parted = streams.joined(states), streams.parted(streams.joined(states))
    assert joined.shape == (1, TOKENS, WIDTH * streams.count)
    for place in range(streams.count):  # the features of one stream after those of the other
        own = states if axis is None else states.select(axis, place)
        assert torch.equal(joined[..., place * WIDTH : (place + 1) * WIDTH], own)
    assert torch.equal(parted, states)
    assert parted.stride() == states.stride()
    assert torch.equal(streams.first(states), joined[..., :WIDTH])
    assert streams.fits(states)
    assert not streams.fits(states[None])


@pytest.mark.parametrize("states", [None, torch.zeros(TOKENS, WIDTH), torch.zeros(1, TOKENS + 2, WIDTH)])
def test_what_are_no_states_of_the_text_is_not_taken_for_streams(states: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Block is not given hidden states"):
        Streams.of("Block", states, TOKENS)


def _pair(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, tokens, 6, generator=generator), torch.randn(1, 2, tokens, 3, generator=generator)


def test_layers_of_a_block_that_attends_twice_are_one_with_their_heads_side_by_side() -> None:
    layer = JoinedLayer([DynamicLayer(), DynamicLayer()])
    assert layer.keys is None
    first, second = joined_heads([_pair(3, 0), _pair(3, 1)]), joined_heads([_pair(2, 2), _pair(2, 3)])
    layer.update(*first)
    apart = copy.copy(layer)
    layer.update(*second)
    for place, (held, before) in enumerate(zip((layer.keys, layer.values), (apart.keys, apart.values), strict=True)):
        assert torch.equal(held, torch.cat([first[place], second[place]], dim=-2))
        assert torch.equal(before, first[place])
    assert torch.equal(layer.parts[1].keys, torch.cat([_pair(3, 1)[0], _pair(2, 3)[0]], dim=-2))
    assert layer.keys is not None
    layer.keys = layer.keys[..., -1:, :]
    assert [part.keys.shape[-2] for part in layer.parts] == [1, 1]
    assert layer.get_seq_length() == 1


@pytest.mark.parametrize("context", [9, 12, 20, 48])
def test_a_model_of_a_short_context_is_tried_in_chunks_too(context: int) -> None:
    model = make_model("llama", max_position_embeddings=context)
    ids = trial_text(model)
    assert len(ids) <= context
    if len(ids) > 2:
        assert len(ids.split(trial_chunk(len(ids)))) > 2
        model.model.layers[1].self_attn.forward = _forgetting(model.model.layers[1].self_attn.forward)
        with pytest.raises(UnsupportedModelError, match="another function in chunks"):
            drift.trace(model, np.arange(3, 8), 2, floor_draws=0)


def _forgetting(plain: Any) -> Any:
    def forward(hidden_states: Any, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        nothing = torch.zeros(1, 2, hidden_states.shape[1], 8)
        past_key_values.update(nothing, nothing, 1)
        return plain(hidden_states=hidden_states, attention_mask=None, past_key_values=None, **kwargs)

    return forward


def test_a_context_of_minus_one_is_none() -> None:
    model = make_model("llama", max_position_embeddings=-1)
    assert context_of(model) is None
    assert len(trial_text(model)) == 40


#: A fold of whole forward passes, whose caches are transformers' own, beside the descent.
FOLDS = {
    "gemma3n_text": (
        "append",
        "full(noise=1)",
        "isolated",
        "streaming(sinks=2,window=20,positions=text)",
        "evict(budget=20)",
    ),
    "gemma4_text": ("append", "isolated", "streaming(sinks=2,window=20)", "evict(budget=20)"),
    "longcat_flash": ("append", "isolated", "streaming(sinks=2,window=20,positions=text)", "merge(budget=20)"),
}


@pytest.mark.numerical
@pytest.mark.parametrize("key", FOLDS)
def test_edited_caches_of_such_blocks_are_those_of_whole_forward_passes(key: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architectures.build(key)
    ids, chunk = trial_text(model), 12
    for label in FOLDS[key]:
        folded, lane = drift.fold(model, ids, chunk, label), lane_of(model, ids, label, chunk)
        layers = [layer for layer in folded.cache.layers if keeps_slots(layer)]
        each = len(layers) // len(lane.last)
        assert len(lane.last) * each == len(layers)
        for place, (keys, values) in enumerate(lane.last.values()):
            own = layers[place * each : (place + 1) * each]
            assert torch.equal(keys, torch.cat([layer.keys[0] for layer in own])), label
            assert torch.equal(values, torch.cat([layer.values[0] for layer in own])), label
