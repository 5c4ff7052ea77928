"""A fold that is run, against the lane that is measured: the same bits in every layer; and what becomes of it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, half_attention, make_model
from lane_tools import Cached, lane_of
from sweep_tools import tiny_checkpoint

import drift
from drift.errors import ConfigError
from drift.running.checkpoints.loading import load_model
from drift.running.checkpoints.names import Shape
from drift.running.folding.caches import SharedLayer
from drift.running.folding.folded import Folded, Step
from drift.running.folding.sizing import Needs, weights_kept
from drift.running.protocols import available

pytestmark = pytest.mark.numerical

TOKENS, SIZE = 37, 8
# What can be run, under options that change something within so few tokens.
RUN = [
    "append", "restart", "reprime", "isolated", "streaming(sinks=2,window=10,positions=text)",
    "streaming(sinks=2,window=10,positions=cache)", "evict(budget=12)", "quantized(format=int4,axis=channel)",
    "quantized(format=fp8)", "merge(budget=12)", "shifted(append,step=2,by=2)", "perturbed(append,step=1,size=0.01)",
    "perturbed(streaming(sinks=2,window=10,positions=cache),step=2,size=0.01)", "random_walk(append,noise=3)",
    "shifted(reprime,step=1)", "full", "full(attention=eager)", "full(noise=2,seed=3)",
]  # fmt: skip
REFUSED = {
    "decode(append,tokens=3)": "name the protocol whose cache is generated from: append",
    "decode(append,tokens=1)": "name the protocol whose cache is generated from: append",
    "one_step(append)": "only a pass beside it has",
    "shifted(one_step(append),step=1)": "only a pass beside it has",
    "full(batch=2)": "disturbs full attention",
    "isolated(probe=1)": "its cache is that of isolated",
}


def text_of(tokens: int = TOKENS, seed: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, 97, size=tokens))


def model_of(family: str, dtype: str = "float32") -> Any:
    # transformers offers no sdpa for Gemma 2: its attention caps its scores.
    return make_model(family, dtype, "eager" if family == "gemma2" else "sdpa")


def assert_same(folded: Folded, lane: Cached) -> None:
    assert len(folded.cache.layers) == len(lane.last)
    for block, layer in enumerate(folded.cache.layers, 1):
        keys, values = lane.last[block]
        assert torch.equal(layer.keys[0], keys), f"keys of block {block}"
        assert torch.equal(layer.values[0], values), f"values of block {block}"
    assert [step.carried_bytes for step in folded.steps] == [sum(step) for step in zip(*lane.sizes, strict=True)]


#: Every protocol with three ways to keep a cache, and every family with what keeps it and what edits it.
WHOLE = ("llama", "gemma3-short-window", "qwen3-moe")
KEPT = [(f, p) for f in FAMILIES for p in RUN if p in (RUN[0], RUN[5]) or f in WHOLE]


@pytest.mark.parametrize(("family", "label"), KEPT)
def test_keys_and_values_are_those_of_the_lane_that_is_measured(family: str, label: str) -> None:
    model, text = model_of(family), text_of()
    assert_same(drift.fold(model, text, SIZE, label), lane_of(model, text, label, SIZE))


@pytest.mark.parametrize("label", RUN)
@pytest.mark.parametrize("family", WHOLE)
def test_in_16_bits_too(family: str, label: str) -> None:
    half_attention("bfloat16", heads=4, tokens=SIZE, features=16)
    model, text = model_of(family, "bfloat16"), text_of()
    assert_same(drift.fold(model, text, SIZE, label), lane_of(model, text, label, SIZE))


@pytest.mark.parametrize("label", [label for label in RUN if label not in ("append", "full", "full(attention=eager)")])
def test_the_cache_is_not_that_of_append(label: str) -> None:
    """Else the tests above would pass for a fold that forgot its protocol."""
    model, text = model_of("llama"), text_of()
    got, append = (drift.fold(model, text, SIZE, each).cache.layers[-1] for each in (label, "append"))
    assert got.keys.shape != append.keys.shape or not torch.equal(got.values, append.values)


def test_every_protocol_is_run_or_refused() -> None:
    names = {label.partition("(")[0] for label in [*RUN, *REFUSED]}
    assert names == set(available())


@pytest.mark.parametrize("label", REFUSED)
def test_what_only_a_comparison_can_run_is_refused_with_the_reason(label: str) -> None:
    with pytest.raises(ConfigError, match="^" + label.split("(")[0]) as refused:
        drift.fold(model_of("llama"), text_of(), SIZE, label)
    assert REFUSED[label] in str(refused.value)


@pytest.mark.parametrize("label", [label for label in RUN if not label.startswith("full(")])
@pytest.mark.parametrize("family", ["llama", "gemma3-long-window"])
def test_tokens_that_follow_are_the_steps_of_decode(family: str, label: str) -> None:
    """The lane of `decode` continues after the text as a fold that is fed token by token."""
    model, text, generated = model_of(family), text_of(), 5
    lane = lane_of(model, text, f"decode({label},tokens={generated + 1})", SIZE)
    folded = drift.fold(model, text[:-generated], SIZE, label)
    for token in text[-generated:]:
        folded.feed(token[None])
    assert_same(folded, lane)
    assert torch.equal(folded.tokens, text)
    assert folded.text_tokens == TOKENS - generated


def test_what_a_step_took_is_recorded() -> None:
    told: list[tuple[Step, int]] = []
    folded = drift.fold(model_of("llama"), text_of(), SIZE, on_step=lambda step, left: told.append((step, left)))
    assert [step for step, _ in told] == folded.steps
    assert [left for _, left in told] == [4, 3, 2, 1, 0]
    assert [(s.chunk.start, s.chunk.stop) for s in folded.steps] == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 37)]
    assert all(step.seconds > 0 and step.peak_bytes > 0 for step in folded.steps)
    assert folded.seconds == sum(step.seconds for step in folded.steps)
    assert folded.peak_bytes == folded.steps[-1].peak_bytes
    config = folded.model.config
    per_slot = 2 * 4 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    assert [s.carried_bytes for s in folded.steps] == [per_slot * n for n in (8, 16, 24, 32, 37)]
    assert folded.cache.bytes == folded.steps[-1].carried_bytes


@pytest.mark.parametrize(
    ("label", "position"),
    [
        ("append", 37), ("restart", 0), ("reprime", 41), ("streaming(sinks=2,window=10,positions=cache)", 12),
        ("shifted(append,step=2,by=2)", 39), ("full", 37),
    ],
)  # fmt: skip
def test_where_positions_go_on(label: str, position: int) -> None:
    assert drift.fold(model_of("llama"), text_of(), SIZE, label).position == position


@pytest.mark.parametrize("label", [label for label in RUN if not label.startswith("full")])
@pytest.mark.parametrize("family", ["llama", "gemma3-short-window"])
def test_a_text_that_goes_on_is_one_text(family: str, label: str) -> None:
    model, text = model_of(family), text_of()
    # The planted step must lie in the first piece, else there is nothing planted yet.
    folded = drift.fold(model, text[: 4 * SIZE], SIZE, label)
    kept = folded.branch()
    folded.extend(text[4 * SIZE :])
    whole = drift.fold(model, text, SIZE, label)
    for a, b in zip(folded.cache.layers, whole.cache.layers, strict=True):
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)
    assert torch.equal(folded.logits, whole.logits)
    assert [step.chunk for step in folded.steps] == [step.chunk for step in whole.steps]
    assert kept.text_tokens == 4 * SIZE
    kept.extend(text[4 * SIZE :])
    assert torch.equal(kept.logits, whole.logits)


def test_a_text_does_not_go_on_behind_a_broken_chunk_or_a_question() -> None:
    model, text = model_of("llama"), text_of()
    broken = drift.fold(model, text[:10], SIZE)
    with pytest.raises(ConfigError, match="would have cut it elsewhere"):
        broken.extend(text[10:])
    asked = drift.fold(model, text[:SIZE], SIZE)
    asked.feed(text[SIZE : 2 * SIZE])
    with pytest.raises(ConfigError, match="feed nothing"):
        asked.extend(text[2 * SIZE :])
    with pytest.raises(ConfigError, match="would have cut it elsewhere"):
        drift.fold(model, text[:SIZE], SIZE, "full").extend(text[SIZE:])


BRANCHED = [
    ("llama", "append"),
    ("gemma3-short-window", "append"),
    ("gemma3-long-window", "restart"),
    ("mistral-window", "append"),
    ("llama", "evict(budget=12)"),
    ("qwen2", "streaming(sinks=2,window=10,positions=cache)"),
    ("llama", "isolated"),
    ("llama", "quantized"),
]


def after(model: Any, text: torch.Tensor, label: str, question: torch.Tensor) -> torch.Tensor:
    return drift.fold(model, text, SIZE, label).feed(question)


@pytest.mark.parametrize(("family", "label"), BRANCHED)
def test_many_questions_are_asked_of_one_prefill(family: str, label: str) -> None:
    model, text = model_of(family), text_of()
    questions = [text_of(11, seed) for seed in (1, 2)]
    want = [after(model, text, label, question) for question in questions]
    folded = drift.fold(model, text, SIZE, label)
    held = [(layer.keys.clone(), layer.values.clone()) for layer in folded.cache.layers]
    got = [folded.branch().feed(question) for question in questions]
    both = [folded.branch() for _ in questions]  # two at once, a chunk in turn
    for start in (0, SIZE):
        for branch, question in zip(both, questions, strict=True):
            branch.feed(question[start : start + SIZE])
    for question, one, other in zip(want, got, both, strict=True):
        assert torch.equal(question, one)
        assert torch.equal(question, other.logits)
    assert not torch.equal(*want)
    for layer, (keys, values) in zip(folded.cache.layers, held, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert torch.equal(folded.feed(questions[1]), want[1])
    assert torch.equal(both[0].feed(questions[1]), after_both(model, text, label, questions))


def after_both(model: Any, text: torch.Tensor, label: str, questions: list[torch.Tensor]) -> torch.Tensor:
    folded = drift.fold(model, text, SIZE, label)
    for question in questions:
        folded.feed(question)
    return folded.logits


def homes(folded: Folded) -> set[int]:
    return {x.data_ptr() for layer in folded.cache.layers for x in (layer.keys, layer.values)}


def test_a_branch_copies_no_keys_and_values() -> None:
    folded = drift.fold(model_of("llama"), text_of(), SIZE)
    before = homes(folded)
    for seed in (1, 2, 3):
        branch = folded.branch()
        branch.feed(text_of(11, seed))
        assert homes(branch) == before
        grandchild = branch.branch()
        grandchild.feed(text_of(3))
        assert homes(grandchild) == before
        del branch, grandchild
    first, second = folded.branch(), folded.branch()
    first.feed(text_of(5))
    second.feed(text_of(5))
    assert homes(first) == before
    assert not homes(second) & before, "two branches write into the same place"
    folded.feed(text_of(5, 2))
    assert not homes(folded) & homes(first)


def test_no_room_is_left_behind_by_questions() -> None:
    """What branches took is gone with them."""
    folded = drift.fold(model_of("llama"), text_of(), SIZE, spare_slots=16)

    def tensors() -> int:
        gc.collect()
        there = [x.untyped_storage() for x in gc.get_objects() if type(x) is torch.Tensor]
        return sum({storage.data_ptr(): storage.nbytes() for storage in there}.values())

    folded.branch().feed(text_of(11))
    before = tensors()
    for seed in range(5):
        folded.branch().feed(text_of(11, seed))
    assert tensors() == before


def test_a_room_that_is_full_is_made_larger_for_all_who_share_it() -> None:
    model, text = model_of("llama"), text_of()
    folded = drift.fold(model, text, SIZE, spare_slots=0)
    before = homes(folded)
    branch = folded.branch()
    branch.feed(text_of(11))
    assert homes(branch) == homes(folded)
    assert homes(folded) != before
    assert torch.equal(branch.logits, after(model, text, "append", text_of(11)))
    del branch
    assert torch.equal(folded.feed(text_of(11, 1)), after(model, text, "append", text_of(11, 1)))


def layer_of(*sizes: int, slots: int = 12) -> tuple[SharedLayer, torch.Tensor]:
    layer, parts = SharedLayer(slots), []
    for size in sizes:
        parts.append(torch.randn(1, 2, size, 4, generator=torch.Generator().manual_seed(len(parts))))
        layer.update(parts[-1], -parts[-1])
    return layer, torch.cat(parts, -2)


def test_a_shared_layer_is_a_layer_of_transformers() -> None:
    layer, held = layer_of(3, 5, 9)
    assert torch.equal(layer.keys, held)
    assert torch.equal(layer.values, -held)
    branch = layer.branched()
    branch.crop(-10)
    assert torch.equal(branch.keys, held[..., :7, :])
    more = torch.ones(1, 2, 2, 4)
    branch.update(more, more)  # the slots behind it belong to `layer`
    assert torch.equal(branch.keys, torch.cat([held[..., :7, :], more], -2))
    assert torch.equal(layer.keys, held)
    layer.crop(-10)
    layer.update(more, more)
    assert torch.equal(layer.keys, branch.keys)
    assert layer.get_seq_length() == 9
    layer.reorder_cache(torch.tensor([0, 0]))
    layer.update(more.expand(2, -1, -1, -1), more.expand(2, -1, -1, -1))
    assert layer.keys.shape == (2, 2, 11, 4)
    assert torch.equal(layer.keys[1, :, :9], branch.keys[0])
    layer.reset()
    layer.update(more, more)
    assert torch.equal(layer.keys, more)
    assert branch.get_seq_length() == 9


def test_a_layer_with_other_keys_in_its_place_is_left_alone_when_a_room_grows() -> None:
    layer, held = layer_of(3, 5)
    branch = layer.branched()
    branch.keys, branch.values = 2 * held, 3 * held
    layer.update(*[torch.ones(1, 2, 30, 4)] * 2)
    assert torch.equal(branch.keys, 2 * held)
    branch.update(*[torch.zeros(1, 2, 1, 4)] * 2)
    assert torch.equal(branch.values[..., :8, :], 3 * held)
    assert torch.equal(layer.keys[..., :8, :], held)


def test_others_go_on_with_the_cache_outside_of_drift() -> None:
    model, text = model_of("gemma3-short-window"), text_of()
    folded = drift.fold(model, text, SIZE)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    whole = torch.cat([text, text_of(3)])[None]
    out = model.generate(whole, past_key_values=folded.branch().cache, **options)
    again = model.generate(whole, past_key_values=folded.branch().cache, **options)
    assert torch.equal(out, again)
    folded.feed(text_of(3))
    assert int(folded.logits.argmax()) == int(out[0, len(whole[0])])


def test_scores_after_every_token_are_those_after_each() -> None:
    model, text = model_of("llama", "float64"), text_of()
    folded = drift.fold(model, text[:16], SIZE)
    every = folded.branch().feed(text[16:], every=True)
    assert every.shape == (TOKENS - 16, 97)
    assert torch.equal(every[-1].argmax(), folded.branch().feed(text[16:]).argmax())
    for count in (1, 8, 9):
        one = folded.branch().feed(text[16 : 16 + count])
        # Rows of one product and of several may round differently: dot products of `hidden_size` terms each.
        bound = 2 * model.config.hidden_size * 2.0**-53 * 97
        torch.testing.assert_close(every[count - 1], one, rtol=bound, atol=bound)


@pytest.mark.parametrize("label", ["append", "evict(budget=12)", "streaming(sinks=2,window=10,positions=cache)"])
def test_streamed_weights_give_the_same_bits(tmp_path: Path, label: str) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    got = []
    for weights in ("resident", "streamed"):
        model, _ = load_model(str(folder), "bf16", weights=weights)
        folded = drift.fold(model, text_of(), SIZE, label)
        got.append((folded.feed(text_of(5)), [layer.keys.clone() for layer in folded.cache.layers]))
    assert torch.equal(got[0][0], got[1][0])
    assert all(torch.equal(a, b) for a, b in zip(got[0][1], got[1][1], strict=True))


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("llama")
    model.train()
    drift.fold(model, text_of(), SIZE, "evict(budget=12)").feed(text_of(3))
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"chunk_size": -3}, "chunk_size is -3"),
        ({"spare_slots": -1}, "spare_slots is -1"),
        ({"protocol": "appendix"}, "Did you mean 'append'"),
        ({"protocol": "shifted(append,step=9)"}, "nothing could be seen of it"),
        ({"dtype": "bf16"}, "dtype is bf16, but the model is in torch.float32"),
        ({"tokens": np.zeros((2, 9), dtype=int)}, "One fold holds one text; got 2"),
        ({"tokens": np.zeros(0, dtype=int)}, "not empty"),
        ({"tokens": np.array([3, 200])}, "another tokenizer"),
        ({"tokens": np.ones(513, dtype=int)}, "beyond the model's context of 512"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, Any], said: str) -> None:
    given = {"tokens": text_of(), "chunk_size": SIZE, **options}
    with pytest.raises(ConfigError, match=said):
        drift.fold(model_of("llama"), **given)


def test_a_text_shorter_than_a_chunk_is_one_chunk() -> None:
    assert len(drift.fold(model_of("llama"), text_of()).steps) == 1
    long = drift.fold(model_of("llama"), np.ones(513, dtype=int), allow_beyond_context=True)
    assert long.position == 513


def test_weights_are_kept_where_they_fit_and_streamed_where_they_do_not() -> None:
    shape = Shape(10, 100, 300, 4, 2, 25, 1000, 1_100_000, 512, True)
    needs = Needs.of(shape, 2, 1000)
    assert needs == Needs(2.2e6, 2 * (100_000 + 200_000), 2 * 10 * 2 * 25 * 2 * 1000)
    assert weights_kept(needs, needs.weights + needs.cache) == "resident"
    assert weights_kept(needs, needs.weights + needs.cache - 1) == "streamed"
    assert weights_kept(needs, needs.streamed + needs.cache) == "streamed"
    with pytest.raises(ConfigError, match=r"0\.0 GB for the cache and 0\.0 GB for the weights"):
        weights_kept(needs, needs.streamed + needs.cache - 1)
    assert weights_kept(None, 0) == weights_kept(needs, None) == "resident"
