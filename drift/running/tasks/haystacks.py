"""What facts are hidden in: noise, needles that nobody asks for, or a corpus.

A haystack is a row of pieces of text. Facts lie between them, and tokens are made of every piece by itself, so that
what is in front of a fact is the same whatever the fact is.

``noise``
    RULER's: the same five short sentences, again and again.
``needles``
    RULER's: needles like those that are asked for, under other keys.
Any corpus of :mod:`drift.running.corpus` that has text
    From a place on that the seed decides, to its end, and on from its beginning; no part of it twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from drift.dataset.hashing import content_hash
from drift.running import corpus
from drift.running.tasks.words import Draw

__all__ = ["NOISE", "between", "identity", "needle", "needle_value", "pieces"]

#: RULER's line of noise.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_MADE = ("noise", "needles")
_NUMBER_DIGITS = 7
_MOST_WORDS = 40  # of a piece of a corpus
# A word with the spaces in front of it and the line breaks behind: where tokenizers cut, too.
_WORD = re.compile(r"[^\S\n]*\S+(?:[^\S\n]*\n)*")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")


def needle(key: str, value: str, kind: str) -> str:
    """RULER's needle: the value of a key."""
    return f"One of the special magic {kind}s for {key} is: {value}."


def needle_value(draw: Draw, kind: str) -> str:
    """A value that was not drawn before: ``number``, ``uuid`` or ``word``."""
    if kind == "uuid":
        return draw.uuid()
    return draw.key() if kind == "word" else draw.number(_NUMBER_DIGITS)


def identity(haystack: str) -> str:
    """What tells a haystack from every other: sha256 of the text of a corpus, or of the name of one that is made.

    Raises
    ------
    CorpusError
        If there is no such corpus, or it has no text.
    """
    if haystack in _MADE:
        return content_hash({"haystack": haystack})
    corpus.text(haystack)  # a corpus that is generated token by token has an identity, and no text
    return corpus.identity(haystack)


def pieces(haystack: str, draw: Draw) -> Iterator[str]:
    """Pieces of a haystack, one after the other: endless, save those of a corpus.

    Raises
    ------
    CorpusError
        If there is no such corpus, or it has no text.
    """
    if haystack == "noise":
        while True:
            yield NOISE + "\n"
    elif haystack == "needles":
        while True:
            yield needle(draw.key(), needle_value(draw, "number"), "number") + "\n"
    else:
        yield from _of_corpus(corpus.text(haystack), draw)


def _of_corpus(text: str, draw: Draw) -> Iterator[str]:
    """Sentences and lines of a text, from a paragraph on that is drawn, and then those before it."""
    paragraph = text.find("\n\n", draw.random.randrange(len(text) or 1))
    start = paragraph + 2 if paragraph >= 0 else 0
    for stretch in (text[start:] + "\n", text[:start] + "\n"):
        piece, count = "", 0
        for word in _WORD.finditer(stretch):
            piece, count = piece + word[0], count + 1
            if word[0].endswith("\n") or count == _MOST_WORDS or _SENTENCE_END.search(word[0]):
                yield piece
                piece, count = "", 0


def between(fact: str, before: str) -> str:
    """A fact as a piece of its own behind another one: a line behind a line, else a sentence behind a sentence."""
    return f"{fact}\n" if before.endswith("\n") else f" {fact}"
