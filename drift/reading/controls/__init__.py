"""Controls of the instrument: what must read exactly 0, what must fire, and the floor that noise leaves."""

from drift.reading.controls.evaluating import evaluate
from drift.reading.controls.firing import TOLERANCE, respond
from drift.reading.controls.floor import floors, in_floors, threshold
from drift.reading.controls.gating import NO_CONTROLS, WITHHELD, Gate, gate
from drift.reading.controls.model import CONTROLS_COMMAND, Checkup, Control, Floor, Response, State

__all__ = [
    "CONTROLS_COMMAND",
    "NO_CONTROLS",
    "TOLERANCE",
    "WITHHELD",
    "Checkup",
    "Control",
    "Floor",
    "Gate",
    "Response",
    "State",
    "evaluate",
    "floors",
    "gate",
    "in_floors",
    "respond",
    "threshold",
]
