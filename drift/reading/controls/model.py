"""What controls say, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from drift.dataset.sweep import scalar
from drift.reading.amplitudes import amplitude
from drift.reading.statistics import levels
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import Interval
from drift.reading.statistics.levels import geometric_mean
from drift.reading.wording.tables import first_few

__all__ = ["CONTROLS_COMMAND", "Checkup", "Control", "Floor", "Instrument", "Response", "State", "instrument_of"]

#: What a reader does about missing controls.
CONTROLS_COMMAND = "python -m drift.sweep SWEEP.yaml --set controls=true"


class State(Enum):
    """Outcome of a control. The value is what tables and JSON show."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    NOT_RUN = "not run"


SIGNS = {State.PASSED: "●", State.FAILED: "✖", State.UNDECIDED: "○", State.NOT_RUN: "–"}
KINDS = ("quiet", "floor", "response", "shifted")
Instrument = tuple[str, str, str, str]  # model, dtype, device, attention implementation


@dataclass(frozen=True)
class Control:
    """One control of one setting.

    Attributes
    ----------
    kind : {"quiet", "floor", "response", "shifted"}
    setting : tuple of str
        Model, precision, device and attention implementation.
    state : State
    number : float
        Quiet: largest difference. Floor: its level. Response: the slope. Shifted: the level. NaN where not run.
    words : str
        The outcome in a sentence.
    """

    kind: str
    setting: Instrument
    state: State
    number: float
    words: str

    @property
    def name(self) -> str:
        """The setting in words."""
        model, dtype, device, attention = self.setting
        return f"{model} {dtype} ({device}, {attention})"


@dataclass(frozen=True)
class Floor:
    """How far full attention is from itself when only the order of its sums changes.

    Attributes
    ----------
    protocol : str
        What was changed.
    setting : tuple of str
    unit_roundoff : float
    values : ndarray [document, step]
        Amplitudes of the measure.
    text : str
        Hash of the tokens.
    """

    protocol: str
    setting: Instrument
    unit_roundoff: float
    values: Float
    text: str

    @property
    def level(self) -> float:
        """Geometric mean of what is above 0; 0 where all of it is exactly zero."""
        return geometric_mean(self.values)


@dataclass(frozen=True)
class Response:
    """How drift answers to noise of a known size.

    Attributes
    ----------
    setting : tuple of str
    protocol : str
        Of the fold that was disturbed, with the step.
    step : int
        First chain step (counted from 0) that can differ.
    sizes : ndarray [size]
    values : ndarray [size, document]
        Drift at that step.
    used : ndarray [size]
        Sizes that the slope is formed on: neither drowned in rounding nor beyond the linear range.
    slope : Interval
        Log-log, over documents; over sizes where there is one document.
    early : float
        Largest drift before that step, which must be exactly 0.
    unit_roundoff : float
    """

    setting: Instrument
    protocol: str
    step: int
    sizes: Float
    values: Float
    used: NDArray[np.bool_]
    slope: Interval
    early: float
    unit_roundoff: float


@dataclass(frozen=True)
class Checkup:
    """What the controls of a sweep say.

    Attributes
    ----------
    controls : tuple of Control
    floor : tuple of Floor
    responses : tuple of Response
    run : bool
        Whether the sweep has any control cell.
    measure : str
    """

    controls: tuple[Control, ...]
    floor: tuple[Floor, ...]
    responses: tuple[Response, ...]
    run: bool
    measure: str = "hidden_rel_l2"

    @property
    def ok(self) -> bool:
        """Whether no control failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The controls that failed, in words."""
        return [f"{c.kind}, {c.name}: {c.words}" for c in self.controls if c.state is State.FAILED]

    @property
    def missing(self) -> list[str]:
        """The controls that were not run, in words."""
        if not self.run:
            return ["controls were not run"]
        return [f"{c.kind}, {c.name}: {c.words}" for c in self.controls if c.state is State.NOT_RUN]

    @property
    def undecided(self) -> list[str]:
        """The controls that cannot tell at their precision, in words."""
        return [f"{c.kind}, {c.name}: {c.words}" for c in self.controls if c.state is State.UNDECIDED]

    @property
    def banner(self) -> str:
        """What stands at the top of every page."""
        if not self.run:
            return "Controls were not run: that the instrument reads right has not been shown in this sweep."
        count = len(self.failed)
        if count:
            return (
                f"No conclusion is drawn: {count} control{'s' * (count != 1)} of the instrument failed. "
                f"{first_few(self.failed)}. What stands below "
                "describes numbers that cannot be trusted."
            )
        passed = sum(c.state is State.PASSED for c in self.controls)
        text = f"All {passed} controls of the instrument that could be decided passed"
        if self.undecided:
            kinds = dict.fromkeys((c.kind, c.setting[1]) for c in self.controls if c.state is State.UNDECIDED)
            which = ", ".join(f"{kind} in {dtype}" for kind, dtype in kinds)
            text += f"; {len(self.undecided)} cannot be decided at their precision ({which})"
        return text + (f"; {len(self.missing)} were not run." if self.missing else ".")

    def in_floors(self, ds: xr.Dataset, layer: int | str = "last") -> float:
        """Level of a cell's drift in units of the floor; NaN where no floor was measured, Inf where it is exactly 0."""
        bottom = [f.level for f in self.floor if f.setting == instrument_of(ds)]
        if not bottom:
            return math.nan
        top = levels.geometric_mean(levels.level(amplitude(ds, self.measure, layer)))
        worst = float(np.max(bottom))  # NaN stays NaN
        return math.inf if worst == 0 < top else top / worst if worst != 0 else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [
            {
                "control": c.kind,
                **dict(zip(("model", "dtype", "device", "attn_implementation"), c.setting, strict=True)),
                "state": c.state.value,
                "number": c.number if math.isfinite(c.number) else None,
                "words": c.words,
            }
            for c in self.controls
        ]
        return {
            "run": self.run, "ok": self.ok, "failed": self.failed, "undecided": self.undecided,
            "missing": self.missing, "controls": rows,
        }  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """Write the controls as a table for reading."""
        rows = [
            {
                "control": c.kind,
                "model": c.setting[0],
                "precision": c.setting[1],
                "device": c.setting[2],
                "attention": c.setting[3],
                "outcome": f"{SIGNS[c.state]} {c.state.value}",
                "finding": c.words,
            }
            for c in self.controls
        ]
        return pd.DataFrame(rows)


def instrument_of(ds: xr.Dataset) -> Instrument:
    """Model, precision, device and attention implementation of a cell: what one set of controls vouches for."""
    model, dtype, device, attention = (str(scalar(ds, n)) for n in ("model", "dtype", "device", "attn_implementation"))
    return model, dtype, device, attention
