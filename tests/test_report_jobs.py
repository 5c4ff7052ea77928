"""Several notebooks of a report at once: what comes out, in which order, and what an interruption leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import synthetic
from notebook_tools import own_notebook
from sweep_tools import REPOSITORY

from drift import report
from drift.dataset.files import write


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "small"
    write(synthetic.cell(tokens=64, layers=1), folder / "one.nc")
    return folder


def notebook(folder: Path, name: str, code: str) -> str:
    path = folder / f"{name}.ipynb"
    own_notebook(path, code)
    return str(path)


def test_pages_are_in_the_order_asked_for_and_one_that_stops_takes_none_along(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = notebook(tmp_path, "slow", "import time\ntime.sleep(2)\nprint('of the slow one')")
    wrong = notebook(tmp_path, "wrong", "print('so far')\n1 / 0")
    quick = notebook(tmp_path, "quick", "print('of the quick one')")
    out = tmp_path / "out"
    code = report.main([str(sweep), "--notebook", slow, wrong, quick, "--jobs", "2", "--out", str(out)])
    said = capsys.readouterr()
    assert code == 1
    assert "wrong.ipynb: cell 2 stopped with ZeroDivisionError: division by zero" in said.err
    assert "slow, wrong, quick: running, 2 at once" in said.out
    assert "wrong: FAILED" in said.out
    assert said.out.index("slow.html") < said.out.index("quick.html")
    assert "of the slow one" in (out / "slow.html").read_text()
    assert "so far" in (out / "wrong.partial.ipynb").read_text()
    assert not (out / "wrong.html").exists()
    index = (out / "index.html").read_text()
    assert index.index("slow.html") < index.index("quick.html")


def kernels(marker: str) -> list[int]:
    """Processes of this machine that have a variable of that value."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found as Linux lists them")
def test_ctrl_c_ends_all_of_them_and_leaves_the_pages_as_they_were(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "first.html").write_text("of before")
    code = f"open({str(tmp_path)!r} + f'/begun-{{__import__(\"os\").getpid()}}', 'w')\n__import__('time').sleep(600)"
    notebooks = [notebook(tmp_path, name, code) for name in ("first", "second")]
    marker = f"DRIFT_TEST={tmp_path}"
    rendering = subprocess.Popen(
        [sys.executable, "-m", "drift.report", str(sweep), "--notebook", *notebooks, "--jobs", "2", "--out", str(out)],
        cwd=REPOSITORY, env=os.environ | dict([marker.split("=")]), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 240
    while time.monotonic() < end and rendering.poll() is None and len(list(tmp_path.glob("begun-*"))) < 2:
        time.sleep(0.05)
    os.killpg(rendering.pid, signal.SIGINT)
    _, said = rendering.communicate(timeout=60)
    assert rendering.returncode == 130, said
    assert "Traceback" not in said
    end = time.monotonic() + 60
    while time.monotonic() < end and kernels(marker):
        time.sleep(0.1)
    assert kernels(marker) == []
    assert [p.name for p in out.iterdir()] == ["first.html"]
    assert (out / "first.html").read_text() == "of before"
