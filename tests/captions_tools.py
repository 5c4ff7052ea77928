"""Reading captions and titles: what their words say, worked out by hand from the data that was drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift.reading.statistics import windows

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


def percent_of(words: str, what: str) -> float:
    found = re.search(rf"([\d.]+) % {what}", words)
    assert found, words
    return float(found[1]) / 100
