"""Are two cells the same data?"""

from __future__ import annotations

import numpy as np
import xarray as xr

from drift.dataset.contract import VARIABLES
from drift.dataset.task_contract import TASK_VARIABLES

__all__ = ["VOLATILE_ATTRS", "VOLATILE_VARIABLES", "same_data", "unequal"]

#: Attributes that may differ between two runs of the same cell: when it was, and how a protocol is worded.
VOLATILE_ATTRS = ("created_at", "elapsed_s", "protocol_summary")
#: Variables whose values may differ between two runs of the same cell: what was timed.
VOLATILE_VARIABLES = tuple(name for table in (VARIABLES, TASK_VARIABLES) for name, row in table.items() if row.volatile)


def same_data(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    """Compare two cells bit for bit (any NaN equals any NaN), volatile attributes and values aside.

    Returns
    -------
    list of str
        One sentence per difference; empty if there is none.
    """
    differences = []
    for name in sorted({*map(str, a.variables), *map(str, b.variables)}):
        if name not in a.variables or name not in b.variables:
            differences.append(f"{name}: only in the {'first' if name in a.variables else 'second'}")
            continue
        x, y = a[name], b[name]
        if (x.dims, x.shape) != (y.dims, y.shape):
            differences.append(f"{name}: {dict(x.sizes)} against {dict(y.sizes)}")
        elif x.dtype.kind != y.dtype.kind or (x.dtype.kind != "U" and x.dtype != y.dtype):
            differences.append(f"{name}: {x.dtype} against {y.dtype}")
        elif name not in VOLATILE_VARIABLES:
            other = unequal(x.values, y.values)
            if other.any():
                differences.append(f"{name}: {int(other.sum())} of {other.size} values differ")
        if dict(x.attrs) != dict(y.attrs):
            differences.append(f"{name}: its attributes differ")
    for name in sorted({*map(str, a.attrs), *map(str, b.attrs)} - {*VOLATILE_ATTRS}):
        if name not in a.attrs or name not in b.attrs:
            differences.append(f"attribute {name}: only in the {'first' if name in a.attrs else 'second'}")
        elif a.attrs[name] != b.attrs[name] or isinstance(a.attrs[name], str) != isinstance(b.attrs[name], str):
            differences.append(f"attribute {name}: {a.attrs[name]!r} against {b.attrs[name]!r}")
    return differences


def unequal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Say which values of two arrays of one shape and dtype have other bits; any NaN equals any NaN.

    Returns
    -------
    ndarray of bool
        Of the same shape.
    """
    if x.dtype.kind != "f":
        return np.asarray(x != y)
    bits = np.dtype(f"u{x.dtype.itemsize}")
    different = np.ascontiguousarray(x).view(bits) != np.ascontiguousarray(y).view(bits)
    return np.asarray(different & ~(np.isnan(x) & np.isnan(y))).reshape(x.shape)
