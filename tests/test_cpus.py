"""The command that runs the numerical tests under other kernels: what it counts, and that it can fail."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench_tools import bench
from sweep_tools import REPOSITORY

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good"/>
<testcase classname="tests.test_a" name="test_other"/>
<testcase classname="tests.test_a" name="test_left_out"><skipped message="torch refuses"/></testcase>
{more}
</testsuite></testsuites>"""
BAD = '<testcase classname="tests.test_a" name="test_bad"><failure message="off by an ulp"/></testcase>'


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with its logs elsewhere, on a machine with AVX2 and one core."""
    with bench("cpus") as module:
        monkeypatch.setattr(module, "LOGS", tmp_path / "logs")
        monkeypatch.setattr(module, "cpu", lambda: ("a CPU", {"avx2", "fma"}))
        monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
        yield module


def pretend(monkeypatch: pytest.MonkeyPatch, where: str = "", code: int = 1) -> list[dict[str, str]]:
    """Let pytest say that a test failed in settings with this variable; returns the environments."""
    seen: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        failed = bool(where) and where in env
        if code != 139:  # a crash leaves no report
            (path,) = (c.removeprefix("--junitxml=") for c in command if c.startswith("--junitxml="))
            Path(path).write_text(REPORT.format(more=BAD if failed else ""))
        return subprocess.CompletedProcess(command, code if failed else 0)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_every_setting_that_the_machine_has_is_run_and_counted(
    cpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")  # of whoever calls: no part of a row that does not name it
    seen = pretend(monkeypatch)
    assert cpus.main(["--out", str(tmp_path / "cpus.json")]) == 0
    said = capsys.readouterr().out
    assert "| ATEN_CPU_CAPABILITY=avx2 " in said
    assert "not run: this CPU has no avx512f, avx512bw, avx512dq, avx512vl, amx_tile, amx_bf16" in said
    assert "not run: 2 threads, but 1 core" in said
    assert "1: torch refuses" in said
    found = json.loads((tmp_path / "cpus.json").read_text())
    assert found["machine"]["cpu"] == "a CPU"
    rows = {row["setting"]: row for row in found["settings"]}
    assert len(rows) == 9
    ran = [row for row in rows.values() if "not_run" not in row]
    assert len(ran) == len(seen) == 5
    for row, environment in zip(ran, seen, strict=True):
        assert (row["passed"], row["failed"], row["skipped"]) == (2, 0, 1)
        assert row["skips"] == {"torch refuses": 1}
        asked = {name: value for name, value in environment.items() if name in cpus.VARIABLES}
        assert asked == {"OMP_NUM_THREADS": "1", **row["environment"]}


def test_one_failure_under_one_setting_fails(
    cpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, "MKL_CBWR")
    assert cpus.main(["--out", str(tmp_path / "cpus.json")]) == 1
    assert "failed under oldest kernels of torch, oneDNN, MKL, OpenBLAS and NumPy: tests.test_a::test_bad" in (
        capsys.readouterr().out
    )


def test_a_crash_is_a_failure_and_some_settings_write_no_figures(
    cpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, "ATEN_CPU_CAPABILITY", 139)
    assert cpus.main(["--only", "CAPABILITY=default", "--out", str(tmp_path / "cpus.json")]) == 1
    assert "pytest ended with exit code 139" in capsys.readouterr().out
    assert not (tmp_path / "cpus.json").exists()
    with pytest.raises(SystemExit):
        cpus.main(["--only", "NEON"])
    assert "no setting has NEON in its name" in capsys.readouterr().err


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    found = json.loads((REPOSITORY / "bench" / "results" / "cpus.json").read_text())
    page = (REPOSITORY / "bench" / "README.md").read_text()
    assert f"{found['machine']['date']}, `make test-cpus`" in page
    table = page.split("(`results/cpus.json`):")[1].split("Skipped:")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert rows == [
        [row["setting"], *(str(row[k]) for k in ("passed", "failed", "skipped"))] for row in found["settings"]
    ]
    assert not any(row["failed"] for row in found["settings"])
