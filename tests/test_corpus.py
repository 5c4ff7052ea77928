"""Corpora: disjoint and reproducible documents, with BOS where the tokenizer adds one; clear words when text lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift.errors import CorpusError
from drift.running import corpus

ROOT = Path(__file__).resolve().parent.parent
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_tokenizer(bos: bool) -> Any:
    """One token per byte, built with the real libraries; with or without a BOS in front by default."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<bos>": 0, "<pad>": 1, **{letter: index + 2 for index, letter in enumerate(alphabet)}}
    vocabulary |= {"Ġt": 258, "he": 259, "Ġthe": 260}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def plain() -> Any:
    return make_tokenizer(bos=False)


@pytest.fixture(scope="module")
def with_bos() -> Any:
    return make_tokenizer(bos=True)


def test_begins_with_bos(plain: Any, with_bos: Any) -> None:
    assert plain.bos_token_id == with_bos.bos_token_id == 0
    assert not corpus.begins_with_bos(plain)
    assert corpus.begins_with_bos(with_bos)
    plain_without = make_tokenizer(bos=False)
    plain_without.bos_token = None
    assert not corpus.begins_with_bos(plain_without)


def test_texts_are_there_and_stay_the_same() -> None:
    pydoc, stdlib = corpus.text("pydoc"), corpus.text("stdlib")
    assert len(pydoc) > 300_000
    assert len(stdlib) > 5_000_000
    assert "assert" in pydoc
    assert "def dataclass(" in stdlib
    assert corpus.identity("pydoc", 0) == corpus.identity("pydoc", 7) != corpus.identity("stdlib", 0)
    code = "from drift.running import corpus; print(corpus.identity('pydoc', 0), corpus.identity('stdlib', 0))"
    environment = {**os.environ, "PYTHONHASHSEED": "3"}
    command = [sys.executable, "-c", code]
    again = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    ).stdout.split()
    assert again == [corpus.identity("pydoc", 0), corpus.identity("stdlib", 0)]


def test_no_torch_for_text_and_identity() -> None:
    code = (
        "import sys; from drift.running import corpus as c; c.identity('pydoc', 0); c.identity('random', 1);"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@SLOW
@given(documents=st.integers(1, 6), tokens=st.integers(1, 90), bos=st.booleans(), letters=st.text(min_size=1))
def test_documents_are_disjoint_stretches_of_the_text(
    tmp_path: Path, plain: Any, with_bos: Any, documents: int, tokens: int, bos: bool, letters: str
) -> None:
    tokenizer = with_bos if bos else plain
    path = tmp_path / "text.txt"
    path.write_text(
        (letters + "\n\nthe end. ") * (1 + 600 // len(letters)), encoding="utf-8", errors="ignore", newline=""
    )
    each = tokens - bos
    stream = np.asarray(plain(path.read_bytes().decode()).input_ids)
    got = corpus.documents(f"file:{path}", tokenizer, documents, tokens)
    assert got.shape == (documents, tokens)
    assert got.dtype == np.int64
    assert got.flags.c_contiguous
    assert (got[:, 0] == 0).all() if bos else 0 not in got
    # end to end they are the beginning of the stream: every token in its place, none twice
    np.testing.assert_array_equal(got[:, bos:].ravel(), stream[: documents * each])
    np.testing.assert_array_equal(got, corpus.documents(str(path), tokenizer, documents, tokens, seed=5))
    if documents > 1:
        np.testing.assert_array_equal(got[:-1], corpus.documents(str(path), tokenizer, documents - 1, tokens))


@pytest.mark.parametrize("name", ["pydoc", "stdlib"])
def test_asking_for_more_never_changes_the_first_documents(plain: Any, name: str) -> None:
    few = corpus.documents(name, plain, 1, 40_000)
    corpus._streams.clear()
    many = corpus.documents(name, plain, 7, 40_000)
    np.testing.assert_array_equal(many[0], few[0])
    assert len({row.tobytes() for row in many}) == 7


def test_pieces_lose_nothing() -> None:
    for string in ("", "a", "x" * 300_000, "line\n" * 50_000, "a paragraph\n\n" * 30_000, corpus.text("pydoc")):
        pieces = list(corpus._pieces(string))
        assert "".join(pieces) == string
        assert all(len(piece) >= corpus._PIECE for piece in pieces[:-1])
    assert len(pieces) > 3
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])


def test_only_as_much_is_tokenised_as_is_needed(plain: Any) -> None:
    corpus._streams.clear()
    corpus.documents("stdlib", plain, 1, 100)
    (stream,) = corpus._streams.values()
    assert 100 <= len(stream._ids) < 4 * corpus._PIECE


def test_too_little_text_says_how_much_there_is(tmp_path: Path, plain: Any, with_bos: Any) -> None:
    path = tmp_path / "short.txt"
    path.write_text("abcdefghij" * 10)
    with pytest.raises(
        CorpusError, match=r"has 100 tokens.*3 x 40 were asked for.*2 documents of 40 or 3 documents of 33"
    ):
        corpus.documents(str(path), plain, 3, 40)
    with pytest.raises(CorpusError, match=r"has 100 tokens.*1 document of 60 or 2 documents of 51 would fit"):
        corpus.documents(str(path), with_bos, 2, 60)
    # what the message says fits does fit, and one more does not
    assert corpus.documents(str(path), plain, 3, 33).shape == (3, 33)
    assert corpus.documents(str(path), with_bos, 2, 51).shape == (2, 51)
    with pytest.raises(CorpusError):
        corpus.documents(str(path), plain, 3, 34)
    with pytest.raises(CorpusError):
        corpus.documents(str(path), with_bos, 2, 52)


def test_empty_corpus(tmp_path: Path, plain: Any) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("")
    with pytest.raises(CorpusError, match="is empty"):
        corpus.documents(str(path), plain, 1, 4)


@pytest.mark.parametrize(("documents", "tokens"), [(0, 4), (1, 0), (-1, 4), (1, -4), (True, 4), (1, 2.5)])
def test_counts_must_be_counts(plain: Any, documents: Any, tokens: Any) -> None:
    with pytest.raises(CorpusError, match="whole number"):
        corpus.documents("pydoc", plain, documents, tokens)


def test_random_is_uniform_over_ordinary_tokens(plain: Any) -> None:
    got = corpus.documents("random", plain, 4, 20_000, seed=3)
    counts = np.bincount(got.ravel(), minlength=len(plain))
    assert counts[:2].sum() == 0  # <bos> and <pad>
    expected = got.size / (len(plain) - 2)
    chi2 = float(((counts[2:] - expected) ** 2 / expected).sum())
    assert chi2 < 259 + 5 * np.sqrt(2 * 259)  # five standard deviations above its mean
    np.testing.assert_array_equal(got, corpus.documents("random", plain, 4, 20_000, seed=3))
    np.testing.assert_array_equal(got[:2], corpus.documents("random", plain, 2, 20_000, seed=3))
    assert not np.array_equal(got, corpus.documents("random", plain, 4, 20_000, seed=4))
    assert len({row.tobytes() for row in got}) == 4
    assert corpus.identity("random", 3) != corpus.identity("random", 4)


def test_repeat_is_one_token(with_bos: Any) -> None:
    got = corpus.documents("repeat", with_bos, 2, 9)
    assert got[:, 0].tolist() == [0, 0]
    assert np.unique(got[:, 1:]).tolist() == [260]  # " the"
    assert corpus.identity("repeat", 0) == corpus.identity("repeat", 1)
    with pytest.raises(CorpusError, match="has no text"):
        corpus.text("repeat")


def test_a_changed_file_is_another_corpus(tmp_path: Path, plain: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one " * 20)
    first, tokens = corpus.identity(str(path), 0), corpus.documents(str(path), plain, 1, 20)
    path.write_text("three " * 20)
    assert corpus.identity(str(path), 0) != first
    assert not np.array_equal(corpus.documents(str(path), plain, 1, 20), tokens)


def test_names_that_stand_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus 'pydocs'\. Known are pydoc, stdlib"):
        corpus.text("pydocs")
    with pytest.raises(CorpusError, match="there is no file"):
        corpus.text("file:nothing.txt")
    with pytest.raises(CorpusError, match="is a folder"):
        corpus.text(str(tmp_path))
    with pytest.raises(CorpusError, match=r"write hub:DATASET"):
        corpus.text("hub:")
    with pytest.raises(CorpusError, match=r"write hub:DATASET"):
        corpus.text("hub:a:b:c:d:e")
    (tmp_path / "latin").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        corpus.text(f"file:{tmp_path / 'latin'}")


def test_hub_dataset_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python does when a package is not there
    with pytest.raises(CorpusError, match=r"pip install 'drift\[hub\]'"):
        corpus.text("hub:nobody/nothing")
