"""The recipes of docs/extending.md, kept true."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model
from test_readings import SIZE, fold, keep, text_of
from transformers import DynamicCache

import drift
from drift import dataset
from drift.running import measures, protocols
from drift.running.model.numerics import numerics, rung_of

ROOT = Path(__file__).resolve().parent.parent
RECIPES = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_recipes_name_files_and_things_that_exist() -> None:
    named = set(re.findall(r"`((?:drift|data|docs|notebooks|tests)/[\w./]+\.\w+)`", RECIPES))
    named -= {"drift/running/protocols/NAME.py"}
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for thing, home in (
        ("TABLE", "tests/test_protocols.py"),
        ("PASSES", "tests/test_protocols.py"),
        ("LOOPS", "tests/test_readings.py"),
        ("VARIABLES", "drift/dataset/contract.py"),
        ("DocumentRecorder", "drift/running/recording.py"),
        ("NUMERICS_VERSION", "drift/_version.py"),
        ("CORPORA", "drift/running/corpus.py"),
    ):
        assert thing in RECIPES
        assert re.search(rf"^(class )?{thing}\b", (ROOT / home).read_text(encoding="utf-8"), re.MULTILINE), thing


def test_no_recipe_touches_more_than_four_files() -> None:
    for recipe in RECIPES.split("\n## ")[1:]:
        assert len(re.findall(r"^\d\. ", recipe, re.MULTILINE)) <= 4, recipe.splitlines()[0]


@contextmanager
def protocol_beside(folder: Path, name: str, source: str) -> Iterator[None]:
    """The file of a new protocol, found as if it lay in `drift/running/protocols`."""
    (folder / f"{name}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "__path__", [*protocols.__path__, str(folder)])
        protocols._registry.cache_clear()
        try:
            yield
        finally:
            protocols._registry.cache_clear()
            sys.modules.pop(f"{protocols.__name__}.{name}", None)


HALVED = """
from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Protocol


@dataclass(frozen=True)
class Halved(Protocol):
    name: ClassVar[str] = "halved"
    summary: ClassVar[str] = "positions run at half speed"

    def first_position(self, step, seen, slots):
        return seen // 2
"""

DILATED = """
from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Carried, Protocol


@dataclass(frozen=True)
class Dilated(Protocol):
    name: ClassVar[str] = "dilated"
    summary: ClassVar[str] = "of the slots between the sinks and the last chunk, one in a few is kept"

    keep: int = 4
    sinks: int = 4

    def slots(self, step, held, new):
        return len(self._kept(held, new))

    def carry(self, cache: Carried):
        if not cache.sliding:
            cache.select(self._kept(cache.keys.shape[-2], cache.new))

    def _kept(self, held, new):
        last = max(0, held - new)
        return [*range(min(self.sinks, last)), *range(self.sinks, last, self.keep), *range(last, held)]
"""


def test_adding_a_protocol_is_adding_a_file(tmp_path: Path) -> None:
    with protocol_beside(tmp_path, "halved", HALVED):
        assert [c.first_position for c in protocols.parse("halved").chunks(12, 4)] == [0, 2, 4]
    assert "halved" not in protocols.available()


def test_the_file_of_a_protocol_that_carries_is_all_that_a_trace_needs(tmp_path: Path) -> None:
    """One file, as the recipe has it: the cells are bitwise those of a loop by hand."""

    def after(cache: DynamicCache, step: int, out: Any) -> None:
        for layer in cache.layers:
            held = layer.keys.shape[2]
            middle = held - len(text[step * SIZE : (step + 1) * SIZE])
            keep(layer, [i for i in range(held) if i < 2 or i >= middle or (i - 2) % 3 == 0])
        counts.append(cache.layers[0].keys.shape[2])

    model, counts = make_model("llama"), list[int]()
    text = text_of(model)
    with protocol_beside(tmp_path, "dilated", DILATED):
        cell = drift.trace(model, text[None], SIZE, "dilated(keep=3,sinks=2)")
    with numerics(rung_of(model.dtype)):
        full, _ = fold(model, text, lambda *_: None, size=len(text))
        states, _ = fold(model, text, after)
    starts = list(range(0, len(text), SIZE))
    drifts = cell.hidden_rel_l2.values[0]
    # transformers hands out what the final norm makes of the last block, and not that block's own output.
    for got, reference, state in zip([*drifts[:-2], drifts[-1]], full, states, strict=True):
        (rows,) = measures.compare_states(reference, state)
        np.testing.assert_array_equal(got, rows.rel_l2(starts))
    assert counts[0] == SIZE
    assert counts[-1] < len(text)
    per_slot = 2 * model.config.num_key_value_heads * model.config.head_dim * model.dtype.itemsize
    assert cell.cache_bytes.values[0].tolist() == [n * per_slot * model.config.num_hidden_layers for n in counts]
    assert (drifts[-1, 2:] > 1e-3).all(), "dropping most of the past changes nothing"


def test_the_documentation_has_a_section_for_every_protocol() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    for name in protocols.available():
        assert f"\n## `{name}`" in page, name


def places_on_the_map(page: str) -> set[Path]:
    """The folders and modules that the drawing of the house names: a name per word, up to the first wide gap."""
    (drawing,) = re.findall(r"```\n(drift/\n.*?)```", page, re.DOTALL)
    places, above = set(), {0: ROOT / "drift"}
    for line in drawing.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            place = above[depth - 1] / (name.rstrip("/") if name.endswith("/") else f"{name}.py")
            places.add(place)
            above[depth] = place
    return places


def test_the_map_of_the_house_shows_what_is_there() -> None:
    shown = places_on_the_map(MAP)
    assert len(shown) >= 30
    assert sorted(place for place in shown if not place.exists()) == []
    folders = {place.parent for place in shown}
    there = {place for folder in folders for place in folder.iterdir() if place.suffix == ".py" or place.is_dir()}
    assert sorted(place for place in there - shown if not place.name.startswith("_")) == []


def test_every_file_on_the_ways_through_the_house_is_there() -> None:
    """A file without its folder lies in that of the file named before it, or in the wing."""
    package = ROOT / "drift"
    named = 0
    for item in re.split(r"\n(?=\d\. |## |\|)", MAP):
        folders = [ROOT, package, package / "running", package / "reading"]
        for name in re.findall(r"`([\w/]+(?:/|\.py|\.toml|\.md))`", item):
            found = [folder / name for folder in folders if (folder / name).exists()]
            assert found, f"{name}, in: {item}"
            folders.append(found[-1] if name.endswith("/") else found[-1].parent)
            named += 1
    assert named >= 25


def test_every_variable_says_what_it_is() -> None:
    for name, row in dataset.VARIABLES.items():
        assert row.units in {"1", "nat", "byte", "s"}, name
        assert row.long_name, name
