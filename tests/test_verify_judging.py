"""What ``drift.verify`` computes again, the bounds that it allows, and the words for what it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from sweep_tools import REPOSITORY

from drift import dataset
from drift.dataset.contract import FLOORS, VARIABLES
from drift.errors import DatasetError, Obstacle
from drift.reading.verifying import wording
from drift.reading.verifying.bounds import Rule, allowed, amplitudes, floor_of, rule_of
from drift.reading.verifying.judging import circumstances, compare
from drift.reading.verifying.model import Agreement, Comparison, Reason, Verification, Verified
from drift.running.sweep import recomputing
from drift.running.sweep.cells import Cell
from drift.verify import main


# ---------------------------------------------------------------- the bounds
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 0.3), st.floats(1e-6, 2.0), st.integers(1, 40))
def test_no_rounding_within_the_floor_passes_the_bound(seed: int, floor: float, drift: float, size: int) -> None:
    """Four states by hand: full attention and fold, each twice, the pairs no further apart than the floor."""
    draw = np.random.default_rng(seed)

    def near(x: np.ndarray, distance: float) -> np.ndarray:
        step = draw.standard_normal(size)
        return np.asarray(x + distance * draw.uniform() * np.linalg.norm(full) * step / np.linalg.norm(step))

    full = draw.standard_normal(size)
    fold = near(full, drift)
    full_here, fold_here = near(full, floor), near(fold, floor)
    there = np.linalg.norm(fold - full) / np.linalg.norm(full)
    here = np.linalg.norm(fold_here - full_here) / np.linalg.norm(full_here)
    norms = np.array([[np.linalg.norm(full)]]), np.array([[np.linalg.norm(full_here)]])
    g, slack = np.array([floor]), 1 + 1e-9  # float64 of some 40 terms
    assert abs(here - there) <= slack * allowed("hidden_rel_l2", np.array([[here]]), np.array([[there]]), g)[0, 0]
    assert abs(norms[1] - norms[0]) <= slack * allowed("hidden_norm", *norms, g)


def test_every_row_of_the_contract_has_a_rule_or_is_known_to_have_none() -> None:
    assert {name for name in VARIABLES if rule_of(name) is Rule.NONE} == {
        "hidden_share_structural", "hidden_share_full_rounding", "hidden_share_fold_rounding",
    }  # fmt: skip
    assert {rule_of(floor) for floor in FLOORS.values()} == {Rule.RELATIVE, Rule.METRIC}
    assert amplitudes("top1_agreement", np.array([0.75])) == 0.25
    assert amplitudes("logit_kl_floor", np.array([4.0, -1e-9])).tolist() == [2.0, 0.0]


def test_the_floor_is_the_largest_of_what_was_measured_here() -> None:
    level = {name: synthetic.cell(level=lambda k, v=v: np.full(k.shape, v), noise=0, tokens=256, layers=3)
             for name, v in (("low", 1e-3), ("high", 2e-3))}  # fmt: skip
    own = synthetic.cell(floor=lambda k: np.full(k.shape, 5e-3), noise=0, tokens=256, layers=3)
    both = [level["low"], level["high"]]
    assert floor_of("hidden_rel_l2", both, level["low"]) == pytest.approx([2e-3, 2e-3])
    assert floor_of("hidden_rel_l2", both, own) == pytest.approx([5e-3, 5e-3])
    assert floor_of("hidden_norm", both, own) == pytest.approx([5e-3, 5e-3])
    assert floor_of("logit_max_abs", both, own) == pytest.approx([4e-2, 4e-2])
    assert floor_of("token_agreement", both, own) is None


# ---------------------------------------------------------------- cells of other versions, other shapes
def test_thinning_as_another_was_takes_its_layers() -> None:
    whole = synthetic.cell(model="tiny", layers=12, tokens=64)
    twice = dataset.thin(dataset.thin(whole, 9, 30), 5, 24)  # other layers than at once
    assert dataset.same_data(dataset.thinning.thin_as(whole, whole), whole) == []
    again = dataset.thinning.thin_as(whole, twice)
    assert again["layer"].values.tolist() == twice["layer"].values.tolist()
    with pytest.raises(DatasetError, match="other models"):
        dataset.thinning.thin_as(synthetic.cell(model="tiny", layers=4, tokens=64), twice)


def test_of_cells_of_two_schema_versions_what_both_hold_is_compared() -> None:
    new = synthetic.cell(floor=lambda k: np.full(k.shape, 1e-3), tokens=256, layers=3, recurrent=True)
    old = new.drop_vars([*FLOORS.values(), "draw"]).assign_attrs(schema_version="1")
    for recorded, here in ((old, new), (new, old)):
        found = compare(recorded, here, [0, 1])
        assert (found.agreement, found.reason) == (Agreement.SAME_BITS, Reason.BITS)
        assert set(found.not_compared) == set(FLOORS.values())


def test_other_shapes_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    cell = synthetic.cell(tokens=256, layers=3)
    for other, axis in (
        (synthetic.cell(tokens=320, layers=3), "step"),
        (synthetic.cell(tokens=256, layers=4), "layer"),
        (cell.assign_attrs(tokens_sha256="c" * 64), "tokens"),
    ):
        found = compare(cell, other, [0, 1])
        assert (found.agreement, found.reason, found.detail) == (Agreement.DIFFERENT, Reason.SHAPE, axis)


def test_without_a_floor_other_bits_are_undetermined_and_nan_is_no_number() -> None:
    cell = synthetic.cell(tokens=1024, layers=3, seed=1)
    other = synthetic.cell(tokens=1024, layers=3, seed=2)
    found = compare(cell, other, [0, 1])
    assert (found.agreement, found.reason) == (Agreement.UNDETERMINED, Reason.NO_FLOOR)
    floors = [synthetic.cell(tokens=1024, layers=3, seed=3)]
    assert compare(cell, other, [0, 1], floors).agreement is Agreement.WITHIN_FLOOR
    values = other["logit_rel_l2"].values.copy()
    values[1, 7] = np.nan
    other["logit_rel_l2"] = other["logit_rel_l2"].copy(data=values)
    found = compare(cell, other, [0, 1], floors)
    assert (found.agreement, found.reason) == (Agreement.DIFFERENT, Reason.BEYOND)
    assert found.worst
    assert found.worst.place == {"document": 1, "step": 7}


def test_a_text_that_was_generated_is_undetermined_where_bits_differ() -> None:
    cell, other = (synthetic.cell(tokens=256, layers=3, seed=seed) for seed in (1, 2))
    record = json.loads(cell.attrs["config_json"]) | {"tokens": 192}
    found = compare(cell.assign_attrs(config_json=json.dumps(record)), other, [0, 1], [other])
    assert (found.agreement, found.reason) == (Agreement.UNDETERMINED, Reason.GENERATED)


def test_circumstances_are_those_that_differ() -> None:
    cell = synthetic.cell(tokens=256, layers=3)
    versions = {"python": "3.11.0", "torch": "2.14.0", "transformers": "5.23.0"}
    other = cell.assign_attrs(device_name="another", versions_json=json.dumps(versions))
    assert circumstances(cell, other) == {"device_name": ("synthetic", "another"), "torch": ("2.13.0", "2.14.0")}


def test_weights_that_were_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    found = recomputing.requests(REPOSITORY / "data" / "evidence" / "deep")
    assert {request.obstacle for request in found} == {Obstacle.MISSING}
    assert {request.why.partition("machine: ")[2] for request in found} == {
        f"python -m drift.checkpoints fetch {name}"
        for name in ("gemma-3-270m", "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct")
    }


# ---------------------------------------------------------------- which cells


def drawn(sample: int, seed: int = 0, seconds: float = 60.0) -> list[recomputing.Chosen]:
    """Cells drawn from a made-up folder: three models, of each a long fold, a short one, and two controls."""
    blank = Cell(
        "", "", "Llama", "bf16", 8, "append", 8, 64, "pydoc", "sdpa", "cpu", 1, "native", 0, "a", "b", (),
    )  # fmt: skip
    found = [
        recomputing.Request(f"{m}-{k}", replace(blank, model=m, label=m, control=control, documents=n), load_seconds=2,
                            document_seconds=each)
        for m in ("x", "y", "z")
        for k, (control, each, n) in enumerate((("", 500.0, 8), ("", 7.0, 8), ("fires", 1.0, 1), ("quiet", 1.0, 1)))
    ]  # fmt: skip
    found.append(recomputing.Request("w", obstacle=Obstacle.MISSING, why="not here"))
    return recomputing.choose(found, sample, seed, seconds)


def test_a_sample_is_the_same_for_the_same_seed_and_goes_over_models_and_folds() -> None:
    assert drawn(2) == drawn(2)
    assert len({tuple(c.request.file for c in drawn(2, seed)) for seed in range(20)}) > 1
    for seed in range(5):
        assert [c.request.file for c in drawn(3, seed)] == ["x-1", "y-1", "z-1"], "what there is time for"
        assert {c.request.file for c in drawn(6, seed)} == {f"{m}-{k}" for m in "xyz" for k in (1, 2)}
        assert "w" not in {c.request.file for c in drawn(12, seed)}
    assert len(drawn(99)) == 13
    for one in drawn(2):
        assert len(one.documents) == 4  # (60 / 2 - 2) / 7
        assert one.seconds == 30
    assert len({drawn(2, seed)[0].documents for seed in range(5)}) > 1
    assert [len(c.documents) for c in drawn(3, seconds=1e-3)] == [1, 1, 1], "one at least"


def test_what_floors_are_read_from() -> None:
    cell = Cell("m", "m", "Llama", "fp32", 8, "restart", 8, 64, "pydoc", "sdpa", "cpu", 1, "native", 0, "a", "b", (),
                reference="gold", control="fires")  # fmt: skip
    size = f"size={2.0**-23!r}"
    assert [(c.protocol, c.reference, c.control) for c in recomputing.floor_cells(cell)] == [
        (f"perturbed(append,step=0,{size})", "full", ""),
        (f"perturbed(restart,step=0,{size})", "unperturbed", ""),
    ]
    assert [c.protocol for c in recomputing.floor_cells(replace(cell, protocol="full"))] == [
        f"perturbed(append,step=0,{size})"
    ]
    assert recomputing.floor_cells(replace(cell, chunk_size=64)) == ()


# ---------------------------------------------------------------- usage, words


@pytest.mark.parametrize("option", [("--sample", "0"), ("--seconds", "soon"), ("--sample", "1", "--all")])
def test_usage_that_the_parser_refuses(option: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["x", *option])
    assert stopped.value.code == 2


def test_every_reason_has_words() -> None:
    for reason in Reason:
        for agreement in Agreement:
            found = Verified("a.nc", "a", (0,), 2, Comparison(agreement, reason, 3, 2, 1))
            said = "\n".join(wording.lines(Verification("x", 9, 0, (found,))))
            assert "{" not in said
            assert "of 2 documents 0" in said
            assert "x: 1 of 9 cells computed again: 1 " in said
