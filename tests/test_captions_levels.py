"""Captions and titles of levels, held against the window that their words name."""

from __future__ import annotations

import math
import re

import captions_tools
import numpy as np
import pytest
import scipy.stats
import synthetic
import synthetic_controls as made
import xarray as xr
from captions_tools import DTYPES, SHARES, caption, cell, flowed, holds, last, left_out, level, points, title

from drift.dataset.sweep import Sweep
from drift.reading import figures, ladder
from drift.reading.amplitudes import measure_name
from drift.reading.claims import model
from drift.reading.plateau.deciding import plateau
from drift.reading.statistics import intervals
from drift.reading.statistics.slope import ScalingReason

cut = captions_tools.cut


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
