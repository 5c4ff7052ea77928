"""Prompts that no cache knows: each begins with letters that are its own, made of the run's nonce.

Beside each stands another one with the same beginning and another end, which is asked before it where a shared prefix
is to be tried.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drift._bounds import MOST_PROMPT
from drift.errors import CorpusError
from drift.running import corpus

__all__ = ["Prompt", "prompts", "salt"]

_LETTERS = 16  # of a prompt's own beginning


@dataclass(frozen=True)
class Prompt:
    """A prompt, as text or as numbers of tokens.

    Attributes
    ----------
    whole : str or list of int
    sibling : str or list of int
        Its first half, and then something else.
    """

    whole: str | list[int]
    sibling: str | list[int]


def salt(nonce: str, *parts: object) -> str:
    """Letters that are the same whenever a nonce and some parts are."""
    said = "\0".join(map(str, (nonce, *parts)))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:_LETTERS]


def prompts(source: str, nonce: str, count: int, characters: int, tokenizer: Any = None) -> list[Prompt]:
    """Cut prompts from a text.

    Parameters
    ----------
    source : str
        A corpus, or a text file; see :func:`drift.running.corpus.text`.
    nonce : str
        What their beginnings are made of.
    count, characters : int
        How many, and of what length.
    tokenizer : PreTrainedTokenizerBase, optional
        Then they are numbers of tokens, with the special ones that it puts in front.

    Raises
    ------
    CorpusError
        If the text cannot be read, or is too short.
    """
    if source.startswith("hub:"):
        raise CorpusError(f"{source}: a probe asks its endpoint and nobody else. Save the text to a file first.")
    text = corpus.text(source)
    characters = min(characters, MOST_PROMPT)
    # One more, whose second half ends the sibling of the last.
    if len(text) < (count + 1) * characters:
        raise CorpusError(
            f"{source}: {len(text):,} characters; {count} prompts of {characters:,} need {(count + 1) * characters:,}. "
            "Ask for fewer or shorter ones (--prompts, --characters), or give a longer text."
        )
    pieces = [text[n * characters : (n + 1) * characters].strip() for n in range(count + 1)]
    found = []
    for number, (piece, other) in enumerate(pairwise(pieces)):
        whole = f"{salt(nonce, 'prompt', number)} {piece}"
        end = other[len(other) // 2 :]
        if tokenizer is None:
            found.append(Prompt(whole, f"{whole[: len(whole) // 2]} {end}"))
            continue
        ids, tail = list(tokenizer(whole)["input_ids"]), tokenizer(end, add_special_tokens=False)["input_ids"]
        found.append(Prompt(ids, [*ids[: len(ids) // 2], *tail]))
    return found
