"""What a server answered, judged: every lane against the cold one, by the repeats and by lanes of another kind."""

from __future__ import annotations

from drift.reading.probing.judging import judge
from drift.reading.probing.model import Found, Pair, Parting, Why
from drift.reading.probing.showing import as_dict, body, page
from drift.reading.probing.suite import junit

__all__ = ["Found", "Pair", "Parting", "Why", "as_dict", "body", "judge", "junit", "page"]
