"""What a fold can be compared with, and the parts of its error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import WIDE, gamma, norms
from test_trace import plain

import drift
from drift.dataset.comparing import same_data
from drift.dataset.contract import VARIABLES, Variable
from drift.dataset.rungs import rung
from drift.errors import ConfigError
from drift.running import measures
from drift.running.model.numerics import numerics
from drift.running.model.widening import widen

pytestmark = pytest.mark.numerical

PARTS = measures.PartRows.names


def in_float64(model: Any, ids: Any, size: int, restart: bool) -> dict[str, Any]:
    wide = copy.deepcopy(model)
    widen(wide, rung("fp64"))
    with numerics(rung("fp64")):
        return plain(wide, ids, size, restart)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("protocol", ["append", "restart"])
def test_gold_and_its_parts_are_those_of_plain_loops(
    protocol: str, dtype: str, tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("qwen2", dtype), token_ids(1, 30)
    cell = drift.trace(model, ids, 8, protocol, reference="gold")
    again = drift.trace(model, ids, 8, protocol, reference="fold64")
    restart = protocol == "restart"
    full, fold = plain(model, ids[0], 30), plain(model, ids[0], 8, restart)
    gold, fold64 = in_float64(model, ids[0], 30, False), in_float64(model, ids[0], 8, restart)
    for ours, theirs in ((0, 0), (1, 1), (2, 2), (4, 3)):
        for step, start in enumerate(range(0, 30, 8)):
            part = slice(start, min(start + 8, 30))
            f, c, g, c64 = (x["layers"][theirs, part] for x in (full, fold, gold, fold64))
            at, size = cell.isel(document=0, layer=ours, step=step), np.linalg.norm(g)
            total = np.linalg.norm(c - g)
            assert at.hidden_rel_l2.item() == pytest.approx(total / size, rel=norms(g.size), abs=0)
            vectors = dict(zip(PARTS, (c64 - g, f - g, (c - c64) - (f - g)), strict=True))
            lengths = {name: np.linalg.norm(vector) for name, vector in vectors.items()}
            for name, vector in vectors.items():
                got = at[f"hidden_rel_l2_{name}"].item()
                assert got == pytest.approx(lengths[name] / size, rel=norms(g.size), abs=0)
                if total:
                    want = (vector * (c - g)).sum() / total**2
                    # An inner product, here with the total and there with the sum of the parts, each rounded thrice.
                    whole = lengths[name] / total * (1 + sum(lengths.values()) / total)
                    got = at[f"hidden_share_{name}"].item()
                    assert got == pytest.approx(want, rel=0, abs=2 * gamma(g.size + 8) * whole)
            want = np.linalg.norm(c - c64) / np.linalg.norm(c64)
            got = again.hidden_rel_l2.isel(document=0, layer=ours, step=step).item()
            assert got == pytest.approx(want, rel=norms(c.size), abs=0)
    last = cell.isel(document=0, layer=-1, step=slice(1, None))
    shares = np.stack([last[f"hidden_share_{name}"].values for name in PARTS])
    add_up(shares)
    # What append computes in float64 is full attention in float64; its share is no more than its length's.
    share = last.hidden_rel_l2_structural.values / last.hidden_rel_l2.values
    # What restart leaves to rounding are some unit roundoffs, 0.004 in bf16, beside a drift of a third.
    assert (shares[0] > 0.9).all() if restart else (abs(shares[0]) <= share * (1 + gamma(8 * 32 + 8))).all()
    assert restart or (last.hidden_rel_l2_structural < WIDE).all()


def add_up(shares: np.ndarray) -> None:
    """Assert that shares [part, ...] add up to 1: a quotient, two additions in what it is of, and two here."""
    assert (abs(shares.sum(0) - 1) <= gamma(5) * abs(shares).sum(0)).all()


@given(st.integers(0, 2**32 - 1), st.floats(1e-12, 1.0), st.floats(1e-12, 1.0))
def test_the_shares_add_up_to_one(seed: int, rounding: float, structural: float) -> None:
    rng = np.random.default_rng(seed)
    gold = torch.from_numpy(rng.standard_normal((7, 5)))
    full = gold + rounding * torch.from_numpy(rng.standard_normal((7, 5)))
    fold64 = gold + structural * torch.from_numpy(rng.standard_normal((7, 5)))
    fold = fold64 + rounding * torch.from_numpy(rng.standard_normal((7, 5)))
    out = measures.compare_parts(gold, full, fold64, fold).per_step([0, 4])
    add_up(np.stack([out[f"hidden_share_{name}"] for name in PARTS]))
    split = [measures.compare_parts(*(x[rows] for x in (gold, full, fold64, fold))) for rows in (slice(3), slice(3, 7))]
    joined = measures.PartRows.concatenate(split).per_step([0, 4])
    for name, values in out.items():
        np.testing.assert_array_equal(joined[name], values)


def test_no_error_has_no_shares() -> None:
    x = torch.ones(3, 2)
    out = measures.compare_parts(x, x, x, x).per_step([0])
    assert all(out[f"hidden_rel_l2_{name}"] == 0 for name in PARTS)
    assert all(np.isnan(out[f"hidden_share_{name}"]) for name in PARTS)


def test_what_cannot_be_compared_is_what_the_table_says(
    tiny: Callable[..., Any], token_ids: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the previous step no logits are compared: NaN, or 0 counted, whatever a row is called."""
    rows = {"sharpness": "float64", "ties": "int64"}
    for name, dtype in rows.items():
        monkeypatch.setitem(VARIABLES, name, Variable(("document", "step", "quantile"), "1", name, dtype=dtype))
    monkeypatch.setitem(VARIABLES, "spoken", Variable(("document", "step"), "1", "of some protocols", optional=True))
    cell = drift.trace(tiny("llama", "float32"), token_ids(1, 20), 8, reference="previous")
    assert cell["sharpness"].shape == cell["ties"].shape == (1, 3, 9)
    assert np.isnan(cell["sharpness"]).all()
    assert (cell["ties"] == 0).all()
    assert "spoken" not in cell
    assert (cell["cache_bytes"] > 0).all()


def test_previous_compares_with_the_chunk_before(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    model, ids = tiny("llama", "float32"), token_ids(2, 30)
    cell = drift.trace(model, ids, 8, reference="previous")
    for document in range(2):
        states = plain(model, ids[document], 8)["layers"]
        for ours, theirs in ((0, 0), (2, 2), (4, 3)):
            for step in range(1, 4):
                now = states[theirs, 8 * step : min(8 * step + 8, 30)]
                before = states[theirs, 8 * step - 8 : 8 * step - 8 + len(now)]
                at = cell.isel(document=document, layer=ours, step=step)
                want = np.linalg.norm(now - before) / np.linalg.norm(before)
                assert at.hidden_rel_l2.item() == pytest.approx(want, rel=norms(now.size), abs=0)
    assert cell.hidden_rel_l2.isel(step=0).isnull().all()
    assert not cell.nonfinite_count.values.any(), "a step without a predecessor is no finding"
    assert cell.logit_kl.isnull().all()
    assert not cell.logit_count.values.any()
    single = drift.trace(model, ids, 30, reference="previous")
    assert single.hidden_rel_l2.isnull().all()


def test_references_share_a_descent_without_touching_each_other(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("gemma3-short-window", "bfloat16"), token_ids(2, 40)
    folds = [
        (8, "append", "gold"),
        (8, "append", "full"),
        (5, "reprime", "fold64"),
        (8, "perturbed(append,step=1,size=0.1)", "unperturbed"),
        (8, "decode(append,tokens=4)", "full"),
        (8, "append", "previous"),
        (16, "isolated(probe=1)", "gold"),
        (8, "full(batch=2)", "full"),
    ]
    together = drift.trace_folds(model, ids, folds)
    swapped = drift.trace_folds(model, ids, folds[::-1])[::-1]
    for (size, protocol, reference), cell, other in zip(folds, together, swapped, strict=True):
        assert same_data(cell, other) == []
        assert same_data(cell, drift.trace(model, ids, size, protocol, reference=reference)) == []
    strided = drift.trace_folds(model, ids, folds, logit_stride=3)
    for (_, _, reference), cell, other in zip(folds, together, strided, strict=True):
        np.testing.assert_array_equal(cell.hidden_rel_l2, other.hidden_rel_l2)
        assert reference == "previous" or 0 < int(other.logit_count.sum()) < int(cell.logit_count.sum())


def test_a_float64_model_is_its_own_gold(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    cell = drift.trace(tiny("llama", "float64"), token_ids(1, 24), 8, reference="gold")
    assert not cell.hidden_rel_l2_full_rounding.values.any()
    assert cell.hidden_rel_l2.max().item() < WIDE


def test_an_unknown_reference_says_which_there_are(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="references of append: full, gold, fold64, previous"):
        drift.trace(tiny("llama"), token_ids(1, 24), 8, reference="best")
