"""End to end on a trained checkpoint: bitwise against transformers, and the numbers that rounding theory asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rounding import U32, U64, WIDE, apart, norms, times
from transformers import DynamicCache

import drift
from drift.dataset.rungs import rung
from drift.reading.statistics.slope import ROUNDING_MARGIN
from drift.running import corpus
from drift.running.checkpoints import loading
from drift.running.model.numerics import numerics

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def text(smollm2: str) -> np.ndarray:
    """One document of 300 tokens."""
    tokenizer = loading.load(smollm2, "fp32").tokenizer
    return corpus.documents("pydoc", tokenizer, documents=1, tokens=300)


def test_drift_is_that_of_a_plain_transformers_loop(smollm2: str, text: np.ndarray) -> None:
    model, _ = drift.load_model(smollm2, dtype="bf16")
    cell = drift.trace(model, text[:, :192], 64, half_matmul="float32", floor_draws=0)
    ids = torch.from_numpy(text[:, :192])
    with numerics(rung("bf16"), half_matmul="float32"):
        full = model(ids, past_key_values=DynamicCache(config=model.config), output_hidden_states=True)
        cache = DynamicCache(config=model.config)
        parts = [model(c, past_key_values=cache, output_hidden_states=True) for c in ids.split(64, 1)]
    for layer in (0, 1, 15, 29):
        want, got = full.hidden_states[layer][0].double(), cell.hidden_rel_l2.isel(document=0, layer=layer)
        for step, out in enumerate(parts):
            a, b = want[64 * step : 64 * step + 64], out.hidden_states[layer][0].double()
            assert float(got[step]) == pytest.approx(float((a - b).norm() / a.norm()), rel=norms(a.numel()), abs=0)
    logits = torch.cat([out.logits[0] for out in parts]).float()
    step = cell.isel(document=0, step=2)
    assert float(step.logit_max_abs) == float((logits - full.logits[0].float())[128:].abs().max())


# 100 divides by none of the tile sizes that CPU kernels work in: with chunks of 64 the first few hundred tokens come
# out bit for bit as in full attention on some machines, and there would be no rounding to measure.
def levels(smollm2: str, text: np.ndarray, dtype: str, **options: Any) -> Any:
    model, _ = drift.load_model(smollm2, dtype=dtype)
    return drift.trace(model, text, 100, half_matmul="float32", logit_stride=4, floor_draws=0, **options)


def mean_drift(cell: Any) -> float:
    """Drift of the final hidden state, mean over all steps but the first."""
    return float(cell.hidden_rel_l2.isel(layer=-1, step=slice(1, None)).mean())


def full(smollm2: str, text: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """States after the final norm and logits of a plain pass [token, feature], in float64."""
    model, _ = drift.load_model(smollm2, dtype=dtype)
    with numerics(rung(dtype), half_matmul="float32"):
        out = model(torch.from_numpy(text), output_hidden_states=True)
    return out.hidden_states[-1][0].double().numpy(), out.logits[0].double().numpy()


def test_the_literal_fold_scales_with_the_unit_roundoff(smollm2: str, text: np.ndarray) -> None:
    """Over thirteen decades of roundoff, down to true float64; and so does the rounding of full attention itself."""
    at = {dtype: levels(smollm2, text, dtype) for dtype in ("bf16", "fp16", "fp32", "fp64")}
    late = {dtype: mean_drift(cell) for dtype, cell in at.items()}
    u = {dtype: cell.unit_roundoff.item() for dtype, cell in at.items()}
    # Under some kernels a fold and full attention have the same bits: no rounding to scale.
    rounds = [dtype for dtype, level in late.items() if level > 0]
    if len(rounds) > 1:
        slope = np.polyfit(np.log([u[dtype] for dtype in rounds]), np.log([late[dtype] for dtype in rounds]), 1)[0]
        assert slope == pytest.approx(1, abs=ROUNDING_MARGIN)
    assert float(at["fp64"].hidden_rel_l2.max()) < WIDE
    assert float(at["fp64"].logit_kl.max()) < WIDE**2

    states, logits = full(smollm2, text, "fp64")
    own = {}
    for dtype in ("bf16", "fp16", "fp32"):
        near = full(smollm2, text, dtype)
        own[dtype] = np.linalg.norm(near[0][100:] - states[100:]) / np.linalg.norm(states[100:])
        # The fold has roundings of the same make as full attention, on this machine.
        assert late[dtype] <= (1 + times(8)) * own[dtype]
        # An NLL moves by twice the largest change of a logit at most; it is worked out in float32.
        moved = np.abs(near[1] - logits).reshape(3, 100, -1).max(axis=(1, 2))
        rounded = (np.ptp(logits, axis=1).max() + 2) * U32
        np.testing.assert_array_less(abs(at[dtype].nll_full - at["fp64"].nll_full)[0], 2 * moved + rounded)
    assert late["fp64"] <= (1 + times(8)) * own["fp32"] * U64 / U32
    slope = np.polyfit(np.log([u[dtype] for dtype in own]), np.log(list(own.values())), 1)[0]
    assert slope == pytest.approx(1, abs=ROUNDING_MARGIN)


def test_without_the_guard_float64_is_only_float32_inside(smollm2: str, text: np.ndarray) -> None:
    """The control: transformers' own casts leave a float64 pass nine decades short of float64.

    The last norm alone rounds every number to float32. Roundings are even between half an ulp below and above, and
    leading digits are logarithmic: the root of their mean square is 0.42 unit roundoffs.
    """
    model, _ = drift.load_model(smollm2, dtype="fp64")
    ids = torch.from_numpy(text[:, :64])
    with torch.inference_mode():
        unguarded = model.model(ids).last_hidden_state
    with numerics(rung("fp64")):
        guarded = model.model(ids).last_hidden_state
    assert float((unguarded - guarded).norm() / guarded.norm()) > U32 / 3


def test_structural_readings_do_not_care_about_precision(smollm2: str, text: np.ndarray) -> None:
    for dtype in ("bf16", "fp32"):
        model, _ = drift.load_model(smollm2, dtype=dtype)
        folds = [(32, name, to) for name in ("restart", "reprime") for to in ("full", "gold", "fold64")]
        cells = drift.trace_folds(model, text[:, :128], folds, half_matmul="float32", logit_stride=8, floor_draws=0)
        late = [cell.isel(document=0, layer=-1, step=slice(1, None)) for cell in cells]
        for (plain, gold, fold64), least in zip((late[:3], late[3:]), (0.3, 0.05), strict=True):
            wide = gold.hidden_rel_l2_structural
            bound = apart(wide, gold.hidden_rel_l2_full_rounding, fold64.hidden_rel_l2)
            assert (abs(plain.hidden_rel_l2 - wide) <= bound).all()
            assert (bound < wide / 2).all(), "a bound that says nothing"
            assert float(plain.hidden_rel_l2.mean()) > least
