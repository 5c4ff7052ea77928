"""The descent against a plain transformers loop, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make_model
from transformers import DynamicCache

from drift.descent import Lane, Recorder, descend
from drift.precision import numerics, rung_of
from drift.protocols import Chunk, parse

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


def compare_with_plain(model: Any, folds: Sequence[tuple[int, str]], tokens: int = TOKENS) -> None:
    """Assert bitwise equality of everything that a descent shows with the plain loop."""
    text = torch.from_numpy(np.random.default_rng(5).integers(3, model.config.vocab_size, size=tokens))
    chunks = [parse("append").chunks(tokens, tokens)]
    chunks += [parse(p).bind(lambda: 1).chunks(tokens, size) for size, p in folds]
    recorder = Everything(len(chunks))
    with numerics(rung_of(model.dtype)):
        descend(model, [Lane(text, c) for c in chunks], recorder)
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
