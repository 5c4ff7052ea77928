"""Render a report where its inputs have changed."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drift
from drift.dataset.hashing import content_hash
from drift.dataset.opening import open_sweep
from drift.errors import ReportError
from drift.paths import outside_path
from drift.reading import controls
from drift.reading.report.front import write_front
from drift.reading.report.notebooks import (
    DEFAULT_NOTEBOOKS,
    NotebookFailure,
    comes_with_drift,
    execute_notebook,
    find_notebook,
    own_kernel,
    share_out,
)
from drift.reading.report.pages import (
    Page,
    contents_list,
    controls_banner,
    page_body,
    page_title,
    save_figures,
    whole_page,
)
from drift.shown import clipped
from drift.writing import TEMPORARY_SUFFIX, making_room, move_in, write_whole

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = ["render"]

#: Folders whose code makes the pages: a change of any file there makes a page stale.
_CODE = ("dataset", "reading")
#: Beside the pages: the fingerprint of what they were made of.
INPUTS = "made-of.sha256"
#: Folder of the figures beside the pages, as pages link to it.
FIGURES = "figures"


def _inputs(sweep: Sweep, source: Path, shares: Mapping[Path, Mapping[str, Any]]) -> str:
    """Fingerprint of all that a report is made of: cells, failures, notebooks, parameters, and the code that draws."""

    def stamp(path: Path) -> list[Any]:
        state = path.stat()
        return [path.name, state.st_size, state.st_mtime_ns]

    package = Path(drift.__file__).parent
    code = [path for folder in _CODE for path in sorted((package / folder).rglob("*.py"))]
    return content_hash(
        {
            "sweep": str(source.resolve()),
            "cells": sorted(stamp(path) for path in source.glob("*.nc")),
            "plan": {key: (sweep.plan or {}).get(key) for key in ("name", "description", "config")},
            "left_out": sorted(map(str, sweep.left_out)),
            "failures": sweep.failures,
            "problems": sorted(map(str, sweep.problems)),
            "notebooks": {p.stem: [p.read_text(encoding="utf-8"), given] for p, given in shares.items()},
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
    unless_current: bool = False,
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
    unless_current : bool
        Do nothing where the pages are there already and were made of the same cells, notebooks, parameters and code.

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
    checked = controls.evaluate(sweep)
    _warn(sweep, checked, report)
    paths = _find(notebooks)
    shares = share_out(paths, parameters or {})
    target = _target(out, source)
    inputs, made_of = _inputs(sweep, source, shares), target / INPUTS
    index = target / "index.html"
    if unless_current and _is_current(made_of, inputs, [index, *(target / f"{path.stem}.html" for path in paths)]):
        report(f"report: {index.resolve()} (current; --force renders it again)")
        return index
    given = {path: {**shares[path], "sweep": str(source.resolve())} for path in paths}
    title = f"Drift report: {sweep.plan.get('name') or source.resolve().name}"
    with _all_or_none(target), making_room(target) as room:
        executed, failed = _execute(given, room, target, f"{len(sweep)} cells", report)
        pages = _write_pages(sweep, executed, room, title, controls_banner(checked))
        if not failed:
            write_whole(room / INPUTS, f"{inputs}\n".encode())
        move_in(room, target, _stale(target, paths))
    for page in pages:
        size = (target / page.html.name).stat().st_size
        report(f"{target / page.html.name}: {size / 1e6:.1f} MB, {len(page.figures)} figures")
    if failed:
        raise NotebookFailure("\n".join(str(error) for error in failed))
    report(f"report: {index.resolve()}")
    return index


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


def _stale(target: Path, paths: Sequence[Path]) -> list[Path]:
    """What of an earlier report must not stand beside these pages: of other cells, or made of something else."""
    figures = target / FIGURES
    drawn = [figure for path in paths for figure in figures.glob(f"{glob.escape(path.stem)}-*.png")]
    halves = [target / f"{path.stem}.partial.ipynb" for path in paths]
    return [target / INPUTS, *(target / f"{path.stem}.html" for path in paths), *drawn, *halves]


def _open(source: Path) -> Sweep:
    """Open a sweep that has something to show."""
    sweep = open_sweep(source)
    if not len(sweep):
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


def _execute(
    given: Mapping[Path, Mapping[str, Any]], room: Path, target: Path, what: str, report: Callable[[str], None]
) -> tuple[list[tuple[Path, Any]], list[NotebookFailure]]:
    """Run notebooks with their parameters; one that stops does not stop the others."""
    executed: list[tuple[Path, Any]] = []
    failed: list[NotebookFailure] = []
    with own_kernel() as kernel:
        for path, parameters in given.items():
            if not comes_with_drift(path):
                report(f"{path}: not one of drift's own; a notebook is code, and is run with all that you may do")
            report(f"{path.stem}: running on {what} ...")
            started = time.monotonic()
            partial = f"{path.stem}.partial.ipynb"
            try:
                executed.append((path, execute_notebook(path, parameters, room / partial, kernel, target / partial)))
            except NotebookFailure as error:
                failed.append(error)
                report(f"{path.stem}: FAILED after {time.monotonic() - started:.0f} s")
                continue
            report(f"{path.stem}: done in {time.monotonic() - started:.0f} s")
    return executed, failed


def _write_pages(
    sweep: Sweep,
    executed: Sequence[tuple[Path, Any]],
    target: Path,
    title: str,
    banner: str,
) -> list[Page]:
    """Write a page per executed notebook, and the one that links them."""
    links = [("index.html", "Overview"), *((f"{path.stem}.html", page_title(n, path.stem)) for path, n in executed)]
    (target / FIGURES).mkdir()
    pages = [_write_page(path.stem, notebook, target, links, banner) for path, notebook in executed]
    write_front(sweep, pages, target, links, title, banner, FIGURES)
    return pages


def _write_page(
    name: str,
    notebook: Any,
    target: Path,
    links: Sequence[tuple[str, str]],
    banner: str,
) -> Page:
    """Write the page of an executed notebook, and its figures."""
    figures = target / FIGURES
    page = Page(name, page_title(notebook, name), target / f"{name}.html", save_figures(notebook, name, figures))
    body = page_body(notebook)
    body = body.replace("<h2 ", contents_list(body) + "<h2 ", 1)
    write_whole(page.html, whole_page(page.title, body, links, page.html.name, banner).encode())
    return page
