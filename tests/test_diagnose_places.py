"""Places in order, what each is held against, and what is read of files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose_numbers import CHUNK, TOKENS, Whole, changed, compared, cut, diagnosed, drawn
from diagnose_tools import save
from rounding import U16, U32

from drift.errors import DatasetError
from drift.reading.diagnose.envelope import ALLOWANCE, ROUNDINGS, Roundoff, derive, roundoff
from drift.reading.diagnose.finding import findings
from drift.reading.diagnose.model import Verdict
from drift.reading.diagnose.tensors import Place, open_dump

KINDS = ("hidden", "key", "value", "final", "logits")


def part(whole: Whole, kinds: tuple[str, ...]) -> Whole:
    """The tensors of some kinds."""
    return {name: tensor for name, tensor in whole.items() if name.endswith(kinds)}


def place(words: str) -> Place:
    """A place from ``kind block``."""
    kind, block = words.split()
    return Place(kind, int(block))


# ------------------------------------------------------------------------------------------------ what a place reads
INPUTS = [
    (KINDS, "hidden 0", []),
    (KINDS, "key 1", ["hidden 0"]),
    (KINDS, "value 3", ["hidden 2"]),
    (KINDS, "hidden 1", ["hidden 0", "key 1", "value 1"]),
    (KINDS, "hidden 3", ["hidden 2", "key 3", "value 3"]),
    (KINDS, "final 0", ["hidden 3"]),
    (KINDS, "logits 0", ["final 0"]),
    (("hidden",), "hidden 2", ["hidden 1"]),
    (("hidden", "value"), "hidden 2", ["hidden 1", "value 2"]),
    (("key", "value"), "key 2", ["key 1", "value 1"]),
    (("key", "value"), "key 1", []),
    (("hidden", "logits"), "logits 0", ["hidden 3"]),
]


@pytest.mark.parametrize(("kinds", "where", "inputs"), INPUTS)
def test_what_a_place_is_held_against(tmp_path: Path, kinds: tuple[str, ...], where: str, inputs: list[str]) -> None:
    lane = part(drawn(), kinds)
    found = compared(tmp_path, cut(lane, TOKENS), cut(lane))
    assert derive(found, roundoff(found))[place(where)].inputs == [place(words) for words in inputs]


@pytest.mark.parametrize(
    ("kinds", "where", "reads"),
    [
        (KINDS, "key 2", "own"),
        (KINDS, "hidden 2", "own"),
        (("hidden",), "hidden 2", "all before"),
        (("hidden",), "final 0", "own"),
        (("hidden", "value"), "hidden 2", "all before"),
    ],
)
def test_whose_difference_a_token_inherits(tmp_path: Path, kinds: tuple[str, ...], where: str, reads: str) -> None:
    """Only attention carries a difference to later tokens; its input stands for keys that were not dumped."""
    kinds = (*kinds, where.partition(" ")[0])
    a, token = drawn(2), 19
    one = slice(token, token + 1)
    b = changed(a, "layer.1.hidden", one, 1.5 * a["layer.1.hidden"][one])
    if where.startswith("final"):
        b = changed(a, "layer.2.hidden", one, 1.5 * a["layer.2.hidden"][one])
    found = compared(tmp_path, cut(part(a, kinds), TOKENS), cut(part(b, kinds)))
    incoming = derive(found, roundoff(found))[place(where)].incoming
    assert np.flatnonzero(incoming).tolist() == ([token] if reads == "own" else list(range(token, TOKENS)))
    assert incoming[token] == found.profiles[place("hidden 2" if where.startswith("final") else "hidden 1")].felt[token]


def test_embeddings_are_looked_up_and_rounded_once(tmp_path: Path) -> None:
    lane = drawn(dtype=torch.bfloat16)
    found = compared(tmp_path, cut(lane, TOKENS), cut(lane))
    bound = derive(found, Roundoff(U16, "as given"))[Place("hidden", 0)].bound
    assert bound == pytest.approx(np.full(TOKENS, ALLOWANCE * ROUNDINGS["embeddings"] ** 0.5 * U16))
    assert ROUNDINGS["embeddings"] == 1


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("name", "u"), [("layer.1.hidden", U16), ("final", U16), ("logits", U16), ("block.1.key", U32)]
)
def test_too_few_numbers_to_tell_their_format_count_as_what_they_are_stored_in(
    tmp_path: Path, name: str, u: float, flipped: bool
) -> None:
    """Of hidden states the coarser lane counts; of keys and values, which may be mere storage, the finer one."""
    shape = (2, 3, 4) if "block" in name else (3, 4)
    wide = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    narrow = {name: wide[name].bfloat16()}
    found = compared(tmp_path, *(cut(x) for x in ((narrow, wide) if flipped else (wide, narrow))))
    assert all(pair is None for profile in found.profiles.values() for pair in profile.formats)
    assert roundoff(found).value == u


# ------------------------------------------------------------------------------------------------ findings
@pytest.mark.parametrize("step", range(TOKENS // CHUNK))
def test_a_bug_of_one_chunk_is_found_in_that_chunk(tmp_path: Path, step: int) -> None:
    """However many tokens follow that do not differ."""
    a = part(drawn(), ("hidden",))
    where = slice(step * CHUNK, (step + 1) * CHUNK)
    b = changed(a, "layer.2.hidden", where, 1.5 * a["layer.2.hidden"][where])
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    assert found.verdict is Verdict.STRUCTURAL
    assert found.entry is not None
    assert (found.entry.place, found.entry.step_b) == (Place("hidden", 2), step)
    assert (found.entry.start, found.entry.stop) == (where.start, where.stop)


def test_nothing_is_looked_for_behind_the_first_structural_place(tmp_path: Path) -> None:
    a = drawn()
    b = changed(a, "layer.1.hidden", slice(3, 4), 1.5 * a["layer.1.hidden"][3:4])
    for step in (2, 4):
        where = slice(step * CHUNK, (step + 1) * CHUNK)
        b = changed(b, "layer.2.hidden", where, 1.5 * b["layer.2.hidden"][where])
    found = compared(tmp_path, cut(a, TOKENS), cut(b))
    levels = [(f.level, f.place, f.segment) for f in findings(found, derive(found, roundoff(found)))]
    assert levels == [("lone", Place("hidden", 1), 0), ("structural", Place("hidden", 2), 2)]


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_what_fits_single_precision_is_held_in_it(tmp_path: Path, kind: str) -> None:
    lane = cut(drawn(dtype=torch.float64))
    dump = open_dump(save({name: tensor.to(getattr(torch, kind)) for name, tensor in lane.items()}, tmp_path))
    assert dump.read(Place("key", 1), 2, 5).dtype == (np.float64 if kind == "float64" else np.float32)


HEADERS = [
    ("empty", b"", "is no safetensors file, or was cut off (its header would be -1 bytes of the file's 0)."),
    ("one byte", struct.pack("<Q", 1) + b"1", "is no safetensors file, or was cut off (its header would be 1 bytes of"),
    ("cut off", struct.pack("<Q", 9) + b"{}", "is no safetensors file, or was cut off (its header would be 9 bytes of"),
    ("a list", struct.pack("<Q", 2) + b"[]", "its safetensors header is not a table of tensors. Write it again."),
    ("no JSON", struct.pack("<Q", 2) + b"[,", "its safetensors header is no JSON ("),
    ("no tensors", struct.pack("<Q", 2) + b"{}", "no tensor is named as expected (step.0.layer.0.hidden,"),
]


@pytest.mark.parametrize(("what", "content", "words"), HEADERS)
def test_a_header_says_what_is_wrong_with_it(tmp_path: Path, what: str, content: bytes, words: str) -> None:
    path = tmp_path / "lane.safetensors"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as refused:
        open_dump(path)
    assert str(refused.value).startswith(f"{path}: {words}"), what


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    (folder / "lane.safetensors").mkdir(parents=True)
    with pytest.raises(DatasetError) as refused:
        open_dump(folder)
    message = str(refused.value)
    assert message.startswith(f"{folder / 'lane.safetensors'}: cannot be read (")
    assert message.count("lane.safetensors") == 1
