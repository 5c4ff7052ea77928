"""``python -m drift.verify``: cells computed again, and what is said where they come out the same, or otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from sweep_tools import REPOSITORY, cells, text_file, tiny_checkpoint, write_config

from drift import dataset
from drift._version import NUMERICS_VERSION
from drift.dataset.contract import FLOORS, VARIABLES
from drift.errors import ConfigError, DatasetError, Obstacle
from drift.reading.verifying import judging, wording
from drift.reading.verifying.bounds import Rule, allowed, amplitudes, floor_of, rule_of
from drift.reading.verifying.judging import circumstances, compare
from drift.reading.verifying.model import Agreement, Comparison, Outcome, Reason, Verification, Verified
from drift.running.sweep import recomputing
from drift.running.sweep.cells import Cell
from drift.running.sweep.running import run
from drift.verify import main

DOCUMENTS, STEPS = 3, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of six cells."""
    here = tmp_path_factory.mktemp("verify")
    tiny_checkpoint(here / "tiny")
    text_file(here / "text.txt")
    config = write_config(
        here / "six.yaml", name="six", model=str(here / "tiny"), dtype=["bf16", "fp32"], chunk_size=8, tokens=8 * STEPS,
        documents=DOCUMENTS, protocol=["append", "restart", "reprime"], corpus=f"file:{here / 'text.txt'}",
        device="cpu",
    )  # fmt: skip
    assert run(config, here / "out").done == 6
    return here / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be spoiled."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def of(folder: Path, *words: str) -> Path:
    """The one cell whose name has these words."""
    (found,) = (path for path in folder.glob("*.nc") if all(f"_{word}_" in path.name for word in words))
    return found


def alter(path: Path, variable: str, change: Callable[[np.ndarray], None]) -> None:
    """Change some numbers of a cell by hand, as somebody would who knows the format."""
    ds = dataset.read(path)
    values = ds[variable].values.copy()
    change(values)
    ds[variable] = ds[variable].copy(data=values)
    dataset.write(ds, path)


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a verification."""
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def one(capsys: pytest.CaptureFixture[str], path: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    """Exit code and what is said of one cell."""
    code, found = told(capsys, path.parent, "--cell", path.name, *argv)
    (result,) = found["results"]
    return code, result


@pytest.fixture
def other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with another attention implementation than was recorded: another, equally right rounding."""
    compute = recomputing.Recomputer.compute

    def otherwise(self: Any, chosen: Any, cells: Sequence[Cell]) -> Any:
        return compute(self, chosen, [replace(cell, attn_implementation="eager") for cell in cells])

    monkeypatch.setattr(recomputing.Recomputer, "compute", otherwise)


# ---------------------------------------------------------------- the same machine


def test_what_drift_made_here_has_the_same_bits(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = cells(made)
    code, found = told(capsys, made, "--all")
    assert code == found["exit_code"] == 0
    assert found["counts"] == {"same_bits": 6}
    assert all(r["documents"] == [0, 1, 2] and r["comparison"]["values"] > 1000 for r in found["results"])
    assert cells(made) == before, "it only looks"
    assert sorted(path.name for path in made.iterdir() if path.suffix != ".nc") == [".lock", "sweep.json"]


def test_one_number_changed_by_hand_is_found_and_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = of(out, "bf16", "append")
    was = float(dataset.read(path)["hidden_rel_l2"].values[1, -1, 5])

    def times_ten(values: np.ndarray) -> None:
        values[1, -1, 5] *= 10

    alter(path, "hidden_rel_l2", times_ten)
    code, result = one(capsys, path)
    worst = result["comparison"]["worst"]
    assert (code, result["outcome"], result["comparison"]["reason"]) == (1, "different", "altered")
    assert (worst["variable"], worst["place"]) == ("hidden_rel_l2", {"document": 1, "layer": 3, "step": 5})
    assert (worst["recorded"], worst["recomputed"], result["comparison"]["beyond"]) == (10 * was, was, 1)
    assert main([str(out), "--cell", path.name]) == 1
    assert f"hidden_rel_l2 at document 1, layer 3, step 5: {10 * was:.12g} recorded, {was:.12g} here" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("protocol", "variable"), [
    ("append", "hidden_rel_l2"), ("restart", "nll_fold"), ("append", "value_rel_l2"), ("restart", "cache_bytes"),
])  # fmt: skip
def test_a_document_scaled_by_a_fifth_is_found(
    out: Path, capsys: pytest.CaptureFixture[str], protocol: str, variable: str
) -> None:
    path = of(out, "fp32", protocol)

    def scaled(values: np.ndarray) -> None:
        values[2] = values[2] * 1.2

    alter(path, variable, scaled)
    code, result = one(capsys, path)
    assert (code, result["outcome"]) == (1, "different")
    worst = result["comparison"]["worst"]
    assert (worst["variable"], worst["place"]["document"]) == (variable, 2)
    assert worst["recorded"] / worst["recomputed"] == pytest.approx(1.2, rel=0.01)  # whole numbers of bytes


def test_a_document_altered_in_everything_is_found_beside_one_that_is_reproduced(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in it has the bits that were recorded: as other kernels would have it, were it not for the others."""
    path = of(out, "fp32", "append")
    ds = dataset.read(path)
    for name, row in VARIABLES.items():
        if name in ds and row.dtype == "float64":
            values = ds[name].values.copy()
            values[0] *= 1 - 2.0**-20
            ds[name] = ds[name].copy(data=values)
    dataset.write(ds, path)
    code, result = one(capsys, path)
    assert (code, result["comparison"]["reason"]) == (1, "altered")
    assert result["comparison"]["worst"]["place"]["document"] == 0


def test_thinned_cells_are_thinned_anew(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thin = tmp_path / "thin"
    dataset.thin_sweep(out, thin, 3, 20, report=lambda line: None)
    code, found = told(capsys, thin, "--all")
    assert (code, found["counts"]) == (0, {"same_bits": 6})
    path = of(thin, "bf16", "append")

    def a_little(values: np.ndarray) -> None:
        values[0, 4] *= 1 + 2.0**-16

    alter(path, "logit_kl", a_little)
    code, result = one(capsys, path)
    assert (code, result["comparison"]["reason"]) == (1, "altered")
    assert result["comparison"]["worst"]["place"] == {"document": 0, "step": 4}


def test_the_rounding_of_measures_is_not_taken_for_altering(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is where states come out the same and exponentials do not: seen at ATEN_CPU_CAPABILITY=avx2 in bf16."""
    path = of(out, "bf16", "restart")

    def last_digits(values: np.ndarray) -> None:
        values[0, 4] *= 1 + 2.0**-40

    alter(path, "logit_js", last_digits)
    code, result = one(capsys, path)
    assert (code, result["outcome"], result["comparison"]["reason"]) == (0, "within_floor", "measured")
    alter(path, "hidden_rel_l2", lambda values: np.multiply(values, 1 + 2.0**-25, out=values))
    code, result = one(capsys, path)
    assert (code, result["comparison"]["reason"]) == (1, "altered")


def test_thinning_as_another_was_takes_its_layers() -> None:
    whole = synthetic.cell(model="tiny", layers=12, tokens=64)
    twice = dataset.thin(dataset.thin(whole, 9, 30), 5, 24)  # other layers than at once
    assert dataset.same_data(dataset.thinning.thin_as(whole, whole), whole) == []
    again = dataset.thinning.thin_as(whole, twice)
    assert again["layer"].values.tolist() == twice["layer"].values.tolist()
    with pytest.raises(DatasetError, match="other models"):
        dataset.thinning.thin_as(synthetic.cell(model="tiny", layers=4, tokens=64), twice)


# ---------------------------------------------------------------- other kernels


@pytest.mark.numerical
def test_other_kernels_are_within_the_floor(
    made: Path, capsys: pytest.CaptureFixture[str], other_kernels: None
) -> None:
    code, found = told(capsys, made, "--all")
    assert (code, found["counts"]) == (0, {"within_floor": 6})
    for result in found["results"]:
        compared = result["comparison"]
        assert compared["other"] > compared["values"] / 4, "other bits in much of it, or this tests nothing"
        assert compared["beyond"] == 0
        assert 0 < compared["floor"] < 0.2
        assert compared["circumstances"]["attn_implementation"] == ["sdpa", "eager"]
        # Of bf16 append most values are exactly 0 in so small a network.
        assert compared["levels"] or "bf16_append" in result["file"]


@pytest.mark.numerical
@pytest.mark.parametrize(("words", "factor", "reason"), [
    (("fp32", "restart"), 1.001, "beyond"),
    (("fp32", "append"), 100.0, "beyond"),  # drift that is rounding may be anything up to some floors
])  # fmt: skip
def test_a_number_further_away_than_the_floor_is_found_on_other_kernels_too(
    out: Path,
    capsys: pytest.CaptureFixture[str],
    other_kernels: None,
    words: tuple[str, str],
    factor: float,
    reason: str,
) -> None:
    path = of(out, *words)

    def once(values: np.ndarray) -> None:
        values[1, -1, 9] *= factor

    alter(path, "hidden_rel_l2", once)
    code, result = one(capsys, path)
    worst = result["comparison"]["worst"]
    assert (code, result["outcome"], result["comparison"]["reason"]) == (1, "different", reason)
    assert (worst["variable"], worst["place"]) == ("hidden_rel_l2", {"document": 1, "layer": 3, "step": 9})
    assert abs(worst["recorded"] - worst["recomputed"]) > worst["allowed"]


@pytest.mark.numerical
def test_a_level_that_is_another_is_found_on_other_kernels_too(
    out: Path, capsys: pytest.CaptureFixture[str], other_kernels: None
) -> None:
    path = of(out, "fp32", "append")

    def all_of_it(values: np.ndarray) -> None:
        values *= 5

    alter(path, "hidden_rel_l2", all_of_it)
    code, result = one(capsys, path)
    assert (code, result["outcome"]) == (1, "different")
    levels = {level["measure"]: level for level in result["comparison"]["levels"]}
    assert levels["hidden_rel_l2"]["high"] < 1 / levels["hidden_rel_l2"]["margin"]


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


def test_of_cells_of_two_schema_versions_what_both_hold_is_compared() -> None:
    new = synthetic.cell(floor=lambda k: np.full(k.shape, 1e-3), tokens=256, layers=3)
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


# ---------------------------------------------------------------- what cannot be verified


def rewritten(path: Path, **changes: Any) -> Path:
    """A cell whose record says otherwise, under the name that goes with it."""
    ds = dataset.read(path)
    record = json.loads(ds.attrs["config_json"]) | changes
    ds.attrs |= {"config_json": dataset.canonical_json(record), "config_sha256": dataset.content_hash(record)}
    path.unlink()
    return dataset.write(ds, path.with_name(f"{path.stem[:-16]}{ds.attrs['config_sha256'][:16]}.nc"))


@pytest.mark.parametrize(("changes", "obstacle", "words"), [
    ({"checkpoint_sha256": "f" * 64}, "other_weights", "other weights than"),
    ({"corpus_sha256": "f" * 64}, "other_text", "is another here"),
    ({"corpus": "file:/nowhere.txt"}, "other_text", "its text is not here"),
    ({"model": "elsewhere"}, "missing_weights", "--model PATH"),
    ({"novelty": 3}, "settings", "does not know: novelty"),
    ({"versions": {"numerics": "0", "schema": "1"}}, "numerics", f"this one has {NUMERICS_VERSION}"),
    ({"versions": None}, "settings", "not made by a sweep"),
    ({"protocol": "streaming(sinks=2,window=9)"}, "settings", "window=9,positions=cache) now"),
])  # fmt: skip
def test_what_cannot_be_computed_here_is_said_and_is_not_different(
    out: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], obstacle: str, words: str
) -> None:
    path = rewritten(of(out, "bf16", "append"), **changes)
    found = {request.file: request for request in recomputing.requests(out)}[path.name]
    assert found.obstacle
    assert (found.obstacle.value, found.cell) == (obstacle, None)
    assert words in found.why
    verified = Verified(path.name, "", obstacle=found.obstacle, why=found.why)
    assert verified.outcome is Outcome.CANNOT
    assert Verification("x", 1, 0, (verified,)).exit == 3


def test_weights_that_changed_are_their_own_outcome(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rewritten(of(out, "fp32", "append"), checkpoint_sha256="f" * 64)
    code, result = one(capsys, path)
    assert (code, result["outcome"], result["obstacle"]) == (3, "cannot_be_verified", "other_weights")
    assert main([str(out), "--cell", path.name]) == 3
    said = capsys.readouterr().out
    assert "cannot be verified here" in said
    assert "other weights" in said


def test_a_cell_without_its_plan_needs_to_be_told_where_weights_lie(
    out: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "sweep.json").unlink()
    path = of(out, "fp32", "append")
    code, result = one(capsys, path)
    assert (code, result["obstacle"]) == (3, "missing_weights")
    code, result = one(capsys, path, "--model", str(made.parent / "tiny"))
    assert (code, result["outcome"]) == (0, "same_bits")


def test_weights_that_were_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    found = recomputing.requests(REPOSITORY / "data" / "evidence" / "deep")
    assert {request.obstacle for request in found} == {Obstacle.MISSING}
    assert {request.why.partition("machine: ")[2] for request in found} == {
        f"python -m drift.checkpoints fetch {name}"
        for name in ("gemma-3-270m", "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct")
    }


@pytest.mark.parametrize("spoil", ["cut", "contents"])
def test_a_file_that_is_not_what_it_says_is_different(
    out: Path, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    path = of(out, "fp32", "append")
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        path = rewritten(path, documents=7)
    code, result = one(capsys, path)
    assert (code, result["outcome"], result["obstacle"]) == (1, "different", "unsound")
    assert result["why"]


def test_a_computation_that_fails_says_why(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from drift.running import corpus

    monkeypatch.setattr(corpus, "documents", lambda *given: (_ for _ in ()).throw(MemoryError("no more")))
    code, result = one(capsys, of(out, "fp32", "append"))
    assert (code, result["outcome"], result["obstacle"]) == (3, "cannot_be_verified", "failed")
    assert "memory" in result["why"]


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


def test_a_sample_of_a_real_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(made), "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "2 of 6 cells, drawn with seed 0" in captured.err
    assert len(captured.out.splitlines()) == 2
    code = main([str(made), "--sample", "1", "--dry-run", "--json", "--seed", "3"])
    (listed,) = json.loads(capsys.readouterr().out)
    assert (code, listed["documents"], listed["obstacle"]) == (0, [0, 1, 2], None)
    code, found = told(capsys, made, "--sample", 1, "--seed", 3)
    assert (code, found["seed"], [r["file"] for r in found["results"]]) == (0, 3, [listed["file"]])


def test_some_documents_are_computed_as_among_all(made: Path) -> None:
    requests = {request.file: request for request in recomputing.requests(made)}
    path = of(made, "bf16", "reprime")
    chosen = recomputing.Chosen(requests[path.name], (0, 2))
    by = recomputing.Recomputer(made)
    found = judging.verify(dataset.read(path), (0, 2), recomputing.Task(chosen, by).recompute, list)
    assert found.agreement is Agreement.SAME_BITS
    assert found.not_compared == ()


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


@pytest.mark.parametrize(("argv", "said"), [
    (["{out}/nowhere"], "no such folder"),
    (["{out}/empty"], "holds no cell"),
    (["{out}", "--cell", "mine.nc"], "there is no such file"),
])  # fmt: skip
def test_usage(out: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    (out / "empty").mkdir()
    assert main([part.format(out=out) for part in argv]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such folder"):
        recomputing.requests(out / "nowhere")


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
