"""Models that are not on the tested list are held against their own forward, and refused where they part from it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, make_model
from transformers import DynamicCache

import drift
from drift.errors import ConfigError, UnsupportedModelError
from drift.running.descent import decoders
from drift.running.descent.decoders import blocks_of, driving_of
from drift.running.descent.descending import descend
from drift.running.descent.guard import admit
from drift.running.descent.lanes import Lane, Recorder
from drift.running.descent.taps import noted_attention
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import parse

pytestmark = pytest.mark.numerical

TOKENS, CHUNK = 40, 12
_SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
#: Another name of the blocks, of the cache, outputs in a tuple, positions that begin elsewhere, another rotation.
OTHERS: dict[str, Any] = {
    "GPT2Config": {"n_inner": 48},
    "GPTNeoXConfig": {},
    "BloomConfig": {},
    "RobertaConfig": {"is_decoder": True},
    "CohereConfig": {"num_key_value_heads": 2},
}


def random_model(config: str, **options: Any) -> Any:
    sizes = _SIZES | OTHERS.get(config, {}) | options
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.requires_grad_(False)


def text_of(tokens: int = TOKENS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(3, 97, size=tokens))


def plain_logits(model: Any, ids: torch.Tensor, size: int, cache: Any = None) -> torch.Tensor:
    """The reference: model(chunk, past_key_values=cache), positions left to the model."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    return torch.cat([model(part[None], past_key_values=cache).logits[0] for part in ids.split(size)])


def descended_logits(model: Any, ids: torch.Tensor, size: int) -> torch.Tensor:
    """The descent's, whether it was asked if it may or not."""
    scores: list[torch.Tensor] = []

    class Logits(Recorder):
        def logits(self, lane: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
            scores.append(logits.clone())

    descend(model, [Lane(ids, parse("append").chunks(len(ids), size))], Logits())
    return torch.cat(scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_the_tested_families_are_on_the_list(family: str) -> None:
    model = make_model(family, attn_implementation="eager" if family == "gemma2" else "sdpa")
    assert decoders.tested(model)
    model.get_decoder().layers[1].forward = model.get_decoder().layers[1].forward
    assert not decoders.tested(model)


@pytest.mark.parametrize("config", OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_models_are_driven_as_they_drive_themselves(config: str, dtype: str) -> None:
    model, ids = random_model(config).to(getattr(torch, dtype)), text_of()
    cell = drift.trace(model, ids, CHUNK, floor_draws=0)
    assert cell.attrs["descent"] == "bitwise"
    with numerics(rung_of(model.dtype)):
        for size in (TOKENS, CHUNK):
            assert torch.equal(descended_logits(model, ids, size), plain_logits(model, ids, size))
        cache = DynamicCache(config=model.config)
        plain_logits(model, ids, CHUNK, cache)
        for folded, plain in zip(drift.fold(model, ids, CHUNK).cache.layers, cache.layers, strict=True):
            assert torch.equal(folded.keys, plain.keys)
            assert torch.equal(folded.values, plain.values)


def test_cells_of_tested_models_say_so() -> None:
    assert drift.trace(make_model("llama"), text_of(), CHUNK, floor_draws=0).attrs["descent"] == "tested"


def scaled_in_place(model: Any) -> None:
    """Changes states between the blocks without making a new tensor of them."""

    def scale(module: Any, args: Any) -> None:
        args[0].mul_(1.5)

    class Scaling(type(model.model)):  # type: ignore[misc]
        @wraps(type(model.model).forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            handles = [block.register_forward_pre_hook(scale) for block in self.layers]
            try:
                return super().forward(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()

    model.model.__class__ = Scaling


def biased_by_the_text(model: Any) -> None:
    """Adds to the score of each token where that token was read, which the final states do not tell."""
    plain = model.forward

    @wraps(plain)
    def forward(input_ids: Any = None, **kwargs: Any) -> Any:
        out = plain(input_ids=input_ids, **kwargs)
        if input_ids is not None and out.logits.shape[1] == input_ids.shape[1]:
            out.logits.scatter_add_(2, input_ids[..., None], torch.ones(*input_ids.shape, 1))
        return out

    model.forward = forward


def forgetful(model: Any) -> None:
    """Attends to the chunk alone, whatever the cache holds."""
    attention = model.model.layers[1].self_attn
    plain = attention.forward

    def forward(hidden_states: Any, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        nothing = torch.zeros(1, 2, hidden_states.shape[1], 8)
        past_key_values.update(nothing, nothing, 1)
        return plain(hidden_states=hidden_states, attention_mask=None, past_key_values=None, **kwargs)

    attention.forward = forward


def counting_calls(model: Any) -> None:
    """Depends on how often a block was called before."""
    block = model.model.layers[2]
    plain, calls = block.forward, [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return plain(*args, **kwargs) * (1 + 1e-3 * (calls[0] % 7))

    block.forward = forward


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (scaled_in_place, r"parts from its own forward in one pass at the embeddings, by .* drift\.logits"),
        (
            biased_by_the_text,
            r"parts from its own forward in one pass at the logits, by .*Chunked inference is possible",
        ),
        (forgetful, r"computes another function in chunks.* is not possible with it .*\(at block 2, by"),
        (counting_calls, r"at block 3, by"),
    ],
)
def test_a_model_that_was_altered_to_be_wrong_is_refused(alter: Any, said: str) -> None:
    model, ids = make_model("llama"), text_of()
    alter(model)
    for run in (lambda: drift.trace(model, ids, CHUNK), lambda: drift.fold(model, ids, CHUNK), lambda: admit(model)):
        with pytest.raises(UnsupportedModelError, match=said):
            run()


def test_what_fails_in_one_precision_is_said_of_that_one() -> None:
    model = random_model("GPTNeoXConfig").double()

    def no_such_operation(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not implemented for 'Double'")

    model.gpt_neox.layers[0].forward = no_such_operation
    with pytest.raises(UnsupportedModelError, match=r"not possible with it in fp64 in transformers .*fails"):
        admit(model)


def test_without_the_guard_such_a_model_would_be_wrong_and_nobody_told() -> None:
    model, ids = make_model("llama"), text_of()
    biased_by_the_text(model)
    with numerics(rung_of(model.dtype)):
        assert not torch.equal(descended_logits(model, ids, CHUNK), plain_logits(model, ids, CHUNK))


def test_a_model_is_looked_at_once_for_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("GPTNeoXConfig")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    admit(model)
    first = len(calls)
    admit(model)
    assert len(calls) == first > 0
    assert driving_of(model).outcome == "bitwise"
    drift.trace(model, text_of(), CHUNK, reference="gold", floor_draws=0)
    assert driving_of(model.double()).dtype is None  # what was found in float32 says nothing of float64


@pytest.mark.parametrize("protocol", ["restart", "isolated", "shifted(append,step=1)", "merge(budget=20)"])
def test_readings_whose_positions_nobody_listens_to_are_refused(protocol: str) -> None:
    model = random_model("BloomConfig")
    with pytest.raises(UnsupportedModelError, match=r"does not listen to position ids.*\(append, reprime\)"):
        drift.trace(model, text_of(), CHUNK, protocol)
    for fine in ("append", "reprime", "quantized"):
        drift.trace(model, text_of(), CHUNK, fine, floor_draws=0)


@pytest.mark.parametrize(
    "protocol", ["streaming(sinks=2,window=20)", "evict(budget=20)", "quantized", "isolated", "one_step(append)"]
)
def test_readings_that_would_leave_an_index_behind_are_refused(protocol: str) -> None:
    model = indexed()
    with pytest.raises(UnsupportedModelError, match=r"layer 0 keeps more than keys and values \(DynamicIndexedLayer\)"):
        drift.trace(model, text_of(), CHUNK, protocol)
    cell = drift.trace(model, text_of(), CHUNK, floor_draws=0)
    assert cell.attrs["descent"] == "bitwise"


def indexed() -> Any:
    return random_model(
        "DeepseekV32Config", num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, n_shared_experts=1, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16, index_n_heads=2, index_head_dim=16, index_topk=64, first_k_dense_replace=1,
    )  # fmt: skip


def test_keys_of_a_block_that_rotates_none_are_not_moved() -> None:
    model = make_model("llama")
    attention = model.model.layers[1].self_attn
    plain = attention.forward

    def unrotated(hidden_states: Any, position_embeddings: Any, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        still = torch.ones_like(cos), torch.zeros_like(sin)
        return plain(hidden_states=hidden_states, position_embeddings=still, **kwargs)

    attention.forward = unrotated
    with pytest.raises(UnsupportedModelError, match=r"block 1 does not rotate its keys.* positions=text"):
        drift.trace(model, text_of(), CHUNK, "streaming(sinks=2,window=20)")
    drift.trace(model, text_of(), CHUNK, "streaming(sinks=2,window=20,positions=text)", floor_draws=0)
    attention.forward = plain
    drift.trace(model, text_of(), CHUNK, "streaming(sinks=2,window=20)", floor_draws=0)


def test_two_directions_of_attention_are_refused_as_what_they_are() -> None:
    with pytest.raises(UnsupportedModelError, match=r"another function in chunks.*There is no fold of it"):
        drift.trace(random_model("BertConfig", is_decoder=False), text_of(), CHUNK)


def test_there_is_nothing_beyond_a_table_of_positions() -> None:
    model = random_model("GPT2Config")
    with pytest.raises(
        ConfigError, match=r"beyond the model's context of 64 tokens\. It looks positions up in a table"
    ):
        drift.trace(model, text_of(70), CHUNK, allow_beyond_context=True)


@pytest.mark.parametrize("config", ["GPT2Config", "GPTNeoXConfig", "RobertaConfig"])
def test_attention_is_what_the_model_itself_puts_out(config: str) -> None:
    model, ids = random_model(config, attn_implementation="eager"), text_of()
    with ExitStack() as stack:
        noted = [stack.enter_context(noted_attention(block, True)) for block in blocks_of(model)]
        told = model(ids[None], output_attentions=True).attentions
    assert [len(each) for each in noted] == [1] * len(told)
    for (seen,), want in zip(noted, told, strict=True):
        assert torch.equal(seen, want)
    assert drift.trace(model, ids, CHUNK, "evict(budget=20)", floor_draws=0).attrs["descent"] == "bitwise"


class Attending(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return states, torch.full((1, 2, 3, self.width), 1 / self.width)


@pytest.mark.parametrize("widths", [(), (3, 4)])
def test_what_may_be_attention_twice_or_not_at_all_is_not_taken_for_it(widths: tuple[int, ...]) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(Attending(width) for width in widths)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                states = part(states)[0]
            return states

    with (
        pytest.raises(
            UnsupportedModelError, match=rf"and {len(widths)} outputs of its modules.* \(append, merge, quant"
        ),
        noted_attention(block := Block(), True),
    ):
        block(torch.zeros(1, 3, 8))
