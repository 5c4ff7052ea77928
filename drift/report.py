"""From a sweep to pages that can be read offline: ``python -m drift.report SWEEP``.

Notebooks are executed by papermill on the interpreter that runs this module, then written as HTML without code, with
every picture inside and nothing fetched from a network. The pictures are also written as PNG files, and an index links
the pages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift.errors import DriftError, ReportError

if TYPE_CHECKING:
    from drift.dataset import Sweep

__all__ = ["DEFAULT_NOTEBOOKS", "NotebookFailure", "Page", "main", "render"]

DEFAULT_NOTEBOOKS = ("claims", "plateau", "precision", "readings", "layers")

#: Modules that pages are made by, besides the packages on plateaus and claims.
_CODE = ("dataset", "labels", "summary", "ladder", "controls", "gain", "readings", "plots", "plots_precision", "report")

#: Beside the pages: the fingerprint of what they were made of.
INPUTS = "made-of.sha256"

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
.verdict span { display: inline-block; padding: 1px 8px; border-radius: 10px; border: 1.5px solid var(--soft); }
.verdict .supported { background: #0b5cad; border-color: #0b5cad; color: #fff; font-weight: 600; }
.verdict .refuted { border: 2px solid #b34700; color: #b34700; font-weight: 700; }
.verdict .undetermined { border-style: dashed; color: var(--ink); }
.verdict .not-drawn { border: 2px dotted #b34700; color: var(--ink); }
.verdict .not-tested { border-color: transparent; color: var(--soft); }
.contents { font-size: 14px; columns: 2; column-gap: 32px; list-style: none; padding: 10px 16px; margin: 16px 0;
  background: var(--wash); border: 1px solid var(--line); border-radius: 4px; max-width: none; }
.contents li { margin: 2px 0; break-inside: avoid; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px;
  align-items: start; padding: 0; margin: 16px 0; }
.gallery figure { margin: 0; border: 1px solid var(--line); border-radius: 4px; padding: 10px; }
.gallery img { margin: 0 0 6px; width: 100%; }
.gallery figcaption { font-size: 13px; line-height: 1.4; color: var(--soft); }
.lead { font-size: 17px; } .soft { color: var(--soft); font-size: 14px; }
.controls { max-width: 1080px; margin: 12px auto 0; padding: 8px 24px; font-size: 14px; color: var(--soft); }
.controls.failed { border: 3px solid #b34700; border-radius: 4px; color: var(--ink); font-size: 16px;
  font-weight: 600; }
@media (max-width: 640px) { .contents { columns: 1; } h1 { font-size: 25px; } }
@media print { header { display: none; } .scroll { max-height: none; overflow: visible; } }
"""

_QUESTION = (
    "<p>How far does a pass with a chunked KV cache drift from full attention at the same precision, and is it "
    "rounding? Relative L2 drift of the final hidden state, by reading of the fold:</p>"
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
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
"""


class NotebookFailure(ReportError):
    """A notebook that stopped with an error; its partial output was kept."""


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


# ---------------------------------------------------------------------------------------------- notebooks
def _find(notebook: str) -> Path:
    """Find a notebook by its path, or by name among those that come with drift."""
    path = Path(notebook)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    if path.suffix == ".ipynb" or len(path.parts) > 1:
        raise ReportError(f"{notebook}: no such notebook")
    from drift._resources import resource

    try:
        found = resource(f"notebooks/{notebook}.ipynb")
    except (DriftError, OSError) as error:
        raise ReportError(
            f"there is no notebook {notebook!r}; drift comes with {', '.join(DEFAULT_NOTEBOOKS)}, "
            "and a path to one of your own is welcome"
        ) from error
    if not found.is_file():
        raise ReportError(f"{found}: no such notebook; drift comes with {', '.join(DEFAULT_NOTEBOOKS)}")
    return found


@contextmanager
def _kernel() -> Iterator[str]:
    """Offer a kernel that is this very interpreter, under a name of its own, for as long as it is needed.

    A ``python3`` kernel that the user once registered may belong to another environment without drift in it.
    """
    name = f"drift-{os.getpid()}"
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="drift-kernel-") as folder:
        root = str(Path(__file__).resolve().parents[1])
        inherited = os.environ.get("PYTHONPATH", "")
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"],
            "display_name": "drift",
            "language": "python",
            "env": {
                "PYTHONPATH": root + (os.pathsep + inherited if inherited else ""),
                "MPLBACKEND": "agg",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            },
        }
        home = Path(folder) / "kernels" / name
        home.mkdir(parents=True)
        (home / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        os.environ["JUPYTER_PATH"] = folder + (os.pathsep + before if before else "")
        try:
            yield name
        finally:
            if before is None:
                os.environ.pop("JUPYTER_PATH", None)
            else:
                os.environ["JUPYTER_PATH"] = before


def _parameters(path: Path) -> dict[str, Any]:
    """Parameters of a notebook, by name."""
    import papermill

    try:
        return dict(papermill.inspect_notebook(str(path)))
    except Exception as error:  # papermill lets whatever the notebook's reader raises through
        raise ReportError(f"{path}: cannot be read as a notebook ({error})") from error


def _share_out(paths: Sequence[Path], wanted: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Give every notebook the parameters that it has; refuse those that none has."""
    known = {path: _parameters(path) for path in paths}
    for path, names in known.items():
        if "sweep" not in names:
            raise ReportError(
                f"{path}: has no parameter 'sweep' (in a cell tagged 'parameters'), so it cannot be given one"
            )
    for name in wanted:
        if name == "sweep":
            raise ReportError("parameter 'sweep' is the first argument; it cannot be given again")
        if not any(name in names for names in known.values()):
            offered = sorted({n for names in known.values() for n in names} - {"sweep"})
            raise ReportError(f"no notebook has a parameter {name!r}; there are {', '.join(offered)}")
    return {path: {k: v for k, v in wanted.items() if k in names} for path, names in known.items()}


def _execute(path: Path, parameters: Mapping[str, Any], partial: Path, kernel: str) -> Any:
    """Run a notebook; on failure what it had got to is left at `partial`."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's and its libraries' own; ours are raised in the kernel
            papermill.execute_notebook(
                str(path),
                str(partial),
                parameters=dict(parameters),
                kernel_name=kernel,
                progress_bar=False,
                log_output=False,
            )
    except PapermillExecutionError as error:
        raise NotebookFailure(
            f"{path.name}: cell {error.cell_index} stopped with {error.ename}: {error.evalue}\n"
            f"What it had got to is in {partial}"
        ) from error
    except Exception as error:
        raise NotebookFailure(f"{path.name}: could not be run: {type(error).__name__}: {error}") from error
    notebook = nbformat.read(partial, as_version=4)
    partial.unlink()
    return notebook


# ---------------------------------------------------------------------------------------------- pages
def _figures(notebook: Any, name: str, folder: Path) -> list[tuple[Path, str]]:
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
            path.write_bytes(base64.b64decode(picture))
            found.append((path, meta.get("alt") or label))
    return found


def _body(notebook: Any) -> str:
    """Write an executed notebook as an HTML fragment, without code and without anything from a network."""
    from nbconvert import HTMLExporter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
        fragment, _ = exporter.from_notebook_node(notebook)
    return str(fragment)


def _contents(body: str) -> str:
    import re

    found = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body, flags=re.DOTALL)
    rows = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in found)
    return f'<ul class="contents" aria-label="contents">{rows}</ul>' if rows else ""


def _banner(sweep: Sweep) -> str:
    """What the controls of the instrument say, for the top of every page."""
    from drift import controls

    found = controls.evaluate(sweep)
    role = ' role="alert"' if not found.ok else ""
    return f'<aside class="controls{"" if found.ok else " failed"}"{role}>{escape(found.banner)}</aside>'


def _page(title: str, body: str, links: Sequence[tuple[str, str]], here: str, banner: str = "") -> str:
    from drift._version import __version__

    navigation = "".join(
        f'<span class="here">{escape(text)}</span>' if file == here else f'<a href="{escape(file)}">{escape(text)}</a>'
        for file, text in links
    )
    return _PAGE.format(
        version=__version__, title=escape(title), css=_CSS, navigation=navigation, body=body, banner=banner
    )


def _title(notebook: Any, name: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return str(cell.source.splitlines()[0][2:].strip())
    return str(name)


def _index(sweep: Sweep, pages: Sequence[Page], out: Path, links: Sequence[tuple[str, str]], title: str) -> None:
    from drift import labels, summary

    part = labels.keep(sweep, labels.is_fold)
    said = list(summary.headline(part).values()) if len(part) else ["No cell compares a fold with full attention."]
    lines = "".join(f"<li>{escape(line)}</li>" for line in said)
    facts = "".join(f"<li>{escape(line.replace('**', ''))}</li>" for line in summary.contents(sweep))
    body = [
        f"<h1>{escape(title)}</h1>",
        _QUESTION,
        f'<ul class="lead">{lines}</ul>',
        f"<p>{escape(summary.thresholds())}</p>",
        f'<ul class="soft">{facts}</ul>',
    ]
    for page in pages:
        body.append(f'<h2><a href="{escape(page.html.name)}">{escape(page.title)}</a></h2>')
        shown = [
            f'<figure><a href="{escape(page.html.name)}"><img src="figures/{escape(path.name)}" alt="{escape(alt)}" '
            f'loading="lazy"></a><figcaption>{escape(alt.split(". ")[0])}</figcaption></figure>'
            for path, alt in page.figures
        ]
        body.append(f'<div class="gallery">{"".join(shown)}</div>')
    (out / "index.html").write_text(
        _page(title, "\n".join(body), links, "index.html", _banner(sweep)), encoding="utf-8"
    )


def _inputs(sweep: Sweep, source: Path, shares: Mapping[Path, Mapping[str, Any]]) -> str:
    """Fingerprint of all that a report is made of: cells, failures, notebooks, parameters, and the code that draws."""
    from drift.dataset import content_hash

    def stamp(path: Path) -> list[Any]:
        state = path.stat()
        return [path.name, state.st_size, state.st_mtime_ns]

    here = Path(__file__).parent
    code = [here / f"{name}.py" for name in _CODE]
    code += [*sorted((here / "plateau").glob("*.py")), *sorted((here / "claims").glob("*.py"))]
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
    from drift.dataset import open_sweep

    source = Path(folder)
    sweep = open_sweep(source)
    if not len(sweep):
        why = ""
        if sweep.problems:
            why = f": {len(sweep.problems)} files in it are unusable, the first: {next(iter(sweep.problems.values()))}"
        raise ReportError(f"{source}: holds no readable cell{why}. Run `python -m drift.sweep` first.")
    if "failed" in _banner(sweep):
        report("warning: controls of the instrument failed: the pages say so and draw no conclusion")
    for file, reason in sweep.problems.items():
        report(f"warning: {file} is left out: {reason.removeprefix(f'{file}: ')}")
    paths = [_find(n) for n in dict.fromkeys(notebooks)]
    if len({p.stem for p in paths}) < len(paths):
        raise ReportError("two notebooks of the same name would overwrite each other's page")
    shares = _share_out(paths, parameters or {})
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
    with _kernel() as kernel:
        for path in paths:
            report(f"{path.stem}: running on {len(sweep)} cells ...")
            started = time.monotonic()
            given = {**shares[path], "sweep": str(source.resolve())}
            try:
                executed.append((path, _execute(path, given, target / f"{path.stem}.partial.ipynb", kernel)))
            except NotebookFailure as error:
                failed.append(error)
                (target / f"{path.stem}.html").unlink(missing_ok=True)  # of other cells than its neighbours
                report(f"{path.stem}: FAILED after {time.monotonic() - started:.0f} s")
                continue
            report(f"{path.stem}: done in {time.monotonic() - started:.0f} s")
    titles = {path: _title(notebook, path.stem) for path, notebook in executed}
    links = [("index.html", "Overview"), *((f"{path.stem}.html", titles[path]) for path, _ in executed)]
    pages, banner = [], _banner(sweep)
    for path, notebook in executed:
        for stale in figures.glob(f"{path.stem}-*.png"):
            stale.unlink()
        page = Page(path.stem, titles[path], target / f"{path.stem}.html", _figures(notebook, path.stem, figures))
        body = _body(notebook)
        body = body.replace("<h2 ", _contents(body) + "<h2 ", 1)
        page.html.write_text(_page(page.title, body, links, page.html.name, banner), encoding="utf-8")
        report(f"{page.html}: {page.html.stat().st_size / 1e6:.1f} MB, {len(page.figures)} figures")
        pages.append(page)
    _index(sweep, pages, target, links, f"Drift report: {sweep.plan.get('name') or source.resolve().name}")
    if failed:
        raise NotebookFailure("\n".join(str(error) for error in failed))
    made_of.write_text(inputs + "\n", encoding="utf-8")
    report(f"report: {(target / 'index.html').resolve()}")
    return target / "index.html"


# ---------------------------------------------------------------------------------------------- command line
def _plain(text: str) -> Any:
    """Read a parameter's value: JSON where it is JSON (numbers, true, null, lists), else text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.report",
        description="Run notebooks on a sweep and write HTML pages that can be read offline, and figures as PNG.",
        epilog="exit codes: 0 done, 1 a notebook failed (its partial output is kept), 2 bad usage or no cells",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="folder of a sweep")
    parser.add_argument(
        "--notebook", action="append", nargs="+", metavar="NAME_OR_PATH",
        help=f"notebook to run, by name or path; may be repeated (default: {' '.join(DEFAULT_NOTEBOOKS)})",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="where the pages go (default: reports/local/NAME)")
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="parameter for the notebooks, such as measure=logit_kl or 'models=[\"gemma-3-270m\"]'; may be repeated",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="render again even where nothing has changed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    parameters = {}
    for text in args.parameter:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            parser.error(f"-p {text}: write NAME=VALUE")
        parameters[name.strip()] = _plain(value)
    notebooks = [n for group in args.notebook or [DEFAULT_NOTEBOOKS] for n in group]
    try:
        render(
            args.sweep,
            notebooks,
            args.out,
            parameters,
            report=lambda line: print(line, flush=True),
            unless_current=not args.force,
        )
    except NotebookFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
