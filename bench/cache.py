"""What the preallocated cache saves against one that grows by concatenation, as transformers' own does.

The same descent with both, in turns; CPU times, medians over runs.
The numbers must be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import drift
from drift.running import corpus
from drift.running.descent import caches


@contextmanager
def growing() -> Iterator[None]:
    """Within it, caches grow by concatenation."""

    plain = caches.TapeCache.__init__

    def without_room(self: Any, config: Any, index: int = 0, slots: int | None = None) -> None:
        plain(self, config, index, None)

    caches.TapeCache.__init__ = without_room  # type: ignore[method-assign]
    try:
        yield
    finally:
        caches.TapeCache.__init__ = plain  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache.json")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    model, tokenizer = drift.load_model(arguments.model, dtype=arguments.dtype, device="cpu")
    ids = corpus.documents("pydoc", tokenizer, 1, arguments.tokens, 0)

    def run(size: int) -> tuple[float, Any]:
        began = time.process_time()
        (cell,) = drift.trace_folds(model, ids, [(size, "append")], logit_stride=16)
        return time.process_time() - began, cell

    rows = []
    for size in arguments.chunk_sizes:
        pairs = []
        for _ in range(arguments.runs):
            room, one = run(size)
            with growing():
                grown, other = run(size)
            if not one.equals(other):
                raise SystemExit(f"chunks of {size}: the two caches give different numbers")
            pairs.append((room, grown))
        row = {
            "chunk_size": size,
            "preallocated_cpu_s": [round(a, 2) for a, _ in pairs],
            "growing_cpu_s": [round(b, 2) for _, b in pairs],
            "saved": round(1 - statistics.median(a / b for a, b in pairs), 3),
        }
        rows.append(row)
        print(json.dumps(row))
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"CPU ({platform.machine()}), 1 of {os.cpu_count()} cores",
        "model": arguments.model,
        "dtype": arguments.dtype,
        "tokens": arguments.tokens,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
