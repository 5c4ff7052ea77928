"""Captions and titles of the figures of tasks, held against the cells that they drew."""

from __future__ import annotations

import numpy as np
import pytest
from captions_tools import caption, holds, title
from task_tools import task_cell

from drift.reading import figures, tasks
from drift.reading.statistics.intervals import ALPHA
from drift.reading.wording.numbers import coverage

ONES = np.ones((6, 1), dtype=int)
HALF = (np.arange(6) < 3).astype(int)[:, None]


def cells() -> list[object]:
    return [
        task_cell(ones, fold, tokens=tokens, protocol=protocol, kl=kl, change=-kl)
        for tokens in (1024, 2048)
        for protocol, fold, kl in (("append", ONES, 1e-3), ("isolated", HALF, 2.0))
        for ones in (ONES,)
    ]


@holds("found_by_depth")
def test_the_chart_of_depth_by_length_counts_what_was_found() -> None:
    figure = figures.found_by_depth(cells())
    assert "append 12 of 12, isolated 6 of 12 (full attention 12 of 12)" in title(figure)
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 3, "full attention, and each fold"
    for ax, expected in zip(panels, (12, 12, 6), strict=True):
        said = [text.get_text().split("/") for text in ax.texts]
        assert sum(int(hits) for hits, _ in said) == expected
        assert sum(int(of) for _, of in said) == 12
        grid = np.ma.filled(np.ma.asarray(ax.images[0].get_array(), dtype=float), np.nan)
        assert grid.shape == (5, 2)
    assert figures.found_by_depth([task_cell(ONES, ONES, task="hops")]) is None


@holds("found_by_distance")
def test_the_chart_of_distance_has_exact_intervals() -> None:
    figure = figures.found_by_distance(cells())
    assert f"bars: {coverage(ALPHA)} intervals" in caption(figure)
    (ax,) = figure.axes
    assert len(ax.containers) == 2
    assert figures.found_by_distance([]) is None


@holds("likelihood_by_task")
def test_the_title_names_the_reading_that_loses_most() -> None:
    figure = figures.likelihood_by_task(cells())
    assert "It loses most under isolated: -2 nats" in title(figure)
    points = np.concatenate([np.asarray(line.get_xdata(), dtype=float) for line in figure.axes[0].lines[:-1]])
    assert len(points) == 24
    assert figures.likelihood_by_task([]) is None


@holds("failure_against_drift")
def test_the_title_correlates_what_is_drawn() -> None:
    floors = [task_cell(ONES, ONES, tokens=n, protocol="full(noise=1,seed=1)", kl=1e-6) for n in (1024, 2048)]
    drawn = [*cells(), *floors[:1]]
    figure = figures.failure_against_drift(drawn)
    for (name, by), ax, points in zip((("Excess", "excess"), ("KL", "answer_kl")), figure.axes, (12, 24), strict=True):
        found = tasks.predicting(tasks.items(drawn), by)
        assert found.count == points
        said = f"{name}: rank correlation {found.correlation:z.2f} with the change of the answer over {points} items"
        # Lost are half of isolated, which ties with its other half: larger than two thirds of those kept.
        assert f"{said}, larger for a lost answer in {100 * (2 / 3 + 1 / 6):.0f} % of pairs" in title(figure)
        assert sum(len(line.get_xdata()) for line in ax.lines) == points
        lost = [line for line in ax.lines if line.get_fillstyle() == "full"]
        assert sum(len(line.get_xdata()) for line in lost) == points // 4
    assert max(figure.axes[0].lines[-1].get_xdata()) == pytest.approx((2.0 / 1e-6) ** 0.5)
    # Within a reading all items are alike here: nothing is correlated.
    assert "within a reading" not in caption(figure)
    assert "none of these has" not in caption(figure)
    unfloored = figures.failure_against_drift(cells())
    assert len(unfloored.axes) == 1, "no panel for what nobody measured"
    assert "Excess" not in title(unfloored)
    assert "none of these has: no panel of the excess" in caption(unfloored)
    same = figures.failure_against_drift([task_cell(ONES, ONES)])
    assert "every answer is as likely" in same.axes[0].texts[0].get_text()
    lost = figures.failure_against_drift([task_cell(ONES, ONES, kl=np.nan)])
    assert "no number is finite" in lost.axes[0].texts[0].get_text()
    assert figures.failure_against_drift(floors) is None, "they are no folds"
    assert figures.failure_against_drift([]) is None


@holds("costs_of_steps")
def test_the_chart_of_costs_divides_by_full_attention() -> None:
    figure = figures.costs_of_steps(cells())
    assert "1 times the seconds of full attention" in title(figure)
    *ratios, steps = figure.axes
    assert len(ratios) == 2
    for ax in ratios:
        for line in ax.lines[:2]:
            np.testing.assert_allclose(line.get_ydata(), 1.0)
    # Of the longest text of each reading 30 steps of 64 tokens, the last of which may be shorter; and the line.
    assert [len(line.get_xdata()) for line in steps.lines] == [29 + 1] * 4
    for line in steps.lines:
        np.testing.assert_allclose(line.get_ydata(), 0.5)
    written = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"append", "isolated"} <= set(written)
    assert "model" not in written, "one model needs no legend"
    two = figures.costs_of_steps([task_cell(ONES, ONES, model=name) for name in ("alpha", "beta")])
    assert {"model", "alpha", "beta"} <= {text.get_text() for legend in two.legends for text in legend.get_texts()}
    for ax in two.axes:
        lines = [line.get_linestyle() for line in ax.lines if line.get_linestyle() != "None"]
        assert len(set(lines[:2])) == 2, "models are told apart in every panel"
    assert figures.costs_of_steps([]) is None
