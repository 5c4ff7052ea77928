"""Inputs that nobody meant, over every format that comes from outside: a result or an error of ours, in bounded time.

Each format is tried in a process of its own, with a bound on its memory and on the time of each input. Whatever else
comes out (another error, a process that died, an input that took too long) is a finding: it is told, kept under
``build/fuzz``, and belongs as an example into ``tests/test_hostile_*.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "fuzz.json"
FINDINGS = ROOT / "build" / "fuzz"
MEMORY = 2 << 30  # bytes of address space that inputs may take, beyond what the imports have
SECONDS = 10  # of processor time for one input
SILENCE = 300  # seconds without a word after which a process is taken for dead
INPUTS = 100_000


class TooLongError(Exception):
    """An input took too much time."""


def too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError(f"more than {SECONDS} s of processor time")


def _signature(error: BaseException) -> str:
    """Kind and place of an error: the innermost line of drift."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}drift{os.sep}" in f.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"
    return f"{type(error).__name__} in {place}"


class Trial:
    """Counts what became of the inputs of one format."""

    def __init__(self, name: str, keep: Path | None) -> None:
        self.name, self._keep = name, keep
        self.tried = self.results = self.refused = 0
        self.slowest = 0.0
        self.findings: dict[str, dict[str, Any]] = {}

    def run(self, probe: Any, value: Any, refusals: tuple[type[BaseException], ...]) -> None:
        """Try one input in a folder of its own."""
        self.tried += 1
        folder = Path(tempfile.mkdtemp(prefix="drift-fuzz-"))
        if self._keep is not None:  # should the process die, this is what it died of
            self._keep.write_bytes(pickle.dumps(value))
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            probe(value, folder)
            self.results += 1
        except refusals:
            self.refused += 1
        except (Exception, SystemExit) as error:
            found = self.findings.setdefault(_signature(error), {"count": 0, "error": "", "inputs": []})
            found["count"] += 1
            if len(found["inputs"]) < 3:
                found["inputs"].append(repr(value)[:2000])
                found["error"] = "".join(traceback.format_exception(error)[-8:])[-4000:]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.slowest = max(self.slowest, time.process_time() - started)
            shutil.rmtree(folder, ignore_errors=True)

    def told(self) -> dict[str, Any]:
        """The counts, as JSON."""
        return {
            "tried": self.tried, "results": self.results, "refused": self.refused,
            "slowest_s": round(self.slowest, 2), "findings": self.findings,
        }  # fmt: skip


def child(names: list[str], inputs: int, seed: int, out: Path) -> int:
    """Try some formats in this process, and write what became of them."""
    os.environ["DRIFT_CACHE"] = str(out.parent / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(ROOT / "tests"))
    import fuzz_formats
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, too_long)
    formats = fuzz_formats.formats()
    with contextlib.suppress(OSError, IndexError):  # where the system says what is taken already
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    told = {}
    for name in names:
        trial, format_ = Trial(name, out.with_suffix(".last")), formats[name]
        wanted = settings(
            max_examples=inputs, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        def attempt(value: Any) -> None:
            trial.run(format_.probe, value, fuzz_formats.REFUSALS)  # noqa: B023

        attempt = wanted(given(format_.inputs)(attempt))

        round_ = 0
        while trial.tried < inputs and round_ < 100:  # a strategy may say that it has no more
            seeded(seed + round_)(attempt)()
            round_ += 1
        told[name] = trial.told()
        out.write_text(json.dumps(told, indent=1), encoding="utf-8")
        print(name, trial.tried, flush=True)
    return 0


def watched(command: list[str], last: Path) -> str:
    """Run a child; what it died of, or nothing."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while True:
        try:
            _, said = process.communicate(timeout=5)
            break
        except subprocess.TimeoutExpired:
            if last.exists() and time.time() - last.stat().st_mtime > SILENCE:
                process.kill()
                process.communicate()
                return f"an input took more than {SILENCE} s"
    return "" if process.returncode == 0 else f"the process ended with {process.returncode}: {said[-2000:]}"


def fuzz(names: dict[str, int], seed: int, folder: Path, together: bool) -> dict[str, Any]:
    """Try inputs of formats, so many of each."""
    groups = [list(names)] if together else [[name] for name in names]
    told: dict[str, Any] = {}
    for group in groups:
        out = folder / f"{group[0].replace('.', '-')}.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--child", ",".join(group), "--out", str(out)]
        command += ["--inputs", str(names[group[0]]), "--seed", str(seed)]
        died = watched(command, out.with_suffix(".last"))
        found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        told |= found
        if died:
            name = next((name for name in group if name not in found), group[-1])
            last = out.with_suffix(".last")
            given = repr(pickle.loads(last.read_bytes()))[:2000] if last.exists() else ""
            shutil.copy(last, folder / f"died-{name.replace('.', '-')}.pickle") if last.exists() else None
            told.setdefault(name, {"tried": 0, "results": 0, "refused": 0, "slowest_s": 0.0, "findings": {}})
            told[name]["findings"]["died"] = {"count": 1, "error": died, "inputs": [given]}
    return told


def table(found: dict[str, Any]) -> str:
    """The counts as a table for the README."""
    rows = ["| format | inputs | results | refused | findings | slowest |", "|---|---|---|---|---|---|"]
    for name, told in found["formats"].items():
        findings = sum(finding["count"] for finding in told["findings"].values())
        counts = f"{told['tried']:,} | {told['results']:,} | {told['refused']:,} | {findings}"
        rows.append(f"| {name} | {counts} | {told['slowest_s']:.1f} s |")
    total = sum(told["tried"] for told in found["formats"].values())
    return "\n".join([*rows, f"| **all** | **{total:,}** | | | **{found['findings']}** | |"])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"inputs over all formats (default {INPUTS:,})")
    parser.add_argument(
        "--formats", default="", help="only these, with commas between; counts of others that --out has stay"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="all formats in one process")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the counts go")
    parser.add_argument("--scratch", type=Path, default=FINDINGS, help="where inputs that matter are kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child.split(","), arguments.inputs, arguments.seed, arguments.out)
    sys.path.insert(0, str(ROOT / "tests"))
    with tempfile.TemporaryDirectory(prefix="drift-fuzz-cache-") as cache:
        os.environ.setdefault("DRIFT_CACHE", cache)  # importing the formats must not touch the user's
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """Try what was asked for, write the counts, and print them."""
    import fuzz_formats

    formats = fuzz_formats.formats()
    wanted = [name for name in formats if not arguments.formats or name in arguments.formats.split(",")]
    shares = sum(formats[name].share for name in wanted)
    counts = {name: max(1, round(arguments.inputs * formats[name].share / shares) + 1) for name in wanted}
    if arguments.together:
        counts = dict.fromkeys(wanted, max(1, arguments.inputs // len(wanted)))
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch, prefix="run-"))
    told = fuzz(counts, arguments.seed, folder, arguments.together)
    if arguments.formats and arguments.out.exists():  # what else was tried before stands
        before = json.loads(arguments.out.read_text(encoding="utf-8"))
        started -= before["seconds"]
        tried = before["formats"] | told
        told = {name: tried[name] for name in formats if name in tried}
    found = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - started),
        "memory_bytes": MEMORY,
        "seconds_per_input": SECONDS,
        "inputs": sum(format_["tried"] for format_ in told.values()),
        "findings": sum(finding["count"] for format_ in told.values() for finding in format_["findings"].values()),
        "formats": told,
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    for name, format_ in told.items():
        for signature, finding in format_["findings"].items():
            print(f"\n{name}: {signature}, {finding['count']} times\n{finding['inputs'][:1]}\n{finding['error']}")
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
