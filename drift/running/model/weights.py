"""Weights that are there when they are needed: all of them in memory, or one block at a time from disk.

A model's weights are *resident* unless something else was attached to it (:func:`weights_of`). *Streamed* weights lie
in safetensors files; the model itself is a skeleton whose parameters take no memory. A block is read while the one
before it computes, cast exactly as :func:`drift.running.model.widening.widen` casts, and dropped after use.

Nothing here knows what a decoder layer is: whoever streams says which modules are the blocks.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from drift._outside import Form, OutsideError, read_json
from drift.dataset.rungs import Rung
from drift.errors import CheckpointError
from drift.running.model.widening import Widening, widen

__all__ = ["Streamed", "UnfitForStreamingError", "Weights", "skeleton", "weights_of"]

_INDEX = "model.safetensors.index.json"


class UnfitForStreamingError(CheckpointError):
    """A checkpoint whose weights cannot be read block by block; it can still be loaded whole."""


class Weights:
    """The weights of a model that lie in memory: whatever is asked for is there already.

    Parameters
    ----------
    model : PreTrainedModel
        The model they belong to.
    """

    streamed = False

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def embedding(self) -> AbstractContextManager[None]:
        """Within it, the input embedding is there."""
        return nullcontext()

    def block(self, index: int) -> AbstractContextManager[None]:
        """Within it, block ``index`` (0 is the first) is there."""
        return nullcontext()

    def head(self) -> AbstractContextManager[None]:
        """Within it, the output embedding is there."""
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        """Within it, the model can be called as a whole."""
        return nullcontext()

    def beside(self, rung: Rung) -> Any:
        """The same model on another rung, beside this one."""
        wide = copy.deepcopy(self.model)
        widen(wide, rung)
        return wide


def weights_of(model: Any) -> Weights:
    """Where a model's weights come from: memory, unless it is a skeleton whose weights are streamed."""
    own = getattr(model, "_drift_weights", None)
    return own if isinstance(own, Weights) else Weights(model)


def skeleton(config: Any, dtype: torch.dtype, attn_implementation: str) -> Any:
    """A causal language model whose parameters have shapes and dtypes but no memory; its buffers are real.

    Parameters
    ----------
    config : PretrainedConfig
        The model's configuration.
    dtype : torch.dtype
        What its weights are published in.
    attn_implementation : str
        ``"sdpa"`` or ``"eager"``.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    # Emptying makes new parameters, which parts those that are tied.
    model.tie_weights()
    model.eval()
    model.requires_grad_(False)
    return model


@dataclass(frozen=True)
class _Stored:
    """One tensor of a file, and the pattern by which transformers merges it with others into a weight, if it does."""

    file: Path
    key: str
    pattern: str | None

    def mapped(self, dtype: torch.dtype) -> Tensor:
        """The tensor; its pages are read when they are touched, and go when the last reference to it goes."""
        # Opened anew for each tensor: one mapping kept for all would count every page ever read as this process's.
        with safe_open(self.file, "pt") as stream:
            tensor: Tensor = stream.get_tensor(self.key)
        return tensor.to(dtype)


class _Files:
    """What a checkpoint's files hold of a skeleton's weights, by the names of the weights."""

    def __init__(self, folder: Path, model: Any) -> None:
        self._model = model
        expected = model.state_dict(keep_vars=True)
        self.dtypes = {name: tensor.dtype for name, tensor in expected.items()}
        self._stored: dict[str, list[_Stored]] = defaultdict(list)
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

            mapping = get_model_conversion_mapping(model)
            renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
            converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
            self._converters = {pattern: c for c in converters for pattern in c.source_patterns}
            for path in _weight_files(folder):
                with safe_open(path, "pt") as stream:
                    keys = sorted(stream.keys())
                for key in keys:
                    name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
                    if name not in expected and key in expected:
                        name, pattern = key, None
                    if name in expected:
                        self._stored[name].append(_Stored(path, key, pattern))
                    if pattern is not None and len(self._converters[pattern].target_patterns) > 1:
                        raise UnfitForStreamingError(f"{folder}: {key} is split into several weights when loaded.")
        except (ImportError, TypeError, AttributeError) as error:
            raise UnfitForStreamingError(
                f"{folder}: this version of transformers does not say how it names weights ({error})."
            ) from error

    def __contains__(self, name: str) -> bool:
        """Whether the files hold a weight."""
        return name in self._stored

    def read(self, name: str) -> Tensor:
        """A weight in its published dtype; a view of the mapped file where that is what is stored."""
        dtype = self.dtypes[name]
        stored = self._stored[name]
        if stored[0].pattern is None:
            return stored[0].mapped(dtype)
        converter = copy.deepcopy(self._converters[stored[0].pattern])
        # As transformers sorts them: by name, with numbers in the order of numbers.
        for each in sorted(stored, key=lambda s: [(len(p) if p.isdigit() else 0, p) for p in s.key.split(".")]):
            tensor = each.mapped(dtype)
            converter.add_tensor(name, each.key, each.pattern, lambda tensor=tensor: tensor)
        value = converter.convert(name, model=self._model, config=self._model.config)[name]
        merged: Tensor = value[0] if isinstance(value, list) else value
        return merged


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers takes the weights from."""
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names: list[str] = list(dict.fromkeys(read_json(index, Form.INDEX)["weight_map"].values()))
        except (OSError, OutsideError) as error:
            raise CheckpointError(f"{index}: not a readable index of shards ({error}).") from error
        if strangers := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise CheckpointError(
                f"{index}: names {strangers[0][:200]!r}, which is no safetensors file of this folder."
            )
        return [folder / name for name in names]
    raise UnfitForStreamingError(f"{folder}: holds neither model.safetensors nor an index of several.")


class Streamed(Weights):
    """Weights that are read from disk when they are needed.

    What lies outside the blocks and is no embedding (the final norm) is small, and stays in memory.

    Parameters
    ----------
    folder : Path
        Folder with safetensors, in one file or in several with an index.
    model : PreTrainedModel
        From :func:`skeleton`, in the published dtype. It is put on the rung, and gets its weights from here.
    blocks_of : callable
        Gives a model's blocks, in the order in which they are called.
    device : str
        Where to compute.
    *rungs : Rung
        What to cast to, one after the other: the last one is where the model stands.

    Attributes
    ----------
    record : dict
        As :func:`drift.running.model.widening.widen` returns.

    Raises
    ------
    UnfitForStreamingError
        If the checkpoint cannot be read block by block, with the reason.
    PrecisionError
        If the rung cannot hold the published weights.
    """

    streamed = True

    def __init__(
        self, folder: Path, model: Any, blocks_of: Callable[[Any], Sequence[nn.Module]], device: str, *rungs: Rung
    ) -> None:
        super().__init__(model)
        self._folder, self._blocks_of, self._rungs = folder, blocks_of, rungs
        self._device = torch.device(device)
        self._blocks = list(blocks_of(model))
        if any(getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")):
            raise UnfitForStreamingError(f"{folder}: {type(model).__name__} keeps some of its weights in float32.")
        self._files = _Files(folder, model)
        published = {p.dtype for p in model.parameters()}
        self._published = next(
            (d for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64) if d in published), torch.float32
        )
        self._widenings = [Widening(self._published, rungs[0])]
        self._widenings += [Widening(self._widenings[-1].target, rung) for rung in rungs[1:]]
        # Every weight by the name that the files know it by, with the places that hold it: several where it is tied.
        self._slots: dict[str, list[tuple[nn.Module, str]]] = {}
        names = self._find_weights()

        def of(module: nn.Module) -> list[str]:
            return list(dict.fromkeys(names[id(p)] for p in module.parameters()))

        self._block_names = [of(block) for block in self._blocks]
        self._embedding_names, self._head_names = of(model.get_input_embeddings()), of(model.get_output_embeddings())
        elsewhere = {*self._embedding_names, *self._head_names, *(name for part in self._block_names for name in part)}
        self._empty = {
            name: nn.Parameter(self._cast(name, getattr(*slots[0])), requires_grad=False)
            for name, slots in self._slots.items()
        }
        self._put(self._empty)
        self._place_buffers()
        self.record = self._examined()
        model.config.dtype = self._widenings[-1].target
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift-weights")
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        model._drift_weights = self
        self._put(self._arrived(self._read([name for name in self._slots if name not in elsewhere])))

    def _find_weights(self) -> dict[int, str]:
        """Note the places of every weight, and return the name that the files know each by its id."""
        names: dict[int, str] = {}
        places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        known: dict[int, list[str]] = defaultdict(list)
        for prefix, module in self.model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                places[id(parameter)].append((module, key))
                known[id(parameter)].append(f"{prefix}.{key}" if prefix else key)
        for identity, aliases in known.items():
            stored = [name for name in aliases if name in self._files]
            if len(stored) != 1:
                what = "is not in the files" if not stored else "is stored twice, though it is tied"
                raise UnfitForStreamingError(f"{self._folder}: the weight {aliases[0]} {what}.")
            names[identity] = stored[0]
            self._slots[stored[0]] = places[identity]
        return names

    def _place_buffers(self) -> None:
        """Put the buffers onto the rung and the device, those of the files in place of the skeleton's."""
        for widening in self._widenings:
            widening.buffers(self.model)
        for prefix, module in self.model.named_modules():
            for key, buffer in module.named_buffers(recurse=False):
                name = f"{prefix}.{key}" if prefix else key
                stored = self._files.read(name).to(buffer.dtype) if name in self._files else buffer
                setattr(module, key, stored.to(self._device))

    def _examined(self) -> dict[str, Any]:
        """What the first widening has to say of the weights, each looked at where that is needed."""
        first = self._widenings[0]
        if first.looks:
            with torch.no_grad():
                for name in self._slots:
                    weight = self._files.read(name)
                    first.examine(name, weight, first.cast(name, weight))
        return first.record()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._device

    def embedding(self) -> AbstractContextManager[None]:
        """Within it, the input embedding is there."""
        return self._there(self._embedding_names)

    def head(self) -> AbstractContextManager[None]:
        """Within it, the output embedding is there."""
        return self._there(self._head_names)

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Within it, a block is there, and the next one is being read."""
        self._fill(index)
        try:
            yield
        except BaseException:
            self._ahead = None
            raise
        finally:
            self._drop(self._block_names[index])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it, the model can be called as a whole: each block is read for its own call only."""
        handles = []

        def place(index: int) -> None:
            block = self._blocks[index]
            handles.append(block.register_forward_pre_hook(lambda *_: self._fill(index)))
            handles.append(block.register_forward_hook(lambda *_: self._drop(self._block_names[index])))

        try:
            for index in range(len(self._blocks)):
                place(index)
            with self._there(list(dict.fromkeys([*self._embedding_names, *self._head_names]))):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._ahead = None
            for names in self._block_names:
                self._drop(names)

    def beside(self, rung: Rung) -> Any:
        """The same model on another rung, streamed as well."""
        config = copy.deepcopy(self.model.config)
        model = skeleton(config, self._published, config._attn_implementation)
        Streamed(self._folder, model, self._blocks_of, str(self._device), *self._rungs, rung)
        return model

    @contextmanager
    def _there(self, names: Sequence[str]) -> Iterator[None]:
        # What an outer context has put there stays there.
        missing = [name for name in names if self._is_empty(name)]
        self._put(self._arrived(self._read(missing)))
        try:
            yield
        finally:
            self._drop(missing)

    def _is_empty(self, name: str) -> bool:
        module, key = self._slots[name][0]
        return module._parameters[key] is self._empty[name]

    def _fill(self, index: int) -> None:
        """Have a block there, and the next one on its way."""
        ahead, self._ahead = self._ahead, None
        names = self._block_names
        self._put(self._arrived(ahead[1].result() if ahead and ahead[0] == index else self._read(names[index])))
        del ahead
        if index + 1 < len(names):
            self._ahead = index + 1, self._reader.submit(self._read, names[index + 1])

    def _drop(self, names: Sequence[str]) -> None:
        self._put({name: self._empty[name] for name in names})

    def _put(self, weights: dict[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            for module, key in self._slots[name]:
                module._parameters[key] = weight

    def _read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Weights in memory of their own: cast on a CPU; for a GPU as published and pinned, for it casts faster."""
        with torch.no_grad():
            if self._device.type != "cpu":
                return {name: self._files.read(name).pin_memory() for name in names}
            return {name: self._own(name, self._files.read(name)) for name in names}

    def _cast(self, name: str, weight: Tensor) -> Tensor:
        for widening in self._widenings:
            weight = widening.cast(name, weight)
        return weight

    def _own(self, name: str, weight: Tensor) -> Tensor:
        cast = self._cast(name, weight)
        # A weight that needs no cast is still the mapped file, or may be.
        return cast.clone(memory_format=torch.contiguous_format) if cast.data_ptr() == weight.data_ptr() else cast

    def _arrived(self, read: dict[str, Tensor]) -> dict[str, nn.Parameter]:
        """What was read as parameters on the device and the rung; `read` is emptied."""
        out = {}
        for name in list(read):
            weight = read.pop(name)
            if self._device.type != "cpu":
                weight = self._cast(name, weight.to(self._device, non_blocking=True))
            out[name] = nn.Parameter(weight, requires_grad=False)
        return out
