"""The recipes of docs/extending.md, kept true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
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
    named -= {"drift/running/protocols/NAME.py", "drift/running/tasks/kinds/NAME.py"}
    named -= {"drift/reading/diagnose/importers/NAME.py"}
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for thing, home in (
        ("TABLE", "tests/test_protocols.py"),
        ("PASSES", "tests/test_protocols.py"),
        ("LOOPS", "tests/test_readings.py"),
        ("LABELS", "tests/test_tasks.py"),
        ("SOLVERS", "tests/test_tasks.py"),
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


#: What the recipe of a measure has a person write: file, the line after which it goes, and what.
SIGN_FLIPS = (
    ("running/measures.py", "    nonfinite: NDArray[np.int64]\n", "    flipped: Float\n"),
    (
        "running/measures.py",
        '            columns["max_abs"].append(difference.abs().amax(-1))\n',
        '            columns["flipped"].append((a.signbit() != b.signbit()).double().mean(-1))\n',
    ),
    (
        "running/measures.py",
        "        return np.asarray(np.add.reduceat(self.nonfinite, list(starts)), dtype=np.int64)\n",
        "\n    def sign_flips(self, starts: Sequence[int]) -> Float:\n"
        '        """Share of features whose sign differs: [step]."""\n'
        "        return step_mean(self.flipped, starts)\n",
    ),
    (
        "dataset/contract.py",
        "VARIABLES: dict[str, Variable] = {\n",
        '    "hidden_sign_flips": Variable(\n'
        '        _DLS, "1", "share of features of the hidden state whose sign differs", upper=1.0, since=SINCE\n'
        "    ),\n",
    ),
    (
        "running/recording.py",
        '    "hidden_rel_l2": measures.StateRows.rel_l2,\n',
        '    "hidden_sign_flips": measures.StateRows.sign_flips,\n',
    ),
)
#: Run where drift has that measure: what was stored before, what is made and measured now, and what readers make of it.
WITH_SIGN_FLIPS = """
import sys
from pathlib import Path

import numpy as np
import synthetic
from conftest import make_model
from test_readings import text_of

import drift
from drift import dataset
from drift.dataset.sweep import Sweep
from drift.reading import figures, summary
from drift.running.sweep.state import Folder

NAME, LABEL = "hidden_sign_flips", "share of features of the hidden state"
assert dataset.SCHEMA_VERSION == sys.argv[2] and NAME in dataset.VARIABLES
evidence = dataset.open_sweep(sys.argv[1])
(old,) = evidence
assert not evidence.problems and NAME not in old and NAME in evidence.notes[0], evidence.problems

new = synthetic.cell(model="tiny", layers=2, tokens=256, chunk_size=16, documents=4)
assert new.attrs["schema_version"] == dataset.SCHEMA_VERSION
both = Sweep([old, new])
assert both.drift.plateau(NAME)["verdict"].tolist() == [new.drift.plateau(NAME).verdict.value]
assert len(both.drift.ladder(NAME)) == 1
figure = figures.drift_per_step(both.sel(model="tiny"), NAME)
assert LABEL in figure.axes[0].get_ylabel().replace("\\n", " ").replace(" after the final norm", "")
assert summary.nonfinite(both).empty

model = make_model("llama")
text = text_of(model)
for reference in ("full", "gold", "previous"):
    cell = drift.trace(model, text[None], 8, "restart", reference=reference)
    flips = cell[NAME].values[0, -1]
    assert np.isnan(flips[0]) == (reference == "previous")
    assert ((0 < flips[1:]) & (flips[1:] < 1)).all()
dataset.write(cell, Path(sys.argv[3]) / "new.nc")
expected = {"new.nc": cell.attrs["config_sha256"], "old.nc": old.attrs["config_sha256"]}
dataset.write(old, Path(sys.argv[3]) / "old.nc")
assert Folder(Path(sys.argv[3])).survey(expected).done == {"new.nc"}
"""


def test_adding_a_measure_is_its_three_edits(tmp_path: Path) -> None:
    """In a copy of the package: stored cells are read, cells are made and measured, and it is judged and named."""
    shutil.copytree(ROOT / "drift", tmp_path / "drift", ignore=shutil.ignore_patterns("__pycache__"))
    since = str(int(dataset.SCHEMA_VERSION) + 1)
    for file, after, line in SIGN_FLIPS:
        path = tmp_path / "drift" / file
        source = path.read_text(encoding="utf-8")
        assert after in source, f"{file}: {after}"
        path.write_text(source.replace(after, after + line.replace("SINCE", since), 1), encoding="utf-8")
        assert f"`drift/{file}`" in RECIPES
    stored = dataset.write(synthetic.cell(model="old", layers=2, tokens=64, chunk_size=16), tmp_path / "stored.nc")
    told = subprocess.run(
        [sys.executable, "-c", WITH_SIGN_FLIPS, str(stored), since, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests")])},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr


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
