"""Executed notebooks as HTML pages."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from drift._version import __version__
from drift.reading import controls, floor
from drift.reading.report.cleaning import POLICY, cleaned
from drift.writing import write_whole

__all__ = [
    "Page",
    "contradictions_banner",
    "controls_banner",
    "file_stem",
    "page_body",
    "page_title",
    "save_figures",
    "whole_page",
]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="drift {version}">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<header><nav aria-label="pages">{navigation}</nav></header>
{banner}
<main>
{body}
</main>
</body>
</html>
""".replace("{policy}", POLICY)


@dataclass
class Page:
    """A rendered notebook.

    Attributes
    ----------
    name : str
        Of the notebook, without suffix.
    title : str
    html : pathlib.Path
    figures : list of (pathlib.Path, str)
        PNG files, with what each shows in words.
    """

    name: str
    title: str
    html: Path
    figures: list[tuple[Path, str]] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- pages
def save_figures(notebook: Any, name: str, folder: Path) -> list[tuple[Path, str]]:
    """Write the pictures of an executed notebook as PNG files."""
    import base64

    found: list[tuple[Path, str]] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if not picture:
                continue
            meta = output.get("metadata", {}).get("image/png", {})
            label = meta.get("name") or f"figure-{len(found) + 1}"
            path = folder / f"{file_stem(f'{name}-{label}')}.png"
            write_whole(path, base64.b64decode(picture))
            found.append((path, meta.get("alt") or label))
    return found


def file_stem(text: str) -> str:
    """What of a text can be the stem of a file that pages link to."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-")


def page_body(notebook: Any) -> str:
    """Write an executed notebook as an HTML fragment, without code and without anything from a network.

    What comes before the first second-level heading is the page's answer; every section after it is folded. Where
    nothing comes before it, the first section stays open.
    """
    first, *sections = _sections(notebook)
    head = _fragment(notebook, first)
    answered = any(cell.get("outputs") for cell in first)
    folded = [
        _fold(_fragment(notebook, cells), unfolded=not answered and not place) for place, cells in enumerate(sections)
    ]
    return "".join([head, *folded])


def _sections(notebook: Any) -> list[list[Any]]:
    """Cells before the first second-level heading, and those under each."""
    parts: list[list[Any]] = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            parts.append([])
        parts[-1].append(cell)
    return parts


@cache
def _exporter() -> Any:
    """One for all sections of all pages: each would compile its templates anew."""
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)


def _fragment(notebook: Any, cells: Sequence[Any]) -> str:
    part = copy.copy(notebook)
    part.cells = list(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fragment, _ = _exporter().from_notebook_node(part)
    return str(fragment)


_HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)(?:<a class="anchor-link"[^>]*>.*?</a>)?</h2>', re.DOTALL)


def _fold(fragment: str, unfolded: bool) -> str:
    """Fold a section under its heading. Links lead to the heading, which is there whether or not the rest is open."""
    heading = _HEADING.search(fragment)
    if heading is None:
        return fragment
    anchor, text = heading.groups()
    rest = fragment[: heading.start()] + fragment[heading.end() :]
    state = " open" if unfolded else ""
    return f'<details class="fold"{state}><summary id="{anchor}"><h2>{text}</h2></summary>{rest}</details>\n'


def controls_banner(found: controls.Checkup) -> str:
    """What the controls of the instrument say, for the top of every page; an alert where one failed."""
    looks = 'class="controls"' if found.ok else 'class="controls failed" role="alert"'
    return f"<aside {looks}>{escape(found.banner)}</aside>"


def contradictions_banner(found: Sequence[floor.Compared]) -> str:
    """Where the ladder and the rounding floor exclude each other, for the top of every page; empty where nowhere."""
    return "".join(f'<p class="contradiction" role="alert">Contradiction: {escape(one.words)}</p>' for one in found)


@cache
def _css() -> str:
    return (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")


def whole_page(title: str, body: str, links: Sequence[tuple[str, str]], here: str, banner: str = "") -> str:
    """Lay out one page: navigation, banner, body."""
    navigation = "".join(
        f'<span class="here">{escape(text)}</span>' if file == here else f'<a href="{escape(file)}">{escape(text)}</a>'
        for file, text in links
    )
    navigation, body, banner = cleaned(navigation), cleaned(body), cleaned(banner)
    return _PAGE.format(
        version=__version__, title=escape(title), css=_css(), navigation=navigation, body=body, banner=banner
    )


def page_title(notebook: Any, name: str) -> str:
    """Title of a notebook: its first heading, else its name."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return str(cell.source.splitlines()[0][2:].strip())
    return str(name)
