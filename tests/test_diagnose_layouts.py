"""Keys and values as other engines lay them out, and names that torch has for what is called otherwise here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose_numbers import CHUNK, TOKENS, cut, drawn, with_caches
from diagnose_tools import Tensors, save

from drift.capture import _parser
from drift.dataset.opening import open_sweep
from drift.dataset.rungs import RUNGS, rung, rung_name
from drift.diagnose import main
from drift.errors import ConfigError, DatasetError
from drift.ladder import main as ladder
from drift.reading.diagnose.model import Verdict
from drift.reading.diagnose.tensors import open_dump, unpacked
from drift.reading.diagnose.verdict import diagnose
from drift.running.protocols import parse

HEADS = 2


def laid_out(tensors: Tensors, how: str) -> Tensors:
    """The same dump with keys and values [token, head, feature] or [token, head * feature]."""
    out = dict(tensors)
    for name, x in tensors.items():
        if ".block." in name:
            first = x.transpose(0, 1)
            out[name] = first if how == "token, head" else first.reshape(first.shape[0], -1)
            out[name] = out[name][None] if how == "batch, flat" else out[name]
    return out


# One token of two heads, and a batch of one with two tokens, have the same shape: that pair is left out.
@pytest.mark.parametrize(
    ("how", "chunk"),
    [
        ("token, head", CHUNK), ("token, head", HEADS), ("token, head", 1), ("flat", CHUNK), ("flat", HEADS),
        ("flat", 1), ("batch, flat", CHUNK), ("batch, flat", 1),
    ],
)  # fmt: skip
def test_other_layouts_are_read_as_the_same_numbers(tmp_path: Path, how: str, chunk: int) -> None:
    plain = cut(drawn(), chunk)
    if chunk == HEADS and how == "token, head":  # that a step has as many tokens as heads, other steps must tell
        plain = cut(drawn(tokens=TOKENS - 1), chunk)
    if chunk == CHUNK:
        plain = with_caches(plain)
    one, two = open_dump(save(plain, tmp_path / "a")), open_dump(save(laid_out(plain, how), tmp_path / "b"), HEADS)
    assert two.boundaries == one.boundaries
    for place in one.places:
        assert two.shape(place) == one.shape(place)
        if not place.kind.startswith("cache"):
            assert np.array_equal(one.read(place, 3, 29), two.read(place, 3, 29))
        else:
            assert np.array_equal(one.cache(place, 2), two.cache(place, 2))
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--heads", str(HEADS)]) == 0


def test_the_message_says_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = cut(drawn())
    a, b, c = (str(save(x, tmp_path / n)) for n, x in (
        ("a", plain), ("b", laid_out(plain, "token, head")), ("c", laid_out(plain, "flat")),
    ))  # fmt: skip
    for folder, words in ((b, "is [token, head, feature], say how many heads it has: --heads 2"), (c, "--heads N")):
        assert main([a, folder]) == 2
        assert words in capsys.readouterr().err
    assert main([a, c, "--heads", "3"]) == 2
    assert "of 3 heads" in capsys.readouterr().err
    keys = {name: x for name, x in laid_out(cut(drawn(tokens=20)), "token, head").items() if name.endswith("key")}
    with pytest.raises(DatasetError, match=r"say how many heads it has: --heads N"):
        open_dump(save(keys, tmp_path / "keys"))
    for wrong in ("0", "-1", "two", "1" * 30):
        with pytest.raises(SystemExit):
            main([a, a, "--heads", wrong])


# ------------------------------------------------------------------------------------------------ other names and files
@pytest.mark.parametrize("name", RUNGS)
def test_torch_s_names_are_taken_wherever_ours_are(name: str) -> None:
    theirs = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}.get(name, name)
    assert rung(theirs) == rung(name)
    assert rung(f"torch.{theirs}" if theirs != name else name) == rung(name)
    assert rung_name(theirs) == name
    assert getattr(torch, rung(theirs).torch_dtype).is_floating_point
    assert _parser().parse_args(["m", "--out", "x", "--dtype", theirs]).dtype == name


def test_names_of_no_rung_are_refused_as_they_are_written() -> None:
    for name in ("float8", "torch.tf32", "torch.bf16", "", "int8"):
        assert rung_name(name) == name
        with pytest.raises(ConfigError, match="Unknown dtype"):
            rung(name)


def test_a_file_that_is_ours_in_no_way_is_left_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    assert ladder([str(path)]) == 2
    words = capsys.readouterr().err.lower()
    assert "name the folder of a sweep" in words
    assert not any(advice in words for advice in ("delete", "rename", "run the sweep again", "copy it"))
    with pytest.raises(DatasetError, match="no cell of a sweep"):
        open_sweep(path)


def test_streaming_counts_within_the_cache_unless_it_is_told_otherwise() -> None:
    """As StreamingLLM does. The label says which: older cells called `streaming` had the text's positions."""
    assert parse("streaming") == parse("streaming(positions=cache)")
    assert parse("streaming").label == "streaming(positions=cache)"
    assert parse("streaming(positions=text)").label == "streaming(positions=text)"
    assert [c.first_position for c in parse("streaming(sinks=1,window=2)").chunks(10, 4)] == [0, 3, 3]


# ------------------------------------------------------------------------------------------------ packed batches
def packed(lanes: list[dict[str, torch.Tensor]], cuts: list[list[int]], last: bool = False) -> Tensors:
    """Steps in which each lane's next tokens stand one after the other; `last` keeps one row of logits per lane."""
    out: Tensors = {}
    at = [0] * len(lanes)
    for step, cut_here in enumerate(cuts):
        for name in lanes[0]:
            parts = [x[name][..., a : a + n, :] for x, a, n in zip(lanes, at, cut_here, strict=True) if n]
            if last and name == "logits":
                parts = [part[-1:] for part in parts]
            out[f"step.{step}.{name}"] = torch.cat(parts, dim=-2)
        at = [a + n for a, n in zip(at, cut_here, strict=True)]
    return out


CUTS = [[16, 0, 5], [16, 20, 0], [1, 1, 15], [7, 0, 0]]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("how", ["head, token", "token, head", "flat"])
def test_a_packed_dump_is_taken_apart_by_lengths(tmp_path: Path, how: str, last: bool) -> None:
    tokens = [sum(c[i] for c in CUTS) for i in range(3)]
    lanes = [drawn(tokens=n, seed=seed) for seed, n in enumerate(tokens)]
    pack = packed(lanes, CUTS, last)
    folder = save(pack if how == "head, token" else laid_out(pack, how), tmp_path / "pack")
    found = unpacked(open_dump(folder, HEADS), [dict(zip("abc", c, strict=True)) for c in CUTS])
    assert list(found) == ["a", "c", "b"]
    for index, name in enumerate("abc"):
        own = [c[index] for c in CUTS if c[index]]
        assert found[name].boundaries == [0, *np.cumsum(own).tolist()]
        alone = open_dump(save(cut(lanes[index], tokens[index]), tmp_path / name))
        result = diagnose(alone, found[name])
        assert (result.verdict, result.missing) == (Verdict.SAME, [])
        assert result.comparison.profiles.keys() == alone.places.keys()
        other = open_dump(save(cut(drawn(tokens=tokens[index], seed=9), 4), tmp_path / f"not {name}"))
        assert diagnose(other, found[name]).verdict is Verdict.STRUCTURAL


def test_lengths_that_do_not_add_up(tmp_path: Path) -> None:
    lanes = [drawn(tokens=8, seed=seed) for seed in range(2)]
    dump = open_dump(save(packed(lanes, [[4, 4], [4, 4]]), tmp_path))
    assert list(unpacked(dump, [[4, 4], [4, 4]])) == ["0", "1"]
    for lengths, words in (
        ([[4, 4]], "has 2 steps"),
        ([[4, 4], [4, 5]], "step 1 has 8 tokens"),
        ([[9, -1]] * 2, "8 tok"),
    ):
        with pytest.raises(DatasetError, match=words):
            unpacked(dump, lengths)
