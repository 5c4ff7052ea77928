"""OpenAI's `logprobs`, as every compatible server writes them: of completions, and of chats.

Completions: `tokens`, `token_logprobs` and `top_logprobs`, side by side. Chats: `content`, a list of objects with
`token`, `logprob` and `top_logprobs`. Tokens are texts.
"""

from __future__ import annotations

from typing import Any

from drift._outside import Form
from drift.reading.logits.importers.base import Importer, Source, logprob_sequence, refused
from drift.reading.logits.lanes import Sequence, Top

__all__ = ["OPENAI"]


def _held(record: dict[str, Any]) -> list[dict[str, Any]]:
    choices = record.get("choices")
    listed = choices if isinstance(choices, list) else []
    return [one["logprobs"] for one in listed if isinstance(one, dict) and isinstance(one.get("logprobs"), dict)]


def _knows(source: Source) -> bool:
    return any(_held(record) for record in source.records)


def _chat(content: list[dict[str, Any]]) -> Sequence:
    tops: list[Top] = [{one["token"]: one["logprob"] for one in item.get("top_logprobs") or ()} for item in content]
    return logprob_sequence([item["token"] for item in content], [item["logprob"] for item in content], tops)


def _completion(source: Source, held: dict[str, Any]) -> Sequence:
    tokens, values, tops = held.get("tokens") or [], held.get("token_logprobs") or [], held.get("top_logprobs")
    if len(tokens) != len(values) or (tops and len(tops) != len(values)):
        raise refused(
            source.path, f"{len(tokens):,} tokens, {len(values):,} token_logprobs and {len(tops or ()):,} top_logprobs"
        )
    return logprob_sequence(tokens, values, None if not tops else [top or {} for top in tops])


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    found = []
    for record in source.shaped(Form.OPENAI):
        for held in _held(record):
            content = held.get("content")
            found.append(_completion(source, held) if content is None else _chat(content))
    return found, []


OPENAI = Importer("OpenAI's logprobs", _knows, _read)
