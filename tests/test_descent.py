"""The descent against a plain transformers loop, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make_model
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from drift.running.descent import caches
from drift.running.descent import taps as descent_taps
from drift.running.descent.descending import descend
from drift.running.descent.lanes import Lane, Limits, Recorder
from drift.running.limits import LOGIT_ROWS
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import parse
from drift.running.protocols.base import Chunk

pytestmark = pytest.mark.numerical

TOKENS = 37


class Everything(Recorder):
    """Keeps all that a descent shows."""

    def __init__(self, lanes: int) -> None:
        self.layers: list[list[torch.Tensor]] = [[] for _ in range(lanes)]
        self.kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(lanes)]
        self.normed: list[list[torch.Tensor]] = [[] for _ in range(lanes)]
        self.scores: list[list[torch.Tensor]] = [[] for _ in range(lanes)]
        self.rows: list[list[int]] = [[] for _ in range(lanes)]
        self.bytes: list[Sequence[Sequence[int]]] = []

    def hidden(self, layer: int, kind: str, states: Sequence[torch.Tensor]) -> None:
        for kept, state in zip(self.layers, states, strict=True):
            kept.append(state.clone())

    def cache(self, block: int, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        for kept, k, v in zip(self.kept, keys, values, strict=True):
            kept.append((k.clone(), v.clone()))

    def cache_bytes(self, block: int, sizes: Sequence[Sequence[int]]) -> None:
        self.bytes.append(sizes)

    def final(self, lane: int, rows: torch.Tensor, states: torch.Tensor) -> None:
        self.normed[lane].append(states.clone())

    def logits(self, lane: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
        self.scores[lane].append(logits.clone())
        self.rows[lane].extend(rows.tolist())


class KeepAll(DynamicCache):
    """An independent record of what the attention layers hand to the cache."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.seen.setdefault(layer_idx, []).append((key_states.clone(), value_states.clone()))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def plain_loop(model: Any, text: torch.Tensor, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The reference: model(chunk, past_key_values=cache), chunk after chunk, prefixes cut from what comes out."""
    cache = KeepAll(model.config)
    layers: list[list[torch.Tensor]] = []
    logits = []
    for chunk in chunks:
        ids = torch.cat([torch.tensor(chunk.prefix, dtype=torch.int64), text[chunk.start : chunk.stop]])[None]
        positions = chunk.first_position + torch.arange(ids.shape[1])[None]
        out = model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, output_hidden_states=True
        )
        skip = len(chunk.prefix)
        layers.append([h[0, skip:] for h in out.hidden_states])
        logits.append(out.logits[0, skip:])
    skips = [len(c.prefix) for c in chunks]
    kept = [
        [torch.cat([p[side][0, :, skip:] for p, skip in zip(pairs, skips, strict=True)], 1) for side in (0, 1)]
        for _, pairs in sorted(cache.seen.items())
    ]
    joined = [torch.cat(parts) for parts in zip(*layers, strict=True)]
    return {"layers": joined, "logits": torch.cat(logits), "kept": kept}


def compare_with_plain(
    model: Any, folds: Sequence[tuple[int, str]], tokens: int = TOKENS, limits: Limits | None = None
) -> None:
    """Assert bitwise equality of everything that a descent shows with the plain loop."""
    text = torch.from_numpy(np.random.default_rng(5).integers(3, model.config.vocab_size, size=tokens))
    chunks = [parse("append").chunks(tokens, tokens)]
    chunks += [parse(p).bind(lambda: 1).chunks(tokens, size) for size, p in folds]
    recorder = Everything(len(chunks))
    with numerics(rung_of(model.dtype)):
        descend(model, [Lane(text, c) for c in chunks], recorder, limits=limits)
        for lane, cut in enumerate(chunks):
            want = plain_loop(model, text, cut)
            blocks = len(want["kept"])
            # hidden_states of transformers: embeddings, blocks 1 .. n-1, and the last block after the final norm
            got = [*recorder.layers[lane][:blocks], torch.cat(recorder.normed[lane])]
            for layer, (a, b) in enumerate(zip(got, want["layers"], strict=True)):
                assert torch.equal(a, b), f"lane {lane}, layer {layer}"
            for block, (a, b) in enumerate(zip(recorder.kept[lane], want["kept"], strict=True)):
                assert torch.equal(a[0], b[0]), f"lane {lane}, keys of block {block + 1}"
                assert torch.equal(a[1], b[1]), f"lane {lane}, values of block {block + 1}"
            assert torch.equal(torch.cat(recorder.scores[lane]), want["logits"]), f"lane {lane}, logits"
            assert recorder.rows[lane] == list(range(tokens))


FOLDS = [(8, "append"), (7, "restart"), (37, "append"), (1, "append"), (12, "reprime"), (16, "append")]


# transformers offers no sdpa for Gemma 2: its attention caps its scores.
IMPLEMENTATIONS = [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if (f, a) != ("gemma2", "sdpa")]


@pytest.mark.parametrize(("family", "attn"), IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_a_plain_loop_bitwise(family: str, dtype: str, attn: str) -> None:
    compare_with_plain(make_model(family, dtype, attn), FOLDS)


@pytest.mark.parametrize(("family", "attn"), dict(reversed(IMPLEMENTATIONS)).items())
def test_arguments_that_are_made_again_are_the_same(family: str, attn: str) -> None:
    compare_with_plain(make_model(family, "bfloat16", attn), FOLDS, limits=Limits(call_bytes=0))


@pytest.mark.parametrize("reading", ["isolated", "streaming(sinks=2,window=9,positions=cache)", "evict(budget=12)"])
def test_arguments_are_made_again_for_every_kind_of_chunk(reading: str) -> None:
    model = make_model("gemma3-short-window", "bfloat16", "eager")
    text = torch.from_numpy(np.random.default_rng(5).integers(3, 97, size=TOKENS))
    protocol = parse(reading)
    lanes = [Lane(text, parse("append").chunks(TOKENS, TOKENS)), Lane(text, protocol.chunks(TOKENS, 8), protocol)]
    seen = []
    for limits in (None, Limits(call_bytes=0), Limits(call_bytes=6000)):
        recorder = Everything(2)
        with numerics(rung_of(model.dtype)):
            descend(model, lanes, recorder, limits=limits)
        seen.append(recorder)
    for other in seen[1:]:
        for lane in range(2):
            assert all(torch.equal(a, b) for a, b in zip(seen[0].layers[lane], other.layers[lane], strict=True))
            assert all(torch.equal(a, b) for a, b in zip(seen[0].scores[lane], other.scores[lane], strict=True))
        assert other.bytes == seen[0].bytes


def test_arguments_are_kept_only_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    text = torch.arange(3, 35)
    lanes = [Lane(text, parse("append").chunks(32, size)) for size in (8, 4)]
    taps: list[int] = []
    plain = descent_taps.Taps.run

    def counted(self: Any, cache: Any, tokens: torch.Tensor, first_position: int) -> Any:
        taps.append(tokens.shape[1])
        return plain(self, cache, tokens, first_position)

    monkeypatch.setattr(descent_taps.Taps, "run", counted)
    counts = {}
    for allowed in (1e9, 3000, 0):
        taps.clear()
        with numerics(rung_of(model.dtype)):
            descend(model, lanes, Everything(2), limits=Limits(call_bytes=allowed))
        counts[allowed] = {size: taps.count(size) for size in (8, 4)}
    # 4 and 8 chunks, once to begin with, and once more in each of 3 blocks where they are not kept
    assert counts == {1e9: {8: 4, 4: 8}, 3000: {8: 4, 4: 32}, 0: {8: 16, 4: 32}}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_cache_with_room_gives_the_same_bits_where_no_head_is_shared(dtype: str, attn: str) -> None:
    """Where every query head has keys of its own, attention works on the cache itself, and not on a copy."""
    model = make_model("llama", dtype, attn, num_key_value_heads=4)
    assert model.model.layers[0].self_attn.num_key_value_groups == 1
    compare_with_plain(model, FOLDS)


def test_nothing_is_joined_to_a_cache_that_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    text = torch.arange(3, 43)
    recorder = Everything(1)
    held: list[int] = []
    monkeypatch.setattr(recorder, "cache", lambda block, keys, values: held.append(keys[0].data_ptr()))
    plain = caches.RoomyLayer.update
    where: set[int] = set()

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        keys, values = plain(self, *args, **kwargs)
        where.add(keys.data_ptr())
        return keys, values

    monkeypatch.setattr(caches.RoomyLayer, "update", watched)
    with numerics(rung_of(model.dtype)):
        descend(model, [Lane(text, parse("append").chunks(40, 8))], recorder)
    # The recorder is shown the very memory that attention worked on.
    assert set(held) <= where


def test_logits_of_long_chunks_come_in_slices_of_the_limit() -> None:
    model = make_model("llama")
    tokens = LOGIT_ROWS + 76
    text = torch.arange(tokens) % 90 + 3
    slices: list[tuple[int, int]] = []

    class Sizes(Recorder):
        def logits(self, lane: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
            slices.append((lane, len(rows)))

    lanes = [Lane(text, parse("append").chunks(tokens, size)) for size in (tokens, 550)]
    with numerics(rung_of(model.dtype)):
        descend(model, lanes, Sizes(), limits=Limits(logit_rows=500))
    assert slices == [(0, 500), (1, 500), (0, 500), (1, 50), (1, 450), (0, 100), (1, 100)]


def test_a_recorder_is_told_which_layer_it_sees() -> None:
    told: list[tuple[int, str]] = []

    class Layers(Recorder):
        def hidden(self, layer: int, kind: str, states: Sequence[torch.Tensor]) -> None:
            told.append((layer, kind))

    model = make_model("llama")
    with numerics(rung_of(model.dtype)):
        descend(model, [Lane(torch.arange(3, 35), parse("append").chunks(32, 8))], Layers())
    assert told == [(0, "embedding"), (1, "block"), (2, "block"), (3, "block")]


def test_what_a_decoder_does_behind_its_blocks_is_done_for_one_token() -> None:
    """Taps go through the model's own forward, whose final norm would otherwise make states of all tokens."""
    model = make_model("llama")
    lane = Lane(torch.arange(3, 35), parse("append").chunks(32, 16))
    seen: list[tuple[int, ...]] = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    with numerics(rung_of(model.dtype)):
        calls = list(descent_taps.tapped_calls(model, lane))
    handle.remove()
    assert [tuple(states.shape[:2]) for states, _ in calls] == [(1, 16), (1, 16)]
    assert seen == [(1, 1), (1, 1)]


def test_blocks_may_be_called_with_arguments_by_place() -> None:
    model = make_model("llama")

    class ByPlace(type(model.model)):  # type: ignore[misc]
        """Attends to the last three tokens, by a mask that blocks are handed without a name."""

        def forward(
            self,
            input_ids: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            inputs_embeds: Any = None,
            **kwargs: Any,
        ) -> Any:
            states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            held, new = past_key_values.get_seq_length() if past_key_values else 0, states.shape[1]
            rotary = self.rotary_emb(states, torch.arange(new)[None] if position_ids is None else position_ids)
            distance = torch.arange(held, held + new)[:, None] - torch.arange(held + new)
            mask = torch.zeros(distance.shape, dtype=states.dtype).masked_fill((distance < 0) | (distance > 2), -1e9)
            hidden = [states]
            for layer in self.layers:
                states = layer(states, mask[None, None], position_embeddings=rotary, past_key_values=past_key_values)
                hidden.append(states)
            hidden[-1] = self.norm(states)
            return BaseModelOutputWithPast(last_hidden_state=hidden[-1], hidden_states=tuple(hidden))

    plain = make_model("llama")
    model.model.__class__ = ByPlace
    compare_with_plain(model, [(8, "append"), (37, "append")])
    text = torch.arange(3, 23)
    wide, narrow = Everything(1), Everything(1)
    for network, recorder in ((plain, wide), (model, narrow)):
        with numerics(rung_of(network.dtype)):
            descend(network, [Lane(text, parse("append").chunks(20, 8))], recorder)
    assert not torch.equal(wide.layers[0][1], narrow.layers[0][1])  # the mask is seen
