"""``python -m drift.plateau``: verdicts on the curves of a sweep, or of a CSV file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from drift.boundary import command, tell
from drift.errors import ConfigError
from drift.shown import printable

if TYPE_CHECKING:
    from drift.reading.plateau import Analysis, Code, Plateau, Reason, Verdict, analyse, plateau, plateaus
    from drift.reading.statistics.windows import late_part, late_start

_HANDED_ON = (
    "Analysis",
    "Code",
    "Plateau",
    "Reason",
    "Verdict",
    "analyse",
    "late_part",
    "late_start",
    "plateau",
    "plateaus",
)
__all__ = [
    "Analysis",
    "Code",
    "Plateau",
    "Reason",
    "Verdict",
    "analyse",
    "late_part",
    "late_start",
    "main",
    "plateau",
    "plateaus",
]


def __getattr__(name: str) -> Any:
    if name in _HANDED_ON:
        return getattr(import_module("drift.reading.plateau"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _fraction(text: str) -> float:
    """A fraction, or a percentage with its sign."""
    number = float(text.rstrip(" %"))
    return number / 100 if text.rstrip().endswith("%") else number


def _margin(text: str) -> float:
    try:
        value = _fraction(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1 (0.05 or 5%)")
    return value


def _alpha(text: str) -> float:
    value = _margin(text)
    if value >= 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is no level of a test (0.05 is usual)")
    return value


def _layer(text: str) -> int | str:
    if text in ("last", "all"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a layer's number nor 'last' nor 'all'") from None


def _parser(quantities: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.plateau",
        description="Is a drift curve a plateau? Two one-sided tests of growth per doubling of chain depth against a "
        "margin, with autocorrelated noise taken into account.",
        epilog="verdicts: saturated_plateau, flat, plateau_rise_unresolved, growing, decaying, undetermined.  "
        "examples: python -m drift.plateau data/sweeps/default --measure hidden_rel_l2 logit_kl;  "
        "python -m drift.plateau data/sweeps/default --of excess;  "
        "python -m drift.plateau mine.csv --margin 10% --json",
    )
    parser.add_argument("source", metavar="SWEEP|FILE.csv", help="a sweep's folder, or a CSV file with the columns "
                        "document, step, value and, for several curves, curve")  # fmt: skip
    parser.add_argument("--measure", nargs="+", default=["hidden_rel_l2"], metavar="NAME",
                        help="measures of a sweep, or 'all' (default: hidden_rel_l2)")  # fmt: skip
    parser.add_argument("--layer", type=_layer, default="last", help="a layer's number, 'last' (default) or 'all'")
    parser.add_argument("--of", choices=quantities, default=quantities[0],
                        help="drift (default); excess: drift over its rounding floor; accumulation: drift over the "
                        "error of one step; floor: the rounding floor itself")  # fmt: skip
    parser.add_argument("--margin", type=_margin, default=0.05, help="growth per doubling that still counts as flat "
                        "(default: 0.05; 5%% will do as well)")  # fmt: skip
    parser.add_argument("--alpha", type=_alpha, default=0.05, help="level of the tests (default: 0.05)")
    parser.add_argument("--floor", type=float, help="drift below this counts as this (default: half the smallest "
                        "positive value of the curve)")  # fmt: skip
    parser.add_argument("--rise-min", type=float, default=1.5, metavar="FACTOR",
                        help="factor from the first step to the level that is a rise (default: 1.5)")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON array on stdout, one object per curve")
    form.add_argument("--csv", action="store_true", help="CSV on stdout, one row per curve")
    return parser


@command("drift.plateau")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    from drift.reading.quantities import Of

    args = _parser([of.value for of in Of]).parse_args(argv)
    from drift.reading.plateau import curves
    from drift.reading.plateau.terminal import curves_of, left_out_lines, table

    floor = 1.0 if args.floor is None else args.floor
    if not (1 < args.rise_min < math.inf and 0 < floor < math.inf):
        raise ConfigError("--rise-min must be above 1, and --floor above 0; both finite")
    found_curves, gate, without = curves_of(
        args.source, args.measure, args.layer, lambda line: tell("drift.plateau", printable(line)), Of(args.of)
    )
    found = curves.judge(
        found_curves, gate, margin=args.margin, alpha=args.alpha, floor=args.floor, rise_min=args.rise_min
    )
    if args.json:
        print(json.dumps(curves.rows(found_curves, found, without), indent=1, allow_nan=False))
    elif args.csv:
        curves.plateau_frame(found_curves, found, without).to_csv(sys.stdout, index=False)
    else:
        print("\n".join([table(found_curves, found, gate), *left_out_lines(without)]))
    if without and not found:
        raise ConfigError(f"no cell has what --of {args.of} asks for; each is listed with the reason and the remedy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
