"""What a dump was read as, and what of it has no place."""

from __future__ import annotations

import re
from collections import Counter

from drift.reading.diagnose.tensors import Dump
from drift.shown import clipped

__all__ = ["left_out"]

_SHOWN = 5  # kinds of names
_NUMBER = re.compile(r"\d+")


def left_out(lane: str, dump: Dump) -> list[str]:
    """Say what a lane was read as where it has no names of our own, and which tensors were left out.

    Parameters
    ----------
    lane : str
        ``"A"`` or ``"B"``.
    dump : Dump
    """
    if not dump.said:
        if not dump.ignored:
            return []
        return [f"{lane} holds {len(dump.ignored)} tensors of other names, for example {dump.ignored[0]!r}."]
    said = [f"{lane} was read as {dump.said}"]
    if dump.ignored:
        kinds = Counter(_NUMBER.sub("N", name) for name in dump.ignored)
        shown = ", ".join(f"{clipped(name)} ({count})" for name, count in kinds.most_common(_SHOWN))
        more = f", and {len(kinds) - _SHOWN} other kinds" if len(kinds) > _SHOWN else ""
        said.append(f"Of {lane}, {len(dump.ignored)} tensors have no place and are not compared: {shown}{more}.")
    return said
