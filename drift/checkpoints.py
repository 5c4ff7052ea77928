"""List, fetch, download and verify checkpoints (``python -m drift.checkpoints``).

Where weights come from, where they lie and which environment variables say so: :mod:`drift.running.checkpoints`.
Needs the standard library alone until weights are converted: ``make`` downloads while it installs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from drift.boundary import command, tell
from drift.errors import CheckpointError
from drift.running.checkpoints.cache import amount_words, entry_problems
from drift.running.checkpoints.fetching import fetch, fetch_all, fetched_names, verify
from drift.running.checkpoints.identity import cache_home
from drift.running.checkpoints.names import cache_dir, embedded
from drift.running.checkpoints.resolving import resolve
from drift.running.checkpoints.wheels import download
from drift.shown import printable

__all__ = ["main"]


def _list() -> None:
    print(f"{'name':30} {'family':7} {'weights':>8} {'download':>9}  {'licence':11} state")
    for name, entry in embedded().items():
        checkpoint = resolve(name)
        size = sum(wheel["bytes"] for wheel in entry["wheels"])
        if not cache_home(checkpoint).exists():
            state = "not fetched"
        else:
            state = "not trusted: fetch it again" if entry_problems(checkpoint) else "ready"
        print(
            f"{name:30} {entry['family']:7} {entry['shape']['parameters'] / 1e6:6.0f} M {amount_words(size):>9}  "
            f"{entry['license']:11} {state}"
        )
    print(f"\ncache: {cache_dir()}")
    print("A folder with safetensors, a .gguf file or a hub id (organisation/model) is a name too.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.checkpoints",
        description="List, fetch and verify the checkpoints that drift runs.",
        epilog="Exit codes: 0 done, 1 a problem, 2 wrong usage. Environment: DRIFT_CACHE (where checkpoints lie), "
        "DRIFT_WHEELHOUSE (a folder with the wheels, without a network), DRIFT_CHECKPOINTS (another manifest).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="embedded checkpoints and whether they are on this machine")
    for name, text in (
        ("fetch", "download and convert, if not done yet"),
        ("download", "download only (needs nothing but Python and pip); fetch converts later"),
        ("verify", "hash everything that was fetched (or what is named) and compare"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("names", nargs="*", metavar="NAME")
        if name != "verify":
            sub.add_argument("--all", action="store_true", help="every embedded checkpoint")
        if name == "fetch":
            sub.add_argument("--keep", action="store_true", help="keep the downloaded wheels after the conversion")
            sub.add_argument("--workers", type=int, default=2, metavar="N", help="how many at once (default 2)")
    return parser


@command("drift", failed=1, interrupted="interrupted; what was complete is kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        _list()
        return 0
    names = list(dict.fromkeys(arguments.names))
    try:
        for name in names:
            resolve(name)
    except CheckpointError as error:
        tell("drift", str(error))
        return 2
    if arguments.command == "verify":
        return _verify_command(names)
    if arguments.all:
        names = list(dict.fromkeys([*embedded(), *names]))
    if not names:
        parser.error(f"{arguments.command}: name a checkpoint, or --all")
    if arguments.command == "download":
        for name in names:
            download(name)
    elif len(names) == 1:
        print(f"{names[0]}: ready in {fetch(names[0], keep=arguments.keep)}")
    else:
        fetch_all(names, keep=arguments.keep, workers=arguments.workers)
    return 0


def _verify_command(names: Sequence[str]) -> int:
    failed = False
    chosen = list(names) or fetched_names()
    for name in chosen:
        problems = verify(name)
        failed |= bool(problems)
        print(f"{name}: {'ok' if not problems else 'NOT TRUSTED'}")
        for problem in problems:
            print(f"  {printable(problem)}", file=sys.stderr)
    if not chosen:
        print(f"nothing fetched yet (cache: {cache_dir()})")
    if failed:
        print("drift: fetch makes anew what is not trusted: python -m drift.checkpoints fetch NAME", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    # Through the imported module, not through __main__: worker processes look functions up by their module's name.
    from drift.checkpoints import main as _main

    sys.exit(_main())
