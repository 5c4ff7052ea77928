"""What a diagnosis says, sentence by sentence, and how its page is laid out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diagnose_numbers import CHUNK, TOKENS, Whole, changed, cut, diagnosed, drawn, numbers_of, sentences
from diagnose_tools import rounded, save
from safetensors.torch import load_file, save_file

from drift.reading.diagnose.model import Cause, Diagnosis, Entry, Verdict
from drift.reading.diagnose.showing import WIDTH, as_dict, page
from drift.reading.diagnose.tensors import Place, open_dump
from drift.reading.diagnose.verdict import diagnose

START = 2 * CHUNK


def larger(name: str, first: int = START, by: float = 1.5, blocks: int = 3) -> tuple[Whole, Whole]:
    """A lane, and one in which a tensor is larger from some token on."""
    a = drawn(blocks)
    return a, changed(a, name, slice(first, None), by * a[name][..., first:, :])


def verdict_of(folder: Path, a: Whole, b: Whole) -> Diagnosis:
    """Diagnose a full pass and a lane in chunks."""
    return diagnosed(folder, cut(a, TOKENS), cut(b))


# ------------------------------------------------------------------------------------------------ causes
OTHER = "block {} at step {} computes something else from the same inputs"
READS = (
    ": what its attention reads (a stale or missing part of the cache), its mask or its scale, the queries' positions, "
    "or its own weights"
)
CAUSES = [
    ("layer.0.hidden", START, "the lanes were given other tokens, or embed them differently"),
    ("layer.2.hidden", START, OTHER.format(2, 2) + READS),
    ("layer.2.hidden", 0, OTHER.format(2, 0)),
    ("block.2.key", START, "block 2 makes other keys of the same hidden states (weights, normalisation, cast)"),
    ("block.2.value", START, "block 2 makes other values of the same hidden states (weights, normalisation, cast)"),
    ("final", START, "the state after the final norm are computed differently from the same states"),
]


@pytest.mark.parametrize(("name", "first", "text"), CAUSES)
def test_what_no_pattern_explains_is_put_into_words(tmp_path: Path, name: str, first: int, text: str) -> None:
    found = verdict_of(tmp_path, *larger(name, first))
    assert (found.verdict, found.cause, found.cause_text) == (Verdict.STRUCTURAL, Cause.OTHER, text)


def test_swapped_chunks_are_named_by_their_tokens(tmp_path: Path) -> None:
    a = drawn()
    values = a["block.2.value"]
    swapped = torch.cat([values[:, 24:32], values[:, 16:24]], dim=1)
    found = verdict_of(tmp_path, a, changed(a, "block.2.value", slice(16, 32), swapped))
    assert (found.cause, found.cause_text) == (
        Cause.SWAPPED_CHUNK,
        "swapped chunks: B holds the values of block 2 of A's tokens 24 to 31 (step 3) at tokens 16 to 23, and the "
        "other way round",
    )


# ------------------------------------------------------------------------------------------------ evidence
def test_the_evidence_of_a_structural_place(tmp_path: Path) -> None:
    found = verdict_of(tmp_path, *larger("block.2.value"))
    n = numbers_of(found)
    assert n["difference"] == pytest.approx(0.5, rel=0.01)  # of tokens shorter than the median one a little less
    # Medians of three things, each of tokens whose norms differ by a few per cent.
    assert n["ratio"] == pytest.approx(n["difference"] / n["envelope"], rel=0.01)
    assert (n["input"], n["pairs_beyond"], n["ratio_before"]) == (0, 1, 0)
    assert sentences(found) == [
        f"The values of block 2, step 2: the median token differs by {n['difference']:.2g} of its norm, "
        f"{n['ratio']:.3g} times what rounding explains there ({n['envelope']:.2g}).",
        "What it is computed from (the hidden state after block 1) agrees bit for bit.",
        "100 % of its pairs of features are beyond twice the envelope.",
        f"Centred cosine of A's and B's rows there: {n['cosine']:.2f} (1 would be the same).",
        "The 16 tokens before it agree bit for bit.",
    ]


def test_the_evidence_where_rounding_came_before(tmp_path: Path) -> None:
    a, b = larger("layer.2.hidden")
    found = diagnosed(tmp_path, cut(a, TOKENS), rounded(cut(b)))
    n = numbers_of(found)
    assert 0 < n["ratio_before"] < 1
    assert 0 < n["input"] < 1e-6
    assert sentences(found)[1:] == [
        "What it is computed from (the hidden state after block 1, the keys of block 2, the values of block 2) differs "
        f"by {n['input']:.2g}.",
        f"The 16 tokens before it stay below {n['ratio_before']:.2g} of the envelope at this place (95th percentile).",
    ]


@pytest.mark.parametrize(
    ("names", "text"), [(("layer.0.hidden",), "the text itself"), ((), "the embeddings, taken to agree")]
)
def test_what_the_first_place_is_computed_from(tmp_path: Path, names: tuple[str, ...], text: str) -> None:
    a, b = larger("layer.0.hidden" if names else "block.1.value")
    left = (*names, "block.1.value")
    found = verdict_of(tmp_path, {k: a[k] for k in left}, {k: b[k] for k in left})
    (evidence,) = [e for e in found.evidence if "computed from" in e.text]
    assert (evidence.text, evidence.numbers) == (f"It is computed from {text}.", {"input": 0.0})


@pytest.mark.parametrize("kind", ["key", "value"])
@pytest.mark.parametrize("pairs", [8, 4])
def test_how_many_pairs_of_features_are_beyond(tmp_path: Path, kind: str, pairs: int) -> None:
    """Pairs are those of a head's two halves; noise in them is no rotation."""
    a = drawn()
    name = f"block.2.{kind}"
    noise = torch.randn(a[name][:, START:].shape, generator=torch.Generator().manual_seed(3))
    keep = torch.arange(16) % 8 < pairs
    found = verdict_of(tmp_path, a, changed(a, name, slice(START, None), a[name][:, START:] + 0.3 * noise * keep))
    (evidence,) = [e for e in found.evidence if "pairs_beyond" in e.numbers]
    assert evidence.numbers["pairs_beyond"] == pairs / 8
    assert evidence.text == f"{100 * pairs // 8} % of its pairs of features are beyond twice the envelope."
    assert all("pairs_beyond" not in e.numbers for e in verdict_of(tmp_path, *larger("layer.2.hidden")).evidence)


# ------------------------------------------------------------------------------------------------ other verdicts
def test_the_first_bits_that_differ(tmp_path: Path) -> None:
    a = drawn()
    token = 21
    one = a["layer.2.hidden"][token : token + 1]
    found = verdict_of(tmp_path, a, changed(a, "layer.2.hidden", slice(token, token + 1), one * (1 + 2.0**-22)))
    assert found.verdict is Verdict.ROUNDING
    assert found.entry == Entry(Place("hidden", 2), 0, 2, token, token + 1)
    assert as_dict(found)["tokens"] == [token, token + 1]
    assert "The first bits that differ are in the hidden state after block 2, token 21, step 2." in sentences(found)


def test_a_difference_between_one_and_two_envelopes(tmp_path: Path) -> None:
    trial = 1e-5
    ratio = numbers_of(verdict_of(tmp_path / "trial", *larger("layer.2.hidden", by=1 + trial)))["ratio"]
    found = verdict_of(tmp_path, *larger("layer.2.hidden", by=1 + trial * 1.5 / ratio))
    assert found.verdict is Verdict.UNDETERMINED
    says = re.fullmatch(
        r"at the hidden state after block 2 the difference is (\S+) times the envelope, where 2 would be structural\. "
        r"Dump the pair at a finer precision \(--other-precision\), or a second accepted way to compute A \(--floor\)",
        found.reason,
    )
    assert says is not None
    assert 1 < float(says[1]) < 2


NARROWER = [
    ("final", "final states from the state after the final norm"),
    ("block.2.key", "keys from block 2"),
]


@pytest.mark.parametrize(("name", "words"), NARROWER)
def test_where_narrower_numbers_begin(tmp_path: Path, name: str, words: str) -> None:
    a = drawn()
    found = verdict_of(tmp_path, a, a | {name: a[name].bfloat16().float()})
    assert found.verdict is Verdict.NARROWER
    assert found.cause_text == f"B's {words} on hold numbers of bf16 only, while A's are fp32"


def test_a_unit_roundoff_that_was_given_is_not_doubted(tmp_path: Path) -> None:
    """Even noise of the size of TF32 is a bug where somebody knows that nothing multiplies in TF32."""
    a, other = drawn(), drawn(seed=1)
    noisy = {k: v if k == "layer.0.hidden" else v * (1 + 2.0**-11 * other[k]) for k, v in a.items()}
    assert verdict_of(tmp_path, a, noisy).verdict is Verdict.UNDETERMINED
    given = diagnosed(tmp_path, cut(a, TOKENS), cut(noisy), unit_roundoff=2.0**-24)
    assert given.verdict is Verdict.STRUCTURAL


def test_what_is_structural_here_and_rounding_at_a_finer_precision(tmp_path: Path) -> None:
    coarse = drawn(dtype=torch.bfloat16)
    coarse_b = coarse | {"layer.2.hidden": coarse["layer.2.hidden"] * 1.25}
    fine, fine_b = larger("layer.2.hidden", 0, by=1 + 2.0**-20)
    other = (open_dump(save(cut(fine, TOKENS), tmp_path / "fa")), open_dump(save(cut(fine_b), tmp_path / "fb")))
    assert verdict_of(tmp_path, coarse, coarse_b).verdict is Verdict.STRUCTURAL
    assert diagnose(*other).verdict is Verdict.ROUNDING
    found = diagnosed(tmp_path, cut(coarse, TOKENS), cut(coarse_b), other=other)
    assert 0.5 < numbers_of(found)["slope_at_entry"] < 1.5
    assert (found.verdict, found.reason) == (
        Verdict.UNDETERMINED,
        "the difference exceeds its envelope here, but falls with the unit roundoff as rounding does, and is rounding "
        "at the finer precision. Either this model magnifies rounding unusually, or the bug is in the coarser "
        "precision's code alone",
    )


def test_metadata_that_differ_are_told(tmp_path: Path) -> None:
    a = drawn()
    for lane, digest in (("a", "1f"), ("b", "2e")):
        folder = save(cut(a), tmp_path / lane)
        save_file(load_file(folder / "lane.safetensors"), folder / "lane.safetensors", {"tokens_sha256": digest})
    found = diagnose(open_dump(tmp_path / "a"), open_dump(tmp_path / "b"))
    assert found.notes == ["The files' own metadata say that B was made from other tokens (1f and 2e)."]


# ------------------------------------------------------------------------------------------------ the page
def test_paragraphs_are_filled_to_the_width_of_the_page_and_hang(tmp_path: Path) -> None:
    lines = page(verdict_of(tmp_path, *larger("layer.2.hidden"))).splitlines()
    evidence = lines[lines.index("Evidence") + 1 :]
    evidence = evidence[: evidence.index("")]
    continued = 0
    for line, following in zip(evidence, [*evidence[1:], ""], strict=True):
        assert re.match(r"  \d+\. \S|     \S", line), line
        assert len(line) <= WIDTH
        if following.startswith("     "):
            assert len(f"{line} {following.split()[0]}") > WIDTH
            continued += 1
    assert continued > 0


def table(found: Diagnosis) -> list[list[tuple[str, int, int]]]:
    """Cells of the page's table, each with where it begins and ends in its line."""
    lines = page(found).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  place "))
    rows = lines[first : lines.index("", first)]
    return [[(m[0], m.start(), m.end()) for m in re.finditer(r"\S+(?: \S+)*", line)] for line in rows]


def test_the_table_of_a_deep_network_shows_what_is_around_the_entry(tmp_path: Path) -> None:
    found = verdict_of(tmp_path, *larger("layer.3.hidden", blocks=6))
    rows = table(found)
    assert [row[0][0] for row in rows] == [
        "place", "embeddings", "...", "hidden 2", "key 3", "value 3", "hidden 3", "key 4", "value 4", "hidden 4",
        "key 5", "value 5", "...", "final", "logits",
    ]  # fmt: skip
    assert [row[0][0] for row in rows if row[-1][0].endswith("<-")] == ["hidden 3"]


def test_numbers_of_the_table_end_in_one_line_and_words_begin_in_one(tmp_path: Path) -> None:
    rows = [row for row in table(verdict_of(tmp_path, *larger("block.2.value"))) if len(row) > 1]
    assert len(rows) == 13
    for column in range(1, 5):
        assert len({row[column][2] for row in rows}) == 1
    for column in (0, 5):
        assert len({row[column][1] for row in rows}) == 1


def test_places_are_told_in_the_order_in_which_they_are_computed(tmp_path: Path) -> None:
    found = verdict_of(tmp_path, *larger("layer.2.hidden"))
    blocks = [(kind, block) for block in (1, 2, 3) for kind in ("key", "value", "hidden")]
    assert [(row["kind"], row["block"]) for row in as_dict(found)["places"]] == [
        ("hidden", 0), *blocks, ("final", 0), ("logits", 0),
    ]  # fmt: skip
