"""Protocols: every one cuts the text the same way, and differs only where it says so."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.protocols import available, parse

# One row per protocol: label, positions of the chunks' first tokens and prefixes for 10 tokens in chunks of 4.
TABLE = [
    ("append", [0, 4, 8], [(), (), ()]),
    ("restart", [0, 0, 0], [(), (), ()]),
    ("reprime(token=9)", [0, 4, 9], [(), (9,), (9,)]),
]


@pytest.mark.parametrize(("label", "positions", "prefixes"), TABLE)
def test_table(label: str, positions: list[int], prefixes: list[tuple[int, ...]]) -> None:
    chunks = parse(label).chunks(10, 4)
    assert [(c.start, c.stop) for c in chunks] == [(0, 4), (4, 8), (8, 10)]
    assert [c.first_position for c in chunks] == positions
    assert [c.prefix for c in chunks] == prefixes


def test_table_is_complete() -> None:
    assert sorted(label.partition("(")[0] for label, _, _ in TABLE) == list(available())


@given(st.sampled_from([label for label, _, _ in TABLE]), st.integers(1, 300), st.data())
def test_chunks_cover_the_text_once(label: str, tokens: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, tokens))
    chunks = parse(label).chunks(tokens, size)
    assert [t for c in chunks for t in range(c.start, c.stop)] == list(range(tokens))
    assert all(c.stop - c.start == size for c in chunks[:-1])
    assert all(len(c) == len(c.prefix) + c.stop - c.start for c in chunks)


@given(st.integers(1, 200), st.data())
def test_positions_of_append_run_on_without_gaps(tokens: int, data: st.DataObject) -> None:
    chunks = parse("append").chunks(tokens, data.draw(st.integers(1, tokens)))
    assert [c.first_position for c in chunks] == [c.start for c in chunks]


def test_labels_survive_parsing() -> None:
    for label in ("append", "restart", "reprime", "reprime(token=3)"):
        assert parse(label).label == label
    assert parse(" reprime( token = 3 ) ").label == "reprime(token=3)"


def test_reprime_takes_the_tokenizers_token_unless_one_is_named() -> None:
    assert parse("reprime").bind(lambda: 7).label == "reprime(token=7)"
    assert parse("reprime(token=3)").bind(lambda: 7).label == "reprime(token=3)"
    assert parse("append").bind(lambda: None) == parse("append")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("apend", "Did you mean 'append'"),
        ("reprime(tokn=1)", "unknown option 'tokn'; it takes: token"),
        ("append(token=1)", "it takes none"),
        ("reprime(token=x)", "whole number"),
        ("reprime(", "Unknown protocol"),
        ("", "Known protocols: append, reprime, restart"),
    ],
)
def test_bad_labels_say_what_is_wrong(label: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse(label)


def test_reprime_without_a_bos_token_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"reprime\(token=ID\)"):
        parse("reprime").bind(lambda: None)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_impossible_chunk_sizes(size: int) -> None:
    with pytest.raises(ConfigError, match=f"chunk_size is {size}"):
        parse("append").chunks(10, size)


def test_protocols_need_no_torch() -> None:
    code = "import sys, drift.protocols as p; p.parse('append').chunks(8, 2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
