"""From a sweep to pages that can be read offline: ``python -m drift.report SWEEP``.

Notebooks are executed by papermill on the interpreter that runs this module, then written as HTML without code, with
every picture inside and nothing fetched from a network. The pictures are also written as PNG files, and an index links
the pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from drift._bounds import MOST_PARAMETER_BYTES
from drift._command_lines import jobs
from drift._cores import cores
from drift._outside import OutsideError, parse_json
from drift.boundary import command
from drift.reading.report.notebooks import DEFAULT_NOTEBOOKS, NotebookFailure
from drift.shown import printable

__all__ = ["main"]


# ---------------------------------------------------------------------------------------------- command line
def _plain(text: str) -> Any:
    """Read a parameter's value: JSON where it is JSON (numbers, true, null, lists), else text."""
    try:
        return parse_json(text, most=MOST_PARAMETER_BYTES)
    except OutsideError:
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
    parser.add_argument(
        "--evidence", action="append", default=[], metavar="FOLDER",
        help="a sweep that was computed before: what its deeper chains decide stands on the first page, marked, and it "
        "gets a page of its own; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=jobs, default=1, metavar="N|auto",
        help="notebooks run at once, each with some hundred MB of its own; auto: one per core (default: 1)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="render again even where nothing has changed")
    return parser


@command("error", codes={NotebookFailure: 1})
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
    from drift.reading.report.rendering import render

    notebooks = [n for group in args.notebook or [DEFAULT_NOTEBOOKS] for n in group]
    render(
        args.sweep,
        notebooks,
        args.out,
        parameters,
        report=lambda line: print(printable(line), flush=True),
        evidence=args.evidence,
        unless_current=not args.force,
        at_once=args.jobs or cores(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
