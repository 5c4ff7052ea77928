"""Dump what a model computes where others call it: in a loop of their own, in ``generate``, in ``generate_batch``.

:mod:`drift.running.capturing` runs a lane itself; here a lane is noted while others run it. Every call of the model is
a step. Keys and values are taken from the calls of the cache's ``update``, which those of transformers' own caches have
in common with the paged one of continuous batching; there, a step packs several sequences, which are taken apart by
their lengths and written to a folder each.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from drift.dataset.dumps import check_logits
from drift.errors import ConfigError, PrecisionError, UnsupportedModelError
from drift.running.capturing import appearing, dump_metadata, free_target
from drift.running.descent.decoders import blocks_of, carried_kinds, new_cache
from drift.running.descent.guard import check_supported
from drift.running.model.numerics import rung_of
from drift.running.model.weights import weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["watch"]


@contextmanager
def watch(
    model: PreTrainedModel,
    out: str | os.PathLike[str],
    *,
    logits: str = "all",
    attrs: Mapping[str, object] | None = None,
) -> Iterator[None]:
    """Note hidden states, keys, values and logits of every call of a model, and write them when the block ends.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model; it is left as it was, and computes what it would have.
    out : path
        A folder that is not there, or is empty. Calls with one sequence are written into it, the sequences of
        continuous batching into a folder each, named as the requests are. It appears at the end of the block, or not
        at all.
    logits : {"all", "last", "none"}
        All logits that the model hands out, of the last token of each call, or none.
    attrs : mapping, optional
        Provenance to add to the files' metadata.

    Yields
    ------
    None
        Everything that is noted is held in memory until the block ends.

    Raises
    ------
    ConfigError
        If the folder is taken, several sequences are padded into one batch, the model is called without a cache, or a
        call does not go on where the one before it ended (a cropped cache, a prefix that another request computed), or
        none was made.
    DatasetError
        If the disk refuses.
    UnsupportedModelError
        If the model, or this version of transformers, cannot be followed.
    """
    check_logits(logits)
    check_supported(model)
    if not any(slots for slots, _ in carried_kinds(model)):
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps no keys and values, which are what tells how far a call has come. Chunked "
            "inference may be possible with it: python -m drift.capture runs a lane itself."
        )
    target = free_target(out)
    notes = _Notes(model, logits)
    with notes.hooked():
        yield
    if notes.problem:
        raise ConfigError(notes.problem)
    if not notes.lanes:
        raise ConfigError(
            f"{type(model).__name__} was not called in the block, so there is nothing to write. Hooks do not run in "
            "compiled models and CUDA graphs: switch these off."
        )
    with appearing(target, out) as folder:
        for name, lane in notes.lanes.items():
            place = folder if name == _ALONE else folder / name
            place.mkdir(exist_ok=True)
            metadata = _metadata(model, lane, attrs or {})
            safetensors.torch.save_file(lane.tensors, place / "lane.safetensors", metadata)


_ALONE = ""
"""Name of the lane where the model is called with one sequence."""
_OURS = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass
class _Lane:
    """One sequence: its token ids, its steps, and what was noted of them."""

    ids: list[int] = field(default_factory=list)
    steps: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, tensor: Tensor) -> None:
        self.tensors[f"step.{self.steps - 1}.{name}"] = tensor.detach().to("cpu", copy=True).contiguous()


@dataclass
class _Part:
    """The rows of a call that belong to one lane."""

    lane: _Lane
    start: int
    stop: int


def _metadata(model: PreTrainedModel, lane: _Lane, attrs: Mapping[str, object]) -> dict[str, str]:
    try:
        computed = rung_of(model.dtype).name
    except PrecisionError:
        computed = str(model.dtype)
    if (
        computed == "fp32"
        and weights_of(model).device.type == "cuda"
        and torch.get_float32_matmul_precision() != "highest"
    ):
        computed = "tf32"
    return dump_metadata(model, computed, np.array([lane.ids], dtype=np.int64), attrs)


class _Notes:
    """What the hooks of one model note."""

    def __init__(self, model: PreTrainedModel, logits: str) -> None:
        self.lanes: dict[str, _Lane] = {}
        self.problem = ""
        self._model = model
        self._logits = logits
        self._planned: list[tuple[str, int]] = []
        self._parts: list[_Part] = []
        self._rows: Tensor | None = None
        self._cache: Any = None
        self._depth = len(blocks_of(model))
        self._tokens = 0

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook into the model and into the planning of continuous batches for the duration."""
        model, head = self._model, self._model.get_output_embeddings()
        blocks = blocks_of(model)
        with ExitStack() as stack:
            for handle in (
                model.register_forward_pre_hook(self._begin, with_kwargs=True),
                model.register_forward_hook(self._end, always_call=True),
                blocks[0].register_forward_pre_hook(self._embeddings, with_kwargs=True),
                *(block.register_forward_hook(self._after(i)) for i, block in enumerate(blocks, 1)),
                head.register_forward_pre_hook(self._before_head),
            ):
                stack.callback(handle.remove)
            stack.enter_context(_planning(self._plan))
            yield

    # ------------------------------------------------------------------------------------------ which rows are whose
    def _plan(self, requests: list[tuple[str, int]]) -> None:
        self._planned = requests

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Find out which sequences a call takes on, and from where, and have its cache tell what is appended."""
        self._parts, self._rows = [], None
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or ids.shape[0] != 1:
            raise ConfigError(
                "Only calls with token ids of one sequence can be noted"
                + (f"; this one has a batch of {ids.shape[0]}" if ids is not None else "")
                + ". Call generate with one sequence at a time, or use generate_batch."
            )
        paged = kwargs.get("cache")
        if paged is None:
            kwargs = self._with_cache(args, kwargs)
            self._cache = kwargs["past_key_values"]
            planned, first = [(_ALONE, ids.shape[1])], [int(self._cache.get_seq_length())]
        else:
            self._cache, planned = paged, self._planned
            if not planned:
                raise UnsupportedModelError("This version of transformers packs batches in a way not known here.")
            self._rows = kwargs["logits_indices"]
            ends = np.cumsum([0, *(tokens for _, tokens in planned)])
            first = [int(kwargs["position_ids"][0, end]) for end in ends[:-1]]
        self._tokens = ids.shape[1]
        start = 0
        for (name, tokens), position in zip(planned, first, strict=True):
            self._take(name, ids[0, start : start + tokens].tolist(), position, start)
            start += tokens
        self._cache.update = self._noting(self._cache.update)
        return args, kwargs

    def _with_cache(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call, with the cache that the model would make."""
        if kwargs.get("past_key_values") is not None:
            return kwargs
        if kwargs.get("use_cache") is False or len(args) > 1:
            raise ConfigError(
                "The model is called without a cache, or with one that is not named: hand it past_key_values=."
            )
        return kwargs | {"past_key_values": new_cache(self._model)}

    def _take(self, name: str, ids: list[int], position: int, start: int) -> None:
        """Begin a step of a lane."""
        if name != _ALONE and not _OURS.fullmatch(name):
            name = hashlib.sha256(name.encode()).hexdigest()[:16]
        lane = self.lanes.setdefault(name, _Lane())
        if position != len(lane.ids):
            who = f"request {name}" if name else "the sequence"
            self.problem = self.problem or (
                f"A call goes on with {who} at position {position}, and {len(lane.ids)} tokens were noted before. Note "
                "one generation from its first token on, in a folder of its own, without what crops a cache (beams, "
                "assistants) or shares prefixes (allow_block_sharing=False)."
            )
            return
        lane.ids += ids
        lane.steps += 1
        self._parts.append(_Part(lane, start, start + len(ids)))

    def _end(self, module: Any, args: Any, output: Any) -> None:
        if self._cache is not None:
            self._cache.__dict__.pop("update", None)
            self._cache = None
        scores = getattr(output, "logits", None)
        if scores is not None and self._logits != "none":
            self._last_rows("logits", scores[0], only=1 if self._logits == "last" else None)
        self._parts = []

    # ------------------------------------------------------------------------------------------ what is noted of them
    def _keep(self, name: str, tensor: Tensor) -> None:
        """Note [..., token, feature] of each lane."""
        for part in self._parts:
            part.lane.keep(name, tensor[..., part.start : part.stop, :])

    def _last_rows(self, name: str, rows: Tensor, only: int | None = None) -> None:
        """Note what the model computes of the last tokens only: [row, feature]."""
        total = self._parts[-1].stop if self._parts else 0
        if rows.shape[0] < total and self._rows is not None:
            tokens = self._rows.tolist()[: rows.shape[0]]
        else:
            first = max(0, total - rows.shape[0])
            tokens = list(range(first, first + rows.shape[0]))
        for part in self._parts:
            mine = [row for row, token in enumerate(tokens) if part.start <= token < part.stop]
            if mine and tokens[mine[-1]] == part.stop - 1:
                part.lane.keep(name, rows[mine][-only:] if only else rows[mine])

    def _noting(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """The cache's ``update``, noted."""

        def noted(key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            if layer_idx >= self._depth:
                raise self._refused(f"it caches more than once in a block, under {layer_idx + 1} and beyond")
            self._keep(f"block.{layer_idx + 1}.key", key_states[0])
            self._keep(f"block.{layer_idx + 1}.value", value_states[0])
            return update(key_states, value_states, layer_idx, *args, **kwargs)

        return noted

    def _embeddings(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._states(0, args[0] if args else kwargs["hidden_states"])

    def _after(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self._states(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    def _states(self, layer: int, states: Tensor) -> None:
        """Note hidden states [text, token, feature], and nothing that only looks like them."""
        if states.ndim != 3 or states.shape[1] != self._tokens:
            raise self._refused(f"layer {layer} hands on {tuple(states.shape)} for {self._tokens} tokens")
        self._keep(f"layer.{layer}.hidden", states[0])

    def _refused(self, fact: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{type(self._model).__name__} cannot be followed from outside: {fact}, which a dump has no place for. "
            "Chunked inference may be possible with it: drift.trace says so."
        )

    def _before_head(self, module: Any, args: tuple[Any, ...]) -> None:
        self._last_rows("final", args[0][0])


@contextmanager
def _planning(told: Callable[[list[tuple[str, int]]], None]) -> Iterator[None]:
    """Be told which requests, and how many tokens of each, the next continuous batch packs, in order.

    Where this version of transformers plans its batches elsewhere, nothing is told.
    """
    try:
        owner = import_module("transformers.generation.continuous_batching.input_outputs").ContinuousBatchingIOs
        before = vars(owner)["prepare_batch_tensors"]
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def planned(self: Any, requests_in_batch: Any, *args: Any, **kwargs: Any) -> Any:
        told([(str(each.state.request_id), int(each.query_length)) for each in requests_in_batch])
        return before(self, requests_in_batch, *args, **kwargs)

    owner.prepare_batch_tensors = planned
    try:
        yield
    finally:
        owner.prepare_batch_tensors = before
