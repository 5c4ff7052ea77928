"""A protocol says in one line what it does, its cells carry the line, and pages take it from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import synthetic
from test_protocols import PASSES, TABLE

import drift
from drift import dataset
from drift.dataset.comparing import same_data
from drift.dataset.sweep import Sweep
from drift.reading.cells import protocol_lines, protocol_summaries
from drift.running.protocols import available, parse
from drift.running.protocols.base import Protocol
from drift.running.protocols.shifted import Shifted

LABELS = {parse(label).name: label for label, *_ in [*TABLE, *PASSES]}


@pytest.mark.parametrize("name", available())
def test_every_protocol_says_in_one_line_what_it_does(name: str) -> None:
    protocol = parse(LABELS[name])
    own = type(protocol).summary
    assert own.strip() == own != ""
    assert "\n" not in own
    assert len(own) < 110
    assert protocol.in_words.endswith(own)
    others = [type(parse(LABELS[n])).summary for n in available() if n != name]
    assert own not in others, "copied from another protocol"


def test_a_variation_says_what_the_protocol_inside_does_first() -> None:
    inner, outer = parse("restart"), parse("shifted(restart,step=2)")
    assert outer.in_words == f"{inner.in_words}; {Shifted.summary}"
    twice = parse("decode(shifted(restart,step=2),tokens=2)")
    assert twice.in_words.startswith(outer.in_words + "; ")

    @dataclass(frozen=True)
    class Silent(Protocol):
        name: ClassVar[str] = "silent"

    assert Shifted(Silent(), step=1).in_words == Shifted.summary


def test_cells_carry_the_line_outside_their_hash(
    tiny: Callable[..., Any], token_ids: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny("llama"), token_ids(1, 12)
    cell = drift.trace(model, ids, 4, "shifted(append,step=1)")
    assert cell.attrs["protocol_summary"] == parse("shifted(append,step=1)").in_words
    monkeypatch.setattr(Shifted, "summary", "said in other words")
    other = drift.trace(model, ids, 4, "shifted(append,step=1)")
    assert other.attrs["protocol_summary"].endswith("; said in other words")
    assert other.attrs["config_sha256"] == cell.attrs["config_sha256"]
    assert same_data(cell, other) == []


def test_readers_take_the_line_from_the_cells(tmp_path: Path) -> None:
    known, bare = (synthetic.cell(tokens=128, layers=2, protocol=p) for p in ("append", "reprime(token=1)"))
    known.attrs["protocol_summary"] = "what the running side said"
    dataset.write(known, tmp_path / "a.nc")
    dataset.write(bare, tmp_path / "b.nc")
    sweep = dataset.open_sweep(tmp_path)
    assert sweep.problems == {}, "a cell without the line is as good as any"
    assert protocol_summaries(sweep) == {"append": "what the running side said", "reprime(token=1)": ""}
    assert protocol_lines(sweep) == ["**`append`**: what the running side said", "**`reprime(token=1)`**"]
    # An older cell of the same protocol takes nothing away.
    older = synthetic.cell(tokens=128, layers=2, dtype="fp32")
    assert protocol_summaries(Sweep([older, known])) == {"append": "what the running side said"}
    assert protocol_lines(Sweep([])) == []
