"""What the tests of the plateau share: noise and curves of known make, and the CSV and JSON that hold them."""

import json
import math

import numpy as np
import pytest
from rounding import gamma
from scipy.signal import lfilter

from drift.reading.statistics.analysis import Code

T = np.arange(1, 64.0)
FLAT = (Code.SATURATED, Code.FLAT, Code.RISE_UNRESOLVED)


def ar1(rng, shape, rho):
    """Stationary AR(1) noise of unit variance along the last axis."""
    noise = rng.standard_normal(shape)
    noise[..., 1:] *= math.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=-1)


def tiled(curve, documents=4):
    return np.tile(curve, (documents, 1))


def noisy(curve, sd, documents=4, rho=0.0, seed=0):
    """The curve times log-normal AR(1) noise, independent between documents."""
    return curve * np.exp(sd * ar1(np.random.default_rng(seed), (documents, len(curve)), rho))


def assert_same(one, other):
    """Equal in every figure; the comparison of models alone may round differently in company."""
    # It is n times a logarithm of what a model leaves of a sum of n squares: nothing (the kernel's floor stands in for
    # that), or a hundred-thousandth of these curves at least.
    bound = 2 * len(T) * gamma(2 * len(T)) / 1e-5
    assert one.model_lead == pytest.approx(other.model_lead, rel=0, abs=bound, nan_ok=True)
    assert {**one.as_dict(), "model_lead": 0} == {**other.as_dict(), "model_lead": 0}


def strict(text):
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def write(path, values, *, name=None, first=0, header="document,step,value"):
    """Write [document, step] as CSV; several curves with a leading column `curve`."""
    lines = [header] if header else []
    for d, row in enumerate(values):
        lines += [
            ",".join([*([name] if name else []), f"d{d}", str(first + s), repr(float(v))]) for s, v in enumerate(row)
        ]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")
    return path
