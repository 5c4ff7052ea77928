"""Every importer of drift.logits, on files written from its format's documentation; and what each refuses."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logits_tools import VOCABULARY, drawn, followed, llama_base, moved, ours, save_lines, softmax, tensors, tokens_of

from drift._bounds import MOST_DOCUMENTS
from drift.errors import DatasetError
from drift.reading.logits import compare_lanes, open_lane
from drift.reading.logits.importers import IMPORTERS

A = drawn()
B = moved(A, 0.1, 1)
TOKENS = tokens_of(A)
CHANGE = followed(B, TOKENS) - followed(A, TOKENS)
EPS32, EPS16 = float(np.finfo(np.float32).eps), float(np.finfo(np.float16).eps)


def npy(folder: Path, name: str, logits: np.ndarray) -> Path:
    np.save(folder / f"{name}.npy", logits.astype(np.float32))
    np.save(folder / f"{name}.tokens.npy", TOKENS)
    return folder / f"{name}.npy"


def npy_by_columns(folder: Path, name: str, logits: np.ndarray) -> Path:
    np.save(folder / f"{name}.npy", np.asfortranarray(logits))
    np.save(folder / f"{name}.targets.npy", np.concatenate([TOKENS[:, 1:], 0 * TOKENS[:, :1] - 100], axis=1))
    return folder / f"{name}.npy"


def npz(folder: Path, name: str, logits: np.ndarray) -> Path:
    np.savez_compressed(folder / f"{name}.npz", logits=logits, tokens=TOKENS.astype(np.int32))
    return folder / f"{name}.npz"


def safetensors(folder: Path, name: str, logits: np.ndarray) -> Path:
    held = {"logits": ("F32", logits.astype("<f4")), "tokens": ("I64", TOKENS.astype("<i8"))}
    return tensors(folder / f"{name}.safetensors", held)


def bf16(folder: Path, name: str, logits: np.ndarray) -> Path:
    cut = (logits.astype("<f4").view("<u4") >> 16).astype("<u2")
    return tensors(folder / name, {"lm_head": ("BF16", cut), "tokens": ("I32", TOKENS.astype("<i4"))})


def jsonl(folder: Path, name: str, logits: np.ndarray) -> Path:
    values = followed(logits, TOKENS)
    tops = [[dict(zip(map(str, range(VOCABULARY)), map(float, row), strict=True)) for row in text]
            for text in softmax(logits)[:, :-1]]  # fmt: skip
    return ours(folder / f"{name}.jsonl", TOKENS[:, 1:], values, tops)


def vllm(folder: Path, name: str, logits: np.ndarray) -> Path:
    """Completions: a choice per prompt; the prompt's token first, then the two likeliest."""

    def entries(text: np.ndarray, row: np.ndarray) -> list[Any]:
        found: list[Any] = [None]
        for token, logprobs in zip(text[1:], row, strict=False):
            order = np.argsort(-logprobs)
            kept = dict.fromkeys([int(token), *map(int, order[:2])])
            found.append({
                str(t): {"logprob": float(logprobs[t]), "rank": int((order == t).argmax()) + 1, "decoded_token": "x"}
                for t in kept
            })  # fmt: skip
        return found

    choices = [
        {"index": n, "text": "", "logprobs": None, "prompt_logprobs": entries(t, r)}
        for n, (t, r) in enumerate(zip(TOKENS, softmax(logits), strict=True))
    ]
    (folder / name).write_text(json.dumps({"object": "text_completion", "choices": choices}, indent=1))
    return folder / name


def vllm_chat(folder: Path, name: str, logits: np.ndarray) -> Path:
    """Chats, one a line: beside the choices, with the tokens' numbers; of the prompt's token alone."""
    records = []
    for text, values in zip(TOKENS, followed(logits, TOKENS), strict=True):
        told = [None, *({str(t): {"logprob": float(v), "rank": 3}} for t, v in zip(text[1:], values, strict=True))]
        records.append({"choices": [], "prompt_logprobs": told, "prompt_token_ids": list(map(int, text))})
    return save_lines(folder / name, records)


def sglang(folder: Path, name: str, logits: np.ndarray) -> Path:
    """A batch: the first half of each text is the prompt."""
    records = []
    for text, row, values in zip(TOKENS, softmax(logits), followed(logits, TOKENS), strict=True):
        items = [[None, int(text[0]), None], *([float(v), int(t), None] for t, v in zip(text[1:], values, strict=True))]
        tops = [None, *([[float(x[t]), int(t), None] for t in np.argsort(-x)[:3]] for x in row[:-1])]
        half = len(items) // 2
        records.append({"text": "", "meta_info": {
            "input_token_logprobs": items[:half], "output_token_logprobs": items[half:],
            "input_top_logprobs": tops[:half], "output_top_logprobs": tops[half:],
        }})  # fmt: skip
    (folder / name).write_text(json.dumps(records))
    return folder / name


def openai(folder: Path, name: str, logits: np.ndarray) -> Path:
    """Completions with `echo`."""
    choices = []
    for text, row, values in zip(TOKENS, softmax(logits), followed(logits, TOKENS), strict=True):
        choices.append({"logprobs": {
            "tokens": [f"t{t}" for t in text], "token_logprobs": [None, *map(float, values)],
            "top_logprobs": [None, *({f"t{t}": float(x[t]) for t in np.argsort(-x)[:2]} for x in row[:-1])],
            "text_offset": list(range(len(text))),
        }})  # fmt: skip
    (folder / name).write_text(json.dumps({"choices": choices}))
    return folder / name


def openai_chat(folder: Path, name: str, logits: np.ndarray) -> Path:
    records = []
    for text, row, values in zip(TOKENS, softmax(logits), followed(logits, TOKENS), strict=True):
        content = [
            {"token": f"t{t}", "logprob": float(v), "bytes": [1],
             "top_logprobs": [{"token": f"t{k}", "logprob": float(x[k]), "bytes": None} for k in np.argsort(-x)[:2]]}
            for t, v, x in zip(text[1:], values, row, strict=False)
        ]  # fmt: skip
        records.append({"choices": [{"message": {}, "logprobs": {"content": content}}]})
    return save_lines(folder / name, records)


WRITERS = {f.__name__: f for f in (npy, npy_by_columns, npz, safetensors, bf16, jsonl, vllm, vllm_chat, sglang, openai,
                                   openai_chat)}  # fmt: skip
WHOLE = ("npy", "npy_by_columns", "npz", "safetensors", "bf16")


@pytest.mark.parametrize("kind", WRITERS)
def test_an_importer_reads_what_its_engine_writes(kind: str, tmp_path: Path) -> None:
    a, b = (open_lane(WRITERS[kind](tmp_path, name, x)) for name, x in (("a", A), ("b", B)))
    found = compare_lanes(a, b)
    # Logits of size 8 in the file's format, two of them and their sums.
    rounding = 64 * {"npy": EPS32, "safetensors": EPS32, "bf16": 2.0**-7}.get(kind, float(np.finfo(float).eps))
    change = found.pairs.change
    np.testing.assert_allclose(change[~np.isnan(change)], CHANGE.ravel(), atol=rounding)
    assert a.whole is b.whole is found.pairs.whole is (kind in WHOLE)
    assert found.pairs.tokens_known
    due = A.argmax(-1) != B.argmax(-1)
    if kind in WHOLE:
        if kind != "bf16":
            np.testing.assert_array_equal(found.pairs.flip, due.ravel())
    elif kind == "vllm_chat":
        assert np.isnan(found.pairs.flip).all()
    else:
        flip = found.pairs.flip
        np.testing.assert_array_equal(flip[~np.isnan(flip)], due[:, :-1].ravel())


def test_every_importer_is_tested(tmp_path: Path) -> None:
    forms = {open_lane(write(tmp_path, f"{kind}_x", A)).form for kind, write in WRITERS.items()}
    forms |= {open_lane(llama_base(tmp_path / "base", A, TOKENS)).form}
    assert forms == {one.name for one in IMPORTERS}


def test_a_list_and_a_whole_distribution_can_be_compared(tmp_path: Path) -> None:
    targets = np.concatenate([TOKENS[:, 1:], 0 * TOKENS[:, :1]], axis=1)
    np.savez(tmp_path / "a.npz", logits=A[:, :-1], targets=targets[:, :-1])
    found = compare_lanes(open_lane(tmp_path / "a.npz"), open_lane(jsonl(tmp_path, "b", B)))
    np.testing.assert_allclose(found.pairs.change, CHANGE.ravel(), atol=1e-12)
    assert not found.pairs.whole


def test_llama_cpp_s_base(tmp_path: Path) -> None:
    """Second halves of chunks, in steps of at most 16 / 65535 nats; what is too unlikely is left out of both."""
    a, b = A * 2, B * 2
    a[..., 0] = b[..., 0] = -60.0  # below what it can hold
    tokens = np.where(TOKENS == 0, 1, TOKENS)
    tokens[0, -1] = 0
    lanes = [open_lane(llama_base(tmp_path / name, x, tokens)) for name, x in (("a", a), ("b", b))]
    found = compare_lanes(*lanes)
    half = A.shape[1] // 2
    assert len(found.pairs) == len(A) * (A.shape[1] - 1 - half)
    step = 16 / 65535
    due = (followed(b, tokens) - followed(a, tokens))[:, half:]
    bounded = tokens[:, half + 1 :] == 0
    change = found.pairs.change.reshape(due.shape)
    np.testing.assert_allclose(change[~bounded], due[~bounded], atol=step + 64 * EPS32)
    p, q = np.exp(softmax(a)), np.exp(softmax(b))
    kl = (p * (np.log(p) - np.log(q))).sum(-1)[:, half:-1]
    # d KL = sum p |d log q| + |d p| |log p / q|: steps of both lanes, over what was left out, e^-60.
    np.testing.assert_allclose(found.pairs.kl.reshape(kl.shape), kl, atol=step * (1 + 4 * np.abs(due).max()))
    assert lanes[0].notes[1].startswith("1 chosen token")
    assert not found.pairs.odd.any()


def test_llama_cpp_s_base_against_whole_logits(tmp_path: Path) -> None:
    base = open_lane(llama_base(tmp_path / "base", A, TOKENS))
    half = A.shape[1] // 2
    np.savez(tmp_path / "b.npz", logits=B[:, half:-1], targets=TOKENS[:, half + 1 :])
    found = compare_lanes(base, open_lane(tmp_path / "b.npz"))
    np.testing.assert_allclose(found.pairs.change, CHANGE[:, half:].ravel(), atol=16 / 65535)


def test_vllm_s_likeliest_token_is_not_its_prompt_s_by_itself(tmp_path: Path) -> None:
    """With `prompt_logprobs=0` only the prompt's token is told: the likeliest where it has rank 1."""

    def lane(rank: int) -> Any:
        told = [None, {"5": {"logprob": -1.0, "rank": rank}}]
        (tmp_path / f"{rank}").write_text(json.dumps({"prompt_logprobs": told}))
        return open_lane(tmp_path / f"{rank}")

    assert compare_lanes(lane(1), lane(1)).pairs.flip[1] == 0
    assert np.isnan(compare_lanes(lane(1), lane(2)).pairs.flip).all()


def test_generated_texts_are_compared_up_to_where_they_part(tmp_path: Path) -> None:
    a = ours(tmp_path / "a", [[1, 2, 3, 4], [1, 2]], [[-1, -2, -3, -4], [-1, -1]])
    b = ours(tmp_path / "b", [[1, 2, 9, 4], [1, 2]], [[-1, -2, -3, -4], [-1, -1]])
    found = compare_lanes(open_lane(a), open_lane(b))
    assert found.pairs.cut == (0,)
    assert list(found.pairs.position) == [0, 1, 0, 1]
    assert found.exit_code == 3


# ------------------------------------------------------------------------------------------ refusals
def header(shape: str, dtype: str = "<f4") -> bytes:
    written = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(written)) + written


def zipped(**members: bytes) -> bytes:
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, payload in members.items():
                archive.writestr(f"{name}.npy", payload)
        return stream.getvalue()


def saved(array: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        np.save(stream, array)
        return stream.getvalue()


LINE = {"tokens": [1, 2], "logprobs": [-1.0, -2.0]}
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "none of logits"),
    "text": (b"Once upon a time", "none of logits"),
    "no position": (b'{"tokens": [], "logprobs": []}', "no position"),
    "half a line": (json.dumps(LINE).encode() + b'\n{"tokens": [1', "line 2: not JSON"),
    "a number": (json.dumps(LINE).encode() + b"\n17", "line 2: not an object"),
    "unequal": (json.dumps(LINE | {"tokens": [1]}).encode(), "record 1 has 1 tokens, 2 logprobs"),
    "texts for numbers": (json.dumps(LINE | {"logprobs": ["-1", -2]}).encode(), r"logprobs\[0\]"),
    "endless number": (b'{"tokens": [1], "logprobs": [1' + b"0" * 400 + b"]}", "record 1"),
    "a token beyond 64 bits": (b'{"tokens": [1' + b"0" * 30 + b'], "logprobs": [-1]}', r"tokens"),
    "deep": (b'{"logprobs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "levels"),
    "vllm without its token": (
        b'{"prompt_logprobs": [null, {"4": {"logprob": -1}}], "prompt_token_ids": [1, 2]}', "token 1 of the prompt, 2"),
    "vllm of other lengths": (
        b'{"prompt_logprobs": [null], "prompt_token_ids": [1, 2]}', "2 prompt_token_ids, but 1"),
    "vllm of nothing": (b'{"prompt_logprobs": [{"4": {"rank": 1}}]}', "logprob is missing"),
    "sglang's text": (b'{"meta_info": {"input_token_logprobs": [["x", 1]]}}', "a log-probability and a token"),
    "sglang's lengths": (
        b'{"meta_info": {"input_token_logprobs": [[-1, 1]], "input_top_logprobs": [null, null]}}', "1 input_token"),
    "sglang's endless number": (
        b'{"meta_info": {"input_token_logprobs": [[-1' + b"0" * 400 + b", 1]]}}", "record 1"),
    "sglang's token beyond 64 bits": (
        b'{"meta_info": {"input_token_logprobs": [[-1, 1' + b"0" * 30 + b"]]}}", "a token's number"),
    "openai's lengths": (
        b'{"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1, -2]}}]}', "1 tokens, 2 token_logprobs"),
    "npy of words": (saved(np.array(["a", "b"])), "not numbers"),
    "npy of objects": (header("(3,)", "|O"), "not numbers"),
    "npy of whole numbers": (saved(np.zeros((3, 4), dtype=np.int64)), "not logits"),
    "npy of one axis": (saved(np.zeros(3)), r"shape \[3\]"),
    "npy of nothing": (saved(np.zeros((0, 4))), r"shape \[0, 4\]"),
    "npy cut off": (saved(np.zeros((30, 4)))[:-9], "only"),
    "npy that claims much": (header("(99999999999, 99999999999)"), "only"),
    "npy that claims less than nothing": (header("(-3, -4)"), "only"),
    "npy without a header": (b"\x93NUMPY", "EOF"),
    "npy of half a header": (b"\x93NUMPY\x01\x00\x0a\x00{'descr': (", "header"),
    "npz that claims much": (zipped(logits=header("(99999999, 9999999)")), "only"),
    "npz of three": (zipped(x=saved(A[0]), y=saved(A[0]), z=saved(A[0])), "none of them called 'logits'"),
    "npz cut off": (zipped(logits=saved(A))[:-40], "damaged"),
    "npz of objects": (zipped(logits=header("(3,)", "|O")), "not numbers"),
    "tokens of another length": (zipped(logits=saved(A[0]), tokens=saved(np.zeros(7, dtype=int))), r"shape \[7\]"),
    "tokens of fractions": (zipped(logits=saved(A[0]), tokens=saved(np.zeros(20))), "not whole numbers"),
    "tokens beyond": (zipped(logits=saved(A[0]), tokens=saved(np.full(20, 999))), "beyond its vocabulary"),
    "safetensors cut off": (struct.pack("<Q", 40) + b"{", "cut off"),
    "base cut off in its header": (b"_logits_\0\0", "within its header"),
    "base that claims much": (b"_logits_" + struct.pack("<3i", 512, 2**31 - 1, 4), "its header names"),
    "base of negative size": (b"_logits_" + struct.pack("<3i", -4, 10, 1), "its header names"),
    "base cut off": (b"_logits_" + struct.pack("<3i", 512, 1000, 4) + b"\0" * 400, "bytes are due"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_words(name: str, tmp_path: Path) -> None:
    payload, said = BAD[name]
    (tmp_path / "x").write_bytes(payload)
    with pytest.raises(DatasetError, match=said) as refused:
        open_lane(tmp_path / "x")
    assert len(str(refused.value)) < 1000


def test_bad_tokens_of_a_base_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="of a vocabulary of 11"):
        open_lane(llama_base(tmp_path / "x", A, TOKENS + VOCABULARY))


def test_more_sequences_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_DOCUMENTS >= 1 << 16
    monkeypatch.setattr("drift.reading.logits.importers.base.MOST_DOCUMENTS", 3)
    with pytest.raises(DatasetError, match="4 sequences; at most 3"):
        open_lane(save_lines(tmp_path / "x", [LINE] * 4))


def test_too_long_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift.reading.logits.importers.base.MOST_LOGPROB_BYTES", 20)
    with pytest.raises(DatasetError, match="at most 20 are read"):
        open_lane(save_lines(tmp_path / "x", [LINE]))


def test_an_archive_that_unfolds_endlessly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift.reading.logits.importers.npy.MOST_CELL_BYTES", 1000)
    np.savez_compressed(tmp_path / "x.npz", logits=np.zeros((50, 50)))
    with pytest.raises(DatasetError, match="at most 1,000 are read"):
        open_lane(tmp_path / "x.npz")


def test_lanes_of_different_texts_are_refused(tmp_path: Path) -> None:
    lanes = {
        "a": ours(tmp_path / "a", [[1, 2]], [[-1, -2]]),
        "two": ours(tmp_path / "two", [[1, 2]] * 2, [[-1, -2]] * 2),
        "other": ours(tmp_path / "other", [[7, 2]], [[-1, -2]]),
        "words": save_lines(tmp_path / "words", [{"tokens": ["x"], "logprobs": [-1]}]),
    }
    a = open_lane(lanes["a"])
    for name, said in (("two", "1 sequences.*2"), ("other", "no token in common"), ("words", "tokens do not tell")):
        with pytest.raises(DatasetError, match=said):
            compare_lanes(a, open_lane(lanes[name]))
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", A[..., :-1])
    with pytest.raises(DatasetError, match="vocabulary of 11"):
        compare_lanes(open_lane(tmp_path / "a.npy"), open_lane(tmp_path / "b.npy"))
