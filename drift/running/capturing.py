"""Dump the hidden states, keys, values and logits of one pass, as :mod:`drift.reading.diagnose` reads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError

from drift import _arguments as arguments
from drift._bounds import MOST_TOKENS
from drift.dataset.dumps import check_logits
from drift.errors import ConfigError, DatasetError
from drift.paths import outside_path
from drift.running.checks import check_chunks, check_planted, check_tokens
from drift.running.descent.decoders import text_config
from drift.running.descent.descending import descend
from drift.running.descent.guard import admit, check_reading
from drift.running.descent.lanes import Lane, Recorder
from drift.running.lanes import embedding_noise
from drift.running.model.numerics import computing_rung, numerics
from drift.running.model.weights import weights_of
from drift.running.protocols import parse
from drift.running.provenance import provenance
from drift.writing import temporary_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from transformers import PreTrainedModel

    from drift.running.protocols.base import Chunk, Protocol

__all__ = ["appearing", "capture", "dump_metadata", "free_target"]


def capture(
    model: PreTrainedModel,
    tokens: ArrayLike,
    chunk_size: int,
    protocol: str | Protocol,
    out: str | os.PathLike[str],
    *,
    cache: bool = False,
    logits: str = "all",
    dtype: str | None = None,
    half_matmul: str = "native",
    bos_token_id: int | None = None,
    attrs: Mapping[str, object] | None = None,
) -> Path:
    """Run one lane and write its hidden states, keys, values and logits.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model; it is left as it was.
    tokens : array_like
        Token ids, integers [token] or [1, token].
    chunk_size : int
        Tokens per chunk; 0 for full attention.
    protocol : str or Protocol
        Reading of the fold; full attention has none but ``append``.
    out : path
        A folder that is not there, or is empty. It appears when all is written, or not at all.
    cache : bool
        Whether to write what each block's cache holds after each step, too. That grows with the square of the steps.
    logits : {"all", "last", "none"}
        Logits of all tokens, of the last one of each chunk, or none.
    dtype : str, optional
        Rung to compute on, if the model's format does not tell: ``"tf32"`` for a model in float32.
    half_matmul : {"native", "float32"}
        How 16-bit matrix products are computed on a CPU; see :func:`drift.running.model.numerics.numerics`.
    bos_token_id : int, optional
        The token that ``reprime`` puts in front of chunks; the model configuration's BOS token by default.
    attrs : mapping, optional
        Provenance to add to the files' metadata.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If tokens, chunk size, protocol or options do not fit together, or the folder is taken.
    DatasetError
        If the disk refuses.
    PrecisionError, UnsupportedModelError
        As for :func:`drift.trace`.
    """
    check_logits(logits)
    admit(model)
    ids = check_tokens(model, tokens)
    if len(ids) != 1:
        raise ConfigError(f"One lane holds one document; got {len(ids)}. Capture them one by one.")
    bound, chunks = _one_pass(model, parse(protocol), chunk_size, ids.shape[1], bos_token_id)
    computed = computing_rung(model, dtype)
    device = weights_of(model).device
    text = torch.from_numpy(ids[0]).to(device)
    noise = embedding_noise(bound, text, computed)
    lane = Lane(text, chunks, bound, noise=noise, unit_roundoff=computed.unit_roundoff)
    target = free_target(out)
    training = model.training
    try:
        with appearing(target, out) as folder, numerics(computed, str(device), half_matmul) as switches:
            lane_of = {
                "chunk_size": chunk_size, "protocol": parse(protocol).label, "numerics_json": json.dumps(switches),
            }  # fmt: skip
            metadata = dump_metadata(model, computed.name, ids, lane_of, attrs or {})
            recorder = _Writer(folder, chunks, metadata, cache, logits)
            model.eval()
            descend(model, [lane], recorder)
            recorder.finish()
    finally:
        model.train(training)
    return target


def _one_pass(
    model: PreTrainedModel, reading: Protocol, chunk_size: int, count: int, bos_token_id: int | None
) -> tuple[Protocol, tuple[Chunk, ...]]:
    """The reading, bound, and the chunks of its one pass over a text of `count` tokens.

    Raises
    ------
    ConfigError
        Its lane is not one pass over the text, or does not fit the model.
    """
    arguments.whole("chunk_size", chunk_size, 0, MOST_TOKENS)
    if bos_token_id is not None:
        arguments.whole("bos_token_id", bos_token_id)
    if chunk_size == 0 and reading.label != "append":
        raise ConfigError(f"Full attention (chunk size 0) has one chunk: the protocol {reading.label} means nothing.")
    bos = bos_token_id if bos_token_id is not None else getattr(text_config(model), "bos_token_id", None)
    bound = reading.bind(lambda: bos)
    chunks = bound.chunks(count, chunk_size or count)
    if bound.continuation() or not all(chunk.measured for chunk in chunks):
        raise ConfigError(
            f"{reading.label} generates text or computes chunks twice, so its lane is not one pass over the text. "
            "Capture another protocol, or measure this one with drift.sweep."
        )
    if bound.texts_at_once > 1:
        raise ConfigError(f"{reading.label} computes several texts at once; capture one lane.")
    check_planted(bound, chunks)
    check_chunks(model, [chunks], False)
    check_reading(model, bound, chunks)
    return bound, chunks


@contextmanager
def appearing(target: Path, out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into, which takes its name once all is written; `out` is what the message calls it."""
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rmdir()  # a folder takes the name of an empty one on some systems only
        os.replace(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            why = getattr(error, "strerror", None) or error
            raise DatasetError(
                f"{out}: cannot be written ({why}). Nothing was left there. Check that the place is writable and its "
                "disk not full, or choose another."
            ) from error
        raise


def dump_metadata(
    model: PreTrainedModel, computed: str, ids: NDArray[np.int64], *more: Mapping[str, object]
) -> dict[str, str]:
    """What a dump says of itself.

    Parameters
    ----------
    model : PreTrainedModel
    computed : str
        What it computes in.
    ids : ndarray of int64 [1, token]
        Tokens of the lane.
    *more : mapping
        What else is said; the last one that says a thing counts.
    """
    said: dict[str, object] = {
        "format": "drift-dump-1",
        "model": str(getattr(model.config, "_name_or_path", "")) or type(model).__name__,
        "dtype": computed,
        "experts": _experts_of(model),
        "tokens": ids.shape[1],
        "attn_implementation": model.config._attn_implementation,
        "tokens_sha256": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        **provenance(weights_of(model).device),
    }
    for one in more:
        said |= one
    return {key: str(value) for key, value in said.items()}


#: What transformers' configurations call the number of experts of a block.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _experts_of(model: PreTrainedModel) -> int:
    """Experts that a block of a model chooses among; 0 for a dense model."""
    config = model.config.get_text_config(decoder=True)
    return max(int(getattr(config, name, None) or 0) for name in _EXPERTS)


def free_target(out: str | os.PathLike[str]) -> Path:
    """Path of a folder to write to.

    Raises
    ------
    ConfigError
        It is no new or empty folder.
    """
    target = outside_path(out).resolve()
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be used ({error.strerror or error}). Choose another.") from error
    if taken:
        raise ConfigError(f"{out}: is there already, and is not an empty folder. Choose another.")
    return target


class _Writer(Recorder):
    """Writes a lane, one layer at a time."""

    def __init__(
        self, folder: Path, chunks: Sequence[Chunk], metadata: dict[str, str], with_cache: bool, logits: str
    ) -> None:
        self._folder = folder
        self._chunks = chunks
        self._metadata = metadata
        self._with_cache = with_cache
        self._wanted = logits
        # Prefixes stay in the cache, but belong to no text: their places in it.
        self._skipped = torch.cat([torch.arange(len(c)) < len(c.prefix) for c in chunks])
        self._lengths = [sum(len(c) for c in chunks[: k + 1]) for k in range(len(chunks))]
        self._caches: dict[str, torch.Tensor] = {}
        self._final: dict[int, list[torch.Tensor]] = {}
        self._logits: dict[int, list[torch.Tensor]] = {}

    def _write(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        # A slice and its whole share memory, which safetensors refuses.
        copies = {key: value.clone() for key, value in plain.items()}
        safetensors.torch.save_file(copies, self._folder / f"{name}.safetensors", self._metadata)

    def hidden(self, layer: int, kind: str, states: Sequence[torch.Tensor]) -> None:
        self._write(
            f"layer-{layer:03d}",
            {f"step.{k}.layer.{layer}.hidden": states[0][c.start : c.stop] for k, c in enumerate(self._chunks)},
        )

    def cached(self, lane: int, block: int, step: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if not self._with_cache:
            return
        length = self._lengths[step]
        keep = ~self._skipped[:length][length - keys.shape[1] :]
        for kind, tensor in (("cache_key", keys), ("cache_value", values)):
            held = tensor[:, keep.to(tensor.device)] if not bool(keep.all()) else tensor
            self._caches[f"step.{step}.block.{block}.{kind}"] = held.clone()

    def cache(self, block: int, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        if not keys:
            return
        tensors = {}
        for k, c in enumerate(self._chunks):
            tensors[f"step.{k}.block.{block}.key"] = keys[0][:, c.start : c.stop]
            tensors[f"step.{k}.block.{block}.value"] = values[0][:, c.start : c.stop]
        self._write(f"block-{block:03d}", tensors | self._caches)
        self._caches = {}

    def _step(self, row: int) -> int:
        return next(k for k, c in enumerate(self._chunks) if row < c.stop)

    def final(self, lane: int, rows: torch.Tensor, states: torch.Tensor) -> None:
        self._final.setdefault(self._step(int(rows[-1])), []).append(states.clone())

    def logits(self, lane: int, rows: torch.Tensor, scores: torch.Tensor) -> None:
        step = self._step(int(rows[-1]))
        whole = int(rows[-1]) == self._chunks[step].stop - 1
        if self._wanted == "all":
            self._logits.setdefault(step, []).append(scores.clone())
        elif self._wanted == "last" and whole:
            self._logits[step] = [scores[-1:].clone()]
        if whole and step in self._logits:
            self._write(f"logits-{step:04d}", {f"step.{step}.logits": torch.cat(self._logits.pop(step))})

    def finish(self) -> None:
        """Write what only the end makes whole."""
        self._write("final", {f"step.{k}.final": torch.cat(parts) for k, parts in self._final.items()})
