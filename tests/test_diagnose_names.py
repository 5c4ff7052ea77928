"""Causes that were called by other names (fp8 behind a scale, a wrong token, other arithmetic); hints that mislead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose_numbers import CHUNK, TOKENS, Whole, changed, cut, diagnosed, drawn, sentences, with_caches
from diagnose_tools import Tensors, rounded, save, unaccused
from safetensors.torch import load_file, save_file

from drift.reading.diagnose.grids import SCALED, scaled_fp8
from drift.reading.diagnose.model import Cause, Diagnosis, Verdict
from drift.reading.diagnose.showing import page
from drift.reading.diagnose.tensors import FORMATS, Dump, Place, open_dump
from drift.reading.diagnose.verdict import diagnose

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
SCALES = {"one": None, "tensor": (0, 1, 2), "head": (1, 2), "token": (0, 2), "row": (2,), "feature": (0, 1)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def through_fp8(x: torch.Tensor, kind: str, scale: str) -> torch.Tensor:
    """What a cache in fp8 hands back: [head, token, feature]."""
    axes = SCALES[scale]
    top = torch.finfo(FP8[kind]).max
    by = torch.ones(1) if axes is None else x.float().abs().amax(axes, keepdim=True) / top
    return ((x.float() / by).to(FP8[kind]).to(x.dtype) * by.to(x.dtype)).to(x.dtype)


# ------------------------------------------------------------------------------------------------ fp8 behind a scale
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", FP8)
def test_numbers_of_8_bits_are_seen_behind_their_scale(kind: str, scale: str, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 32, 64), generator=generator).to(DTYPES[dtype])
    kept = next(form for form in FORMATS.values() if form.name == dtype)
    got = through_fp8(x, kind, scale).double().numpy()
    assert scaled_fp8(got, kept) == SCALED[kind]
    assert scaled_fp8(x.double().numpy(), kept) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 8, 16), (4, 64, 64)])
def test_other_numbers_lie_on_no_grid(dtype: str, shape: tuple[int, ...]) -> None:
    kept = next(form for form in FORMATS.values() if form.name == dtype)
    for seed in range(20):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
        assert scaled_fp8(x.double().numpy(), kept) is None
        heavy = (x.float() ** 3).to(DTYPES[dtype])
        assert scaled_fp8(heavy.double().numpy(), kept) is None
    assert scaled_fp8(np.zeros(shape), kept) is None


def stored(a: Whole, kind: str = "e4m3", scale: str = "tensor") -> Whole:
    return {name: through_fp8(x, kind, scale) if name.endswith(("key", "value")) else x for name, x in a.items()}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("scale", ["one", "tensor", "row"])
@pytest.mark.parametrize("kind", FP8)
def test_a_cache_that_was_dequantised_before_dumping_is_narrower(
    tmp_path: Path, kind: str, scale: str, dtype: str
) -> None:
    a = drawn(dtype=DTYPES[dtype])
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(stored(a, kind, scale)))
    assert (found.verdict, found.cause) == (Verdict.NARROWER, Cause.NARROWER_STORAGE)
    assert found.cause_text.startswith("B's keys and values from block 1 on hold numbers of fp8")
    # Some numbers below the range that is looked at were rounded by more, and all others once.
    assert found.evidence[0].numbers["exactly_rounded"] > 0.99


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_cache_that_was_dumped_beside_what_was_appended(tmp_path: Path, dtype: str) -> None:
    plain = cut(drawn(dtype=DTYPES[dtype]))
    caches = {n: through_fp8(x, "e4m3", "tensor") if "cache_" in n else x for n, x in with_caches(plain).items()}
    found = diagnosed(tmp_path, plain, caches)
    assert (found.verdict, found.cause) == (Verdict.NARROWER, Cause.NARROWER_STORAGE)
    assert "fp8_e4m3 with scales" in found.cause_text


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_stale_cache_in_fp8_is_stale(tmp_path: Path, dtype: str) -> None:
    a, old = drawn(dtype=DTYPES[dtype]), drawn(seed=1, dtype=DTYPES[dtype])
    where = slice(2 * CHUNK, 3 * CHUNK)
    b = stored(changed(a, "block.1.key", where, old["block.1.key"][:, where]))
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.STALE_CACHE)
    caches = with_caches(cut(a))
    name = "step.3.block.2.cache_key"
    caches[name] = through_fp8(torch.cat([old["block.2.key"][:, :8], caches[name][:, 8:]], dim=1), "e4m3", "tensor")
    found = diagnosed(tmp_path / "cache", cut(a), caches)
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.STALE_CACHE)


# ------------------------------------------------------------------------------------------------ wrong tokens
@pytest.mark.parametrize("tokens", [[21], [20, 22], [17, 18, 19]])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_wrong_token_is_no_expert(tmp_path: Path, tokens: list[int], dtype: str) -> None:
    a, other = drawn(dtype=DTYPES[dtype]), drawn(seed=1, dtype=DTYPES[dtype])
    b = dict(a)
    for name in a:  # everything that is computed of a token is another's, and one that was chosen by chance as well
        for t in tokens:
            b = changed(b, name, slice(t, t + 1), other[name][..., t : t + 1, :])
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.OTHER_TOKENS)
    assert found.entry is not None
    assert (found.entry.place, found.entry.start, found.entry.stop) == (Place("hidden", 0), tokens[0], tokens[-1] + 1)
    assert "other tokens" in found.cause_text
    assert ", ".join(map(str, tokens)) in found.cause_text
    assert "expert" not in " ".join([found.reason, *sentences(found), *found.notes])


def test_one_embedding_that_is_scaled_is_no_other_token(tmp_path: Path) -> None:
    a = drawn()
    b = changed(a, "layer.0.hidden", slice(21, 22), 1.5 * a["layer.0.hidden"][21:22])
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.OTHER)
    assert found.cause_text == "the lanes were given other tokens, or embed them differently"


# ------------------------------------------------------------------------------------------------ bf16 against bf16
def of_bf16(seed: int = 0) -> tuple[Whole, Whole]:
    """A lane in bf16, and one that keeps fp32 between products of bf16: they share embeddings and little else."""
    fine, noise = drawn(), drawn(seed=seed + 1)
    narrow = {name: x.bfloat16() for name, x in fine.items()}
    wide = {n: x.float() * (1 + 2.0**-9 * noise[n]) if n != "layer.0.hidden" else x.float() for n, x in narrow.items()}
    return narrow, wide


@pytest.mark.parametrize("flipped", [False, True])
def test_bf16_against_bf16_is_no_narrower_storage(tmp_path: Path, flipped: bool) -> None:
    a, b = of_bf16()
    if flipped:
        a, b = b, a
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    assert (unaccused(found), found.exit_code) == (True, 3)
    lane = "B" if flipped else "A"
    assert found.notes[0].startswith(f"{lane}'s numbers are bf16 throughout")


@pytest.mark.parametrize(("said", "verdict"), [("bfloat16", Verdict.UNDETERMINED), ("fp32", Verdict.NARROWER)])
def test_metadata_say_which_lane_computed_in_less(tmp_path: Path, said: str, verdict: Verdict) -> None:
    b, a = of_bf16()
    assert diagnose(with_metadata(cut(a, TOKENS), tmp_path / "a", dtype=said), lane_b(b, tmp_path)).verdict is verdict


def lane_b(b: Whole, folder: Path) -> Dump:
    return with_metadata(cut(b), folder / "b", dtype="bf16")


def with_metadata(tensors: Tensors, folder: Path, **metadata: str) -> Dump:
    save(tensors, folder)
    save_file(load_file(folder / "lane.safetensors"), folder / "lane.safetensors", metadata)
    return open_dump(folder)


def test_numbers_rounded_when_they_were_dumped_are_narrower_storage(tmp_path: Path) -> None:
    a = drawn()
    b = {name: x.bfloat16() for name, x in a.items()}
    assert diagnosed(tmp_path, cut(a, TOKENS), cut(b)).verdict is Verdict.NARROWER


# ------------------------------------------------------------------------------------------------ hints
def lone(seed: int = 7) -> tuple[Whole, Whole]:
    """A lane, and one in which a single token's state after block 2 is another."""
    a = drawn()
    return a, changed(a, "layer.2.hidden", slice(19, 20), 1.5 * a["layer.2.hidden"][19:20])


@pytest.mark.parametrize(
    ("experts", "words"), [(None, "one bit decides"), ("0", "is dense"), ("8", "An expert chosen")]
)
def test_experts_are_blamed_only_where_there_are_some(tmp_path: Path, experts: str | None, words: str) -> None:
    a, b = lone()
    metadata = {} if experts is None else {"experts": experts}
    lanes = [with_metadata(cut(x), tmp_path / n, **metadata) for n, x in (("a", a), ("b", b))]
    found = diagnose(*lanes)
    assert found.verdict is Verdict.UNDETERMINED
    assert words in found.reason
    assert ("expert" in found.reason.lower()) is (experts == "8")
    assert "--floor" in found.reason


def with_floor(folder: Path, a: Whole, b: Whole, c: Whole) -> Diagnosis:
    return diagnosed(folder, cut(a, TOKENS), cut(b), floor=open_dump(save(cut(c, TOKENS), folder / "c")))


def test_no_floor_is_recommended_to_who_gave_one(tmp_path: Path) -> None:
    a, b = lone()
    found = with_floor(tmp_path, a, b, rounded(a))
    assert found.verdict is Verdict.UNDETERMINED
    assert "--floor" not in page(found)
    trial = 1e-5
    more = {**a, "layer.2.hidden": a["layer.2.hidden"] * (1 + trial)}
    ratio = float(np.median(with_floor(tmp_path / "trial", a, more, dict(a)).envelopes[Place("hidden", 2)].ratio))
    more["layer.2.hidden"] = a["layer.2.hidden"] * (1 + 1.5 * trial / ratio)
    found = with_floor(tmp_path / "doubt", a, more, dict(a))
    assert found.verdict is Verdict.UNDETERMINED
    assert "times the envelope" in found.reason
    assert "--floor" not in page(found)


def test_a_token_at_which_the_clean_lane_differs_as_much_is_not_accused(tmp_path: Path) -> None:
    a, b = lone()
    c = changed(a, "layer.2.hidden", slice(19, 20), 0.5 * a["layer.2.hidden"][19:20])
    found = with_floor(tmp_path, a, b, c)
    assert found.verdict is Verdict.ROUNDING
    found = with_floor(
        tmp_path / "other", a, changed(b, "layer.2.hidden", slice(30, 31), -a["layer.2.hidden"][30:31]), c
    )
    assert found.verdict is Verdict.UNDETERMINED
    assert "first token 30" in found.reason
    assert all("19" not in text for text in sentences(found))
