"""The first page of a report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from drift.dataset.choosing import is_fold, keep
from drift.dataset.sweep import Sweep
from drift.reading import figures
from drift.reading.excess import missing
from drift.reading.quantities import Of
from drift.reading.report.answers import MEASURE, READINGS, answers
from drift.reading.report.pages import Page, whole_page
from drift.writing import write_whole

__all__ = ["write_front"]


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    # Names and labels come from files: everything is escaped, and a name that the page lacks is an error.
    room = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return room.get_template("front.html.j2")


def write_front(
    sweep: Sweep,
    pages: Sequence[Page],
    out: Path,
    links: Sequence[tuple[str, str]],
    title: str,
    banner: str,
    folder: str,
) -> Path:
    """Write ``index.html``: the answers, one figure, one table, and what the other pages show.

    Parameters
    ----------
    sweep : Sweep
    pages : sequence of Page
        The other pages.
    out : pathlib.Path
        Folder of the report.
    links : sequence of (str, str)
        File and name of every page, for the navigation.
    title, banner : str
    folder : str
        Of the figures, beside the pages.

    Returns
    -------
    pathlib.Path
    """
    figure = _figure(sweep, out / folder)
    body = _template().render(
        title=title,
        said=answers(sweep),
        figure=f"{folder}/{figure[0].name}" if figure else "",
        alt=figure[1] if figure else "",
        pages=[
            {
                "file": page.html.name,
                "title": page.title,
                "shows": page.figures[0][1].split(". ")[0] if page.figures else "",
            }
            for page in pages
        ],
    )
    index = out / "index.html"
    write_whole(index, whole_page(title, body, links, index.name, banner).encode())
    return index


def _figure(sweep: Sweep, folder: Path) -> tuple[Path, str] | None:
    """Draw the figure that decides, of the first reading that has a floor; where none has, drift along the chain."""
    cells = keep(sweep, is_fold)
    if not len(cells):
        return None
    there = [ds for ds in cells if missing(ds, MEASURE, Of.EXCESS) is None]
    protocols = [name for name in READINGS if any(ds["protocol"].item() == name for ds in there)]
    protocols += [str(ds["protocol"].item()) for ds in there]
    figure = (
        figures.drift_and_floor(cells, MEASURE, protocol=protocols[0])
        if protocols
        else figures.drift_per_step(cells, MEASURE)
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "front.png"
    write_whole(path, figures.png(figure))
    return path, figures.described(figure)
