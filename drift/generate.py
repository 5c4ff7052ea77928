"""Fold a text and ask it something: ``python -m drift.generate --model NAME --prompt-file book.txt --question "..."``.

The text is folded into the cache chunk by chunk, as chunked prefill does it, under any protocol that can be run; the
answer is generated from that cache and appears as it comes. What it does, and what it costs: docs/fold.md.

The module can be called as well: ``drift.generate(model, tokenizer, text, question=...)`` is
:func:`drift.running.folding.generating.generate`, whichever of the two was imported first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from types import ModuleType
from typing import Any, TextIO

from drift._bounds import MOST_TEXT_BYTES
from drift._outside import OutsideError, read_bytes
from drift.boundary import command
from drift.dataset.rungs import RUNGS, rung_name
from drift.errors import ConfigError
from drift.paths import outside_path
from drift.running.model.numerics import HALF_MATMUL, default_half_matmul
from drift.shown import clipped

__all__ = ["main"]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.1  # at a line that is written over
_WEIGHTS = ("auto", "resident", "streamed")


class _Callable(ModuleType):
    """A module that is a function, too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See :func:`drift.running.folding.generating.generate`."""
        return import_module("drift.running.folding.generating").generate(*args, **kwargs)


if __name__ != "__main__":
    sys.modules[__name__].__class__ = _Callable


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.generate",
        description="Fold a text file into the cache of a model, chunk by chunk, and generate from it: an answer to a "
        "question, or how the text goes on. The answer goes to stdout as it comes, all else to stderr.",
        epilog="exit codes: 0 generated; 2 bad usage, or a model, text or machine that will not do; 130 interrupted.  "
        "what it does and what it costs: docs/fold.md.  example: python -m drift.generate --model "
        'qwen2.5-coder-0.5b-instruct --prompt-file book.txt --question "Who wrote the letter?"',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a checkpoint's name, a folder, a .gguf file, or a hub id")
    add("--prompt-file", required=True, metavar="FILE", help="the text, UTF-8; - reads standard input")
    add("--question", metavar="TEXT", help="what is put behind the text (default: the text is gone on with)")
    add("--chunk-size", type=int, default=256, metavar="N", help="tokens per chunk (default: %(default)s)")
    add("--protocol", default="append", help="reading of the fold; full takes the text in one pass "
        "(default: %(default)s)")  # fmt: skip
    add("--max-new-tokens", type=int, default=64, metavar="N", help="length of the answer (default: %(default)s)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the most likely token (default)")
    add("--seed", type=int, default=0, metavar="N", help="which random numbers, above temperature 0 "
        "(default: %(default)s)")  # fmt: skip
    add("--no-chat", action="store_true", help="leave the tokenizer's chat template out")
    add("--dtype", default="bf16", type=rung_name, choices=list(RUNGS), help="precision (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto (default: a GPU where there is one)")
    add("--attn", default="sdpa", choices=["sdpa", "eager"], help="attention implementation (default: %(default)s)")
    add("--half-matmul", choices=HALF_MATMUL, help="16-bit products on a CPU (default: native, or float32 where the "
        "processor has no 16-bit instructions)")  # fmt: skip
    add("--weights", default="auto", choices=_WEIGHTS, help="resident in memory, or streamed: read block by block "
        "for every chunk and token (default: streamed only where they do not fit)")  # fmt: skip
    add("--allow-beyond-context", action="store_true", help="positions past the length that the model was made for")
    add("--json", action="store_true", help="a JSON object on stdout in place of the answer's text")
    return parser


def _read(given: str) -> str:
    """The text of a file, or of standard input."""
    shown = f"--prompt-file {clipped(given)}"
    try:
        if given == "-":
            raw = sys.stdin.buffer.read(MOST_TEXT_BYTES + 1)
            if len(raw) > MOST_TEXT_BYTES:
                raise OutsideError(f"more than {MOST_TEXT_BYTES:,} bytes long, which is the most that is read")
        else:
            raw = read_bytes(outside_path(given, said="--prompt-file"), MOST_TEXT_BYTES)
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{shown}: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: is not UTF-8 text ({error}). Convert it first.") from None
    except OutsideError as error:
        raise ConfigError(f"{shown}: cannot be read ({error}).") from None
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read ({error.strerror or error}).") from None
    if not text.strip():
        raise ConfigError(f"{shown}: is empty: there is nothing to fold.")
    return text


class _Progress:
    """Says how far the fold is: over and over in one line of a terminal, now and then elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._told = time.monotonic()
        self._seconds = 0.0
        self._width = 0  # of the line that stands there

    def step(self, step: Any, left: int) -> None:
        """Take note of a chain step."""
        self._seconds += step.seconds
        now = time.monotonic()
        if left and now - self._told < (_SECONDS_BETWEEN_LOOKS if self._live else _SECONDS_BETWEEN_LINES):
            return
        self._told = now
        line = (
            f"chunk {step.chunk.step + 1} of {step.chunk.step + 1 + left}, {step.chunk.stop} tokens, "
            f"{self._seconds:.0f} s, {step.carried_bytes / 1e6:.0f} MB carried"
        )
        if self._live:
            print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
            self._width = len(line)
        else:
            print(line, file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0


@command("drift.generate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.chunk_size < 1:
        raise ConfigError(f"--chunk-size {args.chunk_size}: it must be at least 1 (for one pass: --protocol full).")
    text = _read(args.prompt_file)
    from drift.running.checkpoints import loading, shapes
    from drift.running.folding import generating, meters, sizing
    from drift.running.protocols import parse
    from drift.running.protocols.runnable import check_runnable
    from drift.running.sweep.memory import ITEM_BYTES, free

    # What is wrong with the words of the command is said before gigabytes are read.
    reading = parse(args.protocol)
    check_runnable(reading)
    progress, kept = _Progress(sys.stderr), args.weights
    with (
        meters.memory_of_the_device(),
        redirect_stdout(sys.stderr),
    ):  # what libraries print must not mix with the answer
        if kept == "auto":
            slots = reading.slots(0, len(text) // sizing.CHARACTERS_PER_TOKEN, args.chunk_size)
            on_gpu = None if args.device == "cpu" else free("cuda")
            room = free("cpu") if on_gpu is None else on_gpu
            shape = shapes.shape(args.model)
            needs = None if shape is None else sizing.Needs.of(shape, ITEM_BYTES[args.dtype], slots)
            kept = sizing.weights_kept(needs, room)
        loaded = loading.load(args.model, args.dtype, args.device, args.attn, kept)
    try:
        with meters.memory_of_the_device():
            answer = generating.generate(
                loaded.model,
                loaded.tokenizer,
                text,
                question=args.question,
                chunk_size=args.chunk_size,
                protocol=args.protocol,
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                seed=args.seed,
                chat=False if args.no_chat else None,
                dtype=args.dtype,
                half_matmul=args.half_matmul or default_half_matmul(loaded.record["device"]),
                allow_beyond_context=args.allow_beyond_context,
                on_step=progress.step,
                on_token=None if args.json else lambda token, piece: _show(piece, progress),
            )
    finally:
        progress.end()
    if args.json:
        print(json.dumps({**answer.as_dict(), "model": loaded.record}, indent=1, allow_nan=False))
    else:
        print(flush=True)
    _say_cost(answer, kept)
    return 0


def _show(piece: str, progress: _Progress) -> None:
    progress.end()
    print(piece, end="", flush=True)


def _say_cost(answer: Any, kept: str) -> None:
    """Say what an answer took, and whether it means anything."""
    cost, fold = answer.cost(), answer.prefill
    whose = "on the device" if fold.device.type == "cuda" else "of the process"
    print(
        f"folded {fold.text_tokens} tokens in {len(fold.steps)} chunks: {cost['fold_seconds']:.1f} s; question of "
        f"{answer.question_tokens} tokens: {cost['question_seconds']:.1f} s; answer of {len(answer.tokens)} tokens: "
        f"{cost['answer_seconds']:.1f} s\ncache {cost['cache_bytes'] / 1e6:.0f} MB; peak memory {whose} "
        f"{cost['peak_bytes'] / 1e6:.0f} MB; weights {kept}",
        file=sys.stderr,
    )
    if answer.nonfinite:
        print(f"{answer.nonfinite} scores were NaN or infinite: the answer means nothing there.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
