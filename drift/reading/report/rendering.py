"""Render a report where its inputs have changed."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drift
from drift.dataset.hashing import content_hash
from drift.dataset.opening import open_sweep
from drift.errors import ReportError
from drift.paths import outside_path
from drift.reading import controls, floor
from drift.reading.report.executing import Job, execute
from drift.reading.report.exhibits import Exhibit
from drift.reading.report.front import write_front
from drift.reading.report.notebooks import DEFAULT_NOTEBOOKS, NotebookFailure, find_notebook, share_out
from drift.reading.report.pages import (
    Page,
    contradictions_banner,
    controls_banner,
    file_stem,
    page_body,
    save_figures,
    whole_page,
)
from drift.shown import clipped
from drift.writing import TEMPORARY_SUFFIX, making_room, move_in, write_whole

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = ["render"]

#: The page that holds a sweep against the published claims: of evidence, the only one.
_CLAIMS = "claims"
#: The same of a sweep that asks tasks.
_RETRIEVAL = "retrieval"
#: Folders whose code makes the pages: a change of any file there makes a page stale.
_CODE = ("dataset", "reading")
_MADE_OF = (".py", ".css", ".j2")
#: Beside the pages: the fingerprint of what they were made of.
INPUTS = "made-of.sha256"
#: Folder of the figures beside the pages, as pages link to it.
FIGURES = "figures"


def _stamp(path: Path) -> list[Any]:
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]


def _inputs(sweep: Sweep, source: Path, jobs: Sequence[Job]) -> str:
    """Fingerprint of all that a report is made of: cells, failures, notebooks, parameters, and the code that draws."""
    package = Path(drift.__file__).parent
    code = [path for folder in _CODE for path in sorted((package / folder).rglob("*")) if path.suffix in _MADE_OF]
    sources = dict.fromkeys([source, *(job.source for job in jobs)])
    return content_hash(
        {
            "cells": {str(folder.resolve()): sorted(_stamp(p) for p in folder.glob("*.nc")) for folder in sources},
            "plan": {key: (sweep.plan or {}).get(key) for key in ("name", "description", "config")},
            "left_out": sorted(map(str, sweep.left_out)),
            "failures": sweep.failures,
            "problems": sorted(map(str, sweep.problems)),
            "notebooks": [
                [job.name, str(job.source.resolve()), job.notebook.read_text(encoding="utf-8"), dict(job.parameters)]
                for job in jobs
            ],
            "code": [path.read_text(encoding="utf-8") for path in code],
        }
    )


def render(
    folder: str | os.PathLike[str],
    notebooks: Sequence[str] = DEFAULT_NOTEBOOKS,
    out: str | os.PathLike[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
    *,
    evidence: Sequence[str | os.PathLike[str]] = (),
    unless_current: bool = False,
    at_once: int = 1,
) -> Path:
    """Render notebooks on a sweep.

    Parameters
    ----------
    folder : path
        The sweep.
    notebooks : sequence of str
        Names of notebooks that come with drift, or paths.
    out : path, optional
        Where the pages go; ``reports/local/NAME`` by default, `NAME` being the sweep's.
    parameters : mapping, optional
        For the notebooks: numbers, text, booleans, None and lists of them.
    report : callable
        Gets a line of progress at a time.
    evidence : sequence of path
        Folders of sweeps that were computed before: the first page takes from them what deeper chains decide, and each
        has a page of its own that holds it against the published claims.
    unless_current : bool
        Do nothing where the pages are there already and were made of the same cells, notebooks, parameters and code.
    at_once : int
        Notebooks that are executed at once, each with a kernel and some hundred MB of its own.

    Returns
    -------
    pathlib.Path
        The index page.

    Raises
    ------
    ReportError
        If the sweep has no cells, a notebook or parameter is unknown, or the pages cannot be written; what was there
        before is then as it was.
    NotebookFailure
        If a notebook stopped with an error (the others are rendered all the same).
    """
    sweep = _open(source := outside_path(folder, ReportError))
    if tuple(notebooks) == DEFAULT_NOTEBOOKS and sweep.tasks:
        notebooks = [*(DEFAULT_NOTEBOOKS if len(sweep) else ()), _RETRIEVAL]
    checked = controls.evaluate(sweep)
    _warn(sweep, checked, report)
    jobs = _jobs(notebooks, parameters or {}, source)
    beside = _evidence(evidence, jobs)
    jobs += [
        Job(one.page.removesuffix(".html"), find_notebook(_about(one.sweep)), Path(one.folder), {}, one.name)
        for one in beside
    ]
    target = _target(out, source)
    inputs, made_of = _inputs(sweep, source, jobs), target / INPUTS
    index = target / "index.html"
    if unless_current and _is_current(made_of, inputs, [index, *(target / f"{job.name}.html" for job in jobs)]):
        report(f"report: {index.resolve()} (current; --force renders it again)")
        return index
    title = f"Drift report: {sweep.plan.get('name') or source.resolve().name}"
    exhibits = [Exhibit(sweep, f"{_about(sweep)}.html", "", str(source)), *beside]
    banners = {one.name: _banner(one.sweep, parameters or {}) for one in exhibits}
    with _all_or_none(target), making_room(target) as room:
        executed, failed = execute(jobs, room, target, report, at_once)
        pages = _write_pages(exhibits, executed, room, title, banners)
        if not failed:
            write_whole(room / INPUTS, f"{inputs}\n".encode())
        move_in(room, target, _stale(target, jobs))
    for page in pages:
        size = (target / page.html.name).stat().st_size
        report(f"{target / page.html.name}: {size / 1e6:.1f} MB, {len(page.figures)} figures")
    if failed:
        raise NotebookFailure("\n".join(str(error) for error in failed))
    report(f"report: {index.resolve()}")
    return index


def _jobs(notebooks: Sequence[str], parameters: Mapping[str, Any], source: Path) -> list[Job]:
    """Give every notebook of a report the parameters that it has."""
    shares = share_out(_find(notebooks), parameters)
    return [Job(path.stem, path, source, given) for path, given in shares.items()]


def _evidence(folders: Sequence[str | os.PathLike[str]], jobs: Sequence[Job]) -> list[Exhibit]:
    """Open the evidence, each under a name that no page has."""
    names = {job.name for job in jobs}
    found = []
    for folder in (outside_path(folder, ReportError, said="--evidence") for folder in folders):
        sweep = _open(folder)
        name = str((sweep.plan or {}).get("name") or folder.resolve().name)
        page = file_stem(f"{_about(sweep)}-{name}")
        if page in names:
            raise ReportError(f"{folder}: a second sweep of the name {name!r} would overwrite the page of the first")
        names.add(page)
        found.append(Exhibit(sweep, f"{page}.html", name, str(folder)))
    return found


def _about(sweep: Sweep) -> str:
    """The page that holds a sweep against the published claims."""
    return _CLAIMS if len(sweep) else _RETRIEVAL


def _target(out: str | os.PathLike[str] | None, source: Path) -> Path:
    """Where the pages go."""
    if out is None:
        return Path("reports") / "local" / source.resolve().name
    target = outside_path(out, ReportError, said="--out")
    if target.exists() and not target.is_dir():
        raise ReportError(f"--out {clipped(out)}: is a file, where the pages need a folder. Choose another.")
    return target


@contextmanager
def _all_or_none(target: Path) -> Iterator[None]:
    """Words for a place that cannot be written to; what is there is as it was."""
    try:
        yield
    except OSError as error:
        known = isinstance(error.filename, str) and TEMPORARY_SUFFIX not in error.filename
        raise ReportError(
            f"{clipped(error.filename if known else target)}: cannot be written ({error.strerror or error}). Whatever "
            f"was in {clipped(target)} before is as it was. Make room or mend the permissions, or choose another --out."
        ) from error


def _stale(target: Path, jobs: Sequence[Job]) -> list[Path]:
    """What of an earlier report must not stand beside these pages: of other cells, or made of something else."""
    figures = target / FIGURES
    drawn = [figure for job in jobs for figure in figures.glob(f"{glob.escape(job.name)}-*.png")]
    halves = [target / f"{job.name}.partial.ipynb" for job in jobs]
    return [target / INPUTS, *(target / f"{job.name}.html" for job in jobs), *dict.fromkeys(drawn), *halves]


def _open(source: Path) -> Sweep:
    """Open a sweep that has something to show."""
    sweep = open_sweep(source)
    if not len(sweep) and not sweep.tasks:
        why = ""
        if sweep.problems:
            why = f": {len(sweep.problems)} files in it are unusable, the first: {next(iter(sweep.problems.values()))}"
        raise ReportError(f"{source}: holds no readable cell{why}. Run `python -m drift.sweep` first.")
    return sweep


def _warn(sweep: Sweep, checked: controls.Checkup, report: Callable[[str], None]) -> None:
    """Say what a reader of the pages must know before they are there."""
    if not checked.ok:
        report("warning: controls of the instrument failed: the pages say so and draw no conclusion")
    for file, reason in sweep.problems.items():
        report(f"warning: {file} is left out: {reason.removeprefix(f'{file}: ')}")


def _banner(sweep: Sweep, parameters: Mapping[str, Any]) -> str:
    """What stands at the top of every page: contradictions, by the measure of the pages, and the controls."""
    asked = {name: parameters[name] for name in ("measure", "layer") if name in parameters}
    return contradictions_banner(floor.contradictions(sweep, **asked)) + controls_banner(controls.evaluate(sweep))


def _find(notebooks: Sequence[str]) -> list[Path]:
    """Find notebooks, each once."""
    paths = [find_notebook(n) for n in dict.fromkeys(notebooks)]
    if len({p.stem for p in paths}) < len(paths):
        raise ReportError("two notebooks of the same name would overwrite each other's page")
    return paths


def _is_current(made_of: Path, inputs: str, pages: Sequence[Path]) -> bool:
    """Whether all pages are there and were made of the same inputs."""
    there = made_of.is_file() and all(page.is_file() for page in pages)
    return there and made_of.read_bytes().strip() == inputs.encode()


def _write_pages(
    exhibits: Sequence[Exhibit],
    executed: Sequence[tuple[Job, Any]],
    target: Path,
    title: str,
    banners: Mapping[str, str],
) -> list[Page]:
    """Write a page per executed notebook, and the one that links them."""
    links = [("index.html", "Overview"), *((f"{job.name}.html", job.title(n)) for job, n in executed)]
    (target / FIGURES).mkdir()
    pages = [_write_page(job, notebook, target, links, banners[job.about]) for job, notebook in executed]
    write_front(exhibits, pages, target, links, title, banners[""], FIGURES)
    return pages


def _write_page(
    job: Job,
    notebook: Any,
    target: Path,
    links: Sequence[tuple[str, str]],
    banner: str,
) -> Page:
    """Write the page of an executed notebook, and its figures."""
    figures = target / FIGURES
    saved = save_figures(notebook, job.name, figures)
    page = Page(job.name, job.title(notebook), target / f"{job.name}.html", saved)
    body = page_body(notebook)
    write_whole(page.html, whole_page(page.title, body, links, page.html.name, banner).encode())
    return page
