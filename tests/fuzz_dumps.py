"""Dumps of every importer, and what nobody meant: files changed, cut, renamed, left out; pickles rewritten."""

from __future__ import annotations

import io
import json
import random
import re
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_strategies as strategies
from hypothesis import strategies as st
from importers_tools import FORMATS, lane

from drift.reading.diagnose import as_dict, diagnose, open_dump, page

__all__ = ["FORMATS", "inputs", "probe", "sound"]

Files = dict[str, bytes]
_NUMBERS = ["0", "1", "2", "7", "00", "131073", "9" * 19, "-1", "x", ""]
_CODES = [b"N", b"0", b"(", b"t", b"]", b"}", b"R", b"b", b"Q", b"\x85", b"a", b"s", b"h\x00", b"q\xff", b"K\x01", b"2"]


@cache
def sound() -> tuple[Files, ...]:
    """A small dump of every format: its files by name."""
    found = []
    for form in FORMATS:
        with tempfile.TemporaryDirectory() as place:
            path = form.write(lane(8, 4), Path(place) / "a")
            root = path.parent if path.is_file() else path
            found.append({str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()})
    return tuple(found)


def repickled(payload: bytes, dice: random.Random) -> bytes:
    """A file of torch's with another pickle: bytes changed, or instructions put between them."""
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError):
        return payload
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in held.items():
            if name.endswith("data.pkl"):
                at = dice.randrange(len(part))
                added = b"".join(dice.choices(_CODES, k=dice.randrange(4)))
                part = part[:at] + added + part[at + dice.randrange(3) :]
                part = strategies.mutated(part, dice.randrange(1 << 30), 2)
            archive.writestr(name, part)
    return out.getvalue()


def spoilt(files: Files, seed: int) -> Files:
    """The files of a dump, a few of them not what they were."""
    dice, made = random.Random(seed), dict(files)
    for _ in range(dice.randrange(4)):
        name = dice.choice(sorted(made))
        act = dice.randrange(5)
        if act == 0:
            made[name] = repickled(made[name], dice)
        elif act == 1:  # where headers are
            made[name] = strategies.mutated(made[name][:400], dice.randrange(1 << 30)) + made[name][400:]
        elif act == 2:
            made[name] = strategies.mutated(made[name], dice.randrange(1 << 30))
        elif act == 3 and len(made) > 1:
            del made[name]
        else:
            places = list(re.finditer(r"\d+", name))
            if places:
                place = dice.choice(places)
                made[name[: place.start()] + dice.choice(_NUMBERS) + name[place.end() :]] = made.pop(name)
    return made


def inputs() -> strategies.Strategy:
    """Files, and how they are opened."""
    files = st.builds(spoilt, st.sampled_from(sound()), strategies.SEEDS)
    forms = st.sampled_from([None, None, None, None, *(form.name for form in FORMATS)])
    layers = st.sampled_from([(), (0, 1, 2), (1, 1, 1), (10**30, 0, 1)])
    return st.tuples(files, st.sampled_from([None, 2, 3]), forms, layers)


def probe(given: tuple[Files, int | None, str | None, tuple[int, ...]], folder: Path) -> None:
    """Open a dump, and compare it with itself."""
    files, heads, form, layers = given
    for name, payload in files.items():
        path = folder / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    dump: Any = open_dump(folder / "a", heads, form, layers)
    found = diagnose(dump, open_dump(folder / "a", heads, form, layers))
    page(found)
    json.dumps(as_dict(found))
