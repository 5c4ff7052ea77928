"""What the tests of the sweep share: a tiny checkpoint, a text, and a process that forks sweeps."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from drift import dataset

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = (
    "the",
    "cache",
    "of",
    "a",
    "chunk",
    "is",
    "carried",
    "on",
    "to",
    "next",
    "and",
    "drift",
    "what",
    "that",
    "does",
)


def tiny_checkpoint(folder: Path, *, seed: int = 0, bos: bool = True) -> Path:
    """Save a random Llama (2 layers, hidden size 32, 128 tokens) and a tokenizer of single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # the usual 0.02 makes attention so even that nothing in it can be seen
        bos_token_id=1 if bos else None,
        eos_token_id=2,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(code): code for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    special = {"unk_token": "<unk>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def text_file(path: Path, characters: int = 4000, seed: int = 0) -> Path:
    """Write seeded prose of a sort."""
    draw = random.Random(seed)
    words: list[str] = []
    while sum(map(len, words)) + len(words) < characters:
        words.append(draw.choice(WORDS))
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def write_config(path: Path, **content: Any) -> Path:
    """Write a configuration, without controls and floors unless it says so: they take more than most folds."""
    if "grids" in content or "model" in content:
        content = {"controls": False, "floor_draws": 0} | content
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class Zygote:
    """A process that has torch imported and forks a sweep per request.

    Real processes, to be killed for real, without five seconds of imports each. It has run no operation of torch when
    it forks, so the children are as good as fresh.
    """

    _PROGRAM = """
import gc, json, os, signal, sys
import torch, transformers
import drift.dataset, drift.sweep as sweep, drift.running.checkpoints.loading, drift.running.tracing
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 - imported lazily
gc.collect(); gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 99
        try:
            code = sweep.main(request["argv"])
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    print(json.dumps({"pid": child}), flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}), flush=True)
"""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._count = 0
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=scratch,
        )

    def start(self, *argv: str) -> Run:
        """Start a sweep."""
        self._count += 1
        stdout, stderr = (self._scratch / f"{self._count}.{name}" for name in ("out", "err"))
        assert self._process.stdin
        assert self._process.stdout
        request = {"argv": argv, "stdout": str(stdout), "stderr": str(stderr)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Run(json.loads(self._process.stdout.readline())["pid"], self._process, stdout, stderr)

    def run(self, *argv: str) -> Run:
        """Run a sweep to its end."""
        started = self.start(*argv)
        started.wait()
        return started

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


class Run:
    """One sweep in a process of its own."""

    def __init__(self, pid: int, zygote: subprocess.Popen[str], stdout: Path, stderr: Path) -> None:
        self.pid, self._zygote, self._stdout, self._stderr = pid, zygote, stdout, stderr
        self.returncode: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> int:
        """``kill -9``."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit code, minus the signal if one ended it."""
        if self.returncode is None:
            assert self._zygote.stdout
            self.returncode = json.loads(self._zygote.stdout.readline())["returncode"]
        return self.returncode

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(encoding="utf-8") if self._stdout.exists() else ""

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8") if self._stderr.exists() else ""


@contextlib.contextmanager
def zygote(scratch: Path) -> Iterator[Zygote]:
    """A :class:`Zygote` that is closed at the end."""
    made = Zygote(scratch)
    try:
        yield made
    finally:
        made.close()


def cells(folder: Path) -> dict[str, tuple[int, int]]:
    """Cells of a folder: name to (inode, mtime in ns), which change whenever a cell is computed again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.nc"))}


def differences(a: Path, b: Path, names: Sequence[str]) -> list[str]:
    """Bitwise differences between the cells of two folders.

    The state of the source tree is left out: somebody may edit or commit while the tests run.
    """

    found = (d for name in names for d in dataset.same_data(dataset.read(a / name), dataset.read(b / name)))
    return [d for d in found if not d.startswith(("attribute git_commit", "attribute git_dirty"))]
