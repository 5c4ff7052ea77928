"""Datasets from models: against numbers worked out from a plain transformers loop, and against theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounding import U32, U64, WIDE, apart, divergences, gamma, norms, times
from transformers import DynamicCache

import drift
from drift.dataset.comparing import same_data
from drift.dataset.validating import validate
from drift.errors import ConfigError, UnsupportedModelError

pytestmark = pytest.mark.numerical


def plain(model: Any, ids: Any, size: int, restart: bool = False) -> dict[str, Any]:
    """Hidden states [layer, token, feature], keys and logits of a plain loop, in float64."""
    cache = DynamicCache(config=model.config)
    layers, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(ids), size):
            chunk = torch.as_tensor(ids[start : start + size])[None]
            out = model(
                chunk,
                position_ids=torch.arange(chunk.shape[1])[None] + (0 if restart else start),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
            layers.append(torch.stack(out.hidden_states)[:, 0].double())
            logits.append(out.logits[0].double())
    return {
        "layers": torch.cat(layers, 1).numpy(),
        "keys": torch.stack([layer.keys[0] for layer in cache.layers]).double().numpy(),
        "logits": torch.cat(logits).numpy(),
    }


NUMBERS = [("append", "float32"), ("restart", "float32"), ("restart", "bfloat16")]


@pytest.mark.parametrize(("protocol", "dtype"), NUMBERS)
def test_numbers_are_those_of_a_plain_loop(
    protocol: str, dtype: str, tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("qwen2", dtype), token_ids(2, 30)
    cell = drift.trace(model, ids, 8, protocol)
    validate(cell)
    assert dict(cell.sizes) == {"document": 2, "layer": 5, "step": 4, "quantile": 9, "block": 3, "draw": 2}
    for document in range(2):
        full, fold = plain(model, ids[document], 30), plain(model, ids[document], 8, protocol == "restart")
        for step, start in enumerate(range(0, 30, 8)):
            part = slice(start, min(start + 8, 30))
            at = cell.isel(document=document, step=step)
            # transformers' last hidden state is after the final norm: layers 0, 1, 2 and 4 of ours
            for ours, theirs in ((0, 0), (1, 1), (2, 2), (4, 3)):
                a, b = full["layers"][theirs, part], fold["layers"][theirs, part]
                want = np.linalg.norm(a - b) / np.linalg.norm(a)
                assert float(at.hidden_rel_l2.isel(layer=ours)) == pytest.approx(want, rel=norms(a.size), abs=0)
                assert float(at.hidden_max_abs.isel(layer=ours)) == np.abs(a - b).max()
            a, b = full["keys"][:, :, part], fold["keys"][:, :, part]
            want = np.sqrt(((a - b) ** 2).sum((1, 2, 3)) / (a**2).sum((1, 2, 3)))
            np.testing.assert_allclose(at.key_rel_l2, want, rtol=norms(a[0].size))
            a, b = full["logits"][part], fold["logits"][part]
            # float32: differences and squares are rounded, three times above and once below the root's fraction.
            want = np.linalg.norm(a - b) / np.linalg.norm(a)
            assert float(at.logit_rel_l2) == pytest.approx(want, rel=gamma(2, U32) + norms(a.size), abs=0)
            targets = np.array([*ids[document][part.start + 1 : part.stop + 1], -1])[: len(a)]
            bound = divergences(a, b, targets, U32)
            log_p = torch.log_softmax(torch.from_numpy(a), -1).numpy()
            log_q = torch.log_softmax(torch.from_numpy(b), -1).numpy()
            kl = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
            assert float(at.logit_kl) == pytest.approx(kl, rel=0, abs=bound.kl.mean())
            there = targets >= 0
            rows = np.flatnonzero(there), targets[there]
            assert float(at.nll_full) == pytest.approx(-log_p[rows].mean(), rel=0, abs=bound.nll_full[there].mean())
            assert float(at.nll_fold) == pytest.approx(-log_q[rows].mean(), rel=0, abs=bound.nll_fold[there].mean())
            assert int(at.target_count) == len(rows[0])
    if protocol == "restart":
        # What is wrong in the first digits of the format is no rounding.
        seen = float(cell.hidden_rel_l2.isel(layer=-1, step=-1).min())
        assert seen > cell.unit_roundoff.item() ** 0.5, "the comparison saw no drift at all"
    # 3 layers x (keys + values) x 2 heads x 8 features
    per_token = 96 * (4 if dtype == "float32" else 2)
    np.testing.assert_array_equal(cell.cache_bytes.isel(document=0), per_token * np.array([8, 16, 24, 30]))


def test_a_single_chunk_is_full_attention_and_reads_exactly_zero(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    cell = drift.trace(tiny("llama", "bfloat16"), token_ids(1, 24), chunk_size=24)
    for name in ("hidden_rel_l2", "hidden_cosine_distance", "key_rel_l2", "value_rel_l2", "logit_kl", "logit_max_abs"):
        assert not cell[name].values.any(), name
    assert (cell.top1_agreement == 1).all()


def test_folds_that_share_a_descent_do_not_touch_each_other(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("gemma3-short-window", "bfloat16"), token_ids(2, 40)
    folds = [(8, "append"), (5, "reprime"), (16, "restart")]
    together = drift.trace_folds(model, ids, folds)
    swapped = drift.trace_folds(model, ids, folds[::-1])[::-1]
    for (size, protocol), cell, other in zip(folds, together, swapped, strict=True):
        assert same_data(cell, drift.trace(model, ids, size, protocol)) == []
        assert same_data(cell, other) == []
    assert same_data(together[0], together[1]) != []


@given(st.integers(2, 40), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_chunk_size_in_float64_agrees_to_float64(tokens: int, data: st.DataObject) -> None:
    """The literal fold is full attention: whatever the cut, true float64 leaves only its own rounding.

    Anything that is rounded to float32 on the way would leave four decades more than the bound.
    """
    size = data.draw(st.integers(1, tokens))
    ids = np.random.default_rng(tokens).integers(3, 97, tokens)
    cell = drift.trace(_float64_model(), ids, size)
    assert float(cell.hidden_rel_l2.max()) < WIDE
    assert float(cell.key_rel_l2.max()) < WIDE
    assert float(cell.logit_kl.max()) < WIDE**2  # to second order half of a variance


def _float64_model(cache: dict[str, Any] = {}) -> Any:  # noqa: B006 - built once for all examples
    if "model" not in cache:
        cache["model"] = make_model("qwen3", "float64")
    return cache["model"]


def test_structural_protocols_do_not_shrink_with_the_unit_roundoff(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    ids = token_ids(1, 48)
    level, rounding = {}, {}
    protocols = ("append", "restart", "reprime")
    for dtype in ("float32", "float64"):
        folds = [(8, protocol, reference) for reference in ("full", "gold", "fold64") for protocol in protocols]
        for cell in drift.trace_folds(tiny("llama", dtype), ids, folds):
            at = cell.isel(document=0, layer=-1, step=-1)
            names = str(cell.protocol.values), dtype, str(cell.reference.values)
            level[names] = at.hidden_rel_l2.item()
            if "gold" in names:
                rounding[dtype] = at.hidden_rel_l2_full_rounding.item()
    # Full attention and the fold have roundings of the same make: those of the fold are at most so many times larger.
    own = rounding["float32"]
    assert level["append", "float32", "full"] <= (1 + times(8)) * own
    assert level["append", "float64", "full"] <= (1 + times(8)) * own * U64 / U32
    for protocol in ("restart", "reprime"):
        wide = level[protocol, "float64", "full"]
        assert wide > U32**0.5
        bound = apart(wide, own, level[protocol, "float32", "fold64"])
        assert level[protocol, "float32", "full"] == pytest.approx(wide, rel=0, abs=bound)
        assert bound < 1e-3 * wide, "a bound that says nothing"


def test_logit_stride_samples_the_same_numbers(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    model, ids = tiny("gemma2", "float32", "eager"), token_ids(1, 26)
    every = drift.trace(model, ids, 1, logit_stride=1)
    third = drift.trace(model, ids, 5, logit_stride=3)
    assert third.logit_count.values.tolist() == [[2, 2, 1, 2, 2, 0]]
    assert third.target_count.values.tolist() == [[2, 2, 1, 2, 2, 0]]
    want = every.nll_full.values[0, ::3]
    # Logits of other rows at once are other sums of 32 products; an NLL moves by twice the largest of them at most,
    # and is worked out in float32 from exponents of up to twice the largest logit.
    with torch.inference_mode():
        states = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1][0]
    most = states.norm(dim=-1).max().item() * model.lm_head.weight.norm(dim=-1).max().item()
    bound = 4 * gamma(32, U32) * most + 2 * (2 * most + 2) * U32
    np.testing.assert_allclose(third.nll_full.values[0, :2], [want[:2].mean(), want[2:4].mean()], rtol=0, atol=bound)
    assert np.isnan(third.logit_kl.values[0, -1])
    np.testing.assert_array_equal(third.hidden_rel_l2, drift.trace(model, ids, 5).hidden_rel_l2)


def test_nonfinite_weights_are_counted_and_stop_nothing(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    cell = drift.trace(model, token_ids(1, 16), 8)
    validate(cell)
    assert not cell.nonfinite_count.sel(layer=[0, 1]).values.any()
    assert (cell.nonfinite_count.sel(layer=2) == 8).all()  # one feature of each of the chunk's 8 tokens
    assert np.isnan(cell.hidden_rel_l2.isel(layer=-1)).all()
    assert (cell.logit_nonfinite_count > 0).all()


def test_model_is_left_as_it_was(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    model = tiny("llama").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drift.trace(model, token_ids(1, 12), 4)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_taps_come_off_after_an_error(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    model = tiny("llama")

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drift.trace(model, token_ids(1, 12), 4, on_progress=stop)
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_models_without_a_cache_are_refused() -> None:
    config = transformers.RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    with pytest.raises(UnsupportedModelError, match=r"no KV cache.*possible with it.*drift\.logits"):
        drift.trace(transformers.AutoModelForCausalLM.from_config(config), np.arange(10), 4)


def test_foreign_models_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not a transformers model"):
        drift.trace(torch.nn.Linear(2, 2), np.arange(10), 4)  # type: ignore[arg-type]
    headless = transformers.AutoModel.from_config(make_model("llama").config)
    with pytest.raises(UnsupportedModelError, match="no language-model head"):
        drift.trace(headless, np.arange(10), 4)


def test_a_model_that_the_tap_does_not_understand_is_refused(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    inner = model.model

    class Doubling(type(inner)):  # type: ignore[misc]
        def forward(self, input_ids: Any, position_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
            states, held = self.embed_tokens(input_ids), past_key_values.get_seq_length()
            own = torch.arange(held, held + states.shape[1])
            rotary = self.rotary_emb(states, own[None] if position_ids is None else position_ids)
            seen = (own[:, None] >= torch.arange(held + states.shape[1]))[None, None]
            for layer in self.layers:
                states = 2 * layer(
                    states, attention_mask=seen, position_embeddings=rotary, past_key_values=past_key_values
                )
            return transformers.modeling_outputs.BaseModelOutputWithPast(last_hidden_state=self.norm(states))

    inner.__class__ = Doubling
    with pytest.raises(UnsupportedModelError, match="between its decoder layers"):
        drift.trace(model, np.arange(3, 13), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"chunk_size": 99}, "chunk_size is 99"),
        ({"protocol": "apend"}, "Did you mean 'append'"),
        ({"tokens": np.zeros((2, 0), dtype=int)}, "not empty"),
        ({"tokens": np.zeros((2, 3))}, "must be integers"),
        ({"tokens": np.full(8, 97)}, "come from another tokenizer"),
        ({"tokens": np.full(8, -1)}, "come from another tokenizer"),
        ({"tokens": np.full(513, 5)}, "beyond the model's context of 512"),
        ({"tokens": np.full(512, 5), "protocol": "reprime"}, "reaches position 639"),
        ({"protocol": "reprime(token=97)"}, "not in the model's vocabulary"),
        ({"logit_stride": 0}, "logit_stride is 0"),
        ({"labels": {"dtype": "bf16"}}, "the model is in torch.float32"),
    ],
)
def test_bad_arguments_say_what_is_wrong(tiny: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    arguments = {"tokens": np.full(16, 5), "chunk_size": 4, **change}
    with pytest.raises(ConfigError, match=message):
        drift.trace(tiny("llama"), **arguments)


def test_beyond_the_context_is_an_explicit_choice(tiny: Callable[..., Any]) -> None:
    cell = drift.trace(tiny("llama"), np.full(520, 5), 260, allow_beyond_context=True, logit_stride=130)
    assert cell.sizes["step"] == 2


def test_importing_drift_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, drift; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'xarray', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_autocast_around_a_pass_changes_nothing(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    model, tokens = tiny("llama"), token_ids(2, 28)
    expected = drift.trace(model, tokens, chunk_size=7)
    with torch.autocast("cpu", torch.bfloat16):
        found = drift.trace(model, tokens, chunk_size=7)
    assert same_data(expected, found) == []


def test_an_error_planted_where_nothing_can_show_it_is_refused(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, tokens = tiny("llama"), token_ids(1, 28)
    for late, good in (("shifted(append,step=4)", "shifted(append,step=3)"),
                       ("perturbed(append,step=3,size=0.1)", "perturbed(append,step=2,size=0.1)")):  # fmt: skip
        with pytest.raises(ConfigError, match="the chain has the steps 0 to 3"):
            drift.trace(model, tokens, chunk_size=7, protocol=late)
        assert float(drift.trace(model, tokens, chunk_size=7, protocol=good).hidden_rel_l2[0, -1, -1]) > U32**0.5
    decoded = drift.trace(model, tokens, chunk_size=7, protocol="decode(shifted(append,step=2),tokens=5)")
    assert decoded.sizes["step"] == 5


def test_a_perturbation_stays_where_keys_are_rotated_anew(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    """Nothing is evicted, so counting positions in the cache or in the text is the same."""
    model, tokens = tiny("llama", "float64"), token_ids(1, 48)
    text, cache = (
        drift.trace_folds(
            model, tokens, [(8, f"perturbed(streaming(window=64,positions={p}),step=1,size=0.01)", "unperturbed")]
        )[0]
        for p in ("text", "cache")
    )
    # Keys that are turned by no positions are multiplied by 1, and 0 is added.
    np.testing.assert_array_equal(cache.hidden_rel_l2, text.hidden_rel_l2)
    assert float(text.hidden_rel_l2[0, -1, -1]) > U64**0.5
