"""Is a drift curve a plateau? Curves in, verdicts out.

``plateau(values)`` decides for one curve [document, step], ``plateaus`` for many, ``ds.drift.plateau()`` for a cell of
a sweep, and ``python -m drift.plateau`` for sweeps and for CSV files measured by any other tool. The statistics, and
the reasons for them, are in :mod:`drift.plateau.kernel`; ``bench/`` holds their calibration.
"""

from drift.plateau.kernel import Analysis, Code, analyse, late_part, late_start
from drift.plateau.verdict import Plateau, Reason, Verdict, plateau, plateaus

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
