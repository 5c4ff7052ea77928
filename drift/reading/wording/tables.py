"""Lists and tables as Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from drift.shown import printable, printable_lines

__all__ = ["absent", "bullets", "code", "fenced", "first_few", "html", "marked"]

#: What our own sentences may hold of Markdown: code between backquotes, and bold.
_MARKUP = re.compile(r"((?<!`)(`+)(?!`).+?(?<!`)\2(?!`)|\*\*)")
#: What else would be Markdown: a list, heading or quotation at the beginning; emphasis, links, formulas, tables, and
#: addresses that a renderer makes links of. An underscore inside a word is none.
_SPECIAL = re.compile(
    r"^([-+=]|[0-9]{1,9}(?=[.)]))|([\\`*\[\]#~$|])|(?<![^\W_])(_)|(_)(?![^\W_])|(:)(?=//)|(\.)(?<=\bwww\.)"
)


def bullets(lines: Sequence[str]) -> str:
    """Write sentences as a Markdown list; what stands before the first colon is what the sentence is about."""
    written = [re.sub(r"^([^:(*]{1,90}): ", r"**\1:** ", marked(line)) for line in lines]
    return "\n".join(f"- {line}" for line in written) or "_Nothing to say: there are no such cells._"


def marked(line: str) -> str:
    """Write a sentence as Markdown that shows it, whatever the names in it are made of.

    Parameters
    ----------
    line : str
        Code between backquotes and bold between pairs of stars are meant; all else is text.
    """
    parts = _MARKUP.split(printable(line.strip()))
    # Of each three: text, markup, and the backquotes that the markup began with.
    return "".join(
        part if kind == 1 else _SPECIAL.sub(_escaped, escape(part, quote=False))
        for kind, part in ((n % 3, part) for n, part in enumerate(parts))
        if kind != 2
    )


def _escaped(found: re.Match[str]) -> str:
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def code(text: str) -> str:
    """Write a name as code in Markdown, whatever it is made of."""
    ticks = "`" * (_longest(text) + 1)
    room = " " * (len(ticks) > 1)
    return f"{ticks}{room}{printable(text)}{room}{ticks}"


def fenced(*parts: str) -> str:
    """Write texts as one block of code in Markdown, with an empty line between them; none can end the block."""
    body = "\n\n".join(printable_lines(part) for part in parts)
    fence = "`" * max(3, _longest(body) + 1)
    return f"{fence}text\n{body}\n{fence}"


def _longest(text: str) -> int:
    """Length of the longest row of backquotes."""
    return max((len(row) for row in re.findall("`+", text)), default=0)


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
