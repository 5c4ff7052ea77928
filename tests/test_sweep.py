"""A sweep that runs: what it writes, what it leaves alone, and how it goes on after whatever disturbed it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import sweep_fixtures
from sweep_fixtures import Said, small
from sweep_tools import cells, differences, write_config

from drift import dataset
from drift.running import tracing
from drift.running.sweep.config import load_config
from drift.running.sweep.planning import plan
from drift.running.sweep.running import run

tiny, here, say = sweep_fixtures.tiny, sweep_fixtures.here, sweep_fixtures.say


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep of :func:`small`: its configuration and its folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "small.yaml", **small(tiny))
    assert run(load_config(config), folder / "out").exit == 0
    return config, folder / "out"


def test_the_dry_run_says_what_is_done_and_what_is_left(
    finished: tuple[Path, Path], tiny: Path, here: Path, say: Said
) -> None:
    config, out = finished
    before = cells(out)
    code, text, _ = say(config, "--out", out, "--dry-run", "--set", "chunk_size=4,8,16")
    assert code == 0
    assert text.count("append") == 3
    assert "6 cells, 4 done, 0 failed, 2 left in 1 descents" in text
    assert "about" in text
    assert "memory" in text
    assert "disk" in text
    code, text, _ = say(config, "--out", out, "--dry-run", "--json", "--only", "protocol=append")
    preview = json.loads(text)
    assert preview["cells"] == {"total": 2, "done": 2, "failed": 0, "left": 0}
    assert len(preview["not_in_this_plan"]) == 0
    assert cells(out) == before
    code, text, _ = say(config, "--out", here / "new", "--dry-run")
    assert code == 0
    assert not (here / "new").exists()


def test_a_cell_says_what_it_is(finished: tuple[Path, Path], tiny: Path) -> None:
    config, out = finished
    made = plan(load_config(config), out)
    opened = dataset.open_sweep(out)
    assert len(opened) == len(made.cells) == 4
    assert not opened.problems
    assert not opened.failures
    for cell in made.cells:
        ds = dataset.read(out / cell.file)
        assert ds.attrs["config_sha256"] == cell.hash
        assert json.loads(ds.attrs["config_json"]) == json.loads(dataset.canonical_json(cell.record))
        assert ds.attrs["checkpoint_sha256"] == cell.checkpoint
        assert ds.attrs["seed"] == 0
        assert (int(ds.chunk_size), str(ds.protocol.values), str(ds.model.values)) == (
            cell.chunk_size,
            cell.protocol,
            cell.label,
        )
        assert ds.sizes["document"] == 2
    state = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert {c["state"] for c in state["cells"]} == {"done"}
    assert len(state["groups"]) == 1
    assert state["groups"][0]["elapsed_s"] > 0
    assert state["at_work_on"] == ""


def test_nothing_is_computed_twice(finished: tuple[Path, Path], say: Said) -> None:
    config, out = finished
    before, state = cells(out), json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    code, text, _ = say(config, "--out", out, "--json")
    summary = json.loads(text)
    assert code == 0
    assert summary["cells"] == {"total": 4, "done": 4, "failed": 0, "left": 0, "computed": 0}
    assert cells(out) == before
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8"))["groups"] == state["groups"]


def test_limit_only_force_and_changed_configurations(
    finished: tuple[Path, Path], tiny: Path, here: Path, say: Said
) -> None:
    _, undisturbed = finished
    # The grids of this file are in another order than those of the undisturbed run.
    config = write_config(here / "small.yaml", **small(tiny, chunk_size=[16, 4], protocol=["reprime", "append"]))
    out = here / "data" / "sweeps" / "small"

    code, text, err = say(config, "--limit", "1", "--json")
    summary = json.loads(text)
    assert code == 3 == summary["exit_code"], err
    assert summary["cells"] == {"total": 4, "done": 1, "failed": 0, "left": 3, "computed": 1}
    first = cells(out)

    code, text, _ = say(config, "--only", "protocol=reprime", "--only", "chunk_size=16", "--json")
    assert code == 3
    assert json.loads(text)["cells"]["left"] in (2, 3)
    code, text, _ = say(config, "--only", "protocol=append", "--json")
    assert code in (0, 3)
    code, text, err = say(config)
    assert code == 0
    assert "complete" in text
    assert "small: 4 cells" in err
    done = cells(out)
    assert first.items() <= done.items()
    assert differences(out, undisturbed, list(cells(undisturbed))) == []

    code, _, err = say(config, "--only", "dtype=bf16")
    assert code == 2
    assert "fp32" in err
    code, _, err = say(config, "--only", "size=16")
    assert code == 2
    assert "chunk_size" in err

    code, _, _ = say(config, "--force", "--only", "chunk_size=4")
    again = cells(out)
    assert code == 0
    assert {f for f in done if done[f] != again[f]} == {f for f in done if "_c4_" in f}
    assert differences(out, undisturbed, list(again)) == []

    code, text, err = say(config, "--set", "seed=5", "--set", "protocol=append", "--json")
    summary = json.loads(text)
    assert code == 0
    assert summary["cells"]["computed"] == 2
    assert sorted(summary["not_in_this_plan"]) == sorted(done)
    assert "not in this plan" in err
    assert again.items() <= cells(out).items()
    assert len(dataset.open_sweep(out)) == 2


def test_a_truncated_and_a_foreign_file_among_the_cells(finished: tuple[Path, Path], here: Path, say: Said) -> None:
    config, undisturbed = finished
    out = here / "out"
    shutil.copytree(undisturbed, out)
    truncated, swapped, text, sound = sorted(cells(out))
    (out / truncated).write_bytes((out / truncated).read_bytes()[:3000])
    shutil.copy(out / sound, out / swapped)
    (out / text).write_text("not a cell", encoding="utf-8")
    (out / "mine.nc").write_text("somebody's", encoding="utf-8")
    (out / f".{sound}.123-abcdef01.tmp").write_text("left by a killed run", encoding="utf-8")
    before = cells(out)

    code, listing, _ = say(config, "--out", out, "--dry-run")
    assert code == 0
    assert listing.count("broken, will be set aside") == 3
    assert "1 done" in listing
    assert cells(out) == before

    code, summary_text, err = say(config, "--out", out, "--json")
    summary = json.loads(summary_text)
    assert code == 0
    assert summary["cells"]["computed"] == 3
    assert sorted(map(os.path.basename, summary["set_aside"])) == sorted(
        f"{f}.broken" for f in (truncated, swapped, text)
    )
    assert "holds another cell" in err
    assert summary["not_in_this_plan"] == ["mine.nc"]
    assert cells(out)[sound] == before[sound]
    assert cells(out)["mine.nc"] == before["mine.nc"]
    assert differences(out, undisturbed, [truncated, swapped, text, sound]) == []
    assert not list(out.glob(".*.tmp"))


def test_a_damaged_sweep_json_loses_no_cell(finished: tuple[Path, Path], here: Path, say: Said) -> None:
    config, undisturbed = finished
    out = here / "out"
    shutil.copytree(undisturbed, out)
    before = cells(out)
    (out / "sweep.json").write_text('{"cells": [', encoding="utf-8")
    code, _, err = say(config, "--out", out)
    assert code == 0
    assert "sweep.json" in err
    assert "unreadable" in err
    assert cells(out) == before
    json.loads((out / "sweep.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("error", ["MemoryError", "RuntimeError", "OutOfMemoryError"])
def test_out_of_memory_tries_the_folds_one_at_a_time(
    error: str, finished: tuple[Path, Path], tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    raised = {
        "MemoryError": MemoryError(),
        "RuntimeError": RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        ),
        "OutOfMemoryError": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    }[error]
    real = tracing.trace_folds

    def tight(model: Any, tokens: Any, folds: Any, **options: Any) -> Any:
        if len(folds) > 1 or folds[0][:2] == (4, "reprime"):
            raise raised
        return real(model, tokens, folds, **options)

    # Running a machine out of memory in earnest would take the test run with it.
    monkeypatch.setattr(tracing, "trace_folds", tight)
    config, undisturbed = finished
    summary = run(load_config(config), here / "out")
    assert summary.exit == 1
    assert summary.done == 3
    [failure] = summary.failures
    assert failure["kind"] == "out_of_memory"
    assert "out of memory" in failure["reason"]
    monkeypatch.undo()
    # --retry-failed computes the one that is missing, and nothing else.
    before = cells(here / "out")
    summary = run(load_config(config), here / "out", retry_failed=True)
    assert summary.exit == 0
    assert len(summary.files) == 1
    assert before.items() <= cells(here / "out").items()
    assert not list((here / "out" / "logs").iterdir())
    assert differences(here / "out", undisturbed, list(cells(undisturbed))) == []


def test_a_full_disk_stops_the_sweep_and_blames_no_cell(
    finished: tuple[Path, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".nc"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    config, _ = finished
    summary = run(load_config(config), here / "out")
    assert summary.exit == 3
    assert summary.failed == 0
    assert summary.left == 4
    assert "No space left" in summary.stopped
    monkeypatch.undo()
    assert run(load_config(config), here / "out").exit == 0


def test_two_sweeps_do_not_share_a_folder(finished: tuple[Path, Path], here: Path, say: Said) -> None:
    config, undisturbed = finished
    shutil.copytree(undisturbed, here / "out")
    with plan(load_config(config), here / "out").folder.lock():
        code, _, err = say(config, "--out", here / "out")
        assert code == 2
        assert "another sweep" in err
        assert str(os.getpid()) in err
    assert say(config, "--out", here / "out")[0] == 0


def test_a_sweep_from_another_thread(finished: tuple[Path, Path]) -> None:
    config, out = finished
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(run(load_config(config), out).exit))
    thread.start()
    thread.join()
    assert results == [0]
