"""Model and tokens in, datasets out: the way through the running wing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel
from xarray import Dataset

from drift import dataset, measures
from drift.dataset import QUANTILES, VARIABLES
from drift.descent import Lane, Recorder, check_supported, descend
from drift.errors import ConfigError
from drift.families import family_of
from drift.precision import numerics, rung, rung_of
from drift.protocols import Chunk, Protocol, parse
from drift.provenance import provenance

__all__ = ["check_chunks", "check_tokens", "trace", "trace_folds"]


def trace(
    model: PreTrainedModel, tokens: ArrayLike, chunk_size: int = 64, protocol: str = "append", **options: Any
) -> Dataset:
    """Run one fold and full attention side by side and measure how they differ.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model, at whatever dtype and device it is in. It is left as it was.
    tokens : array_like
        Integers [document, token] or [token].
    chunk_size : int
        Tokens per chunk; the last chunk holds what is left.
    protocol : str
        Reading of the fold: ``append``, ``restart``, ``reprime``, ... (see :func:`drift.protocols.available`).
    **options
        As for :func:`trace_folds`.

    Returns
    -------
    xarray.Dataset
        One cell: drift at every (document, layer, step); see :data:`drift.dataset.VARIABLES`.

    Raises
    ------
    ConfigError, PrecisionError, UnsupportedModelError
        See :func:`trace_folds`.

    Examples
    --------
    >>> model, tokenizer = drift.load_model("smollm2-135m-instruct", dtype="fp32")  # doctest: +SKIP
    >>> ids = tokenizer(text, return_tensors="np").input_ids  # doctest: +SKIP
    >>> drift.trace(model, ids, chunk_size=64).hidden_rel_l2.isel(layer=-1)  # doctest: +SKIP
    """
    return trace_folds(model, tokens, [(chunk_size, protocol)], **options)[0]


def trace_folds(
    model: PreTrainedModel,
    tokens: ArrayLike,
    folds: Sequence[tuple[int, str | Protocol]],
    *,
    bos_token_id: int | None = None,
    logit_stride: int = 1,
    half_matmul: str = "native",
    labels: Mapping[str, str] | None = None,
    attrs: Mapping[str, object] | None = None,
    on_progress: Callable[[float], None] | None = None,
    allow_beyond_context: bool = False,
) -> list[Dataset]:
    """Run several folds against one full-attention pass.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model, at whatever dtype and device it is in. It is left as it was.
    tokens : array_like
        Integers [document, token] or [token]. Documents are replicates; they never see each other.
    folds : sequence of (int, str)
        Chunk size and protocol of each fold. All share one descent through the layers.
    bos_token_id : int, optional
        The token that `reprime` puts in front of chunks; the model configuration's BOS token by default.
    logit_stride : int
        Logits are compared at every ``logit_stride``-th token; hidden states, keys and values at every one.
    half_matmul : {"native", "float32"}
        How 16-bit matrix products are computed on a CPU; see :func:`drift.precision.numerics`.
    labels : mapping, optional
        Overrides of the coordinates `model`, `family` and `dtype` (``"tf32"`` to compute float32 in TF32).
    attrs : mapping, optional
        Provenance to add to, or put in place of, what is recorded.
    on_progress : callable, optional
        Called with the share done, 0 to 1.
    allow_beyond_context : bool
        Whether positions may run past the context length that the model declares.

    Returns
    -------
    list of xarray.Dataset
        One cell per fold, in order.

    Raises
    ------
    UnsupportedModelError
        If the model keeps no KV cache or cannot be driven layer by layer.
    ConfigError
        If tokens, chunk sizes, protocols or options do not fit together, or the text exceeds the model's context.
    PrecisionError
        If the model's dtype is on no rung of the ladder.
    """
    check_supported(model)
    if not folds:
        raise ConfigError("No fold was asked for: give at least one (chunk_size, protocol).")
    if logit_stride < 1:
        raise ConfigError(f"logit_stride is {logit_stride}; it must be at least 1.")
    ids = check_tokens(model, tokens)
    labels = dict(labels or {})
    text_config = model.config.get_text_config(decoder=True)

    def bos() -> int | None:
        return bos_token_id if bos_token_id is not None else getattr(text_config, "bos_token_id", None)

    protocols = [parse(protocol) for _, protocol in folds]
    bound = [protocol.bind(bos) for protocol in protocols]
    n_tokens = ids.shape[1]
    chunks = [protocol.chunks(n_tokens, size) for protocol, (size, _) in zip(bound, folds, strict=True)]
    full = parse("append").chunks(n_tokens, n_tokens)
    check_chunks(text_config, [full, *chunks], allow_beyond_context)

    dtype = rung(labels["dtype"]) if "dtype" in labels else rung_of(model.dtype)
    if dtype.torch_dtype != str(model.dtype).removeprefix("torch."):
        raise ConfigError(f"labels say dtype {dtype.name}, but the model is in {model.dtype}.")
    device = next(model.parameters()).device
    started = time.perf_counter()
    recorders: list[_DocumentRecorder] = []
    training = model.training
    model.eval()
    try:
        with numerics(dtype, str(device), half_matmul) as switches:
            for index, document in enumerate(ids):
                text = torch.from_numpy(document).to(device)

                def on_block(done: int, blocks: int, index: int = index) -> None:
                    if on_progress is not None:
                        on_progress((index + done / (blocks + 1)) / len(ids))

                recorder = _DocumentRecorder(text, chunks, logit_stride)
                lanes = [Lane(text, c) for c in (full, *chunks)]
                descend(model, lanes, recorder, logit_stride=logit_stride, on_block=on_block)
                recorders.append(recorder)
                if on_progress is not None:
                    on_progress((index + 1) / len(ids))
    finally:
        model.train(training)

    common: dict[str, object] = {
        **provenance(device),
        "numerics_json": {**switches, "attn_implementation": model.config._attn_implementation},
        "checkpoint_sha256": "not recorded",
        "tokens_sha256": hashlib.sha256(repr(ids.shape).encode() + ids.astype("<i8").tobytes()).hexdigest(),
        "seed": -1,
        "bos_token_id": -1 if bos() is None else int(bos()),  # type: ignore[arg-type]
        "logit_stride": logit_stride,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_s": round(time.perf_counter() - started, 3),
        **(attrs or {}),
    }
    family = family_of(str(getattr(text_config, "model_type", "unknown")))
    results = []
    for fold, ((size, _), protocol, fold_bound) in enumerate(zip(folds, protocols, bound, strict=True)):
        scalars = {
            "model": labels.get("model") or str(getattr(model.config, "_name_or_path", "")) or type(model).__name__,
            "family": labels.get("family") or family,
            "dtype": dtype.name,
            "unit_roundoff": dtype.unit_roundoff,
            "chunk_size": size,
            "protocol": protocol.label,
            "reference": "full",
            "attn_implementation": str(model.config._attn_implementation),
            "device": device.type,
        }
        own = {
            "title": f"Drift of {protocol.label} (chunk size {size}) against full attention: "
            f"{scalars['model']}, {dtype.name}",
            "config_json": {**{k: v for k, v in scalars.items() if k != "unit_roundoff"}, "logit_stride": logit_stride},
            "protocol_json": {"name": fold_bound.name, "label": fold_bound.label},
        }
        results.append(
            dataset.build(
                {name: np.stack([r.variables(fold)[name] for r in recorders]) for name in VARIABLES},
                scalars=scalars,
                token_start=np.array([c.start for c in chunks[fold]]),
                token_stop=np.array([c.stop for c in chunks[fold]]),
                attrs={**own, **common},
            )
        )
    return results


def check_tokens(model: PreTrainedModel, tokens: ArrayLike) -> NDArray[np.int64]:
    """Check token ids and return them as int64 [document, token]."""
    if isinstance(tokens, Tensor):
        tokens = tokens.detach().cpu().numpy()
    ids = np.asarray(tokens)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ConfigError(
            "tokens must be integers [document, token] or [token], and not empty; "
            f"got shape {ids.shape}, dtype {ids.dtype}."
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ConfigError(
            f"tokens hold ids from {ids.min()} to {ids.max()}, but the model's vocabulary has {vocabulary} entries: "
            "they come from another tokenizer."
        )
    return np.ascontiguousarray(ids, dtype=np.int64)


def check_chunks(text_config: Any, lanes: Sequence[Sequence[Chunk]], allow_beyond_context: bool) -> None:
    """Refuse prefix tokens that the model does not have and positions it was not made for."""
    vocabulary = text_config.vocab_size
    context = getattr(text_config, "max_position_embeddings", None)
    for chunks in lanes:
        for chunk in chunks:
            if any(not 0 <= token < vocabulary for token in chunk.prefix):
                token = chunk.prefix[0]
                raise ConfigError(f"The prefix token {token} is not in the model's vocabulary of {vocabulary}.")
        end = max(chunk.first_position + len(chunk) for chunk in chunks)
        if context is not None and end > context and not allow_beyond_context:
            raise ConfigError(
                f"The fold reaches position {end}, beyond the model's context of {context} tokens. "
                "Use fewer tokens, or allow_beyond_context to measure there all the same."
            )


class _DocumentRecorder(Recorder):
    """Reduces what the lanes hold to the numbers of the data contract, one document at a time."""

    def __init__(self, text: Tensor, chunks: Sequence[Sequence[Chunk]], stride: int) -> None:
        self._starts = [[c.start for c in fold] for fold in chunks]
        # The next token of each token, -1 after the last.
        self._targets = torch.cat([text[1:], text.new_full((1,), -1)])
        self._layers: list[list[dict[str, NDArray[Any]]]] = [[] for _ in chunks]
        self._blocks: list[list[dict[str, NDArray[Any]]]] = [[] for _ in chunks]
        self._bytes: list[NDArray[np.int64]] = [np.zeros(len(fold), dtype=np.int64) for fold in chunks]
        self._final: list[list[measures.StateRows]] = [[] for _ in chunks]
        self._logits: list[list[measures.LogitRows]] = [[] for _ in chunks]
        self._reference: tuple[Tensor, Tensor] | None = None
        self._reference_logits: tuple[Tensor, measures.LogitReference] | None = None
        self._sampled = np.arange(0, len(text), stride)
        self._n_tokens = len(text)

    def hidden(self, layer: int, kind: str, states: Sequence[Tensor]) -> None:
        """Compare the hidden states of every fold with those of full attention."""
        for fold, state in enumerate(states[1:]):
            self._layers[fold].append(self._reduce(fold, measures.compare_states(states[0], state)))

    def _reduce(self, fold: int, rows: measures.StateRows) -> dict[str, NDArray[Any]]:
        starts = self._starts[fold]
        return {
            "hidden_rel_l2": rows.rel_l2(starts),
            "hidden_cosine_distance": rows.cosine_distance(starts),
            "hidden_max_abs": rows.step_max_abs(starts),
            "hidden_norm": rows.norm(starts),
            "nonfinite_count": rows.step_nonfinite(starts),
            "hidden_rel_l2_token": measures.step_quantiles(rows.rel_l2_token(), starts, QUANTILES),
        }

    def cache(self, block: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Compare what every fold appended to its cache with what full attention did."""
        keys, values = ([x.transpose(0, 1).flatten(1) for x in lanes] for lanes in (keys, values))
        for fold, starts in enumerate(self._starts):
            self._blocks[fold].append(
                {
                    "key_rel_l2": measures.compare_states(keys[0], keys[fold + 1]).rel_l2(starts),
                    "value_rel_l2": measures.compare_states(values[0], values[fold + 1]).rel_l2(starts),
                }
            )

    def cache_bytes(self, block: int, sizes: Sequence[Sequence[int]]) -> None:
        """Add up what each fold carries."""
        for fold, per_chunk in enumerate(sizes[1:]):
            self._bytes[fold] += np.asarray(per_chunk, dtype=np.int64)

    def final(self, lane: int, rows: Tensor, states: Tensor) -> None:
        """Keep the reference's stretch; compare the folds' pieces with it."""
        if lane == 0:
            self._reference = rows, states
            return
        assert self._reference is not None
        offset = int(torch.searchsorted(self._reference[0], rows[0]))
        reference = self._reference[1][offset : offset + len(rows)]
        self._final[lane - 1].append(measures.compare_states(reference, states))

    def logits(self, lane: int, rows: Tensor, logits: Tensor) -> None:
        """Keep the reference's stretch; compare the folds' pieces with it."""
        if lane == 0:
            targets = self._targets[rows.to(self._targets.device)]
            self._reference_logits = rows, measures.LogitReference(logits, targets)
            return
        assert self._reference_logits is not None
        offset = int(torch.searchsorted(self._reference_logits[0], rows[0]))
        reference = self._reference_logits[1].rows(offset, offset + len(rows))
        self._logits[lane - 1].append(measures.compare_logits(reference, logits))

    def variables(self, fold: int) -> dict[str, NDArray[Any]]:
        """All variables of the data contract for one fold, without the document axis."""
        layers = [*self._layers[fold], self._reduce(fold, measures.StateRows.concatenate(self._final[fold]))]
        out = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
        out |= {name: np.stack([block[name] for block in self._blocks[fold]]) for name in self._blocks[fold][0]}
        return out | self._logit_variables(fold) | {"cache_bytes": self._bytes[fold]}

    def _logit_variables(self, fold: int) -> dict[str, NDArray[Any]]:
        rows = measures.LogitRows.concatenate(self._logits[fold])
        n_steps = len(self._starts[fold])
        steps, starts = measures.sampled_steps(self._sampled, self._starts[fold])

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            """Put the sampled steps in their places; a step without a sampled token reads NaN."""
            out = np.full((n_steps, *values.shape[1:]), np.nan)
            out[steps] = values
            return out

        def count(per_row: NDArray[Any]) -> NDArray[np.int64]:
            out = np.zeros(n_steps, dtype=np.int64)
            out[steps] = np.add.reduceat(per_row, starts)
            return out

        has_target = self._sampled < self._n_tokens - 1
        targets = count(has_target.astype(np.int64))

        def target_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
            """Mean over the rows that have a next token; NaN in such a row stays NaN."""
            total = spread(np.add.reduceat(np.where(has_target, values, 0.0), starts))
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(targets > 0, total / targets, np.nan)

        return {
            "logit_kl": spread(measures.step_mean(rows.kl, starts)),
            "logit_js": spread(measures.step_mean(rows.js, starts)),
            "logit_rel_l2": spread(rows.rel_l2(starts)),
            "logit_max_abs": spread(np.maximum.reduceat(rows.max_abs, starts)),
            "top1_agreement": spread(measures.step_mean(rows.top1, starts)),
            "delta_p_rms": np.sqrt(target_mean(rows.delta_p**2)),
            "nll_full": target_mean(rows.nll_full),
            "nll_fold": target_mean(rows.nll_fold),
            "logit_nonfinite_count": count(rows.nonfinite),
            "logit_count": count(np.ones(len(self._sampled), dtype=np.int64)),
            "target_count": targets,
            "logit_kl_token": spread(measures.step_quantiles(rows.kl, starts, QUANTILES)),
        }
