"""The one way in which values become JSON and hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from drift.errors import DatasetError

__all__ = ["canonical_json", "content_hash"]


# ---------------------------------------------------------------------------------------------- hashes
def _plain(obj: Any) -> Any:
    """Turn what JSON does not know, but provenance is full of, into what it does."""
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, np.ndarray):
        return obj.tolist()
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"{type(obj).__name__} has no JSON form")


def canonical_json(obj: object) -> str:
    """Write `obj` as JSON in the one form that hashes are taken of.

    Keys are sorted, there is no white space, and NaN and Inf are refused.

    Raises
    ------
    DatasetError
        If `obj` has no such form.
    """
    try:
        return json.dumps(
            obj, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise DatasetError(f"cannot be written as canonical JSON: {error}") from error


def content_hash(obj: object) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of `obj`."""
    return hashlib.sha256(canonical_json(obj).encode()).hexdigest()
