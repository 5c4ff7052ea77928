"""What is fuzzed: every format that comes from outside, sound examples of it, and what is done with an input.

A probe ends, or raises :class:`drift.errors.DriftError` (or what a reader promises to raise in its place). Anything
else is a finding.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_dumps
import fuzz_strategies as strategies
import h5py
import logits_tools
import numpy as np
import synthetic
import test_hostile_checkpoints as folders
from hypothesis import strategies as st

from drift import dataset, report
from drift._outside import OutsideError
from drift.dataset.sweep import Sweep
from drift.dataset.thinning import thin
from drift.errors import DriftError
from drift.reading import logits
from drift.reading.controls.gating import NO_CONTROLS
from drift.reading.diagnose import as_dict, diagnose, open_dump, page
from drift.reading.plateau import curves, plateau
from drift.reading.plateau.csv_files import from_csv
from drift.reading.summary import inventory, reproducing
from drift.running import protocols
from drift.running.checkpoints import shapes
from drift.running.checkpoints.gguf_headers import check_gguf
from drift.running.checkpoints.headers import INDEX, check_folder
from drift.running.checkpoints.names import embedded
from drift.running.checkpoints.resolving import resolve
from drift.running.sweep.checking import check
from drift.running.sweep.config import AXES, OPTIONS, load_config
from drift.running.sweep.planning import plan
from drift.running.sweep.preview import preview_json, preview_words
from drift.running.sweep.recomputing import requests
from drift.running.sweep.state import Folder

REFUSALS = (DriftError, OutsideError)
SMALL: dict[str, Any] = {"model": "tiny", "layers": 4, "documents": 1, "tokens": 48, "chunk_size": 16}


@dataclass(frozen=True)
class Format:
    """One thing that comes from outside.

    Attributes
    ----------
    inputs : strategy
        Of inputs.
    probe : callable
        Takes an input and an empty folder of its own.
    share : float
        How many inputs it gets, compared with the others: what takes long gets fewer.
    """

    inputs: strategies.Strategy
    probe: Callable[[Any, Path], object]
    share: float = 1.0


@cache
def cell() -> Any:
    """A sound cell."""
    return synthetic.cell(**SMALL)


@cache
def thinned() -> Any:
    """A sound cell that was thinned."""
    return thin(cell(), 4, 12)


# ---------------------------------------------------------------- configurations and plans
YAML = (
    "model: smollm2-135m-instruct\ntokens: 64\nchunk_size: [8, 16]\ndtype: [bf16, fp32]\n",
    "name: mine\nseed: 1\ngrids:\n  - model: [gemma-3-270m]\n    protocol: [append, 'shifted(append,step=2)']\n"
    "    documents: 2\n  - model: smollm2-135m-instruct\n    corpus: random\n    tokens: [64, 128]\n",
)
WORDS = [
    *AXES, *OPTIONS, "grids:", "- ", "? ", "&a", "*a", "<<:", "!!int", "!!timestamp", "2021-99-99", "1:60:60", "0x",
    "[", "]", "{", "}", "|", ">", "'", '"', "#", "---", "...", "smollm2-135m-instruct", "append",
    "decode(append,tokens=9)", "bf16", "9" * 5000, ".inf", "~", "yes", "file:/dev/zero", "\t",
]  # fmt: skip


def probe_yaml(payload: bytes, folder: Path) -> None:
    (folder / "c.yaml").write_bytes(payload)
    made = plan(load_config(folder / "c.yaml"), folder / "out", dry_run=True)
    preview_words(preview_json(made, ()))


PLAN: dict[str, Any] = {
    "schema": 1, "name": "mine", "description": "", "seed": 0, "at_work_on": "",
    "config": {"name": "mine", "seed": 0, "grids": [{"model": ["m"], "tokens": [64], "half_matmul": "auto"}]},
    "cells": [
        {"file": "a.nc", "hash": "0" * 64, "state": "done", "checked": [1, 2, 3, 4], "config": {"model": "m"}},
        {"file": "b.nc", "hash": "1" * 64, "state": "failed", "reason": "no memory", "config": {"model": "m"}},
    ],
    "failures": [{"file": "b.nc", "cell": "m bf16 append", "reason": "no memory", "config": {"model": "m"}}],
    "groups": [{"title": "t", "device": "cpu", "dtype": "bf16", "cells": [], "estimated_s": 1.0, "elapsed_s": 2.0}],
}  # fmt: skip
PLAN_KEYS = [*PLAN, "grids", "file", "path", "state", "reason", "hash", "model", "cell", "device", "dtype"]


def probe_plan(payload: bytes, folder: Path) -> None:
    (folder / "sweep.json").write_bytes(payload)
    check(folder).lines()
    survey = Folder(folder).survey({"a.nc": "0" * 64, "b.nc": "1" * 64})
    assert all(isinstance(failure["reason"], str) for failure in survey.failures.values())
    with contextlib.suppress(*REFUSALS):
        requests(folder)
    read = dataset.open_sweep(folder)
    sweep = Sweep([cell()], plan=read.plan, failures=read.failures, problems=read.problems, folder=folder)
    told(sweep)


def told(sweep: Sweep) -> None:
    """What pages say of a sweep."""
    reproducing.reproduce(sweep)
    inventory.failures(sweep)
    inventory.problems(sweep)
    inventory.contents(sweep)
    inventory.provenance(sweep)


# ---------------------------------------------------------------- cells
CELL: dict[str, Any] = {
    "config_json": {
        "model": "m", "dtype": "bf16", "chunk_size": 16, "protocol": "append", "documents": 1, "tokens": 48, "corpus":
        "pydoc", "attn_implementation": "sdpa", "device": "cpu", "logit_stride": 1, "half_matmul": "float32", "seed": 0,
        "checkpoint_sha256": "0" * 64, "corpus_sha256": "1" * 64, "floor": {"seeds": [1, 2], "scale": 1.0},
        "versions": {"numerics": "1", "schema": "2", "torch": "2", "transformers": "5"},
    },
    "versions_json": {"torch": "2", "python": "3"},
    "numerics_json": {"deterministic": True},
    "threads": 2, "git_dirty": 0, "seed": 0, "git_commit": "0" * 40, "schema_version": "2", "logit_stride": 1,
    "elapsed_s": 1.0, "bos_token_id": -1, "protocol_summary": "words", "drift_version": "0.1", "device_name": "cpu",
}  # fmt: skip
CELL_KEYS = [*CELL, *CELL["config_json"], "layers", "layers_of", "bits", "seeds", "scale"]


def probe_attributes(document: Any, folder: Path) -> None:
    given = document if isinstance(document, dict) else {"config_json": document}
    attrs = {
        k: strategies.as_json(v).decode("utf-8", "replace") if str(k).endswith("_json") else v for k, v in given.items()
    }
    if "config_json" in attrs:
        attrs["config_sha256"] = hashlib.sha256(attrs["config_json"].encode()).hexdigest()
    with h5py.File(folder / "a.nc", "w") as file:
        for name, value in attrs.items():
            try:
                file.attrs[str(name)] = value
            except Exception:  # what HDF5 does not hold cannot come from a file
                continue
    requests(folder)
    ds = (thinned() if "thinned_json" in attrs else cell()).copy()
    ds.attrs = {**ds.attrs, **{str(k): v for k, v in attrs.items()}}
    dataset.validate(ds)
    told(Sweep([ds]))
    thin(ds, 3, 8)


@cache
def cell_bytes() -> bytes:
    """The file of a sound cell."""
    return bytes(cell().drop_encoding().to_netcdf(None, engine="h5netcdf"))


def probe_netcdf(payload: bytes, folder: Path) -> None:
    (folder / "a.nc").write_bytes(payload)
    with contextlib.suppress(*REFUSALS):
        dataset.read_attributes(folder / "a.nc")
    ds = dataset.read(folder / "a.nc")
    told(Sweep([ds]))
    ds.drift.plateau("hidden_rel_l2")


# ---------------------------------------------------------------- checkpoints
def probe_safetensors(payload: bytes, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(folders.CONFIG))
    (folder / "model.safetensors").write_bytes(payload)
    try:
        check_folder(folder)
    finally:
        shapes.shape(str(folder))


def with_weights(folder: Path) -> None:
    folders.tensor_file(folder / "model.safetensors", *folders.header(folders.SHAPES))


def probe_config(payload: bytes, folder: Path) -> None:
    with_weights(folder)
    (folder / "config.json").write_bytes(payload)
    resolve(str(folder))
    try:
        check_folder(folder)
    finally:
        shapes.shape(str(folder))


def probe_index(payload: bytes, folder: Path) -> None:
    with_weights(folder)
    (folder / "config.json").write_text(json.dumps(folders.CONFIG))
    (folder / INDEX).write_bytes(payload)
    check_folder(folder)


@cache
def gguf_bytes() -> bytes:
    """The header of a sound GGUF file."""
    folder = Path(os.environ["DRIFT_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"token_embd.weight": [4, 6], "blk.0.attn_q.weight": [4, 4]}
    return folders.gguf(folder / "sound.gguf", folders.LLAMA, tensors).read_bytes()


def packed(entries: list[Any]) -> bytes:
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries))
    for key, kind, size in entries:
        raw += folders.text(key) + struct.pack("<I", kind) + struct.pack("<IQ", kind % 13, size)
    return raw + bytes(64)


def probe_gguf(payload: bytes, folder: Path) -> None:
    (folder / "a.gguf").write_bytes(payload)
    resolve(str(folder / "a.gguf"))
    try:
        check_gguf(folder / "a.gguf")
    finally:
        shapes.shape(str(folder / "a.gguf"))


@cache
def manifest() -> dict[str, Any]:
    """The manifest that drift carries."""
    os.environ.pop("DRIFT_CHECKPOINTS", None)
    return {"schema": 1, "checkpoints": dict(embedded())}


def probe_manifest(payload: bytes, folder: Path) -> None:
    (folder / "m.json").write_bytes(payload)
    os.environ["DRIFT_CHECKPOINTS"] = str(folder / "m.json")
    try:
        for name in embedded():
            resolve(name)
            shapes.shape(name)
    finally:
        del os.environ["DRIFT_CHECKPOINTS"]


# ---------------------------------------------------------------- curves, dumps, labels, arguments
CSV = (
    "document,step,value\n" + "".join(f"a,{i},0.{i + 1}\n" for i in range(9)),
    "curve,document,step,value\n" + "".join(f"c,{d},{i},{i}e-3\n" for d in (1, 2) for i in range(6)),
)


def probe_csv(payload: bytes, folder: Path) -> None:
    (folder / "a.csv").write_bytes(payload)
    curves.judge(from_csv(folder / "a.csv"), NO_CONTROLS)


DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1, "I32": 4}


def dump(steps: int, rows: int, width: int = 4, dtype: str = "F32", left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The header of a small dump."""
    made, at = {}, 0
    for step in range(steps):
        for kind, shape in {
            "layer.0.hidden": [rows, width], "layer.1.hidden": [rows, width], "block.1.key": [2, rows, 2],
            "block.1.value": [2, rows, 2], "block.1.cache_key": [2, rows * (step + 1), 2], "logits": [rows, 6],
            "final": [rows, width],
        }.items():  # fmt: skip
            if kind not in left_out:
                size = DTYPES[dtype] * int(np.prod(shape))
                made[f"step.{step}.{kind}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
                at += size
    return made


KINDS = ("layer.0.hidden", "layer.1.hidden", "block.1.key", "block.1.cache_key", "logits", "final")


def sound_dumps() -> strategies.Strategy:
    """Headers of dumps that fit together more often than not."""
    some = st.lists(st.sampled_from(KINDS), max_size=3).map(tuple)
    dtypes = st.sampled_from(list(DTYPES))
    cuts = st.sampled_from([(3, 4), (1, 12), (4, 3), (6, 2), (12, 1), (2, 4), (0, 4)])
    made = st.builds(lambda cut, *more: dump(*cut, *more), cuts, st.sampled_from([4, 4, 4, 2, 1]), dtypes, some)
    return made.map(strategies.as_json)


def probe_dump(headers: tuple[bytes, bytes], folder: Path) -> None:
    dumps = []
    for name, header in zip("ab", headers, strict=True):
        (folder / name).mkdir()
        data = np.random.default_rng(len(header) % 7).standard_normal(4096).astype("<f4").tobytes()
        (folder / name / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
        dumps.append(open_dump(folder / name))
    found = diagnose(*dumps)
    page(found)
    json.dumps(as_dict(found))


# ---------------------------------------------------------------- logits
def logit_files() -> strategies.Strategy:
    """Files of every importer, sound and spoilt."""
    drawn = logits_tools.drawn((2, 6, 5))
    tokens = logits_tools.tokens_of(drawn)
    base = b"_logits_" + struct.pack("<3i", 6, 5, 2) + tokens.astype("<i4").tobytes() + bytes(range(80)) * 2
    header = {"logits": {"dtype": "F32", "shape": [2, 6, 5], "data_offsets": [0, 240]}}
    raw = json.dumps(header).encode()
    stored = struct.pack("<Q", len(raw)) + raw + drawn.astype("<f4").tobytes()
    files = [base, stored]
    for save in (lambda file: np.save(file, drawn), lambda file: np.savez(file, logits=drawn, tokens=tokens)):
        with io.BytesIO() as stream:
            save(stream)
            files.append(stream.getvalue())
    item, prompt = [-1.5, 3, None], [None, {"3": {"logprob": -1.5, "rank": 1}, "4": {"logprob": -2.0}}]
    records = [
        {"tokens": [3, 4], "logprobs": [None, -1.5], "top_logprobs": [None, {"4": -1.5, "3": -2.0}]},
        {"choices": [{"prompt_logprobs": prompt, "prompt_token_ids": [1, 3]}]},
        {"meta_info": {"input_token_logprobs": [item, item], "input_top_logprobs": [None, [item]]}},
        {"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1.5], "top_logprobs": [{"a": -1.5}]}}]},
        {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1.5, "top_logprobs": []}]}}]},
    ]
    keys = ["tokens", "logprobs", "top_logprobs", "choices", "prompt_logprobs", "prompt_token_ids", "meta_info",
            "input_token_logprobs", "input_top_logprobs", "content", "logprob", "rank", "token"]  # fmt: skip
    spoilt = st.builds(strategies.mutated, st.sampled_from(files), strategies.SEEDS)
    return st.one_of(spoilt, strategies.json_bytes(records, keys))


def probe_logits(payload: bytes, folder: Path) -> None:
    (folder / "a").write_bytes(payload)
    (folder / "b").write_bytes(payload[:-2] + payload[-1:] * 2)
    lane = logits.open_lane(folder / "a")
    other = lane
    with contextlib.suppress(*REFUSALS):
        other = logits.open_lane(folder / "b")
    found = logits.compare_lanes(lane, other, [lane], units="sequence")
    logits.page(found)
    json.dumps(logits.as_dict(found), allow_nan=False)
    found.dataset()


OPTION_NAMES = (
    "step",
    "size",
    "tokens",
    "by",
    "block",
    "seed",
    "window",
    "sinks",
    "budget",
    "batch",
    "noise",
    "format",
    "x",
)


def probe_label(text: str, folder: Path) -> None:
    parsed = protocols.parse(text)
    assert protocols.parse(parsed.label) == parsed
    bound = parsed.bind(lambda: 1)
    length = 64 + bound.continuation()
    if length < 4096:
        bound.chunks(length, 16)
        bound.starts(length, 16)


def probe_parameter(text: str, folder: Path) -> None:
    report._plain(text)


def probe_curve(given: tuple[Any, dict[str, Any]], folder: Path) -> None:
    plateau(given[0], **given[1])


def spoiled_headers(sound: list[Any]) -> strategies.Strategy:
    return strategies.json_bytes(
        sound, ["dtype", "shape", "data_offsets", "__metadata__", "step.0.layer.0.hidden", "a"]
    )


@cache
def formats() -> dict[str, Format]:
    """All formats, by name."""
    sizes = [folders.CONFIG, {"text_config": folders.CONFIG, "model_type": "x"}]
    shards = {"weight_map": {"a": "model.safetensors"}, "metadata": {"total_size": 8}}
    cells = [CELL, CELL | {"thinned_json": json.loads(thinned().attrs["thinned_json"])}]
    header = folders.header(folders.SHAPES)[0]
    dumps = spoiled_headers([dump(3, 4), dump(1, 12)])
    options = st.dictionaries(
        st.sampled_from(["margin", "alpha", "floor", "rise_min"]), strategies.scalars(), max_size=2
    )
    series = st.lists(st.floats(0, 1e3) | st.floats(), max_size=40)
    arrays = st.one_of(series, st.lists(series, max_size=4), strategies.values([]))
    text = st.one_of(strategies.raw_json().map(lambda raw: raw.decode("latin1")), st.text())
    manifests = strategies.json_bytes([manifest()], ["schema", "checkpoints", "shape", "wheels"])
    tables = strategies.text_bytes(CSV, ["document", "step", "value", "curve", "nan", "inf", "1", '"'])
    return {
        "yaml": Format(strategies.text_bytes(YAML, WORDS), probe_yaml, 0.5),
        "sweep.json": Format(strategies.json_bytes([PLAN], PLAN_KEYS), probe_plan, 0.5),
        "attributes": Format(strategies.documents(cells, CELL_KEYS), probe_attributes, 0.5),
        "netcdf": Format(st.builds(strategies.mutated, st.just(cell_bytes()), strategies.SEEDS), probe_netcdf, 0.15),
        "safetensors": Format(strategies.safetensors(spoiled_headers([header])), probe_safetensors),
        "config.json": Format(strategies.json_bytes(sizes, list(folders.CONFIG)), probe_config),
        "index": Format(strategies.json_bytes([shards], ["weight_map", "metadata", "total_size"]), probe_index),
        "gguf": Format(strategies.gguf(gguf_bytes(), packed), probe_gguf),
        "manifest": Format(manifests, probe_manifest),
        "csv": Format(tables, probe_csv, 0.5),
        "dumps": Format(st.tuples(*[st.one_of(sound_dumps(), sound_dumps(), dumps)] * 2), probe_dump, 0.5),
        "imports": Format(fuzz_dumps.inputs(), fuzz_dumps.probe, 0.3),
        "logits": Format(logit_files(), probe_logits, 0.3),
        "labels": Format(strategies.labels([*protocols.available(), "nothing"], OPTION_NAMES), probe_label, 2.0),
        "parameters": Format(text, probe_parameter),
        "curves": Format(st.tuples(arrays, options), probe_curve),
    }  # fmt: skip
