"""What a report rests on: its own sweep, and evidence that was computed before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import xarray as xr

from drift.dataset.choosing import is_fold, keep
from drift.dataset.sweep import Sweep
from drift.reading import claims
from drift.reading.claims.against import chains_with_floor
from drift.reading.claims.model import Audit

__all__ = ["MEASURE", "Exhibit", "deepest_exhibit", "deepest_with_floor"]

#: What a report decides by, of the last layer.
MEASURE = "hidden_rel_l2"


@dataclass(frozen=True)
class Exhibit:
    """A sweep that a report answers from.

    Attributes
    ----------
    sweep : Sweep
    page : str
        File of the page that holds it against the published claims.
    name : str
        What the first page calls it; empty for the sweep that the report is about.
    folder : str
        Where it lies, as a command would name it.
    """

    sweep: Sweep
    page: str = "claims.html"
    name: str = ""
    folder: str = "SWEEP"

    @cached_property
    def folds(self) -> Sweep:
        """Its cells that compare a fold with full attention at the same precision."""
        return keep(self.sweep, is_fold)

    @cached_property
    def audit(self) -> Audit:
        """Its claims table by the one measure; of folds or task cells there must be one."""
        return claims.audit(self.sweep, MEASURE, "last", others=())

    def of(self, protocol: str) -> Sweep:
        """Its folds by one protocol."""
        return keep(self.folds, lambda ds: bool(ds["protocol"].item() == protocol))

    def with_floor(self, protocol: str) -> list[xr.Dataset]:
        """The chains of a protocol that verdicts on depth rest on, among those that carry their rounding floor."""
        return chains_with_floor(self.of(protocol), MEASURE)

    def transitions(self, protocol: str) -> int:
        """Count the transitions of its longest chain by a protocol; 0 where it has none."""
        return max((ds.sizes["step"] - 1 for ds in self.of(protocol)), default=0)


def deepest_exhibit(exhibits: Sequence[Exhibit], protocol: str, answers: Callable[[Exhibit], bool]) -> Exhibit | None:
    """Of the exhibits that answer a question, choose the one of the deepest chains by a protocol.

    Parameters
    ----------
    exhibits : sequence of Exhibit
        The first of two that are as deep is chosen.
    protocol : str
    answers : callable
        Whether an exhibit can answer.
    """
    able = [one for one in exhibits if len(one.of(protocol)) and answers(one)]
    return max(able, key=lambda one: one.transitions(protocol), default=None)


def deepest_with_floor(exhibits: Sequence[Exhibit], protocol: str) -> Exhibit | None:
    """Of the exhibits whose chains by a protocol carry their rounding floor, choose the one of the deepest."""
    return deepest_exhibit(exhibits, protocol, lambda one: bool(one.with_floor(protocol)))
