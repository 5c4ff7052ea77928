"""``python -m drift.logits A B``: how far apart two lanes' logits or log-probabilities are, and whether it matters."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from drift._command_lines import above_zero
from drift.boundary import command

__all__ = ["main"]

_UNITS = ("token", "sequence")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.logits",
        description="How far apart are two lanes, by their logits or log-probabilities alone, and is it more than "
        "repeats of one lane are apart?",
        epilog="verdicts and exit codes: 0 same_bits or within_floor; 1 beyond_floor; 2 bad input; 3 undetermined.  "
        "files, recognised by their content: logits (.npy, .npz, safetensors), log-probabilities (JSON lines), vLLM's "
        "prompt_logprobs, SGLang's token_logprobs, OpenAI's logprobs, llama.cpp's saved base: see docs/logits.md.  "
        "examples: python -m drift.logits full.npy chunked.npy --floor full-batch4.npy full-eager.npy;  "
        "python -m drift.logits rollout.jsonl trainer.jsonl --floor rollout-again.jsonl --clip 0.8 1.2",
    )
    parser.add_argument("a", metavar="A", help="the reference: the engine that sampled the tokens, or the base")
    parser.add_argument("b", metavar="B", help="what it is compared with: ratios are B / A")
    parser.add_argument("--floor", nargs="+", metavar="C", default=[], help="repeats of A, computed in other ways that "
                        "are accepted as well: how far they are from A is the floor")  # fmt: skip
    parser.add_argument("--clip", nargs=2, type=above_zero("ratio"), metavar=("LOW", "HIGH"), help="count the "
                        "probability ratios outside of these, as a clipped objective does (0.8 1.2)")  # fmt: skip
    parser.add_argument("--units", choices=_UNITS, default=_UNITS[0], help="what ratios are of: a token (default), or "
                        "a sequence, as the product over its tokens")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="a JSON object on stdout instead of the page")
    return parser


@command("drift.logits")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    from drift.reading.logits import as_dict, compare_lanes, open_lane, page

    a, b, *floor = (open_lane(name) for name in (args.a, args.b, *args.floor))
    found = compare_lanes(a, b, floor, units=args.units, clip=None if args.clip is None else tuple(args.clip))
    print(json.dumps(as_dict(found), indent=1, allow_nan=False) if args.json else page(found))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
