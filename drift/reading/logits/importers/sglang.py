"""SGLang's `/generate` with `return_logprob`: `meta_info` with [log-probability, token number, text] per token.

`logprob_start_len=0` gives the prompt's as well; the likeliest tokens are in `input_top_logprobs` and
`output_top_logprobs`. The first token of all has null.
"""

from __future__ import annotations

from typing import Any

from drift._outside import Form
from drift.reading.logits.importers.base import Importer, Source, logprob_sequence, refused
from drift.reading.logits.lanes import Sequence, Top

__all__ = ["SGLANG"]

_SIDES = ("input", "output")


def _knows(source: Source) -> bool:
    info = source.records[0].get("meta_info") if source.records else None
    return isinstance(info, dict) and any(f"{side}_token_logprobs" in info for side in _SIDES)


def _item(source: Source, item: list[Any]) -> tuple[float | None, int]:
    value, token = item[:2]
    number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    if not number or type(token) is not int or not 0 <= token < 1 << 63:
        raise refused(source.path, f"a token is {item[:2]!r}, where a log-probability and a token's number belong")
    return value, token


def _top(source: Source, items: list[list[Any]] | None) -> Top:
    pairs = (_item(source, item) for item in items or ())
    return {token: value for value, token in pairs if value is not None}


def _sequence(source: Source, info: dict[str, Any]) -> Sequence:
    pairs: list[tuple[float | None, int]] = []
    tops: list[Top] = []
    for side in _SIDES:
        items, likeliest = info.get(f"{side}_token_logprobs") or [], info.get(f"{side}_top_logprobs")
        if likeliest and len(likeliest) != len(items):
            raise refused(
                source.path, f"{len(items):,} {side}_token_logprobs, but {len(likeliest):,} {side}_top_logprobs"
            )
        pairs += [_item(source, item) for item in items]
        tops += [_top(source, top) for top in likeliest or [None] * len(items)]
    return logprob_sequence([token for _, token in pairs], [value for value, _ in pairs], tops)


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    return [_sequence(source, record["meta_info"]) for record in source.shaped(Form.SGLANG)], []


SGLANG = Importer("SGLang's token_logprobs", _knows, _read)
