"""Verify one cell: have it computed again, and judge what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import xarray as xr

from drift.errors import DatasetError, Obstacle, UnverifiableError
from drift.reading.verifying.judging import verify
from drift.reading.verifying.model import Verified

__all__ = ["Job", "verified"]


class Job(Protocol):
    """What the running wing hands over: a recorded cell, and how to compute it again.

    Every method raises :class:`drift.errors.UnverifiableError` where it cannot.
    """

    @property
    def chosen(self) -> Any:
        """The cell and its documents: ``request.file``, ``request.subject``, ``documents``, ``documents_of``."""

    def recorded(self) -> xr.Dataset:
        """The cell as it was recorded."""

    def recompute(self) -> xr.Dataset:
        """The whole cell of the chosen documents, computed here."""

    def roundings(self) -> Sequence[xr.Dataset]:
        """Cells of these documents that compare two roundings of one pass."""


def verified(job: Job) -> Verified:
    """Have a cell computed again, and judge what came out."""
    chosen, began = job.chosen, time.monotonic()
    comparison, obstacle, why = None, None, ""
    try:
        comparison = verify(job.recorded(), chosen.documents, job.recompute, job.roundings)
    except UnverifiableError as error:
        obstacle, why = error.obstacle, str(error)
    except DatasetError as error:
        obstacle, why = Obstacle.FAILED, str(error)
    return Verified(
        chosen.request.file,
        chosen.request.subject,
        chosen.documents,
        chosen.documents_of,
        comparison,
        obstacle,
        why,
        time.monotonic() - began,
    )
