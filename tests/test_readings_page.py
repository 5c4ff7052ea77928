"""Readings side by side, with many of them; and the pages of a sweep that has everything."""

from __future__ import annotations

import html
import re
from pathlib import Path

import in_process
import numpy as np
import pytest
import synthetic_controls as made

import drift
from drift.claims import main as claims_main
from drift.dataset.files import write
from drift.dataset.sweep import Sweep
from drift.reading import controls, gain, ladder, side_by_side, summary
from drift.reading import figures as reading_figures
from drift.reading.claims import auditing
from drift.reading.claims import page as claims_page
from drift.reading.report import rendering

PROTOCOLS = (
    "append", "restart", "reprime(token=1)", "isolated", "isolated(probe=1)",
    "streaming(sinks=4,window=512,positions=text)", "streaming(sinks=4,window=512,positions=cache)",
    "evict(budget=512)", "quantized(format=int8,axis=token)", "quantized(format=int4,axis=channel)",
    "merge(budget=512)",
)  # fmt: skip


@pytest.fixture(scope="module")
def many() -> Sweep:
    rng = np.random.default_rng(0)
    cells = []
    for k, protocol in enumerate(PROTOCOLS):
        for model in ("alpha-135m", "beta-0.5b"):
            for dtype in ("bf16", "fp32"):
                rounding = 4 * 2.0 ** (-8 if dtype == "bf16" else -24)
                for size in (16, 32):
                    shape = 4, 512 // size
                    drift = np.hypot(rounding, 0.05 * k) * np.exp(0.03 * rng.standard_normal(shape))
                    cells.append(made.make(drift, model=model, dtype=dtype, protocol=protocol, chunk_size=size))
    return Sweep(cells)


def test_every_reading_has_its_row(many: Sweep) -> None:
    table = side_by_side.side_by_side(many)
    assert len(table) == len(PROTOCOLS) * 4
    assert set(table["chunk_size"]) == {16}, "the deepest chain"
    row = table[(table["protocol"] == "restart") & (table["dtype"] == "fp32")].iloc[0]
    # Noise of 0.03 on four documents of 24 late steps: four standard errors; the gap is made the square of drift, and a
    # mean of log-normal squares is too large by twice their variance.
    error = 4 * 0.03 / np.sqrt(4 * 24)
    assert row["level"] == pytest.approx(0.05, rel=error)
    assert row["nll_gap"] == pytest.approx(0.05**2, rel=2 * error + 2 * 0.03**2)
    assert row["gap_low"] <= row["nll_gap"] <= row["gap_high"]
    assert len(side_by_side.reading_sentences(table)) == len(PROTOCOLS)
    assert "same token [%]" not in side_by_side.shown(table)
    spoken = made.make(np.full((2, 8), 0.1), protocol="decode(append,tokens=8)", token_agreement=np.full((2, 8), 0.75))
    table = side_by_side.shown(side_by_side.side_by_side(Sweep([*many.cells[:4], spoken])))
    assert "75.0" in set(table["same token [%]"])


def test_nll_that_is_not_finite_is_counted(many: Sweep) -> None:
    ds = many.cells[0]
    assert set(side_by_side.side_by_side(Sweep([ds]))["nll_nonfinite"]) == {0}
    nll = ds["nll_fold"].copy()
    nll[{"document": 0, "step": slice(-2, None)}] = np.inf
    bad = Sweep([ds.assign(nll_fold=nll)])
    table = side_by_side.side_by_side(bad)
    assert table["nll_nonfinite"].item() == 2
    assert side_by_side.shown(table)["non-finite"].item() == 2
    assert "2 values are NaN or Inf and were left out" in side_by_side.reading_sentences(table)[0]
    assert "2 values are NaN or Inf and were left out" in summary.logit_sentences(bad)[0]
    # Where no token was compared there is nothing to miss.
    counts = ds["target_count"].copy()
    counts[{"document": 0, "step": slice(-2, None)}] = 0
    assert side_by_side.side_by_side(Sweep([ds.assign(nll_fold=nll, target_count=counts)]))["nll_nonfinite"].item() == 0


def test_what_reproduces_what(many: Sweep) -> None:
    found = auditing.audit(many, others=())
    said = side_by_side.reproduced(found)
    status = {(s.claim.name, s.protocol): s.status for s in found.summaries}
    line = next(text for text in said if text.startswith("C2 precision"))
    for protocol in PROTOCOLS:
        word = {"supported": "reproduced", "refuted": "contradicted", "undetermined": "not decided"}
        part = next(p for p in line.split("; ") if re.search(rf"{re.escape(protocol)}(,|\.| Pub|$)", p))
        assert word[status["C2 precision", protocol].value] in part
    assert "contradicted under append" in line
    assert said[-1].startswith("All of them: ")


def test_claims_of_many_readings_stay_legible(many: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, ds in enumerate(ds for ds in many if ds["chunk_size"] == 16):
        write(ds, tmp_path / f"{k}.nc")
    assert claims_main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    block = out.split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in block[1:]] == sorted(PROTOCOLS)
    columns = {name: block[0].index(name) for name in ("C1 plateau", "C2 precision", "C4 level")}
    assert all(line[at - 1] == " " and line[at] in "●✖○–" for line in block[1:] for at in columns.values())
    verdicts = [line for line in out.splitlines() if re.match("  (append|merge)", line)]
    assert len({re.search("SUPPORTED|REFUTED|UNDETERMINED|NOT TESTED", line).start() for line in verdicts}) == 1  # type: ignore[union-attr]
    matrix = claims_page.matrix(auditing.audit(many, others=()))
    assert list(matrix["protocol"]) == sorted(PROTOCOLS)


def test_figures_of_many_readings_fit(many: Sweep) -> None:
    made_figures = [
        reading_figures.levels(ladder.ladders(many)),
        reading_figures.readings(many),
        *(reading_figures.level_vs_roundoff(part) for _, part in reading_figures.groups(many, "x")),
        reading_figures.equivalence(auditing.audit(many, others=()), "C2"),
    ]
    assert [name for name, _ in reading_figures.groups(many, "x")] == ["x-1", "x-2", "x-3"]
    for figure in made_figures:
        assert figure is not None
        figure.draw_without_rendering()
        width, height = (figure.dpi * n for n in figure.get_size_inches())
        assert width < 2000
        texts = [figure._suptitle, figure._supxlabel]  # type: ignore[attr-defined]
        texts += [t for ax in figure.axes for t in (ax.title, ax._left_title)]
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


# ---------------------------------------------------------------------------------------------- pages
@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("everything")
    made.whole(home / "good")
    with in_process.notebooks():
        rendering.render(home / "good", ["claims", "precision", "readings"], home / "pages", report=lambda line: None)
    return home


def text_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)))


def test_the_precision_page_says_what_the_cells_say(pages: Path) -> None:
    sweep = drift.open_sweep(pages / "good")
    assert sweep.problems == {}
    text = text_of(pages / "pages" / "precision.html")
    for line in [*ladder.headlines(ladder.ladders(sweep)).values(), *gain.gain_sentences(gain.gains(sweep)),
                 *ladder.attribution_sentences(ladder.attributions(sweep))]:  # fmt: skip
        assert line.split(": ", 1)[1] in text, line
    figures = {p.name for p in (pages / "pages" / "figures").glob("precision-*")}
    assert figures == {f"precision-{n}.png" for n in ("ladder", "attribution", "response-to-noise", "gain")}
    assert "not measured in this sweep" not in text
    for page in ("index", "claims", "precision", "readings"):
        assert controls.evaluate(sweep).banner in text_of(pages / "pages" / f"{page}.html")
    assert controls.evaluate(sweep).banner.startswith("All 14 controls of the instrument that could be decided passed")
    assert "24 other cells of the sweep are not shown" in text_of(pages / "pages" / "claims.html")


def test_the_readings_page_says_what_the_cells_say(pages: Path) -> None:
    sweep = drift.open_sweep(pages / "good")
    text = text_of(pages / "pages" / "readings.html")
    for line in side_by_side.reproduced(auditing.audit(sweep)):
        assert line.split(": ", 1)[1] in text, line
    assert "decode(append,tokens=8)" in text
    assert (pages / "pages" / "figures" / "readings-readings.png").is_file()


@pytest.mark.usefixtures("notebooks_here")
def test_a_sweep_with_nothing_special_is_told_what_would_measure_it(tmp_path: Path) -> None:
    write(made.make(np.full((1, 8), 0.1)), tmp_path / "one.nc")
    rendering.render(tmp_path, ["precision", "readings"], tmp_path / "pages", report=lambda line: None)
    text = text_of(tmp_path / "pages" / "precision.html")
    assert text.count("not measured in this sweep; python -m drift.sweep") == 3
    assert "one precision only" in text
    assert "Controls were not run" in text_of(tmp_path / "pages" / "index.html")


@pytest.mark.slow
@pytest.mark.usefixtures("notebooks_here")
def test_pages_of_failed_controls_say_so_first_and_conclude_nothing(tmp_path: Path) -> None:
    made.whole(tmp_path / "bad", broken=True, models=["alpha"])
    said: list[str] = []
    rendering.render(tmp_path / "bad", ["claims", "precision"], tmp_path / "pages", report=said.append)
    assert "controls of the instrument failed" in said[0]
    for page in ("index", "claims", "precision"):
        raw = (tmp_path / "pages" / f"{page}.html").read_text()
        assert raw.index('class="controls failed" role="alert"') < raw.index("<main>")
        text = text_of(tmp_path / "pages" / f"{page}.html")
        for words in ("● supported", "✖ refuted", "reproduced under",
                      "rounding: drift is", "structural: drift does", "contraction: a"):  # fmt: skip
            assert words not in text, (page, words)
    assert text_of(tmp_path / "pages" / "claims.html").count("! not drawn") > 20
