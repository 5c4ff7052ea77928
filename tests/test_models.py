"""Some of transformers' causal language models, tiny; ``make test-models`` walks all of them.

Some stand for a way in which blocks are called, or for a class of refusals; beside them a quarter of all is held
against the page. All of it in this process: starting one for each takes longer than all that is computed in it.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import architectures
import pytest
from architectures import BITWISE, REFUSED, UNBUILT

TABLE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
#: Readings that edit caches, and move positions and keys.
READINGS = ("restart", "quantized", "streaming(sinks=2,window=30)")
_INSTEAD = r"Run both passes yourself: .*python -m drift\.logits"
_NOTHING = r"There is no fold of it to measure; docs/models\.md"
#: Architectures that are driven: what they stand for, and which of the readings they refuse.
DRIVEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "bart": ("the decoder of an encoder-decoder model, which counts positions by itself", (READINGS[0], READINGS[2])),
    "deepseek_v2": ("latents in place of keys and values", (READINGS[2],)),
    "deepseek_v4": ("residual streams behind the tokens, caches that compress", READINGS[1:]),
    "gemma3n_text": ("residual streams before the texts, blocks that share keys and values", ()),
    "gemma4_text": ("blocks that share keys and values, which slice what they are given", ()),
    "hy_v4": ("residual streams, blocks that hand each other what an index picked", READINGS[1:]),
    "llama4_text": ("attention in chunks of its own", (READINGS[2],)),
    "longcat_flash": ("blocks that attend twice", (READINGS[2],)),
}
#: Architectures that are refused: the fact, whether chunked inference is possible, and what would work.
REFUSALS: dict[str, str] = {
    "hrm_text": rf"no list of 24 decoder layers.* Chunked inference is possible with it: its own forward.* {_INSTEAD}",
    "moshi": rf"another function in chunks.* is not possible with it .*parts from its own single pass.* {_NOTHING}",
    "musicgen": rf"is not possible with it .*with a cache, its own forward fails on one pass.* {_NOTHING}",
    "openai-gpt": rf"keeps no KV cache.* is not possible with it .*\(its forward takes no cache\).* {_NOTHING}",
    "prophetnet": rf"hidden states .* is not possible with it .*does not go on from a chunk to the next.* {_NOTHING}",
    "reformer": rf"is not possible with it .* by single tokens only\. Token by token .* {_NOTHING}",
    "xlm": rf"4 lists of 3 layers.* is not possible with it .*takes cache and puts out none.* {_NOTHING}",
    "xlstm": rf"in a class of its own \(xLSTMCache\).* is possible with it: its own forward.* {_INSTEAD}",
    "xlnet": rf"keeps no KV cache.* is not possible with it .*parts from its own single pass.* {_NOTHING}",
}


#: Which architectures are held against the page here, besides: the first, and how many further the next.
FIRST, EVERY = 2, 4
QUARTER = [key for key in list(architectures.mapping())[FIRST::EVERY] if key not in {**DRIVEN, **REFUSALS}]


def looked_at(key: str) -> architectures.Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return architectures.look(key, READINGS)


def in_the_table() -> dict[str, tuple[str, str]]:
    """Outcome and what is said of it, of each architecture of the page."""
    lines = re.findall(r"^\| `([\w-]+)` \w* \| [^|]* \| (\w[\w ]*) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    return {key: (outcome, said) for key, outcome, said in lines}


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize("key", DRIVEN)
def test_architectures_have_a_plain_loop_s_bits(key: str) -> None:
    row = looked_at(key)
    assert row.outcome == BITWISE, row
    assert row.refuses == DRIVEN[key][1]


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize("key", REFUSALS)
def test_architectures_are_refused_for_what_is_true_of_them(key: str) -> None:
    row = looked_at(key)
    assert row.outcome == REFUSED, row
    assert re.search(REFUSALS[key], row.said), row.said


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize("key", QUARTER)
def test_a_quarter_of_all_is_what_the_page_says(key: str) -> None:
    assert looked_at(key).outcome == in_the_table()[key][0]


def test_the_table_is_of_the_mapping_and_has_nothing_wrong_in_it() -> None:
    walked = in_the_table()
    assert list(walked) == list(architectures.mapping())
    assert {outcome for outcome, _ in walked.values()} <= {BITWISE, REFUSED, UNBUILT}
    for key, (outcome, said) in walked.items():
        if outcome == REFUSED:
            assert re.search(r"Chunked inference is (not )?possible with it", said), key
            assert re.search(r"drift\.logits|docs/models\.md", said), key
    sampled = dict.fromkeys(DRIVEN, BITWISE) | dict.fromkeys(REFUSALS, REFUSED)
    assert {key: walked[key][0] for key in sampled} == sampled
