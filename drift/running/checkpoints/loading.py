"""Load a ready checkpoint: model, tokenizer, and what is known of the weights."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift import _arguments as arguments
from drift.dataset.rungs import Rung
from drift.dataset.rungs import rung as rung_named
from drift.errors import CheckpointError, ConfigError, DriftError
from drift.running.checkpoints.families import family_of
from drift.running.checkpoints.fetching import fetch
from drift.running.checkpoints.gguf import quiet_transformers
from drift.running.checkpoints.headers import read_config, tensor_headers
from drift.running.checkpoints.identity import identity
from drift.running.checkpoints.names import Checkpoint
from drift.running.checkpoints.resolving import resolve
from drift.running.descent.decoders import blocks_of
from drift.running.descent.guard import check_supported
from drift.running.model.weights import Streamed, skeleton
from drift.running.model.widening import widen
from drift.shown import clipped

__all__ = ["Loaded", "load", "load_model"]


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
        attn_implementation, and what :func:`drift.running.model.widening.widen` has to say.
    """

    model: Any
    tokenizer: Any
    record: dict[str, Any]


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?", re.ASCII)
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def _published(folder: Path) -> tuple[str, int]:
    """Torch name of the dtype that most weights of a folder are stored in, and how many are stored in another.

    The few that are stored otherwise are rounded to the main dtype when loaded, the same on every rung.
    """
    counts: dict[str, int] = {}
    for stored, count in tensor_headers(folder).values():
        counts[stored] = counts.get(stored, 0) + count
    main = max(counts, key=lambda stored: counts[stored], default="none")
    if main not in _STORED or "quantization_config" in read_config(folder):
        raise CheckpointError(
            f"{folder}: the weights are quantised ({main}). Drift is measured on plain bf16, fp16, fp32 or fp64 "
            "weights; use the original checkpoint, or dequantise it and save it again."
        )
    return _STORED[main], sum(counts.values()) - counts[main]


WEIGHTS = ("resident", "streamed")


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
        block by block (see :mod:`drift.running.model.weights`). The numbers are the same.

    Returns
    -------
    Loaded
        Model, tokenizer and provenance.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be fetched, cannot be loaded without running code of its own, or cannot be streamed
        (:class:`drift.running.model.weights.UnfitForStreamingError`).
    PrecisionError
        The rung cannot hold the published weights.
    """
    given = {"name": name, "dtype": dtype, "device": device, "attn_implementation": attn_implementation}
    for argument, value in {**given, "weights": weights}.items():
        arguments.text(argument, value)
    if weights not in WEIGHTS:
        raise ConfigError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.")
    rung = rung_named(dtype)
    checkpoint = resolve(name)
    folder = fetch(name)
    config = read_config(folder)
    published, others = _published(folder)
    device = _device(name, device)
    model, tokenizer = _from_folder(folder, config, published, attn_implementation, streamed=weights == "streamed")
    widened = _widened(folder, model, rung, device, streamed=weights == "streamed")
    record = {
        **_origin(checkpoint, folder, config),
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


def _device(name: str, device: str) -> str:
    """Say which device ``auto`` is, and refuse one that is not there."""
    import torch

    if not (isinstance(device, str) and _DEVICE.fullmatch(device)):
        raise ConfigError(f"device is {clipped(repr(device))}; it must be cpu, cuda, cuda:1, ... or auto.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(f"{name}: device {device!r} was asked for, but torch sees no CUDA device here; use cpu.")
    if ":" in device and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise CheckpointError(
            f"{name}: device {device!r} was asked for, but torch sees {torch.cuda.device_count()} here, counted from 0."
        )
    return device


def _from_folder(
    folder: Path, config: Mapping[str, Any], published: str, attn_implementation: str, *, streamed: bool
) -> tuple[Any, Any]:
    """Have transformers make the model, or its skeleton, and the tokenizer of a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # Saying no to a checkpoint's own Python code explicitly: left unsaid, transformers asks on the terminal.
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    stored = getattr(torch, published)
    try:
        with quiet_transformers():
            if streamed:
                own_config = AutoConfig.from_pretrained(folder, **common)
                model = skeleton(own_config, stored, attn_implementation)
            else:
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=stored, attn_implementation=attn_implementation, use_safetensors=True, **common
                )
            return model, AutoTokenizer.from_pretrained(folder, **common)
    except DriftError:
        raise
    except Exception as error:  # transformers raises nearly every kind on a configuration that makes no sense
        own = "auto_map" in config
        raise CheckpointError(
            f"{folder}: cannot be loaded as a causal language model ({type(error).__name__}: {error}). "
            + ("It brings Python code of its own, which drift never runs. " if own else "")
            + f"Its model type is {config.get('model_type')!r}; transformers is "
            f"{importlib.metadata.version('transformers')}."
        ) from error


def _widened(folder: Path, model: Any, rung: Rung, device: str, *, streamed: bool) -> dict[str, Any]:
    """Put a model onto its rung and device, and return what there is to say of that."""
    if streamed:
        check_supported(model)
        return Streamed(folder, model, blocks_of, device, rung).record
    record = widen(model, rung)
    model.to(device)
    model.eval()
    model.requires_grad_(False)
    return record


def _origin(checkpoint: Checkpoint, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Which checkpoint a record is of."""
    return {
        "name": checkpoint.name,
        "source": checkpoint.source,
        "family": family_of(str(config.get("model_type", checkpoint.family))),
        "label": checkpoint.label,
        "identity": identity(checkpoint.name),
        "folder": str(folder),
    }


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
