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
from conftest import half_attention
from rounding import U32
from sweep_tools import cells, text_file, tiny_checkpoint, write_config

from drift import dataset
from drift._version import NUMERICS_VERSION
from drift.dataset.contract import VARIABLES
from drift.errors import ConfigError
from drift.reading.verifying import judging
from drift.reading.verifying.model import Agreement, Outcome, Verification, Verified
from drift.running.sweep import recomputing
from drift.running.sweep.cells import Cell
from drift.running.sweep.running import run
from drift.verify import main

DOCUMENTS, STEPS = 3, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of six cells."""
    half_attention("bfloat16", heads=4, tokens=8 * STEPS, features=8)
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


# ---------------------------------------------------------------- other kernels


@pytest.mark.numerical
def test_other_kernels_are_within_the_floor(
    made: Path, capsys: pytest.CaptureFixture[str], other_kernels: None
) -> None:
    code, found = told(capsys, made, "--all")
    assert (code, found["counts"]) == (0, {"within_floor": 6})
    for result in found["results"]:
        compared = result["comparison"]
        assert compared["beyond"] == 0
        assert 0 < compared["floor"] < 0.2
        assert compared["circumstances"]["attn_implementation"] == ["sdpa", "eager"]
    others = [result["comparison"]["other"] / result["comparison"]["values"] for result in found["results"]]
    if min(others) < 1 / 4:
        pytest.skip(f"eager attention has most of sdpa's bits here (all but {100 * min(others):.0f} %)")
    # Of bf16 append most values are exactly 0 in so small a network.
    assert all(result["comparison"]["levels"] for result in found["results"] if "bf16_append" not in result["file"])


@pytest.mark.numerical
@pytest.mark.parametrize(("words", "change"), [
    (("fp32", "restart"), lambda value: value * 1.001),
    (("fp32", "append"), lambda value: 1e4 * U32),  # drift that is rounding may be anything up to some floors
])  # fmt: skip
def test_a_number_further_away_than_the_floor_is_found_on_other_kernels_too(
    out: Path,
    capsys: pytest.CaptureFixture[str],
    other_kernels: None,
    words: tuple[str, str],
    change: Callable[[float], float],
) -> None:
    path = of(out, *words)

    def once(values: np.ndarray) -> None:
        values[1, -1, 9] = change(values[1, -1, 9])

    alter(path, "hidden_rel_l2", once)
    code, result = one(capsys, path)
    worst = result["comparison"]["worst"]
    assert (code, result["outcome"], result["comparison"]["reason"]) == (1, "different", "beyond")
    assert (worst["variable"], worst["place"]) == ("hidden_rel_l2", {"document": 1, "layer": 3, "step": 9})
    assert abs(worst["recorded"] - worst["recomputed"]) > worst["allowed"]


@pytest.mark.numerical
def test_a_level_that_is_another_is_found_on_other_kernels_too(
    out: Path, capsys: pytest.CaptureFixture[str], other_kernels: None
) -> None:
    path = of(out, "fp32", "append")
    if (zeros := float((dataset.read(path)["hidden_rel_l2"] == 0).mean())) > 1 / 2:
        pytest.skip(f"the fold has most of full attention's bits here ({100 * zeros:.0f} %): no level to be another")

    def all_of_it(values: np.ndarray) -> None:
        values *= 5

    alter(path, "hidden_rel_l2", all_of_it)
    code, result = one(capsys, path)
    assert (code, result["outcome"]) == (1, "different")
    levels = {level["measure"]: level for level in result["comparison"]["levels"]}
    assert levels["hidden_rel_l2"]["high"] < 1 / levels["hidden_rel_l2"]["margin"]


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
