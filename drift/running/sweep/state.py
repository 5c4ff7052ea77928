"""The folder of a sweep: which cells it holds, the lock, and ``sweep.json``.

The truth about a cell is its file: complete because it was renamed into place, and its own because its name and its
attributes carry the cell's hash. ``sweep.json`` adds what a file cannot say: failures, and how long things took.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift import dataset
from drift._outside import OutsideError
from drift.dataset.contract import SCHEMA_VERSION
from drift.dataset.plans import PLAN, PlanFile, read_plan
from drift.dataset.task_contract import TASK_SCHEMA_VERSION, is_task
from drift.errors import ConfigError, DatasetError
from drift.writing import TEMPORARY_SUFFIX, open_lock, own, owner, subfolder, write_whole

__all__ = ["Folder", "Survey"]

_LOCK = ".lock"
_LOGS = "logs"
_KEPT_TIMINGS = 200


@dataclass
class Survey:
    """What a folder holds, seen from a plan.

    Attributes
    ----------
    done : set of str
        Files of the plan that are complete and their own.
    broken : dict of str to str
        Files of the plan that are neither, and why.
    strangers : list of str
        Cells of no plan, or of another one. They are left alone.
    checked : dict of str to list of int
        Size, both times of change in ns and inode of every file in `done` when it was found sound.
    again : dict of str to list of int
        Files of the plan that are sound and that a run with ``--force`` was to compute again, and did not get to: as in
        `checked`. Such a cell is not done until its file is another.
    failures : dict of str to dict
        By file of the plan: what ``sweep.json`` says about a failed cell.
    timings : list of dict
        Finished groups: ``device``, ``dtype``, ``estimated_s``, ``elapsed_s``.
    cut_off : str
        What an earlier run was at when it was killed, or empty.
    notes : list of str
        Things to tell a person.
    """

    done: set[str] = field(default_factory=set)
    broken: dict[str, str] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    checked: dict[str, list[int]] = field(default_factory=dict)
    again: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    timings: list[dict[str, Any]] = field(default_factory=list)
    cut_off: str = ""
    notes: list[str] = field(default_factory=list)


def _reason(entry: Mapping[str, Any]) -> str:
    return str(next((entry[name] for name in ("reason", "error", "message") if entry.get(name)), "not recorded"))


class Folder:
    """A sweep's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def cell(self, file: str) -> Path:
        """Path of a cell's file."""
        return self.path / file

    # ------------------------------------------------------------ looking

    def check(self) -> None:
        """Raise :class:`ConfigError` if the folder cannot be written to; changes nothing."""
        place = self.path
        try:
            while not place.exists():
                if place.is_symlink():
                    raise ConfigError(f"{self}: cannot be made: {place} is a link to nothing. Choose another --out")
                place = place.parent
            if not place.is_dir():
                raise ConfigError(f"{self}: cannot be made: {place} is a file, not a folder. Choose another --out")
        except OSError as error:
            raise ConfigError(f"{self}: cannot be used: {error.strerror or error}. Choose another --out") from error
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"{self}: {place} cannot be written to. Choose another --out, or mend its permissions")

    def survey(self, expected: Mapping[str, str]) -> Survey:
        """Compare the folder with a plan; changes nothing.

        A cell is done if its file keeps the contract of its own schema version, is the cell that its name says, and
        that version is the one of the plan: it then holds all that the plan asks for. A cell of another version is
        complete for readers, and has another hash: it is no cell of this plan, is left alone, and what the plan asks
        for is computed under its own name.

        Parameters
        ----------
        expected : mapping of str to str
            File name to cell hash.
        """
        found = Survey()
        if not self.path.is_dir():
            return found
        present = {path.name for path in self.path.glob("*.nc")}
        found.strangers = sorted(present - expected.keys())
        record = self._record(found)
        entries = {str(e["file"]): e for e in record.cells if e.get("file")}
        for file in sorted(present & expected.keys()):
            now, entry = self.fingerprint(file), entries.get(file, {})
            if now and now == entry.get("again"):
                found.again[file] = now
                continue
            # Reading a cell takes a tenth of a second: one found sound and not touched since is not read again.
            reason = "" if now and now == entry.get("checked") else self._fault(file, expected[file])
            if reason:
                found.broken[file] = reason
            else:
                found.done.add(file)
                found.checked[file] = now
        for entry in record.failures or []:
            name = str(entry.get("file"))
            if name in expected and name not in found.done:
                # What a person is told of a failure is there, whoever wrote the file.
                found.failures[name] = {**entry, "cell": str(entry.get("cell") or name), "reason": _reason(entry)}
        found.timings = record.groups
        found.cut_off = str(record.record.get("at_work_on") or "")
        return found

    def fingerprint(self, file: str) -> list[int]:
        """Size, both times of change in ns and inode of a cell's file; empty if there is none."""
        try:
            status = self.cell(file).stat()
        except OSError:
            return []
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    def _fault(self, file: str, expected: str) -> str:

        try:
            cell = dataset.read(self.cell(file))
        except DatasetError as error:
            return str(error)
        actual = str(cell.attrs.get("config_sha256"))
        if actual != expected:
            return f"{file}: holds another cell ({actual[:16]}) than its name says"
        schema = str(cell.attrs["schema_version"])
        asked = TASK_SCHEMA_VERSION if is_task(cell.variables) else SCHEMA_VERSION
        if schema != asked:
            return f"{file}: was written under schema version {schema}, the plan asks for version {asked}"
        return ""

    def _record(self, found: Survey) -> PlanFile:
        path = self.path / PLAN
        try:
            plan = read_plan(path)
        except FileNotFoundError:
            return PlanFile()
        except (OSError, OutsideError) as error:
            found.notes.append(f"{path}: unreadable ({error}); failures and timings in it are lost, cells are not")
            return PlanFile()
        if plan.problems:
            found.notes.append(f"{path}: {len(plan.problems)} broken entries are left out, first {plan.problems[0]}")
        return plan

    # ------------------------------------------------------------ changing

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one sweep; the operating system lets go of it when the process ends, however it ends.

        Raises
        ------
        ConfigError
            If another sweep holds it, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open_lock(self.path / _LOCK)
        except OSError as error:
            raise ConfigError(
                f"{self}: cannot be written to: {error.strerror or error}. Choose another --out"
            ) from error
        with handle:
            try:
                import fcntl
            except ImportError:  # Windows: no lock
                pass
            else:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ConfigError(
                        f"{self}: another sweep is at work here (process {owner(handle) or 'unknown'}). Wait for it, "
                        "or choose another --out"
                    ) from None
            own(handle)
            self._sweep_up()
            try:
                yield
            finally:
                self._sweep_up()

    def _sweep_up(self) -> None:
        """Remove the half-written files of killed runs and workers. Only under the lock: nobody else is writing."""
        for path in self.path.glob(f".*{TEMPORARY_SUFFIX}"):
            ours = rf"\.(.+\.nc|{re.escape(PLAN)})\.[0-9]+-[0-9a-f]+{re.escape(TEMPORARY_SUFFIX)}"
            if re.fullmatch(ours, path.name):
                with suppress(OSError):  # a folder of such a name is none of ours
                    path.unlink(missing_ok=True)

    def set_aside(self, file: str) -> Path:
        """Rename a broken file, so that nobody takes it for a cell; returns the new path."""
        source, count = self.cell(file), 0
        target = source.with_name(f"{file}.broken")
        while os.path.lexists(target):
            count += 1
            target = source.with_name(f"{file}.broken{count}")
        os.replace(source, target)
        return target

    def log(self, file: str, text: str) -> str:
        """Keep a traceback; returns its path relative to the folder, or nothing if it cannot be written."""
        with suppress(OSError):
            path = subfolder(self.path, _LOGS) / f"{Path(file).stem}.log"
            write_whole(path, text.encode("utf-8", "backslashreplace"))
            return str(path.relative_to(self.path))
        return ""

    def forget_log(self, file: str) -> None:
        """Remove the traceback of a cell that is done now."""
        with suppress(OSError):
            if not (self.path / _LOGS).is_symlink():
                (self.path / _LOGS / f"{Path(file).stem}.log").unlink(missing_ok=True)

    def save(self, record: Mapping[str, Any]) -> None:
        """Write ``sweep.json``, whole or not at all."""
        write_whole(self.path / PLAN, f"{json.dumps(record, indent=1)}\n".encode())

    @staticmethod
    def recent(timings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The timings worth keeping."""
        return list(timings)[-_KEPT_TIMINGS:]
