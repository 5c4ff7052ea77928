"""Which planted bugs does `drift.diagnose` find, and which clean pairs does it accuse?

    python bench/bugs.py                                          # everything; stopped, it goes on where it was
    python bench/bugs.py --quick                                  # one checkpoint, bf16, one short text: a look
    python bench/bugs.py --only scale_5 window clean              # some bugs, or the clean pairs
    python bench/bugs.py --model smollm2-135m-instruct --dtype bf16

A is full attention, B the same text in chunks with a bug of bench/planting.py, or clean in another way. Each is judged
alone (one text), alone with what the caches hold, and against a floor: A with noise of one unit roundoff on its
embeddings, two draws, several texts. Writes bench/results/bugs.json after every bug, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from planting import BUGS, Bug, Loop, Tensors, lane
from safetensors.torch import save_file

from drift.dataset.rungs import Rung, rung
from drift.reading.diagnose import Diagnosis, Dump, Verdict, diagnose, open_dump
from drift.reading.diagnose.compare import Comparison, compare
from drift.running import corpus
from drift.running.checkpoints import loading
from drift.running.model.numerics import default_half_matmul, numerics

RESULTS = Path(__file__).resolve().parent / "results" / "bugs.json"
MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
DTYPES = ("bf16", "fp32")
MODES = ("alone", "alone, cache dumped", "floor")
TEXTS, CLEAN_TEXTS, TOKENS, CHUNK, DRAWS = 3, 5, 384, 64, 2
NEAR = 3
"""Blocks that the floor may locate a bug above where it is: below, rounding of that size hides it."""


@dataclass
class Setting:
    """A model, its texts, and the dumps of A and its floor, written when they are first needed."""

    model: Any
    rung: Rung
    texts: Sequence[torch.Tensor]
    chunk: int
    folder: Path
    half: str = "native"
    _lanes: dict[int, Dump] = field(default_factory=dict)
    _floors: dict[int, list[Comparison]] = field(default_factory=dict)

    def written(self, name: str, tensors: Tensors) -> Dump:
        """Write a lane and open it."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        metadata = {"dtype": self.rung.name, "experts": "0"}
        save_file({key: x.clone().contiguous() for key, x in tensors.items()}, place / "lane.safetensors", metadata)
        return open_dump(place)

    def run(self, text: int, chunk: int = 0, loop: Loop | None = None, **options: Any) -> Tensors:
        """Run one lane."""
        with numerics(self.rung, "cpu", self.half):
            return lane(self.model, self.texts[text], chunk, loop, **options)

    def full(self, text: int) -> Dump:
        """A."""
        if text not in self._lanes:
            self._lanes[text] = self.written(f"a{text}", self.run(text))
        return self._lanes[text]

    def floor(self, text: int) -> list[Comparison]:
        """A with noise on its embeddings, compared with A once for all bugs."""
        if text not in self._floors:
            noises = [(self.rung.unit_roundoff, seed) for seed in range(1, DRAWS + 1)]
            lanes = [self.written(f"c{text}-{noise[1]}", self.run(text, noise=noise)) for noise in noises]
            self._floors[text] = [compare(self.full(text), one) for one in lanes]
        return self._floors[text]

    def judged(self, lanes: Callable[[int, bool], Tensors], mode: str, texts: Sequence[int]) -> Diagnosis:
        """Write B of some texts, and compare."""
        cached = mode == "alone, cache dumped"
        used = texts if mode == "floor" else texts[:1]
        b = [self.written(f"b{text}", lanes(text, cached)) for text in used]
        if mode != "floor":
            return diagnose(self.full(used[0]), b[0])
        (first, own, floor), *more = [(self.full(text), b[place], self.floor(text)) for place, text in enumerate(used)]
        return diagnose(first, own, floor=floor, texts=more)


def outcome(bug: Bug, found: Diagnosis, block: int) -> str:
    """What became of a bug: named right, located right, undetermined, missed, or misplaced."""
    if found.verdict is Verdict.UNDETERMINED:
        return "undetermined"
    entry = found.entry
    if found.verdict not in (Verdict.STRUCTURAL, Verdict.NARROWER) or entry is None:
        return "missed"
    if entry.step_b != bug.step:
        return "misplaced"
    if found.cause.value in bug.names:
        return "named right"
    # What the floor finds, it finds in a block's output, or in the blocks above it.
    by_floor = bool(found.excess) and entry.place.kind == "hidden"
    near = 0 <= entry.place.block - block <= (NEAR if by_floor else 0)
    return "located right" if near and (by_floor or entry.place.kind in bug.kinds) else "misplaced"


def cleanly(found: Diagnosis) -> str:
    """What became of a clean pair."""
    if found.verdict in (Verdict.STRUCTURAL, Verdict.NARROWER):
        return "accused"
    return found.verdict.value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _compiled(model: Any) -> Iterator[None]:
    blocks = [block.mlp for block in model.get_decoder().layers]
    try:
        for mlp in blocks:
            mlp.forward = torch.compile(mlp.forward, dynamic=True)
        yield
    finally:
        for mlp in blocks:
            del mlp.forward
        torch.compiler.reset()


@dataclass(frozen=True)
class Clean:
    """An equally right way to compute: chunk size (0 is full attention), texts at once, and what surrounds the lane."""

    chunk: int | None = None
    batch: int = 1
    around: Callable[[Any], AbstractContextManager[None]] = lambda model: nullcontext()
    accumulation: str = ""


CLEAN = {
    "chunked": Clean(),
    "other chunks": Clean(48),
    "large chunks": Clean(160),
    "chunked, batch 4": Clean(batch=4),
    "full, batch 4": Clean(0, batch=4),
    "chunked, eager": Clean(around=lambda model: _attention(model, "eager")),
    "full, eager": Clean(0, around=lambda model: _attention(model, "eager")),
    "chunked, flex": Clean(around=lambda model: _attention(model, "flex_attention")),
    "chunked, compiled": Clean(around=_compiled),
    "chunked, 2 threads": Clean(around=lambda model: _threads(2)),
    "chunked, other accumulation": Clean(accumulation="other"),
}


def clean_lane(setting: Setting, how: Clean, text: int, cache: bool) -> Tensors:
    """Run a clean lane."""
    half = setting.half
    if how.accumulation:
        half = "native" if half == "float32" else "float32"
    chunk = setting.chunk if how.chunk is None else how.chunk
    with how.around(setting.model), numerics(setting.rung, "cpu", half):
        return lane(setting.model, setting.texts[text], chunk, cache=cache, batch=how.batch)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def row(found: Diagnosis, what: str, seconds: float) -> dict[str, Any]:
    """What is kept of a diagnosis."""
    entry = found.entry
    return {
        "outcome": what,
        "verdict": found.verdict.value,
        "cause": found.cause.value,
        "kind": None if entry is None else entry.place.kind,
        "block": None if entry is None else entry.place.block,
        "step": None if entry is None else entry.step_b,
        "could_hide": _finite(found.could_hide),
        "largest_excess": _finite(max((x.ratio for x in found.excess if x.trusted and x.start == 0), default=None)),
        "seconds": round(seconds, 1),
    }


def bug_rows(setting: Setting, bug: Bug, texts: Sequence[int], modes: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Judge a bug in every mode."""
    loop = bug.loop(setting.model)
    if loop is None:
        return
    for mode in modes:
        began = time.perf_counter()
        found = setting.judged(lambda text, cache: setting.run(text, setting.chunk, loop, cache=cache), mode, texts)
        yield mode, row(found, outcome(bug, found, bug.at(setting.model)), time.perf_counter() - began)


def clean_rows(setting: Setting, name: str, text: int, modes: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Judge a clean pair in every mode."""
    for mode in modes:
        began = time.perf_counter()
        try:
            found = setting.judged(lambda t, cache: clean_lane(setting, CLEAN[name], t, cache), mode, [text])
        except (RuntimeError, ValueError, ImportError, TypeError) as error:
            yield mode, {"outcome": "not available", "reason": str(error).splitlines()[0][:200]}
            continue
        yield mode, row(found, cleanly(found), time.perf_counter() - began)


def _work(setting: Setting, key: str, only: Sequence[str], quick: bool, done: dict[str, Any]) -> Iterator[None]:
    """Judge what is not yet done of a model and a precision; yield when there is something to write."""
    texts = list(range(TEXTS if len(setting.texts) >= TEXTS else len(setting.texts)))
    for bug in BUGS:
        if only and bug.name not in only:
            continue
        modes = [mode for mode in MODES if f"{key} | {bug.name} | {mode}" not in done]
        for mode, result in bug_rows(setting, bug, texts, modes):
            done[f"{key} | {bug.name} | {mode}"] = result
            print(f"{key} | {bug.name} | {mode}: {result['outcome']}", flush=True)
        yield
    if only and "clean" not in only:
        return
    for name in CLEAN:
        for text in range(1 if quick else len(setting.texts)):
            what = f"clean: {name}, text {text}"
            modes = [mode for mode in ("alone", "floor") if f"{key} | {what} | {mode}" not in done]
            for mode, result in clean_rows(setting, name, text, modes):
                done[f"{key} | {what} | {mode}"] = result
                print(f"{key} | {what} | {mode}: {result['outcome']}", flush=True)
            yield


def table(done: dict[str, Any]) -> list[str]:
    """Outcomes by precision and mode."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for key, result in done.items():
        _, dtype, name, mode = key.split(" | ")
        kind = "clean" if name.startswith("clean: ") else "bugs"
        counts.setdefault((kind, dtype, mode), Counter())[result["outcome"]] += 1
    return [
        f"{kind}, {dtype}, {mode}: " + ", ".join(f"{n} {what}" for what, n in sorted(count.items()))
        for (kind, dtype, mode), count in sorted(counts.items())
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python bench/bugs.py", description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="bugs by name, or clean")
    parser.add_argument("--quick", action="store_true", help="one checkpoint, bf16, one text of 320 tokens")
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--out", type=Path, help="default: bench/results/bugs.json; nothing is kept of --quick")
    args = parser.parse_args(argv)
    # Rows of a look are of shorter texts: the whole run must not take them for its own.
    out = args.out or (None if args.quick else RESULTS)
    models, dtypes = (args.model[:1], args.dtype[:1]) if args.quick else (args.model, args.dtype)
    count, tokens = (1, 320) if args.quick else (CLEAN_TEXTS, TOKENS)
    done = json.loads(out.read_text(encoding="utf-8"))["rows"] if out is not None and out.exists() else {}
    record = {"command": "python bench/bugs.py", "tokens": tokens, "chunk": CHUNK, "draws": DRAWS, "rows": done}
    for model in models:
        for dtype in dtypes:
            loaded = loading.load(model, dtype)
            ids = corpus.documents("pydoc", loaded.tokenizer, count, tokens)
            folder = Path(tempfile.mkdtemp(prefix="drift-bugs-"))
            setting = Setting(
                loaded.model, rung(dtype), [torch.from_numpy(x) for x in ids], CHUNK, folder, default_half_matmul("cpu")
            )
            try:
                for _ in _work(setting, f"{model} | {dtype}", args.only, args.quick, done):
                    if out is not None:
                        out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(table(done)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
