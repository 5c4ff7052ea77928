"""Figures: every one is drawn from every kind of sweep, shows the data it says it shows, and hides no value."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from drift import plots, summary
from drift.dataset import Sweep
from drift.errors import DatasetError

FIGURES: dict[str, Callable[[Sweep], Figure | None]] = {
    "drift_per_step": plots.drift_per_step,
    "drift_per_step token": lambda s: plots.drift_per_step(s, x="token"),
    "drift_per_step keys": lambda s: plots.drift_per_step(s, "key_rel_l2"),
    "heat_map": plots.heat_map,
    "logits_per_step": plots.logits_per_step,
    "level_vs_roundoff": plots.level_vs_roundoff,
    "level_vs_chunk_size": plots.level_vs_chunk_size,
    "depth_growth": plots.depth_growth,
    "keys_values": plots.keys_values,
    "worst_tokens": plots.worst_tokens,
    "nonfinite": plots.nonfinite,
}


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


# many lines are a question of the legend, which is put together in one way: two figures will do
PAIRS = [(s, f) for s in SWEEPS for f in FIGURES if not s.startswith("five") or f in ("drift_per_step", "depth_growth")]


@pytest.mark.parametrize(("sweep", "figure"), PAIRS)
def test_every_figure_from_every_sweep(sweeps: dict[str, Sweep], sweep: str, figure: str) -> None:
    made = FIGURES[figure](sweeps[sweep])
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
    plots.png(plots.drift_per_step(sweeps["one cell"]))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_lines_are_the_geometric_means(sweeps: dict[str, Sweep]) -> None:
    cell = sweeps["one cell"].only()
    line = plots.drift_per_step(sweeps["one cell"]).axes[0].lines[0]
    expected = np.exp(np.log(cell["hidden_rel_l2"].values[:, -1, :]).mean(axis=0))
    np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_array_equal(line.get_xdata(), cell["step"].values + 1)
    by_token = plots.drift_per_step(sweeps["one cell"], x="token").axes[0].lines[0]
    np.testing.assert_array_equal(by_token.get_xdata(), cell["token_stop"].values)
    depth = plots.depth_growth(sweeps["one cell"]).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(depth, summary.depth(sweeps["one cell"])["value"])


def test_bands_span_the_documents(sweeps: dict[str, Sweep]) -> None:
    cell = sweeps["one cell"].only()
    band = plots.drift_per_step(sweeps["one cell"]).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    values = cell["hidden_rel_l2"].values[:, -1, :]
    assert (band.min(), band.max()) == pytest.approx((values.min(), values.max()))


def test_what_a_log_axis_cannot_show_is_counted() -> None:
    cell = small()
    cell["hidden_rel_l2"].values[0, -1, 1] = 0.0
    cell["hidden_rel_l2"].values[:, -1, 2] = np.nan
    label = plots.drift_per_step(Sweep([cell])).axes[0].get_xlabel()
    assert "not drawn: 1 exactly 0, 2 NaN or Inf" in label
    clean = plots.drift_per_step(Sweep([small()])).axes[0].get_xlabel()
    assert "not drawn" not in clean


def test_titles_come_from_the_data() -> None:
    rounding = Sweep([small(dtype=d, level=flat(synthetic.APPEND[d])) for d in ("bf16", "fp32")])
    structural = Sweep([small(dtype=d, level=flat(0.5)) for d in ("bf16", "fp32")])
    assert "it is rounding" in plots.drift_per_step(rounding).get_suptitle().replace("\n", " ")
    assert "it is structural" in plots.drift_per_step(structural).get_suptitle().replace("\n", " ")
    assert "to the power 0.00" in plots.level_vs_roundoff(structural).get_suptitle().replace("\n", " ")


def test_colour_is_never_the_only_difference() -> None:
    sweep = Sweep([small(dtype=d, chunk_size=c) for d in ("bf16", "fp32") for c in (8, 16)])
    lines = plots.drift_per_step(sweep).axes[0].lines
    looks = {(line.get_marker(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(lines) == 4


def test_chosen_cells(sweeps: dict[str, Sweep]) -> None:
    chosen = plots.choose(sweeps["three models"])
    assert [c["dtype"].item() for c in chosen] == ["bf16"] * 3
    assert [c["chunk_size"].item() for c in chosen] == [64] * 3
    assert plots.choose(sweeps["three models"], dtype="fp32", protocol="restart").values("protocol") == ["restart"]


def test_bad_arguments_are_named(sweeps: dict[str, Sweep]) -> None:
    with pytest.raises(DatasetError, match="'step' or 'token'"):
        plots.drift_per_step(sweeps["one cell"], x="hour")
    with pytest.raises(DatasetError, match="protocol"):
        plots.drift_per_step(sweeps["one cell"], protocol="absent")
    for draw in FIGURES.values():
        if draw is not plots.nonfinite:
            with pytest.raises(DatasetError, match="nothing to draw"):
                draw(Sweep([]))


def test_png_is_small_and_whole(sweeps: dict[str, Sweep]) -> None:
    payload = plots.png(plots.drift_per_step(sweeps["three models"]))
    assert len(payload) < 150_000
    with Image.open(io.BytesIO(payload)) as image:
        assert min(image.size) > 300
        assert math.prod(image.size) < 4e6
    assert payload == plots.png(plots.drift_per_step(sweeps["three models"]))


def test_importing_needs_no_torch_and_no_window() -> None:
    code = "import sys, drift.plots, drift.report; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(plots.__file__).parents[1])
