"""Is a drift curve a plateau? Curves in, verdicts out.

``plateau(values)`` decides for one curve [document, step], ``plateaus`` for many, ``ds.drift.plateau()`` for a cell of
a sweep, and ``python -m drift.plateau`` for sweeps and for CSV files measured by any other tool. The statistics, and
the reasons for them, are in :mod:`drift.reading.statistics.plateau`; ``bench/`` holds their calibration.
"""

from __future__ import annotations

from drift.reading.plateau.deciding import plateau, plateaus
from drift.reading.plateau.model import Plateau, Reason, Verdict
from drift.reading.statistics.analysis import Analysis, Code
from drift.reading.statistics.plateau import analyse
from drift.reading.statistics.windows import late_part, late_start

__all__ = [
    "Analysis",
    "Code",
    "Plateau",
    "Reason",
    "Verdict",
    "analyse",
    "late_part",
    "late_start",
    "plateau",
    "plateaus",
]
