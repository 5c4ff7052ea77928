"""What every importer is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift._bounds import MOST_DIGITS, MOST_DOCUMENTS, MOST_LOGPROB_BYTES
from drift._outside import Form, OutsideError, parse_json, read_bytes, shaped
from drift.errors import DatasetError
from drift.reading.logits.lanes import Sequence, Token, Top
from drift.shown import clipped

__all__ = ["Importer", "Source", "logprob_sequence", "refused", "token_of"]


def refused(path: Path, why: object) -> DatasetError:
    """Make the error of a file that is not what it should be."""
    return DatasetError(f"{clipped(path)}: {why}. docs/logits.md says what is read.")


@dataclass(frozen=True)
class Source:
    """A file that is to be recognised.

    Attributes
    ----------
    path : Path
        A plain file.
    head : bytes
        Its first few bytes.
    """

    path: Path
    head: bytes

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The objects of a file of JSON (one, or a list of them) or of JSON lines; none if it holds neither.

        Raises
        ------
        DatasetError
            If it begins like JSON, and is none.
        """
        if self.head.lstrip()[:1] not in (b"{", b"["):
            return []
        try:
            payload = read_bytes(self.path, MOST_LOGPROB_BYTES)
            lines = [(n, line) for n, line in enumerate(payload.splitlines(), 1) if line.strip()]
            found = self._lines(lines) if len(lines) > 1 and _is_json(lines[0][1]) else _objects(payload)
        except OutsideError as error:
            raise refused(self.path, error) from error
        if len(found) > MOST_DOCUMENTS:
            raise refused(self.path, f"{len(found):,} sequences; at most {MOST_DOCUMENTS:,} are read")
        return found

    def _lines(self, lines: list[tuple[int, bytes]]) -> list[dict[str, Any]]:
        found = []
        for number, line in lines:
            try:
                found.append(parse_json(line, Form.OBJECT, MOST_LOGPROB_BYTES))
            except OutsideError as error:
                raise refused(self.path, f"line {number}: {error}") from error
        return found

    def shaped(self, form: Form) -> list[dict[str, Any]]:
        """Return the records, each of a form.

        Raises
        ------
        DatasetError
            If one is not.
        """
        for number, record in enumerate(self.records, 1):
            try:
                shaped(record, form)
            except OutsideError as error:
                raise refused(self.path, f"record {number}: {error}") from error
        return self.records


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line, Form.OBJECT, MOST_LOGPROB_BYTES)
    except OutsideError:
        return False
    return True


def _objects(payload: bytes) -> list[dict[str, Any]]:
    value = parse_json(payload, most=MOST_LOGPROB_BYTES)
    listed = value if isinstance(value, list) else [value]
    return [shaped(one, Form.OBJECT) for one in listed]


@dataclass(frozen=True)
class Importer:
    """A kind of file.

    Attributes
    ----------
    name : str
        In words.
    knows : callable
        Whether a source is one, by its content.
    read : callable
        Its sequences, and what to know of it. Raises :class:`~drift.errors.DatasetError`.
    """

    name: str
    knows: Callable[[Source], bool]
    read: Callable[[Source], tuple[list[Sequence], list[str]]]


def token_of(text: str) -> Token:
    """A token's number, where a key of a JSON object is one."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else text


def logprob_sequence(tokens: list[Any] | None, values: list[float | None], tops: list[Top] | None) -> Sequence:
    """Make a sequence of what JSON files hold; all lists have one item per position.

    Parameters
    ----------
    tokens : list of int or str, or None
    values : list of float or None
        Log-probabilities; None where none was given.
    tops : list of mappings, or None
    """
    given = np.array([value is not None for value in values], dtype=bool)
    chosen = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known: NDArray | None = None
    if tokens is not None:
        numbers = all(type(token) is int for token in tokens)
        known = np.array(tokens, dtype=np.int64 if numbers else object)
    some: Mapping[Token, float] | None = next((top for top in tops or () if top), None)
    return Sequence(known, chosen, given, tops=tuple(tops) if tops is not None and some is not None else None)
