"""The page of task cells: by itself, and as evidence of a report whose first page has their rows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import synthetic
from task_tools import task_cell

from drift import dataset
from drift.reading.report import rendering

pytestmark = pytest.mark.usefixtures("notebooks_here")
ONES = np.ones((8, 1), dtype=int)


def asked(folder: Path) -> Path:
    cells = [
        task_cell(ONES, fold, tokens=tokens, protocol=protocol, kl=kl, change=-kl)
        for tokens in (1024, 2048)
        for protocol, fold, kl in (
            ("append", ONES, 1e-3),
            ("isolated", 0 * ONES, 2.0),
            ("streaming(window=256,positions=cache)", 0 * ONES, 3.0),
        )
    ]
    cells.append(task_cell(ONES, ONES, task="tracking(hops=2)", facts=3, change=0.01 * np.arange(8)[:, None]))
    for place, ds in enumerate(cells):
        dataset.write(ds, folder / f"{place}.nc")
    return folder


def test_the_page_opens_with_sentence_figure_and_table_and_folds_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    index = rendering.render(asked(tmp_path / "asked"), out=out, report=lambda line: None)
    assert {page.name for page in out.glob("*.html")} == {"index.html", "retrieval.html"}
    body = (out / "retrieval.html").read_text(encoding="utf-8").split("<main>")[1]
    unfolded = body[: body.index('<details class="fold"')]
    order = [unfolded.index(mark) for mark in ("<h1", "<li>", "<img", "<table")]
    assert order == sorted(order)
    assert {"C5", "C6"} <= set(re.findall(r'id="(C\d)"', body))
    assert "append 16 of 16, isolated 0 of 16" in body
    assert "predicted, not measured" in body
    front = index.read_text(encoding="utf-8")
    assert "C5 as full attention" in front
    assert "retrieval.html#C5" in front


def test_as_evidence_it_fills_rows_of_the_first_page(tmp_path: Path) -> None:
    drift = tmp_path / "drift"
    synthetic.sweep(drift, ["alpha"], ["bf16"], ["append", "isolated"], [32], layers=2, tokens=256)
    evidence = asked(tmp_path / "asked")
    index = rendering.render(drift, ["plateau"], tmp_path / "out", report=lambda line: None, evidence=[evidence])
    assert (tmp_path / "out" / "retrieval-asked.html").is_file()
    front = index.read_text(encoding="utf-8")
    row = front[front.index("C5 retrieval") :]
    assert "retrieval-asked.html#C5" in row
    assert "a sweep of its own that asks tasks" in front
    assert "streaming(window=256,positions=cache), C5 streaming" in front
