"""Captions and titles of the floor and of why, held against the data that was drawn."""

from __future__ import annotations

import math
import re

import captions_tools
import numpy as np
import pytest
import synthetic
import xarray as xr
from captions_tools import caption, cell, flowed, holds, last, left_out, level, percent_of, points, title

from drift.dataset.sweep import Sweep
from drift.reading import figures, floor, why
from drift.reading.floor import responding
from drift.reading.plateau.deciding import plateau, plateaus
from drift.reading.wording.numbers import number

cut = captions_tools.cut


# ---------------------------------------------------------------------------------------------- the floor
@holds("drift_and_floor")
@pytest.mark.parametrize("factor", [1.1, 1.75])
def test_the_caption_names_the_factor_that_is_shaded(factor: float) -> None:
    cell = synthetic.cell(layers=2, tokens=512, chunk_size=16, floor=lambda step: 1.3e-2 + 0 * step)
    figure = figures.drift_and_floor(Sweep([cell]), factor=factor)
    (band,) = figure.axes[1].patches
    said = re.search(r"within a factor ([\d.]+) of the floor", caption(figure))
    assert said is not None
    assert (1 / float(said[1]), float(said[1])) == pytest.approx((band.get_y(), band.get_y() + band.get_height()))


@holds("response_to_noise")
@pytest.mark.parametrize("steps", [32, 4])
@pytest.mark.parametrize("tolerance", [0.1, 0.3])
def test_response_to_noise(
    cut: tuple[float, ...], steps: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responding, "RESPONSE_TOLERANCE", tolerance)
    monkeypatch.setattr(floor, "RESPONSE_TOLERANCE", tolerance)
    answers = {0.1: 0.0, 1: 1.6, 10: 10.0, 100: 100.0, 1000: 600.0}
    u = synthetic.ROUNDOFF["fp32"]
    made_of = [
        synthetic.cell(
            model="tiny", layers=2, documents=3, noise=0.01, dtype="fp32", chunk_size=16, tokens=16 * steps,
            protocol=f"full(noise={size})", level=lambda k, y=y: u * y * (k + 1) ** 0.5,
        )
        for size, y in answers.items()
    ]  # fmt: skip
    figure = figures.response_to_noise(Sweep(made_of))
    words, (ax,) = caption(figure), figure.axes
    expected = [level(last(ds), words) for ds in made_of[1:]]
    np.testing.assert_allclose(points(ax), expected)
    np.testing.assert_allclose(points(ax, "x"), [1, 10, 100, 1000])
    (foot,) = [line for line in ax.lines if line.get_marker() == "s" and line.get_markerfacecolor() == "white"]
    assert list(foot.get_xdata()) == [0.1]
    assert "Hollow, at the foot: exactly 0" in words
    slopes = np.diff(np.log(np.array([last(ds) for ds in made_of[1:]])).mean(axis=(1, 2))) / math.log(10)
    said = re.search(r"within ([\d.]+) of 1, in every document", words)
    assert said
    assert [abs(s - 1) <= float(said[1]) for s in slopes] == [tolerance == 0.3, True, tolerance == 0.3]
    unrelated, guide = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert f"distance of unrelated states ({unrelated.get_ydata()[0]:.2f})" in words
    x, y = np.log(guide.get_data())
    assert np.diff(y)[0] / np.diff(x)[0] == pytest.approx(1)
    if tolerance == 0.1:
        assert title(figure).startswith(
            "Full attention answers to disturbed embeddings in proportion from 10 to 100 unit roundoffs; "
        )
        fall = re.search(r"; from 10 down to 1 it falls only ([\d.]+)-fold; to 0.1 and less not at all$", title(figure))
        assert fall
        assert float(fall[1]) == pytest.approx(expected[1] / expected[0], rel=0.05)
        by_proportion = math.sqrt(expected[1] / 10 * expected[2] / 100)
        assert guide.get_ydata()[0] / guide.get_xdata()[0] == pytest.approx(by_proportion)
    else:
        assert "in proportion from 1 to 1,000 unit roundoffs; to 0.1 and less not at all" in title(figure)


# ---------------------------------------------------------------------------------------------- why
def parts(steps: int) -> tuple[xr.Dataset, xr.Dataset]:
    """A chain whose every other step makes no error of its own, and the error of one step."""
    silent = np.arange(steps) % 2 == 1
    ds = cell(steps=steps, power=0.1, noise=0.01, floor=lambda k: 1.3e-2 + 0 * k)
    local = cell(steps=steps, power=0.1, noise=0.01, protocol="one_step(append)", seed=1)
    local["hidden_rel_l2"].values[...] *= np.where(silent, 0.0, 0.5)
    return ds, local


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


@holds("inherited_per_step")
@pytest.mark.parametrize("steps", [32, 12])
def test_inherited_per_step(cut: tuple[float, ...], steps: int) -> None:
    ds, local = parts(steps)
    figure = figures.inherited_per_step(why.explain(Sweep([ds, local])))
    words, (ax,) = caption(figure), figure.axes if figure else ()
    assert words.startswith("Root mean squares over documents; bands")
    drift, under, own, inherited = (np.asarray(line.get_ydata()) for line in ax.lines)
    draws = ds["hidden_rel_l2_floor"].values[:, -1]
    np.testing.assert_allclose(drift, [rms(column) for column in last(ds).T])
    np.testing.assert_allclose(under, [rms(column) for column in np.sqrt(draws.prod(axis=-1)).T])
    np.testing.assert_allclose(own[::2], [rms(column) for column in last(local)[:, ::2].T])
    assert np.isnan(own[1::2]).all()
    assert f"of {steps} places: exactly 0: error of one step {steps // 2})" in flowed(ax.get_xlabel())
    expected = np.sqrt([rms(a) ** 2 - rms(b) ** 2 for a, b in zip(last(ds).T, last(local).T, strict=True)])
    np.testing.assert_allclose(inherited, expected)
    share = re.search(r"At ([\d.]+) % of values .* ([\d.]+) floors there", title(figure))
    assert share
    assert float(share[1]) == pytest.approx(50, rel=0.01)
    quiet = np.arange(steps) % 2 == 1
    late = np.arange(steps) >= left_out(words, steps)
    floors = np.log(last(ds) / np.sqrt(draws.prod(axis=-1)))[:, quiet & late]
    assert share[2] == number(math.exp(floors.mean()))


def test_a_row_whose_first_panel_is_empty_keeps_its_scale() -> None:
    mine = [cell("bf16", model="a"), cell("bf16", model="b"), cell("fp32", model="b")]
    figure = figures.inherited_per_step(why.explain(Sweep(mine)))
    assert figure is not None
    assert figure.axes[2].get_ylabel().startswith("fp32")
    assert figure.axes[2].axison
    assert "Inherited part" not in caption(figure)  # which is not drawn without the error of one step


@holds("inherited_through_depth")
@pytest.mark.parametrize("steps", [32, 4])
def test_inherited_through_depth(cut: tuple[float, ...], steps: int) -> None:
    ds, local = parts(steps)
    found = why.explain(Sweep([ds, local]))
    figure = figures.inherited_through_depth(found)
    words, (ax,) = caption(figure), figure.axes if figure else ()
    late = slice(left_out(words, steps), None)
    drawn = np.asarray(ax.lines[0].get_ydata())
    np.testing.assert_allclose(drawn[1:], [rms(ds["hidden_rel_l2"].values[:, k, late]) for k in range(1, 5)])
    own = [rms(local["hidden_rel_l2"].values[:, k, late]) for k in range(1, 5)]
    np.testing.assert_allclose(np.asarray(ax.lines[3].get_ydata())[1:], np.sqrt(drawn[1:] ** 2 - np.square(own)))
    said = re.search(r"begins in the network it is (\S+) floors; at the end it is (\S+)", title(figure))
    assert said
    under = np.asarray(ax.lines[1].get_ydata())
    assert (float(said[1]), float(said[2])) == pytest.approx((drawn[1] / under[1], drawn[-1] / under[-1]), rel=0.05)
    assert figures.inherited_through_depth(why.explain(Sweep([ds, local]), "logit_kl")) is None


@holds("growth_with_position")
@pytest.mark.parametrize(("level_of_tests", "margin"), [(0.05, 0.05), (0.1, 0.2)])
def test_growth_with_position(level_of_tests: float, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plateaus.__kwdefaults__ is not None
    monkeypatch.setitem(plateaus.__kwdefaults__, "alpha", level_of_tests)
    monkeypatch.setitem(plateaus.__kwdefaults__, "margin", margin)
    ds, local = parts(64)
    found = why.explain(Sweep([ds, local]))
    figure = figures.growth_with_position(found)
    words, (ax,) = caption(figure), figure.axes if figure else ()
    assert percent_of(words, "intervals") == pytest.approx(1 - 2 * level_of_tests)
    assert f"within the margin of {100 * margin:g} %" in words
    shade = ax.patches[0]
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == pytest.approx(  # type: ignore[attr-defined]
        (100 * (1 / (1 + margin) - 1), 100 * margin)
    )
    draws = ds["hidden_rel_l2_floor"].values[:, -1]
    under = np.sqrt(draws.prod(axis=-1))
    wanted = [plateau(v, alpha=level_of_tests, margin=margin) for v in (last(ds), under, last(ds) / under)]
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.5]
    np.testing.assert_allclose(
        [bar.get_xdata() for bar in bars], [[100 * end for end in one.growth_interval] for one in wanted], rtol=1e-9
    )
    rate = r"([+-][\d.]+) %"
    rates = re.search(rf"drift grows by {rate}, .* own floor by {rate}, their quotient by {rate}", title(figure))
    assert rates
    for text, one in zip(rates.groups(), wanted, strict=True):
        assert float(text) == pytest.approx(100 * one.growth_per_doubling, abs=0.051)
    without = figures.growth_with_position(why.explain(Sweep([cell(steps=64)])))
    assert "without a floor, nothing says whose growth it is" in title(without)
    assert figures.growth_with_position(why.explain(Sweep([cell(steps=4)]))) is None
