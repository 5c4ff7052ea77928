"""A small real GGUF file in small real wheels, and fixtures that fetch it; bound by name, see `sweep_fixtures`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from drift.running.checkpoints import fetching

NAME = "tiny-llama"
ROOT = Path(__file__).resolve().parent.parent


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(plain)))
    return [table[byte] for byte in range(256)]


def write_gguf(path: Path, seed: int = 0, ascii_only: bool = False) -> None:
    """Write a tiny Llama of random weights; with `ascii_only`, one that hardly ever says anything but ASCII."""
    import gguf

    rng = np.random.default_rng(seed)
    tokens = [*byte_alphabet(), "th", "the", "<|end|>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)

    def add(name: str, *shape: int, quantised: bool = False) -> None:
        weights = rng.standard_normal(shape).astype(np.float32) / 8
        if ascii_only and name == "token_embd.weight":
            weights[128:] = 0  # token N is byte N; a logit of 0 is below the largest of the others
        if quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weights)

    add("token_embd.weight", len(tokens), 32, quantised=True)
    for block in range(2):
        for name, shape in {
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (64, 32),
            "ffn_up": (64, 32),
            "ffn_down": (32, 64),
        }.items():
            add(f"blk.{block}.{name}.weight", *shape, quantised=True)
        add(f"blk.{block}.attn_norm.weight", 32)
        add(f"blk.{block}.ffn_norm.weight", 32)
    add("output_norm.weight", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, gguf: Path, name: str = NAME) -> Path:
    """Cut the GGUF file into two wheels, and describe them as the real manifest does."""
    data = gguf.read_bytes()
    half = len(data) // 2
    wheels = []
    for part, piece in enumerate((data[:half], data[half:]), start=1):
        file = f"drift_no_such_project_part{part}-1.0.0-py3-none-any.whl"
        member = f"part{part}/data/piece.bin"
        with zipfile.ZipFile(folder / file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"part{part}/__init__.py", "raise RuntimeError('wheels are never imported')\n")
            archive.writestr(member, piece)
        wheels.append(
            {
                "project": f"drift-no-such-project-part{part}",
                "version": "1.0.0",
                "file": file,
                "bytes": (folder / file).stat().st_size,
                "sha256": sha256(folder / file),
                "member": member,
            }
        )
    shape = {
        "layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "vocab_size": 259,
        "parameters": 26880,
        "max_positions": 128,
        "tied": True,
    }
    entry = {
        "family": "Llama",
        "original": "nobody/tiny",
        "license": "CC0",
        "license_note": "made by the tests",
        "weights": "random numbers",
        "gguf": {"bytes": len(data), "sha256": sha256(gguf)},
        "wheels": wheels,
        "shape": shape,
    }
    path = folder / "checkpoints.json"
    path.write_text(json.dumps({"schema": 1, "checkpoints": {name: entry}}))
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a GGUF file, its two wheels and a manifest."""
    folder = tmp_path_factory.mktemp("made")
    write_gguf(folder / "tiny.gguf")
    write_manifest(folder, folder / "tiny.gguf")
    return folder


@pytest.fixture
def house(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheelhouse of our own, a manifest of our own, an empty cache, and no network."""
    folder = tmp_path / "house"
    shutil.copytree(made, folder)
    monkeypatch.setenv("DRIFT_CHECKPOINTS", str(folder / "checkpoints.json"))
    monkeypatch.setenv("DRIFT_WHEELHOUSE", str(folder))
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture(scope="session")
def fetched(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the tiny checkpoint was really fetched, once for all tests; copy before changing it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIFT_CHECKPOINTS", str(made / "checkpoints.json"))
        patch.setenv("DRIFT_WHEELHOUSE", str(made))
        patch.setenv("DRIFT_CACHE", str(cache))
        fetching.fetch(NAME, lambda _: None)
    return cache


@pytest.fixture
def ready(house: Path, fetched: Path, tmp_path: Path) -> Path:
    """The fetched entry, in a cache that the test may spoil."""
    shutil.copytree(fetched, tmp_path / "cache")
    return tmp_path / "cache" / "checkpoints" / NAME


def leftovers(cache: Path) -> list[Path]:
    return [path for place in ("making", "checkpoints", "gguf") for path in (cache / place).glob("*")]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drift.checkpoints", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)  # type: ignore[call-overload]
