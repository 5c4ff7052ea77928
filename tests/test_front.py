"""The first page: what it says is what the cells say, and what is in a file is text."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import synthetic
import xarray as xr

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import claims, figures, floor
from drift.reading.excess import excess_values, floor_values
from drift.reading.figures import captions
from drift.reading.report.answers import READINGS, answers
from drift.reading.report.front import write_front
from drift.reading.report.pages import Page

MODELS = ("alpha", "beta")


def chain(model: str = "alpha", protocol: str = "append", excess: float = 0.95, **options: object) -> xr.Dataset:
    level = 1.4e-2
    given = {"tokens": 1024, "chunk_size": 16, "documents": 4, "layers": 2, "noise": 0.05, **options}
    return synthetic.cell(
        model=model, protocol=protocol, level=lambda step: level * excess + 0 * step,
        floor=lambda step: level + 0 * step, **given,  # type: ignore[arg-type]
    )  # fmt: skip


def page(cells: list[xr.Dataset], folder: Path, pages: tuple[Page, ...] = ()) -> str:
    write_front(Sweep(cells), pages, folder, (), "Drift report: mine", "", "figures")
    return (folder / "index.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- the figure
@pytest.mark.parametrize("factor", [floor.FACTOR, 1.02])
def test_the_figure_shows_drift_floor_and_excess_as_its_title_says(factor: float) -> None:
    cells = [chain(model, dtype=dtype) for model in MODELS for dtype in ("bf16", "fp32")]
    figure = figures.drift_and_floor(Sweep(cells), factor=factor)
    assert len(figure.axes) == 4
    top, bottom = figure.axes[0], figure.axes[2]
    for at, ds in enumerate(cells[:2]):
        want = [synthetic_mean(dataset.curve(ds)), synthetic_mean(floor_values(ds))]
        for line, mean in zip(top.lines[2 * at : 2 * at + 2], want, strict=True):
            np.testing.assert_allclose(line.get_ydata(), mean)
        np.testing.assert_allclose(bottom.lines[1 + at].get_ydata(), synthetic_mean(excess_values(ds)))
    (band,) = bottom.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((1 / factor, factor))
    verdicts = [floor.rounding(ds, factor=factor) for ds in cells]
    assert figure.get_suptitle().replace("\n", " ") == floor.headline("append", verdicts)
    assert "at the floor" in floor.headline("append", verdicts) or factor < 1.1
    caption = figure.get_supxlabel().replace("\n", " ")
    assert f"within a factor {factor:.3g} of the floor" in caption
    assert captions.BAND in caption
    assert "Log scale above" in caption


def synthetic_mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.log(values).mean(axis=0)))


def test_an_excess_of_thousands_has_a_log_axis_and_says_so() -> None:
    figure = figures.drift_and_floor(Sweep([chain(protocol="restart", excess=4000)]), protocol="restart")
    assert figure.axes[1].get_yscale() == "log"
    assert "Log scale in both rows" in figure.get_supxlabel().replace("\n", " ")
    assert "above the floor: drift is more than rounding" in figure.get_suptitle().replace("\n", " ")


def test_of_every_model_and_precision_the_deepest_chain_is_drawn() -> None:
    short, deep = chain(chunk_size=64), chain(chunk_size=8)
    figure = figures.drift_and_floor(Sweep([short, deep]))
    assert len(figure.axes[0].lines[0].get_ydata()) == deep.sizes["step"] == 128


def test_without_a_floor_there_is_no_such_figure() -> None:
    with pytest.raises(DatasetError, match="no cell of append carries the rounding floor of hidden_rel_l2"):
        figures.drift_and_floor(Sweep([synthetic.cell(layers=2, tokens=256)]))


# ---------------------------------------------------------------------------------------------- the page
def test_the_page_answers_with_what_the_audit_says(tmp_path: Path) -> None:
    cells = [
        chain(model, protocol, excess, dtype=dtype, chunk_size=size)
        for model in MODELS
        for protocol, excess in (("append", 0.95), ("restart", 50.0))
        for dtype in ("bf16", "fp32")
        for size in (16, 32)
    ]
    said = answers(Sweep(cells))
    audit = claims.audit(Sweep(cells))
    assert said.readings == ["append", "restart"]
    by_place = {(s.claim.name, s.protocol): s for s in audit.summaries}
    seen = 0
    for name, _, fields in said.rows:
        for reading, field in zip(said.readings, fields, strict=True):
            if (name, reading) in by_place:
                assert field.word == by_place[name, reading].status.value
                assert by_place[name, reading].words in field.why
                seen += 1
    assert seen >= 10
    text = page(cells, tmp_path)
    plain = html.unescape(re.sub(r"<[^>]+>", " ", text))
    for sentence in said.sentences:
        assert sentence in plain
    assert "append: all 8 chains at the floor: drift is rounding" in said.sentences[0]
    assert any("restart" in sentence and "above the floor" in sentence for sentence in said.sentences)
    open_fields = sum(field.kind == "undetermined" for _, _, fields in said.rows for field in fields)
    count = len(said.rows) * len(said.readings)
    assert (f"{open_fields} of {count} fields are undetermined" in plain) == bool(open_fields)
    assert (tmp_path / "figures" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "gallery" not in text


def test_other_readings_have_no_column() -> None:
    found = answers(Sweep([chain(), chain(protocol="quantized"), chain(protocol="isolated", excess=70.0)]))
    assert found.readings == ["append", "isolated"]
    assert set(found.readings) < set(READINGS)


def test_practice_names_the_coarsest_precision_and_the_numbers_of_its_cells() -> None:
    bf16, fp32 = chain(dtype="bf16"), chain(dtype="fp32")
    (line,) = answers(Sweep([bf16, fp32])).practice
    assert line.startswith("append, alpha, bf16, chunk 16: ")
    steps = dataset.curve(bf16, "top1_agreement")[:, 16:]
    assert f"{100 * (1 - steps.mean()):.1f} % of the most likely next tokens are others" in line


def test_what_stands_in_a_file_is_text_on_the_page(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    text = page([chain(model=bad, dtype=d) for d in ("bf16", "fp32")], tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_pages_are_linked_with_what_their_first_figure_shows(tmp_path: Path) -> None:
    shown = Page("x", "A & B", tmp_path / "x.html", [(tmp_path / "f.png", "Drift is < 1. Lines: mean.")])
    text = page([chain()], tmp_path, (shown,))
    assert '<a href="x.html">A &amp; B</a> Drift is &lt; 1.' in text


def test_a_sweep_without_folds_says_so(tmp_path: Path) -> None:
    text = page([synthetic.cell(protocol="full", layers=2, tokens=256)], tmp_path)
    assert "No cell compares a fold with full attention at the same precision." in text
