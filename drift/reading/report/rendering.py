"""Render a report where its inputs have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drift
from drift.dataset.hashing import content_hash
from drift.dataset.opening import open_sweep
from drift.errors import ReportError
from drift.reading import controls, floor
from drift.reading.report.front import write_front
from drift.reading.report.notebooks import (
    DEFAULT_NOTEBOOKS,
    NotebookFailure,
    execute_notebook,
    find_notebook,
    own_kernel,
    share_out,
)
from drift.reading.report.pages import (
    Page,
    contradictions_banner,
    controls_banner,
    page_body,
    page_title,
    save_figures,
    whole_page,
)

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = ["render"]

#: Folders whose code makes the pages: a change of any file there makes a page stale.
_CODE = ("dataset", "reading")
_MADE_OF = (".py", ".css", ".j2")
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
    code = [path for folder in _CODE for path in sorted((package / folder).rglob("*")) if path.suffix in _MADE_OF]
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
        If the sweep has no cells, or a notebook or parameter is unknown.
    NotebookFailure
        If a notebook stopped with an error (the others are rendered all the same).
    """
    sweep = _open(source := Path(folder))
    checked = controls.evaluate(sweep)
    _warn(sweep, checked, report)
    paths = _find(notebooks)
    shares = share_out(paths, parameters or {})
    target = Path(out) if out is not None else Path("reports") / "local" / source.resolve().name
    inputs, made_of = _inputs(sweep, source, shares), target / INPUTS
    index = target / "index.html"
    if unless_current and _is_current(made_of, inputs, [index, *(target / f"{path.stem}.html" for path in paths)]):
        report(f"report: {index.resolve()} (current; --force renders it again)")
        return index
    made_of.unlink(missing_ok=True)
    _make_room(target)
    given = {path: {**shares[path], "sweep": str(source.resolve())} for path in paths}
    executed, failed = _execute(given, target, f"{len(sweep)} cells", report)
    title = f"Drift report: {sweep.plan.get('name') or source.resolve().name}"
    _write_pages(sweep, executed, target, title, _banner(sweep, checked, parameters or {}), report)
    if failed:
        raise NotebookFailure("\n".join(str(error) for error in failed))
    made_of.write_text(f"{inputs}\n", encoding="utf-8")
    report(f"report: {index.resolve()}")
    return index


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


def _banner(sweep: Sweep, checked: controls.Checkup, parameters: Mapping[str, Any]) -> str:
    """What stands at the top of every page: contradictions, by the measure of the pages, and the controls."""
    asked = {name: parameters[name] for name in ("measure", "layer") if name in parameters}
    return contradictions_banner(floor.contradictions(sweep, **asked)) + controls_banner(checked)


def _find(notebooks: Sequence[str]) -> list[Path]:
    """Find notebooks, each once."""
    paths = [find_notebook(n) for n in dict.fromkeys(notebooks)]
    if len({p.stem for p in paths}) < len(paths):
        raise ReportError("two notebooks of the same name would overwrite each other's page")
    return paths


def _is_current(made_of: Path, inputs: str, pages: Sequence[Path]) -> bool:
    """Whether all pages are there and were made of the same inputs."""
    there = made_of.is_file() and all(page.is_file() for page in pages)
    return there and made_of.read_text(encoding="utf-8").strip() == inputs


def _make_room(target: Path) -> None:
    try:
        (target / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{target}: cannot be made ({error.strerror or error}). Choose another --out.") from error


def _execute(
    given: Mapping[Path, Mapping[str, Any]], target: Path, what: str, report: Callable[[str], None]
) -> tuple[list[tuple[Path, Any]], list[NotebookFailure]]:
    """Run notebooks with their parameters; one that stops does not stop the others."""
    executed: list[tuple[Path, Any]] = []
    failed: list[NotebookFailure] = []
    with own_kernel() as kernel:
        for path, parameters in given.items():
            report(f"{path.stem}: running on {what} ...")
            started = time.monotonic()
            partial = target / f"{path.stem}.partial.ipynb"
            try:
                executed.append((path, execute_notebook(path, parameters, partial, kernel)))
            except NotebookFailure as error:
                failed.append(error)
                (target / f"{path.stem}.html").unlink(missing_ok=True)  # of other cells than its neighbours
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
    report: Callable[[str], None],
) -> None:
    """Write a page per executed notebook, and the one that links them."""
    links = [("index.html", "Overview"), *((f"{path.stem}.html", page_title(n, path.stem)) for path, n in executed)]
    pages = [_write_page(path.stem, notebook, target, links, banner, report) for path, notebook in executed]
    write_front(sweep, pages, target, links, title, banner, FIGURES)


def _write_page(
    name: str,
    notebook: Any,
    target: Path,
    links: Sequence[tuple[str, str]],
    banner: str,
    report: Callable[[str], None],
) -> Page:
    """Write the page of an executed notebook, and its figures in place of those of before."""
    figures = target / FIGURES
    for stale in figures.glob(f"{name}-*.png"):
        stale.unlink()
    page = Page(name, page_title(notebook, name), target / f"{name}.html", save_figures(notebook, name, figures))
    body = page_body(notebook)
    page.html.write_text(whole_page(page.title, body, links, page.html.name, banner), encoding="utf-8")
    report(f"{page.html}: {page.html.stat().st_size / 1e6:.1f} MB, {len(page.figures)} figures")
    return page
