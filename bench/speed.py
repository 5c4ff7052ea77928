"""Cost of a recorded descent against a bare pass, and against the naive way to the same numbers.

Three ways, each in processes of its own, taken in turns so that whatever else the machine does falls on all alike:

bare    one plain full-attention forward and one plain transformers loop per chunk size; nothing is recorded
naive   per chunk size: a forward with hidden states, the loop with hidden states, then the comparison
drift   one descent of full attention and all folds, everything recorded: what `python -m drift.sweep` runs

Logits are computed for every ``--logit-stride``-th token in `bare` and `drift` alike; the naive way has them all.
The ratio that counts is that of CPU times, from after loading to the last number, medians over ``--runs``. Memory is
the largest resident set less what was resident before the pass, in runs with one malloc arena and a fixed threshold, so
that freed memory is gone. The numbers of `naive` and `drift` are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import drift
from drift.dataset.rungs import rung
from drift.running import corpus
from drift.running.model.numerics import default_half_matmul, numerics
from drift.running.recording import Comparison, DocumentRecorder
from drift.running.sweep.memory import give_back, resident_bytes

WAYS = ("bare", "naive", "drift")
Arrays = dict[str, Any]


# ---------------------------------------------------------------- one way, in a process of its own


def _plain(model: Any, ids: Any, size: int, stride: int, note: Callable[[Any, Any], None] | None, every: bool) -> None:
    """A plain transformers loop over chunks of `size`, or one forward if that is the whole text."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        rows = torch.arange(start, start + len(chunk))
        options: dict[str, Any] = {"output_hidden_states": note is not None}
        if stride > 1 and not every:
            options["logits_to_keep"] = (rows % stride == 0).nonzero()[:, 0]
        out = model(chunk[None], past_key_values=cache, use_cache=True, **options)
        if note is not None:
            note(rows, out)
    if note is not None:
        note(None, cache)


class _Noted:
    """Everything that a plain pass gives: hidden states of all layers, logits, keys and values."""

    def __init__(self) -> None:
        self.states: list[Any] = []
        self.logits: list[Any] = []
        self.cache: Any = None

    def __call__(self, rows: Any, out: Any) -> None:
        if rows is None:
            self.cache = out
            return
        self.states.append([layer[0] for layer in out.hidden_states])
        self.logits.append(out.logits[0])


def _bare(model: Any, ids: Any, sizes: list[int], stride: int) -> None:
    for size in (len(ids), *sizes):
        _plain(model, ids, size, stride, None, False)


def _naive(model: Any, ids: Any, sizes: list[int], stride: int) -> dict[int, Arrays]:
    """The numbers of each chunk size, from whole passes held in memory, by drift's own measures."""
    import torch

    found = {}
    for size in sizes:
        lanes = [_Noted(), _Noted()]
        _plain(model, ids, len(ids), stride, lanes[0], True)
        _plain(model, ids, size, stride, lanes[1], True)
        recorder = DocumentRecorder(ids, [Comparison(1, 0, tuple(range(0, len(ids), size)))], stride)
        depth = len(lanes[0].states[0]) - 1
        for layer in range(depth):
            recorder.hidden(layer, "block", [torch.cat([part[layer] for part in lane.states]) for lane in lanes])
        for block in range(depth):
            caches = [lane.cache.layers[block] for lane in lanes]
            recorder.cache(block + 1, [c.keys[0] for c in caches], [c.values[0] for c in caches])
        rows = torch.arange(len(ids))
        sampled = rows % stride == 0
        for lane, noted in enumerate(lanes):
            recorder.final(lane, rows, torch.cat([part[depth] for part in noted.states]))
        for lane, noted in enumerate(lanes):
            recorder.logits(lane, rows[sampled], torch.cat(noted.logits)[sampled])
        found[size] = recorder.variables(0)
    return found


def _drift(model: Any, ids: Any, sizes: list[int], stride: int, half_matmul: str) -> dict[int, Arrays]:

    cells = drift.trace_folds(
        model,
        ids.numpy(),
        [(size, "append") for size in sizes],
        logit_stride=stride,
        half_matmul=half_matmul,
    )
    return {size: {str(n): v.values[0] for n, v in ds.data_vars.items()} for size, ds in zip(sizes, cells, strict=True)}


def _peak() -> int:
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")).split()[1])


def child(arguments: argparse.Namespace) -> None:
    """Run one way and leave its figures and numbers in a file."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    dtype = arguments.dtypes[0]
    model, tokenizer = drift.load_model(arguments.model, dtype=dtype, device="cpu")
    ids = torch.from_numpy(corpus.documents("pydoc", tokenizer, 1, arguments.tokens, 0)[0])
    sizes, stride = list(arguments.chunk_sizes), arguments.logit_stride
    half = default_half_matmul("cpu", dtype) if dtype in ("bf16", "fp16") else "native"

    def run(ids: Any, sizes: list[int]) -> Any:
        if arguments.child == "drift":
            return _drift(model, ids, sizes, stride, half)
        with numerics(rung(dtype), "cpu", half):
            return {"bare": _bare, "naive": _naive}[arguments.child](model, ids, sizes, stride)

    run(ids[:256], [64])  # whatever is done once is done here
    give_back()
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    cpu, wall = time.process_time(), time.perf_counter()
    numbers = run(ids, sizes)
    figures = {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "extra_bytes": _peak() * 1024 - before,
        "half_matmul": half,
    }
    with arguments.child_out.open("wb") as file:
        pickle.dump((figures, numbers), file)


# ---------------------------------------------------------------- the benchmark


def differences(naive: dict[int, Arrays], drift: dict[int, Arrays]) -> tuple[int, int, float]:
    """Numbers compared and found different, logits apart; and the largest relative difference of the logits' KL.

    transformers' hidden states leave out what the last block gives before the final norm, so that layer has no twin.
    """
    compared = different = 0
    largest = 0.0
    for size, arrays in naive.items():
        for name, values in arrays.items():
            other = drift[size][name]
            if name.startswith("hidden_") or name == "nonfinite_count":
                other = np.concatenate([other[:-2], other[-1:]])
            elif name not in ("key_rel_l2", "value_rel_l2"):
                if name == "logit_kl":
                    size_ = np.maximum(np.abs(values), np.abs(other))
                    apart = np.divide(np.abs(values - other), size_, out=np.zeros_like(size_), where=size_ > 0)
                    largest = max(largest, float(apart.max()))
                continue
            compared += values.size
            different += int((values != other).sum() - (np.isnan(values) & np.isnan(other)).sum())
    return compared, different, largest


def measure(arguments: argparse.Namespace, way: str, dtype: str, folder: Path, *, memory: bool) -> Any:
    out = folder / "child.pickle"
    command = [
        sys.executable, __file__, "--child", way, "--child-out", str(out), "--model", arguments.model,
        "--tokens", str(arguments.tokens), "--chunk-sizes", *map(str, arguments.chunk_sizes), "--dtypes", dtype,
        "--logit-stride", str(arguments.logit_stride), "--threads", str(arguments.threads),
    ]  # fmt: skip
    fixed = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"} if memory else {}
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads), **fixed})
    with out.open("rb") as file:
        return pickle.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--logit-stride", type=int, default=4, help="as in the default preset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time, once")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, help="a JSON file (default: print only)")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--child-out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    rows = []
    for dtype in arguments.dtypes:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
        numbers: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(1 if arguments.memory else arguments.runs):
                for way in arguments.ways:
                    figures, numbers[way] = measure(arguments, way, dtype, Path(folder), memory=arguments.memory)
                    found[way].append(figures)
                    print(f"{dtype} run {turn + 1} {way}: {figures}", file=sys.stderr, flush=True)
        row: dict[str, Any] = {"dtype": dtype, "half_matmul": found[arguments.ways[0]][0]["half_matmul"]}
        if arguments.memory:
            row |= {f"{way}_extra_mb": round(found[way][0]["extra_bytes"] / 1e6, 1) for way in found}
        else:
            row |= {f"{way}_cpu_s": [round(f["cpu_s"], 2) for f in found[way]] for way in found}
        if {"drift", "naive"} <= set(found):
            row["numbers"], row["numbers_different"], row["largest_relative_difference_of_kl"] = differences(
                numbers["naive"], numbers["drift"]
            )
        if set(found) == set(WAYS):
            what = "extra_bytes" if arguments.memory else "cpu_s"

            def ratio(a: str, b: str, what: str = what, found: dict[str, Any] = found) -> float:
                return round(statistics.median(x[what] / y[what] for x, y in zip(found[a], found[b], strict=True)), 3)

            if arguments.memory:
                row["naive_over_drift_extra"] = ratio("naive", "drift")
            else:
                row["drift_over_bare"], row["naive_over_drift"] = ratio("drift", "bare"), ratio("naive", "drift")
        rows.append(row)
        print(json.dumps(row, indent=1))
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"CPU ({platform.machine()}), {arguments.threads} of {os.cpu_count()} cores",
        "model": arguments.model,
        "tokens": arguments.tokens,
        "chunk_sizes": arguments.chunk_sizes,
        "logit_stride": arguments.logit_stride,
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
