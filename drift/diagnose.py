"""``python -m drift.diagnose A B``: where two lanes begin to differ, and whether that is rounding."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING

from drift._bounds import MOST_DIGITS
from drift.boundary import command
from drift.dataset.dumps import FORMS
from drift.dataset.rungs import RUNGS, known_rung

if TYPE_CHECKING:
    from drift.reading.diagnose.tensors import Dump

__all__ = ["main"]


def _unit_roundoff(text: str) -> float:
    named = known_rung(text)
    if named is not None:
        return named.unit_roundoff
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither one of {', '.join(RUNGS)} nor a number between 0 and 0.5"
        )
    return value


def _heads(text: str) -> int:
    if not (text.isdecimal() and len(text) <= MOST_DIGITS and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of heads")
    return int(text)


def _layers(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.isdecimal() and len(number) <= MOST_DIGITS for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers, such as 1,2,3")
    return tuple(map(int, numbers))


def _forms(text: str) -> tuple[str, str]:
    first, comma, second = text.partition(",")
    for name in (first, second or first):
        if name not in FORMS:
            raise argparse.ArgumentTypeError(f"{name!r} is no format of dumps; there are {', '.join(FORMS)}")
    return first, second if comma else first


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.diagnose",
        description="Where does it enter? Compare two dumps of a network's tensors: the first step, layer and kind at "
        "which they differ by more than rounding explains, and, where a pattern tells, the cause.",
        epilog="verdicts and exit codes: 0 same_bits or rounding; 1 structural or narrower_storage; 2 bad input; "
        "3 undetermined.  tensors are named step.K.layer.L.hidden, step.K.block.B.key (.value, .cache_key, "
        ".cache_value), "
        "step.K.final, step.K.logits: see docs/diagnose.md; dumps by other programs are recognised.  "
        "examples: python -m drift.diagnose full/ chunked/;  "
        "python -m drift.diagnose full/ chunked/ --floor noise-1/ noise-2/ --text full-2/ chunked-2/ noise-3/;  "
        "python -m drift.diagnose full-bf16/ chunked-bf16/ --other-precision full-fp32/ chunked-fp32/",
    )
    parser.add_argument("a", metavar="A", help="the reference: a folder of *.safetensors files, or one such file")
    parser.add_argument("b", metavar="B", help="what it is compared with; it may be cut into other steps")
    parser.add_argument("--json", action="store_true", help="a JSON object on stdout instead of the page")
    parser.add_argument("--floor", metavar="C", nargs="+", default=[], help="A run again in other, equally right ways "
                        "(another batch or chunk size, another attention implementation, or with noise of one unit "
                        "roundoff on its embeddings): rounding is then measured instead of assumed")  # fmt: skip
    parser.add_argument("--text", metavar="DUMP", nargs="+", action="append", default=[], help="another text: its A, "
                        "its B and its floor (A2 B2 C2 ...); may be given several times. A few texts "
                        "decide")  # fmt: skip
    parser.add_argument("--unit-roundoff", type=_unit_roundoff, metavar="U", help="of the arithmetic, where the "
                        f"numbers' format does not tell: {', '.join(RUNGS)}, or a number")  # fmt: skip
    parser.add_argument("--heads", type=_heads, metavar="N", help="heads of the cache, if keys and values are "
                        "stored as [token, head, feature] or [token, head * feature]")  # fmt: skip
    parser.add_argument("--from", dest="forms", type=_forms, default=(None, None), metavar="NAME", help="the program "
                        "that wrote the dumps, where the content does not tell; NAME,NAME if B's is another than "
                        f"A's and C's: {', '.join(FORMS)}")  # fmt: skip
    parser.add_argument("--layers", type=_layers, default=(), metavar="L,L,...", help="after how many blocks the "
                        "hidden states were taken, where the files do not tell (vLLM's connector)")  # fmt: skip
    parser.add_argument("--other-precision", nargs=2, metavar=("A2", "B2"), help="the same two lanes at another "
                        "precision, best a finer one: rounding shrinks with the unit roundoff, a bug does "
                        "not")  # fmt: skip
    parser.add_argument("--confirm", metavar="MODEL", help="compute every block again from each lane's own inputs, in "
                        "float64, and say whether the difference is still there; a checkpoint's name, a folder, a "
                        ".gguf file or a hub id. Needs torch")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where --confirm computes: cpu (default), cuda, cuda:1, ... or "
                        "auto")  # fmt: skip
    parser.add_argument("--attn", default="sdpa", choices=["sdpa", "eager"], help="attention implementation of "
                        "--confirm (default: %(default)s)")  # fmt: skip
    return parser


@command("drift.diagnose")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if any(len(text) < 3 for text in args.text):
        parser.error("--text takes three dumps at least: A, B and a floor of that text")
    from drift.reading.diagnose.showing import as_dict, page
    from drift.reading.diagnose.tensors import open_dump
    from drift.reading.diagnose.verdict import diagnose

    def opened(names: Sequence[str]) -> list[Dump]:
        """Dumps of one text: A's, B's, and floors, which are of A's kind."""
        forms = chain(args.forms, repeat(args.forms[0]))
        return [open_dump(name, args.heads, form, args.layers) for name, form in zip(names, forms, strict=False)]

    a, b, *floors = opened((args.a, args.b, *args.floor))
    other = opened(args.other_precision or ())
    texts = [opened(text) for text in args.text]
    found = diagnose(
        a,
        b,
        floor=floors,
        texts=[(text[0], text[1], text[2:]) for text in texts],
        unit_roundoff=args.unit_roundoff,
        other=(other[0], other[1]) if other else None,
    )
    if args.confirm is not None:
        from drift.reading.diagnose.confirming import computed_in, confirm
        from drift.running.checkpoints import loading
        from drift.running.confirming import Recomputer

        loaded = loading.load(args.confirm, computed_in(a), args.device, args.attn)
        confirm(found, Recomputer(loaded.model))
    print(json.dumps(as_dict(found), indent=1, allow_nan=False) if args.json else page(found))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
