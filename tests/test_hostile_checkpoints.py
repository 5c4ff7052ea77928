"""Checkpoints that lie: what an index, a header or a configuration says is held against what is there."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift.errors import CheckpointError
from drift.running.checkpoints import fetching, identity, shapes
from drift.running.checkpoints.gguf_headers import check_gguf, read_gguf
from drift.running.checkpoints.headers import INDEX, check_folder
from drift.running.checkpoints.names import embedded
from drift.running.checkpoints.resolving import resolve

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "vocab_size": 6,
    "max_position_embeddings": 32,
}
SHAPES = {
    "model.embed_tokens.weight": [6, 4],
    "model.layers.0.mlp.up_proj.weight": [8, 4],
    "model.layers.1.mlp.up_proj.weight": [8, 4],
}


def tensor_file(path: Path, header: object, data: int = 4096) -> Path:
    """A safetensors file with a header of one's own."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return path


def header(given: dict[str, list[int]]) -> tuple[dict[str, Any], int]:
    made, at = {}, 0
    for name, shape in given.items():
        size = 4 * shape[0] * shape[1]
        made[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return made, at


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    folder = tmp_path / "sound"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensor_file(folder / "model.safetensors", *header(SHAPES))
    return folder


def test_a_sound_folder_is_sound(sound: Path) -> None:
    check_folder(sound)
    assert fetching.verify(str(sound)) == []
    assert shapes.shape(str(sound)) is not None


# ---------------------------------------------------------------- indexes (classes 3 and 4)
ELSEWHERE = ("../other/model.safetensors", "/tmp/model.safetensors", "sub/model.safetensors", "..", "model.txt", "a\0b")


@pytest.mark.parametrize("name", [*ELSEWHERE, "pytorch_model.bin", "../x.pt", "weights.PKL"])
def test_an_index_that_names_what_is_no_file_of_the_folder_is_refused(sound: Path, name: str) -> None:
    weight_map = {"a": "model.safetensors", "b": name}
    (sound / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for act in (check_folder, lambda folder: identity.identity(str(folder)), lambda f: fetching.fetch(str(f))):
        with pytest.raises(CheckpointError, match=r"index\.json: names .*(refused|no safetensors file)"):
            act(sound)
    assert "names" in fetching.verify(str(sound))[0]


def test_a_pickle_beside_a_decoy_is_never_opened(sound: Path) -> None:
    (sound / "model.safetensors").rename(sound / "decoy.safetensors")
    os.mkfifo(sound / "weights.bin")  # opening it would never end
    (sound / INDEX).write_text(json.dumps({"weight_map": {"a": "weights.bin"}}))
    with pytest.raises(CheckpointError, match="pickled weights are refused"):
        fetching.fetch(str(sound))


def test_an_adapter_whose_base_lies_elsewhere_is_refused(sound: Path) -> None:
    (sound / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter"):
        check_folder(sound)


# ---------------------------------------------------------------- remembered hashes (class 3)
def settled(folder: Path) -> None:
    """Wait until its files are old enough to be remembered."""
    time.sleep(max(0.0, 0.15 - (time.time() - max(path.stat().st_ctime for path in folder.iterdir()))))


def test_other_bytes_of_the_same_size_and_time_are_another_checkpoint(sound: Path) -> None:
    settled(sound)
    before = identity.identity(str(sound))
    path = sound / "model.safetensors"
    state = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert identity.identity(str(sound)) != before


def test_verify_reads_the_bytes_whatever_is_remembered(sound: Path) -> None:
    settled(sound)
    identity.identity(str(sound))
    memory = Path(os.environ["DRIFT_CACHE"]) / "hashes.json"
    known = json.loads(memory.read_text())
    (name,) = (name for name in known if name.endswith(".safetensors"))
    known[name][-1] = "0" * 64
    memory.write_text(json.dumps(known))
    (problem,) = fetching.verify(str(sound))
    assert "bytes are others" in problem
    assert fetching.verify(str(sound)) == []  # what was read is remembered now


@pytest.mark.parametrize("text", ["[]", "{", '{"x": 1}', "[" * 10_000, '{"a": [1, 2, 3]}', "\0"])
def test_a_damaged_memory_of_hashes_only_costs_time(sound: Path, text: str) -> None:
    before = identity.identity(str(sound))
    (Path(os.environ["DRIFT_CACHE"]) / "hashes.json").write_text(text)
    assert identity.identity(str(sound)) == before


# ---------------------------------------------------------------- safetensors headers (class 10)
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, object] = {
    "no object": [1, 2],
    "an entry that is none": {"a": 1},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "negative": {"a": {**ENTRY, "data_offsets": [-8, 0]}},
    "backwards": {"a": {**ENTRY, "data_offsets": [8, 0]}},
    "infinite": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1e999]}}',
    "text": {"a": {**ENTRY, "data_offsets": ["0", "8"]}},
    "past the end": {"a": {**ENTRY, "data_offsets": [8192, 8200]}},
    "overlapping": {"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}},
    "another size": {"a": {**ENTRY, "shape": [3]}},
    "a negative axis": {"a": {**ENTRY, "shape": [-2]}},
    "a true axis": {"a": {**ENTRY, "shape": [True, 2]}},
    "many axes": {"a": {**ENTRY, "shape": [2**60] * 1000}},
    "deep": b"[" * 100_000,
    "long numbers": b'{"a": ' + b"9" * 5000 + b"}",
    "metadata a list": {"__metadata__": [1], "a": ENTRY},
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie_are_refused(sound: Path, case: str) -> None:
    tensor_file(sound / "model.safetensors", HEADERS[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        check_folder(sound)
    assert fetching.verify(str(sound)) != []


def test_a_pipe_and_a_folder_are_no_weights(sound: Path) -> None:
    os.mkfifo(sound / "more.safetensors")
    with pytest.raises(CheckpointError, match="pipe, not a file"):
        check_folder(sound)
    (sound / "more.safetensors").unlink()
    (sound / "more.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="a folder, not a file"):
        check_folder(sound)


# ---------------------------------------------------------------- configurations (class 10)
@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 1e999, float("nan"), "12", True, [], {}, 10**12, 2.0])
def test_sizes_that_are_none_are_refused(sound: Path, name: str, value: object) -> None:
    (sound / "config.json").write_text(json.dumps({**CONFIG, name: value}))
    for act in (check_folder, lambda folder: shapes.shape(str(folder))):
        with pytest.raises(CheckpointError, match=rf"{name} is .*whole number from 1"):
            act(sound)
    assert name in fetching.verify(str(sound))[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, "weights are those of 2 layers"),
        ({"num_hidden_layers": 1}, "weights are those of 2 layers"),
        ({"vocab_size": 7}, "is 6 x 4"),
        ({"hidden_size": 8}, "is 6 x 4"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(sound: Path, change: dict[str, int], said: str) -> None:
    (sound / "config.json").write_text(json.dumps(CONFIG | change))
    assert said in fetching.verify(str(sound))[0]


def test_layers_that_predict_further_tokens_may_stand_behind(sound: Path) -> None:
    (sound / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1, "num_nextn_predict_layers": 1}))
    assert fetching.verify(str(sound)) == []


@pytest.mark.parametrize("text", ["[" * 10_000 + "]" * 10_000, "[]", '{"a": ' + "9" * 5000 + "}", "\ud800"])
def test_a_config_of_the_wrong_kind_or_depth_is_refused(sound: Path, text: str) -> None:
    (sound / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        resolve(str(sound))


# ---------------------------------------------------------------- GGUF (class 10)
def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(path: Path, entries: dict[str, bytes], tensors: dict[str, list[int]] | None = None) -> Path:
    given = tensors or {}
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(given), len(entries))
    raw += b"".join(text(key) + value for key, value in entries.items())
    for name, shape in given.items():
        raw += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + bytes(12)
    path.write_bytes(raw + bytes(64))
    return path


def number(value: int) -> bytes:
    return struct.pack("<IQ", 10, value)


LLAMA = {
    "general.architecture": struct.pack("<I", 8) + text("llama"),
    "llama.block_count": number(1),
    "llama.embedding_length": number(4),
    "llama.attention.head_count": number(2),
}


def test_a_gguf_header_is_read(tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf", LLAMA, {"token_embd.weight": [4, 6], "blk.0.attn_q.weight": [4, 4]})
    assert read_gguf(path).tensors["token_embd.weight"] == (4, 6)
    check_gguf(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llama.attention.head_count": number(0)}, "num_attention_heads is 0"),
        ({"llama.block_count": number(2**40)}, "num_hidden_layers is"),
        ({"llama.block_count": number(5000)}, "weights are those of 1 layers"),
        ({"llama.embedding_length": number(8)}, "hidden_size 8"),
        ({"x": struct.pack("<IIQ", 9, 9, 1) * 5000}, "array of arrays"),
        ({"x": struct.pack("<IIQ", 9, 4, 2**63)}, "entries of an array"),
        ({"x": struct.pack("<IQ", 8, 2**40)}, "a text of"),
        ({"x": struct.pack("<I", 77)}, "unknown type"),
    ],
)
def test_gguf_files_that_lie_are_refused(tmp_path: Path, change: dict[str, bytes], said: str) -> None:
    path = gguf(tmp_path / "a.gguf", LLAMA | change, {"token_embd.weight": [4, 6], "blk.0.attn_q.weight": [4, 4]})
    with pytest.raises(CheckpointError, match=said):
        fetching.fetch(str(path))


# ---------------------------------------------------------------- manifests (class 7)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.update(checkpoints=[]),
        lambda m: m.update(checkpoints=None),
        lambda m: m.update(schema="1"),
        lambda m: m["checkpoints"]["a"].pop("family"),
        lambda m: m["checkpoints"]["a"]["shape"].update(layers=-1),
        lambda m: m["checkpoints"]["a"]["gguf"].update(sha256="../../x"),
        lambda m: m["checkpoints"]["a"]["wheels"][0].update(file="../../etc/passwd"),
        lambda m: m["checkpoints"]["a"].update(wheels=7),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, Any]], object]
) -> None:
    monkeypatch.delenv("DRIFT_CHECKPOINTS", raising=False)
    manifest: dict[str, Any] = {
        "schema": 1,
        "checkpoints": {"a": json.loads(json.dumps(next(iter(embedded().values()))))},
    }
    own = tmp_path / "checkpoints.json"
    own.write_text(json.dumps(manifest))
    monkeypatch.setenv("DRIFT_CHECKPOINTS", str(own))
    assert list(embedded()) == ["a"]
    spoil(manifest)
    own.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="correct DRIFT_CHECKPOINTS"):
        embedded()
