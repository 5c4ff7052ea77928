"""End to end on a trained checkpoint: bitwise against transformers, and the numbers that rounding theory asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import drift
from drift.dataset.rungs import rung
from drift.running import corpus
from drift.running.checkpoints import loading
from drift.running.model.numerics import numerics


@pytest.fixture(scope="module")
def text(smollm2: str) -> np.ndarray:
    """One document of 300 tokens."""
    tokenizer = loading.load(smollm2, "fp32").tokenizer
    return corpus.documents("pydoc", tokenizer, documents=1, tokens=300)


def test_drift_is_that_of_a_plain_transformers_loop(smollm2: str, text: np.ndarray) -> None:
    model, _ = drift.load_model(smollm2, dtype="bf16")
    cell = drift.trace(model, text[:, :192], 64, half_matmul="float32")
    ids = torch.from_numpy(text[:, :192])
    with numerics(rung("bf16"), half_matmul="float32"):
        full = model(ids, past_key_values=DynamicCache(config=model.config), output_hidden_states=True)
        cache = DynamicCache(config=model.config)
        parts = [model(c, past_key_values=cache, output_hidden_states=True) for c in ids.split(64, 1)]
    for layer in (0, 1, 15, 29):
        want, got = full.hidden_states[layer][0].double(), cell.hidden_rel_l2.isel(document=0, layer=layer)
        for step, out in enumerate(parts):
            a, b = want[64 * step : 64 * step + 64], out.hidden_states[layer][0].double()
            assert float(got[step]) == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-12)
    logits = torch.cat([out.logits[0] for out in parts]).float()
    step = cell.isel(document=0, step=2)
    assert float(step.logit_max_abs) == float((logits - full.logits[0].float())[128:].abs().max())


# 100 divides by none of the tile sizes that CPU kernels work in: with chunks of 64 the first few hundred tokens come
# out bit for bit as in full attention on some machines, and there would be no rounding to measure.
def levels(smollm2: str, text: np.ndarray, dtype: str, **options: Any) -> Any:
    model, _ = drift.load_model(smollm2, dtype=dtype)
    return drift.trace(model, text, 100, half_matmul="float32", logit_stride=4, **options)


def mean_drift(cell: Any) -> float:
    """Drift of the final hidden state, mean over all steps but the first."""
    return float(cell.hidden_rel_l2.isel(layer=-1, step=slice(1, None)).mean())


def test_the_literal_fold_scales_with_the_unit_roundoff(smollm2: str, text: np.ndarray) -> None:
    """drift / unit roundoff stays within two decades over thirteen decades of roundoff, down to true float64."""
    at = {dtype: levels(smollm2, text, dtype) for dtype in ("bf16", "fp16", "fp32", "fp64")}
    late = {dtype: mean_drift(cell) for dtype, cell in at.items()}
    assert 3e-3 < late["bf16"] < 5e-2
    assert 3e-4 < late["fp16"] < 6e-3
    assert 1e-7 < late["fp32"] < 4e-6
    assert late["fp64"] < 1e-13
    assert float(at["fp64"].hidden_rel_l2.max()) < 1e-13
    assert float(at["fp64"].logit_kl.max()) < 1e-24
    nll = {dtype: float(cell.nll_full.mean()) for dtype, cell in at.items()}
    assert all(value == pytest.approx(nll["fp64"], abs=0.02) for value in nll.values())
    assert nll["fp32"] == pytest.approx(nll["fp64"], abs=1e-5)


def test_without_the_guard_float64_is_only_float32_inside(smollm2: str, text: np.ndarray) -> None:
    """The control: transformers' own casts leave a float64 pass five decades short of float64."""
    model, _ = drift.load_model(smollm2, dtype="fp64")
    ids = torch.from_numpy(text[:, :64])
    with torch.inference_mode():
        unguarded = model.model(ids).last_hidden_state
    with numerics(rung("fp64")):
        guarded = model.model(ids).last_hidden_state
    assert float((unguarded - guarded).norm() / guarded.norm()) > 1e-9


def test_structural_readings_do_not_care_about_precision(smollm2: str, text: np.ndarray) -> None:
    level = {}
    for dtype in ("bf16", "fp32"):
        model, _ = drift.load_model(smollm2, dtype=dtype)
        folds = [(32, "restart"), (32, "reprime")]
        cells = drift.trace_folds(model, text[:, :192], folds, half_matmul="float32", logit_stride=8)
        for cell in cells:
            level[str(cell.protocol.values), dtype] = mean_drift(cell)
    for protocol, least in (("restart", 0.3), ("reprime", 0.05)):
        assert level[protocol, "fp32"] > least
        assert level[protocol, "bf16"] == pytest.approx(level[protocol, "fp32"], rel=0.1)
