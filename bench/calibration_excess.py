"""What does the rounding floor buy? Pairs of drift and floor, simulated: verdicts on drift alone and on its excess.

    python bench/calibration_excess.py             # the whole grid, 100 runs a cell, one core
    python bench/calibration_excess.py --runs 40   # a look
    python bench/calibration_excess.py --sd-drift 0.08 --sd-excess 0.03 --trend 0.04 --steps 64 --documents 4

Drift and floor share what the tokens of a document do to both: a trend with depth (late tokens are worse conditioned)
and noise. Each has noise of its own besides; the floor is the geometric mean of two draws. The shapes of
bench/calibration.py multiply drift alone, so the growth of a shape is what the chain adds: that is the truth that both
verdicts are held against. The whole grid is written to bench/results/calibration-excess.csv. Seeded: the same command
gives the same table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibration import SHAPES, Float, noise

from drift.reading.floor.model import FACTOR
from drift.reading.statistics.analysis import Code
from drift.reading.statistics.plateau import analyse

RESULTS = Path(__file__).resolve().parent / "results" / "calibration-excess.csv"
#: Log-sd of drift and of drift / floor around their trends, and the growth of the floor per doubling: three families,
#: bf16 and fp32, at 1024 to 4096 tokens.
SDS = ((0.07, 0.02), (0.08, 0.04), (0.09, 0.06))
TRENDS = (0.02, 0.05)
STEPS = (31, 63, 127, 511)
DOCUMENTS = (4, 8)
RHO = 0.0
DRAWS = 2
COLUMNS = (
    "shape", "sd_drift", "sd_excess", "trend", "steps", "documents", "runs", "drift_plateau", "drift_right",
    "drift_undetermined", "excess_plateau", "excess_right", "excess_undetermined",
)  # fmt: skip


def pairs(
    rng: np.random.Generator, sds: tuple[float, float], rho: float, shape: tuple[int, int, int], draws: int = DRAWS
) -> tuple[Float, Float]:
    """Log noise of drift and of its floor, [run, document, step] each.

    Drift and every draw have noise of their own, of equal variance v; the mean of n draws leaves v / n of it in the
    floor, so that the excess has v (1 + 1 / n). What drift has beyond v is shared.
    """
    sd_drift, sd_excess = sds
    own = sd_excess**2 / (1 + 1 / draws)
    if own > sd_drift**2:
        raise SystemExit(f"drift with log-sd {sd_drift:g} cannot leave {sd_excess:g} in its excess")
    shared = np.sqrt(sd_drift**2 - own) * noise(rng, shape, rho)
    drift = shared + np.sqrt(own) * noise(rng, shape, rho)
    floor = shared + np.mean([np.sqrt(own) * noise(rng, shape, rho) for _ in range(draws)], axis=0)
    return drift, floor


def cell(
    sds: tuple[float, float], trend: float, steps: int, documents: int, runs: int, seed: int,
    names: Sequence[str] = tuple(SHAPES), rho: float = RHO,
) -> list[dict[str, Any]]:  # fmt: skip
    """Count verdicts in one cell of the grid, for every shape. All shapes see the same noise."""
    key = [seed, *(round(1000 * x) for x in (*sds, trend, rho)), steps, documents]
    drift, floor = pairs(np.random.default_rng(np.random.SeedSequence(key)), sds, rho, (runs, documents, steps))
    t = np.arange(1, steps + 1, dtype=float)
    both = np.log2(t) * np.log1p(trend)
    rows = []
    for name in names:
        curve = SHAPES[name].curve(t)
        top, bottom = curve * np.exp(drift + both), np.exp(floor + both)
        row: dict[str, Any] = {
            "shape": name, "sd_drift": sds[0], "sd_excess": sds[1], "trend": trend, "steps": steps,
            "documents": documents, "runs": runs,
        }  # fmt: skip
        for label, values in (("drift", top), ("excess", top / bottom)):
            code = analyse(values).code
            row |= {
                f"{label}_plateau": int(np.isin(code, (Code.SATURATED, Code.FLAT, Code.RISE_UNRESOLVED)).sum()),
                f"{label}_right": int(np.isin(code, SHAPES[name].right).sum()),
                f"{label}_undetermined": int((code >= Code.NONFINITE).sum()),
            }
        rows.append(row)
    return rows


def levels(sds: tuple[float, float], steps: int, documents: int, runs: int, seed: int) -> list[tuple[float, float]]:
    """Share of runs at the floor by level, for flat pairs at and within the edges of the factor."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, steps, documents, round(1000 * sds[1])]))
    drift, floor = pairs(rng, sds, RHO, (runs, documents, steps))
    found = []
    for level in (1 / FACTOR, 0.85, 0.95, 1.0, 1.2, FACTOR):
        a = analyse(level * np.exp(drift - floor))
        flat = np.isin(a.code, (Code.SATURATED, Code.FLAT, Code.RISE_UNRESOLVED))
        within = (a.level_low >= -np.log(FACTOR)) & (a.level_high <= np.log(FACTOR))
        found.append((level, float((flat & within).mean())))
    return found


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Lay the table out as Markdown: per shape what drift alone and excess give."""

    def share(picked: Sequence[dict[str, Any]], column: str) -> str:
        return f"{sum(r[column] for r in picked) / sum(r['runs'] for r in picked):.2f}"

    def worst(picked: Sequence[dict[str, Any]], column: str) -> str:
        return f"{max(r[column] / r['runs'] for r in picked):.3f}"

    lines = [
        "| what the chain adds | largest P(plateau), drift / excess | right, drift / excess | "
        "undetermined, drift / excess |",
        "|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        mine = [r for r in rows if r["shape"] == name]
        if not mine:
            continue
        false = "-" if shape.plateau else f"{worst(mine, 'drift_plateau')} / {worst(mine, 'excess_plateau')}"
        right = f"{share(mine, 'drift_right')} / {share(mine, 'excess_right')}" if shape.right else "-"
        undetermined = f"{share(mine, 'drift_undetermined')} / {share(mine, 'excess_undetermined')}"
        lines.append(f"| {name} | {false} | {right} | {undetermined} |")
    steps = sorted({r["steps"] for r in rows})
    flat = [r for r in rows if SHAPES[r["shape"]].plateau]
    lines += [
        "",
        "Curves to which the chain adds nothing, right verdict by the growth of the floor and by the length:",
        "",
        f"| growth of the floor per doubling | {' | '.join(f'{n} steps' for n in steps)} |",
        "|---" * (1 + len(steps)) + "|",
    ]
    for trend in sorted({r["trend"] for r in flat}):
        by_steps = [[r for r in flat if (r["trend"], r["steps"]) == (trend, n)] for n in steps]
        shares = [f"{share(p, 'drift_right')} / {share(p, 'excess_right')}" for p in by_steps]
        lines.append(f"| {100 * trend:+g} % | " + " | ".join(shares) + " |")
    runs = rows[0]["runs"]
    lines += [
        "",
        f"{runs} runs a cell: a share of .05 has a Monte Carlo standard error of {(0.0475 / runs) ** 0.5:.3f}.",
    ]
    over = [r for r in rows if not SHAPES[r["shape"]].plateau and r["excess_plateau"] / r["runs"] > 0.05]
    lines.append(f"Cells with P(plateau) of the excess above .05: {len(over) or 'none'}.")
    lines += [
        f"- {r['shape']}, sd {r['sd_drift']:g} / {r['sd_excess']:g}, trend {r['trend']:g}, {r['steps']} steps, "
        f"{r['documents']} documents: {r['excess_plateau'] / r['runs']:.3f}"
        for r in over
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20260201)
    parser.add_argument(
        "--rho", type=float, default=RHO, help="autocorrelation of every noise (default: 0, as measured)"
    )
    parser.add_argument("--sd-drift", type=float, help="log-sd of drift around its trend, with --sd-excess")
    parser.add_argument("--sd-excess", type=float, help="log-sd of drift / floor")
    parser.add_argument("--trend", type=float, nargs="+", default=TRENDS, help="growth of the floor per doubling")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS)
    parser.add_argument("--out", type=Path, help="where the table goes (default: bench/results/calibration-excess.csv "
                        "for the whole grid, nowhere for any other)")  # fmt: skip
    args = parser.parse_args(argv)
    if (args.sd_drift is None) != (args.sd_excess is None):
        parser.error("--sd-drift and --sd-excess go together")
    if args.out is None and all(getattr(args, n) == parser.get_default(n) for n in vars(args)):
        args.out = RESULTS
    sds = SDS if args.sd_drift is None else ((args.sd_drift, args.sd_excess),)
    cells = list(itertools.product(sds, args.trend, args.steps, args.documents))
    rows: list[dict[str, Any]] = []
    for done, one in enumerate(cells, start=1):
        rows += cell(*one, args.runs, args.seed, rho=args.rho)
        if done % 9 == 0 or done == len(cells):
            print(f"{done} of {len(cells)} cells", file=sys.stderr, flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(summary(rows))
    print(f"\nFlat pairs called at the floor (factor {FACTOR:.3f}), by level:")
    for pair in sds:
        for steps in args.steps:
            said = levels(pair, steps, args.documents[0], 5 * args.runs, args.seed)
            shares = ", ".join(f"{level:.3f}: {share:.3f}" for level, share in said)
            print(f"- sd {pair[1]:g}, {steps} steps, {args.documents[0]} documents: {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
