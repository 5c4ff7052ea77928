"""Peak memory of sweeps on the CPU: what ``--dry-run`` predicts, and what is then measured.

Each case is a sweep of one model in a process of its own; its peak is what the system says of that process while it
runs (`VmHWM`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from drift.running.sweep.planning import plan

CASES: dict[str, dict[str, Any]] = {
    "long text": {"model": "smollm2-135m-instruct", "dtype": "fp32", "tokens": 4096, "chunk_size": 512},
    "long text, streamed": {
        "model": "smollm2-135m-instruct", "dtype": "fp32", "tokens": 4096, "chunk_size": 512, "weights": "streamed",
    },
    "16-bit, large vocabulary": {"model": "gemma-3-270m", "dtype": "bf16", "tokens": 1024, "chunk_size": 256},
}  # fmt: skip


def measure(case: dict[str, Any], folder: Path) -> dict[str, float]:
    """Predicted and measured peak of one case, in bytes."""
    config = folder / "case.yaml"
    config.write_text(yaml.safe_dump({"controls": False, "device": "cpu", "logit_stride": 4, **case}), encoding="utf-8")
    made = plan(config, folder / "out")
    predicted = float(made.estimate(made.cells)["memory_bytes"])
    # One arena for all threads: how many a C library opens says nothing of what a descent needs.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "drift.sweep", str(config), "--out", str(folder / "out"), "--json"]
    peak = 0
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while child.poll() is None:
            peak = max(peak, high_water(child.pid))
            time.sleep(0.05)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"the sweep ended with exit code {child.returncode}:\n{said.read().decode()}")
    return {"predicted": predicted, "measured": float(peak)}


def high_water(pid: int) -> int:
    """Largest resident set so far of a process, in bytes; 0 where it has ended or the system does not say.

    Not `ru_maxrss`: that begins at what the parent held when it forked.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES), help="one case; repeatable")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(CASES[name], Path(folder))
        error = found["predicted"] / found["measured"] - 1
        rows.append({"case": name, **CASES[name], **found, "relative_error": round(error, 4)})
        predicted, measured = found["predicted"] / 1e9, found["measured"] / 1e9
        print(f"{name}: predicted {predicted:.2f} GB, measured {measured:.2f} GB, {error:+.1%}")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"CPU ({platform.machine()}), {os.cpu_count()} cores",
        "cases": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
