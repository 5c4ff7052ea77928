"""The recipes of docs/extending.md, kept true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from drift import dataset
from drift.running import protocols

ROOT = Path(__file__).resolve().parent.parent
RECIPES = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_recipes_name_files_and_things_that_exist() -> None:
    named = set(re.findall(r"`((?:drift|data|docs|notebooks|tests)/[\w./]+\.\w+)`", RECIPES))
    named -= {"drift/running/protocols/NAME.py"}
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for thing, home in (
        ("TABLE", "tests/test_protocols.py"),
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


def test_adding_a_protocol_is_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halved.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from drift.running.protocols.base import Protocol\n"
        "@dataclass(frozen=True)\n"
        "class Halved(Protocol):\n"
        "    name: ClassVar[str] = 'halved'\n"
        "    def first_position(self, step, seen, slots):\n"
        "        return seen // 2\n"
    )
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    protocols._registry.cache_clear()
    try:
        assert [c.first_position for c in protocols.parse("halved").chunks(12, 4)] == [0, 2, 4]
    finally:
        protocols._registry.cache_clear()
        sys.modules.pop("drift.running.protocols.halved", None)


def test_the_documentation_has_a_section_for_every_protocol() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    for name in protocols.available():
        assert f"\n## `{name}`" in page, name


def test_every_variable_says_what_it_is() -> None:
    for name, row in dataset.VARIABLES.items():
        assert row.units in {"1", "nat", "byte", "s"}, name
        assert row.long_name, name
