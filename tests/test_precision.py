"""The precision ladder: unit roundoffs, the guard, and switches that are always put back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rounding import U16, U32, gamma

from drift.dataset.rungs import RUNGS, rung
from drift.errors import ConfigError, PrecisionError
from drift.running.model import numerics as model_numerics
from drift.running.model.numerics import default_half_matmul, numerics, rung_of
from drift.running.model.widening import widen

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32", "fp64"])
def test_unit_roundoff_is_half_of_torchs_eps(name: str) -> None:
    assert RUNGS[name].unit_roundoff == torch.finfo(getattr(torch, RUNGS[name].torch_dtype)).eps / 2
    assert rung_of(getattr(torch, RUNGS[name].torch_dtype)) is RUNGS[name]


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'bf16'.*bf16, fp16, tf32, fp32, fp64"):
        rung("bf61")
    with pytest.raises(PrecisionError, match="float8"):
        rung_of(torch.float8_e4m3fn)


def test_weights_are_the_same_numbers_on_every_rung(tiny: Callable[..., Any]) -> None:
    published = tiny("gemma3-long-window", "bfloat16").state_dict()
    for name in ("bf16", "fp32", "fp64"):
        model = tiny("gemma3-long-window", "bfloat16")
        record = widen(model, rung(name))
        assert record == {"published_dtype": "bfloat16", "underflow_share": 0.0}
        for key, value in model.state_dict().items():
            assert value.dtype is getattr(torch, RUNGS[name].torch_dtype)
            assert torch.equal(value.double(), published[key].double()), key
        # The embedding scale is rounded in the published dtype; positions stay in float32.
        assert float(model.model.embed_tokens.embed_scale) == float(torch.tensor(32**0.5).bfloat16())
        assert {b.dtype for n, b in model.named_buffers() if "inv_freq" in n} == {torch.float32}


def test_fp16_overflow_names_the_tensor(tiny: Callable[..., Any]) -> None:
    model = tiny("llama", "bfloat16")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(PrecisionError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 9\.994e\+05"):
        widen(model, rung("fp16"))


def test_fp16_underflow_share_is_recorded(tiny: Callable[..., Any]) -> None:
    model = tiny("llama", "bfloat16")
    weights = torch.cat([p.detach().float().flatten() for p in model.parameters()]).numpy()
    weights = weights[weights != 0]
    model.model.norm.weight.data[:] = 1e-9
    record = widen(model, rung("fp16"))
    lost = (weights.astype(np.float16).astype(np.float32) != weights).sum() + 32
    assert record["underflow_share"] == lost / len(weights)  # a quotient of two counts is rounded once, here and there


def test_narrowing_is_refused(tiny: Callable[..., Any]) -> None:
    with pytest.raises(PrecisionError, match="published in float32, which the rung bf16 would narrow"):
        widen(tiny("llama", "float32"), rung("bf16"))


def test_float64_stays_float64_only_inside_the_guard() -> None:
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    with numerics(rung("fp64")) as record:
        assert record["float64_guard"] is True
        assert x.float().dtype is torch.float64
        assert x.to(torch.float32).dtype is torch.float64
        assert x.to("cpu", dtype=torch.float32).dtype is torch.float64
        assert torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32).dtype is torch.float64
        assert torch.arange(3).float().dtype is torch.float32
        assert x.long().dtype is torch.int64
    assert x.float().dtype is torch.float32
    with numerics(rung("fp32")):
        assert x.float().dtype is torch.float32


def test_half_matmul_in_float32_rounds_once(token_ids: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, generator=generator).bfloat16() for s in ((64, 300), (70, 300)))
    with numerics(rung("bf16"), half_matmul="float32") as record:
        got = torch.nn.functional.linear(x, torch.nn.Parameter(w, requires_grad=False))
        product = x @ w.T
    assert record["half_matmul"] == "float32"
    exact = x.double() @ w.double().T
    # Products of bf16 numbers are exact in float32; a sum of 300 is off by its 299 additions, then rounded to bf16.
    summed = gamma(299, U32) * (x.double().abs() @ w.double().abs().T)
    bound = U16 * exact.abs() + (1 + U16) * summed
    for out in (got, product):
        assert out.dtype is torch.bfloat16
        assert bool(((out.double() - exact).abs() <= bound).all())


def test_half_matmul_leaves_other_dtypes_alone() -> None:
    x = torch.randn(8, 8)
    with numerics(rung("fp32"), half_matmul="float32") as record:
        assert record["half_matmul"] == "native"
        inside = x @ x
    assert torch.equal(inside, x @ x)


def switches() -> tuple[Any, ...]:
    return (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("name", ["bf16", "fp32", "fp64"])
def test_every_switch_is_put_back_even_after_an_error(name: str) -> None:
    before = switches()
    with pytest.raises(ZeroDivisionError), numerics(rung(name), half_matmul="float32"):
        assert switches() != before
        raise ZeroDivisionError
    assert switches() == before


def test_new_tensors_are_not_filled_first_and_determinism_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with numerics(rung("fp32")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_bad_switches() -> None:
    with pytest.raises(ConfigError, match="half_matmul is 'fast'"), numerics(rung("bf16"), half_matmul="fast"):
        pass
    with pytest.raises(PrecisionError, match="needs a CUDA device"), numerics(rung("tf32")):
        pass
    assert default_half_matmul("cuda") == "native"
    assert default_half_matmul("cpu") in ("native", "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma3-short-window"])
def test_every_rung_sees_the_same_positions(family: str, dtype: str, tiny: Callable[..., Any]) -> None:
    """Widening keeps the frequencies of rotary embeddings in float32, whatever the weights are in."""
    model = tiny(family, dtype)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert before
    widen(model, rung("fp64"))
    for name, buffer in model.named_buffers():
        if name in before:
            assert buffer.dtype is torch.float32, name
            assert torch.equal(buffer, before[name]), name


def test_heads_are_repeated_for_every_pass_or_for_none() -> None:
    from transformers.integrations import sdpa_attention

    before = sdpa_attention.use_gqa_in_sdpa
    with pytest.raises(RuntimeError), model_numerics._heads_repeated():
        assert not sdpa_attention.use_gqa_in_sdpa(None, torch.ones(1, 2, 4, 8))
        raise RuntimeError
    assert sdpa_attention.use_gqa_in_sdpa is before
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with model_numerics._math_attention_in_full():
        assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == allowed
