"""Captions and titles of intervals, held against the coverage that their words name."""

from __future__ import annotations

import math
import re

import captions_tools
import numpy as np
import pytest
import scipy.stats
import synthetic
import synthetic_controls as made
from captions_tools import DTYPES, caption, cell, holds, last, left_out, level, percent_of, points, title
from matplotlib.figure import Figure

from drift.dataset.sweep import Sweep
from drift.reading import controls, figures, gain, ladder, summary
from drift.reading.claims import auditing, model
from drift.reading.controls import firing
from drift.reading.statistics import intervals
from drift.reading.statistics.slope import Scaling, slope, slope_of_levels
from drift.reading.summary.explaining import table_legend

cut = captions_tools.cut


@pytest.fixture(params=[0.05, 0.1], ids=lambda alpha: f"alpha {alpha}")
def alpha(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(intervals, "ALPHA", request.param)
    for function in (intervals.mean_interval, slope, slope_of_levels):  # defaults are bound where a function is made
        monkeypatch.setattr(function, "__defaults__", (request.param, *(function.__defaults__ or ())[1:]))
    return float(request.param)


def interval(values: np.ndarray, coverage: float) -> tuple[float, float]:
    """Student's t interval of a mean over documents, by SciPy."""
    found = scipy.stats.ttest_1samp(values, 0).confidence_interval(coverage)
    return float(found.low), float(found.high)


@holds("gains")
def test_gains(alpha: float) -> None:
    ds = made.disturbed(lambda k: 0.9**k, noise=0.2)
    (one,) = gain.gains(Sweep([ds]))
    figure = figures.gains([one])
    assert figure is not None
    coverage = percent_of(caption(figure), "interval of it")
    assert coverage == pytest.approx(1 - 2 * alpha)
    low, high = interval(np.log(one.values[:, 5]), coverage)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert sorted(set(np.log(band[band[:, 0] == 5, 1]).round(12))) == pytest.approx([low, high])
    assert title(figure).endswith(f"1 {one.rate.verdict.value}")


@holds("levels")
@pytest.mark.parametrize("steps", [32, 4])
def test_levels(cut: tuple[float, ...], alpha: float, steps: int) -> None:
    cells = [cell(d, steps=steps) for d in DTYPES]
    # fewer precisions at the smaller chunk size: the ladder with most is drawn
    found = ladder.ladders(Sweep([*cells, cell("bf16", steps=2 * steps, chunk_size=8)]))
    figure = figures.levels(found)
    assert figure is not None
    ax, words = figure.axes[0], caption(figure)
    assert "ladder with most precisions" in words
    np.testing.assert_allclose(points(ax), [level(last(ds), words) for ds in cells])
    late = np.log([last(ds)[:, left_out(words, steps) :] for ds in cells]).mean(axis=2)
    slopes = (late[0] - late[1]) / math.log(synthetic.ROUNDOFF["bf16"] / synthetic.ROUNDOFF["fp32"])
    ends = interval(slopes, percent_of(words, "interval over documents"))
    assert f"slope {slopes.mean():.3f} ({ends[0]:.3f} to {ends[1]:.3f})" in ax.get_title(loc="left")
    kinds = {one.slope.verdict for one in found if len(one.dtypes) > 1}
    assert kinds == {Scaling.ROUNDING}
    assert title(figure).endswith("Rounding: append")
    more = ladder.ladders(Sweep([*cells, cell("bf16", steps=steps, model="other")]))
    assert title(figures.levels(more)).endswith("Rounding: append"), "a model at one precision takes nothing from it"
    alone = figures.levels(ladder.ladders(Sweep([ds.isel(document=[0]) for ds in cells])))
    assert ("over the steps of the chain" in caption(alone)) is True
    assert "over the steps of the chain" not in words


@holds("attribution")
@pytest.mark.parametrize("steps", [32, 4])
def test_attribution(cut: tuple[float, ...], alpha: float, steps: int) -> None:
    ds = made.gold(cell(steps=steps), 1e-3, 4e-3, 2e-3, scatter=0.3)
    figure = figures.attribution(ladder.attributions(Sweep([ds])))
    assert figure is not None
    ax, words = figure.axes[0], caption(figure)
    bars = [line for line in ax.lines if line.get_marker() == "|"]
    largest = {}
    for part, patch, bar in zip(made.PARTS, ax.patches, bars, strict=True):
        means = 100 * last(ds, f"hidden_share_{part}")[:, left_out(words, steps) :].mean(axis=1)
        assert patch.get_width() == pytest.approx(means.mean())  # type: ignore[attr-defined]
        assert list(bar.get_xdata()) == pytest.approx(interval(means, percent_of(words, "interval over documents")))
        largest[part] = means.mean()
    best = max(largest, key=lambda part: largest[part])
    assert title(figure).endswith(f"is {ladder.PARTS[best].split(':')[0]} under append")


@holds("equivalence")
@pytest.mark.parametrize("level_of_tests", [0.05, 0.01])
@pytest.mark.parametrize("margins", [{}, {"growth": 0.1, "precision": 0.3, "chunk": 0.2, "family": 3.0}])
@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4"])
def test_equivalence(claim: str, margins: dict[str, float], level_of_tests: float) -> None:
    cells = [
        cell(d, steps=512 // c, chunk_size=c, power=0.0, noise=0.02, model=m)
        for d in DTYPES for m in ("a", "b") for c in (8, 16)
    ]  # fmt: skip
    setting = model.Setting(**margins, alpha=level_of_tests)

    def drawn(alpha: float) -> tuple[Figure, np.ndarray]:
        found = auditing.audit(Sweep(cells), others=(), setting=model.settings(margins, alpha))
        figure = figures.equivalence(found, claim)
        assert figure is not None
        bars = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.5]
        return figure, np.array([np.ptp(np.log(bar.get_xdata()) if claim == "C4" else bar.get_xdata()) for bar in bars])

    figure, widths = drawn(setting.alpha)
    assert percent_of(caption(figure), "intervals, which lie") == pytest.approx(1 - 2 * setting.alpha)
    # In proportion to quantiles of Student's t at the coverage that is named; at most, where a panel cuts bars off.
    _, others = drawn(0.2)
    ratios = [scipy.stats.t.ppf(1 - setting.alpha, df) / scipy.stats.t.ppf(0.8, df) for df in (1e9, 1)]
    assert (widths / others > 1).all()
    assert (widths / others < ratios[1] * 1.001).all()
    shade = figure.axes[0].collections[0].get_paths()[0].vertices[:, 0]
    low, high = float(shade.min()), float(shade.max())
    asked = title(figure).split("?")[0]
    if claim in ("C1", "C3"):
        m = getattr(setting, {"C1": "growth", "C3": "chunk"}[claim])
        assert asked.endswith(f"within ±{100 * m:g} %")
        assert (low, high) == pytest.approx((100 * (1 / (1 + m) - 1), 100 * m))
    elif claim == "C2":
        assert asked.endswith(f"within ±{100 * setting.precision:g} %")
        span = math.log(synthetic.ROUNDOFF["bf16"] / synthetic.ROUNDOFF["fp32"])
        assert high == pytest.approx(math.log1p(setting.precision) / span)
    else:
        assert asked.endswith(f"within a factor {setting.family:g}")
        assert (low, high) == pytest.approx((1 / setting.family, setting.family))


@holds("response")
@pytest.mark.parametrize(("tolerance", "drowned"), [(firing.TOLERANCE, firing.DROWNED), (0.01, 10.0)])
def test_response(tolerance: float, drowned: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firing, "TOLERANCE", tolerance)
    monkeypatch.setattr(firing, "DROWNED", drowned)
    monkeypatch.setattr(made, "FLOOR", 10.0)  # so high that some response is near it
    found = controls.evaluate(Sweep([cell("fp32")], controls=made.controls(dtypes=["fp32"])))
    figure = figures.response(found)
    assert figure is not None
    said = re.search(
        r"sizes below ([\d.]+) unit roundoffs, responses below ([\d.]+) floors or above ([\d.]+)\.", caption(figure)
    )
    assert said
    least, heard, most = map(float, said.groups())
    (r,), (bottom,) = found.responses, {max(f.level for f in found.floor)}
    ax = figure.axes[0]
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    filled = [line for line in ax.lines if line.get_marker() == "s" and line.get_markerfacecolor() != "white"]
    kept = (r.sizes >= least * r.unit_roundoff) & (r.values.min(axis=1) >= heard * bottom)
    kept &= r.values.max(axis=1) <= most
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(np.concatenate([line.get_xdata() for line in filled]), r.sizes[kept])
    np.testing.assert_array_equal(np.concatenate([line.get_xdata() for line in hollow]), r.sizes[~kept])
    middle = np.exp(np.log(r.values).mean(axis=1))
    np.testing.assert_allclose(np.concatenate([line.get_ydata() for line in filled]), middle[kept])
    assert f"to the power {r.slope.value:.2f}" in title(figure)
    assert ("NOT in proportion" in title(figure)) == (abs(r.slope.value - 1) > tolerance)


def test_the_legend_of_the_table_of_levels(cut: tuple[float, ...], alpha: float) -> None:
    words, ds = table_legend(), cell(steps=64)
    row = summary.table(Sweep([ds])).iloc[0]
    assert row["level"] == pytest.approx(level(last(ds), words))
    by_document = np.exp(np.log(last(ds)[:, left_out(words, 64) :]).mean(axis=1))
    assert (row["level_low"], row["level_high"]) == pytest.approx((by_document.min(), by_document.max()))
    assert percent_of(words, "interval") == pytest.approx(1 - 2 * alpha)
