"""Lists and tables as Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

__all__ = ["absent", "bullets", "first_few", "html"]


def bullets(lines: Sequence[str]) -> str:
    """Write sentences as a Markdown list; what stands before the first colon is what the sentence is about."""
    marked = [re.sub(r"^([^:(*]{1,90}): ", r"**\1:** ", escape(line, quote=False)) for line in lines]
    return "\n".join(f"- {line}" for line in marked) or "_Nothing to say: there are no such cells._"


def first_few(items: Sequence[str], most: int = 3) -> str:
    """Write the first of many remarks in one sentence, and say how many more there are."""
    more = len(items) - most
    return "; ".join(items[:most]) + (f"; and {more} more" if more > 0 else "")


def absent(what: str, command: str) -> str:
    """Say that something was not measured, and what would."""
    return f"{what}: not measured in this sweep; `{command}` measures it."


def html(table: pd.DataFrame, empty: str = "Nothing to list.", upright: bool = False) -> str:
    """Write a table as HTML that scrolls inside the page.

    Parameters
    ----------
    table : pandas.DataFrame
    empty : str
        What is said where there are no rows.
    upright : bool
        Write a table of few rows with one column per row, so that it need not be scrolled.
    """
    if table.empty:
        return f"<p>{escape(empty)}</p>"
    text = table.astype(object).where(table.notna(), "–")
    how: dict[str, Any] = {"border": 0, "escape": True, "classes": "numbers", "max_cols": None, "max_rows": None}
    if upright and len(text) <= 6:
        first = text.columns[0]
        text = text.set_index(first).T
        text.columns.name = None
        body = text.to_html(**how)
    else:
        body = text.to_html(index=False, **how)
    return f'<div class="scroll">{body}</div>'
