"""One lane of a model, written out for :mod:`drift.reading.diagnose`: ``python -m drift.capture MODEL --out FOLDER``.

The folder holds one safetensors file per layer, and one per stretch of logits, with the tensors named as
docs/diagnose.md says. Weights and activations are those of the descent, which is bit for bit a plain transformers loop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from drift.boundary import command
from drift.dataset.dumps import LOGITS
from drift.dataset.rungs import RUNGS, rung_name
from drift.running.model.numerics import HALF_MATMUL, default_half_matmul

__all__ = ["main"]


# ---------------------------------------------------------------------------------------------- command line
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.capture",
        description="Run one lane of a model and write its hidden states, keys, values and logits, for "
        "python -m drift.diagnose to compare.",
        epilog="exit codes: 0 written, 2 bad usage or an unusable model, text or folder (then nothing is written).  "
        "example: python -m drift.capture smollm2-135m-instruct --full --out full; "
        "python -m drift.capture smollm2-135m-instruct --chunk-size 64 --out chunked; "
        "python -m drift.diagnose full chunked",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's name, a folder, a .gguf file, or a hub id")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or empty folder")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--chunk-size", type=int, default=64, metavar="N", help="tokens per chunk, 0 for full attention "
                     "(default: %(default)s)")  # fmt: skip
    cut.add_argument("--full", action="store_const", const=0, dest="chunk_size", help="full attention: one chunk")
    parser.add_argument("--protocol", default="append", help="reading of the fold (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=512, metavar="N", help="length of the text (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", default="bf16", type=rung_name, choices=list(RUNGS), help="precision (default: %(default)s)"
    )
    parser.add_argument("--corpus", default="pydoc", help="pydoc (default), stdlib, random, repeat, file:PATH or "
                        "hub:DATASET")  # fmt: skip
    parser.add_argument("--attn", default="sdpa", choices=["sdpa", "eager"], help="attention implementation "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ... or auto")
    parser.add_argument("--half-matmul", choices=HALF_MATMUL, help="16-bit products on a CPU (default: as a sweep has "
                        "them: native, or float32 where the processor has no 16-bit instructions)")  # fmt: skip
    parser.add_argument("--logits", default="all", choices=LOGITS, help="of all tokens (default), of the last one of "
                        "each chunk, or none")  # fmt: skip
    parser.add_argument("--cache", action="store_true", help="also what each cache holds after each step")
    return parser


@command("drift.capture")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    from drift.running import corpus
    from drift.running.capturing import capture, free_target
    from drift.running.checkpoints import loading

    free_target(args.out)
    loaded = loading.load(args.model, args.dtype, args.device, args.attn)
    ids = corpus.documents(args.corpus, loaded.tokenizer, 1, args.tokens)
    target = capture(
        loaded.model,
        ids,
        args.chunk_size,
        args.protocol,
        args.out,
        cache=args.cache,
        logits=args.logits,
        dtype=args.dtype,
        half_matmul=args.half_matmul or default_half_matmul(loaded.record["device"]),
        bos_token_id=loaded.tokenizer.bos_token_id,
        attrs={
            "model": loaded.record["label"],
            "checkpoint_sha256": loaded.record["identity"],
            "corpus": args.corpus,
        },
    )
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{args.out}: {len(list(target.iterdir()))} files, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
