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
from drift.reading.claims.model import Status
from drift.reading.excess import excess_values, floor_values
from drift.reading.figures import captions
from drift.reading.floor.wording import STANDING_WORDS
from drift.reading.report.answers import READINGS, Answers, answers
from drift.reading.report.exhibits import Exhibit, deepest_exhibit
from drift.reading.report.front import write_front
from drift.reading.report.pages import Page
from drift.reading.report.practice import Advice, advice, advice_words

MODELS = ("alpha", "beta")


def chain(model: str = "alpha", protocol: str = "append", excess: float = 0.95, **options: object) -> xr.Dataset:
    level = 1.4e-2
    given = {"tokens": 1024, "chunk_size": 16, "documents": 4, "layers": 2, "noise": 0.05, **options}
    return synthetic.cell(
        model=model, protocol=protocol, level=lambda step: level * excess + 0 * step,
        floor=lambda step: level + 0 * step, **given,  # type: ignore[arg-type]
    )  # fmt: skip


def page(cells: list[xr.Dataset], folder: Path, pages: tuple[Page, ...] = ()) -> str:
    write_front([Exhibit(Sweep(cells))], pages, folder, (), "Drift report: mine", "", "figures")
    return (folder / "index.html").read_text(encoding="utf-8")


def said_of(cells: list[xr.Dataset]) -> Answers:
    return answers([Exhibit(Sweep(cells))])


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


def test_a_headline_says_first_what_is_decided_and_in_how_many_chains() -> None:
    at = floor.rounding(chain("a"))
    open_ = floor.rounding(chain("a"), factor=1 / 0.95)  # at its end: the interval lies on both sides
    assert (at.verdict, open_.verdict) == (floor.Standing.AT_FLOOR, floor.Standing.UNDETERMINED)
    said = floor.headline("append", [open_, open_, at])
    decided, undecided = STANDING_WORDS[at.verdict], STANDING_WORDS[open_.verdict]
    assert said.startswith(f"append: 1 of 3 chains {decided}; 2 of 3 {undecided} (")
    assert floor.headline("append", [at, at]).startswith(f"append: all 2 chains {decided} (")
    assert floor.headline("append", [at]).startswith(f"append: {decided} (")


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


def test_the_title_counts_the_chains_that_the_claims_table_counts() -> None:
    cells = [chain(chunk_size=16), chain(chunk_size=8), chain("beta", chunk_size=8)]
    figure = figures.drift_and_floor(Sweep(cells))
    (row,) = (s for s in claims.audit(Sweep(cells)).summaries if s.claim.name == "C1 excess")
    said = said_of(cells).sentences[0]
    assert len(row.findings) == 3
    assert figure.get_suptitle().replace("\n", " ").startswith("append: all 3 chains at the floor")
    assert said.startswith("append: all 3 chains at the floor")
    assert "Drawn: of every model and precision the deepest chain" in figure.get_supxlabel().replace("\n", " ")
    assert len(figure.axes[0].lines[0].get_ydata()) == 128


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
    said = said_of(cells)
    audit = claims.audit(Sweep(cells))
    assert said.readings == ["append", "restart"]
    by_place = {(s.claim.name, s.protocol): s for s in audit.summaries}
    seen = 0
    for row in said.rows:
        for reading, field in zip(said.readings, row.fields, strict=True):
            found = by_place.get((row.name, reading))
            if found is not None:
                assert field.word == found.status.value
                assert found.words in field.why or found.status is Status.NOT_TESTED
                assert not field.source
                seen += 1
    assert seen >= 10
    text = page(cells, tmp_path)
    plain = html.unescape(re.sub(r"<[^>]+>", " ", text))
    for sentence in said.sentences:
        assert sentence in plain
    # The chains that the table counts: both chunk sizes are deep enough.
    assert "append: all 8 chains at the floor: drift is rounding" in said.sentences[0]
    assert "over up to 63 transitions; against the floor it changes by" in said.sentences[0]
    assert any("restart" in sentence and "above the floor" in sentence for sentence in said.sentences)
    open_fields = sum(field.kind == "undetermined" for row in said.rows for field in row.fields)
    assert len(said.undetermined) == open_fields
    count = len(said.rows) * len(said.readings)
    assert (f"{open_fields} of {count} fields are undetermined" in plain) == bool(open_fields)
    assert (tmp_path / "figures" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "gallery" not in text


def test_other_readings_have_no_column() -> None:
    found = said_of([chain(), chain(protocol="quantized"), chain(protocol="isolated", excess=70.0)])
    assert found.readings == ["append", "isolated"]
    assert set(found.readings) < set(READINGS)


def practice(cells: list[xr.Dataset], controls: list[xr.Dataset] | None = None) -> list[str]:
    found = answers([Exhibit(Sweep(cells, controls=controls or []))]).questions
    return next(one.lines for one in found if "serves a model" in one.asked)


def test_practice_names_the_coarsest_precision_and_the_numbers_of_its_cells() -> None:
    bf16, fp32 = chain(dtype="bf16"), chain(dtype="fp32")
    _, line = practice([bf16, fp32, chain(dtype="bf16", chunk_size=64)])
    assert line.startswith("alpha, bf16, chunks of 16: ")
    steps = dataset.curve(bf16, "top1_agreement")[:, 16:]
    assert f"{100 * (1 - steps.mean()):.1f} % of the most likely next tokens are others" in line


def test_practice_compares_with_full_attention_by_other_kernels() -> None:
    other = chain(protocol="full(attention=eager)", tokens=256)
    other.attrs["control"] = "floor"
    finer = other.assign_coords(dtype="fp32")
    _, line = practice([chain()], [other, finer])
    assert line.count("for comparison") == 1
    assert "for comparison `full(attention=eager)` over 256 tokens:" in line


@pytest.mark.parametrize(
    ("excess", "expected"),
    [
        ((0.95, 0.9), Advice.AS_ANOTHER_KERNEL),
        ((0.95, 40.0), Advice.MORE_THAN_ROUNDING),
        ((0.95, 2**0.5), Advice.OPEN),
    ],
)
def test_advice_follows_from_where_chains_stand(excess: tuple[float, float], expected: Advice) -> None:
    cells = [chain(excess=one, model=name) for one, name in zip(excess, MODELS, strict=True)]
    assert advice([floor.rounding(ds) for ds in cells]) is expected
    assert practice(cells)[0] == advice_words(expected)


# ---------------------------------------------------------------------------------------------- other evidence
def both(**options: object) -> list[Exhibit]:
    own = [chain(protocol=name, tokens=256, **options) for name in ("append", "isolated")]
    deep = [chain(chunk_size=8, excess=3.0), chain(chunk_size=8, model="beta", excess=3.0)]
    return [Exhibit(Sweep(own)), Exhibit(Sweep(deep), "claims-deep.html", "deep", "data/deep")]


def test_what_a_chain_comes_to_is_answered_by_the_deepest_chains_that_test_it() -> None:
    own, deep = both()
    said = answers([own, deep])
    by_name = {row.name: dict(zip(said.readings, row.fields, strict=True)) for row in said.rows}
    assert by_name["C1 plateau"]["append"].source == "deep"
    assert by_name["C1 plateau"]["append"].link == "claims-deep.html#C1"
    (found,) = (s for s in deep.audit.summaries if s.claim.name == "C1 plateau")
    assert by_name["C1 plateau"]["append"].word == found.status.value
    assert by_name["C1 plateau"]["isolated"].source == ""
    assert "above the floor" in said.sentences[0]
    assert "over up to 127 transitions" in said.sentences[0]
    (source,) = said.sources
    assert "append 127" in source
    assert "isolated" not in source


def test_evidence_that_is_no_deeper_answers_nothing() -> None:
    own, deep = both()
    shallow = Exhibit(Sweep([chain(tokens=128)]), "claims-other.html", "other")
    assert {field.source for row in answers([own, shallow]).rows for field in row.fields} == {""}
    assert deepest_exhibit([own, shallow, deep], "append", lambda one: True) is deep
    assert deepest_exhibit([own, own], "append", lambda one: True) is own
    assert deepest_exhibit([own], "restart", lambda one: True) is None
    assert deepest_exhibit([own, deep], "append", lambda one: one is own) is own


def test_precision_is_answered_by_the_sweep_itself() -> None:
    own, deep = both()
    own = Exhibit(Sweep([*own.sweep, chain(tokens=256, dtype="fp32")]))
    deep = Exhibit(Sweep([*deep.sweep, chain(chunk_size=8, dtype="fp32", excess=3.0)]), "d.html", "deep")
    row = next(row for row in answers([own, deep]).rows if row.name == "C2 precision")
    assert row.fields[0].source == ""


def test_the_page_marks_what_other_evidence_says(tmp_path: Path) -> None:
    write_front(both(), (), tmp_path, (), "Drift report: mine", "", "figures")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "†</a>" in text
    assert "† from the evidence deep, which was computed before" in text
    plain = html.unescape(re.sub(r"<[^>]+>", " ", text))
    assert "python -m drift.verify data/deep --cell " in plain


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
