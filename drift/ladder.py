"""The command line of the precision ladder: ``python -m drift.ladder SWEEP``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from drift.boundary import command, tell
from drift.errors import DatasetError
from drift.reading.amplitudes import LADDER_MEASURES
from drift.shown import printable

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.ladder",
        description="Is drift rounding? Log-log slope of drift on the unit roundoff with its interval, over the whole "
        "ladder of precisions and per adjacent pair, and the parts of the error against float64.",
        epilog="verdicts: rounding, structural, both, undetermined.  "
        "example: python -m drift.ladder data/sweeps/ladder --measure hidden_rel_l2 logit_kl",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="folder of a sweep")
    parser.add_argument("--measure", nargs="+", default=["hidden_rel_l2"], metavar="NAME",
                        help=f"measures, or 'all' ({', '.join(LADDER_MEASURES)}); default: hidden_rel_l2")  # fmt: skip
    parser.add_argument("--layer", default="last", help="a layer's number, or 'last' (default)")
    parser.add_argument("--reference", default="full", help="what the folds are compared with (default: full)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object: ladders, attribution, controls")
    form.add_argument("--csv", action="store_true", help="CSV on stdout, one row per ladder and per pair of rungs")
    return parser


@command("drift.ladder")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    from drift.dataset.opening import open_sweep
    from drift.reading import controls
    from drift.reading.ladder.attribution import attributions
    from drift.reading.ladder.judging import as_dict, ladders
    from drift.reading.ladder.terminal import terminal
    from drift.reading.ladder.wording import ladder_frame
    from drift.reading.wording.numbers import plain

    layer: int | str = int(args.layer) if re.fullmatch("-?[0-9]{1,9}", args.layer) else args.layer
    sweep = open_sweep(args.sweep)
    for name, problem in sweep.problems.items():
        tell("drift.ladder", f"{printable(name)} was left out: {printable(problem)}")
    measures = LADDER_MEASURES if args.measure == ["all"] else args.measure
    found = [one for m in measures for one in ladders(sweep, m, layer, args.reference)]
    if not found:
        raise DatasetError(f"{args.sweep}: no cell compares a fold with reference {args.reference!r}")
    parts = attributions(sweep, layer)
    checked = controls.evaluate(sweep)
    tell("drift.ladder", checked.banner)
    if args.json:
        rows = [{**one.labels, "documents": one.documents, "total": one.total, "parts": one.parts,
                 "shares": {k: vars(v) for k, v in one.shares.items()}} for one in parts]  # fmt: skip
        body = {"ladders": [as_dict(one) for one in found], "attribution": rows, "controls": checked.as_dict()}
        print(json.dumps(plain(body), indent=1, allow_nan=False))
    elif args.csv:
        ladder_frame(found).to_csv(sys.stdout, index=False)
    else:
        print(terminal(found, parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
