"""Figures: every one is drawn from every kind of sweep, shows the data it says it shows, and hides no value."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from drift._resources import resource
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import figures, summary
from drift.reading.claims import auditing, model, page, published
from drift.reading.figures import forest as figures_forest
from drift.reading.plateau.deciding import plateau
from drift.reading.report.notebooks import DEFAULT_NOTEBOOKS
from drift.reading.statistics.windows import late_start


def forest(claim: str) -> Callable[[Sweep], Figure | None]:
    return lambda sweep: figures.equivalence(auditing.audit(sweep, others=()), claim)


FIGURES: dict[str, Callable[[Sweep], Figure | None]] = {
    "drift_per_step": figures.drift_per_step,
    "drift_per_step token": lambda s: figures.drift_per_step(s, x="token"),
    "drift_per_step keys": lambda s: figures.drift_per_step(s, "key_rel_l2"),
    "heat_map": figures.heat_map,
    "logits_per_step": figures.logits_per_step,
    "level_vs_roundoff": figures.level_vs_roundoff,
    "level_vs_chunk_size": figures.level_vs_chunk_size,
    "depth_growth": figures.depth_growth,
    "keys_values": figures.keys_values,
    "worst_tokens": figures.worst_tokens,
    "nonfinite": figures.nonfinite,
    "plateau_fit": figures.plateau_fit,
    "plateau_fit keys": lambda s: figures.plateau_fit(s, "key_rel_l2"),
    "plateau_fit KL": lambda s: figures.plateau_fit(s, "logit_kl"),
}
FORESTS = {f"equivalence {claim}": forest(claim) for claim in ("C1", "C2", "C3", "C4")}


def small(**options: object) -> xr.Dataset:
    return synthetic.cell(**({"model": "tiny", "layers": 2, "tokens": 64, "chunk_size": 16} | options))  # type: ignore[arg-type]


def flat(level: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda step: np.full(step.shape, level)


def _all_nan() -> xr.Dataset:
    cell = small(dtype="fp16")
    for name in cell.data_vars:
        if cell[name].dtype.kind == "f":
            cell[name].values[...] = np.nan
    cell["nonfinite_count"].values[...] = 5
    return cell


SWEEPS: dict[str, Callable[[], list[xr.Dataset]]] = {
    "three models": lambda: synthetic.cells(chunk_sizes=[64, 128], tokens=256, layers=3, documents=1),
    "one cell": lambda: [small()],
    "one step": lambda: [small(tokens=16, documents=1)],
    "all zero": lambda: [small(level=flat(0.0), dtype="fp64")],
    "all NaN": lambda: [_all_nan()],
    "a bit of everything": lambda: [
        small(), small(dtype="fp64", level=flat(0.0)), _all_nan(), small(protocol="restart")
    ],
    "unequal cells": lambda: [
        small(model="a", protocol="append"), small(model="b", protocol="restart", chunk_size=32, layers=5),
        small(model="b", dtype="fp32", protocol="reprime(token=1)", tokens=50),
    ],
    "five precisions, five chunk sizes": lambda: [
        small(dtype=d, chunk_size=c) for d in synthetic.APPEND for c in (4, 8, 16, 32, 64)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Sweep]:
    return {name: Sweep(make()) for name, make in SWEEPS.items()}


# What is sound is drawn by tests/test_layout.py. Many lines are a question of the legend, which is put together in one
# way: two figures will do.
PAIRS = [
    (s, f)
    for s in SWEEPS
    for f in [*FIGURES, *FORESTS]
    if s not in ("one cell", "three models") and (not s.startswith("five") or f in ("drift_per_step", "depth_growth"))
]


@pytest.mark.parametrize(("sweep", "figure"), PAIRS)
def test_every_figure_from_every_sweep(sweeps: dict[str, Sweep], sweep: str, figure: str) -> None:
    made = (FIGURES | FORESTS)[figure](sweeps[sweep])
    if figure == "nonfinite":
        assert (made is not None) == (sweep in ("all NaN", "a bit of everything"))
    if made is None:
        return
    assert made.get_suptitle()
    assert made.get_supxlabel()
    made.draw_without_rendering()
    width, height = (made.dpi * n for n in made.get_size_inches())
    boxes = [t.get_window_extent() for t in (made._suptitle, made._supxlabel)]  # type: ignore[attr-defined]
    assert all(b.x0 >= 0 and b.x1 <= width and b.y0 >= 0 and b.y1 <= height for b in boxes)
    for legend in made.legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in made.axes), "a legend covers a panel"
        assert not box.overlaps(boxes[0]), "the legend covers the title"
        assert box.x1 <= width + 1


def test_pyplot_keeps_no_figure_and_settings_are_restored(sweeps: dict[str, Sweep]) -> None:
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    figures.png(figures.drift_per_step(sweeps["one cell"]))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_lines_are_the_geometric_means(sweeps: dict[str, Sweep]) -> None:
    cell = sweeps["one cell"].only()
    line = figures.drift_per_step(sweeps["one cell"]).axes[0].lines[0]
    expected = np.exp(np.log(cell["hidden_rel_l2"].values[:, -1, :]).mean(axis=0))
    np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_array_equal(line.get_xdata(), cell["step"].values + 1)
    by_token = figures.drift_per_step(sweeps["one cell"], x="token").axes[0].lines[0]
    np.testing.assert_array_equal(by_token.get_xdata(), cell["token_stop"].values)
    depth = figures.depth_growth(sweeps["one cell"]).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(depth, summary.depth(sweeps["one cell"])["value"])


def test_bands_span_the_documents(sweeps: dict[str, Sweep]) -> None:
    cell = sweeps["one cell"].only()
    band = figures.drift_per_step(sweeps["one cell"]).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    values = cell["hidden_rel_l2"].values[:, -1, :]
    assert (band.min(), band.max()) == pytest.approx((values.min(), values.max()))


def test_what_a_log_axis_cannot_show_is_counted() -> None:
    cell = small()
    cell["hidden_rel_l2"].values[0, -1, 1] = 0.0
    cell["hidden_rel_l2"].values[:, -1, 2] = np.nan
    label = figures.drift_per_step(Sweep([cell])).axes[0].get_xlabel()
    assert "not drawn: 1 exactly 0, 2 NaN or Inf" in label
    clean = figures.drift_per_step(Sweep([small()])).axes[0].get_xlabel()
    assert "not drawn" not in clean


def test_titles_come_from_the_data() -> None:
    many = {"tokens": 512, "documents": 4}
    rounding = Sweep([small(dtype=d, level=flat(synthetic.APPEND[d]), **many) for d in ("bf16", "fp32")])
    structural = Sweep([small(dtype=d, level=flat(0.5), **many) for d in ("bf16", "fp32")])
    assert "rounding: drift is" in figures.drift_per_step(rounding).get_suptitle().replace("\n", " ")
    assert "structural: drift does" in figures.drift_per_step(structural).get_suptitle().replace("\n", " ")
    assert "to the power 0.00" in figures.level_vs_roundoff(structural).get_suptitle().replace("\n", " ")


def test_colour_is_never_the_only_difference() -> None:
    sweep = Sweep([small(dtype=d, chunk_size=c) for d in ("bf16", "fp32") for c in (8, 16)])
    lines = figures.drift_per_step(sweep).axes[0].lines
    looks = {(line.get_marker(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(lines) == 4


def test_chosen_cells(sweeps: dict[str, Sweep]) -> None:
    chosen = figures.choose(sweeps["three models"])
    assert [c["dtype"].item() for c in chosen] == ["bf16"] * 3
    assert [c["chunk_size"].item() for c in chosen] == [64] * 3
    assert figures.choose(sweeps["three models"], dtype="fp32", protocol="restart").values("protocol") == ["restart"]


def test_bad_arguments_are_named(sweeps: dict[str, Sweep]) -> None:
    with pytest.raises(DatasetError, match="'step' or 'token'"):
        figures.drift_per_step(sweeps["one cell"], x="hour")
    with pytest.raises(DatasetError, match="protocol"):
        figures.drift_per_step(sweeps["one cell"], protocol="absent")
    for draw in FIGURES.values():
        if draw is not figures.nonfinite:
            with pytest.raises(DatasetError, match="nothing to draw"):
                draw(Sweep([]))


def test_rows_of_a_forest_stand_in_the_order_of_the_cells_whichever_protocol_has_them() -> None:
    of = [("append", 2), ("isolated", 4), ("append", 8), ("isolated", 8)]
    cells = [small(protocol=p, chunk_size=c, tokens=256, documents=4) for p, c in of]
    figure = FORESTS["equivalence C1"](Sweep(cells))
    assert figure is not None
    figure.draw_without_rendering()
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [re.search(r"chunk (\d+)", row)[1] for row in rows] == ["2", "4", "8"], rows  # type: ignore[index]


def test_png_is_small_and_whole(sweeps: dict[str, Sweep]) -> None:
    payload = figures.png(figures.drift_per_step(sweeps["three models"]))
    assert len(payload) < 150_000
    with Image.open(io.BytesIO(payload)) as image:
        assert min(image.size) > 300
        assert math.prod(image.size) < 4e6
    assert payload == figures.png(figures.drift_per_step(sweeps["three models"]))


def test_importing_needs_no_torch_and_no_window() -> None:
    code = "import sys, drift.reading.figures, drift.report; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# ---------------------------------------------------------------------------------------------- the claims
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saturated plateau": lambda step: 0.02 * (1 - 0.6 * np.exp(-step / 3)),
    "flat": lambda step: np.full(step.shape, 0.02),
    "growing": lambda step: 0.02 * (step + 1) ** 0.5,
    "decaying": lambda step: 0.02 * (step + 1) ** -0.5,
}


def chain(kind: str, **options: object) -> xr.Dataset:
    return small(**({"level": KINDS[kind], "tokens": 2048, "documents": 4} | options))


@pytest.fixture(scope="module")
def deep() -> Sweep:
    """Chains of every kind, long enough to be decided: one kind per protocol."""
    kinds = {"append": "saturated plateau", "restart": "growing", "reprime": "decaying"}
    return Sweep(
        [chain(k, protocol=p, dtype=d, model=m, chunk_size=c, noise=0.05)
         for p, k in kinds.items() for d in ("bf16", "fp32") for m in ("a", "b") for c in (16, 32)]
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_says_what_the_verdict_is(kind: str) -> None:
    cell = chain(kind)
    figure = figures.plateau_fit(Sweep([cell]))
    found = plateau(cell["hidden_rel_l2"].values[:, -1, :])
    assert found.verdict.value.replace("_", " ") == kind
    assert f"One chain: {kind}" in " ".join(figure.get_suptitle().split())
    title = figure.axes[0].get_title(loc="left")
    assert kind in title.splitlines()[1]
    assert "127 transitions, 4 documents" in title
    assert title.splitlines()[1][0] == {"growing": "✖", "decaying": "✖"}.get(kind, "●")


def test_the_fit_is_drawn_where_it_was_made() -> None:
    cell = chain("growing")
    found = plateau(cell["hidden_rel_l2"].values[:, -1, :])
    ax = figures.plateau_fit(Sweep([cell])).axes[0]
    curve, level, growth = ax.lines[:3]
    assert len(curve.get_xdata()) == 128
    first = late_start(128) + 1
    np.testing.assert_array_equal(level.get_xdata(), [first, 128])
    np.testing.assert_allclose(level.get_ydata(), found.level)
    fitted = np.asarray(growth.get_ydata())
    doublings = np.log2(128 / first)
    np.testing.assert_allclose(np.log2(fitted[-1] / fitted[0]) / doublings, np.log2(1 + found.growth_per_doubling))
    np.testing.assert_allclose(np.exp(np.log(fitted).mean()), found.level)
    fan = max(ax.collections, key=lambda c: c.get_zorder()).get_paths()[0].vertices[:, 1]
    assert fan.max() / found.level == pytest.approx(1.05 ** (np.log2(np.arange(first, 129)).mean() - np.log2(first)))


def test_fits_count_what_they_do_not_draw() -> None:
    cell = chain("flat")
    cell["hidden_rel_l2"].values[:, -1, 0] = 1e-9
    cell["hidden_rel_l2"].values[:, -1, 1] = 0.0
    figure = figures.plateau_fit(Sweep([cell]))
    assert "Arrows at the edge: 1 steps lie beyond the panel." in " ".join(figure.get_supxlabel().split())
    assert "not drawn: 4 exactly 0" in figure.axes[0].get_xlabel()
    low, high = figure.axes[0].get_ylim()
    assert 1e-3 < low < 0.02 < high < 1, "one step far below squashes the curve"
    assert "beyond" not in figures.plateau_fit(Sweep([chain("growing")])).get_supxlabel()


def test_fits_keep_to_the_deepest_chain_of_each_model_and_precision(deep: Sweep) -> None:
    figure = figures.plateau_fit(deep, protocol="restart")
    assert len(figure.axes) == 4
    assert all("chunk 16" in ax.get_title(loc="left") for ax in figure.axes)
    assert "Of 4 chains: 4 growing" in " ".join(figure.get_suptitle().split())
    uneven = Sweep([chain("flat", model="a"), chain("flat", model="b", dtype="fp32")])
    words = [t.get_text() for ax in figures.plateau_fit(uneven).axes for t in ax.texts]
    assert words == ["no such cell", "no such cell"]


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4"])
def test_forests_have_a_row_per_finding_and_say_its_verdict(deep: Sweep, claim: str) -> None:
    found = auditing.audit(deep, others=())
    name = figures_forest.EFFECTS[claim].name
    summaries = [s for s in found.summaries if s.claim.name == name]
    figure = figures.equivalence(found, claim)
    assert figure is not None
    title = " ".join(figure.get_suptitle().split())
    assert title.endswith(page.by_protocol(summaries).capitalize())
    assert len(figure.axes) == len(summaries) == 3
    shapes = {model.Status.SUPPORTED: ("o", True), model.Status.REFUTED: ("X", True),
              model.Status.UNDETERMINED: ("o", False)}  # fmt: skip
    named = [[t.get_text() for t in ax.get_yticklabels()] for ax in figure.axes]
    assert named[0]
    assert named[1:] == [[], []], "panels side by side share the names of their rows"
    for ax, s in zip(figure.axes, summaries, strict=True):
        assert len(named[0]) == len(s.findings)
        assert ax.get_title(loc="left") == f"{s.protocol}: {model.SIGNS[s.status]} {s.status.value}"
        assert len(ax.get_yticks()) == len(ax.texts) == len(s.findings)
        signs = [line for line in ax.lines if line.get_marker() in ("o", "X")]
        drawn = [(line.get_marker(), line.get_markerfacecolor() != "white") for line in signs]
        assert drawn == [shapes[f.status] for f in s.findings]
        scale = 100 if claim in ("C1", "C3") else 1
        assert [line.get_xdata()[0] for line in signs] == pytest.approx([scale * f.estimate for f in s.findings])
        shade = ax.collections[0].get_paths()[0].vertices[:, 0]
        assert (shade.min(), shade.max()) == pytest.approx(tuple(scale * m for m in s.findings[0].margin))


def test_what_certifies_a_plateau_is_drawn_where_the_judging_window_does_not() -> None:
    detail = {"certified": {"from_step": 33, "growth": 0.008, "interval": (-0.02, 0.036)}}
    row = model.Finding(
        "C1", "plateau", "append", "hidden_rel_l2", "a", model.Status.SUPPORTED, "growth", -0.011, (-0.056, 0.036),
        (-0.048, 0.05), 0.01, 1.0, "", detail=detail,
    )  # fmt: skip
    summary_ = model.ClaimSummary(published.CLAIMS[0], "append", model.Status.SUPPORTED, "", (row,))
    figure = figures.equivalence(model.Audit((summary_,), "hidden_rel_l2", "last", model.Setting(), (row,)), "C1")
    assert figure is not None
    ax = figure.axes[0]
    thin = [line for line in ax.lines if line.get_marker() == "|"]
    assert [list(line.get_xdata()) for line in thin] == [pytest.approx([-2, 3.6]), pytest.approx([0.8])]
    assert ax.texts[0].get_text().endswith("from step 33: +0.8 % (-2.0 % to +3.6 %)")


def test_wide_intervals_are_cut_off_with_an_arrow() -> None:
    def finding(cell: str, estimate: float, *interval: float) -> model.Finding:
        return model.Finding(
            "C1", "plateau", "append", "hidden_rel_l2", cell, model.Status.UNDETERMINED, "growth", estimate,
            (interval[0], interval[1]), (-0.048, 0.05), 0.5, 0.5, "",
        )  # fmt: skip

    def drawn(*rows: model.Finding) -> tuple[Axes, list[tuple[str, float]]]:
        summary_ = model.ClaimSummary(published.CLAIMS[0], "append", model.Status.UNDETERMINED, "", rows)
        audit = model.Audit((summary_,), "hidden_rel_l2", "last", model.Setting(), rows)
        figure = figures.equivalence(audit, "C1")
        assert figure is not None
        ax = figure.axes[0]
        lines = [line for line in ax.lines if line.get_marker() in "<>"]
        return ax, sorted((str(line.get_marker()), float(line.get_ydata()[0])) for line in lines)

    near, none = finding("near", 0.01, -0.02, 0.04), finding("none", *[math.nan] * 3)
    ax, arrows = drawn(near, finding("wide", 0.02, -0.9, 1e6), none)
    assert arrows == [("<", 1.0), (">", 1.0)]
    low, high = ax.get_xlim()
    assert -50 < low < -5 < 5 < high < 50, "the wide interval squashes the near one"
    assert "no estimate" in ax.texts[2].get_text()
    assert "1e+08 %" in ax.texts[1].get_text()
    ax, arrows = drawn(near, finding("far", 1e5, 1e4, math.inf))
    assert arrows == [(">", 1.0)]
    assert ax.get_xlim()[1] < 500


def test_forests_of_nothing() -> None:
    found = auditing.audit(Sweep([small()]), others=())
    assert figures.equivalence(found, "C2") is None
    assert figures.equivalence(auditing.audit(Sweep([_all_nan()]), others=()), "C1") is None
    with pytest.raises(DatasetError, match="no figure of claim 'C5'"):
        figures.equivalence(found, "C5")


def test_no_figure_is_on_two_pages() -> None:
    at: dict[str, set[str]] = {}
    for name in DEFAULT_NOTEBOOKS:
        source = "\n".join(
            cell.source for cell in nbformat.read(resource(f"notebooks/{name}.ipynb"), as_version=4).cells
        )
        for drawn in re.findall(r"figures\.(\w+)\(", source):
            at.setdefault(drawn, set()).add(name)
    assert {"nonfinite", "levels", "heat_map", "equivalence"} <= set(at)
    helpers = {"show", "groups"}
    assert {drawn: pages for drawn, pages in at.items() if len(pages) > 1 and drawn not in helpers} == {}
