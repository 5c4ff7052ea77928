"""Captions and titles of every figure, held against the data that it drew: read what they say, and do it by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.stats
import synthetic
import synthetic_controls as made
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift.dataset.sweep import Sweep
from drift.reading import controls, figures, floor, gain, ladder, summary, why
from drift.reading.amplitudes import measure_name
from drift.reading.claims import auditing, model
from drift.reading.controls import firing
from drift.reading.figures import chain, depth
from drift.reading.floor import responding
from drift.reading.plateau.deciding import plateau, plateaus
from drift.reading.statistics import intervals, windows
from drift.reading.statistics.slope import Scaling, ScalingReason, slope, slope_of_levels
from drift.reading.summary.explaining import table_legend
from drift.reading.wording.numbers import number

SHARES = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "eighth": 1 / 8}
#: Another share than the default is left out at the beginning of a chain.
CUTS = [windows.WINDOWS, (1 / 16, 1 / 2), (1 / 16, 1 / 3)]
DTYPES = ("bf16", "fp32")
HELD: set[str] = set()


def holds(*names: str) -> Callable[[Any], Any]:
    """Mark a test as the one that holds a figure's words against its data."""
    HELD.update(names)
    return lambda test: test


def flowed(text: str) -> str:
    return " ".join(text.split())


def caption(figure: Figure | None) -> str:
    assert figure is not None
    return flowed(figure.get_supxlabel())


def title(figure: Figure | None) -> str:
    assert figure is not None
    return flowed(figure.get_suptitle())


def left_out(words: str, steps: int) -> int:
    """How many steps the words leave out at the beginning of a chain."""
    found = re.search(
        r"past the first (\w+) of the chain( \(at least (\d+) steps are left out, and never more)?", words
    )
    if found:
        share = SHARES[found[1]]
    else:
        found = re.search(r"the last (half|three quarters|two thirds)() of the chain()", words)
        assert found, words
        share = 1 - {"half": 1 / 2, "three quarters": 3 / 4, "two thirds": 2 / 3}[found[1]]
    count = math.ceil(float(Fraction(share).limit_denominator(100)) * steps)
    return min(max(count, int(found[3])), steps // 2) if found[2] else count


def level(values: np.ndarray, words: str) -> float:
    """Geometric mean over documents and what the words say is late, of values [document, step]."""
    return float(np.exp(np.log(values[:, left_out(words, values.shape[1]) :]).mean()))


def cell(
    dtype: str = "bf16", *, steps: int = 32, chunk_size: int = 16, power: float = 0.5, **options: Any
) -> xr.Dataset:
    """A cell whose drift grows along the chain, so that every window has a level of its own."""
    u = synthetic.ROUNDOFF[dtype]
    known: dict[str, Any] = {"model": "tiny", "layers": 3, "documents": 4, "noise": 0.1} | options
    return synthetic.cell(
        dtype=dtype, chunk_size=chunk_size, tokens=steps * chunk_size, level=lambda k: 3 * u * (k + 1) ** power, **known
    )


def points(ax: Axes, axis: str = "y") -> np.ndarray:
    """What an error bar's markers stand for."""
    line = ax.containers[0].lines[0]  # type: ignore[attr-defined]
    return np.asarray(getattr(line, f"get_{axis}data")(), dtype=float)


def last(ds: xr.Dataset, measure: str = "hidden_rel_l2") -> np.ndarray:
    values: np.ndarray = ds[measure].values
    return values[:, -1, :] if values.ndim == 3 else values


@pytest.fixture(params=CUTS, ids=lambda cut: f"first {cut[-1]:.3g}")
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    monkeypatch.setattr(windows, "WINDOWS", request.param)
    return tuple(request.param)


@pytest.fixture(params=[0.05, 0.1], ids=lambda alpha: f"alpha {alpha}")
def alpha(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(intervals, "ALPHA", request.param)
    for function in (intervals.mean_interval, slope, slope_of_levels):  # defaults are bound where a function is made
        monkeypatch.setattr(function, "__defaults__", (request.param, *(function.__defaults__ or ())[1:]))
    return float(request.param)


def test_every_figure_is_held_here() -> None:
    assert set(figures.__all__) - {"choose", "described", "groups", "png", "show"} == HELD


def test_the_reader_of_words_reads_them() -> None:
    assert left_out("geometric mean past the first quarter of the chain, over", 32) == 8
    rule = "past the first quarter of the chain (at least 3 steps are left out, and never more than half of them), over"
    assert [left_out(rule, steps) for steps in (32, 8, 4)] == [8, 3, 2]
    assert left_out("Fits: the last two thirds of the chain.", 30) == 10
    with pytest.raises(AssertionError):
        left_out("late in the chain", 32)


def percent_of(words: str, what: str) -> float:
    found = re.search(rf"([\d.]+) % {what}", words)
    assert found, words
    return float(found[1]) / 100


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


# ---------------------------------------------------------------------------------------------- windows
@holds("depth_growth")
@pytest.mark.parametrize("steps", [32, 4])
def test_depth_growth(cut: tuple[float, ...], steps: int) -> None:
    ds = cell(steps=steps)
    figure = figures.depth_growth(Sweep([ds]))
    drawn = np.asarray(figure.axes[0].lines[0].get_ydata())
    values = ds["hidden_rel_l2"].values  # the embeddings do not drift
    expected = [level(values[:, k, :], caption(figure)) for k in range(1, values.shape[1])]
    np.testing.assert_allclose(drawn[1:], expected)
    assert title(figure).endswith(f"grows {expected[-1] / expected[0]:.2g}-fold".replace("e+0", "e"))


@holds("keys_values")
@pytest.mark.parametrize("steps", [32, 4])
def test_keys_values(cut: tuple[float, ...], steps: int) -> None:
    cells = [cell(d, steps=steps, chunk_size=c) for d in ("bf16", "fp16", "fp32") for c in (16, 32)]
    sweep = Sweep(cells)
    for size, said in ((None, "Smallest chunk size of each model and protocol."), (32, "Chunk size 32.")):
        figure = figures.keys_values(sweep, size)
        words = caption(figure)
        assert said in words
        assert words.endswith("Of the precisions the coarsest and the finest.")
        ax = figure.axes[0]
        assert len(ax.lines) == 2 * 3
        (ds,) = sweep.sel(dtype="bf16", chunk_size=size or 16)
        expected = [level(ds["key_rel_l2"].values[:, k, :], words) for k in range(ds.sizes["block"])]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert "Of the precisions" not in caption(figures.keys_values(sweep.sel(dtype=["bf16", "fp32"])))


def test_every_protocol_of_the_legend_is_drawn_at_the_chunk_size_that_is_named() -> None:
    sweep = Sweep([cell(), cell(chunk_size=32), cell(protocol="restart", chunk_size=32)])
    for draw in (figures.depth_growth, figures.logits_per_step):
        figure = draw(sweep)
        assert figure.axes[0].get_title().endswith(", chunks 16 to 32")
        assert "Smallest chunk size of each model and protocol." in caption(figure)
        names = [t.get_text() for t in figure.legends[0].get_texts()]
        assert {"append", "restart"} <= set(names)
        assert len(figure.axes[0].lines) == 2
        figure = draw(sweep, chunk_size=16)
        assert figure.axes[0].get_title().endswith(", chunk 16")
        assert "Chunk size 16." in caption(figure)
        assert "restart" not in [t.get_text() for t in figure.legends[0].get_texts()]
    assert "under restart" in title(figures.logits_per_step(sweep))
    assert "under restart" not in title(figures.logits_per_step(sweep, chunk_size=16))


@holds("worst_tokens")
@pytest.mark.parametrize("steps", [32, 4])
def test_worst_tokens(cut: tuple[float, ...], steps: int) -> None:
    ds = cell(steps=steps)
    figure = figures.worst_tokens(Sweep([ds]))
    names = [t.get_text() for t in figure.legends[0].get_texts()][1:]
    assert names == ["worst token", "99 %", "90 %", "median"]
    everything = ds["hidden_rel_l2_token"].transpose("document", "layer", "step", "quantile").values
    for line, name in zip(figure.axes[1].lines, names, strict=True):
        q = {"worst token": 1.0, "median": 0.5}.get(name) or float(name.rstrip(" %")) / 100
        k = ds["quantile"].values.tolist().index(q)
        expected = [level(everything[:, n, :, k], caption(figure)) for n in range(1, ds.sizes["layer"])]
        np.testing.assert_allclose(np.asarray(line.get_ydata())[1:], expected)
    assert "bands: from the smallest to the largest of what the mean is of" in caption(figure)
    for band, name in zip(figure.axes[0].collections, names, strict=True):
        q = {"worst token": 1.0, "median": 0.5}.get(name) or float(name.rstrip(" %")) / 100
        spread = everything[:, -1, :, ds["quantile"].values.tolist().index(q)]
        corners = band.get_paths()[0].vertices
        for step in range(spread.shape[1]):
            ends = corners[corners[:, 0] == step + 1, 1]
            assert (ends.min(), ends.max()) == pytest.approx((spread[:, step].min(), spread[:, step].max()))
    worst, median = (np.asarray(figure.axes[0].lines[k].get_ydata()) for k in (0, 3))
    times = re.search(r"drifts ([\d.]+) times", title(figure))
    assert times
    assert float(times[1]) == pytest.approx(np.median(worst) / np.median(median), rel=0.05)


@holds("level_vs_roundoff")
@pytest.mark.parametrize("steps", [64, 4])
@pytest.mark.parametrize(("measure", "power"), [("hidden_rel_l2", 1), ("logit_kl", 2)])
def test_level_vs_roundoff(cut: tuple[float, ...], steps: int, measure: str, power: int) -> None:
    cells = [made.make(last(cell(d, steps=steps)), dtype=d) for d in DTYPES]
    figure = figures.level_vs_roundoff(Sweep(cells), measure)
    ax, words = figure.axes[0], caption(figure)
    expected = [level(last(ds, measure), words) for ds in cells]
    np.testing.assert_allclose(points(ax), expected[::-1])
    u = [synthetic.ROUNDOFF[d] for d in DTYPES]
    by_hand = math.log(expected[0] / expected[1]) / math.log(u[0] / u[1])
    assert title(figure) == f"The level goes with the unit roundoff to the power {by_hand:.2f} under append"
    (judged,) = ladder.ladders(Sweep(cells), measure)
    assert ax.get_title() == f"append: {judged.slope.verdict.value}"
    # The guide that the legend calls rounding goes with that power of the unit roundoff.
    entries = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    (name,) = (entry for entry in entries if "rounding" in entry)
    assert name == f"slope {power}: rounding"
    x, y = (np.log(ax.lines[-2].get_data()[k]) for k in (0, 1))
    assert np.diff(y)[0] / np.diff(x)[0] == pytest.approx(power)


def test_panels_of_level_vs_roundoff_are_titled_by_the_ladder() -> None:
    def titled(*cells: xr.Dataset) -> str:
        return flowed(figures.level_vs_roundoff(Sweep(cells)).axes[0].get_title())

    def at(exponent: float, *, noise: float = 0.01, chunk_size: int = 16) -> list[xr.Dataset]:
        rng = np.random.default_rng(0)
        return [
            made.make(1e-2 * synthetic.ROUNDOFF[d] ** exponent * np.exp(noise * rng.standard_normal((4, 32))), dtype=d,
                      chunk_size=chunk_size)
            for d in DTYPES
        ]  # fmt: skip

    assert titled(*at(1.0)) == "append: rounding"
    assert titled(*at(0.0)) == "append: structural"
    # Above 0.8 is not enough: the whole interval has to lie within the margin around 1.
    assert titled(*at(1.4)) == f"append: undetermined ({ScalingReason.STEEP.value})"
    assert titled(*at(-0.2)) == f"append: undetermined ({ScalingReason.REVERSED.value})"
    assert titled(*at(1.0), *at(0.0, chunk_size=32)) == "append: rounding or structural"
    assert titled(at(1.0)[0]) == f"append: undetermined ({ScalingReason.ONE_RUNG.value})"
    assert titled(*at(1.0), at(1.0, chunk_size=32)[0]) == "append: rounding"
    only = [made.remake(ds, reference="previous") for ds in at(1.0)]
    assert titled(*only) == "append"
    # Long reasons beside each other: one document, and chains too short for an interval.
    short = [ds.isel(document=[0], step=slice(0, 6)) for ds in at(1.0)]
    beside = [*short, *(made.remake(ds, protocol="streaming(sinks=4,window=512,positions=cache)") for ds in short)]
    figure = figures.level_vs_roundoff(Sweep(beside))
    figure.draw_without_rendering()
    left, right = (ax.title.get_window_extent() for ax in figure.axes)
    assert ScalingReason.NO_INTERVAL.value in flowed(figure.axes[0].get_title())
    assert left.x1 < right.x0, "titles cover each other"
    assert "no slope" in title(figures.level_vs_roundoff(Sweep(only)))
    assert "no slope" in title(figures.level_vs_roundoff(Sweep(at(1.0)), "hidden_norm"))


@holds("level_vs_chunk_size")
@pytest.mark.parametrize("steps", [32, 4])
def test_level_vs_chunk_size(cut: tuple[float, ...], steps: int) -> None:
    cells = [cell(steps=steps, chunk_size=c) for c in (16, 32)]
    figure = figures.level_vs_chunk_size(Sweep(cells))
    (line,) = figure.axes[0].lines
    expected = [level(last(ds), caption(figure)) for ds in cells]
    np.testing.assert_allclose(line.get_ydata(), expected)
    share = re.search(r"From chunk size 16 to 32 the level varies at most ([\d.]+) % under append", title(figure))
    assert share
    assert 1 + float(share[1]) / 100 == pytest.approx(max(expected) / min(expected), abs=0.0005)


@holds("readings")
@pytest.mark.parametrize("steps", [32, 4])
@pytest.mark.parametrize("measure", ["hidden_rel_l2", "logit_kl"])
def test_readings(cut: tuple[float, ...], steps: int, measure: str) -> None:
    deep, other = cell(steps=steps), cell(steps=steps // 2, chunk_size=32)
    figure = figures.readings(Sweep([deep, other]), measure)
    left, right = figure.axes
    assert len(left.containers) == 1, "the deepest chain"
    words = caption(figure)
    assert points(left, "x") == pytest.approx(level(last(deep, measure), words))
    name = left.get_xlabel().replace("-\n", "-")
    assert flowed(name).startswith(f"level: {measure_name(measure)}"), "what is drawn is no square root"
    gap = (deep["nll_fold"] - deep["nll_full"]).values[:, left_out(words, steps) :]
    assert points(right, "x") == pytest.approx(gap.mean())
    linear = re.search(r"linear within ±([\d.]+)", words)
    assert linear
    assert right.xaxis.get_transform().linthresh == float(linear[1])  # type: ignore[attr-defined]


@holds("logits_per_step")
@pytest.mark.parametrize("steps", [32, 4])
def test_logits_per_step(cut: tuple[float, ...], steps: int) -> None:
    # The bigger chunks are not drawn, and drift otherwise: neither lines nor title may know of them.
    cells = [cell(d, steps=steps, documents=2) for d in ("fp32", "bf16")]
    figure = figures.logits_per_step(Sweep([*cells, cell(steps=steps, chunk_size=64, power=1.5)]))
    words = caption(figure)
    late = [100 * (1 - last(ds, "top1_agreement")[:, left_out(words, steps) :].mean()) for ds in cells]
    ends = re.search(r"differs for (\S+) to (\S+) % under append", title(figure))
    assert ends
    assert [float(e) for e in ends.groups()] == pytest.approx(sorted(late), rel=0.06)
    assert title(figure).startswith(f"Past the first {next(n for n, s in SHARES.items() if s == cut[-1])} of the chain")
    (full,) = (line for line in figure.axes[3].lines if line.get_color() == "black")
    np.testing.assert_allclose(full.get_ydata(), cells[1]["nll_full"].mean("document"))  # of bf16
    kl = figure.axes[0].lines[0]
    np.testing.assert_allclose(kl.get_ydata(), np.exp(np.log(cells[1]["logit_kl"]).mean("document")))


@holds("plateau_fit")
@pytest.mark.parametrize("growth", [0.05, 0.12])
@pytest.mark.parametrize(("level_alpha", "said"), [(0.025, "95 %"), (0.05, "90 %")])
def test_plateau_fit(
    cut: tuple[float, ...], growth: float, level_alpha: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = cell(steps=64, power=0.0)
    width = dict.fromkeys((0.025, level_alpha), 0.0)
    for a in width:
        monkeypatch.setattr(intervals, "LEVEL_ALPHA", a)
        found = plateau(last(ds), margin=growth)
        width[a] = math.log(found.level_interval[1] / found.level_interval[0])
    figure = figures.plateau_fit(Sweep([ds]), setting=model.Setting(growth=growth))
    ax, words = figure.axes[0], caption(figure)
    assert f"{said} interval of the level" in words
    (bar,) = (line for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2)
    low, high = bar.get_ydata()
    assert math.log(high / low) == pytest.approx(width[level_alpha])
    if level_alpha == 0.05:  # a ratio of two quantiles of Student's t, whatever its degrees of freedom
        ratios = [scipy.stats.t.ppf(0.95, df) / scipy.stats.t.ppf(0.975, df) for df in (1, 1e9)]
        assert ratios[0] < width[0.05] / width[0.025] < ratios[1]
    # The level stands over the window that the caption names.
    steps = next(line for line in ax.lines[1:] if line.get_linestyle() == "-" and len(set(line.get_ydata())) == 1)
    np.testing.assert_array_equal(steps.get_xdata(), [left_out(words, 64) + 1, 64])
    margin = f"±{100 * growth:g} % per doubling"
    assert f"within {margin}?" in title(figure)
    assert margin in [t.get_text() for t in figure.legends[0].get_texts()]
    fan = max(ax.collections, key=lambda c: c.get_zorder()).get_paths()[0].vertices
    rims = [np.log(fan[fan[:, 0] == at, 1]).max() for at in (52, 64)]
    assert (rims[1] - rims[0]) / math.log2(64 / 52) == pytest.approx(math.log1p(growth)), "the margin, per doubling"


# ---------------------------------------------------------------------------------------------- coverages
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


# ---------------------------------------------------------------------------------------------- what is drawn of it
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


def test_the_legend_of_the_table_of_levels(cut: tuple[float, ...], alpha: float) -> None:
    words, ds = table_legend(), cell(steps=64)
    row = summary.table(Sweep([ds])).iloc[0]
    assert row["level"] == pytest.approx(level(last(ds), words))
    by_document = np.exp(np.log(last(ds)[:, left_out(words, 64) :]).mean(axis=1))
    assert (row["level_low"], row["level_high"]) == pytest.approx((by_document.min(), by_document.max()))
    assert percent_of(words, "interval") == pytest.approx(1 - 2 * alpha)
