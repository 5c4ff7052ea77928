"""Groups in processes of their own: the same bits, and a worker that dies costs its own cells only."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from sweep_tools import REPOSITORY, cells, text_file, tiny_checkpoint, write_config

from drift import dataset
from drift.running import tracing
from drift.running.sweep import gpus
from drift.running.sweep.computing import Computer, compute_group
from drift.running.sweep.engines import engine, processes
from drift.running.sweep.engines.engine import Turns
from drift.running.sweep.engines.processes import automatic_jobs
from drift.running.sweep.outcome import Interrupted, Outcome
from drift.running.sweep.planning import plan
from drift.running.sweep.progress import Lines, Silent
from drift.running.sweep.running import run

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cells in two groups."""
    here = tmp_path_factory.mktemp("jobs")
    tiny_checkpoint(here / "tiny")
    return write_config(
        here / "two.yaml",
        name="two",
        model=str(here / "tiny"),
        dtype=["bf16", "fp32"],
        chunk_size=[8, 16],
        protocol="append",
        documents=1,
        tokens=64,
        corpus=f"file:{text_file(here / 'text.txt')}",
    )


def test_two_processes_give_the_same_bits_as_one(config: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    one, two = run(config, tmp_path / "one"), run(config, tmp_path / "two", jobs=2, report=Lines(shown))
    said = shown.getvalue().splitlines()
    assert {"    [1/2] document 1 of 1", "    [2/2] document 1 of 1"} <= set(said), "no word from the workers"
    assert (one.done, two.done, two.failed, two.left) == (4, 4, 0, 0)
    cells = {path.name: dataset.read(path) for path in (tmp_path / "two").glob("*.nc")}
    assert len(cells) == 4
    for path in (tmp_path / "one").glob("*.nc"):
        differences = dataset.same_data(dataset.read(path), cells[path.name])
        assert [d for d in differences if "threads" not in d] == []
    record = json.loads((tmp_path / "two" / "sweep.json").read_text())
    assert [cell["state"] for cell in record["cells"]] == ["done"] * 4
    assert len(record["groups"]) == 2
    assert record["at_work_on"] == "", "the next run would take this one for killed"
    assert run(config, tmp_path / "two", jobs=2).files == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the worker in /proc")
def test_a_killed_worker_costs_its_own_cells_only(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drift.sweep", str(config), "--out", str(tmp_path / "out"), "--jobs", "2"]
    sweep = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    victim = None
    for _ in range(600):
        workers = [pid for pid in children(sweep.pid) if b"spawn_main" in command_line(pid)]
        if len(workers) == 2:
            victim = workers[0]
            break
        time.sleep(0.05)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    _, said = sweep.communicate(timeout=250)
    assert sweep.returncode == 1, said
    assert "its process was killed by SIGKILL" in said
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert sorted(cell["state"] for cell in record["cells"]) == ["done", "done", "failed", "failed"]
    again = run(config, tmp_path / "out", retry_failed=True)
    assert (again.done, len(again.files)) == (4, 2)


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def command_line(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def test_jobs_are_chosen_by_cores_groups_and_memory() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert automatic_jobs("cpu", 100, 1.0) == cores
    assert automatic_jobs("cpu", 1, 1.0) == 1
    assert automatic_jobs("cpu", 100, 1e18) == 1


@pytest.mark.parametrize(("count", "visible", "jobs"), [(0, "", 1), (1, "", 1), (4, "", 4), (2, "3,5", 2)])
def test_a_job_for_each_gpu(monkeypatch: pytest.MonkeyPatch, count: int, visible: str, jobs: int) -> None:
    monkeypatch.setattr(gpus, "_ask", lambda: (count, ""))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert automatic_jobs("cuda", 100, 1.0) == jobs
    assert automatic_jobs("cuda", 1, 1.0) == 1
    assert gpus.cuda_devices() == (tuple(visible.split(",")) if visible else tuple(map(str, range(count))))


def test_jobs_take_turns_on_gpus() -> None:
    turns = Turns(("0", "1"))
    assert [turns.take() for _ in range(3)] == ["0", "1", "0"]
    turns.leave("1")
    turns.leave("0")
    assert [turns.take(), turns.take()] == ["1", "0"]
    assert Turns(()).take() == ""


class Pipe:
    """The worker's end of a pipe through which one group comes."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.groups: list[Any] = [None]

    def recv(self) -> Any:
        if not self.groups:
            raise EOFError
        return self.groups.pop()

    def send(self, found: Any) -> None:
        self.sent.append(found)

    def close(self) -> None: ...


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a worker sends into, when it runs in this very process."""
    monkeypatch.setattr(processes, "_watch_parent", lambda parent: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return Pipe()


def test_a_worker_sees_the_gpu_that_it_was_given(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    seen: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(Computer, "compute", lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    plan: Any = None
    processes._work(plan, False, 1, "1", os.getpid(), pipe)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    pipe.groups.append(None)
    processes._work(plan, False, 1, "", os.getpid(), pipe)
    assert seen == ["1", "0,1"]


def test_how_far_a_group_is_comes_through_sparingly() -> None:
    told: list[float] = []
    tell = engine.Sparingly(told.append)
    for number in range(10_001):
        tell(number / 10_000)
    assert len(told) <= 101
    assert told == sorted(told)
    assert told[-1] == 1
    tell(1.0)
    tell(0.3)  # a group whose folds are tried again one at a time
    assert told.count(1.0) == 1
    assert told[-1] == 1


def test_what_breaks_off_says_why(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(Computer, "compute", broken)
    plan: Any = None
    processes._work(plan, False, 1, "", os.getpid(), pipe)
    assert pipe.sent[0].died == "its process broke off: RuntimeError: the device is lost"


@pytest.fixture(scope="module")
def four(config: Path) -> Path:
    """Four groups of one cell each."""
    given = yaml.safe_load(config.read_text()) | {"name": "four", "chunk_size": 8, "tokens": [32, 64]}
    return write_config(config.with_name("four.yaml"), **given)


def test_processes_live_on_and_one_that_dies_is_replaced(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    start = processes._Pool._start

    def remembered(pool: Any, gpu: str) -> Any:
        started.append(start(pool, gpu))
        return started[-1]

    class Killer(Silent):
        groups = 0

        def group(self, *_: Any, **__: Any) -> None:
            self.groups += 1
            if self.groups == 2:
                started[0].process.kill()

    monkeypatch.setattr(processes._Pool, "_start", remembered)
    summary = run(four, tmp_path / "out", jobs=2, report=Killer())
    assert (summary.total, summary.done, summary.failed) == (4, 3, 1)
    assert "killed by SIGKILL" in summary.failures[0]["reason"]
    assert len(started) == 3, "four groups: two processes, and one in place of the one that died"
    assert not any(worker.process.is_alive() for worker in started)


def test_a_process_in_which_a_cell_failed_gets_no_other_group(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = processes._Pool(None, 1, False)  # type: ignore[arg-type]
    group: Any = SimpleNamespace(cells=[SimpleNamespace(device="cuda")])
    ends: list[Any] = []

    def start(gpu: str) -> Any:
        ours, theirs = multiprocessing.Pipe()
        ends.append(theirs)
        process: Any = SimpleNamespace(kill=lambda: None, join=lambda: None)
        return processes._Worker(process, ours, gpu)

    monkeypatch.setattr(pool, "_start", start)
    monkeypatch.setattr(pool, "_gpus", Turns(("7",)))
    for outcome in (Outcome(), Outcome(failures={"a": {}}), Outcome()):
        pool.give(group)
        [worker] = pool.at_work.values()
        assert worker.gpu == "7"
        pool.done(worker, outcome)
    assert len(ends) == 2, "the second group found the first process idle, the third needed a new one"
    with pytest.raises(EOFError):
        [ends[0].recv() for _ in range(3)]
    pool.kill()


def test_what_an_interrupted_force_did_not_get_to_is_pending(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(config, out).done == 4
    before = cells(out)

    def interrupted(todo: Any, groups: Any, *, fail_fast: bool, begin: Any, **_: Any) -> Any:
        begin(groups[0])
        state = json.loads((out / "sweep.json").read_text())["cells"]
        assert {cell["state"] for cell in state} == {"pending"}, "also if it is killed now"
        yield groups[0], compute_group(todo, groups[0], fail_fast=fail_fast)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        run(config, out, force=True, engine=interrupted)
    summary = stopped.value.summary
    assert (summary.done, summary.left, summary.again) == (2, 2, 2)
    assert "running the same command without --force resumes" in summary.interruption()
    assert "(without --only, --limit, --force)" in "\n".join(summary.lines())
    assert summary.as_dict()["to_compute_again"] == 2
    new = {file for file, mark in cells(out).items() if mark != before[file]}
    assert {cell.file for cell in plan(config, out).cells if cell.file in plan(config, out).survey.done} == new
    shown = io.StringIO()
    resumed = run(config, out, report=Lines(shown))
    assert "note: 2 cells that an earlier --force" in shown.getvalue()
    assert {Path(file).name for file in resumed.files} == set(before) - new
    assert (resumed.done, resumed.again) == (4, 0)
    assert all(mark != before[file] for file, mark in cells(out).items())
    assert run(config, out).files == []


def test_the_tracing_alone_says_what_a_cell_is(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: dict[str, dict[str, Any]] = {}
    real = tracing.trace_folds

    def listening(*given: Any, **options: Any) -> Any:
        made = real(*given, **options)
        traced.update({ds.attrs["config_sha256"]: dict(ds.attrs) for ds in made})
        return made

    monkeypatch.setattr(tracing, "trace_folds", listening)
    assert run(config, tmp_path / "out").done == 4
    for cell in plan(config, tmp_path / "out").cells:
        written = dataset.read(tmp_path / "out" / cell.file).attrs
        assert written == traced[cell.hash]
        assert written["title"] == f"Drift of the folded pass: {cell}"
        assert json.loads(written["config_json"]) == cell.record


def test_a_cell_of_before_does_not_count_where_it_was_to_be_computed_again(config: Path, tmp_path: Path) -> None:
    assert run(config, tmp_path / "out").failed == 0

    def dying(todo: Any, groups: Any, *, fail_fast: bool, begin: Any, go_on: Any, **_: Any) -> Any:
        for group in groups:
            begin(group)
            yield group, Outcome(died="its process was killed by SIGKILL")

    summary = run(config, tmp_path / "out", force=True, engine=dying)
    assert summary.failed == summary.total
    assert "killed by SIGKILL" in summary.failures[0]["reason"]
