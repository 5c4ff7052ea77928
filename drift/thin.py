"""Cells small enough to be kept as evidence: some of the layers, fewer bits: ``python -m drift.thin SWEEP OUT``.

A deep sweep's cells are mostly layers that resemble their neighbours, and mantissas whose last half no reader looks
at. A thinned cell keeps the data contract, so every reader and figure takes it as it takes a whole one; its attribute
``thinned_json`` says what was left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from drift.boundary import command
from drift.dataset.bits import BITS, LAYERS

__all__ = ["main"]


# ---------------------------------------------------------------------------------------------- command line
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.thin",
        description="Write a sweep's cells anew with fewer layers and fewer significant bits, to be kept as evidence.",
        epilog="exit codes: 0 done, 2 bad usage, an unusable sweep, or a disk that refuses (then nothing is written)",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="folder of a sweep; it is only read")
    parser.add_argument("out", metavar="OUT", help="where the thinned sweep goes: a new or empty folder")
    parser.add_argument(
        "--layers", type=int, default=LAYERS, metavar="N",
        help="layers kept at most, evenly over the depth; embeddings, last block and final norm always "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--bits", type=int, default=BITS, metavar="N",
        help="significant bits kept of every number; the relative error is at most 2**-N (default: %(default)s)",
    )  # fmt: skip
    return parser


@command("error")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from drift.dataset.thinning import thin_sweep

    thin_sweep(args.sweep, args.out, args.layers, args.bits, report=lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
