"""Executed notebooks as HTML pages."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from drift._version import __version__
from drift.reading import controls
from drift.reading.report.cleaning import POLICY, cleaned
from drift.writing import write_whole

__all__ = [
    "Page",
    "contents_list",
    "controls_banner",
    "page_body",
    "page_title",
    "save_figures",
    "whole_page",
]

_CSS = """
:root { --ink: #1d2430; --soft: #5b6675; --line: #dfe3e8; --wash: #f6f7f9; --link: #0b5cad; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 15.5px/1.58 -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
header { border-bottom: 1px solid var(--line); background: var(--wash); font-size: 14px; }
header nav, main { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header nav { display: flex; flex-wrap: wrap; gap: 4px 22px; padding-top: 10px; padding-bottom: 10px; }
main { padding-top: 12px; padding-bottom: 64px; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
nav .here { color: var(--ink); font-weight: 600; }
h1 { font-size: 30px; line-height: 1.25; margin: 24px 0 12px; }
h2 { font-size: 21px; line-height: 1.3; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 17px; margin: 26px 0 6px; }
p, ul, ol { max-width: 56em; margin: 8px 0 14px; } li { margin: 5px 0; }
.anchor-link { visibility: hidden; margin-left: 6px; color: var(--soft); }
h2:hover .anchor-link { visibility: visible; }
img { display: block; max-width: 100%; height: auto; margin: 14px 0 18px; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 4px; padding: 12px 14px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; max-width: 100%;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scroll { overflow-x: auto; margin: 12px 0 20px; border: 1px solid var(--line); border-radius: 4px; max-height: 640px; }
table { border-collapse: collapse; font-size: 13px; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 11px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--wash); font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; } tbody tr:hover { background: var(--wash); }
.claims { overflow-x: auto; margin: 12px 0 16px; border: 1px solid var(--line); border-radius: 4px; }
.claims table { width: 100%; }
.claims th, .claims td { white-space: normal; vertical-align: top; min-width: 6em; }
.claims th[scope=row], .claims td[rowspan] { border-right: 1px solid var(--line); }
.claims td:nth-last-child(2) { min-width: 22em; } .claims .verdict { white-space: nowrap; }
.contradiction { color: #b00020; font-weight: 700; }
.verdict span { display: inline-block; padding: 1px 8px; border-radius: 10px; border: 1.5px solid var(--soft); }
.verdict .supported { background: #0b5cad; border-color: #0b5cad; color: #fff; font-weight: 600; }
.verdict .refuted { border: 2px solid #b34700; color: #b34700; font-weight: 700; }
.verdict .undetermined { border-style: dashed; color: var(--ink); }
.verdict .not-drawn { border: 2px dotted #b34700; color: var(--ink); }
.verdict .not-tested { border-color: transparent; color: var(--soft); }
.contents { font-size: 14px; columns: 2; column-gap: 32px; list-style: none; padding: 10px 16px; margin: 16px 0;
  background: var(--wash); border: 1px solid var(--line); border-radius: 4px; max-width: none; }
.contents li { margin: 2px 0; break-inside: avoid; }
.front td, .front th { text-align: left; } .front td a { color: inherit; }
.front td:nth-last-child(2) { min-width: 6em; } .front .soft { font-weight: 400; }
figure.main { margin: 14px 0; } figure.main img { max-height: 88vh; width: auto; }
.contradiction { border: 2px solid #b34700; color: #b34700; font-weight: 700; padding: 8px 14px; border-radius: 4px; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--link); }
.question { color: var(--soft); }
.lead { font-size: 17px; } .soft { color: var(--soft); font-size: 14px; }
.controls { max-width: 1080px; margin: 12px auto 0; padding: 8px 24px; font-size: 14px; color: var(--soft); }
.controls.failed { border: 3px solid #b34700; border-radius: 4px; color: var(--ink); font-size: 16px;
  font-weight: 600; }
@media (max-width: 640px) { .contents { columns: 1; } h1 { font-size: 25px; }
  .front .soft { display: none; } .front th, .front td, .front td:nth-last-child(2) { padding: 4px 3px; min-width: 0; }
  .front .verdict span { padding: 0 3px; font-size: 11px; font-weight: 400; } }
@media print { header { display: none; } .scroll { max-height: none; overflow: visible; } }
"""
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
            safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{name}-{label}").strip("-")
            path = folder / f"{safe}.png"
            write_whole(path, base64.b64decode(picture))
            found.append((path, meta.get("alt") or label))
    return found


def page_body(notebook: Any) -> str:
    """Write an executed notebook as an HTML fragment, without code and without anything from a network."""
    from nbconvert import HTMLExporter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
        fragment, _ = exporter.from_notebook_node(notebook)
    return str(fragment)


def contents_list(body: str) -> str:
    """List the sections of a page as links to them."""
    import re

    found = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body, flags=re.DOTALL)
    rows = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in found)
    return f'<ul class="contents" aria-label="contents">{rows}</ul>' if rows else ""


def controls_banner(found: controls.Checkup) -> str:
    """What the controls of the instrument say, for the top of every page; an alert where one failed."""
    looks = 'class="controls"' if found.ok else 'class="controls failed" role="alert"'
    return f"<aside {looks}>{escape(found.banner)}</aside>"


def whole_page(title: str, body: str, links: Sequence[tuple[str, str]], here: str, banner: str = "") -> str:
    """Lay out one page: navigation, banner, body."""
    navigation = "".join(
        f'<span class="here">{escape(text)}</span>' if file == here else f'<a href="{escape(file)}">{escape(text)}</a>'
        for file, text in links
    )
    navigation, body, banner = cleaned(navigation), cleaned(body), cleaned(banner)
    return _PAGE.format(
        version=__version__, title=escape(title), css=_CSS, navigation=navigation, body=body, banner=banner
    )


def page_title(notebook: Any, name: str) -> str:
    """Title of a notebook: its first heading, else its name."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return str(cell.source.splitlines()[0][2:].strip())
    return str(name)
