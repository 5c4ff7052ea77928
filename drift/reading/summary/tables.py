"""Tables of levels and slopes as people read them."""

from __future__ import annotations

import math

import pandas as pd

from drift.reading.statistics.intervals import ALPHA
from drift.reading.wording.numbers import coverage, number, percent

__all__ = ["shown", "shown_slopes"]


def shown(levels: pd.DataFrame) -> pd.DataFrame:
    """Write the table of levels for reading: rounded, columns that never vary left out."""
    columns = {
        "model": levels["model"],
        "protocol": levels["protocol"],
        "precision": levels["dtype"],
        "chunk size": levels["chunk_size"],
        **{k: levels[k] for k in ("attn_implementation", "device", "tokens") if levels[k].nunique() > 1},
        "steps": levels["steps"],
        "documents": levels["documents"],
        "first step": levels["first"].map(number),
        "level": levels["level"].map(lambda v: number(v, 3)),
        "low": levels["level_low"].map(lambda v: number(v, 3)),
        "high": levels["level_high"].map(lambda v: number(v, 3)),
        "level / first": levels["ratio"].map(lambda v: number(v, 3)),
        "level / unit roundoff": levels["roundoffs"].map(lambda v: number(v, 3)),
        "verdict": levels["verdict"].str.replace("_", " "),
        "growth per doubling": levels["growth"].map(lambda v: "–" if math.isnan(v) else percent(v)),
        f"{coverage(ALPHA)} interval": [
            "–" if math.isnan(a) else f"{percent(a)} to {percent(b)}"
            for a, b in zip(levels["growth_low"], levels["growth_high"], strict=True)
        ],
        "zeros": levels["zeros"],
        "non-finite": levels["nonfinite"],
    }
    return pd.DataFrame(columns)


def shown_slopes(found: pd.DataFrame) -> pd.DataFrame:
    """Write the table of slopes for reading."""
    return pd.DataFrame(
        {
            "model": found["model"],
            "protocol": found["protocol"],
            "chunk size": found["chunk_size"],
            **{k: found[k] for k in ("attn_implementation", "device", "tokens") if found[k].nunique() > 1},
            "slope": found["slope"].map(lambda v: "–" if math.isnan(v) else f"{v:z.2f}"),
            "precisions": found["dtypes"],
            "left out (zero or not finite)": found["left_out"],
        }
    )
