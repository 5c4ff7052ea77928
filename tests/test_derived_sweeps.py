"""A sweep made of another loses nothing but cells, and keeps nothing for its readers."""

from __future__ import annotations

import ast
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic
from task_tools import task_cell

from drift import dataset
from drift.reading import cells
from drift.reading.controls import evaluating
from drift.reading.figures import style

SMALL = {"model": "tiny", "layers": 2, "documents": 2, "tokens": 40, "chunk_size": 16}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dataset.Sweep:
    """A sweep of two cells, a control and a task cell, in which every part has something."""
    root = tmp_path_factory.mktemp("everything")
    for chunk in (8, 16):
        dataset.write(synthetic.cell(**SMALL | {"chunk_size": chunk}), root / f"{chunk}.nc")
    dataset.write(synthetic.cell(**SMALL, protocol="full").assign_attrs(control="quiet"), root / "control.nc")
    dataset.write(synthetic.cell(**SMALL), root / "other.nc")
    dataset.write(task_cell([[1]], [[1]], chunk_size=8), root / "task.nc")
    (root / "bad.nc").write_text("not a cell")
    named = [{"file": f"{name}.nc", "state": "done"} for name in ("8", "16", "control", "task", "bad")]
    plan = {"cells": named, "failures": [{"file": "none.nc", "reason": "out of memory"}]}
    (root / "sweep.json").write_text(json.dumps(plan))
    return dataset.open_sweep(root)


WAYS: dict[str, Callable[[dataset.Sweep], dataset.Sweep]] = {
    "derive": lambda sweep: sweep.derive(sweep.cells[:1]),
    "sel": lambda sweep: sweep.sel(chunk_size=8),
    "keep": lambda sweep: dataset.keep(sweep, lambda ds: ds["chunk_size"].item() == 8),
    "folds": dataset.folds,
    "select": lambda sweep: cells.select(sweep, "tiny"),
    "longest": cells.longest,
    "choose": style.choose,
    "groups": lambda sweep: next(style.groups(sweep, "name"))[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_derived_sweep_loses_nothing_but_cells(everything: dataset.Sweep, way: str) -> None:
    parts = [name for name in vars(everything) if name != "cells"]
    assert all(getattr(everything, name) for name in parts), "every part has something to lose"
    derived = WAYS[way](everything)
    assert {name: getattr(derived, name) for name in parts} == {name: getattr(everything, name) for name in parts}
    assert derived.controls is everything.controls
    assert derived.cells[0]["chunk_size"].item() == 8
    assert len(everything) == 2


def test_none_of_the_cells_is_a_sweep_too(everything: dataset.Sweep) -> None:
    assert len(everything.derive([])) == 0
    assert len(everything.derive([]).controls) == 1


def test_only_the_room_makes_sweeps_from_nothing() -> None:
    """Wherever else one is made of another, `derive` carries all that it has."""
    package = Path(dataset.__file__).parents[1]
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if path.parent.name != "dataset"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Sweep"
    ]
    assert found == []


def test_the_room_keeps_nothing_for_readers(everything: dataset.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worked out of the controls is kept in the reading wing: once for all that share them, and no longer."""
    asked: list[int] = []
    real = evaluating._evaluate

    def counted(*arguments: object) -> object:
        asked.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluating, "_evaluate", counted)
    sweep = dataset.Sweep(list(everything), controls=everything.controls)
    found = [evaluating.evaluate(one) for one in (sweep, sweep, sweep.sel(), sweep.derive(reversed(sweep.cells)))]
    assert asked == [1]
    assert all(one is found[0] for one in found)
    assert set(vars(sweep)) == {"cells", "controls", "plan", "failures", "problems", "left_out", "folder", "tasks"}
    kept = weakref.ref(sweep.controls)
    del sweep
    gc.collect()
    assert kept() is None, "the memo keeps controls alive that nobody else does"
