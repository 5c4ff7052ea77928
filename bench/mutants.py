"""Would the tests notice? ``python bench/mutants.py``: mutmut, on a seeded sample.

Three stages. The tests nearest to these files (``[tool.mutmut]`` in pyproject.toml) meet every mutant of the sample;
what survives meets the rest of the suite; what survives that is listed with its difference in
``bench/results/mutants.json``, and judged in ``bench/README.md``: equivalent (no input tells it from the original), or
a gap of the tests to be mended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = ROOT / "mutants"
# What mutmut writes down of a mutant: pytest's exit code, or a code of its own.
SURVIVED = (0,)
NO_TESTS = (5, 33)
TIMEOUT = (36, -24, 24, 152, 255)
KILLED = (1, 3, *TIMEOUT)  # an endless loop does not go unnoticed


def mutmut(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run mutmut in the source tree."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=check,
    )


def outcomes() -> dict[str, int | None]:
    """Return every mutant that mutmut made, and the exit code of its tests if they were run."""
    found: dict[str, int | None] = {}
    for path in sorted(MUTANTS.rglob("*.py.meta")):
        found |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def sample(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw mutants without replacement; the same ones for the same seed and code."""
    return sorted(random.Random(seed).sample(sorted(names), min(count, len(names))))


def survives_the_suite(name: str) -> bool:
    """Whether all tests pass with a mutant in place."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MUTANT_UNDER_TEST": name, "PYTHONPATH": str(MUTANTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests"]
    return subprocess.run(command, cwd=MUTANTS, env=environment, capture_output=True, check=False).returncode == 0


def summary(codes: dict[str, int | None], suite: dict[str, bool]) -> dict[str, Any]:
    """Count what became of a sample."""
    killed = sum(code in KILLED for code in codes.values())
    left = {name for name, code in codes.items() if code not in KILLED}
    later = sum(not alive for alive in suite.values())
    survivors = sorted(name for name in left if suite.get(name, True))
    return {
        "sample": len(codes),
        "killed_by_the_nearest_tests": killed,
        "killed_by_the_rest_of_the_suite": later,
        "killed_share": (killed + later) / len(codes) if codes else None,
        "survivors": survivors,
        "not_put_to_the_suite": sorted(left - suite.keys()),
        "reached_by_no_test_nearby": sorted(name for name, code in codes.items() if code in NO_TESTS),
        "exit_codes": dict(Counter(map(str, codes.values()))),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 if the share asked for was killed."""
    parser = argparse.ArgumentParser(prog="python bench/mutants.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=320, metavar="N", help="mutants drawn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at once (default: %(default)s)")
    parser.add_argument(
        "--least", type=float, default=0.9, metavar="SHARE", help="killed at least (default: %(default)s)"
    )
    parser.add_argument("--nearest-only", action="store_true", help="do not put survivors to the whole suite")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "mutants.json")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    # A name that no mutant bears: mutmut makes all mutants, learns which test reaches which function, and ends there.
    made = mutmut("run", "no.such.mutant", check=False)
    everything = outcomes()
    if not everything:
        print(made.stdout + made.stderr, file=sys.stderr)
        return 2
    drawn = sample(list(everything), arguments.sample, arguments.seed)
    print(f"{len(drawn)} of {len(everything)} mutants drawn, seed {arguments.seed}", flush=True)
    ran = mutmut("run", "--max-children", str(arguments.jobs), *drawn, check=False)
    codes = {name: code for name, code in outcomes().items() if name in set(drawn)}
    if any(code is None for code in codes.values()):
        print(ran.stdout[-4000:] + ran.stderr[-4000:], file=sys.stderr)
    left = [name for name, code in codes.items() if code not in KILLED]
    print(f"{len(drawn) - len(left)} killed by the nearest tests, {len(left)} left", flush=True)
    suite: dict[str, bool] = {}
    for name in [] if arguments.nearest_only else left:
        suite[name] = survives_the_suite(name)
        print(f"{name}: {'survives' if suite[name] else 'killed by the suite'}", flush=True)
    found = summary(codes, suite) | {
        "command": "python bench/mutants.py " + " ".join(argv if argv is not None else sys.argv[1:]),
        "mutants": len(everything),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began),
        "differences": {name: mutmut("show", name, check=False).stdout for name in left if suite.get(name, True)},
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: found[key] for key in ("sample", "killed_share", "survivors", "seconds")}, indent=1))
    return 0 if (found["killed_share"] or 0) >= arguments.least else 1


if __name__ == "__main__":
    sys.exit(main())
