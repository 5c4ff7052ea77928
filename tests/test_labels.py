"""Labels taken apart, and which cells count as folds."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

import numpy as np
import pytest
import synthetic
import synthetic_controls as made
from hypothesis import given
from hypothesis import strategies as st

from drift.dataset.choosing import folds, left_out
from drift.dataset.labels import Label, parse_label
from drift.dataset.sweep import Sweep
from drift.errors import ConfigError, DatasetError
from drift.reading import summary
from drift.reading.claims import auditing
from drift.reading.plateau import curves
from drift.running import protocols


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
    assert parse_label(label) == expected


@given(st.integers(0, 500), st.floats(1e-9, 1.0), st.sampled_from(["append", "evict(budget=64)", "a(b(c=1),d=2)"]))
def test_numbers_come_back(step: int, size: float, inner: str) -> None:
    found = parse_label(f"perturbed({inner},step={step},size={size})")
    assert (found.inner, found.number("step"), found.number("size")) == (inner, step, size)


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="(),="), max_size=8).map(str.strip)
OPTIONS = st.dictionaries(st.from_regex(r"[A-Za-z0-9_]{1,6}", fullmatch=True), VALUES, max_size=3)
LABELS = st.recursive(
    st.builds(Label, NAMES, st.just(""), OPTIONS),
    lambda inner: st.builds(Label, NAMES, inner.map(lambda label: label.text), OPTIONS),
    max_leaves=4,
)


@given(LABELS, st.sampled_from(["", " ", "  "]))
def test_a_label_is_read_as_it_was_written(label: Label, space: str) -> None:
    assert parse_label(label.text) == label
    assert list(parse_label(label.text).options) == list(label.options)
    assert parse_label(parse_label(label.text).text).text == label.text
    loose = re.sub(r"([(),=])", rf"{space}\1{space}", label.text)
    assert parse_label(f"{space}{loose}{space}") == label


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"),
        ("Append", "'Append'"),
        ("append(", "'append('"),
        ("append)", "'append)'"),
        ("a(b)(c)", "'b)(c'"),
        ("a(step=1,step=2)", "sets 'step' twice"),
        ("a(step=1,append)", "'append' is no OPTION=VALUE, and not the first"),
        ("a(b(c=1)d)", "'b(c=1)d'"),
    ],
)
def test_what_is_no_label_is_refused_by_both_wings(text: str, part: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(part)):
        parse_label(text)
    with pytest.raises(ConfigError, match=re.escape(part)):
        protocols.parse(text)


@pytest.mark.parametrize("name", protocols.available())
def test_protocols_and_labels_share_one_grammar(name: str) -> None:
    """What running writes is what reading takes apart, and there is no second expression for it."""
    kind = protocols._registry()[name]
    label = f"{name}(append)" if issubclass(kind, protocols.Variation) else name
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name != "protocol"]
    # Some labels say an option even where it is the default.
    spelt = {f.name: str(f.default) for f in fields(kind) if f.name in kind.spelt}
    text = Label(name, parse_label(label).inner, dict.fromkeys(needed, "1")).text
    said = parse_label(text)
    assert parse_label(protocols.parse(text).label) == Label(said.name, said.inner, {**said.options, **spelt})


def test_missing_numbers_are_named() -> None:
    with pytest.raises(DatasetError, match=r"'perturbed' .* no number 'size'"):
        parse_label("perturbed(append,step=4)").number("size")


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
