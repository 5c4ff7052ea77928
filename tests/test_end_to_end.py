"""From a checkpoint on disk to HTML, through the command lines that people use."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
from sweep_tools import text_file, tiny_checkpoint, write_config

import drift
from drift import report
from drift.reading import summary
from drift.reading.claims import auditing, model
from drift.running.sweep.running import run
from drift.sweep import main as sweep_main


def test_a_sweep_becomes_a_report(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tiny")
    config = write_config(
        tmp_path / "small.yaml",
        name="small",
        model=str(tmp_path / "tiny"),
        dtype=["bf16", "fp32"],
        chunk_size=[8, 16],
        protocol=["append", "restart", "reprime"],
        documents=2,
        tokens=96,
        corpus=f"file:{text_file(tmp_path / 'text.txt')}",
    )
    out = tmp_path / "small"
    assert sweep_main([str(config), "--out", str(out)]) == 0
    sweep = drift.open_sweep(out)
    assert len(sweep) == 12
    assert sweep.problems == {}
    assert report.main([str(out), "--notebook", "claims", "plateau", "--out", str(tmp_path / "pages")]) == 0
    page = (tmp_path / "pages" / "plateau.html").read_text(encoding="utf-8")
    assert "12 cells read" in page
    # What the page says of restart is what the cells hold: geometric mean past the first quarter, then over documents.
    for dtype in ("bf16", "fp32"):
        cell = sweep.sel(protocol="restart", chunk_size=8, dtype=dtype).only()
        drifts = cell.hidden_rel_l2.isel(layer=-1, step=slice(3, None)).values
        assert drifts.shape == (2, 9)
        level = np.exp(np.log(drifts).mean(axis=1).mean())
        mantissa, exponent = f"{level:.2e}".split("e")
        assert f"{mantissa}e{int(exponent)}" in page or f"{level:.3g}" in page
    for protocol in ("append", "restart", "reprime"):
        assert re.search(rf"{protocol}:</strong> ", page), protocol
    # The first page is the audit of these very cells.
    found = auditing.audit(sweep)
    first = (tmp_path / "pages" / "claims.html").read_text(encoding="utf-8")
    said = re.findall(r'<span class="[a-z-]+">. ([a-z ]+)</span>', first)
    expected: list[str] = []
    for claim in dict.fromkeys(s.claim for s in found.summaries):
        mine = [s for s in found.summaries if s.claim is claim]
        expected += [s.status.value for s in mine if s.status is not model.Status.NOT_TESTED]
        # What was not tested for the same reason shares a row.
        expected += ["not tested"] * len({s.words for s in mine if s.status is model.Status.NOT_TESTED})
    # Above the whole table stands a short one: of every claim each verdict once.
    short = [status for claim in dict.fromkeys(s.claim for s in found.summaries)
             for status in {s.status.value for s in found.summaries if s.claim is claim}]  # fmt: skip
    assert said[-len(expected) :] == expected
    assert sorted(said[: -len(expected)]) == sorted(short)
    assert all(s.words in html.unescape(first) for s in found.summaries)
    # The commands that the page gives lead to the very same cells: nothing is left to compute.
    commands = summary.reproduce(sweep)
    assert commands.splitlines()[-1] == "python -m drift.report small"
    (tmp_path / "sweep.yaml").write_text(commands.split("<<'END'\n")[1].split("\nEND")[0], encoding="utf-8")
    again = run(tmp_path / "sweep.yaml", out)
    assert (again.done, again.files) == (12, [])
