"""Hypothesis strategies of what may come from outside: sound inputs that were spoiled, and inputs that never were."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
SEEDS = st.integers(0, 2**64 - 1)
EXTREMES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**18, 10**30, 10**400, 0.5, -0.0, 1e308, -1e308,
    5e-324, float("nan"), float("inf"), float("-inf"), "", "0", "12", "null", "x" * 300, "../../etc/passwd",
    "/dev/zero", "~nobody/x", "a\0b", "\ud800", "\x1b[31m", "<script>", "```\n<script>", "[x](javascript:1)",
    "file:/dev/zero", "é" * 200, [], {}, [[]], [None], {"": None}, [[[[[[[[]]]]]]]],
]  # fmt: skip


def scalars() -> Strategy:
    """Values that a format does not expect, and some that it does."""
    return st.one_of(st.sampled_from(EXTREMES), st.integers(), st.floats(), st.text(max_size=12))


def values(keys: Sequence[str]) -> Strategy:
    """JSON of any form, with keys that a format knows."""
    names = st.one_of(st.sampled_from(list(keys) or [""]), st.text(max_size=6))
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=5)),
        max_leaves=10,
    )


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a document: its container and its key."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        pairs = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, child in pairs:
            found.append((inner, key))
            waiting.append(child)
    return found


def spoil(document: Any, seed: int, replacements: Sequence[Any]) -> Any:
    """A sound document with a few places replaced, removed, doubled or moved."""
    made, dice = deepcopy(document), random.Random(seed)
    for replacement in replacements:
        there = places(made)
        if not there:
            return replacement
        container, key = dice.choice(there)
        act = dice.randrange(4)
        if act < 2:
            container[key] = deepcopy(replacement)
        elif act == 2:
            del container[key]
        elif isinstance(container, list):
            container.insert(key, deepcopy(container[key]))
        else:
            container[dice.choice(["", "x", str(key) * 2])] = container[key]
    return made


def documents(sound: Sequence[Any], keys: Sequence[str]) -> Strategy:
    """Documents of a format: spoiled ones, and JSON of any form."""
    replaced = st.lists(st.one_of(scalars(), values(keys)), min_size=0, max_size=4)
    return st.one_of(st.builds(spoil, st.sampled_from(list(sound)), SEEDS, replaced), values(keys))


def as_json(document: Any) -> bytes:
    """A document as a file would hold it, half surrogate pairs and all."""
    try:
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:  # digits that Python does not write
        return b'{"digits": ' + b"9" * 5000 + b"}"


def raw_json() -> Strategy:
    """What only bytes can say: depth, digits, doubled keys, words that are no JSON."""
    return st.one_of(
        st.builds(
            lambda n, c: c * n, st.integers(1, 30_000), st.sampled_from([b"[", b'{"a":', b"[{", b"[],", b'"', b"\\"])
        ),
        st.builds(lambda n: b"[" * n + b"]" * n, st.integers(1, 3000)),
        st.builds(lambda n: b'{"cells": ' + b"9" * n + b"}", st.integers(1, 6000)),
        st.sampled_from([b"", b"\xff", b"\xef\xbb\xbf{}", b"NaN", b"[1e999]", b'{"a": 1, "a": 2}', b"\0", b"{'a': 1}"]),
        st.binary(max_size=60),
    )


def json_bytes(sound: Sequence[Any], keys: Sequence[str]) -> Strategy:
    """The bytes of a JSON file."""
    whole = st.builds(as_json, documents(sound, keys))
    return st.one_of(whole, whole, st.builds(mutated, whole, SEEDS), raw_json())


def mutated(payload: bytes, seed: int, most: int = 8) -> bytes:
    """Bytes with a few of them flipped, cut, doubled, moved or set to extremes."""
    made, dice = bytearray(payload), random.Random(seed)
    for _ in range(dice.randrange(most + 1)):
        if not made:
            break
        at, length = dice.randrange(len(made)), min(1 + dice.randrange(64), len(made))
        act = dice.randrange(7)
        if act == 0:
            made[at] ^= 1 << dice.randrange(8)
        elif act == 1:
            made[at] = dice.choice([0, 1, 127, 128, 255])
        elif act == 2:
            del made[at:]
        elif act == 3:
            del made[at : at + length]
        elif act == 4:
            made[at:at] = made[at : at + length]
        elif act == 5:
            made[at : at + 8] = struct.pack("<q", dice.choice([-1, 0, 1, 2**31, 2**62, -(2**63), 2**63 - 1]))
        else:
            made[at : at + 4] = dice.randbytes(4)
    return bytes(made)


def lines(words: Sequence[str]) -> Strategy:
    """Text of lines of words that a format knows, and of any others."""
    word = st.one_of(st.sampled_from(list(words)), st.text(max_size=5), st.integers().map(str), st.floats().map(str))
    line = st.lists(word, max_size=6)
    glues = st.sampled_from([",", ", ", ";", ": ", " ", "\t", "\n  - "])
    return st.builds(lambda rows, glue: "\n".join(glue.join(row) for row in rows), st.lists(line, max_size=8), glues)


def text_bytes(sound: Sequence[str], words: Sequence[str]) -> Strategy:
    """The bytes of a text file: spoiled ones, words in any order, any bytes."""
    whole = st.sampled_from([text.encode() for text in sound])
    return st.one_of(
        st.builds(mutated, whole, SEEDS),
        st.builds(swapped, st.sampled_from(list(sound)), SEEDS, st.lists(st.sampled_from(list(words)), max_size=4)),
        lines(words).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.binary(max_size=80),
    )


def swapped(text: str, seed: int, words: Sequence[str]) -> bytes:
    """A text of which a few words are others."""
    parts, dice = text.split(" "), random.Random(seed)
    for word in words:
        parts[dice.randrange(len(parts))] = word
    return " ".join(parts).encode("utf-8", "surrogatepass")


def safetensors(headers: Strategy) -> Strategy:
    """A file of a header, of data, and of a length that may be none of theirs."""

    def build(header: bytes, data: int, length: int | None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)

    lengths = st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]))
    return st.builds(build, headers, st.sampled_from([0, 8, 64, 512, 4096]), lengths)


def gguf(sound: bytes, pack: Callable[[list[Any]], bytes]) -> Strategy:
    """A GGUF file: spoiled bytes, and headers put together from entries of any kind."""
    entry = st.tuples(
        st.sampled_from(["general.architecture", "llama.block_count", "llama.attention.head_count", "x", ""]),
        st.sampled_from([0, 4, 8, 9, 10, 12, 13, 77, 2**32 - 1]),
        st.sampled_from([0, 1, 2, 2**31, 2**62, 2**64 - 1]),
    )
    return st.one_of(st.builds(mutated, st.just(sound), SEEDS), st.builds(pack, st.lists(entry, max_size=6)))


def labels(names: Sequence[str], options: Sequence[str]) -> Strategy:
    """Labels of protocols: right ones, nested ones, and text that looks like them."""
    numbers = ["0", "1", "2", "4", "0.001", "1e999", "9" * 30, "9" * 5000, "-1", "nan", "int8", "cache", "", "²", "٣"]
    option = st.builds(lambda k, v: f"{k}={v}", st.sampled_from(list(options)), st.sampled_from(numbers))
    plain = st.sampled_from(list(names))

    def inside(inner: Strategy) -> Strategy:
        parts = st.lists(inner, max_size=1), st.lists(option, max_size=3)
        return st.builds(lambda n, i, o: f"{n}({','.join([*i, *o])})", plain, *parts)

    nested = st.recursive(plain, inside, max_leaves=4)
    deep = st.builds(lambda n, c: c * n, st.integers(1, 2000), st.sampled_from(["(", "shifted(", ",", "append(", "a"]))
    spoiled = st.builds(lambda a, b: a + b, nested, st.text("(),=a1", max_size=8))
    return st.one_of(nested, deep, st.text(max_size=30), spoiled)
