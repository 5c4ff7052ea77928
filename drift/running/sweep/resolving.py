"""From a configuration's words to cells: checkpoints, rungs, protocols, texts, and what is wrong with them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any, TypeVar

from drift import dataset
from drift._bounds import MOST_STEPS
from drift._version import NUMERICS_VERSION
from drift.dataset.contract import SCHEMA_VERSION
from drift.errors import ConfigError, DriftError
from drift.running import corpus, protocols
from drift.running.checkpoints import identity as checkpoints_identity
from drift.running.checkpoints import resolving
from drift.running.model import numerics
from drift.running.protocols.runnable import check_runnable
from drift.running.sweep import control_cells
from drift.running.sweep.cells import Cell
from drift.running.sweep.config import NO_TASK, Config, Grid
from drift.running.sweep.gpus import cuda_problem
from drift.running.sweep.groups import shape_of
from drift.running.sweep.task_cells import task_cells
from drift.running.tasks import haystacks, kinds
from drift.running.tasks.base import Task

__all__ = ["Problems", "resolve_grid"]

_T = TypeVar("_T")
_TOLD = 50  # problems that are told


# ---------------------------------------------------------------- the machine


@cache
def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"{package} is not installed, and a sweep computes with it: pip install {package}") from None


# ---------------------------------------------------------------- checking and resolving


class Problems:
    """Collects everything that is wrong, so that a person mends a configuration in one go."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}

    def add(self, place: str, text: object) -> None:
        """Note a problem at a place; the same one once."""
        self.lines[f"{place}: {text}"] = None

    def attempt(self, place: str, function: Callable[[], _T]) -> _T | None:
        """Return what a function returns; what it refuses is noted, and None returned."""
        try:
            return function()
        except DriftError as error:
            self.add(place, error)
            return None

    def raise_any(self) -> None:
        """Raise all that was noted, if anything was."""
        if self.lines:
            told = list(self.lines)
            more = [f"... and {len(told) - _TOLD} more problems"] if len(told) > _TOLD else []
            raise ConfigError("\n".join([*told[:_TOLD], *more]))


def resolve_grid(grid: Grid, config: Config, problems: Problems, dry_run: bool) -> Iterator[Cell]:
    """The cells of one grid; values that stand for nothing are reported and left out."""
    versions = (
        ("numerics", NUMERICS_VERSION),
        ("schema", SCHEMA_VERSION),
        ("torch", _installed("torch")),
        ("transformers", _installed("transformers")),
    )
    if not _check_steps(grid, problems):
        return
    models: dict[str, tuple[Any, str]] = _each(grid, "model", problems, _known)
    texts: dict[str, str] = _each(grid, "corpus", problems, lambda name: corpus.identity(name, config.seed))
    readings: dict[str, Any] = _each(grid, "protocol", problems, protocols.parse)
    compared = [
        (label, name)
        for label, reading in readings.items()
        for name in grid.reference
        if problems.attempt(grid.origin("reference", name), lambda r=reading, n=name: r.check_reference(n) or True)  # type: ignore[misc]
    ]
    tasks = _tasks(grid, readings, problems)
    devices = _devices(grid, problems, dry_run)
    rungs = _rungs(grid, devices, problems)
    _check_sizes(grid, models, readings, problems)
    for name, dtype, device in product(models, rungs, devices):
        checkpoint, identity = models[name]
        half = "native"
        if dtype in ("bf16", "fp16") and devices[device] == "cpu":
            half = numerics.default_half_matmul("cpu", dtype) if grid.half_matmul == "auto" else grid.half_matmul
        for documents, tokens, text, attention, (label, reference), size in product(
            grid.documents, grid.tokens, texts, grid.attn_implementation, compared, grid.chunk_size
        ):
            cell = Cell(
                model=checkpoint.name,
                label=checkpoint.label,
                family=checkpoint.family,
                dtype=dtype,
                chunk_size=size,
                protocol=readings[label].label,
                reference=reference,
                documents=documents,
                tokens=tokens,
                corpus=text,
                attn_implementation=attention,
                device=devices[device],
                logit_stride=grid.logit_stride,
                floor_draws=grid.floor_draws,
                half_matmul=half,
                seed=config.seed,
                checkpoint=identity,
                text=texts[text],
                versions=versions,
                beyond_context=grid.allow_beyond_context,
                kept=grid.weights,
            )
            yield from task_cells(cell, tasks, grid.questions)
            if NO_TASK in grid.task:
                yield cell
                if grid.controls:
                    yield from _controls(cell, rungs[dtype].unit_roundoff)


def _each(grid: Grid, axis: str, problems: Problems, resolve: Callable[[str], _T]) -> dict[str, _T]:
    """What every value of an axis stands for; those that stand for nothing are noted and left out."""
    found = {}
    for name in getattr(grid, axis):
        value = problems.attempt(grid.origin(axis, name), partial(resolve, name))
        if value is not None:
            found[name] = value
    return found


def _tasks(grid: Grid, readings: Mapping[str, Any], problems: Problems) -> dict[Task, str]:
    """The tasks that were named, and what identifies their haystacks; a problem for what cannot be asked."""
    asked = [name for name in grid.task if name != NO_TASK]
    tasks: dict[Task, str] = {}
    for name in asked:
        task = problems.attempt(grid.origin("task", name), partial(kinds.parse, name))
        if task is None:
            continue
        text = problems.attempt(grid.origin("task", name), partial(haystacks.identity, task.haystack))
        if text is not None:
            tasks[task] = text
    if asked:
        for label, reading in readings.items():
            problems.attempt(grid.origin("protocol", label), partial(check_runnable, reading))
        for other in grid.reference:
            if other != "full":
                problems.add(
                    grid.origin("reference", other),
                    f"the answers of a task are held against full attention alone, not {other!r}; put what is compared "
                    "with it into a grid of its own",
                )
    return tasks


def _known(model: str) -> tuple[Any, str]:
    """A model's checkpoint and its identity."""
    checkpoint = resolving.resolve(model)
    return checkpoint, checkpoints_identity.identity(checkpoint.name)


def _devices(grid: Grid, problems: Problems, dry_run: bool) -> dict[str, str]:
    """``cpu`` or ``cuda`` for every device that was named, ``auto`` among them."""
    devices = {}
    for name in grid.device:
        devices[name] = ("cpu" if cuda_problem() else "cuda") if name == "auto" else name
        # A dry run may be made on a laptop for a machine that has the device.
        if name == "cuda" and cuda_problem() and not dry_run:
            problems.add(grid.origin("device", name), f"cuda cannot be used: {cuda_problem()}. Use device: cpu or auto")
    return devices


def _rungs(grid: Grid, devices: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    """The rungs that were named, and a problem for those that the devices cannot do."""
    rungs: dict[str, Any] = _each(grid, "dtype", problems, dataset.rung)
    for name, rung in rungs.items():
        if rung.needs_gpu and "cpu" in devices.values():
            why = cuda_problem() if "auto" in devices else "this grid runs on the CPU"
            others = ", ".join(n for n, r in dataset.RUNGS.items() if not r.needs_gpu)
            problems.add(grid.origin("dtype", name), f"{name} needs a GPU ({why}). On a CPU: {others}")
    return {rung.name: rung for rung in rungs.values()}


def _check_steps(grid: Grid, problems: Problems) -> bool:
    """Whether every text of a grid has a number of chain steps that can be done with."""
    sound = True
    for tokens, size in product(grid.tokens, grid.chunk_size):
        if (steps := -(-tokens // size)) > MOST_STEPS:
            sound = False
            problems.add(
                grid.origin("chunk_size", size),
                f"{tokens} tokens in chunks of {size} are {steps:,} chain steps; at most {MOST_STEPS:,} are computed",
            )
    return sound


def _check_sizes(
    grid: Grid, models: Mapping[str, tuple[Any, str]], readings: Mapping[str, Any], problems: Problems
) -> None:
    """Chunks must fit into texts, and texts into what a model has seen."""
    for tokens, size in product(grid.tokens, grid.chunk_size):
        if size > tokens:
            problems.add(
                grid.origin("chunk_size", size),
                f"chunk size {size} is larger than the text of {tokens} tokens "
                f"({grid.origin('tokens', tokens)}); make it {tokens} at most, or put it into a grid of its own",
            )
    for checkpoint, identity in models.values():
        shape = shape_of(checkpoint.name, identity)
        if shape is not None and shape.max_positions and not grid.allow_beyond_context:
            for label, reading in readings.items():
                _check_context(grid, checkpoint.name, shape.max_positions, label, reading, problems)


def _controls(cell: Cell, unit_roundoff: float) -> Iterator[Cell]:
    """The controls of a cell's model, precision, device and attention; the same for all cells that share these."""
    tokens = min(control_cells.TOKENS, cell.tokens)
    for control in control_cells.controls(unit_roundoff, cell.attn_implementation):
        yield replace(
            cell,
            protocol=control.protocol,
            reference=control.reference,
            control=control.kind,
            documents=1,
            tokens=tokens,
            chunk_size=min(control_cells.CHUNK_SIZE, max(1, tokens // 8)),
            logit_stride=control_cells.LOGIT_STRIDE,
        )


def _check_context(grid: Grid, model: str, context: int, label: str, reading: Any, problems: Problems) -> None:
    """Positions that the model was not trained on are an error unless they were asked for."""
    bound = reading.bind(lambda: 0)  # which token is put in front does not matter for counting
    for tokens, size in product(grid.tokens, grid.chunk_size):
        if size > tokens:
            continue
        length = tokens + bound.continuation()
        needed = max([length, *(c.first_position + len(c) for c in bound.chunks(length, size))])
        if needed > context:
            extra = f" and {needed - tokens} more that {label} adds to chunks of {size}" if needed > tokens else ""
            problems.add(
                grid.origin("tokens", tokens),
                f"{tokens} tokens{extra} are beyond the context of {model} ({context} positions); "
                "use fewer, or set allow_beyond_context: true",
            )
            break
