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
    contents_list,
    controls_banner,
    page_body,
    page_title,
    save_figures,
    whole_page,
    write_index,
)

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = ["render"]

#: Folders whose code makes the pages: a change of any file there makes a page stale.
_CODE = ("dataset", "reading")
#: Beside the pages: the fingerprint of what they were made of.
INPUTS = "made-of.sha256"


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
        If the sweep has no cells, or a notebook or parameter is unknown.
    NotebookFailure
        If a notebook stopped with an error (the others are rendered all the same).
    """
    source = Path(folder)
    sweep = open_sweep(source)
    if not len(sweep):
        why = ""
        if sweep.problems:
            why = f": {len(sweep.problems)} files in it are unusable, the first: {next(iter(sweep.problems.values()))}"
        raise ReportError(f"{source}: holds no readable cell{why}. Run `python -m drift.sweep` first.")
    if "failed" in controls_banner(sweep):
        report("warning: controls of the instrument failed: the pages say so and draw no conclusion")
    for file, reason in sweep.problems.items():
        report(f"warning: {file} is left out: {reason.removeprefix(f'{file}: ')}")
    paths = [find_notebook(n) for n in dict.fromkeys(notebooks)]
    if len({p.stem for p in paths}) < len(paths):
        raise ReportError("two notebooks of the same name would overwrite each other's page")
    shares = share_out(paths, parameters or {})
    target = Path(out) if out is not None else Path("reports") / "local" / source.resolve().name
    figures = target / "figures"
    inputs, made_of = _inputs(sweep, source, shares), target / INPUTS
    expected = [target / "index.html", *(target / f"{path.stem}.html" for path in paths)]
    there = made_of.is_file() and all(page.is_file() for page in expected)
    if unless_current and there and made_of.read_text(encoding="utf-8").strip() == inputs:
        report(f"report: {expected[0].resolve()} (current; --force renders it again)")
        return expected[0]
    made_of.unlink(missing_ok=True)
    try:
        figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{target}: cannot be made ({error.strerror or error}). Choose another --out.") from error

    executed: list[tuple[Path, Any]] = []
    failed: list[NotebookFailure] = []
    with own_kernel() as kernel:
        for path in paths:
            report(f"{path.stem}: running on {len(sweep)} cells ...")
            started = time.monotonic()
            given = {**shares[path], "sweep": str(source.resolve())}
            try:
                executed.append((path, execute_notebook(path, given, target / f"{path.stem}.partial.ipynb", kernel)))
            except NotebookFailure as error:
                failed.append(error)
                (target / f"{path.stem}.html").unlink(missing_ok=True)  # of other cells than its neighbours
                report(f"{path.stem}: FAILED after {time.monotonic() - started:.0f} s")
                continue
            report(f"{path.stem}: done in {time.monotonic() - started:.0f} s")
    titles = {path: page_title(notebook, path.stem) for path, notebook in executed}
    links = [("index.html", "Overview"), *((f"{path.stem}.html", titles[path]) for path, _ in executed)]
    pages, banner = [], controls_banner(sweep)
    for path, notebook in executed:
        for stale in figures.glob(f"{path.stem}-*.png"):
            stale.unlink()
        page = Page(path.stem, titles[path], target / f"{path.stem}.html", save_figures(notebook, path.stem, figures))
        body = page_body(notebook)
        body = body.replace("<h2 ", contents_list(body) + "<h2 ", 1)
        page.html.write_text(whole_page(page.title, body, links, page.html.name, banner), encoding="utf-8")
        report(f"{page.html}: {page.html.stat().st_size / 1e6:.1f} MB, {len(page.figures)} figures")
        pages.append(page)
    write_index(sweep, pages, target, links, f"Drift report: {sweep.plan.get('name') or source.resolve().name}")
    if failed:
        raise NotebookFailure("\n".join(str(error) for error in failed))
    made_of.write_text(inputs + "\n", encoding="utf-8")
    report(f"report: {(target / 'index.html').resolve()}")
    return target / "index.html"
