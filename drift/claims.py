"""``python -m drift.claims``: the published claims, held against a sweep."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from drift.boundary import command, tell
from drift.shown import printable

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.claims",
        description="Hold a sweep against the published claims (arXiv 2605.12471): supported, refuted, undetermined or "
        "not tested, per protocol.",
        epilog="example: python -m drift.claims data/sweeps/default --details",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="folder of a sweep")
    parser.add_argument("--measure", default="hidden_rel_l2", help="the headline measure (default: hidden_rel_l2)")
    parser.add_argument("--layer", default="last", help="a layer's number, or 'last' (default)")
    parser.add_argument("--margin", action="append", default=[], metavar="NAME=VALUE",
                        help="growth, precision, chunk, family, proportional, retrieval, likelihood or rise; "
                        "repeatable")  # fmt: skip
    parser.add_argument("--alpha", type=float, default=0.05, help="level of every test (default: 0.05)")
    parser.add_argument("--details", action="store_true", help="every finding, not only the summary")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table as Markdown")
    form.add_argument("--json", action="store_true", help="a JSON object: claims, findings and margins")
    return parser


@command("error")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    from drift.dataset.opening import open_sweep
    from drift.reading.claims.auditing import audit
    from drift.reading.claims.model import parse_margins
    from drift.reading.claims.page import markdown
    from drift.reading.claims.terminal import terminal

    layer: int | str = int(args.layer) if re.fullmatch("-?[0-9]{1,9}", args.layer) else args.layer
    setting = parse_margins(args.margin, args.alpha)
    sweep = open_sweep(args.sweep)
    for name, problem in sweep.problems.items():
        tell("drift.claims", f"{printable(name)} was left out: {printable(problem)}")
    found = audit(sweep, args.measure, layer, setting=setting)
    if found.withheld:
        tell("drift.claims", found.controls)
    if args.json:
        print(json.dumps(found.as_dict(), indent=1, allow_nan=False))
    elif args.markdown:
        print(markdown(found))
    else:
        print(terminal(found, args.details))
    return 0


if __name__ == "__main__":
    sys.exit(main())
