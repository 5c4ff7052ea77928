"""The command that asks whether tests notice mutants: what it draws, counts and keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench_tools import bench

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["a.x_f__mutmut_1", "a.x_f__mutmut_2", "b.x_g__mutmut_1", "b.x_g__mutmut_2"]


@pytest.fixture
def mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with one mutant known to be equivalent."""
    with bench("mutants") as module:
        (tmp_path / "reasons.json").write_text(json.dumps({NAMES[3]: "it adds zero"}))
        monkeypatch.setattr(module, "REASONS", tmp_path / "reasons.json")
        yield module


def first_run(folder: Path) -> Path:
    """What a first run left: four mutants of ten."""
    left = {name: {"difference": f"- {name}\n+ other"} for name in NAMES}
    found = {
        "commit": "abc", "mutants": 99, "sample": 10, "asked_for": 10, "seed": 0, "killed_by_the_nearest_tests": 6,
        "seconds": 5, "left_by_the_nearest_tests": left,
    }  # fmt: skip
    path = folder / "first.json"
    path.write_text(json.dumps(found))
    return path


def pretend(
    mutants: Any, monkeypatch: pytest.MonkeyPatch, killed: dict[str, str], stop_at: str = "", broken: str = ""
) -> list[tuple[str, list[str]]]:
    """Let pytest fail for some mutants, or stop, or fail a file without any mutant; returns which mutants met what."""
    met: list[tuple[str, list[str]]] = []

    def tested(tree: Path, name: str, tests: list[Path]) -> tuple[int, str]:
        files = [path.name for path in tests]
        if name and name == stop_at:
            raise KeyboardInterrupt
        met.append((name, files))
        if not name:
            return int(broken in files), "tests/test_a.py::test_x"
        test = killed.get(name, "")
        return int(bool(test)), f"tests/{test}"

    monkeypatch.setattr(mutants, "tested", tested)
    return met


def test_a_draw_is_the_same_for_the_same_seed_and_names_nobody_twice(mutants: Any) -> None:
    names = [f"m{i}" for i in range(50)]
    drawn = mutants.sample(names, 20, 1)
    assert drawn == mutants.sample(list(reversed(names)), 20, 1)
    assert len(set(drawn)) == 20
    assert drawn != mutants.sample(names, 20, 2)
    assert mutants.sample(names, 99, 1) == sorted(names)


def test_what_was_left_is_judged_by_newer_tests_and_then_by_all(
    mutants: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(mutants, "newer_tests", lambda tree: [tmp_path / "tests" / "test_new.py"])
    monkeypatch.setattr(mutants, "rest_of_the_suite", lambda tree: [tmp_path / "tests" / "test_far.py"])
    met = pretend(mutants, monkeypatch, {NAMES[0]: "test_new.py::test_one", NAMES[1]: "test_old.py::test_two"})
    arguments = ["--rerun-survivors", str(first_run(tmp_path)), "--out", str(out)]
    assert mutants.main(arguments) == 1
    found = json.loads(out.read_text())
    left = found["left_by_the_nearest_tests"]
    assert {name: entry["judgement"] for name, entry in left.items()} == {
        NAMES[0]: "killed by tests/test_new.py::test_one",
        NAMES[1]: "killed by tests/test_old.py::test_two",
        NAMES[2]: "survives",
        NAMES[3]: "equivalent",
    }
    assert left[NAMES[3]]["reason"] == "it adds zero"
    assert left[NAMES[2]]["difference"] == f"- {NAMES[2]}\n+ other"
    # Equivalent mutants count as not killed, and beside that not at all.
    assert (found["killed"], found["equivalent"], found["killed_share"]) == (8, 1, 0.8)
    assert found["killed_share_without_equivalent"] == 8 / 9
    assert found["survivors"] == NAMES[2:]
    # What newer tests pass, and nobody calls equivalent, meets the whole suite.
    assert [name for name, files in met if files == ["test_far.py"]] == ["", NAMES[2]]
    assert mutants.main([*arguments, "--least", "0.8"]) == 0
    capsys.readouterr()


SOURCE = """
import os
def answer():
    return {"": 42, "drift.x_answer__mutmut_1": 43}[os.environ["MUTANT_UNDER_TEST"]]
"""
TEST = """
from drift import answer
def test_even(): assert answer() % 2 == 0
def test_other(): pass
"""


def test_a_mutant_is_put_to_the_tests_of_a_tree(mutants: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process has one fork server, and another test's may have imported drift already.
    monkeypatch.setattr(mutants, "START", "spawn")
    for folder, name, text in (("drift", "__init__.py", SOURCE), ("tests", "test_answer.py", TEST)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    tests = [tmp_path / "tests" / "test_answer.py"]
    assert mutants.tested(tmp_path, "", tests)[0] == 0
    assert mutants.tested(tmp_path, "drift.x_answer__mutmut_1", tests) == (1, "tests/test_answer.py::test_even")
    # What fails without naming a test is a fault of this script or of the machine, and kills nothing.
    with pytest.raises(RuntimeError, match="no test is named"):
        mutants.judged(tmp_path / "nowhere", "drift.x_answer__mutmut_1", tests, {})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drift.reading.plain.x_f__mutmut_3", ("reading/plain.py", "f", "3")),
        ("drift.reading.plain.x__own__mutmut_31", ("reading/plain.py", "_own", "31")),
        ("drift.running.taps.x\u01c1_Taps\u01c1_make_tap__mutmut_16", ("running/taps.py", "_Taps._make_tap", "16")),
    ],
)
def test_names_of_mutants_are_spelled_out(mutants: Any, name: str, words: tuple[str, str, str]) -> None:
    assert mutants.spelled(name) == words


def test_a_test_refutes_a_reason(mutants: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(mutants, monkeypatch, {NAMES[3]: "test_new.py::test_three"})
    found = json.loads(first_run(tmp_path).read_text())
    out = tmp_path / "out.json"
    found = mutants.judge_all(found, tmp_path, [tmp_path / "tests" / "test_new.py"], out, suite=False)
    assert found["left_by_the_nearest_tests"][NAMES[3]]["judgement"] == "killed by tests/test_new.py::test_three"
    assert found["equivalent"] == 0
    assert found["not_yet_judged"] == NAMES[:3]


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    mutants: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "newer_tests", lambda tree: [tmp_path / "tests" / "test_new.py"])
    killed = dict.fromkeys(NAMES[:3], "test_new.py::test_one")
    out = tmp_path / "out.json"
    arguments = ["--rerun-survivors", str(first_run(tmp_path)), "--out", str(out), "--resume", "--least", "0.5"]
    pretend(mutants, monkeypatch, killed, stop_at=NAMES[2])
    assert mutants.main(arguments) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert json.loads(out.read_text())["not_yet_judged"] == NAMES[2:]
    met = pretend(mutants, monkeypatch, killed)
    assert mutants.main(arguments) == 0
    assert [name for name, _ in met] == NAMES[2:]
    assert json.loads(out.read_text())["not_yet_judged"] == []


def test_tests_that_fail_without_a_mutant_kill_nobody(
    mutants: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    tree = tmp_path / "tree"
    for folder in (tmp_path / "tests", tree / "tests"):
        folder.mkdir(parents=True)
    for name, here, there in (("same", "1", "1"), ("changed", "2", "1"), ("new", "3", ""), ("broken", "4", "")):
        (tmp_path / "tests" / f"test_{name}.py").write_text(here)
        if there:
            (tree / "tests" / f"test_{name}.py").write_text(there)
    pretend(mutants, monkeypatch, {}, broken="test_broken.py")
    newer = mutants.newer_tests(tree)
    assert [path.name for path in newer] == ["test_broken.py", "test_changed.py", "test_new.py"]
    assert sorted(path.name for path in mutants.sound(tree, newer)) == ["test_changed.py", "test_new.py"]
    assert "left out: test_broken.py does not pass on the unmutated code" in capsys.readouterr().out


def test_the_rest_of_the_suite_is_what_mutmut_did_not_run(mutants: Any, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("near", "far"):
        (tmp_path / "tests" / f"test_{name}.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.mutmut]\npytest_add_cli_args_test_selection = ["tests/test_near.py"]\n'
    )
    assert [path.name for path in mutants.rest_of_the_suite(tmp_path)] == ["test_far.py"]


def test_every_mutant_that_the_nearest_tests_left_is_judged_and_told(mutants: Any) -> None:
    found = json.loads((ROOT / "bench" / "results" / "mutants.json").read_text(encoding="utf-8"))
    reasons = json.loads((ROOT / "bench" / "equivalent_mutants.json").read_text(encoding="utf-8"))
    assert found["sample"] >= 300
    assert found["killed_share"] >= 0.9
    assert found["not_yet_judged"] == []
    assert mutants.tables(found) in (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    for name in found["survivors"]:
        entry = found["left_by_the_nearest_tests"][name]
        assert (entry["judgement"], entry["reason"]) == ("equivalent", reasons[name])
    for name, entry in found["left_by_the_nearest_tests"].items():
        if entry["judgement"].startswith("killed by tests/"):
            path, _, test = entry["judgement"].removeprefix("killed by ").partition("::")
            assert f"def {test.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), name
