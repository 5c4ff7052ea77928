"""Labels taken apart, and which cells count as folds."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic
import synthetic_controls as made
from hypothesis import given
from hypothesis import strategies as st

from drift.dataset.choosing import folds, left_out
from drift.dataset.labels import Label, parse
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import summary
from drift.reading.claims import auditing
from drift.reading.plateau import curves


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("append", Label("append")),
        ("reprime(token=1)", Label("reprime", "", {"token": "1"})),
        ("quantized(format=int4,axis=channel)", Label("quantized", "", {"format": "int4", "axis": "channel"})),
        ("decode(append,tokens=32)", Label("decode", "append", {"tokens": "32"})),
        (
            "perturbed(quantized(format=fp8,axis=token),step=4,size=1e-06)",
            Label("perturbed", "quantized(format=fp8,axis=token)", {"step": "4", "size": "1e-06"}),
        ),
    ],
)
def test_labels(label: str, expected: Label) -> None:
    assert parse(label) == expected


@given(st.integers(0, 500), st.floats(1e-9, 1.0), st.sampled_from(["append", "evict(budget=64)", "a(b(c=1),d=2)"]))
def test_numbers_come_back(step: int, size: float, inner: str) -> None:
    found = parse(f"perturbed({inner},step={step},size={size})")
    assert (found.inner, found.number("step"), found.number("size")) == (inner, step, size)


def test_missing_numbers_are_named() -> None:
    with pytest.raises(DatasetError, match=r"'perturbed' .* no number 'size'"):
        parse("perturbed(append,step=4)").number("size")


def test_folds_and_what_is_left_out() -> None:
    plain = synthetic.cells(["tiny"], ["bf16"], ["append", "restart"], [16, 32], layers=2, tokens=128)
    extra = [
        made.make(np.full((2, 8), 0.1), protocol="decode(append,tokens=8)"),
        made.make(np.full((2, 8), 0.1), reference="fold64"),
        made.make(np.full((2, 8), 0.1), protocol="perturbed(append,step=2,size=0.1)", reference="unperturbed"),
    ]
    sweep = Sweep([*plain, *extra], controls=made.controls(dtypes=["bf16"]))
    kept = folds(sweep)
    assert len(kept) == 4
    assert len(kept.controls) == len(sweep.controls)
    assert len(folds(sweep, generating=True)) == 5
    assert len(folds(sweep, "fold64")) == 1
    said = left_out(sweep, kept)
    assert "3 other cells of the sweep are not shown" in said
    assert "1 of append against the same fold in float64, 1 of decode, 1 of perturbed against the same fold" in said
    assert left_out(kept, kept) == ""
    assert said in summary.contents(kept, sweep)
    with pytest.raises(DatasetError, match=r"reference 'gold'.*append against full"):
        folds(sweep, "gold")
    assert len(folds(Sweep([]))) == 0
    found = auditing.audit(sweep, others=())
    assert found.scope == said
    assert [f.words for f in found.findings] == [f.words for f in auditing.audit(kept, others=()).findings]


def test_the_first_step_against_the_previous_one_is_no_finding() -> None:
    ds = made.make(np.full((2, 16), 0.1), reference="previous")
    for name in ds.data_vars:
        if ds[name].dtype.kind == "f":
            if str(name).startswith(("logit", "top1", "delta", "nll")):
                ds[name].values[...] = np.nan
            else:
                ds[name][{"step": 0}] = np.nan
    assert summary.nonfinite(Sweep([ds])).empty
    curve = next(curves.from_cell(ds))
    assert curve.values.shape == (2, 15)
    assert "against previous" in curve.name
    assert np.isfinite(curve.values).all()
    ds["hidden_rel_l2"].values[0, 0, 4] = np.nan
    assert summary.nonfinite(Sweep([ds]))["figures not finite"].tolist() == [1]
