"""Where does it enter? Two dumps of a network's tensors, compared: rounding or structural, and from where on.

Needs NumPy alone: the tensors may come from any engine that can write safetensors files. docs/diagnose.md has the
naming scheme, what the verdicts mean, and how to write a dump.
"""

from __future__ import annotations

from drift.reading.diagnose.model import Cause, Diagnosis, Entry, Evidence, Verdict
from drift.reading.diagnose.showing import as_dict, page
from drift.reading.diagnose.tensors import Dump, open_dump, unpacked
from drift.reading.diagnose.verdict import diagnose

__all__ = [
    "Cause",
    "Diagnosis",
    "Dump",
    "Entry",
    "Evidence",
    "Verdict",
    "as_dict",
    "diagnose",
    "open_dump",
    "page",
    "unpacked",
]
