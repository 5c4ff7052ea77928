"""Drift, rounding floor and one-step error side by side: ``python bench/floor.py SWEEP``, of ``bench/floor.yaml``.

Writes ``bench/results/floor.json`` and prints the table of ``bench/README.md``. Levels and growth per doubling of the
chain are those of :func:`drift.reading.plateau.plateau`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift import dataset
from drift.dataset.labels import parse_label
from drift.reading import floor
from drift.reading.amplitudes import measure_values
from drift.reading.controls.gating import NO_CONTROLS
from drift.reading.excess import excess_values, floor_values
from drift.reading.plateau import Plateau, plateau
from drift.reading.statistics.windows import late_part
from drift.reading.wording.numbers import number, percent, plain

ROOT = Path(__file__).resolve().parent.parent


def described(found: Plateau) -> dict[str, Any]:
    """The figures of a curve."""
    return {
        "level": found.level,
        "level_interval": found.level_interval,
        "growth_per_doubling": found.growth_per_doubling,
        "growth_interval": found.growth_interval,
        "verdict": found.verdict,
        "reason": found.reason,
    }


def row(ds: Any, one_step: Any) -> dict[str, Any]:
    """One chain: its drift, floor, one-step error and excess."""
    standing = floor.rounding(ds, asked=NO_CONTROLS)
    found = {
        "model": ds["model"].item(),
        "dtype": ds["dtype"].item(),
        "protocol": ds["protocol"].item(),
        "chunk_size": ds["chunk_size"].item(),
        "tokens": int(ds["token_stop"][-1]),
        "documents": ds.sizes["document"],
        "drift": described(plateau(measure_values(ds, "hidden_rel_l2"))),
        "floor": described(plateau(floor_values(ds))),
        "excess": described(plateau(excess_values(ds))) | {"standing": standing.verdict, "last": _last(ds)},
    }
    if one_step is not None:
        values = measure_values(one_step, "hidden_rel_l2")
        late = late_part(values)
        positive = late[late > 0]
        found["one_step"] = {
            "zeros": int((late == 0).sum()),
            "values": late.size,
            "level_where_it_is_not_zero": float(np.exp(np.log(positive).mean())) if positive.size else 0.0,
        }
    return found


def _last(ds: Any) -> float:
    """Excess of the last eighth of the chain: geometric mean."""
    values = excess_values(ds)
    end = values[:, -max(1, values.shape[1] // 8) :]
    return float(np.exp(np.log(end).mean())) if (end > 0).all() else math.nan


def line(one: dict[str, Any]) -> str:
    """A row of the table."""

    def curve(name: str) -> str:
        c = one[name]
        ends = " to ".join(percent(end) for end in c["growth_interval"])
        return f"{number(c['level'])}, {percent(c['growth_per_doubling'])} ({ends})"

    step = one.get("one_step")
    local = "–"
    if step:
        local = f"exactly 0 at {step['zeros']} of {step['values']} values"
        if step["zeros"] < step["values"]:
            local += f", else {number(step['level_where_it_is_not_zero'])}"
    excess = one["excess"]
    size = f"{one['tokens']} x {one['documents']}"
    name = f"{one['model']}, {one['dtype']}, {one['protocol']}"
    low, high = excess["level_interval"]
    verdict = f"{number(excess['level'], 3)} ({number(low, 3)} to {number(high, 3)}), "
    verdict += f"{curve('excess').split(', ', 1)[1]}: {excess['standing'].value.replace('_', ' ')}"
    return f"| {name} | {size} | {curve('drift')} | {curve('floor')} | {local} | {verdict} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python bench/floor.py", description=str(__doc__).splitlines()[0])
    parser.add_argument("sweep", help="folder of the sweep of bench/floor.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "floor.json")
    arguments = parser.parse_args(argv)
    sweep = dataset.open_sweep(arguments.sweep)
    axes = ("model", "dtype", "chunk_size")
    local = {
        (parse_label(ds["protocol"].item()).inner, *(ds[a].item() for a in axes)): ds
        for ds in sweep
        if parse_label(ds["protocol"].item()).name == dataset.ONE_STEP
    }
    rows = [
        row(ds, local.get((ds["protocol"].item(), *(ds[a].item() for a in axes))))
        for ds in sweep
        if parse_label(ds["protocol"].item()).name != dataset.ONE_STEP
    ]
    machine = next((ds.attrs["device_name"] for ds in sweep), "")
    record = {"command": "python bench/floor.py SWEEP, of bench/floor.yaml", "device": machine, "rows": rows}
    arguments.out.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print("| model, precision, protocol | tokens x documents | drift | floor | one-step error | drift / floor |")
    print("|---|---|---|---|---|---|")
    print("\n".join(map(line, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
