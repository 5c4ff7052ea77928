"""What a text is worth as an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["exact_match", "first_difference", "string_match_all"]

_WORD = re.compile(r"[\w-]+")
_NO_ANSWER = {"and", "var"}  # what may stand between answers; RULER's variables are called VAR


def string_match_all(text: str, answers: Sequence[str]) -> float:
    """RULER's score: the share of the answers that occur in a text, whatever else does; case is ignored.

    Parameters
    ----------
    text : str
    answers : sequence of str
        At least one.
    """
    said = text.casefold()
    return sum(answer.casefold() in said for answer in answers) / len(answers)


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether a text is the answers, in any order, and nothing else.

    It is read up to the end of its first line that is not empty; punctuation, the word "and" and case are ignored.
    """
    lines = text.strip().splitlines()
    said = [word for word in _WORD.findall(lines[0].casefold() if lines else "") if word not in _NO_ANSWER]
    return sorted(said) == sorted(answer.casefold() for answer in answers)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Place of the first token in which two texts differ; that behind the shorter one if it begins the other.

    None where they are the same.
    """
    for at, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return at
    return None if len(a) == len(b) else min(len(a), len(b))
