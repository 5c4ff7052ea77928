"""The first page of a report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from drift.reading import figures
from drift.reading.report.answers import READINGS, answers
from drift.reading.report.exhibits import MEASURE, Exhibit, deepest_with_floor
from drift.reading.report.pages import Page, whole_page
from drift.writing import write_whole

__all__ = ["write_front"]

_FIGURE = "front.png"


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    # Names and labels come from files: everything is escaped, and a name that the page lacks is an error.
    room = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return room.get_template("front.html.j2")


def write_front(
    exhibits: Sequence[Exhibit],
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
    exhibits : sequence of Exhibit
        The report's own sweep first.
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
    drawn = _figure(exhibits)
    if drawn is not None:
        (out / folder).mkdir(parents=True, exist_ok=True)
        write_whole(out / folder / _FIGURE, figures.png(drawn))
    body = _template().render(
        title=title,
        said=answers(exhibits),
        figure=f"{folder}/{_FIGURE}" if drawn is not None else "",
        alt=figures.described(drawn) if drawn is not None else "",
        there=[page.html.name for page in pages],
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


def _figure(exhibits: Sequence[Exhibit]) -> Figure | None:
    """Draw the figure that decides, of the first reading that has a floor; where none has, drift along the chain.

    Of a sweep that only asks tasks, what was found again.
    """
    for name in READINGS:
        one = deepest_with_floor(exhibits, name)
        if one is not None:
            return figures.drift_and_floor(one.folds, MEASURE, protocol=name)
    own = exhibits[0].folds
    return figures.drift_per_step(own, MEASURE) if len(own) else figures.found_by_depth(exhibits[0].sweep.tasks)
