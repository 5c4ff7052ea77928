"""The numerical tests under every kernel that this machine's CPU can be held to.

Tests that pass on one CPU say little of another: torch, oneDNN, MKL, OpenBLAS and NumPy each choose their code by what
instructions a CPU has, and each takes a variable that makes it choose as if it had fewer. One row of the table is one
setting; what the machine has not is said and not run.

Rows of one thread run side by side, one per core. Logs lie in build/cpus.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
LOGS = REPOSITORY / "build" / "cpus"
RESULTS = HERE / "results" / "cpus.json"

_AVX2 = ("avx2", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
#: Instructions that decide which kernels are chosen.
FLAGS = (*_AVX512, "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "avx_ne_convert")
#: What is set in nobody's name: a row holds what its name says, and what else the shell had would hold in all of them.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One row: variables of the environment, and the CPU flags without which they would change nothing or crash."""

    variables: Mapping[str, str]
    needs: tuple[str, ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return self.name or ", ".join(f"{name}={value}" for name, value in self.variables.items())

    @property
    def threads(self) -> int:
        return int(self.variables.get("OMP_NUM_THREADS", "1"))

    def missing(self, flags: Sequence[str], cores: int) -> str:
        """Why this machine cannot run it; empty if it can."""
        lacking = [flag for flag in self.needs if flag not in flags]
        if lacking:
            return f"this CPU has no {', '.join(lacking)}"
        return f"{self.threads} threads, but {cores} core" if self.threads > cores else ""


def settings() -> list[Setting]:
    """Every row."""
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched
    from numpy._core._multiarray_umath import __cpu_features__ as features

    oldest = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
              "OPENBLAS_CORETYPE": "Nehalem",
              "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in dispatched if features.get(name))}  # fmt: skip
    return [
        Setting({"OMP_NUM_THREADS": "1"}),
        Setting({"OMP_NUM_THREADS": "2"}),
        Setting({"ATEN_CPU_CAPABILITY": "default"}),
        Setting({"ATEN_CPU_CAPABILITY": "avx2"}, _AVX2),
        Setting({"ATEN_CPU_CAPABILITY": "avx512"}, _AVX512),
        Setting({"ONEDNN_MAX_CPU_ISA": "AVX2"}, _AVX2),
        Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, _AVX512),
        Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, (*_AVX512, "amx_tile", "amx_bf16")),
        Setting(oldest, name="oldest kernels of torch, oneDNN, MKL, OpenBLAS and NumPy"),
    ]


@dataclass
class Row:
    """What became of one setting."""

    setting: Setting
    not_run: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    skips: dict[str, int] = field(default_factory=dict)

    @property
    def cells(self) -> list[str]:
        if self.not_run:
            return [str(self.setting), "not run: " + self.not_run, "", "", ""]
        return [str(self.setting), *(str(n) for n in (self.passed, self.failed, self.skipped)), f"{self.seconds:.0f}"]

    def as_dict(self) -> dict[str, Any]:
        known = {"setting": str(self.setting), "environment": dict(self.setting.variables)}
        if self.not_run:
            return {**known, "not_run": self.not_run}
        counts = {name: getattr(self, name) for name in ("passed", "failed", "skipped", "failures", "skips")}
        return {**known, **counts, "seconds": round(self.seconds)}


def run(row: Row, number: int, arguments: Sequence[str]) -> Row:
    """Run the tests under one setting, in a process of its own, and count."""
    log, report = LOGS / f"{number}.log", LOGS / f"{number}.xml"
    report.unlink(missing_ok=True)
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment = {**clean, "OMP_NUM_THREADS": "1", **row.setting.variables}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "numerical"]
    command += [f"--junitxml={report}", *arguments]
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        file.write(f"{row.setting}: {' '.join(command)}\n")
        file.flush()
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    row.seconds = time.monotonic() - began
    if report.exists():
        count(row, report)
    if done.returncode and not row.failed:  # a crash, or nothing that could be collected
        row.failed, row.failures = 1, [f"pytest ended with exit code {done.returncode}: {log}"]
    return row


def count(row: Row, report: Path) -> None:
    """Read a JUnit report."""
    reasons: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            row.failures.append(name)
        elif (skip := case.find("skipped")) is not None:
            reasons[" ".join(str(skip.get("message")).split())] += 1
        else:
            row.passed += 1
    row.failed, row.skipped, row.skips = len(row.failures), sum(reasons.values()), dict(reasons)


def machine() -> dict[str, Any]:
    """What decides which kernels run."""
    import numpy
    import torch

    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload, index]
    model, flags = cpu()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "numpy": numpy.__version__,
        "numpy_blas": f"{blas['name']} {blas['version']}",
    }


def cpu() -> tuple[str, set[str]]:
    """Name and flags of the CPU; no flags where the system does not list them as Linux on x86 does."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        entries = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        entries = {}
    known = {name.strip(): value.strip() for name, value in entries.items()}
    return known.get("model name") or platform.processor() or "unknown", set(known.get("flags", "").split())


def table(rows: Sequence[Row]) -> str:
    """Write the rows as a table of Markdown, which is read on a terminal as well."""
    head = ["setting", "passed", "failed", "skipped", "seconds"]
    lines = [row.cells for row in rows]
    widths = [max(len(line[k]) for line in [head, *(line for line in lines if line[2] or k == 0)]) for k in range(5)]
    texts = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *lines]]
    texts.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {text} |" for text in texts)


def everything(rows: Sequence[Row], jobs: int, arguments: Sequence[str], told: Callable[[Row], None]) -> None:
    """Run rows of one thread side by side, then the others one by one."""
    waiting = [(row, number) for number, row in enumerate(rows) if not row.not_run]
    LOGS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        single = [pool.submit(run, row, k, arguments) for row, k in waiting if row.setting.threads == 1]
        for future in single:
            told(future.result())
    for row, number in waiting:
        if row.setting.threads > 1:
            told(run(row, number, arguments))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORD", nargs="+", help="settings with one of these words in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows at once (default: one per core)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go (default: %(default)s)")
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --: -- -k trace")
    given = parser.parse_args(argv)
    flags, cores = cpu()[1], os.cpu_count() or 1
    rows = [
        Row(setting, setting.missing(sorted(flags), cores))
        for setting in settings()
        if not given.only or any(word in str(setting) for word in given.only)
    ]
    if not rows:
        parser.error(f"no setting has {' or '.join(given.only)} in its name: {'; '.join(map(str, settings()))}")

    def told(row: Row) -> None:
        print(f"{row.setting}: {row.passed} passed, {row.failed} failed, {row.skipped} skipped", flush=True)

    began = time.monotonic()
    everything(rows, max(1, given.jobs), given.pytest, told)
    print(f"\n{table(rows)}\n")
    for row in rows:
        for name in row.failures:
            print(f"failed under {row.setting}: {name} (log: {LOGS / str(rows.index(row))}.log)")
        for reason, number in row.skips.items():
            print(f"skipped under {row.setting}: {number}: {reason}")
    if not given.only and not given.pytest:
        facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "seconds": round(time.monotonic() - began), **machine()}
        found = {"machine": facts, "settings": [row.as_dict() for row in rows]}
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"written: {given.out}")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
