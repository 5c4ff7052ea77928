"""``python -m drift.plateau``: verdicts on the curves of a sweep, or of a CSV file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drift.errors import DriftError

if TYPE_CHECKING:
    from drift.plateau.curves import Curve
    from drift.plateau.verdict import Plateau

__all__ = ["main"]


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.plateau",
        description="Is a drift curve a plateau? Two one-sided tests of growth per doubling of chain depth against a "
        "margin, with autocorrelated noise taken into account.",
        epilog="verdicts: saturated_plateau, flat, plateau_rise_unresolved, growing, decaying, undetermined.  "
        "examples: python -m drift.plateau data/sweeps/default --measure hidden_rel_l2 logit_kl;  "
        "python -m drift.plateau mine.csv --margin 10% --json",
    )
    parser.add_argument("source", metavar="SWEEP|FILE.csv", help="a sweep's folder, or a CSV file with the columns "
                        "document, step, value and, for several curves, curve")  # fmt: skip
    parser.add_argument("--measure", nargs="+", default=["hidden_rel_l2"], metavar="NAME",
                        help="measures of a sweep, or 'all' (default: hidden_rel_l2)")  # fmt: skip
    parser.add_argument("--layer", type=_layer, default="last", help="a layer's number, 'last' (default) or 'all'")
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


def table(curves: Sequence[Curve], found: Sequence[Plateau]) -> str:
    """Lay verdicts out as text: one line per curve, then what the verdicts mean and what to know about them."""
    from drift.plateau.verdict import certificate, percent

    rows = [("curve", "verdict", "growth per doubling", "level", "documents x steps")]
    for curve, p in zip(curves, found, strict=True):
        low, high = p.growth_interval
        growth = percent(p.growth_per_doubling)
        interval = f" ({percent(low)} to {percent(high)})" if growth != "n/a" else ""
        verdict = p.verdict.value + (f": {p.reason.value}" if p.reason else "")
        level = "n/a"
        if not math.isnan(p.level):
            level = f"{p.level:.3g} ({p.level_interval[0]:.3g} to {p.level_interval[1]:.3g})"
        rows.append((curve.name, verdict, growth + interval, level, f"{p.documents} x {p.steps}"))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    if found:
        lines.append(
            f"Plateau: growth per doubling of chain depth within {percent(found[0].margin).lstrip('+')} "
            f"(two one-sided tests, level {found[0].alpha:g}). "
            f"Intervals of growth: {100 * (1 - 2 * found[0].alpha):g} %, of the level: 95 %."
        )
    undecided = [(c, p) for c, p in zip(curves, found, strict=True) if p.reason]
    lines += [f"{c.name}: {p.explanation}" for c, p in undecided[:20]]
    if len(undecided) > 20:
        lines.append(f"... and {len(undecided) - 20} more undetermined (--json has all)")
    lines += [f"{c.name}: {said}." for c, p in zip(curves, found, strict=True) if (said := certificate(p))]
    caveats: dict[str, list[str]] = {}
    for c, p in zip(curves, found, strict=True):
        for caveat in p.caveats:
            caveats.setdefault(caveat, []).append(c.name)
    for caveat, names in list(caveats.items())[:20]:
        who = "all curves" if len(names) == len(found) else ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        lines.append(f"Note ({who}): {caveat}.")
    return "\n".join(lines)


def _curves(args: argparse.Namespace) -> list[Curve]:
    from drift import controls
    from drift.dataset import open_sweep
    from drift.errors import DatasetError
    from drift.plateau import curves

    path = Path(args.source)
    if path.is_dir():
        sweep = open_sweep(path)
        for name, problem in sweep.problems.items():
            print(f"drift.plateau: {name} was left out: {problem}", file=sys.stderr)
        if not len(sweep):
            raise DatasetError(f"{path}: the sweep holds no cell that can be read")
        checked = controls.evaluate(sweep)
        if not checked.ok:
            print(f"drift.plateau: {checked.banner}", file=sys.stderr)
        return list(curves.from_sweep(sweep, args.measure, args.layer))
    return curves.from_csv(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        from drift.plateau import curves

        found_curves = _curves(args)
        if not args.rise_min > 1 or (args.floor is not None and not args.floor > 0):
            raise DriftError("--rise-min must be above 1, and --floor above 0")
        found = curves.judge(
            found_curves, margin=args.margin, alpha=args.alpha, floor=args.floor, rise_min=args.rise_min
        )
        if args.json:
            rows = [{"curve": c.name, **c.labels, **p.as_dict()} for c, p in zip(found_curves, found, strict=True)]
            print(json.dumps(rows, indent=1, allow_nan=False))
        elif args.csv:
            curves.frame(found_curves, found).to_csv(sys.stdout, index=False)
        else:
            print(table(found_curves, found))
    except DriftError as error:
        print(f"drift.plateau: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
