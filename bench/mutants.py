"""Would the tests notice? ``python bench/mutants.py``: mutmut, on a seeded sample.

Three stages. The tests nearest to these files (``[tool.mutmut]`` in pyproject.toml) meet every mutant of the sample;
what they leave meets the rest of the suite, mutant by mutant; what survives that is judged by a person: equivalent (no
input tells it from the original), for which ``bench/equivalent_mutants.json`` has the reason, or a gap of the tests.
Every mutant that the nearest tests left stands in ``bench/results/mutants.json`` with its difference and what became of
it. The file is written after each of them: a run that was cut off goes on with ``--resume``.

Where gaps were mended by new tests, ``--rerun-survivors FILE`` puts the mutants that an earlier run left to the test
files that are new since, on the mutated tree of that run.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = ROOT / "mutants"
REASONS = ROOT / "bench" / "equivalent_mutants.json"
# What mutmut writes down of a mutant: pytest's exit code, or a code of its own.
NO_TESTS = (5, 33)
TIMEOUT = (36, -24, 24, 152, 255)
KILLED = (1, 3, *TIMEOUT)  # an endless loop does not go unnoticed
# Pytest's own codes: 2 is a test file that cannot be imported.
PASSED, FAILED = 0, (1, 2)
LONGEST = 3600
"""Seconds that a suite may take before it counts as one that does not end."""
START = "forkserver"
"""How a mutant's process starts: forked from a server that has the libraries, which take longer than most tests."""
LIBRARIES = ("torch", "transformers.models.auto.modeling_auto", "scipy.stats", "xarray")
EQUIVALENT, SURVIVES, OUT_OF_TIME = "equivalent", "survives", "killed by running out of time"


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


# ------------------------------------------------------------------------------------------------ one mutant
def tested(tree: Path, name: str, tests: Sequence[Path]) -> tuple[int, str]:
    """Run tests with a mutant in place, up to the first that fails.

    Returns
    -------
    int, str
        Pytest's exit code, and the test that failed; its last words where it names none.
    """
    server = multiprocessing.get_context(START)
    server.set_forkserver_preload(list(LIBRARIES))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = server.Process(target=_pytest, args=(tree, name, [str(path) for path in tests], log))
        process.start()
        try:
            process.join(LONGEST)
        finally:
            if alive := process.is_alive():
                process.kill()
                process.join()
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if alive:
        return TIMEOUT[0], OUT_OF_TIME
    first = re.search(r"^(?:FAILED|ERROR) \S*?(tests/\w+\.py(?:::\w+)*)", said, re.MULTILINE)
    return process.exitcode or 0, first[1] if first else f"no test is named: {said.strip()[-500:]}"


def _pytest(tree: Path, name: str, tests: Sequence[str], log: Path) -> None:
    """Become a process that runs tests in a mutated tree, and ends with pytest's exit code."""
    os.environ.update(OMP_NUM_THREADS="1", MUTANT_UNDER_TEST=name, PYTHONPATH=str(tree))
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    with log.open("w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        import pytest

        import drift

        assert Path(drift.__file__).is_relative_to(tree), f"{drift.__file__} is not in {tree}"
        options = ["-q", "-x", "--tb=no", "-p", "no:cacheprovider"]
        # Some libraries bring plugins, which pytest would have liked to see before they were imported.
        code = int(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]))
        for text in (sys.stdout, sys.stderr):
            text.flush()
        os._exit(code)


def by_nearness(name: str, tests: Sequence[Path]) -> list[list[Path]]:
    """Test files that name the package of a mutant, and the others."""
    package = ".".join(name.split(".")[:3])  # drift.WING.ROOM
    near = [path for path in tests if path.is_file() and package in path.read_text(encoding="utf-8")]
    return [part for part in (near, [path for path in tests if path not in near]) if part]


def judged(tree: Path, name: str, tests: Sequence[Path], reasons: dict[str, str]) -> dict[str, str] | None:
    """What a set of tests makes of a mutant; None where it passes them, and is not known to be equivalent."""
    parts = by_nearness(name, tests)
    # Where there is a reason why no test could, those that know the mutated package try; the others are spared hours.
    for part in parts[:1] if name in reasons else parts:
        code, test = tested(tree, name, part)
        if (code in FAILED and test.startswith("tests/")) or code == TIMEOUT[0]:
            # A test that tells it from the original refutes any reason why none could.
            return {"judgement": test if test == OUT_OF_TIME else f"killed by {test}"}
        if code != PASSED:
            raise RuntimeError(f"{name}: pytest ended with {code}: {test}")
    return {"judgement": EQUIVALENT, "reason": reasons[name]} if name in reasons else None


def sound(tree: Path, tests: Sequence[Path]) -> list[Path]:
    """Those of some test files that pass in a mutated tree with no mutant in place, the quickest first."""
    seconds: dict[Path, float] = {}
    for path in tests:
        began = time.monotonic()
        code, test = tested(tree, "", [path])
        if code == PASSED:
            seconds[path] = time.monotonic() - began
        else:
            print(f"left out: {path.name} does not pass on the unmutated code of that tree ({test})", flush=True)
    return sorted(seconds, key=seconds.__getitem__)


def newer_tests(tree: Path) -> list[Path]:
    """Test files that the mutated tree lacks, or has otherwise."""
    return [
        path
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if not (there := tree / "tests" / path.name).exists() or not filecmp.cmp(path, there, shallow=False)
    ]


def rest_of_the_suite(tree: Path) -> list[Path]:
    """Test files of a mutated tree that are not among the nearest."""
    settings = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    nearest = settings["tool"]["mutmut"]["pytest_add_cli_args_test_selection"]
    return [path for path in sorted((tree / "tests").glob("test_*.py")) if f"tests/{path.name}" not in nearest]


# ------------------------------------------------------------------------------------------------ the result
def counted(found: dict[str, Any]) -> dict[str, Any]:
    """Put the counts of a result together: every mutant that was drawn counts, equivalent ones as not killed."""
    left: dict[str, dict[str, str]] = found["left_by_the_nearest_tests"]
    judgements = {name: entry.get("judgement", "") for name, entry in left.items()}
    later = sum(words.startswith("killed") for words in judgements.values())
    equivalent = sum(words == EQUIVALENT for words in judgements.values())
    size, killed = found["sample"], found["killed_by_the_nearest_tests"] + later
    counts = {
        "killed_later": later,
        "killed": killed,
        "equivalent": equivalent,
        "killed_share": killed / size if size else None,
        "killed_share_without_equivalent": killed / (size - equivalent) if size > equivalent else None,
        "survivors": sorted(name for name, words in judgements.items() if not words.startswith("killed")),
        "not_yet_judged": sorted(name for name, words in judgements.items() if not words),
    }
    return {key: value for key, value in found.items() if key != "left_by_the_nearest_tests"} | counts | {
        "left_by_the_nearest_tests": left
    }  # fmt: skip


def write(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write a result, whole or not at all; returns it with its counts."""
    found = counted(found)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return found


def judge_all(found: dict[str, Any], tree: Path, tests: Sequence[Path], out: Path, *, suite: bool) -> dict[str, Any]:
    """Judge the mutants that have no judgement yet, and write the result after each.

    Parameters
    ----------
    found : dict
        The result so far.
    tree : Path
        The mutated tree.
    tests : sequence of Path
        They meet every mutant first; may be empty.
    out : Path
        Where the result lies.
    suite : bool
        Whether what passes those, and is not known to be equivalent, meets the rest of the tree's tests.
    """
    reasons = json.loads(REASONS.read_text(encoding="utf-8"))
    before, began = found.get("seconds", 0), time.monotonic()
    others: list[Path] | None = None
    found = write(out, found)
    for name, entry in found["left_by_the_nearest_tests"].items():
        if entry.get("judgement"):
            continue
        if tests:
            verdict = judged(tree, name, tests, reasons)
        else:
            verdict = {"judgement": EQUIVALENT, "reason": reasons[name]} if name in reasons else None
        if verdict is None and suite:
            others = sound(tree, rest_of_the_suite(tree)) if others is None else others
            verdict = judged(tree, name, others, reasons) or {"judgement": SURVIVES}
        entry.update(verdict or {})
        found = write(out, found | {"seconds": round(before + time.monotonic() - began)})
        print(f"{name}: {entry.get('judgement') or 'passes'}", flush=True)
    return found


def spelled(name: str) -> tuple[str, str, str]:
    """File, function and number of a mutant, from the name that mutmut gives it."""
    module, _, rest = name.rpartition(".")
    function, _, number = rest.rpartition("__mutmut_")
    parts = function.split("\u01c1")  # x, class and function; x_ and the function where there is no class
    function = ".".join(parts[1:]) if len(parts) > 1 else function.removeprefix("x_")
    return module.removeprefix("drift.").replace(".", "/") + ".py", function, number


def tables(found: dict[str, Any]) -> str:
    """What became of the mutants that the nearest tests left, as two tables in Markdown."""
    left = found["left_by_the_nearest_tests"]
    rows = ["| left alive | the line as the mutant has it | why |", "|---|---|---|"]
    for name in found["survivors"]:
        path, function, number = spelled(name)
        changed = re.search(r"^\+(?!\+\+)\s*(.*)$", left[name]["difference"], re.MULTILINE)
        line = changed[1].replace("|", "\\|") if changed else ""
        judgement = left[name].get("judgement", "")
        why = f"{judgement}: {left[name]['reason']}" if "reason" in left[name] else judgement
        rows.append(f"| {path} `{function}` {number} | `{line}` | {why} |")
    rows += ["", "| killed since by | mutants |", "|---|---|"]
    killers: dict[str, list[str]] = {}
    for name, entry in left.items():
        if entry.get("judgement", "").startswith("killed"):
            path, function, number = spelled(name)
            test = entry["judgement"].removeprefix("killed by ").removeprefix("tests/")
            killers.setdefault(test, []).append(f"{path.rpartition('/')[2]} `{function}` {number}")
    rows += [f"| {test.replace('::', ' `', 1)}` | {', '.join(names)} |" for test, names in sorted(killers.items())]
    return "\n".join(rows)


def nearest(count: int, seed: int, jobs: int) -> dict[str, Any] | None:
    """Make all mutants, draw some and put them to the nearest tests; None where mutmut made none."""
    began = time.monotonic()
    # A name that no mutant bears: mutmut makes all mutants, learns which test reaches which function, and ends there.
    made = mutmut("run", "no.such.mutant", check=False)
    everything = outcomes()
    if not everything:
        print(made.stdout + made.stderr, file=sys.stderr)
        return None
    drawn = sample(list(everything), count, seed)
    print(f"{len(drawn)} of {len(everything)} mutants drawn, seed {seed}", flush=True)
    ran = mutmut("run", "--max-children", str(jobs), *drawn, check=False)
    codes = {name: code for name, code in outcomes().items() if name in set(drawn)}
    if any(code is None for code in codes.values()):
        print(ran.stdout[-4000:] + ran.stderr[-4000:], file=sys.stderr)
    left = sorted(name for name, code in codes.items() if code not in KILLED)
    print(f"{len(drawn) - len(left)} killed by the nearest tests, {len(left)} left", flush=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=False)
    return {
        "command": f"python bench/mutants.py --sample {count} --seed {seed}",
        "commit": head.stdout.strip(),
        "mutants": len(everything),
        "sample": len(drawn),
        "asked_for": count,
        "seed": seed,
        "killed_by_the_nearest_tests": len(drawn) - len(left),
        "reached_by_no_test_nearby": sorted(name for name, code in codes.items() if code in NO_TESTS),
        "exit_codes": dict(Counter(map(str, codes.values()))),
        "seconds": round(time.monotonic() - began),
        "left_by_the_nearest_tests": {
            name: {"difference": mutmut("show", name, check=False).stdout} for name in left
        },
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ command line
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python bench/mutants.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=320, metavar="N", help="mutants drawn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at once (default: %(default)s)")
    parser.add_argument(
        "--least", type=float, default=0.9, metavar="SHARE", help="killed at least (default: %(default)s)"
    )
    parser.add_argument("--nearest-only", action="store_true", help="do not put survivors to the whole suite")
    parser.add_argument("--resume", action="store_true", help="go on with what the result has of the same draw")
    parser.add_argument(
        "--rerun-survivors", type=Path, metavar="FILE", help="put what an earlier run left to the newer test files"
    )
    parser.add_argument("--tree", type=Path, default=MUTANTS, help="mutated tree of that run (default: mutants/)")
    parser.add_argument("--table", action="store_true", help="print the tables of the result, and run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "mutants.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 if the share asked for was killed."""
    arguments = _parser().parse_args(argv)
    arguments.tree = arguments.tree.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"  # before any library is imported
    earlier = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    if arguments.table:
        print(tables(earlier))
        return 0
    source = arguments.rerun_survivors
    tests: list[Path] = []
    if source is not None:
        found = json.loads(source.read_text(encoding="utf-8"))
        known = earlier.get("tests_since") if arguments.resume else None
        tests = sound(arguments.tree, newer_tests(arguments.tree)) if known is None else [ROOT / path for path in known]
        found["tests_since"] = [f"tests/{path.name}" for path in tests]
    else:
        asked = {"asked_for": arguments.sample, "seed": arguments.seed}
        if arguments.resume and asked.items() <= earlier.items():
            found = earlier
        else:
            drawn = nearest(arguments.sample, arguments.seed, arguments.jobs)
            if drawn is None:
                return 2
            found = drawn
    if arguments.resume and (earlier.get("commit"), earlier.get("seed")) == (found["commit"], found["seed"]):
        for name, entry in found["left_by_the_nearest_tests"].items():
            entry.update(earlier["left_by_the_nearest_tests"].get(name, {}))
    try:
        found = judge_all(
            found, arguments.tree, tests, arguments.out, suite=not arguments.nearest_only
        )  # fmt: skip
    except KeyboardInterrupt:
        print(f"Stopped. What was judged is in {arguments.out}; --resume goes on.", file=sys.stderr)
        return 130
    shown = ("sample", "killed", "killed_share", "killed_share_without_equivalent", "survivors", "seconds")
    print(json.dumps({key: found[key] for key in shown}, indent=1))
    return 0 if (found["killed_share"] or 0) >= arguments.least else 1


if __name__ == "__main__":
    sys.exit(main())
