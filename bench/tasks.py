"""A task, asked of full attention and of folds: ``python bench/tasks.py --task needle --tokens 512 1024``.

Prints a row per answer and a summary per lane and length; ``--out FILE`` writes all of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drift
from drift.running.model.numerics import default_half_matmul
from drift.running.tasks.taking import Row, Taken

MODEL = "qwen2.5-coder-0.5b-instruct"


def line(row: Row) -> str:
    """What one lane made of one question."""
    answer = row.answer
    found = "exact" if answer.exact else f"{answer.score:.2f}"
    text = "" if row.first_difference is None else f", other text from token {row.first_difference}"
    far = "/".join(map(str, row.distances))
    return (
        f"  text {row.document} question {row.question}  {row.protocol:<24} {far:>6} chunks  "
        f"{found:<6} {answer.log_likelihood:8.3f} nats  rank {answer.rank}  {answer.text.strip()!r}{text}"
    )


def report(taken: Taken, seconds: float) -> None:
    """Print the summary of a length."""
    for protocol in taken.protocols:
        s = taken.summary(protocol)
        print(
            f"{taken.quiz.length} tokens, {protocol}: {s['exact']} of {s['questions']} exact, score {s['score']:.2f}, "
            f"{s['log_likelihood']:.3f} nats ({s['log_likelihood_change']:+.3f} against full attention), same text in "
            f"{s['same_text']}, wrong answer less likely in {s['others_lower']}"
        )
    controls = taken.controls
    if controls is not None:
        print(
            f"{taken.quiz.length} tokens, controls: found without facts {controls.found_without} of "
            f"{len(controls.without)}; full attention twice the same: {controls.again_same}"
        )
    print(f"{taken.quiz.length} tokens: {seconds:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=MODEL)
    add("--task", default="needle", help="a label: needle(keys=4), tracking(chains=2,hops=3), ...")
    add("--tokens", type=int, nargs="+", default=[512, 1024])
    add("--chunk-size", type=int, default=64)
    add("--protocols", nargs="*", default=["append"])
    add("--documents", type=int, default=4)
    add("--questions", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--dtype", default="bf16")
    add("--no-controls", action="store_true")
    add("--out", type=Path)
    args = parser.parse_args(argv)
    model, tokenizer = drift.load_model(args.model, dtype=args.dtype)
    kept: list[dict[str, Any]] = []
    for tokens in args.tokens:
        started = time.perf_counter()
        taken = drift.take_quiz(
            model,
            tokenizer,
            args.task,
            tokens,
            protocols=args.protocols,
            chunk_size=args.chunk_size,
            documents=args.documents,
            questions=args.questions,
            seed=args.seed,
            controls=not args.no_controls,
            half_matmul=default_half_matmul("cpu"),
            on_row=lambda row: print(line(row), flush=True),
        )
        report(taken, time.perf_counter() - started)
        kept.append({"model": args.model, "dtype": args.dtype, **taken.as_dict()})
    if args.out is not None:
        args.out.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
