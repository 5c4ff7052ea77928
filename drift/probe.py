"""``python -m drift.probe --endpoint URL``: does a server that is running compute the same, however it is asked?

The same prompts are asked cold, with their prefix cached, again, and in batches with others; their log-probabilities
are compared. Nothing is sent anywhere but to the endpoint, and no more than was planned.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from drift._bounds import MOST_GENERATED, MOST_PARAMETER_BYTES, MOST_PROMPT, MOST_PROMPTS, MOST_REPEATS
from drift._command_lines import above_zero
from drift._outside import Form, OutsideError, parse_json
from drift.boundary import command
from drift.dataset.rungs import RUNGS, rung_name
from drift.errors import ConfigError
from drift.paths import outside_path
from drift.shown import clipped, printable
from drift.writing import write_whole

__all__ = ["main"]

_LANES = ("warm", "shared", "batch")
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECONDS_BETWEEN_LINES = 10.0


def _between(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least:,} to {most:,}")
        return value

    return whole


def _lane_names(text: str) -> frozenset[str]:
    names = frozenset(filter(None, text.split(",")))
    if wrong := names - set(_LANES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(wrong))}: the lanes are {', '.join(_LANES)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.probe",
        description="Ask a running server (llama.cpp, vLLM, SGLang, or any that speaks OpenAI's protocol) the same "
        "prompts cold, with their prefix cached, again, and in batches, and say whether the log-probabilities differ "
        "by more than rounding.",
        epilog="exit codes: 0 all pairs are the same bits or within a floor; 1 some are beyond it; 2 bad usage, or a "
        "server that cannot be asked; 3 none is beyond, but some are undetermined; 130 interrupted.  what is asked and "
        "how it is judged: docs/probe.md.  examples: python -m drift.probe --endpoint http://127.0.0.1:8080/v1;  "
        "python -m drift.probe --endpoint http://127.0.0.1:8000/v1 --junit probe.xml --out probe.html",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--endpoint", required=True, metavar="URL", help="such as http://127.0.0.1:8080/v1")
    add("--model", default="", metavar="NAME", help="a model of the server (default: the only one it has)")
    add("--api-key-env", default="", metavar="NAME", help="variable of the environment that holds the API key "
        "(default: none is sent)")  # fmt: skip
    add("--prompts", type=_between(1, MOST_PROMPTS), default=16, metavar="N", help="prompts (default: %(default)s)")
    add("--characters", type=_between(64, MOST_PROMPT), default=1200, metavar="N", help="of a prompt "
        "(default: %(default)s)")  # fmt: skip
    add("--tokens", type=_between(1, MOST_GENERATED), default=32, metavar="N", help="generated per prompt "
        "(default: %(default)s)")  # fmt: skip
    add("--repeats", type=_between(0, MOST_REPEATS), default=2, metavar="N", help="how often the cold prompts "
        "are asked again (default: %(default)s)")  # fmt: skip
    add("--lanes", type=_lane_names, default=frozenset(_LANES), metavar="LIST", help=f"what is asked beside: any of "
        f"{','.join(_LANES)} (default: all)")  # fmt: skip
    add(
        "--text",
        default="pydoc",
        metavar="FILE",
        help="what the prompts are cut from (default: Python's own help topics)",
    )
    add("--nonce", default="", metavar="LETTERS", help="what the prompts begin with is made of it (default: drawn)")
    add("--anew", default="", metavar="JSON", help="fields of a request that make the server compute a prompt anew, "
        "for servers that are not known here, such as '{\"no_cache\": true}'; {salt} in a text becomes letters that "
        "were not used before")  # fmt: skip
    add("--against", default="", metavar="MODEL", help="the same tokens in transformers: a checkpoint's name, a "
        "folder, a .gguf file, or a hub id")  # fmt: skip
    add(
        "--dtype",
        type=rung_name,
        default="fp32",
        choices=list(RUNGS),
        help="precision of that model (default: %(default)s)",
    )
    add("--floor-dtype", type=rung_name, default="bf16", choices=list(RUNGS), help="and the precision whose distance "
        "from it is the floor (default: %(default)s)")  # fmt: skip
    add("--device", default="cpu", help="where that model runs: cpu, cuda, ... or auto (default: %(default)s)")
    seconds = above_zero("number of seconds")
    add("--timeout", type=seconds, default=120.0, metavar="S", help="seconds for one request (default: %(default)g)")
    add("--seconds", type=seconds, default=1800.0, metavar="S", help="seconds for all of them (default: %(default)g)")
    add("--json", action="store_true", help="a JSON object on stdout instead of the page")
    add("--junit", metavar="FILE", help="JUnit XML, a test case per pair")
    add("--out", metavar="FILE", help="the page as HTML")
    return parser


class _Progress:
    """Says how far it is: over and over in one line of a terminal, now and then elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._told = -math.inf
        self._width = 0

    def line(self, text: str) -> None:
        """Say one thing."""
        now = time.monotonic()
        if self._live:
            print("\r" + printable(text).ljust(self._width), end="", file=self._stream, flush=True)
            self._width = len(printable(text))
        elif now - self._told >= _SECONDS_BETWEEN_LINES:
            print(printable(text), file=self._stream, flush=True)
            self._told = now

    def end(self) -> None:
        """Leave the line."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0


def _key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"--api-key-env {clipped(name)}: the environment has no such variable, or it is empty.")
    return key


def _anew(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        found: dict[str, Any] = parse_json(text, Form.OBJECT, MOST_PARAMETER_BYTES)
    except OutsideError as error:
        raise ConfigError(f"--anew: {error}. A JSON object is wanted, such as '{{\"no_cache\": true}}'.") from error
    return found


def _target(given: str | None, said: str) -> Path | None:
    """Where a file goes; whether it can is found out before anything is asked."""
    if given is None:
        return None
    path = outside_path(given, said=said)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{said} {clipped(given)}: names a folder, or a file in a folder that is not there.")
    return path


@command("drift.probe")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    nonce = args.nonce or secrets.token_hex(8)
    if not _NONCE.fullmatch(nonce):
        raise ConfigError(f"--nonce {clipped(nonce)}: up to 64 letters, digits, - and _ are wanted.")
    key, anew = _key(args.api_key_env), _anew(args.anew)
    junit_file, page_file = _target(args.junit, "--junit"), _target(args.out, "--out")
    from drift.reading import probing as judged
    from drift.running.probing import asking, prompts, servers
    from drift.running.probing.client import Client, Limits

    tokenizer = None
    progress = _Progress(sys.stderr)
    with redirect_stdout(sys.stderr):  # what libraries print must not mix with what is found
        if args.against:
            from drift.running.probing import scoring

            model = scoring.load(args.against, args.dtype, args.device)
            tokenizer = model.tokenizer
        made = prompts.prompts(args.text, nonce, args.prompts, args.characters, tokenizer)
        plan = asking.Plan(made, nonce, args.tokens, args.repeats, frozenset(map(asking.Lane, args.lanes)))
        limits = Limits(plan.most_requests, args.timeout, args.seconds)
        try:
            with Client(args.endpoint, key, limits) as client:
                server = servers.recognise(client, args.model, anew)
                probe = asking.ask(client, server, plan, progress.line)
            if args.against:
                probe = scoring.with_model(probe, made, model)
                if args.floor_dtype != args.dtype:
                    progress.line(f"{args.against} in {args.floor_dtype}")
                    model = scoring.load(args.against, args.floor_dtype, args.device)
                    probe = scoring.with_model(probe, made, model)
        finally:
            progress.end()
    found = judged.judge(probe)
    if junit_file is not None:
        write_whole(junit_file, judged.junit(found))
    if page_file is not None:
        from drift.reading.report.pages import whole_page

        write_whole(page_file, whole_page("drift.probe", judged.body(found), [], "").encode())
    print(json.dumps(judged.as_dict(found), indent=1, allow_nan=False) if args.json else judged.page(found))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
