"""The command line of sweeps: ``python -m drift.sweep``."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from drift._command_lines import jobs, whole_above_zero
from drift.boundary import command
from drift.running.sweep.checking import check
from drift.running.sweep.config import AXES, DEFAULTS, OPTIONS, load_config, presets
from drift.running.sweep.memory import parse_size
from drift.running.sweep.outcome import Exit, Interrupted
from drift.running.sweep.planning import plan
from drift.running.sweep.preview import preview_json, preview_words
from drift.running.sweep.progress import reporter
from drift.running.sweep.running import ENGINES, run
from drift.shown import printable, printable_lines

_RESUMES = "running the same command resumes"
_EXIT_CODES = (
    "exit codes: 0 complete, 1 some cells failed, 2 bad configuration or usage, 3 stopped with cells left, "
    "130 interrupted; --check: 0 nothing wrong, 1 findings"
)


def _epilog() -> str:
    def rows(entries: dict[str, str]) -> str:
        width = max(map(len, entries)) + 2
        return "\n".join(
            textwrap.fill(text, 110, initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2))
            for name, text in entries.items()
        )

    def shown(name: str) -> str:
        value = DEFAULTS.get(name)
        if value is None:
            return ""
        return f" (default: {','.join(map(str, value)) if isinstance(value, list) else str(value).lower()})"

    return "\n".join(
        [
            "presets:",
            rows(presets()),
            "",
            "axes (one value or a list each; a grid is their product):",
            rows({name: text + shown(name) for name, text in AXES.items()}),
            "",
            "options of a grid:",
            rows({name: text + shown(name) for name, text in OPTIONS.items()}),
            "",
            "examples:",
            "  python -m drift.sweep quick --dry-run",
            "  python -m drift.sweep default --set dtype=bf16,fp32,fp64 --set tokens=2048 --out data/sweeps/mine",
            "  python -m drift.sweep mine.yaml --only model=gemma-3-270m --retry-failed",
            "  python -m drift.sweep mine.yaml --engine dask --scheduler tcp://login:8786",
            "  python -m drift.sweep --check data/sweeps/mine",
            "",
            "Running the same command again computes what is missing; a finished cell is never computed twice.",
            _EXIT_CODES,
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.sweep",
        description="Compute the cells of a sweep: drift of folded passes against full attention.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG|PRESET", help="a YAML file or the name of a preset (default: default)")
    add("--set", action="append", default=[], metavar="AXIS=A,B", help="replace an axis in every grid; repeatable")
    add("--out", type=Path, metavar="DIR", help="folder of the sweep (default: data/sweeps/NAME)")
    add("--dry-run", action="store_true", help="list the cells, what is done, and estimates; compute nothing")
    add("--only", action="append", default=[], metavar="AXIS=A,B", help="compute matching cells only; repeatable")
    add("--limit", type=whole_above_zero, metavar="N", help="compute N cells at most")
    add("--force", action="store_true", help="compute cells again that are done")
    add("--retry-failed", action="store_true", help="compute cells again that failed")
    add("--fail-fast", action="store_true", help="stop at the first cell that fails")
    add("--jobs", type=jobs, default=1, metavar="N|auto", help="groups computed at once, each in its own process")
    add(
        "--memory",
        type=parse_size,
        metavar="SIZE",
        help="memory that a descent may take, such as 24GiB (default: what is free)",
    )
    add("--engine", choices=ENGINES, default="local", help="local: processes of this machine; dask: see --scheduler")
    add(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="with --engine dask: an existing scheduler (default: a local cluster of --jobs workers)",
    )
    add("--json", action="store_true", help="print a JSON object on stdout and everything else on stderr")
    add("--check", type=Path, metavar="FOLDER", help="verify every cell of a sweep's folder, say what to do, and exit")
    add("--list-presets", action="store_true", help="list the presets and exit")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    if arguments.list_presets:
        width = max(map(len, presets()))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in presets().items()))
        return Exit.COMPLETE
    if arguments.check is not None:
        found = check(arguments.check)
        print(json.dumps(found.as_dict(), indent=1) if arguments.json else "\n".join(map(printable, found.lines())))
        return found.exit
    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        preview = preview_json(plan(config, arguments.out, dry_run=True, memory=arguments.memory), arguments.only)
        print(json.dumps(preview, indent=1) if arguments.json else "\n".join(map(printable, preview_words(preview))))
        return Exit.COMPLETE
    interrupted = False
    # Whatever libraries print must not mix with the summary.
    with redirect_stdout(sys.stderr):
        try:
            summary = run(
                config,
                arguments.out,
                only=arguments.only,
                limit=arguments.limit,
                force=arguments.force,
                retry_failed=arguments.retry_failed,
                fail_fast=arguments.fail_fast,
                jobs=arguments.jobs,
                memory=arguments.memory,
                engine=arguments.engine,
                scheduler=arguments.scheduler,
                report=reporter(sys.stderr),
            )
        except Interrupted as stop:
            summary, interrupted = stop.summary, True
    if interrupted:
        print(printable_lines(summary.interruption()), file=sys.stderr)
    if arguments.json:
        print(json.dumps(summary.as_dict(), indent=1))
    elif not interrupted:
        print("\n".join(map(printable, summary.lines())))
    return summary.exit


@command("drift.sweep", interrupted=f"interrupted before anything was computed; {_RESUMES}")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return int(_command(_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
