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
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from drift.boundary import command
from drift.dataset.rungs import RUNGS
from drift.errors import ConfigError, DriftError
from drift.running.model.numerics import HALF_MATMUL, default_half_matmul

__all__ = ["main"]

_SECONDS_BETWEEN_LINES = 10.0
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
    add("--dtype", default="bf16", choices=list(RUNGS), help="precision (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto (default: a GPU where there is one)")
    add("--attn", default="sdpa", choices=["sdpa", "eager"], help="attention implementation (default: %(default)s)")
    add("--half-matmul", choices=HALF_MATMUL, help="16-bit products on a CPU (default: native, or float32 where the "
        "processor has no 16-bit instructions)")  # fmt: skip
    add("--weights", default="auto", choices=_WEIGHTS, help="resident in memory, or streamed: read block by block "
        "for every chunk and token (default: streamed only where they do not fit)")  # fmt: skip
    add("--allow-beyond-context", action="store_true", help="positions past the length that the model was made for")
    add("--json", action="store_true", help="a JSON object on stdout in place of the answer's text")
    return parser


def _read(path: str) -> str:
    """The text of a file, or of standard input."""
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--prompt-file {path}: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt-file {path}: is not UTF-8 text ({error}). Convert it first.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--prompt-file {path}: cannot be read ({why}).") from None
    if not text.strip():
        raise ConfigError(f"--prompt-file {path}: is empty: there is nothing to fold.")
    return text


class _Progress:
    """Says how far the fold is: over and over in one line of a terminal, now and then elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._told = time.monotonic()
        self._seconds = 0.0
        self._open = False

    def step(self, step: Any, left: int) -> None:
        """Take note of a chain step."""
        self._seconds += step.seconds
        now = time.monotonic()
        if left and now - self._told < (0.1 if self._live else _SECONDS_BETWEEN_LINES):
            return
        self._told = now
        line = (
            f"chunk {step.chunk.step + 1} of {step.chunk.step + 1 + left}, {step.chunk.stop} tokens, "
            f"{self._seconds:.0f} s, {step.carried_bytes / 1e6:.0f} MB carried"
        )
        self._open = self._live
        print(f"\r{line}\033[K" if self._live else line, end="" if self._live else "\n", file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._open:
            print(file=self._stream, flush=True)
            self._open = False


@command("drift.generate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    progress = _Progress(sys.stderr)
    try:
        if args.chunk_size < 1:
            raise ConfigError(f"--chunk-size {args.chunk_size}: it must be at least 1 (for one pass: --protocol full).")
        text = _read(args.prompt_file)
        from drift.running.checkpoints import loading, shapes
        from drift.running.folding import folded, generating, sizing
        from drift.running.protocols import parse
        from drift.running.sweep.memory import ITEM_BYTES, RUNTIME_BYTES, free

        # What is wrong with the words of the command is said before gigabytes are read.
        reading = parse(args.protocol)
        folded.check_runnable(reading)
        with redirect_stdout(sys.stderr):  # whatever libraries print must not mix with the answer
            shape, kept = shapes.shape(args.model), args.weights
            if kept == "auto":
                slots = reading.slots(0, len(text) // sizing.CHARACTERS_PER_TOKEN, args.chunk_size)
                needs = None if shape is None else sizing.Needs.of(shape, ITEM_BYTES[args.dtype], slots)
                on_gpu = None if args.device == "cpu" else free("cuda")
                room = (free("cpu") or 0) - RUNTIME_BYTES if on_gpu is None else on_gpu
                kept = sizing.weights_kept(needs, room, kept)
            loaded = loading.load(args.model, args.dtype, args.device, args.attn, kept)
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
    except DriftError as error:
        progress.end()
        print(f"drift.generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.end()
        print("interrupted", file=sys.stderr)
        return 130
    progress.end()
    if args.json:
        print(json.dumps({**answer.as_dict(), "model": loaded.record}, indent=1, allow_nan=False))
    else:
        print(flush=True)
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
    return 0


def _show(piece: str, progress: _Progress) -> None:
    progress.end()
    print(piece, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
