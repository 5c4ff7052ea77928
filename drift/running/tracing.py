"""Model and tokens in, datasets out: the way through the running wing."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel
from xarray import Dataset

from drift import _arguments as arguments
from drift import dataset
from drift._bounds import MOST_TOKENS
from drift.dataset.contract import CARRIES, FLOORS, REFERENCES
from drift.dataset.rungs import Rung, rung
from drift.errors import ArgumentError, ConfigError
from drift.running.checkpoints.families import family_of
from drift.running.checks import check_chunks, check_planted, check_tokens
from drift.running.descent.decoders import carried_kinds, driving_of, text_config
from drift.running.descent.descending import descend
from drift.running.descent.guard import admit, check_reading
from drift.running.descent.lanes import Limits
from drift.running.keeping import KeptDocuments, Measured
from drift.running.lanes import FoldRequest, LaneTable, generated_continuation
from drift.running.model.numerics import numerics, rung_of
from drift.running.model.weights import weights_of
from drift.running.protocols import parse
from drift.running.protocols.base import Protocol
from drift.running.protocols.decode import Decode
from drift.running.protocols.full import FLOOR_DRAWS, floor_record, floor_seeds
from drift.running.provenance import provenance
from drift.running.recording import DocumentRecorder

__all__ = ["tokens_sha256", "trace", "trace_folds"]


def trace(
    model: PreTrainedModel,
    tokens: ArrayLike,
    chunk_size: int = 64,
    protocol: str = "append",
    *,
    reference: str = "full",
    **options: Any,
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
        Reading of the fold: ``append``, ``restart``, ``reprime``, ... (see :func:`drift.running.protocols.available`).
    reference : str
        What the fold is compared with, see :data:`drift.dataset.contract.REFERENCES`.
    **options
        As for :func:`trace_folds`.

    Returns
    -------
    xarray.Dataset
        One cell: drift at every (document, layer, step); see :data:`drift.dataset.contract.VARIABLES`.

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
    return trace_folds(model, tokens, [(chunk_size, protocol, reference)], **options)[0]


def trace_folds(
    model: PreTrainedModel,
    tokens: ArrayLike,
    folds: Sequence[tuple[int, str | Protocol] | tuple[int, str | Protocol, str]],
    *,
    bos_token_id: int | None = None,
    logit_stride: int = 1,
    half_matmul: str = "native",
    labels: Mapping[str, str] | None = None,
    attrs: Mapping[str, object] | None = None,
    fold_attrs: Sequence[Mapping[str, object]] | None = None,
    on_progress: Callable[[float], None] | None = None,
    allow_beyond_context: bool = False,
    limits: Limits | None = None,
    floor_draws: int = FLOOR_DRAWS,
    kept: KeptDocuments | None = None,
) -> list[Dataset]:
    """Run several folds beside full attention.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model, at whatever dtype and device it is in. It is left as it was.
    tokens : array_like
        Integers [document, token] or [token]. Documents are replicates; they never see each other.
    folds : sequence of (int, str) or (int, str, str)
        Chunk size and protocol of each fold, and what it is compared with, a key of
        :data:`drift.dataset.contract.REFERENCES` (``full`` by default). All share one descent
        through the layers. ``gold`` and ``fold64`` make a copy of the model in float64.
    bos_token_id : int, optional
        The token that `reprime` puts in front of chunks; the model configuration's BOS token by default.
    logit_stride : int
        Logits are compared at every ``logit_stride``-th token; hidden states, keys and values at every one.
    half_matmul : {"native", "float32"}
        How 16-bit matrix products are computed on a CPU; see :func:`drift.running.model.numerics.numerics`.
    labels : mapping, optional
        Overrides of the coordinates `model`, `family` and `dtype` (``"tf32"`` to compute float32 in TF32).
    attrs : mapping, optional
        Provenance to add to, or put in place of, what is recorded.
    fold_attrs : sequence of mapping, optional
        The same for each fold, in their order: its own title and configuration, say.
    on_progress : callable, optional
        Called with the share done, 0 to 1.
    allow_beyond_context : bool
        Whether positions may run past the context length that the model declares.
    limits : Limits, optional
        What may be kept in memory; see :class:`drift.running.descent.lanes.Limits`.
    floor_draws : int
        Draws of the rounding floor: passes of full attention with disturbed embeddings, which all folds share. 0 does
        without.
    kept : KeptDocuments, optional
        Where documents that were measured before an interruption are looked for, and where each is kept. Times that
        cells record are then those of this call.

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
    admit(model)
    _check_options(logit_stride, floor_draws, bos_token_id, allow_beyond_context, on_progress, limits)
    _check_told(labels, attrs, fold_attrs)
    listed = FoldRequest.listed(folds)
    if fold_attrs is not None and len(fold_attrs) != len(listed):
        raise ConfigError(f"fold_attrs says something of {len(fold_attrs)} folds, but there are {len(listed)}.")
    ids = check_tokens(model, tokens)
    bos = bos_token_id if bos_token_id is not None else getattr(text_config(model), "bos_token_id", None)
    asked = [FoldRequest.of(fold, lambda: bos) for fold in listed]
    together = _together(asked)
    _check_lanes(model, asked, together, ids.shape[1], allow_beyond_context)
    named = _named(model, labels or {})
    seeds = floor_seeds(floor_draws)
    passes = _Passes(
        model, ids, asked, together, logit_stride, seeds, limits, on_progress or (lambda share: None), kept
    )
    started = time.perf_counter()
    variables, switches = passes.run(rung(named["dtype"]), half_matmul)
    device = weights_of(model).device
    common: dict[str, object] = {
        **provenance(device),
        "numerics_json": {**switches, "attn_implementation": model.config._attn_implementation},
        "checkpoint_sha256": "not recorded",
        "tokens_sha256": tokens_sha256(ids),
        "descent": driving_of(model).outcome,
        "seed": -1,
        "bos_token_id": -1 if bos is None else int(bos),
        "logit_stride": logit_stride,
        **({"floor_json": floor_record(floor_draws)} if floor_draws else {}),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_s": round(time.perf_counter() - started, 3),
        **(attrs or {}),
    }
    kinds = carried_kinds(model)
    carries = [CARRIES[kind] for kind in kinds] if {*kinds} != {(True, False)} else []
    named |= {"attn_implementation": str(model.config._attn_implementation), "device": device.type}
    given = fold_attrs or [{}] * len(asked)
    return [
        _cell(fold, ids.shape[1], documents, named, {**common, **own}, seeds, carries)
        for fold, documents, own in zip(asked, variables, given, strict=True)
    ]


def tokens_sha256(ids: NDArray[np.int64]) -> str:
    """Sha256 of token ids [document, token], as cells record it."""
    return hashlib.sha256(repr(ids.shape).encode() + ids.astype("<i8").tobytes()).hexdigest()


def _check_options(
    logit_stride: int,
    floor_draws: int,
    bos_token_id: int | None,
    allow_beyond_context: bool,
    on_progress: Callable[[float], None] | None,
    limits: Limits | None,
) -> None:
    """Refuse options that are none, each by its name."""
    arguments.whole("logit_stride", logit_stride, 1, MOST_TOKENS)
    arguments.whole("floor_draws", floor_draws, 0, MOST_TOKENS)
    if bos_token_id is not None:
        arguments.whole("bos_token_id", bos_token_id)
    arguments.truth("allow_beyond_context", allow_beyond_context)
    if on_progress is not None:
        arguments.function("on_progress", on_progress)
    if limits is not None and not isinstance(limits, Limits):
        raise ArgumentError(f"limits is a {type(limits).__name__}; it must be Limits.")


def _check_told(
    labels: Mapping[str, str] | None,
    attrs: Mapping[str, object] | None,
    fold_attrs: Sequence[Mapping[str, object]] | None,
) -> None:
    """Refuse what is to be recorded and cannot be."""
    for name, label in arguments.mapping("labels", labels or {}).items():
        arguments.text(f"labels[{name!r}]", label)
    arguments.mapping("attrs", attrs or {})
    if isinstance(fold_attrs, str) or not isinstance(fold_attrs or [], Sequence):
        raise ArgumentError(f"fold_attrs is a {type(fold_attrs).__name__}; it must be a list of mappings.")
    for place, own in enumerate(fold_attrs or []):
        arguments.mapping(f"fold_attrs[{place}]", own)


def _named(model: PreTrainedModel, labels: Mapping[str, str]) -> dict[str, str]:
    """What model, family and dtype are called: as the labels say, or as the model does."""
    dtype = rung(labels["dtype"]) if "dtype" in labels else rung_of(model.dtype)
    if dtype.torch_dtype != str(model.dtype).removeprefix("torch."):
        raise ConfigError(f"labels say dtype {dtype.name}, but the model is in {model.dtype}.")
    return {
        "model": labels.get("model") or str(getattr(model.config, "_name_or_path", "")) or type(model).__name__,
        "family": labels.get("family") or family_of(str(getattr(text_config(model), "model_type", "unknown"))),
        "dtype": dtype.name,
    }


def _together(asked: Sequence[FoldRequest]) -> dict[Decode | None, list[int]]:
    """Places of the folds of the same text, which descend together; a generated continuation makes another text."""
    together: dict[Decode | None, list[int]] = {}
    for place, fold in enumerate(asked):
        together.setdefault(fold.continued, []).append(place)
    return together


def _check_lanes(
    model: PreTrainedModel,
    asked: Sequence[FoldRequest],
    together: Mapping[Decode | None, Sequence[int]],
    count: int,
    allow_beyond_context: bool,
) -> None:
    """Refuse chunks that the model or their protocol cannot do with, before anything is computed."""
    for continued, places in together.items():
        length = count + (continued.continuation() if continued else 0)
        lanes = [asked[p].bound.chunks(length, asked[p].size) for p in places]
        for p, chunks in zip(places, lanes, strict=True):
            check_planted(asked[p].bound, chunks)
            check_reading(model, asked[p].bound, chunks)
        check_chunks(model, [parse("append").chunks(length, length), *lanes], allow_beyond_context)


@dataclass(frozen=True)
class _Passes:
    """The descents of a set of folds over documents, ids [document, token]."""

    model: PreTrainedModel
    ids: NDArray[np.int64]
    asked: Sequence[FoldRequest]
    together: Mapping[Decode | None, Sequence[int]]
    logit_stride: int
    floor_seeds: Sequence[int]
    limits: Limits | None
    tell: Callable[[float], None]
    kept: KeptDocuments | None

    def run(self, dtype: Rung, half_matmul: str) -> tuple[list[list[dict[str, NDArray[Any]]]], Mapping[str, Any]]:
        """Descend; returns the variables of each fold, by document, and the numerical switches that held."""
        found: list[list[dict[str, NDArray[Any]]]] = [[] for _ in self.asked]
        model, training = self.model, self.model.training
        model.eval()
        try:
            with numerics(dtype, str(weights_of(model).device), half_matmul) as switches:
                wide = model
                if any(fold.needs_float64 for fold in self.asked) and model.dtype is not torch.float64:
                    wide = weights_of(model).beside(rung("fp64"))
                    admit(wide)
                for index in range(len(self.ids)):
                    measured = self.kept.load(index, switches) if self.kept else None
                    if measured is None or len(measured) != len(self.asked):
                        measured = self._document(index, wide, dtype)
                        if self.kept:
                            self.kept.save(index, switches, measured)
                    for variables, documents in zip(measured, found, strict=True):
                        documents.append(variables)
                    self.tell((index + 1) / len(self.ids))
        finally:
            model.train(training)
        return found, switches

    def _document(self, index: int, wide: PreTrainedModel, dtype: Rung) -> Measured:
        """Measure one document; returns the variables of each fold."""
        found: Measured = [{} for _ in self.asked]
        for turn, (continued, places) in enumerate(self.together.items()):
            done = index + turn / len(self.together)
            measured = self._descend(self.ids[index], continued, places, wide, dtype, done)
            for place, variables in zip(places, measured, strict=True):
                found[place] = variables
        return found

    def _descend(
        self,
        document: NDArray[np.int64],
        continued: Decode | None,
        places: Sequence[int],
        wide: PreTrainedModel,
        dtype: Rung,
        done: float,
    ) -> list[dict[str, NDArray[Any]]]:
        """Take the folds at some places down the network, over one document; `done` are those before it."""

        def on_block(block: int, blocks: int) -> None:
            self.tell((done + block / (blocks + 1) / len(self.together)) / len(self.ids))

        text = torch.from_numpy(document).to(weights_of(self.model).device)
        if continued is not None:
            text = generated_continuation(self.model, text, continued)
        table = LaneTable(text, self.model, wide, dtype)
        folds = [table.comparison(self.asked[p]) for p in places]
        floors = [[table.floor(self.asked[p], seed) for seed in self.floor_seeds] for p in places]
        # Folds that are cut into the same steps have the same floor.
        comparisons = list(dict.fromkeys([*folds, *itertools.chain.from_iterable(floors)]))
        recorder = DocumentRecorder(text, comparisons, self.logit_stride)
        descend(
            self.model,
            table.lanes,
            recorder,
            references=recorder.references,
            logit_stride=self.logit_stride,
            limits=self.limits,
            on_block=on_block,
        )
        found = {comparison: recorder.variables(place) for place, comparison in enumerate(comparisons)}
        return [
            found[fold] | _stacked([found[draw] for draw in draws]) for fold, draws in zip(folds, floors, strict=True)
        ]


def _stacked(draws: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The floor variables of a cell: those of its draws side by side."""
    return {FLOORS[name]: np.stack([draw[name] for draw in draws], axis=-1) for name in (draws[0] if draws else ())}


def _cell(
    fold: FoldRequest,
    count: int,
    documents: Sequence[Mapping[str, NDArray[Any]]],
    named: Mapping[str, str],
    attrs: Mapping[str, object],
    floor_seeds: Sequence[int],
    carries: Sequence[str],
) -> Dataset:
    """Make the dataset of one fold of texts of `count` tokens; `attrs` may say title and configuration themselves."""
    length = count + fold.bound.continuation()
    starts = fold.bound.starts(length, fold.size)
    scalars: dict[str, str | int | float] = {
        **named,
        "unit_roundoff": rung(named["dtype"]).unit_roundoff,
        "chunk_size": fold.size,
        "protocol": fold.protocol.label,
        "reference": fold.reference,
    }
    own = {
        "title": f"Drift of {fold.protocol.label} (chunk size {fold.size}) against {REFERENCES[fold.reference]}: "
        f"{named['model']}, {named['dtype']}",
        "config_json": {
            **{name: value for name, value in scalars.items() if name != "unit_roundoff"},
            "logit_stride": attrs["logit_stride"],
        },
        "protocol_json": {"name": fold.bound.name, "label": fold.bound.label},
        "protocol_summary": fold.bound.in_words,
    }
    return dataset.build(
        {name: np.stack([variables[name] for variables in documents]) for name in documents[0]},
        scalars=scalars,
        token_start=np.array(starts),
        token_stop=np.array((*starts[1:], length)),
        attrs={**own, **attrs},
        draws=floor_seeds,
        carries=carries,
    )
