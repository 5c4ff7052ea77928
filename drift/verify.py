"""``python -m drift.verify FOLDER``: compute some of a folder's cells again on this machine, and compare.

Nobody has to believe committed files. Each cell that is drawn is computed again from its own record, thinned as it was,
and held against the file: the same bits, within the rounding floor, or different. The folder is only read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from drift._command_lines import above_zero, whole_above_zero
from drift.boundary import command
from drift.shown import printable

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.verify",
        description="Compute some of a folder's cells again on this machine and say of each: the same bits, within the "
        "rounding floor of this machine, or different.",
        epilog="exit codes: 0 all the same or within the floor; 1 some are different; 2 bad usage; 3 none is "
        "different, but some could not be verified; 130 interrupted.  what is compared, and what it cannot "
        "tell: docs/verify.md.  examples: python -m drift.verify data/evidence/deep --sample 2;  "
        "python -m drift.verify data/sweeps/mine --cell gemma-3-270m_bf16_append_c64_87080d9ba5368a9a.nc",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="a sweep's folder, whole or thinned; it is only read")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample", type=whole_above_zero, default=2, metavar="N",
                       help="draw N cells, over all models, folds before controls (default: %(default)s)")  # fmt: skip
    which.add_argument("--all", action="store_true", help="every cell, and every document of it")
    which.add_argument("--cell", action="append", default=[], metavar="FILE",
                       help="this cell, and every document of it; repeatable")  # fmt: skip
    add("--seconds", type=above_zero("number of seconds", endless=True), default=60.0, metavar="S",
        help="time for the sample, by the estimate: of long cells fewer documents are drawn, one at least "
        "(default: %(default)g)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="another seed draws other cells (default: %(default)s)")
    add("--model", action="append", default=[], metavar="PATH|ID",
        help="where weights lie that are no embedded checkpoint; repeatable")  # fmt: skip
    add("--threads", type=whole_above_zero, metavar="N", help="threads (default: as the cell was computed with)")
    add("--dry-run", action="store_true", help="say which cells would be computed, and how long it would take")
    add("--json", action="store_true", help="a JSON object on stdout, everything else on stderr")
    return parser


@command("drift.verify")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from drift.reading.verifying import wording
    from drift.reading.verifying.carrying import verified
    from drift.reading.verifying.model import Verification
    from drift.reading.wording.numbers import plain
    from drift.running.sweep import recomputing
    from drift.running.sweep.cost import show_seconds
    from drift.running.sweep.progress import reporter

    report, results = reporter(sys.stderr), []
    found = recomputing.requests(args.folder, args.model)
    sample = None if args.all or args.cell else args.sample
    chosen = recomputing.choose(found, sample, args.seed, args.seconds, args.cell)
    expected = sum(one.seconds for one in chosen)
    drawn = "" if sample is None else f", drawn with seed {args.seed}"
    about = f", about {show_seconds(expected)}" if expected else ""
    report.line(f"{args.folder}: {len(chosen)} of {len(found)} cells{drawn}{about}")
    if args.dry_run:
        listed = plain([one.as_dict() for one in chosen])
        print(json.dumps(listed, indent=1) if args.json else "\n".join(printable(one.line) for one in chosen))
        return 0
    by = recomputing.Recomputer(args.folder, args.threads, fraction=report.fraction, say=report.line)
    report.begin(expected)
    try:
        for place, one in enumerate(chosen, 1):
            report.group(f"[{place}/{len(chosen)}] {one.line}", one.seconds, len(one.documents))
            with redirect_stdout(sys.stderr):  # whatever libraries print must not mix with what is found
                results.append(verified(recomputing.Task(one, by)))
            report.group_done(wording.short(results[-1]))
    finally:
        report.end()
    verification = Verification(str(args.folder), len(found), args.seed, tuple(results))
    if args.json:
        print(json.dumps(plain(verification.as_dict()), indent=1, allow_nan=False))
    else:
        print("\n".join(map(printable, wording.lines(verification))))
    return verification.exit


if __name__ == "__main__":
    sys.exit(main())
