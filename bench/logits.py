"""How often does `drift.logits` accuse a clean pair, and how often does it see one of twice the margin?

    python bench/logits.py

Positions differ in how sensitive they are (log-normal), and every way to compute errs independently, by normal or
Student's errors with 4 degrees of freedom. Log-probabilities alone; whole distributions go the same way. Writes
results/logits.csv.
"""

from __future__ import annotations

import csv
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np

from drift.reading.floor.model import FACTOR
from drift.reading.logits.deciding import decide, excess
from drift.reading.logits.lanes import Lane, Sequence
from drift.reading.logits.model import Verdict
from drift.reading.logits.pairing import pairs

RUNS = 100
RESULTS = Path(__file__).parent / "results" / "logits.csv"
SHAPES = ((1, 256), (4, 64), (8, 32), (8, 128), (16, 512))
SPREADS = (0.5, 1.0, 1.5)
REPEATS = (1, 3)
CLEAN, FAR = "clean", f"{2 * FACTOR:.2f} floors"
STUDENT = (0, 4)  # degrees of freedom; 0 is normal


def verdict(generator: np.random.Generator, shape: tuple[int, int], spread: float, repeats: int, df: int,
            larger: float) -> Verdict:  # fmt: skip
    """Draw A, B and the repeats, and judge B, whose own error is so many times as large."""
    sensitive = 1e-3 * np.exp(spread * generator.normal(size=shape))
    truth = -generator.exponential(size=shape)

    def lane(factor: float = 1.0) -> Lane:
        error = generator.standard_t(df, size=shape) if df else generator.normal(size=shape)
        rows = truth + factor * sensitive * error
        return Lane("x", "x", tuple(Sequence(None, row, np.ones(len(row), dtype=bool)) for row in rows))

    a, b, *floor = lane(), lane(larger), *(lane() for _ in range(repeats))
    found, floors = pairs(a, b), [pairs(a, one) for one in floor]
    return decide(found, floors, excess(found, floors))[0]


def main() -> None:
    """Simulate, and write the table."""
    generator = np.random.default_rng(2026)
    # A and B with errors 1 and r are sqrt(1 + r^2) apart, repeats sqrt(2).
    rows = []
    for shape, spread, repeats, df, (name, larger) in product(
        SHAPES, SPREADS, REPEATS, STUDENT, ((CLEAN, 1.0), (FAR, float(np.sqrt(2 * (2 * FACTOR) ** 2 - 1)))),
    ):  # fmt: skip
        counts = Counter(verdict(generator, shape, spread, repeats, df, larger) for _ in range(RUNS))
        rows.append({"sequences": shape[0], "positions": shape[1], "spread": spread, "repeats": repeats, "df": df,
                     "pair": name, **{v.value: counts[v] / RUNS for v in Verdict}})  # fmt: skip
    with open(RESULTS, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    for pair in (CLEAN, FAR):
        these = [row for row in rows if row["pair"] == pair]
        for v in (Verdict.WITHIN, Verdict.BEYOND, Verdict.UNDETERMINED):
            shares = [float(row[v.value]) for row in these]
            print(f"{pair}: {v.value} {np.mean(shares):.4f} on average of {RUNS * len(these):,}, at most {max(shares)}")


if __name__ == "__main__":
    main()
