"""From a configuration to cells: what each one is, what it is called, which share a descent, what they will cost.

No torch here: a plan is made, checked and shown in a second.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from drift._version import NUMERICS_VERSION
from drift.errors import CheckpointError, ConfigError, DriftError
from drift.sweep import controls as control_table
from drift.sweep.config import Config, Grid, load_config
from drift.sweep.cost import Cost, cell_bytes, correction, group_cost
from drift.sweep.gpus import cuda_problem
from drift.sweep.memory import Footprint, choose, footprint, free, resident_bytes
from drift.sweep.state import Folder, Survey

__all__ = ["Cell", "Group", "Plan", "plan"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Cell:
    """One point of the sweep: one file.

    Attributes
    ----------
    model : str
        As resolved by :func:`drift.checkpoints.resolve`; `label` is its short form.
    protocol : str
        Canonical label.
    reference : str
        What the fold is compared with.
    control : str
        ``quiet``, ``floor`` or ``fires``, see :mod:`drift.sweep.controls`; empty for a cell that was asked for.
    device : str
        ``cpu`` or ``cuda``; never ``auto``.
    half_matmul : str
        Resolved; ``native`` on the rungs it does not bear on.
    checkpoint, text : str
        sha256 of the weights with tokenizer and config, and of the corpus.
    versions : tuple of (str, str)
        What else the numbers depend on.
    beyond_context : bool
        Whether longer texts than the model's context are allowed. A permission, not part of the identity.
    kept : str
        ``auto``, ``resident`` or ``streamed``: where the weights may lie. The numbers are the same.
    """

    model: str
    label: str
    family: str
    dtype: str
    chunk_size: int
    protocol: str
    documents: int
    tokens: int
    corpus: str
    attn_implementation: str
    device: str
    logit_stride: int
    half_matmul: str
    seed: int
    checkpoint: str
    text: str
    versions: tuple[tuple[str, str], ...]
    reference: str = "full"
    control: str = ""
    beyond_context: bool = field(default=False, compare=False)
    kept: str = field(default="auto", compare=False)

    @property
    def axes(self) -> dict[str, str | int]:
        """The values a person chose, by axis."""
        compared = ("dtype", "chunk_size", "protocol", "reference")
        texts = ("documents", "tokens", "corpus")
        names = (*compared, *texts, "attn_implementation", "device")
        options = ("logit_stride", "half_matmul", "seed")
        return {"model": self.label, **{name: getattr(self, name) for name in (*names, *options)}}

    @cached_property
    def record(self) -> dict[str, Any]:
        """Everything the numbers in the cell depend on; its hash is the cell's identity."""
        # What most cells do without is left out, so that it is no part of their hash.
        rare = {"control": self.control} if self.control else {}
        axes = {name: value for name, value in self.axes.items() if (name, value) != ("reference", "full")}
        return {
            **axes,
            **rare,
            "checkpoint_sha256": self.checkpoint,
            "corpus_sha256": self.text,
            "versions": dict(self.versions),
        }

    @cached_property
    def hash(self) -> str:
        """sha256 of :attr:`record` as canonical JSON."""
        from drift.dataset import content_hash

        return content_hash(self.record)

    @property
    def file(self) -> str:
        """Name of the cell's file."""
        protocol = re.sub(r"[^A-Za-z0-9]+", "-", self.protocol).strip("-")
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.") or "model"
        reference = "" if self.reference == "full" else f"_{self.reference}"
        return f"{label}_{self.dtype}_{protocol}{reference}_c{self.chunk_size}_{self.hash[:16]}.nc"

    @property
    def descent(self) -> tuple[object, ...]:
        """Cells with the same value share one descent."""
        return (*self.weights, self.documents, self.tokens, self.corpus, self.logit_stride, self.half_matmul, self.seed)

    @property
    def weights(self) -> tuple[object, ...]:
        """Cells with the same value share the model in memory."""
        return (self.model, self.dtype, self.attn_implementation, self.device)

    def __str__(self) -> str:
        against = "" if self.reference == "full" else f" against {self.reference}"
        return f"{self.label} {self.dtype} {self.protocol}{against} chunk {self.chunk_size}"


@dataclass(frozen=True)
class Group:
    """Cells that one descent computes: folds of the same texts through the same weights."""

    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        """One line for progress reports."""
        cell = self.cells[0]
        folds = ", ".join(f"{c.protocol}/{c.chunk_size}" for c in self.cells)
        if all(c.control for c in self.cells):
            folds = "controls"
        size = f"{cell.documents} x {cell.tokens} tokens of {cell.corpus}"
        return f"{cell.label} {cell.dtype} on {cell.device} ({cell.attn_implementation}), {size}: {folds}"

    def way(self, budget: float | None = None) -> tuple[Footprint, bool] | None:
        """How to run the descent within a budget [bytes], and whether it fits; None where the shape is not known.

        Its bytes are those of everything, a float64 copy of the model included.
        """
        cell = self.cells[0]
        shape = _shape(cell.model, cell.checkpoint)
        if shape is None:
            return None
        given: dict[str, Any] = {
            "device": cell.device,
            "attn_implementation": cell.attn_implementation,
            "tokens": cell.tokens,
            "logit_stride": cell.logit_stride,
            "weights": next((c.kept for c in self.cells if c.kept != "auto"), "auto"),
        }
        narrow, wide = self._folds()
        own: dict[str, Any] = {"dtype": cell.dtype, "half_matmul": cell.half_matmul, "folds": narrow}
        if not wide:
            return choose(shape, budget=budget, **given, **own)
        # The same model stands beside itself in float64, and is kept in the same way.
        for kept in ("resident", "streamed") if given["weights"] == "auto" else (given["weights"],):
            asked = given | {"weights": kept}

            def beside(way: Footprint, asked: dict[str, Any] = asked) -> float:
                run = asked | {"keeps_calls": way.keeps_calls, "logit_rows": way.logit_rows}
                extra = footprint(shape, dtype="fp64", half_matmul="native", folds=wide, **run)
                return extra.bytes - extra.parts["runtime"]

            way, fits = choose(shape, budget=budget, beside=beside, **asked, **own)
            if fits:
                break
        return replace(way, parts=way.parts | {"runtime": way.parts["runtime"] + beside(way)}), fits

    def _folds(self) -> tuple[list[int], list[int]]:
        """Chunk sizes of the folds on the cells' own rung, and of those in float64."""
        lanes = {(c.protocol, c.chunk_size) for c in self.cells}
        lanes |= {(f"{c.protocol} unperturbed", c.chunk_size) for c in self.cells if c.reference == "unperturbed"}
        wide = {(c.protocol, c.chunk_size) for c in self.cells if c.reference in ("gold", "fold64")}
        return [size for _, size in sorted(lanes)], [size for _, size in sorted(wide)]

    def cost(self, budget: float | None = None) -> Cost | None:
        """Estimate the descent; None where the model's shape is not known yet."""
        cell = self.cells[0]
        found = self.way(budget)
        if found is None:
            return None
        shape = _shape(cell.model, cell.checkpoint)
        given: dict[str, Any] = {
            "device": cell.device,
            "documents": cell.documents,
            "tokens": cell.tokens,
            "logit_stride": cell.logit_stride,
            "way": found[0],
        }
        narrow, wide = self._folds()
        cost = group_cost(shape, dtype=cell.dtype, half_matmul=cell.half_matmul, folds=narrow, **given)
        if not wide:
            return cost
        extra = group_cost(shape, dtype="fp64", half_matmul="native", folds=wide, **given)
        return replace(cost, seconds=cost.seconds + extra.seconds)


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep in the order of computing, and what its folder already holds.

    ``memory`` are the bytes that a descent may take; None is what the device has free.
    """

    config: Config
    folder: Folder
    cells: tuple[Cell, ...]
    survey: Survey
    memory: int | None = None

    def budget(self, device: str) -> int | None:
        """Bytes that a descent may take now, where anything says so."""
        if self.memory is not None or (device == "cuda" and cuda_problem()):
            return self.memory
        available = free(device)
        # What this process holds already is part of what a descent is reckoned to take.
        return available if available is None or device != "cpu" else available + resident_bytes()

    def surveyed(self) -> Plan:
        """The same plan after a (new) look into the folder."""
        return replace(self, survey=self.folder.survey({cell.file: cell.hash for cell in self.cells}))

    def groups(self, cells: Sequence[Cell] | None = None) -> list[Group]:
        """Cells (all by default) by descent, in the plan's order."""
        together: dict[tuple[object, ...], list[Cell]] = {}
        for cell in self.cells if cells is None else cells:
            together.setdefault(cell.descent, []).append(cell)
        return [Group(tuple(members)) for members in together.values()]

    def state(self, cell: Cell) -> str:
        """``done``, ``failed`` or ``pending``."""
        if cell.file in self.survey.done:
            return "done"
        return "failed" if cell.file in self.survey.failures else "pending"

    def estimate(self, cells: Sequence[Cell]) -> dict[str, float | int]:
        """Estimate ``seconds``, ``memory_bytes``, ``disk_bytes`` of computing cells; some are of ``unknown`` size."""
        total: dict[str, float | int] = {"seconds": 0.0, "memory_bytes": 0.0, "disk_bytes": 0.0, "unknown": 0}
        weights: tuple[object, ...] = ()
        for group in self.groups(cells):
            first = group.cells[0]
            cost = group.cost(self.budget(first.device))
            if cost is None:
                total["unknown"] += len(group.cells)
                continue
            total["seconds"] += cost.seconds * correction(self.survey.timings, device=first.device, dtype=first.dtype)
            if first.weights != weights:
                total["seconds"] += cost.load_seconds
                weights = first.weights
            total["memory_bytes"] = max(total["memory_bytes"], cost.memory_bytes)
            total["disk_bytes"] += sum(
                cell_bytes(
                    _shape(c.model, c.checkpoint), documents=c.documents, tokens=c.tokens, chunk_size=c.chunk_size
                )
                for c in group.cells
            )
        return total


# ---------------------------------------------------------------- the machine


@cache
def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"{package} is not installed, and a sweep computes with it: pip install {package}") from None


@lru_cache(maxsize=256)
def _shape(model: str, identity: str) -> Any:
    """The model's shape, None where it is not known. `identity` is only there to notice other weights of that name."""
    from drift import checkpoints

    try:
        return checkpoints.shape(model)
    except CheckpointError:  # weights cut short: loading them will say so, and only their cells fail
        return None


# ---------------------------------------------------------------- checking and resolving


class _Problems:
    """Collects everything that is wrong, so that a person mends a configuration in one go."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, place: str, text: object) -> None:
        line = f"{place}: {text}"
        if line not in self.lines:
            self.lines.append(line)

    def attempt(self, place: str, function: Callable[[], _T]) -> _T | None:
        try:
            return function()
        except DriftError as error:
            self.add(place, error)
            return None

    def raise_any(self) -> None:
        if self.lines:
            raise ConfigError("\n".join(self.lines))


def _resolve(grid: Grid, config: Config, problems: _Problems, dry_run: bool) -> Iterator[Cell]:
    """The cells of one grid; values that stand for nothing are reported and left out."""
    from drift import checkpoints, corpus, precision, protocols
    from drift.dataset import SCHEMA_VERSION

    versions = (
        ("numerics", NUMERICS_VERSION),
        ("schema", SCHEMA_VERSION),
        ("torch", _installed("torch")),
        ("transformers", _installed("transformers")),
    )
    models: dict[str, tuple[Any, str]] = {}
    for name in grid.model:
        place = grid.origin("model", name)
        checkpoint = problems.attempt(place, lambda name=name: checkpoints.resolve(name))  # type: ignore[misc]
        if checkpoint is not None:
            identity = problems.attempt(place, lambda found=checkpoint: checkpoints.identity(found.name))  # type: ignore[misc]
            if identity is not None:
                models[name] = (checkpoint, identity)
    texts = {}
    for name in grid.corpus:
        identity = problems.attempt(grid.origin("corpus", name), lambda name=name: corpus.identity(name, config.seed))  # type: ignore[misc]
        if identity is not None:
            texts[name] = identity
    readings = {}
    for name in grid.protocol:
        reading = problems.attempt(grid.origin("protocol", name), lambda name=name: protocols.parse(name))  # type: ignore[misc]
        if reading is not None:
            readings[name] = reading
    compared = [
        (label, name)
        for label, reading in readings.items()
        for name in grid.reference
        if problems.attempt(grid.origin("reference", name), lambda r=reading, n=name: r.check_reference(n) or True)  # type: ignore[misc]
    ]
    devices = {}
    for name in grid.device:
        devices[name] = ("cpu" if cuda_problem() else "cuda") if name == "auto" else name
        # A dry run may be made on a laptop for a machine that has the device.
        if name == "cuda" and cuda_problem() and not dry_run:
            problems.add(grid.origin("device", name), f"cuda cannot be used: {cuda_problem()}. Use device: cpu or auto")
    rungs = {}
    for name in grid.dtype:
        rung = problems.attempt(grid.origin("dtype", name), lambda name=name: _rung(name))  # type: ignore[misc]
        if rung is None:
            continue
        rungs[name] = rung
        if rung.needs_gpu and "cpu" in devices.values():
            why = cuda_problem() if "auto" in devices else "this grid runs on the CPU"
            others = ", ".join(n for n, r in precision.RUNGS.items() if not r.needs_gpu)
            problems.add(grid.origin("dtype", name), f"{name} needs a GPU ({why}). On a CPU: {others}")
    for tokens, size in product(grid.tokens, grid.chunk_size):
        if size > tokens:
            problems.add(
                grid.origin("chunk_size", size),
                f"chunk size {size} is larger than the text of {tokens} tokens "
                f"({grid.origin('tokens', tokens)}); make it {tokens} at most, or put it into a grid of its own",
            )
    for checkpoint, identity in models.values():
        shape = _shape(checkpoint.name, identity)
        if shape is not None and shape.max_positions and not grid.allow_beyond_context:
            for label, reading in readings.items():
                _check_context(grid, checkpoint.name, shape.max_positions, label, reading, problems)
    for name, dtype, device in product(models, rungs, devices):
        checkpoint, identity = models[name]
        half = "native"
        if dtype in ("bf16", "fp16") and devices[device] == "cpu":
            half = precision.default_half_matmul("cpu", dtype) if grid.half_matmul == "auto" else grid.half_matmul
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
                half_matmul=half,
                seed=config.seed,
                checkpoint=identity,
                text=texts[text],
                versions=versions,
                beyond_context=grid.allow_beyond_context,
                kept=grid.weights,
            )
            yield cell
            if grid.controls:
                yield from _controls(cell, rungs[dtype].unit_roundoff)


def _controls(cell: Cell, unit_roundoff: float) -> Iterator[Cell]:
    """The controls of a cell's model, precision, device and attention; the same for all cells that share these."""
    tokens = min(control_table.TOKENS, cell.tokens)
    for control in control_table.controls(unit_roundoff, cell.attn_implementation):
        yield replace(
            cell,
            protocol=control.protocol,
            reference=control.reference,
            control=control.kind,
            documents=1,
            tokens=tokens,
            chunk_size=min(control_table.CHUNK_SIZE, max(1, tokens // 8)),
            logit_stride=control_table.LOGIT_STRIDE,
        )


_ALIASES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "single": "fp32",
    "float64": "fp64", "double": "fp64",
}  # fmt: skip


def _rung(name: str) -> Any:
    from drift import precision

    if name in _ALIASES:
        raise ConfigError(
            f"Unknown dtype {name!r}; it is called {_ALIASES[name]!r} here. Known dtypes: {', '.join(precision.RUNGS)}."
        )
    return precision.rung(name)


def _check_context(grid: Grid, model: str, context: int, label: str, reading: Any, problems: _Problems) -> None:
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


def plan(
    config: Config | str | Path | None = None,
    out: str | Path | None = None,
    *,
    dry_run: bool = False,
    look: bool = True,
    memory: int | None = None,
) -> Plan:
    """Make the plan of a sweep and look at what its folder already holds.

    Parameters
    ----------
    config : Config, str, Path, optional
        A configuration, or what :func:`load_config` reads (default: the preset ``default``).
    out : path, optional
        The sweep's folder; ``data/sweeps/NAME`` under the current directory by default.
    dry_run : bool
        A CUDA device that is not there is no error: nothing will be computed here.
    look : bool
        Whether to look into the folder; without, every cell counts as pending.
    memory : int, optional
        Bytes that a descent may take; by default what its device has free.

    Returns
    -------
    Plan
        Cells in the order of computing: those that share weights stand together, those that share a descent too.

    Raises
    ------
    ConfigError
        With every problem that can be known before computing, one line each.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    problems = _Problems()
    cells: dict[str, Cell] = {}
    for grid in config.grids:
        for cell in _resolve(grid, config, problems, dry_run):
            known = cells.get(cell.hash)
            # The same cell in two grids is one cell; it has the permission that either gives it.
            if known is None or (cell.beyond_context and not known.beyond_context):
                cells[cell.hash] = cell
    for label in dict.fromkeys(cell.label for cell in cells.values()):
        names = list(dict.fromkeys(cell.model for cell in cells.values() if cell.label == label))
        if len(names) > 1:
            problems.add(
                f"{config.source}: model",
                f"{' and '.join(names)} would both be called {label!r} in the results; rename one of them",
            )
    problems.raise_any()
    folder = Folder(Path(out) if out is not None else Path("data") / "sweeps" / config.name)
    folder.check()
    made = Plan(config, folder, _in_order(cells.values()), Survey(), memory)
    return made.surveyed() if look else made


def _in_order(cells: Any) -> tuple[Cell, ...]:
    """Cells that share weights together, models in the order they were written, folds within a descent sorted."""
    rank: dict[object, int] = {}
    for cell in cells:
        for key in (("m", cell.model), cell.weights, cell.descent):
            rank.setdefault(key, len(rank))
    return tuple(
        sorted(
            cells,
            key=lambda c: (
                rank["m", c.model],
                rank[c.weights],
                rank[c.descent],
                c.protocol,
                c.reference,
                c.chunk_size,
                c.hash,
            ),
        )
    )
