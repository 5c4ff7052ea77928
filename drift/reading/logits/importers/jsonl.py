"""Our own format: JSON lines, one object per sequence."""

from __future__ import annotations

from typing import Any

from drift._outside import Form
from drift.errors import DatasetError
from drift.reading.logits.importers.base import Importer, Source, logprob_sequence, refused, token_of
from drift.reading.logits.lanes import Sequence, Top

__all__ = ["JSONL"]


def _knows(source: Source) -> bool:
    return bool(source.records) and isinstance(source.records[0].get("logprobs"), list)


def _sequence(source: Source, number: int, record: dict[str, Any]) -> Sequence:
    tokens, values, tops = record["tokens"], record["logprobs"], record.get("top_logprobs")
    sizes = {name: len(record[name]) for name in ("tokens", "logprobs", "top_logprobs") if record.get(name) is not None}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        raise _unequal(source, number, said)
    numbers = all(type(token) is int for token in tokens)
    keyed: list[Top] | None = None if tops is None else [
        {token_of(key) if numbers else key: value for key, value in (top or {}).items()} for top in tops
    ]  # fmt: skip
    return logprob_sequence(tokens, values, keyed)


def _unequal(source: Source, number: int, said: str) -> DatasetError:
    return refused(source.path, f"record {number} has {said}; each must have one per position")


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    records = source.shaped(Form.LOGPROBS)
    return [_sequence(source, number, record) for number, record in enumerate(records, 1)], []


JSONL = Importer("log-probabilities (JSON lines)", _knows, _read)
