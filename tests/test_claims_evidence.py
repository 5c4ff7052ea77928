"""What claims are held against: zeros and NaN, evidence that disagrees; and the measures, layers and margins asked."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from claims_tools import NOT_TESTED, REFUTED, SUPPORTED, UNDETERMINED, amplitude, cell, pair, pooled, power, put

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.errors import ConfigError, DatasetError
from drift.reading.amplitudes import AMPLITUDE_POWERS
from drift.reading.claims import page
from drift.reading.claims import published as claims_published
from drift.reading.claims.auditing import audit
from drift.reading.claims.model import Setting, Status

pytestmark = pytest.mark.numerical


# ------------------------------------------------------------------------------------------ C5, C6
def test_what_drift_does_not_measure_is_not_tested_whatever_the_data() -> None:
    for cells in ([cell()], pair(1.0), [cell(steps=1, documents=1, protocol=p) for p in ("append", "restart")]):
        for measure in ("hidden_rel_l2", "logit_kl"):
            rows = [s for s in audit(Sweep(cells), measure, others=[]).summaries if s.claim.key in ("C5", "C6")]
            assert [(s.claim.key, s.status) for s in rows] == [("C5", NOT_TESTED), ("C6", NOT_TESTED)]
            for s in rows:
                assert len(s.words) > 20
                assert (s.protocol, s.findings, s.others, s.differing) == ("", (), {}, {})


# ------------------------------------------------------------------------------------------ zeros and NaN
def spoilt(how: str) -> list[xr.Dataset]:
    """A sweep in which every comparison meets one cell with zeros or what is not a number."""
    bad = cell(seed=4)
    cells = [cell(dtype="fp32"), cell(model="b"), bad, cell(chunk_size=128, tokens=8192)]
    values = amplitude(bad)
    if how == "all zero":
        values[:] = 0
    elif how == "many zeros":
        values[:, 60::4] = 0
    elif how == "some zeros":
        values[1, 70:73] = 0
        values[4, 50] = 0
    elif how == "some start at zero":
        values[:2, 0] = 0
    elif how == "all start at zero":
        values[:, 0] = 0
    elif how == "zero document":
        values[2] = 0
    else:
        values[3, int(how.split()[-1])] = float(how.split()[0])
    put(bad, values)
    bad.attrs["title"] = "the bad one"
    return cells


@pytest.mark.parametrize(
    "how",
    [
        "all zero", "many zeros", "some zeros", "some start at zero", "all start at zero", "zero document",
        "nan 0", "nan 90", "nan 127", "inf 0", "inf 90",
    ],
)  # fmt: skip
def test_zeros_and_nan_are_said_and_never_a_silent_number(how: str) -> None:
    cells = spoilt(how)
    found = audit(Sweep(cells), others=["logit_kl", "nll_gap"])  # warnings are errors
    json.dumps(found.as_dict(), allow_nan=False)
    page.markdown(found)
    mine = [f for f in found.findings if "the bad one" in f.cells and f"{f.claim} {f.part}" != "C4 plateau"]
    assert {f"{f.claim} {f.part}" for f in mine} == {
        "C1 plateau", "C1 rise", "C2 precision", "C3 chunk size", "C4 level"
    }  # fmt: skip
    for f in mine:
        if how.startswith(("nan", "inf")):
            assert math.isnan(f.estimate)
            assert f.status is UNDETERMINED
            assert any(word in f.words for word in ("NaN or Inf", "cannot be compared", "no level to compare"))
        elif how in ("all zero", "many zeros", "zero document") and f.part != "chunk size":
            assert math.isnan(f.estimate)
            assert f.status is UNDETERMINED
            assert any(word in f.words for word in ("exactly zero", "cannot be compared", "no level to compare"))
        elif f.part != "chunk size":  # a block that is not all zero has a level
            assert "exactly zero" in f.words
        elif not math.isnan(f.estimate):
            (bad,) = (ds for ds in cells if ds.attrs["title"] == "the bad one")
            assert ("exactly zero" in f.words) == bool((pooled(bad, f.measure, 128) == 0).any())
    statuses = {s.claim.name: s.status for s in found.summaries}
    if how.startswith(("nan", "inf", "all zero")):
        assert statuses["C1 plateau"] is UNDETERMINED
        assert statuses["C4 plateau"] is UNDETERMINED


def test_a_curve_whose_every_finding_is_nan_leaves_no_number_in_the_summary() -> None:
    cells = [cell(model=m) for m in "ab"]
    for ds in cells:
        put(ds, np.full((6, 128), np.nan))
    for row in audit(Sweep(cells)).summaries:
        assert row.status in (UNDETERMINED, NOT_TESTED)
        assert "nan" not in row.words.lower().replace("nan or inf", "")


# ------------------------------------------------------------------------------------------ mixed evidence
def test_measures_that_disagree_are_named() -> None:
    cells = [cell(model=m, seed=3) for m in "ab"]
    for ds in cells:  # logits keep growing where the hidden state is flat
        ds["logit_kl"].values[...] = (amplitude(ds) * (np.arange(128) + 1) ** 0.5) ** 2
    row = audit(Sweep(cells)).summaries[0]
    assert (row.claim.name, row.status) == ("C1 plateau", SUPPORTED)
    assert row.differing == {"logit_kl": REFUTED}
    assert page.differing(row) == "refuted: logits (KL)"
    turned = audit(Sweep(cells), "logit_kl").summaries[0]
    assert turned.status is REFUTED
    assert set(turned.differing) == set(AMPLITUDE_POWERS) - {"logit_kl"}
    assert set(turned.differing.values()) == {SUPPORTED}


def test_findings_are_kept_by_model_and_cells_are_named(tmp_path: Path) -> None:
    cells = [cell(model="a"), cell(power(0.5), model="b"), cell(model="c", steps=8)]
    for ds in cells:
        dataset.write(ds, tmp_path / f"{ds['model'].item()}.nc")
    found = audit(dataset.open_sweep(tmp_path), others=[])
    row = found.summaries[0]
    assert row.status is REFUTED
    assert [(f.scope, f.status, f.cells) for f in row.findings] == [
        ("a bf16, chunk 64", SUPPORTED, ("a.nc",)),
        ("b bf16, chunk 64", REFUTED, ("b.nc",)),
        ("c bf16, chunk 64", UNDETERMINED, ("c.nc",)),
    ]
    assert row.words.startswith("1 supported, 1 refuted, 1 undetermined of 3")
    assert found.as_dict()["claims"][0]["cells"] == ["a.nc", "b.nc", "c.nc"]


def test_protocols_are_rows_of_their_own() -> None:
    found = audit(Sweep([cell(), cell(power(0.5), protocol="append")]), others=[])
    rows = [(s.protocol, s.status) for s in found.summaries if s.claim.name == "C1 plateau"]
    assert rows == [("append", REFUTED), ("reprime", SUPPORTED)]


def test_few_documents_speak_of_themselves_only() -> None:
    cells = [cell(model=m, dtype=d, documents=2) for m in "ab" for d in ("bf16", "fp32")]
    cells.append(cell(chunk_size=128, tokens=8192, documents=2))
    found = audit(Sweep(cells), others=[]).findings
    assert len({(f.claim, f.part) for f in found}) == 6
    for f in found:
        assert "within these documents only" in f.words or f"{f.claim} {f.part}" == "C4 plateau"
    many = audit(Sweep([cell(documents=4), cell(dtype="fp32", documents=4)]), others=[]).findings
    assert all("within these documents" not in f.words for f in many)


def test_the_order_of_cells_changes_nothing() -> None:
    cells = [
        cell(model=m, dtype=d, chunk_size=c, tokens=4096, documents=n, noise=0.1)
        for m in "ab" for d in ("bf16", "fp32") for c, n in ((64, 4), (128, 4), (128, 5))
    ]  # fmt: skip

    def said(cells: Sequence[xr.Dataset]) -> tuple[list[str], list[str]]:
        told = audit(Sweep(cells), others=["logit_kl"]).as_dict()
        # cells that differ in nothing but their documents stay in the order they came in
        return [json.dumps(row) for row in told["claims"]], sorted(json.dumps(row) for row in told["findings"])

    expected = said(cells)
    for seed in range(3):
        random.Random(seed).shuffle(cells)
        assert said(cells) == expected


# ------------------------------------------------------------------------------------------ what is asked
@pytest.mark.parametrize(
    "setting",
    [{name: bad} for name in ("growth", "precision", "chunk", "proportional") for bad in (0, 1, -0.1, math.nan)]
    + [{name: bad} for name in ("family", "rise") for bad in (1, 0.5, math.nan, math.inf)]
    + [{"alpha": bad} for bad in (0, 0.5, -1, math.nan)],
    ids=str,
)
def test_margins_that_make_no_sense_are_errors(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        audit(Sweep([cell(steps=4)]), setting=Setting(**setting))


def test_what_is_not_there_is_an_error() -> None:
    sweep = Sweep([cell(steps=4)])
    with pytest.raises(DatasetError, match="no cell"):
        audit(Sweep([]))
    for measure in ("no_such_measure", "hidden_norm", "nll_full"):
        with pytest.raises(DatasetError, match=measure):
            audit(sweep, measure)
        with pytest.raises(DatasetError, match=measure):
            audit(sweep, others=[measure])
    for layer in (99, "second"):
        with pytest.raises(DatasetError, match=f"no layer {layer!r}"):
            audit(sweep, layer=layer, others=[])


def test_another_layer_is_another_curve() -> None:
    ds = cell()
    ds["hidden_rel_l2"].values[:, 1] = amplitude(cell(power(0.5)))
    assert audit(Sweep([ds]), layer=1, others=[]).summaries[0].status is REFUTED
    assert audit(Sweep([ds]), others=[]).summaries[0].status is SUPPORTED


def test_json_is_strict_and_complete() -> None:
    found = audit(Sweep(spoilt("all zero")))
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["setting"] == vars(Setting())
    there = [c for c in claims_published.CLAIMS if c.audit or c.not_tested]
    assert [(r["claim"], r["part"]) for r in told["claims"]] == [(c.key, c.part) for c in there]
    assert {r["verdict"] for r in told["claims"]} <= {s.value for s in Status}
    assert len(told["findings"]) == len(found.findings)
    assert {f["measure"] for f in told["findings"]} == set(AMPLITUDE_POWERS)
    assert told["claims"][-1]["protocol"] is None
    assert all("{" not in r["margin"] for r in told["claims"])


def test_claims_are_data() -> None:
    assert [c.name for c in claims_published.CLAIMS] == [
        "C1 plateau", "C1 rise", "C1 excess", "C1 accumulation", "C2 precision", "C3 chunk size", "C4 level",
        "C4 plateau", "C5 retrieval", "C5 as full attention", "C5 streaming", "C5 across chunks", "C6 cost"
    ]  # fmt: skip
    for c in claims_published.CLAIMS:
        assert (c.audit is None) == (c.asked is not None)
        assert not (c.audit and c.not_tested)
        assert c.published
        assert c.changes
        assert c.margin_text(Setting())
