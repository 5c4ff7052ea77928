"""How often is the plateau verdict wrong? Simulated curves of known shape, over noise, depth and documents.

    python bench/calibration.py                    # the whole grid, 400 runs a cell, about ten minutes on 2 cores
    python bench/calibration.py --runs 40          # a look
    python bench/calibration.py --sd 0.14 --rho 0.3 --steps 512 --documents 6
    python bench/calibration.py --noise-of data/evidence/deep --documents 1 2 6
    python bench/calibration.py --noise-of data/evidence/deep --of excess --documents 1 4 8

The whole grid is written to bench/results/calibration.csv (one row per shape and cell: runs per verdict, coverage); the
summary that bench/README.md quotes is printed. Seeded: the same command gives the same table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from drift.dataset.opening import open_sweep
from drift.reading.plateau import curves
from drift.reading.quantities import Of
from drift.reading.statistics.analysis import Code
from drift.reading.statistics.plateau import analyse
from drift.reading.statistics.windows import windows

Float = NDArray[np.float64]
RESULTS = Path(__file__).resolve().parent / "results" / "calibration.csv"

SDS = (0.05, 0.2, 0.5)
RHOS = (0.0, 0.5, 0.9)
STEPS = (16, 31, 63, 127, 511)
DOCUMENTS = (1, 4, 16)


@dataclass(frozen=True)
class Shape:
    """A noiseless curve of steps 1 .. n, and the verdicts that are right for it."""

    curve: Callable[[Float], Float]
    right: tuple[Code, ...]
    plateau: bool  # whether a verdict of plateau would be right


def _rise(t: Float, tau: float = 1.5) -> Float:
    return 1 - 0.9 * np.exp(-(t - 1) / tau)


_FLAT = (Code.SATURATED, Code.FLAT, Code.RISE_UNRESOLVED)
_GROW = (Code.GROWING,)
_DECAY = (Code.DECAYING,)
_NONE: tuple[Code, ...] = ()


#: Every shape: curve as a function of t = 1 .. N. `right` is empty where only "undetermined" is honest.
SHAPES: dict[str, Shape] = {
    "never rose": Shape(lambda t: np.ones_like(t), (Code.FLAT,), True),
    "saturating, tau 1.5 steps": Shape(_rise, (Code.SATURATED,), True),
    "saturating, tau N/16": Shape(lambda t: _rise(t, t[-1] / 16), (Code.SATURATED,), True),
    "exactly +5 % per doubling (the boundary)": Shape(lambda t: _rise(t) * t ** np.log2(1.05), _NONE, False),
    "+8 % per doubling": Shape(lambda t: _rise(t) * t ** np.log2(1.08), _GROW, False),
    "+10 % per doubling": Shape(lambda t: _rise(t) * t ** np.log2(1.10), _GROW, False),
    "logarithm": Shape(lambda t: np.log1p(t), _GROW, False),
    "square root": Shape(np.sqrt, _GROW, False),
    "linear": Shape(lambda t: t, _GROW, False),
    "exponential": Shape(lambda t: np.exp2(4 * t / t[-1]), _GROW, False),
    "t / (t + N/8)": Shape(lambda t: t / (t + t[-1] / 8), _GROW, False),
    "saturating, tau N/3": Shape(lambda t: _rise(t, t[-1] / 3), _GROW, False),
    "take-off at half the chain": Shape(lambda t: _rise(t) * (1 + 4 * np.maximum(0, t / t[-1] - 0.5)), _GROW, False),
    "take-off at 70 %": Shape(lambda t: _rise(t) * (1 + 4 * np.maximum(0, t / t[-1] - 0.7)), _GROW, False),
    "+20 % in the last 15 %": Shape(lambda t: _rise(t) * np.where(t > 0.85 * t[-1], 1.2, 1.0), _NONE, False),
    "hump": Shape(lambda t: 1 + 2 * np.exp(-(((t / t[-1] - 0.45) / 0.15) ** 2)), _NONE, False),
    "power decay": Shape(lambda t: t**-0.3, _DECAY, False),
    "exponential decay": Shape(lambda t: np.exp2(-2 * t / t[-1]), _DECAY, False),
}


def noise(rng: np.random.Generator, shape: tuple[int, ...], rho: float) -> Float:
    """Stationary AR(1) noise of unit variance along the last axis."""
    innovations = rng.standard_normal(shape)
    innovations[..., 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], innovations, axis=-1)


def residuals(sweep: Path, measure: str, of: Of = Of.DRIFT) -> Float:
    """Log noise of real curves [series, step]: what a quadratic in log depth leaves of the longest chains of a sweep.

    Of drift, or of drift over its rounding floor, which lacks what the tokens do to both.

    The first steps of a chain are its rise, so the first sixteenth is filled up with noise of the rest.
    """

    found = [c.values for c in curves.from_sweep(open_sweep(sweep), [measure], of=of)]
    longest = max(v.shape[1] for v in found)
    x = np.log2(np.arange(1, longest + 1, dtype=float))
    first = windows(longest)[0]
    series = []
    for values in found:
        if values.shape[1] == longest and (values > 0).all():
            z = np.log(values)[:, first:]
            basis = np.polynomial.polynomial.polyvander(x[first:] - x[first:].mean(), 2)
            rest = z - (basis @ np.linalg.lstsq(basis, z.T, rcond=None)[0]).T
            series += list(np.concatenate([rest, rest[:, :first]], axis=1))
    if not series:
        raise SystemExit(f"{sweep}: no longest chain is positive throughout")
    return np.array(series)


def resample(rng: np.random.Generator, series: Float, runs: int, documents: int) -> Float:
    """Draw documents from real noise: a series and a place to begin in it each, at random, going round."""
    steps = series.shape[1]
    which = rng.integers(len(series), size=(runs, documents, 1))
    places = (rng.integers(steps, size=(runs, documents, 1)) + np.arange(steps)) % steps
    return series[which, places]


def truth(shape: Shape, steps: int) -> tuple[float, float]:
    """Slope per doubling and log level of the noiseless curve on the judging window."""
    t = np.arange(1, steps + 1, dtype=float)
    first = windows(steps)[-1]
    x, z = np.log2(t[first:]), np.log(shape.curve(t)[first:])
    return float(np.polyfit(x, z, 1)[0]), float(z.mean())


COLUMNS = (
    "shape", "sd", "rho", "steps", "documents", "runs", "plateau", "right", "growing", "decaying", "undetermined",
    "slope_covered", "level_covered",
)  # fmt: skip


def cell(
    sd: float, rho: float, steps: int, documents: int, runs: int, seed: int, names: Sequence[str] = tuple(SHAPES)
) -> list[dict[str, Any]]:
    """Count verdicts in one cell of the grid, for every shape. All shapes see the same noise."""
    key = [seed, round(1000 * sd), round(1000 * rho), steps, documents]
    z = sd * noise(np.random.default_rng(np.random.SeedSequence(key)), (runs, documents, steps), rho)
    return count(z, sd, rho, names)


def count(z: Float, sd: float, rho: float, names: Sequence[str] = tuple(SHAPES)) -> list[dict[str, Any]]:
    """Count verdicts on every shape under the noise z [run, document, step]; `sd` and `rho` are labels."""
    runs, documents, steps = z.shape
    t = np.arange(1, steps + 1, dtype=float)
    rows = []
    for name in names:
        shape = SHAPES[name]
        found = analyse(shape.curve(t) * np.exp(z))
        slope, level = truth(shape, steps)
        code = found.code
        rows.append(
            {
                "shape": name, "sd": sd, "rho": rho, "steps": steps, "documents": documents, "runs": runs,
                "plateau": int(np.isin(code, _FLAT).sum()),
                "right": int(np.isin(code, shape.right).sum()),
                "growing": int((code == Code.GROWING).sum()),
                "decaying": int((code == Code.DECAYING).sum()),
                "undetermined": int((code >= Code.NONFINITE).sum()),
                "slope_covered": int(((found.slope_low <= slope) & (slope <= found.slope_high)).sum()),
                "level_covered": int(((found.level_low <= level) & (level <= found.level_high)).sum()),
            }
        )  # fmt: skip
    return rows


def grid(
    cells: Sequence[tuple[float, float, int, int]], runs: int, seed: int, jobs: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of every cell (sd, rho, steps, documents), in order."""
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(cell, *zip(*cells, strict=True), itertools.repeat(runs), itertools.repeat(seed))


def easy(row: dict[str, Any]) -> bool:
    """Whether a cell has data enough: 4 documents or more, 127 steps or more, moderate noise."""
    return row["documents"] >= 4 and row["steps"] >= 127 and row["sd"] <= 0.2 and row["rho"] <= 0.5


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Lay the table out as Markdown: per shape the largest false rates, and what easy cells give."""

    def share(picked: Sequence[dict[str, Any]], column: str) -> str:
        runs = sum(r["runs"] for r in picked)
        return f"{sum(r[column] for r in picked) / runs:.2f}" if runs else "-"

    lines = [
        "| truth | largest P(plateau) | right, easy | undetermined, easy / all | growth or decay called, largest |",
        "|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        mine = [r for r in rows if r["shape"] == name]
        if not mine:
            continue
        light = [r for r in mine if easy(r)]
        worst = max(mine, key=lambda r: r["plateau"] / r["runs"])
        largest = "-" if shape.plateau else f"{worst['plateau'] / worst['runs']:.3f}"
        wrong = max((r["growing"] + r["decaying"]) / r["runs"] for r in mine) if shape.plateau else None
        lines.append(
            f"| {name} | {largest} | {share(light, 'right') if shape.right else '-'} | "
            f"{share(light, 'undetermined')} / {share(mine, 'undetermined')} | "
            f"{'-' if wrong is None else f'{wrong:.3f}'} |"
        )
    runs = rows[0]["runs"]
    lines += [
        "",
        f"{runs} runs a cell: a share of .05 has a Monte Carlo standard error of {(0.05 * 0.95 / runs) ** 0.5:.3f}.",
    ]
    over = [r for r in rows if not SHAPES[r["shape"]].plateau and r["plateau"] / r["runs"] > 0.05]
    lines.append(f"Cells with P(plateau) above .05: {len(over) or 'none'}.")
    lines += [
        f"- {r['shape']}, sd {r['sd']:g}, rho {r['rho']:g}, {r['steps']} steps, {r['documents']} documents: "
        f"{r['plateau'] / r['runs']:.3f}"
        for r in over
    ]
    for documents in sorted({r["documents"] for r in rows}):
        mine = [r for r in rows if r["documents"] == documents and r["slope_covered"] + r["level_covered"] > 0]
        for column, nominal in (("slope_covered", "90 %"), ("level_covered", "95 %")):
            flat = [r[column] / r["runs"] for r in mine if SHAPES[r["shape"]].plateau]
            if flat:
                lines.append(
                    f"- {column.split('_')[0]} interval ({nominal}), plateaus, {documents} documents: mean coverage "
                    f"{np.mean(flat):.3f}, least {np.min(flat):.3f}"
                )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where the table goes (default: bench/results/calibration.csv for the "
                        "whole grid, nowhere for any other)")  # fmt: skip
    parser.add_argument("--sd", type=float, nargs="+", default=SDS, help="standard deviation of the log noise")
    parser.add_argument("--rho", type=float, nargs="+", default=RHOS, help="its autocorrelation")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS)
    parser.add_argument("--noise-of", type=Path, metavar="SWEEP", help="noise of this sweep's longest chains instead")
    parser.add_argument("--measure", default="hidden_rel_l2", help="with --noise-of: whose noise")
    parser.add_argument("--of", choices=[Of.DRIFT.value, Of.EXCESS.value], default=Of.DRIFT.value, help="with "
                        "--noise-of: noise of drift, or of drift over its rounding floor")  # fmt: skip
    args = parser.parse_args(argv)
    if args.out is None and all(getattr(args, n) == parser.get_default(n) for n in vars(args) if n != "jobs"):
        args.out = RESULTS
    rows: list[dict[str, Any]] = []
    if args.noise_of is not None:
        series = residuals(args.noise_of, args.measure, Of(args.of))
        sd, rho = series.std(), (series[:, 1:] * series[:, :-1]).sum() / (series**2).sum()
        print(f"{len(series)} real series of {series.shape[1]} steps: sd {sd:.3f}, rho {rho:.2f}")
        for documents in args.documents:
            rng = np.random.default_rng(np.random.SeedSequence([args.seed, documents]))
            rows += count(resample(rng, series, args.runs, documents), round(sd, 3), round(rho, 2))
        return finish(rows, args.out)
    cells = list(itertools.product(args.sd, args.rho, args.steps, args.documents))
    total = len(cells)
    for done, part in enumerate(grid(cells, args.runs, args.seed, args.jobs), start=1):
        rows += part
        if done % 9 == 0 or done == total:
            print(f"{done} of {total} cells", file=sys.stderr, flush=True)
    return finish(rows, args.out)


def finish(rows: Sequence[dict[str, Any]], out: Path | None) -> int:
    """Write the table and print its summary."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
