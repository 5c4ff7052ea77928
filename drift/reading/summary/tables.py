"""Tables of levels and of depth as people read them."""

from __future__ import annotations

import math

import pandas as pd

from drift.dataset.sweep import Sweep
from drift.reading.cells import cell_identity, layer_words
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.levels import geometric_mean
from drift.reading.summary.levels import depth
from drift.reading.wording.numbers import coverage, number, percent, rise_words

__all__ = ["depth_table", "shown"]


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
        "level / first": levels["ratio"].map(rise_words),
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


def depth_table(sweep: Sweep) -> pd.DataFrame:
    """Drift through the depth of the network: a row per reading, model and precision, for reading."""
    rows = []
    for ds in sweep:
        one = sweep.derive([ds])
        hidden = depth(one, "hidden_rel_l2").set_index("layer")["value"]
        hidden = hidden[(hidden.index > 0) & (hidden > 0)]
        step = (hidden / hidden.shift()).dropna()
        rows.append(
            {
                "reading": ds["protocol"].item(),
                "chain": "{model} {dtype}, chunk {chunk_size}".format(**cell_identity(ds)),
                "first block": number(hidden.iloc[0]) if len(hidden) else "–",
                "final norm": number(hidden.iloc[-1]) if len(hidden) else "–",
                "largest factor": f"{number(step.max())} ({layer_words(ds, step.idxmax())})" if len(step) else "–",
                "keys": number(geometric_mean(depth(one, "key_rel_l2")["value"].to_numpy())),
                "values": number(geometric_mean(depth(one, "value_rel_l2")["value"].to_numpy())),
            }
        )
    return pd.DataFrame(rows)
