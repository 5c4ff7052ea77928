"""Protocols: every one cuts the text the same way, and differs only where it says so."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.errors import ConfigError, ProtocolError
from drift.running import protocols
from drift.running.protocols import Carried, Protocol, available, parse

pytestmark = pytest.mark.numerical

# One row per protocol that cuts a text into chunks, one pass each: label, positions of the chunks' first tokens and
# prefixes for 10 tokens in chunks of 4.
TABLE = [
    ("append", [0, 4, 8], [(), (), ()]),
    ("restart", [0, 0, 0], [(), (), ()]),
    ("reprime(token=9)", [0, 4, 9], [(), (9,), (9,)]),
    ("isolated", [0, 4, 8], [(), (), ()]),
    ("streaming(sinks=1,window=3,positions=text)", [0, 4, 8], [(), (), ()]),
    ("streaming(sinks=1,window=2,positions=cache)", [0, 3, 3], [(), (), ()]),
    ("evict(budget=3)", [0, 4, 8], [(), (), ()]),
    ("quantized(format=int4,axis=channel)", [0, 4, 8], [(), (), ()]),
    ("merge(budget=3)", [0, 4, 8], [(), (), ()]),
    ("perturbed(restart,step=1,size=0.001)", [0, 0, 0], [(), (), ()]),
    ("one_step(reprime(token=9))", [0, 4, 9], [(), (9,), (9,)]),
    ("random_walk(append,noise=3)", [0, 4, 8], [(), (), ()]),
    ("shifted(append,step=1)", [0, 5, 9], [(), (), ()]),
    ("shifted(reprime(token=9),step=2,by=3)", [0, 4, 12], [(), (9,), (9,)]),
]
# One row per protocol whose passes are other stretches: label, (start, stop, chain step, measured) of its passes.
PASSES = [
    ("full", [(0, 10, 0, True)]),
    ("full(noise=0.01,seed=4)", [(0, 10, 0, True)]),
    (
        "isolated(probe=1)",
        [(0, 4, 0, True), (0, 4, 0, False), (4, 8, 1, True), (4, 8, 1, False), (8, 10, 2, True), (8, 10, 2, False)],
    ),
    ("decode(append,tokens=3)", [(0, 4, 0, True), (4, 8, 1, True), (8, 9, 2, True), (9, 10, 3, True)]),
]


@pytest.mark.parametrize(("label", "positions", "prefixes"), TABLE)
def test_table(label: str, positions: list[int], prefixes: list[tuple[int, ...]]) -> None:
    chunks = parse(label).chunks(10, 4)
    assert [(c.start, c.stop) for c in chunks] == [(0, 4), (4, 8), (8, 10)]
    assert [c.first_position for c in chunks] == positions
    assert [c.prefix for c in chunks] == prefixes


def test_table_is_complete() -> None:
    assert sorted({label.partition("(")[0] for label, *_ in [*TABLE, *PASSES]}) == list(available())


@pytest.mark.parametrize(("label", "passes"), PASSES)
def test_passes(label: str, passes: list[tuple[int, int, int, bool]]) -> None:
    chunks = parse(label).chunks(10, 4)
    assert [(c.start, c.stop, c.step, c.measured) for c in chunks] == passes


@given(st.sampled_from([label for label, *_ in [*TABLE, *PASSES]]), st.integers(4, 300), st.data())
def test_every_token_is_measured_once_and_every_step_has_a_start(label: str, tokens: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, tokens - 2))
    protocol = parse(label)
    chunks = protocol.chunks(tokens, size)
    assert [t for c in chunks if c.measured for t in range(c.start, c.stop)] == list(range(tokens))
    assert list(dict.fromkeys(c.step for c in chunks)) == list(range(chunks[-1].step + 1))
    starts = protocol.starts(tokens, size)
    assert list(starts) == sorted(set(starts))
    assert 0 <= starts[0] <= starts[-1] < tokens


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
    for label in ("append", "restart", "reprime", "reprime(token=3)", *(label for label, *_ in [*TABLE, *PASSES])):
        assert parse(label).label == label
        assert parse(parse(label).label) == parse(label)
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
        ("", f"Known protocols: {', '.join(available())}"),
        ("perturbed(step=1,size=0.1)", "comes first: perturbed(append)"),
        ("perturbed(append,step=1)", "needs the option size"),
        ("perturbed(append,step=1,size=big)", "must be a number"),
        ("perturbed(decode(append),step=1,size=0.1)", "must stand outside"),
        ("streaming(positions=here)", "must be one of cache, text"),
        ("streaming(window=0)", "window must be at least 1"),
        ("quantized(format=int3)", "must be one of int8, int4, fp8"),
        ("isolated(probe=2)", "probe must be 0 or 1"),
        ("evict(budget=1)", "budget must be at least 2"),
        ("decode(isolated(probe=1))", "does not carry on what it measures"),
        ("full(batch=0)", "batch must be at least 1"),
    ],
)
def test_bad_labels_say_what_is_wrong(label: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(label)


def test_reprime_without_a_bos_token_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"reprime\(token=ID\)"):
        parse("reprime").bind(lambda: None)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_impossible_chunk_sizes(size: int) -> None:
    with pytest.raises(ConfigError, match=f"chunk_size is {size}"):
        parse("append").chunks(10, size)


def test_references_that_a_protocol_does_not_have() -> None:
    parse("perturbed(append,step=1,size=0.1)").check_reference("unperturbed")
    with pytest.raises(ConfigError, match="only perturbed"):
        parse("append").check_reference("unperturbed")
    with pytest.raises(ConfigError, match=f"references of append: {', '.join(Protocol.references)}"):
        parse("append").check_reference("golden")


def test_protocols_need_no_torch() -> None:
    code = "import sys, drift.running.protocols as p; p.parse('append').chunks(8, 2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_shift_goes_on_into_what_is_generated() -> None:
    chunks = parse("decode(shifted(append,step=1,by=3),tokens=5)").chunks(20, 8)
    positions = [c.first_position for c in chunks]
    assert positions == [0, 11, 19, 20, 21, 22]
    inside = parse("decode(shifted(append,step=3),tokens=5)").chunks(20, 8)
    assert [c.first_position for c in inside] == [0, 8, 16, 18, 19, 20]


def test_what_is_inside_decides_how_many_texts_and_where_an_error_is() -> None:
    assert parse("append").texts_at_once == 1
    assert parse("decode(full(batch=3))").texts_at_once == 3
    assert parse("append").planted_at is None
    assert parse("decode(shifted(append,step=2))").planted_at == 2
    assert parse("perturbed(append,step=2,size=0.1)").planted_at == 3


def test_a_protocol_that_changes_the_cache_must_say_how_many_slots_that_leaves() -> None:
    with pytest.raises(ProtocolError) as refused:

        @dataclass(frozen=True)
        class Forgetful(Protocol):
            name: ClassVar[str] = "forgetful"

            def carry(self, cache: Carried) -> None:
                cache.select(slice(-4, None))

    assert str(refused.value).startswith(f"Protocol forgetful ({__name__}.")
    assert "Override slots(step, held, new)" in str(refused.value)


@dataclass(frozen=True)
class Miscounting(Protocol):
    """Keeps the first slots, and says another number than it leaves."""

    name: ClassVar[str] = "miscounting"

    kept: int = 2
    said: int = 3

    def slots(self, step: int, held: int, new: int) -> int:
        return self.said

    def carry(self, cache: Carried) -> None:
        if not cache.sliding:
            cache.select(slice(self.kept))


def carried(held: int, sliding: bool = False) -> Carried:
    """A cache of block 5 after chain step 7, which appended two slots."""
    keys, values = np.zeros((1, 1, held, 4)), np.zeros((1, 1, held, 4))
    return Carried(keys, values, 7, 5, 2, sliding, None, lambda keys, shift: keys, 2.0**-24)  # type: ignore[arg-type]


def test_the_count_of_slots_is_held_against_what_carry_leaves() -> None:
    cache = carried(6)
    sound = Miscounting(kept=3)
    sound.carry(cache)
    sound.check_carried(cache, 6)
    cache = carried(6)
    protocol = Miscounting()
    protocol.carry(cache)
    with pytest.raises(ProtocolError) as refused:
        protocol.check_carried(cache, 6)
    message = str(refused.value)
    assert message.startswith(
        "Protocol miscounting: after chain step 7, carry left 2 slots in block 5, but slots(step=7, held=6, new=2) "
        "says 3. Override slots in "
    )
    assert __name__ in message


def test_keys_and_values_must_keep_the_same_number_of_slots() -> None:
    cache = carried(6)
    cache.keys = cache.keys[..., :3, :]
    with pytest.raises(ProtocolError, match="carry left 3 slots of keys and 6 of values in block 5"):
        Miscounting().check_carried(cache, 6)


def test_a_sliding_window_keeps_its_slots() -> None:
    cache = carried(6, sliding=True)
    Miscounting().check_carried(cache, 6)
    cache.select(slice(2))
    with pytest.raises(ProtocolError, match="carry left 2 slots in block 5, but that block attends to a sliding"):
        Miscounting().check_carried(cache, 6)


def test_positions_are_told_how_many_slots_are_new() -> None:
    """`chunks` asks `slots` for what the cache will hold: prefixes are slots, too."""
    asked: list[tuple[int, int, int]] = []

    @dataclass(frozen=True)
    class Asking(Protocol):
        name: ClassVar[str] = "asking"

        def prefix(self, step: int) -> tuple[int, ...]:
            return (9,) if step else ()

        def slots(self, step: int, held: int, new: int) -> int:
            asked.append((step, held, new))
            return new

    Asking().chunks(10, 4)
    assert asked == [(0, 4, 4), (1, 9, 5), (2, 8, 3)]


@contextmanager
def module_beside(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str) -> Iterator[None]:
    """A module of the package of protocols that lies in another folder."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(folder)])
    protocols._registry.cache_clear()
    try:
        yield
    finally:
        protocols._registry.cache_clear()
        sys.modules.pop(f"{protocols.__name__}.{name}", None)


def test_what_has_no_name_is_there_to_be_derived_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = available()
    source = """
from drift.running.protocols.append import Append
from drift.running.protocols.base import Protocol
class Window(Protocol): pass
class Short(Window): name = "short"
class AlsoAppends(Append): pass
"""
    with module_beside(monkeypatch, tmp_path, "windows", source):
        assert set(available()) - set(before) == {"short"}
        assert type(parse("append")).__name__ == "Append"


def test_two_protocols_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from drift.running.protocols.base import Protocol
class Other(Protocol): name = "merge"
"""
    with (
        module_beside(monkeypatch, tmp_path, "zweite", source),
        pytest.raises(ConfigError, match=r"Two protocols are named 'merge': .*merge\.Merge and .*zweite\.Other"),
    ):
        available()
