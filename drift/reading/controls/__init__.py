"""Controls of the instrument: what must read exactly 0, what must fire, and the floor that noise leaves."""

from drift.reading.controls.evaluating import evaluate
from drift.reading.controls.firing import TOLERANCE, respond
from drift.reading.controls.floor import floors, in_floors, threshold
from drift.reading.controls.model import CONTROLS_COMMAND, Control, Floor, Response, State, Summary

__all__ = [
    "CONTROLS_COMMAND",
    "TOLERANCE",
    "Control",
    "Floor",
    "Response",
    "State",
    "Summary",
    "evaluate",
    "floors",
    "in_floors",
    "respond",
    "threshold",
]
