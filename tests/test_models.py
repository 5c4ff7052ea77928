"""A fixed part of transformers' causal language models, tiny; ``make test-models`` walks all of them."""

from __future__ import annotations

import re
from pathlib import Path

import architectures
import pytest
from architectures import BITWISE, CRASHES, REFUSED, UNBUILT, WRONG, Row

TABLE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
#: Each which architecture is walked here: what a run of all tests can bear.
EVERY = 9
#: Readings that edit caches, move positions and keys.
READINGS = ("restart", "quantized", "streaming(sinks=2,window=30)")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return architectures.walk(architectures.sample(EVERY), jobs=1, readings=READINGS)


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.timeout(1800)
def test_architectures_have_a_plain_loop_s_bits_or_a_reason(rows: list[Row]) -> None:
    assert {row.outcome for row in rows} <= {BITWISE, REFUSED, UNBUILT}, [
        row for row in rows if row.outcome in (WRONG, CRASHES)
    ]
    assert sum(row.outcome == BITWISE for row in rows) > len(rows) / 2
    for row in rows:
        if row.outcome == REFUSED:
            assert re.search(r"Chunked inference is (not )?possible with it", row.said), row
            assert re.search(r"drift\.logits|docs/models\.md", row.said), row


def test_the_table_is_of_the_mapping_and_has_nothing_wrong_in_it() -> None:
    lines = re.findall(r"^\| `([\w-]+)` \w* \| [^|]* \| (\w[\w ]*) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    walked = [key for key, _, _ in lines]
    assert walked
    assert walked == [key for key in architectures.mapping() if key in walked]
    assert {outcome for _, outcome, _ in lines} <= {BITWISE, REFUSED, UNBUILT}
