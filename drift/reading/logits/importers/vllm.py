"""vLLM's `prompt_logprobs`: of its server's responses, or of `RequestOutput` objects written as JSON.

Per token of the prompt an object: token number to log-probability and rank, the prompt's own token first, then the
likeliest. The first token has null.
"""

from __future__ import annotations

from typing import Any

from drift._outside import Form
from drift.reading.logits.importers.base import Importer, Source, logprob_sequence, refused, token_of
from drift.reading.logits.lanes import NO_TOKEN, Sequence, Token, Top

__all__ = ["VLLM"]


def _holders(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Whatever in a record has the field: completions have it in each choice, chats beside them."""
    choices = record.get("choices")
    listed = choices if isinstance(choices, list) else []
    found = [record, *(one for one in listed if isinstance(one, dict))]
    return [one for one in found if one.get("prompt_logprobs") is not None]


def _knows(source: Source) -> bool:
    return any(_holders(record) for record in source.records)


def _top(entry: dict[str, dict[str, Any]]) -> Top:
    """What is known to be among the likeliest: with no others asked for, the prompt's token alone is told."""
    ranked = {token_of(key): item["logprob"] for key, item in entry.items()}
    first = next(iter(entry.values()))
    return ranked if len(entry) > 1 or first.get("rank") == 1 else {}


def _sequence(source: Source, holder: dict[str, Any]) -> Sequence:
    entries, ids = holder["prompt_logprobs"], holder.get("prompt_token_ids")
    if ids is not None and len(ids) != len(entries):
        raise refused(source.path, f"{len(ids):,} prompt_token_ids, but {len(entries):,} prompt_logprobs")
    tokens: list[Token] = []
    values: list[float | None] = []
    tops: list[Top] = []
    for place, entry in enumerate(entries):
        if not entry:
            tokens.append(NO_TOKEN if ids is None else ids[place])
            values.append(None)
            tops.append({})
            continue
        key = next(iter(entry)) if ids is None else str(ids[place])
        if key not in entry:
            raise refused(source.path, f"token {place} of the prompt, {key}, is not in its own prompt_logprobs")
        tokens.append(token_of(key))
        values.append(entry[key]["logprob"])
        tops.append(_top(entry))
    return logprob_sequence(tokens, values, tops)


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    records = source.shaped(Form.VLLM)
    return [_sequence(source, holder) for record in records for holder in _holders(record)], []


VLLM = Importer("vLLM's prompt_logprobs", _knows, _read)
