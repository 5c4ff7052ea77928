"""Sweeps that are killed for real, and what is left of them."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sweep_tools import Zygote, cells, differences, text_file, tiny_checkpoint, write_config, zygote

from drift import dataset

KILLS = 5
ATTEMPTS = 5  # at a signal that comes before the end, wherever the processors are at


@dataclass(frozen=True)
class Bench:
    """A process to fork sweeps from, a configuration, and what an undisturbed sweep of it gave."""

    processes: Zygote
    config: Path
    undisturbed: Path
    seconds: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kill")
    tiny_checkpoint(made / "tiny")
    text_file(made / "text.txt")
    return made


@pytest.fixture(scope="module")
def processes(folder: Path) -> Iterator[Zygote]:
    with zygote(folder) as made:
        yield made


def benched(processes: Zygote, folder: Path, name: str, **axes: object) -> Bench:
    config = write_config(folder / f"{name}.yaml", model=str(folder / "tiny"), device="cpu", **axes)
    started = time.monotonic()
    finished = processes.run(str(config), "--out", str(folder / name))
    assert finished.returncode == 0, finished.stderr
    return Bench(processes, config, folder / name, time.monotonic() - started)


@pytest.fixture(scope="module")
def bench(processes: Zygote, folder: Path) -> Bench:
    return benched(
        processes,
        folder,
        "undisturbed",
        dtype=["bf16", "fp32", "fp64"],
        chunk_size=[8, 16],
        protocol=["append", "reprime"],
        tokens=32,
        corpus=str(folder / "text.txt"),
    )


@pytest.fixture(scope="module")
def asking(processes: Zygote, folder: Path) -> Bench:
    """The same of cells that ask a task."""
    return benched(
        processes,
        folder,
        "asked",
        dtype=["bf16", "fp32"],
        task="needle",
        chunk_size=[48, 96],
        protocol=["append", "isolated"],
        tokens=640,
        documents=2,
        allow_beyond_context=True,
    )


@pytest.fixture(params=["bench", "asking"])
def either(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Wait without missing a moment: a file that is being written is there for a millisecond."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def sound(folder: Path) -> set[str]:
    """Cells that can be read; all of those that have a cell's name must be."""
    names = set(cells(folder))
    for name in names:
        dataset.read(folder / name)
    return names


def test_killed_at_random_moments_it_ends_with_the_same_data(either: Bench, tmp_path: Path) -> None:
    bench = either
    draw = random.Random(7)
    out = tmp_path / "out"
    before: dict[str, tuple[int, int]] = {}
    survived = []
    for kill in range(KILLS):
        started = bench.processes.start(str(bench.config), "--out", str(out))
        if kill % 3 == 2:
            # In the middle of writing: a temporary file is there, its cell is not.
            known = len(before)
            until(
                lambda known=known: bool(list(out.glob(".*.tmp"))) and len(list(out.glob("*.nc"))) >= known,
                bench.seconds,
            )
        else:
            until(lambda: out.exists(), 30)
            time.sleep(draw.uniform(0, bench.seconds / KILLS))
        code = started.kill()
        after = cells(out)
        # Whatever has a cell's name is whole, and what was there before was not touched.
        assert sound(out) == set(after)
        assert before.items() <= after.items()
        before = after
        survived.append(len(after))
        if code == 0:
            break
    total = len(cells(bench.undisturbed))
    assert survived[0] < total, "every kill came too late: nothing was tested"
    finished = bench.processes.run(str(bench.config), "--out", str(out), "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["cells"] == {
        "total": total, "done": total, "failed": 0, "left": 0, "computed": total - len(before),
    }  # fmt: skip
    assert before.items() <= cells(out).items()
    assert sorted(cells(out)) == sorted(cells(bench.undisturbed))
    assert differences(out, bench.undisturbed, sorted(cells(out))) == []
    assert not list(out.glob(".*.tmp"))


def test_the_comparison_would_notice(bench: Bench) -> None:
    one, two = sorted(cells(bench.undisturbed))[:2]
    a, b = dataset.read(bench.undisturbed / one), dataset.read(bench.undisturbed / two)
    assert dataset.same_data(a, a) == []
    assert dataset.same_data(a, b) != []
    c = a.copy(deep=True)
    c["hidden_rel_l2"].values[0, 0, 0] += 1e-300
    assert dataset.same_data(a, c) != []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_it_says_so_and_resumes(either: Bench, tmp_path: Path, number: signal.Signals) -> None:
    bench = either
    for attempt in range(ATTEMPTS):
        out = tmp_path / f"out{attempt}"
        started = bench.processes.start(str(bench.config), "--out", str(out), "--json")
        assert until(lambda out=out: bool(list(out.glob("*.nc"))), max(30, bench.seconds))
        started.signal(number)
        if started.wait() != 0:  # else it had ended before the signal came
            break
    assert started.wait() == 130
    assert "Traceback" not in started.stderr
    last = started.stderr.strip().splitlines()[-1]
    assert "interrupted" in last
    assert "resumes" in last
    summary = json.loads(started.stdout)
    before = cells(out)
    assert summary["exit_code"] == 130
    assert summary["cells"]["done"] == len(before) > 0
    assert summary["cells"]["left"] > 0
    state = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert {c["file"] for c in state["cells"] if c["state"] == "done"} == sound(out)
    finished = bench.processes.run(str(bench.config), "--out", str(out), "--limit", "2")
    assert finished.returncode == 3, finished.stderr
    after = cells(out)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    assert differences(out, bench.undisturbed, sorted(after)) == []


def test_a_killed_sweep_leaves_no_lock_and_says_where_it_was(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    started = bench.processes.start(str(bench.config), "--out", str(out))
    assert until(lambda: (out / "sweep.json").exists())
    started.kill()
    finished = bench.processes.run(str(bench.config), "--out", str(out), "--limit", "1")
    assert finished.returncode == 3
    assert "killed while computing" in finished.stderr
    assert (out / ".lock").exists()


def test_plain_lines_where_nobody_looks_on(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = bench.processes.run(str(bench.config), "--out", str(out), "--only", "dtype=fp32")
    lines = finished.stderr.splitlines()
    assert finished.returncode == 3
    assert any("[1/1]" in line for line in lines)
    assert any("document 1 of 1" in line for line in lines)
    assert any("4 of 4 cells done" in line for line in lines)
    assert "\r" not in finished.stderr
    assert "3 stopped" not in finished.stdout
    assert "stopped with cells left" in finished.stdout
