"""Captions and titles of every figure, held against the data that it drew: that none is forgotten; what is drawn."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import synthetic_controls as made
from captions_tools import HELD, caption, cell, holds, last, left_out, title

from drift.dataset.sweep import Sweep
from drift.reading import figures
from drift.reading.figures import chain, depth

# Which figures a file holds, it says when it is imported; one file may be run alone.
for path in Path(__file__).parent.glob("test_captions_*.py"):
    importlib.import_module(path.stem)


def test_every_figure_is_held_here() -> None:
    assert set(figures.__all__) - {"choose", "described", "groups", "png", "show"} == HELD


def test_the_reader_of_words_reads_them() -> None:
    assert left_out("geometric mean past the first quarter of the chain, over", 32) == 8
    rule = "past the first quarter of the chain (at least 3 steps are left out, and never more than half of them), over"
    assert [left_out(rule, steps) for steps in (32, 8, 4)] == [8, 3, 2]
    assert left_out("Fits: the last two thirds of the chain.", 30) == 10
    with pytest.raises(AssertionError):
        left_out("late in the chain", 32)


@holds("drift_per_step")
def test_drift_per_step() -> None:
    ds = cell()
    figure = figures.drift_per_step(Sweep([ds]))
    ax = figure.axes[0]
    assert caption(figure) == (
        "Lines: geometric mean over documents; bands: smallest to largest document. Log scale."
    )  # fmt: skip
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.exp(np.log(last(ds)).mean(axis=0)))
    band = ax.collections[0].get_paths()[0].vertices
    assert sorted(set(band[band[:, 0] == 7, 1])) == pytest.approx([last(ds)[:, 6].min(), last(ds)[:, 6].max()])
    nothing = figures.drift_per_step(Sweep([made.make(np.zeros((2, 8)))]))
    assert nothing.axes[0].get_yscale() == "linear"
    assert "Log scale" not in caption(nothing)


@holds("heat_map")
def test_heat_map(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = cell()
    ds["hidden_rel_l2"].values[:, 2, 3:6] = np.nan
    figure = figures.heat_map(Sweep([ds]))
    with np.errstate(divide="ignore"):
        means = np.exp(np.log(ds["hidden_rel_l2"].values).mean(axis=0))
    mesh = figure.axes[0].collections[0].get_array()
    assert mesh is not None
    np.testing.assert_allclose(np.ma.filled(mesh.reshape(means.shape), np.nan)[1:2], means[1:2])
    assert len([line for line in figure.axes[0].lines if line.get_marker() == "x"]) == 3
    assert "crosses are drawn" not in caption(figure)
    monkeypatch.setattr(depth, "CROSSES", 2)
    figure = figures.heat_map(Sweep([ds]))
    assert "At most 2 crosses are drawn in a panel." in caption(figure)
    assert len([line for line in figure.axes[0].lines if line.get_marker() == "x"]) == 2
    ratios = re.search(
        r"varies (\S+)-fold over .* and (\S+)-fold along the chain", title(figures.heat_map(Sweep([cell()])))
    )
    assert ratios
    good = np.log(cell()["hidden_rel_l2"].values[:, 1:]).mean(axis=0)
    assert float(ratios[2]) == pytest.approx(math.exp(np.ptp(good.mean(axis=0))), rel=0.05)


@holds("nonfinite")
def test_nonfinite(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(chunk_size=c, steps=8) for c in range(1, 13)]
    for k, ds in enumerate(cells[1:]):
        ds["nonfinite_count"].values[0, 1, 0] = k + 1
    figure = figures.nonfinite(Sweep(cells))
    assert figure is not None
    assert title(figure) == f"{sum(range(1, 12))} values are NaN or Inf, in 11 of 12 cells"
    for most in (chain.MOST_CELLS, 4):
        monkeypatch.setattr(chain, "MOST_CELLS", most)
        figure = figures.nonfinite(Sweep(cells))
        assert figure is not None
        assert f"The first {most} of 11 cells are drawn" in caption(figure)
        assert len(figure.axes[0].lines) == most
