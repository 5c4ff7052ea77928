"""What the rounding floor adds to a descent: groups of the default sweep with their floor, and without, in turns.

The ratio that counts is that of CPU times, which other work on the machine leaves alone; the median over ``--runs``
pairs is the result, and every pair stands in the file. One document, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import drift
from drift.running import corpus
from drift.running.sweep.cells import Cell
from drift.running.sweep.planning import plan

RESULTS = Path(__file__).resolve().parent / "results" / "floor-cost.json"


def seconds(loaded: tuple[Any, Any], ids: Any, cells: list[Cell], draws: int) -> float:
    """CPU seconds of one descent."""
    model, tokenizer = loaded
    began = time.process_time()
    drift.trace_folds(
        model, ids, [(cell.chunk_size, cell.protocol, cell.reference) for cell in cells],
        bos_token_id=tokenizer.bos_token_id, half_matmul=cells[0].half_matmul, logit_stride=cells[0].logit_stride,
        floor_draws=draws,
    )  # fmt: skip
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        groups = plan(given.preset, Path(folder) / "out").groups()
    for cells in [list(group.cells) for group in groups if group.cells[0].model == given.model]:
        first = cells[0]
        loaded = drift.load_model(given.model, dtype=first.dtype)
        ids = corpus.documents(first.corpus, loaded[1], documents=1, tokens=first.tokens)
        pairs = []
        for _ in range(given.runs):
            pairs.append([seconds(loaded, ids, cells, draws) for draws in (0, first.floor_draws)])
            print(f"{first.dtype}: {pairs[-1][0]:.1f} s without, {pairs[-1][1]:.1f} s with", flush=True)
        share = statistics.median(1 - without / whole for without, whole in pairs)
        rows.append({
            "dtype": first.dtype, "folds": [f"{cell.protocol}, chunk {cell.chunk_size}" for cell in cells],
            "tokens": first.tokens, "draws": first.floor_draws, "cpu_seconds": pairs, "share": round(share, 3),
        })  # fmt: skip
        print(f"{first.dtype}, {len(cells)} folds: the floor is {100 * share:.0f} % of the descent", flush=True)
    device = f"CPU ({platform.machine()}), {os.cpu_count()} cores"
    record = {"date": datetime.now(UTC).date().isoformat(), "device": device, "model": given.model, "groups": rows}
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
