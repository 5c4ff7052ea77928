"""Compute cells of a folder again on this machine, from what each of them says of itself; the folder is only read.

A cell is rebuilt from its own record (``config_json``), not from a configuration: so committed cells, thinned ones and
those of an older contract can be computed again. What cannot be, because weights, text or arithmetic are others now, is
told apart from what comes out otherwise (:class:`drift.errors.Obstacle`).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from drift import dataset
from drift._cores import cores
from drift._outside import Form, OutsideError, parse_json, shaped
from drift._version import NUMERICS_VERSION
from drift.dataset.plans import PLAN, read_plan
from drift.errors import CheckpointError, ConfigError, CorpusError, DatasetError, Obstacle, UnverifiableError
from drift.paths import outside_path
from drift.running import corpus, protocols
from drift.running.checkpoints.identity import cache_home
from drift.running.checkpoints.identity import identity as weights_identity
from drift.running.checkpoints.names import Checkpoint
from drift.running.checkpoints.resolving import resolve
from drift.running.model.numerics import default_half_matmul
from drift.running.protocols.full import floor_record
from drift.running.sweep.cells import Cell
from drift.running.sweep.checking import examine
from drift.running.sweep.config import MOST_DRAWS, Config
from drift.running.sweep.cost import show_seconds
from drift.running.sweep.engines.engine import computer
from drift.running.sweep.gpus import cuda_problem
from drift.running.sweep.groups import Group
from drift.running.sweep.planning import Plan
from drift.running.sweep.state import Folder, Survey

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["Chosen", "Recomputer", "Request", "Task", "choose", "floor_cells", "requests"]

#: Noise below twice the unit roundoff would be rounded away in part.
_NOISE = 2
_QUIET = "quiet"  # the control that reads exactly 0 on any machine


@dataclass(frozen=True)
class Request:
    """One cell of a folder, as its own record has it.

    Attributes
    ----------
    file : str
    cell : Cell or None
        None where there is an obstacle.
    obstacle : Obstacle or None
    why : str
        What the obstacle is and what to do, in a sentence.
    threads : int
        With how many it was computed.
    load_seconds, document_seconds : float
        Estimates for this machine: loading the weights, and each document; NaN where the model's shape is not known.
    """

    file: str
    cell: Cell | None = None
    obstacle: Obstacle | None = None
    why: str = ""
    threads: int = 1
    load_seconds: float = math.nan
    document_seconds: float = math.nan

    @property
    def subject(self) -> str:
        """What is computed, in words; the file's name where that is not known."""
        return str(self.cell) if self.cell else self.file


@dataclass(frozen=True)
class Chosen:
    """A cell that is to be computed again, and which of its documents."""

    request: Request
    documents: tuple[int, ...] = ()

    @property
    def documents_of(self) -> int:
        """How many documents the cell has; 0 where that is not known."""
        return self.request.cell.documents if self.request.cell else 0

    @property
    def seconds(self) -> float:
        """Estimated seconds; 0 where nothing is to be computed, or nothing is known."""
        seconds = self.request.load_seconds + len(self.documents) * self.request.document_seconds
        return 0.0 if math.isnan(seconds) or not self.documents else seconds

    @property
    def line(self) -> str:
        """What is to be computed, in a line."""
        if self.request.obstacle is not None:
            return f"{self.request.subject}: {self.request.why}"
        about = f", about {show_seconds(self.seconds)}" if self.seconds else ""
        every = len(self.documents) == self.documents_of
        which = "all" if every else ", ".join(map(str, self.documents))
        return f"{self.request.subject}: {which} of {self.documents_of} document{'s' * (self.documents_of > 1)}{about}"

    def as_dict(self) -> dict[str, Any]:
        """The same as an object for JSON."""
        return {
            "file": self.request.file,
            "cell": self.request.subject,
            "documents": list(self.documents),
            "documents_of": self.documents_of,
            "seconds": self.seconds,
            "obstacle": self.request.obstacle.value if self.request.obstacle else None,
            "why": self.request.why,
        }


# ---------------------------------------------------------------- what there is


def requests(folder: str | os.PathLike[str], models: Sequence[str] = ()) -> list[Request]:
    """List the cells of a folder, and what it would take to compute each again.

    Parameters
    ----------
    folder : path
        Holds cells, with or without ``sweep.json``.
    models : sequence of str
        Checkpoints by path or hub id. A cell holds only a short name; what it stands for is looked for among these, in
        the configuration of ``sweep.json``, and among the embedded checkpoints.

    Raises
    ------
    ConfigError
        If there is no such folder, or no cell in it.
    """
    root = outside_path(folder)
    if not root.is_dir():
        raise ConfigError(
            f"{folder}: no such folder. Name the folder of a sweep (data/sweeps/NAME, data/evidence/deep)"
        )
    files = sorted(path.name for path in root.glob("*.nc") if not path.name.startswith("."))
    if not files:
        raise ConfigError(f"{folder}: holds no cell (*.nc)")
    here = _Here(_named([*models, *_planned_models(root)]))
    return [_request(root / file, here) for file in files]


def _planned_models(root: Path) -> list[str]:
    """Models that ``sweep.json`` was configured with: a cell says only their short names."""
    try:
        grids = read_plan(root / PLAN).grids
    except (OSError, OutsideError):
        return []
    lists = [named for grid in grids if isinstance(named := grid.get("model"), list)]
    return [name for named in lists for name in named if isinstance(name, str)]


def _named(names: Iterable[str]) -> dict[str, str]:
    """What the checkpoints of a list are called for short; the first of each name."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found.setdefault(resolve(name).label, name)
        except CheckpointError:  # a folder that has moved since: the cells that need it will say so
            continue
    return found


class _Here:
    """Weights and texts of this machine, each looked up once."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._weights: dict[str, tuple[Checkpoint, str]] = {}
        self._texts: dict[tuple[str, int], str] = {}

    def weights(self, label: str) -> tuple[Checkpoint, str]:
        """A checkpoint and its identity, by its short name."""
        if label not in self._weights:
            checkpoint = resolve(self._names.get(label, label))
            self._weights[label] = checkpoint, weights_identity(checkpoint.name)
        return self._weights[label]

    def text(self, name: str, seed: int) -> str:
        """Identity of a text."""
        if (name, seed) not in self._texts:
            self._texts[name, seed] = corpus.identity(name, seed)
        return self._texts[name, seed]


def _request(path: Path, here: _Here) -> Request:
    """Read what a cell says of itself, and hold it against this machine."""
    try:
        attrs = dataset.read_attributes(path)
    except DatasetError as error:
        return Request(path.name, obstacle=Obstacle.UNSOUND, why=error.problem)
    try:
        said = parse_json(str(attrs["config_json"]), Form.OBJECT)
        if "task" in said:
            why = "it asks a task: what is compared here is drift. Run its sweep again into another folder, and compare"
            return Request(path.name, obstacle=Obstacle.SETTINGS, why=why)
        record = shaped(said, Form.SWEEP_CELL)
        versions = tuple(sorted(record["versions"].items()))
        label, weights, text = record["model"], record["checkpoint_sha256"], record["corpus_sha256"]
        numerics, threads = record["versions"]["numerics"], int(attrs["threads"])
        draws = len(record.get("floor", {"seeds": []})["seeds"])
    except (KeyError, TypeError, ValueError, OverflowError):
        why = "it was not made by a sweep: its record does not say which weights, text and versions were used"
        return Request(path.name, obstacle=Obstacle.SETTINGS, why=why)
    of_cells = {field.name for field in fields(Cell)}
    unknown = sorted(record.keys() - of_cells - {"checkpoint_sha256", "corpus_sha256", "versions", "floor"})
    if draws and (draws > MOST_DRAWS or record["floor"] != floor_record(draws)):
        unknown.append("floor")
    if unknown:
        why = f"it was made with settings that this drift does not know: {', '.join(unknown)}. Upgrade drift"
        return Request(path.name, obstacle=Obstacle.SETTINGS, why=why)
    if numerics != NUMERICS_VERSION:
        why = (
            f"it was computed by a drift whose numbers are others (numerics {numerics}; this one has "
            f"{NUMERICS_VERSION}): use drift {attrs.get('drift_version')}, commit {str(attrs.get('git_commit'))[:12]}"
        )
        return Request(path.name, obstacle=Obstacle.NUMERICS, why=why)
    own = {name: value for name, value in record.items() if name in of_cells}
    own |= {"versions": versions, "text": text, "floor_draws": draws}
    return _placed(path.name, own, threads, label, weights, here)


def _placed(file: str, own: Mapping[str, Any], threads: int, label: str, weights: str, here: _Here) -> Request:
    """Find weights, text and device of a cell on this machine."""
    try:
        checkpoint, identity = here.weights(label)
    except CheckpointError as error:
        why = f"its weights are not here: {error} Say where they lie: --model PATH"
        return Request(file, obstacle=Obstacle.MISSING, why=why)
    if identity == "unfetched" or (checkpoint.source == "embedded" and not cache_home(checkpoint).exists()):
        why = f"its weights are not on this machine: python -m drift.checkpoints fetch {checkpoint.name}"
        return Request(file, obstacle=Obstacle.MISSING, why=why)
    if identity != weights:
        why = (
            f"it was computed with other weights than {checkpoint.name} has here (sha256 {weights[:16]} there, "
            f"{identity[:16]} here): nothing can be said of it"
        )
        return Request(file, obstacle=Obstacle.WEIGHTS, why=why)
    try:
        cell = Cell(
            **{k: v for k, v in own.items() if k != "model"},
            model=checkpoint.name, label=label, family=checkpoint.family, checkpoint=identity, beyond_context=True,
        )  # fmt: skip
        reading = protocols.parse(cell.protocol)
        reading.check_reference(cell.reference)
        if reading.label != cell.protocol:
            raise ConfigError(
                f"protocol {cell.protocol} is called {reading.label} now, which need not be what it was when the cell "
                "was computed."
            )
        text = here.text(cell.corpus, cell.seed)
    except CorpusError as error:
        return Request(file, obstacle=Obstacle.TEXT, why=f"its text is not here: {error}")
    except (ConfigError, TypeError) as error:
        return Request(file, obstacle=Obstacle.SETTINGS, why=f"its record cannot be followed here: {error}")
    if text != cell.text:
        why = (
            f"the text {cell.corpus} is another here (sha256 {cell.text[:16]} there, {text[:16]} here; pydoc and "
            "stdlib come with Python, and change with its version)"
        )
        return Request(file, obstacle=Obstacle.TEXT, why=why)
    if cell.device == "cuda" and cuda_problem():
        return Request(
            file, obstacle=Obstacle.DEVICE, why=f"it was computed on a GPU, and here is none: {cuda_problem()}"
        )
    if cell.half_matmul == "native" and cell.dtype in ("bf16", "fp16"):
        # What a processor has no instructions for takes it ten times as long; in float32 it is rounded as often.
        cell = replace(cell, half_matmul=default_half_matmul(cell.device, cell.dtype))
    cost = Group((cell,)).cost()
    if cost is None:
        return Request(file, cell)
    # Estimates are for all cores, and a cell is computed again with as many threads as it was computed with.
    slower = cores() / min(threads, cores()) if cell.device == "cpu" else 1.0
    each = slower * cost.seconds / cell.documents
    return Request(file, cell, threads=threads, load_seconds=cost.load_seconds, document_seconds=each)


# ---------------------------------------------------------------- which of them


def choose(
    found: Sequence[Request], sample: int | None, seed: int = 0, seconds: float = math.inf, files: Sequence[str] = ()
) -> list[Chosen]:
    """Draw cells, spread over models, folds before controls, and as many of their documents as there is time for.

    Parameters
    ----------
    found : sequence of Request
    sample : int or None
        How many cells; None takes all, or those in `files`, and all of their documents.
    seed : int
        The same seed, folder and machine give the same cells and documents.
    seconds : float
        Time for all of them together, by the estimate. Each has its share; cells that have no document within it are
        drawn only where there are no others, the cheapest first.
    files : sequence of str
        Names of files, or paths to them.

    Returns
    -------
    list of Chosen
        In the order of the folder's files. Cells that cannot be computed here are drawn where no others are left.

    Raises
    ------
    ConfigError
        If one of `files` is none of the folder's.
    """
    if sample is None:
        wanted = {Path(file).name for file in files}
        absent = sorted(wanted - {request.file for request in found})
        if absent:
            raise ConfigError(f"--cell {absent[0]}: there is no such file in the folder")
        taken = [request for request in found if not files or request.file in wanted]
        return [Chosen(request, tuple(range(_documents(request)))) for request in taken]
    draw = random.Random(seed)
    share = seconds / max(sample, 1)
    order = sorted(found, key=lambda request: request.file)
    draw.shuffle(order)
    drawn: list[Request] = []
    while len(drawn) < min(sample, len(order)):
        # Of those that rank alike min() takes the first, in the order that was drawn.
        left = [request for request in order if request not in drawn]
        drawn.append(min(left, key=lambda request: _rank(request, share, drawn)))
    return [
        Chosen(request, tuple(sorted(draw.sample(range(_documents(request)), _fitting(request, share)))))
        for request in sorted(drawn, key=lambda request: request.file)
    ]


def _rank(request: Request, share: float, drawn: Sequence[Request]) -> tuple[float, ...]:
    """What can be computed, of the model drawn least, within the time, and says most: folds before controls."""
    if request.cell is None:
        return (1,)
    least = request.load_seconds + request.document_seconds
    late = least > share  # not where nothing is known
    model = sum(other.cell is not None and other.cell.model == request.cell.model for other in drawn)
    kind = 0 if not request.cell.control else 2 if request.cell.control == _QUIET else 1
    return (0, model, late, kind, least if late else 0.0)


def _documents(request: Request) -> int:
    return request.cell.documents if request.cell else 0


def _fitting(request: Request, share: float) -> int:
    """How many documents there is time for, one at least."""
    there = _documents(request)
    if not request.document_seconds > 0:
        return there
    return min(max(int((share - request.load_seconds) / request.document_seconds), 1), there)


# ---------------------------------------------------------------- computing


def floor_cells(cell: Cell) -> tuple[Cell, ...]:
    """Cells from which the rounding floor under a cell can be read, of the same texts.

    Returns
    -------
    tuple of Cell
        Full attention against the literal fold with noise of two unit roundoffs in its cache after the first step; and,
        where its cache can be disturbed, the cell's own fold against itself with that noise. Empty where the chain has
        one step only.
    """
    size = _NOISE * dataset.rung(cell.dtype).unit_roundoff
    plain = replace(cell, control="", reference="full")
    found = []
    for inner, reference in (("append", "full"), (cell.protocol, "unperturbed")):
        try:
            disturbed = protocols.parse(f"perturbed({inner},step=0,size={size!r})")
            disturbed.check_reference(reference)
            chunks = disturbed.bind(lambda: 0).chunks(cell.tokens, cell.chunk_size)
        except ConfigError:
            continue
        if max(chunk.step for chunk in chunks) > 0:
            found.append(replace(plain, protocol=disturbed.label, reference=reference))
    return tuple(found)


class Recomputer:
    """Computes cells again, in a folder of its own that is gone afterwards.

    Weights stay in memory while the next cell needs the same.

    Parameters
    ----------
    folder : path
        Where the recorded cells lie; it is only read.
    threads : int, optional
        Threads for torch; by default as many as the cell was computed with, if this machine has them: the number of
        threads decides in which order some sums are taken.
    fraction : callable
        Told how much of a cell is done, 0 to 1.
    say : callable
        Told in one line each what a person should know.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        threads: int | None = None,
        *,
        fraction: Callable[[float], None] = lambda done: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = outside_path(folder)
        self._threads = threads
        self._fraction = fraction
        self._say = say
        self._made: tuple[int, Any] | None = None

    def tell(self, text: str) -> None:
        """Tell a person something."""
        self._say(text)

    def compute(self, chosen: Chosen, cells: Sequence[Cell]) -> list[Dataset]:
        """Compute cells on the documents of a chosen one, in one descent.

        Parameters
        ----------
        chosen : Chosen
        cells : sequence of Cell
            That cell, or others of its texts (:func:`floor_cells`).

        Returns
        -------
        list of xarray.Dataset
            Whole cells of these documents; those that failed are left out.

        Raises
        ------
        UnverifiableError
            If all of them failed.
        """
        threads = self._threads or max(1, min(chosen.request.threads, cores()))
        if self._made is None or self._made[0] != threads:
            self._made = threads, computer(threads)
        group = Group(tuple(replace(cell, only=chosen.documents) for cell in cells))
        config = Config(name="verify", description="", seed=0, grids=[], source="verify")
        with TemporaryDirectory(prefix="drift-verify-") as scratch:
            plan = Plan(config, Folder(Path(scratch)), group.cells, Survey())
            outcome = self._made[1].compute(plan, group, fail_fast=False, fraction=self._fraction, say=self._say)
            if not outcome.files:
                reasons = dict.fromkeys(str(failure["reason"]) for failure in outcome.failures.values())
                raise UnverifiableError(outcome.stopped or "; ".join(reasons), Obstacle.FAILED)
            return [dataset.read(Path(scratch) / cell.file) for cell in group.cells if cell.file in outcome.files]


@dataclass(frozen=True)
class Task:
    """One chosen cell, and who computes it again."""

    chosen: Chosen
    by: Recomputer

    def recorded(self) -> Dataset:
        """The cell as it lies in the folder.

        Raises
        ------
        UnverifiableError
            If it is not what it says itself (then the judgement is that of ``--check``), or cannot be computed here.
        """
        request = self.chosen.request
        for finding in examine(self.by.folder, [request.file]):
            raise UnverifiableError(f"{finding.problem}: {finding.remedy}", Obstacle.UNSOUND)
        if request.obstacle is not None:
            raise UnverifiableError(request.why, request.obstacle)
        return dataset.read(self.by.folder / request.file)

    def recompute(self) -> Dataset:
        """The whole cell of the chosen documents."""
        assert self.chosen.request.cell
        return self.by.compute(self.chosen, [self.chosen.request.cell])[0]

    def roundings(self) -> list[Dataset]:
        """Cells of these documents that compare two roundings of one pass; none where there can be none."""
        assert self.chosen.request.cell
        cells = floor_cells(self.chosen.request.cell)
        try:
            return self.by.compute(self.chosen, cells) if cells else []
        except UnverifiableError as error:
            self.by.tell(f"    how far rounding moves it could not be measured: {error}")
            return []
