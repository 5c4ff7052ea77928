"""Is a sweep's folder what it should be? Every cell against its name, its configuration and the plan; no torch.

For a person who copied cells together, or wants to trust a folder that has been somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drift import dataset
from drift._cores import cores
from drift._outside import OutsideError
from drift.dataset.attributes import attribute
from drift.dataset.plans import PLAN, PlanFile, read_plan
from drift.errors import ConfigError, DatasetError, Fault
from drift.paths import outside_path

__all__ = ["FINDINGS", "Finding", "Report", "check", "examine"]

#: What can be found, and what it means.
FINDINGS: dict[str, str] = {
    "damaged": "a file with a cell's name that cannot be read",
    "contract": "a cell that breaks the data contract",
    "config": "a cell whose recorded configuration is not what its hash or its contents say",
    "name": "a cell whose name carries another hash than the cell",
    "missing": "a cell that sweep.json says is done, and that is not there",
    "duplicate": "the same cell, or the same point of the sweep, twice",
    "stranger": "a cell that sweep.json does not name: readers leave it out",
    "plan": "a sweep.json that cannot be read or contradicts itself",
    "leftover": "a file that a killed or mended run left behind",
}
_HASH = re.compile(r"_([0-9a-f]{16})\.nc$")
_FEW = 5  # broken entries of a plan that are told one by one
#: What a configuration and the coordinates of a cell both say; the last two are those of task cells.
_AXES = (
    "model", "dtype", "chunk_size", "protocol", "reference", "attn_implementation", "device", "task", "tokens",
)  # fmt: skip
_PARALLEL_FROM = 200  # below, starting processes takes longer than they save


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    kind : str
        A key of :data:`FINDINGS`.
    file : str
        Name of the file, in the folder.
    problem, remedy : str
        What is wrong, and what to do about it.
    """

    kind: str
    file: str
    problem: str
    remedy: str


@dataclass
class Report:
    """What a folder was found to be.

    Attributes
    ----------
    folder : str
    files, sound : int
        Files with the suffix of cells, and how many of them nothing is wrong with.
    planned : int or None
        Cells that ``sweep.json`` names; None without one.
    pending, failed : int
        Cells that ``sweep.json`` names and that are not there, because nobody has computed them, or nobody could. Not
        wrong, but not complete.
    findings : list of Finding
    """

    folder: str
    files: int = 0
    sound: int = 0
    planned: int | None = None
    pending: int = 0
    failed: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def exit(self) -> int:
        """The exit code: 0 where nothing is wrong, else 1."""
        return int(bool(self.findings))

    def as_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        counts = Counter(finding.kind for finding in self.findings)
        return {
            **{k: v for k, v in asdict(self).items() if k != "findings"},
            "exit_code": self.exit,
            "counts": {kind: counts[kind] for kind in FINDINGS if counts[kind]},
            "findings": [asdict(finding) for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """The report in words."""
        lines = []
        if self.findings:
            width = max(len(finding.kind) for finding in self.findings)
            for finding in self.findings:
                lines.append(f"{finding.kind:<{width}}  {finding.file}")
                lines += [f"{'':<{width}}    {finding.problem}", f"{'':<{width}}    -> {finding.remedy}"]
            lines.append("")
        counts = Counter(finding.kind for finding in self.findings)
        found = ", ".join(f"{counts[kind]} {kind}" for kind in FINDINGS if counts[kind]) or "nothing wrong"
        plan = "no sweep.json: every cell counts" if self.planned is None else f"{self.planned} planned"
        open_ = [f"{n} {what}" for n, what in ((self.pending, "not computed yet"), (self.failed, "failed")) if n]
        lines.append(f"{self.folder}: {self.sound} of {self.files} cells sound ({', '.join([plan, *open_])}); {found}")
        return lines


@dataclass(frozen=True)
class _Cell:
    """What is to be known about one file; small enough to come from another process."""

    file: str
    kind: str = ""
    problem: str = ""
    hash: str = ""
    point: str = ""  # what was measured: the configuration without versions and contents
    content: str = ""
    circumstances: tuple[tuple[str, str], ...] = ()

    @property
    def named(self) -> str:
        """The hash in the name, or empty."""
        found = _HASH.search(self.file)
        return found.group(1) if found else ""


def check(folder: str | os.PathLike[str]) -> Report:
    """Verify every cell of a sweep's folder; changes nothing.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Report

    Raises
    ------
    ConfigError
        If there is no such folder, or it cannot be looked into.
    """
    root = outside_path(folder, said="--check")
    if not root.is_dir():
        raise ConfigError(f"--check {folder}: no such folder. It takes the folder of a sweep (data/sweeps/NAME)")
    try:
        names = sorted(path.name for path in root.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"--check {folder}: cannot be looked into: {error.strerror or error}") from error
    files = [name for name in names if name.endswith(".nc") and not name.startswith(".")]
    entries, findings = _plan(root)
    cells = {cell.file: cell for cell in _looked_at(root, files)}
    readable = [cell for cell in cells.values() if cell.hash]
    findings += _by_themselves(cells)
    findings += _duplicates(readable, entries)
    report = Report(str(root), files=len(files))
    if entries is not None:
        report.planned = len(entries)
        findings += _against_the_plan(cells, entries)
        absent = [entry for name, entry in entries.items() if name not in cells]
        report.failed = sum(entry.get("state") == "failed" for entry in absent)
        report.pending = sum(entry.get("state") not in ("failed", "done") for entry in absent)
    findings += _leftovers(names)
    order = {kind: rank for rank, kind in enumerate(FINDINGS)}
    report.findings = sorted(findings, key=lambda f: (order[f.kind], f.file))
    report.sound = len(files) - len({f.file for f in findings} & set(files))
    return report


def examine(folder: str | os.PathLike[str], files: Sequence[str]) -> list[Finding]:
    """Say what is wrong with some of a folder's cells, each by itself: the part of :func:`check` that needs no plan.

    Parameters
    ----------
    folder : path
    files : sequence of str
        Names of files in it.

    Returns
    -------
    list of Finding
        Of the kinds ``damaged``, ``contract``, ``config`` and ``name``.
    """
    return _by_themselves({cell.file: cell for cell in _looked_at(outside_path(folder), files)})


def _by_themselves(cells: Mapping[str, _Cell]) -> list[Finding]:
    wrong = [Finding(c.kind, c.file, c.problem, _REMEDIES[c.kind]) for c in cells.values() if c.problem]
    return [*wrong, *_misnamed([cell for cell in cells.values() if cell.hash], cells)]


_AGAIN = "copy it again from where it was sound, or move it out of the folder and run the sweep again"
_MAKE_ANEW = "rename it and run the sweep again: cells are kept, they speak for themselves"
_MOVE = "move it out of the folder"
_REMEDIES = {"damaged": _AGAIN, "contract": _AGAIN, "config": _AGAIN}


# ---------------------------------------------------------------- one file


def _looked_at(root: Path, files: Sequence[str]) -> list[_Cell]:
    workers = min(cores(), 16)
    if len(files) < _PARALLEL_FROM or workers < 2:
        return [_look(root, file) for file in files]
    # The HDF5 library lets one thread in at a time: only processes read faster.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(_look, [root] * len(files), files, chunksize=16))


def _look(root: Path, file: str) -> _Cell:
    try:
        ds = dataset.read(root / file)
    except DatasetError as error:
        return _Cell(file, (error.fault or Fault.DAMAGED).value, error.problem)
    record = attribute(ds.attrs, "config_json")
    recorded = str(ds.attrs["config_sha256"])
    axes = [name for name in _AXES if name in ds.coords]
    # The most common value of an axis is left out of the record.
    told = {"reference": "full"} | record
    wrong = [
        f"{name} {ds[name].values.item()!r} (configuration: {told[name]!r})"
        for name in axes
        if name in told and told[name] != ds[name].values.item()
    ]
    if ("task" in record) != dataset.is_task(ds.variables):
        wrong.append("it asks a task" if "task" not in record else "it asks no task")
    if "documents" in record and record["documents"] != ds.sizes["document"]:
        wrong.append(f"{ds.sizes['document']} documents (configuration: {record['documents']})")
    problem = f"its contents are of another cell: {', '.join(wrong)}" if wrong else ""
    circumstances = {name: record.pop(name, "") for name in ("versions", "checkpoint_sha256", "corpus_sha256")}
    return _Cell(
        file,
        "config" if problem else "",
        problem,
        recorded,
        dataset.content_hash(record),
        _content(ds),
        tuple((name, dataset.canonical_json(value)) for name, value in circumstances.items()),
    )


def _content(ds: Any) -> str:
    """A hash of the numbers, of those that were timed not."""
    total = hashlib.sha256()
    for name in sorted({*map(str, ds.data_vars)} - {*dataset.VOLATILE_VARIABLES}):
        total.update(f"{name}{ds[name].dims}{ds[name].shape}".encode() + ds[name].values.tobytes())
    return total.hexdigest()


# ---------------------------------------------------------------- files against one another


def _misnamed(cells: Iterable[_Cell], present: Mapping[str, _Cell]) -> Iterator[Finding]:
    for cell in cells:
        if cell.named == cell.hash[:16]:
            continue
        right = _HASH.sub("", cell.file).removesuffix(".nc") + f"_{cell.hash[:16]}.nc"
        homes = [name for name, other in present.items() if other.hash == cell.hash and other.named == cell.hash[:16]]
        says = f"its name says {cell.named}, the cell" if cell.named else "its name carries no hash, the cell"
        remedy = f"{_MOVE}: {homes[0]} is the same cell" if homes else f"rename it back; the name ends in {right[-20:]}"
        yield Finding("name", cell.file, f"{says} is {cell.hash[:16]}", remedy)


def _duplicates(cells: Sequence[_Cell], entries: Mapping[str, Any] | None) -> Iterator[Finding]:
    by_hash: dict[str, list[_Cell]] = defaultdict(list)
    for cell in cells:
        by_hash[cell.hash].append(cell)
    for same in by_hash.values():
        # The one under its own name stays.
        first, *others = sorted(same, key=lambda c: (c.named != c.hash[:16], c.file not in (entries or ()), c.file))
        for other in others:
            if other.content == first.content:
                yield Finding("duplicate", other.file, f"the same cell as {first.file}, with the same numbers", _MOVE)
            else:
                yield Finding(
                    "duplicate",
                    other.file,
                    f"the same cell as {first.file}, with other numbers: one was altered, thinned, or computed on "
                    "another kind of processor",
                    "keep the one whose origin you trust, and move the other out of the folder; in doubt move both, "
                    "and run the sweep again",
                )
    by_point: dict[str, dict[str, _Cell]] = defaultdict(dict)
    for cell in cells:
        if entries is None or cell.file in entries:
            by_point[cell.point].setdefault(cell.hash, cell)
    for twins in by_point.values():
        first, *rest = sorted(twins.values(), key=lambda cell: cell.file)
        for other in rest:
            yield Finding(
                "duplicate",
                other.file,
                f"measures what {first.file} measures, under other circumstances: {_other(first, other)}",
                "keep cells of one set of circumstances in a folder; move the others to a folder of their own",
            )


def _other(a: _Cell, b: _Cell) -> str:
    """How the circumstances of two cells differ."""
    differences = []
    for (name, x), (_, y) in zip(a.circumstances, b.circumstances, strict=True):
        if x == y:
            continue
        if name == "versions":
            old, new = json.loads(x) or {}, json.loads(y) or {}
            keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            differences += [f"{key} {new.get(key)} instead of {old.get(key)}" for key in keys]
        else:
            differences.append("other weights" if name == "checkpoint_sha256" else "another text")
    return ", ".join(differences) or "no difference is recorded"


# ---------------------------------------------------------------- the plan


def _plan(root: Path) -> tuple[dict[str, dict[str, Any]] | None, list[Finding]]:
    """What ``sweep.json`` says about cells, by file; None where it says nothing."""
    try:
        plan: PlanFile = read_plan(root / PLAN)
    except FileNotFoundError:
        return None, []
    except (OSError, OutsideError) as error:
        return None, [Finding("plan", PLAN, f"cannot be read as a plan ({error})", _MAKE_ANEW)]
    listed = [entry for entry in plan.cells if entry.get("file")]
    entries = {str(entry["file"]): entry for entry in listed}
    findings = [Finding("plan", PLAN, problem, _MAKE_ANEW) for problem in plan.problems[:_FEW]]
    if len(plan.problems) > _FEW:
        findings.append(Finding("plan", PLAN, f"and {len(plan.problems) - _FEW} more broken entries", _MAKE_ANEW))
    if len(entries) < len(listed):
        findings.append(Finding("plan", PLAN, f"names {len(listed) - len(entries)} cells twice", _MAKE_ANEW))
    for name, entry in entries.items():
        found = _HASH.search(name)
        if entry.get("hash") and found and not str(entry["hash"]).startswith(found.group(1)):
            problem = f"says that {name} has the hash {str(entry['hash'])[:16]}"
            findings.append(Finding("plan", PLAN, problem, _MAKE_ANEW))
    return entries, findings


def _against_the_plan(cells: Mapping[str, _Cell], entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for name, entry in entries.items():
        if name not in cells and entry.get("state") == "done":
            remedy = "copy it here from where it was computed, or run the sweep again"
            yield Finding("missing", name, "sweep.json says it is done, but there is no such file", remedy)
            continue
        hash_ = cells[name].hash if name in cells else ""
        planned = str(entry.get("hash", hash_))
        # Where name and cell disagree already, that is the finding.
        if hash_ and cells[name].named == hash_[:16] == planned[:16] and planned != hash_:
            problem = f"says that {name} has the hash {planned}, but the cell has {hash_}"
            yield Finding("plan", PLAN, problem, _MAKE_ANEW)
    for name, cell in cells.items():
        if name not in entries:
            yield Finding(
                "stranger",
                name,
                "sweep.json does not name it: readers leave it out" + ("" if cell.hash else "; it is no cell either"),
                "if it belongs here, run a sweep whose configuration has it, or rename sweep.json (then every cell "
                "counts); if not, move it to another folder",
            )


def _leftovers(names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        if name.startswith(".") and name.endswith(".tmp"):
            yield Finding(
                "leftover",
                name,
                "half a file: a run was killed while writing it, or is writing it now",
                "nothing, if a sweep is at work here; else run the sweep again, which clears it away",
            )
        elif re.search(r"\.nc\.broken\d*$", name):
            yield Finding(
                "leftover",
                name,
                "was not what its name said; a sweep set it aside and computed the cell again",
                "nothing: no reader takes it for a cell. It is kept to show why (a full disk, an interrupted copy, an "
                "edited file)",
            )
