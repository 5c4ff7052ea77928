"""``python -m drift.claims``: tables, JSON, mistakes."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from claims_tools import cell, power, saturated

from drift import dataset
from drift.claims import main as claims_main
from drift.dataset.sweep import Sweep
from drift.reading.claims import page
from drift.reading.claims import published as claims_published
from drift.reading.claims.auditing import audit
from drift.reading.claims.model import Setting

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("claims") / "sweep"
    for m, d in itertools.product("ab", ("bf16", "fp32")):
        law = power(math.log2(1.08)) if m == "b" else saturated
        dataset.write(cell(law, model=m, dtype=d, noise=0.03), root / f"{m}_{d}.nc")
    return root


def test_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(folder)]) == 0
    short = capsys.readouterr()
    assert short.err == ""
    assert all(c.name in short.out for c in claims_published.CLAIMS if c.asked is None)
    assert all(key in short.out for key in ("C5", "C6"))
    assert "REFUTED       2 supported, 2 refuted of 4" in short.out
    assert "a bf16, chunk 64: supported" not in short.out
    assert claims_main([str(folder), "--details"]) == 0
    long = capsys.readouterr().out
    assert "a bf16, chunk 64: supported: saturated plateau" in long
    assert "b fp32, chunk 64: refuted: growing" in long
    assert set(short.out.splitlines()) <= set(long.splitlines())


def test_markdown_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(folder), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    drifts = [c for c in claims_published.CLAIMS if c.asked is None]
    assert len(lines) == 2 + len(drifts) + len(("C5", "C6")), "what tasks test is a line each where nothing was asked"
    assert all(line.startswith(("| ", "|---")) for line in lines)
    assert "**refuted**" in lines[2]
    assert claims_main([str(folder), "--json", "--measure", "logit_kl", "--layer", "1"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {r["measure"] for r in told["claims"]} == {"logit_kl"}
    assert told["claims"][0]["cells"] == ["a_bf16.nc", "a_fp32.nc", "b_bf16.nc", "b_fp32.nc"]


@pytest.mark.parametrize("margin", ["growth=15%", "growth=0.15"])
def test_margins_on_the_command_line(margin: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(folder), "--json", "--margin", margin, "--margin", "family=3", "--alpha", "0.04"]) == 0
    told = json.loads(capsys.readouterr().out)
    wanted = vars(Setting(growth=0.15, family=3.0, alpha=0.04))
    assert told["setting"] == pytest.approx(wanted)
    assert told["claims"][0]["verdict"] == "supported"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--margin", "growth"], "NAME=NUMBER"),
        (["--margin", "growth=wide"], "NAME=NUMBER"),
        (["--margin", "growth=nan"], "NAME=NUMBER"),
        (["--margin", "alpha=0.1"], "NAME=NUMBER"),
        (["--margin", "width=0.1"], "growth, precision, chunk, family, proportional, retrieval, likelihood, rise"),
        (["--margin", "growth=200%"], "growth"),
        (["--margin", "family=inf"], "family"),
        (["--alpha", "0.7"], "alpha"),
        (["--measure", "no_such_measure"], "no_such_measure"),
        (["--layer", "99"], "no layer 99"),
        (["--layer", "last-but-one"], "no layer"),
        (["--layer", "²"], "no layer"),
    ],
)
def test_mistakes_are_told_and_end_with_two(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims_main([str(folder / "a_bf16.nc"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1


def test_no_folder_no_cells_and_broken_files(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert claims_main([str(tmp_path)]) == 2
    assert "no cell that can be read" in capsys.readouterr().err
    (tmp_path / "good.nc").write_bytes((folder / "a_bf16.nc").read_bytes())
    (tmp_path / "broken.nc").write_bytes(b"not a netCDF file")
    assert claims_main([str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "broken.nc was left out" in told.err
    assert "saturated plateau" in told.out
    with pytest.raises(SystemExit) as stopped:
        claims_main([str(folder), "--json", "--markdown"])
    assert stopped.value.code == 2


def test_help_needs_no_model_and_no_pictures() -> None:
    code = (
        "import sys, drift.claims\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'seaborn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "drift.claims.main(['--help'])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
    assert "usage: python -m drift.claims" in told.stdout


def test_protocols_that_were_not_tested_share_a_row() -> None:
    cells = [cell(protocol=name) for name in ("append", "restart", "reprime")]
    found = audit(Sweep(cells), others=[])
    assert [s.protocol for s in found.summaries if s.claim.name == "C3 chunk size"] == ["append", "reprime", "restart"]
    rows = [line for line in page.markdown(found).splitlines() if line.startswith("| C3")]
    assert len(rows) == 1
    assert "append, reprime, restart" in rows[0]
    assert page.html(found).count("no cells to compare") == page.markdown(found).count("no cells to compare")
