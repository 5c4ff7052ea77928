"""Groups as Dask tasks: a worker killed in the middle of a cell, folders that are not shared, machines that differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from sweep_tools import REPOSITORY, cells, differences, text_file, tiny_checkpoint, write_config

from drift.errors import ConfigError
from drift.running.sweep.computing import compute_group
from drift.running.sweep.engines import dask, receipts
from drift.running.sweep.planning import Plan, plan
from drift.running.sweep.progress import Silent
from drift.running.sweep.running import run

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}

# The second cell of a group: its bytes are on the disk, its name is not yet. Once only.
KILLER = """
import os, signal
def replace(source, target, rename=os.replace, **given):
    name = os.path.basename(target)
    if name.endswith(".nc") and "_fp32_append_c8_" in name and os.path.isdir({armed!r}):
        os.rmdir({armed!r})
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, **given)
os.replace = replace
"""


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.parts: dict[str, float] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    def group(self, title: str, seconds: float, documents: int, place: str = "") -> None:
        self.lines.append(title)

    def fraction(self, done: float, place: str = "") -> None:
        self.parts[place] = max(done, self.parts.get(place, 0.0))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration of four cells in two groups, and the folder of an undisturbed run."""
    here = tmp_path_factory.mktemp("dask")
    tiny_checkpoint(here / "tiny")
    config = write_config(
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
    assert run(config, here / "undisturbed").done == 4
    return config, here / "undisturbed"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a cluster of two processes, and the folder that, once made, has one of them killed."""
    from distributed import LocalCluster

    here = tmp_path_factory.mktemp("cluster")
    killer = here / "killer.py"
    killer.write_text(KILLER.format(armed=str(here / "armed")))
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address=None,
        silence_logs=50,
        resources={"GPU": 1},
        preload=[str(killer)],
    ) as made:
        yield made.scheduler_address, here / "armed"


def same(a: Path, b: Path) -> bool:
    assert sorted(cells(a)) == sorted(cells(b))
    return [d for d in differences(a, b, sorted(cells(a))) if "threads" not in d] == []


def test_a_worker_killed_in_the_middle_of_a_cell(
    bench: tuple[Path, Path], cluster: tuple[str, Path], tmp_path: Path
) -> None:
    config, undisturbed = bench
    address, armed = cluster
    armed.mkdir()
    said, out = Said(), tmp_path / "out"
    summary = run(config, out, engine="dask", scheduler=address, report=said)
    assert not armed.exists(), "nobody was killed"
    assert (summary.total, summary.done, summary.failed, summary.left) == (4, 4, 0, 0), summary.failures
    assert sorted(Path(file).name for file in summary.files) == sorted(cells(undisturbed)), "each of them once"
    assert same(out, undisturbed)
    assert [line for line in said.lines if "begun again" in line]
    assert said.parts == {"[1/2]": 1.0, "[2/2]": 1.0}
    assert not list(out.glob(".*.tmp")), "the half-written file of the killed worker"
    record = json.loads((out / "sweep.json").read_text())
    assert [cell["state"] for cell in record["cells"]] == ["done"] * 4
    assert record["at_work_on"] == ""

    before = cells(out)
    assert run(config, out, engine="dask", scheduler=address).files == []
    assert cells(out) == before
    forced = run(config, out, engine="dask", scheduler=address, force=True, only=["dtype=bf16"])
    assert len(forced.files) == 2
    assert {name for name, state in cells(out).items() if before[name] != state} == {Path(f).name for f in forced.files}
    assert same(out, undisturbed)


def test_cells_for_a_gpu_go_to_workers_that_offer_one(
    bench: tuple[Path, Path], cluster: tuple[str, Path], tmp_path: Path
) -> None:
    config, _ = bench
    made = plan(config, tmp_path / "plan")
    assert dask.resources(made.groups()[0]) == {}
    on_gpu = plan(replace_device(config, tmp_path), tmp_path / "out", dry_run=True)
    assert all(dask.resources(group) == {"GPU": 1} for group in on_gpu.groups())
    # It is for the workers to say whether there is a GPU: planning it here is no error.
    summary = run(replace_device(config, tmp_path), tmp_path / "out", engine="dask", scheduler=cluster[0])
    assert (summary.done + summary.failed, summary.left) == (4, 0)
    assert all("CUDA" in failure["reason"] for failure in summary.failures)


def replace_device(config: Path, folder: Path) -> Path:
    target = folder / "gpu.yaml"
    target.write_text(config.read_text() + "device: cuda\n")
    return target


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_a_state_to_resume_from(bench: tuple[Path, Path], tmp_path: Path) -> None:
    # Groups enough that some are left when the signal arrives, however busy the machine is.
    config = write_config(tmp_path / "more.yaml", **read_config(bench[0]), dtype=["bf16", "fp16", "fp32", "fp64"])
    undisturbed = tmp_path / "undisturbed"
    assert run(config, undisturbed).done == 8
    out = tmp_path / "out"
    command = [sys.executable, "-m", "drift.sweep", str(config), "--out", str(out), "--engine", "dask", "--json"]
    sweep = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background of a script, Ctrl-C is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 240
    while time.monotonic() < end and sweep.poll() is None and not list(out.glob("*.nc")):
        time.sleep(0.005)
    # As a terminal does: to the workers as well.
    os.killpg(sweep.pid, signal.SIGINT)
    printed, said = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, said
    assert "Traceback" not in said
    assert "running the same command resumes" in said
    summary = json.loads(printed)
    there = cells(out)
    assert summary["cells"]["done"] == len(there)
    assert 0 < len(there) < 8
    assert all_end(sweep.pid), "a worker outlives the sweep"
    assert not list(out.glob(".*.tmp"))
    finished = run(config, out)
    assert (finished.done, len(finished.files)) == (8, 8 - len(there))
    assert there.items() <= cells(out).items()
    assert same(out, undisturbed)


def read_config(path: Path) -> dict[str, Any]:
    given = yaml.safe_load(path.read_text())
    return {key: value for key, value in given.items() if key != "dtype"}


def all_end(group: int, seconds: float = 20) -> bool:
    """Whether the processes of a group end; those that only keep books for others do so a moment later."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


# ---------------------------------------------------------------- the parts, without a cluster


@pytest.fixture
def planned(bench: tuple[Path, Path], tmp_path: Path) -> Plan:
    return plan(bench[0], tmp_path / "out")


def task(todo: Plan, **given: Any) -> receipts.Receipt:
    defaults: dict[str, Any] = {"stale": {}, "fail_fast": False, "threads": None, "here": "/", "begun": lambda: None}
    return dask.compute(todo, todo.groups()[0], **(defaults | given))


def test_a_task_computes_what_is_missing_and_nothing_else(planned: Plan) -> None:
    folder, group = planned.folder, planned.groups()[0]
    begun: list[int] = []
    parts: list[float] = []
    first = task(planned, begun=lambda: begun.append(1), fraction=parts.append)
    assert begun == [1]
    assert parts[-1] == 1
    assert [Path(path).name for path, _ in first.cells] == [cell.file for cell in group.cells]
    assert first.computing > 0
    before = cells(folder.path)
    again = task(planned)
    assert (sorted(again.cells), again.computing, cells(folder.path)) == (sorted(first.cells), 0.0, before)
    lost = group.cells[1].file
    folder.cell(lost).unlink()
    assert sorted(Path(path).name for path, _ in task(planned).cells) == sorted(before)
    assert {name for name, state in cells(folder.path).items() if before.get(name) != state} == {lost}
    # What is to be computed again is told by its bytes: a second attempt finds the first one's work.
    path, digest = first.cells[0]
    assert dict(task(planned, stale={Path(path).name: digest}).cells).keys() == dict(first.cells).keys()
    assert cells(folder.path)[Path(path).name] != before[Path(path).name]


def test_only_what_arrives_here_counts(planned: Plan) -> None:
    group = planned.groups()[0]
    elsewhere = receipts.Receipt([(f"/elsewhere/{group.cells[0].file}", "0" * 64)])
    lost = receipts.settle(elsewhere, planned.folder, group, patience=0.01)
    assert lost.files == []
    assert "file system that this machine and all workers share" in lost.stopped
    task(planned)
    # There, and sound, with other bytes than announced: written again by a worker that was thought lost.
    found = receipts.settle(elsewhere, planned.folder, group, patience=0.01)
    assert (found.files, found.stopped) == ([group.cells[0].file], "")
    assert found.checked == {group.cells[0].file: planned.folder.fingerprint(group.cells[0].file)}


def test_a_machine_that_would_compute_something_else_is_refused(planned: Plan) -> None:
    cell = planned.cells[0]
    assert receipts.difference(cell) == ""
    other = {"torch": "1.0", "numerics": "0"}
    for name, version in other.items():
        versions = tuple((key, version if key == name else value) for key, value in cell.versions)
        assert "install the same versions" in receipts.difference(replace(cell, versions=versions))
        assert name in receipts.difference(replace(cell, versions=versions))
    assert "other weights" in receipts.difference(replace(cell, checkpoint="0" * 64))
    assert "another text" in receipts.difference(replace(cell, text="0" * 64))
    group = replace(planned.groups()[0], cells=(replace(cell, text="0" * 64),))
    receipt = dask.compute(
        planned, group, stale={}, fail_fast=False, threads=None, here="/", begun=lambda: None
    )  # fmt: skip
    assert "another text" in receipt.stopped
    assert receipt.cells == []


def test_what_ends_badly_is_said(planned: Plan) -> None:
    from distributed import KilledWorker

    class Worker:
        address = "tcp://a:1"

    def outcome(status: str, error: Exception | None = None) -> Any:
        future = SimpleNamespace(status=status, exception=lambda: error)
        return dask.Dask(scheduler="tcp://s:1")._outcome(future, planned.folder, planned.groups()[0])  # type: ignore

    assert "4 workers died" in outcome("error", KilledWorker("task", Worker(), 3)).died  # type: ignore[arg-type]
    assert "install the same drift" in outcome("error", ModuleNotFoundError("No module named 'drift'")).stopped
    assert "OSError: stale" in outcome("error", OSError("stale")).died
    assert "tcp://s:1 is gone" in outcome("cancelled").stopped


@pytest.mark.parametrize(("workers", "hint"), [({}, "start some"), ({"tcp://a:1": 1}, "--resources GPU=1")])
def test_waiting_for_workers_is_explained(workers: dict[str, int], hint: str) -> None:
    lines: list[str] = []
    dask.Dask(say=lines.append)._wonder(SimpleNamespace(nthreads=lambda: workers), True)  # type: ignore[arg-type]
    assert hint in lines[0]


def test_bad_engines_are_explained(bench: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = bench
    with pytest.raises(ConfigError, match="goes with --engine dask"):
        run(config, tmp_path, scheduler="tcp://a:1")
    with pytest.raises(ConfigError, match="did you mean 'dask'"):
        run(config, tmp_path, engine="dusk")
    monkeypatch.setattr(dask, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=r"tcp://127.0.0.1:1: cannot be reached"):
        run(config, tmp_path, engine="dask", scheduler="tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'drift\[dask\]'"):
        run(config, tmp_path, engine="dask")


def test_an_engine_of_ones_own(bench: tuple[Path, Path], tmp_path: Path) -> None:

    def mine(todo: Plan, groups: Any, *, fail_fast: bool, begin: Any, fraction: Any, go_on: Any) -> Any:
        for group in groups:
            if go_on():
                begin(group)
                yield (
                    group,
                    compute_group(todo, group, fail_fast=fail_fast, fraction=partial(fraction, group)),
                )

    summary = run(bench[0], tmp_path / "out", engine=mine)
    assert (summary.done, len(summary.files)) == (4, 4)
    assert same(tmp_path / "out", bench[1])


def test_groups_of_a_task_are_computed_like_others(cluster: tuple[str, Path], tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tiny")
    config = write_config(
        tmp_path / "asking.yaml",
        model=str(tmp_path / "tiny"),
        device="cpu",
        dtype=["bf16", "fp32"],
        task="needle",
        chunk_size=[48, 96],
        tokens=640,
        documents=2,
        allow_beyond_context=True,
    )
    assert run(config, tmp_path / "here").done == 4
    address, _ = cluster
    summary = run(config, tmp_path / "there", engine="dask", scheduler=address)
    assert (summary.done, summary.failed) == (4, 0), summary.failures
    assert same(tmp_path / "there", tmp_path / "here")
