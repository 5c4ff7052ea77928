"""How the cost of a recorded fold grows with the length of the text, the chunk size and the depth of the chain.

CPU time of one descent (full attention and one fold, everything recorded), less that of one bare forward pass, so that
what is left is the fold and the recording of both. Three series: longer texts in a fixed number of chunks, one text in
larger and larger chunks, and longer chains of chunks of one size. The exponents are slopes of log time on log size,
with standard errors; between what costs per step and what costs per token squared they are no constants of nature.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import drift
from drift.running import corpus
from drift.running.model.numerics import numerics, rung_of

STRIDE = 4  # logits of every fourth token
RESULTS = Path(__file__).parent / "results"

# Name, axis label, and (tokens, chunk size) of each point.
SERIES: dict[str, tuple[str, Sequence[tuple[int, int]]]] = {
    "tokens": ("tokens, in 8 chunks", [(512, 64), (1024, 128), (2048, 256), (4096, 512)]),
    "chunk_size": (
        "chunk size, 2048 tokens",
        [(2048, size) for size in (8, 16, 32, 64, 128, 512)],
    ),
    "depth": ("chunks of 64 tokens", [(256, 64), (512, 64), (1024, 64), (2048, 64), (4096, 64)]),
}


def size_of(series: str, point: tuple[int, int]) -> int:
    """What a series varies."""
    tokens, chunk = point
    return {"tokens": tokens, "chunk_size": chunk, "depth": tokens // chunk}[series]


def measure(model: Any, tokenizer: Any, point: tuple[int, int], runs: int) -> tuple[float, float]:
    """CPU seconds of a bare forward pass, and of the fold beside it: medians over runs that alternate."""
    import torch

    tokens, chunk = point
    ids = corpus.documents("pydoc", tokenizer, 1, tokens, 0)

    def full() -> float:
        began = time.process_time()
        with numerics(rung_of(model.dtype)):
            model(torch.from_numpy(ids), use_cache=True, logits_to_keep=torch.arange(0, tokens, STRIDE))
        return time.process_time() - began

    def both() -> float:
        began = time.process_time()
        drift.trace_folds(model, ids, [(chunk, "append")], logit_stride=STRIDE)
        return time.process_time() - began

    pairs = [(full(), both()) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs), statistics.median(b - a for a, b in pairs)


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Exponent and its standard error."""
    found = stats.linregress(np.log(sizes), np.log(seconds))
    return float(found.slope), float(found.stderr)


def draw(record: dict[str, Any], path: Path) -> None:
    """One panel a series, times of full attention beside those of the fold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    figure, axes = plt.subplots(1, len(SERIES), figsize=(13, 4.2), sharey=True, layout="constrained")
    for axis, (name, (label, _)) in zip(axes, SERIES.items(), strict=True):
        rows = record["series"][name]["points"]
        sizes = [row["size"] for row in rows]
        axis.loglog(sizes, [r["fold_cpu_s"] for r in rows], "o-", color="#0072B2", label="fold, recorded")
        axis.loglog(sizes, [r["full_cpu_s"] for r in rows], "s--", color="#D55E00", label="full attention")
        found = record["series"][name]
        axis.set_title(f"exponent {found['exponent']:.2f} ± {found['standard_error']:.2f}")
        axis.set_xlabel(label)
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.minorticks_off()
    axes[0].set_ylabel("CPU time (s)")
    axes[0].legend()
    figure.suptitle(
        f"Cost of a fold by length, chunk size and depth: {record['model']}, {record['dtype']}, {record['device']}"
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of growth.json and growth.png")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    model, tokenizer = drift.load_model(arguments.model, dtype=arguments.dtype, device="cpu")
    measure(model, tokenizer, (256, 64), 1)
    record: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"CPU ({platform.machine()}), 1 of {os.cpu_count()} cores",
        "model": arguments.model,
        "dtype": arguments.dtype,
        "runs": arguments.runs,
        "series": {},
    }
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for name, (_, points) in SERIES.items():
        rows = []
        for point in points:
            if point not in known:
                known[point] = measure(model, tokenizer, point, arguments.runs)
                full, fold = known[point]
                print(
                    f"{point[0]} tokens in chunks of {point[1]}: full {full:.1f} s, fold {fold:.1f} s", file=sys.stderr
                )
            full, fold = known[point]
            row = {"tokens": point[0], "chunk_size": point[1], "size": size_of(name, point)}
            rows.append({**row, "full_cpu_s": round(full, 3), "fold_cpu_s": round(fold, 3)})
        exponent, error = fit([r["size"] for r in rows], [r["fold_cpu_s"] for r in rows])
        record["series"][name] = {"points": rows, "exponent": round(exponent, 3), "standard_error": round(error, 3)}
        print(f"{name}: exponent {exponent:.2f} +- {error:.2f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "growth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, arguments.out / "growth.png")


if __name__ == "__main__":
    main()
