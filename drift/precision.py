"""The precision ladder: which numbers a pass computes with, and every switch that bears on them.

All rungs compute the same real function: the weights are the published ones, only ever widened. What differs is the
arithmetic, and with it the unit roundoff.
"""

from __future__ import annotations

import os
import platform
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift.errors import ConfigError, PrecisionError

if TYPE_CHECKING:
    import torch

__all__ = ["RUNGS", "Rung", "Widening", "default_half_matmul", "numerics", "rung", "rung_of", "widen"]

HALF_MATMUL = ("native", "float32")


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes
    ----------
    name : str
        The name used in configurations and in the `dtype` coordinate.
    torch_dtype : str
        Attribute of :mod:`torch` that tensors are stored in.
    unit_roundoff : float
        Largest relative error of rounding a real number to the nearest one of this format: half the distance from 1
        to the next larger number, that is 2**-p for p bits of significand (Higham, Accuracy and Stability of
        Numerical Algorithms, 2nd ed., section 2.1).
    needs_gpu : bool
        Whether only a CUDA device has this arithmetic.
    """

    name: str
    torch_dtype: str
    unit_roundoff: float
    needs_gpu: bool = False


RUNGS: dict[str, Rung] = {
    r.name: r
    for r in (
        Rung("bf16", "bfloat16", 2.0**-8),
        Rung("fp16", "float16", 2.0**-11),
        Rung("tf32", "float32", 2.0**-11, needs_gpu=True),
        Rung("fp32", "float32", 2.0**-24),
        Rung("fp64", "float64", 2.0**-53),
    )
}


def rung(name: str) -> Rung:
    """Return the rung of that name.

    Raises
    ------
    ConfigError
        If there is none; the message lists the names.
    """
    if name not in RUNGS:
        near = get_close_matches(str(name), RUNGS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Unknown dtype {name!r}.{hint} Known dtypes: {', '.join(RUNGS)}.")
    return RUNGS[name]


def rung_of(dtype: torch.dtype) -> Rung:
    """Return the rung on which tensors of a torch dtype compute (float32 reads as fp32, never as tf32).

    Raises
    ------
    PrecisionError
        If the dtype is on no rung.
    """
    name = str(dtype).removeprefix("torch.")
    for candidate in RUNGS.values():
        if candidate.torch_dtype == name and not candidate.needs_gpu:
            return candidate
    raise PrecisionError(f"The model computes in {name}, which is not on the precision ladder ({', '.join(RUNGS)}).")


def default_half_matmul(device: str, dtype: str = "bf16") -> str:
    """Say how 16-bit matrix products should be computed on a device: ``native`` or ``float32``.

    x86 processors without instructions for the format (many have them for bfloat16 but not for float16) run 16-bit
    products through a reference path that is five to ten times slower than float32. There, ``float32`` is chosen.
    Needs no torch.
    """
    if not device.startswith("cpu") or platform.machine().lower() not in ("x86_64", "amd64"):
        return "native"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        flags = set(text.split("flags", 1)[1].split("\n")[0].split())
    except (OSError, IndexError):
        return "native"
    known = {"bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert"}, "fp16": {"avx512_fp16", "amx_fp16"}}
    return "native" if flags & known[dtype] else "float32"


class Widening:
    """Casts published weights to a rung, one at a time, without changing a single one.

    Parameters
    ----------
    published : torch.dtype
        The dtype that the model's weights are published in.
    rung : Rung
        The rung to stand on.

    Attributes
    ----------
    target : torch.dtype
        What weights are cast to.
    looks : bool
        Whether casting looks at the numbers, and not only at dtypes: bfloat16 may overflow or underflow in float16.
    """

    def __init__(self, published: torch.dtype, rung: Rung) -> None:
        import torch

        self.target: torch.dtype = getattr(torch, rung.torch_dtype)
        self.looks = published is torch.bfloat16 and self.target is torch.float16
        self._published = published
        self._rung = rung
        self._changed = 0
        self._total = 0

    def cast(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight on the rung; one that has no floating point is returned as it is.

        Raises
        ------
        PrecisionError
            If the rung would narrow the weight, or it overflows in fp16.
        """
        import torch

        if not weight.is_floating_point():
            return weight
        if torch.promote_types(weight.dtype, self.target) is not self.target and not self.looks:
            raise PrecisionError(
                f"The weight {name} is published in {str(weight.dtype).removeprefix('torch.')}, which the rung "
                f"{self._rung.name} would narrow: that would change the model, not only its arithmetic. "
                f"Choose a wider rung, or convert the checkpoint first."
            )
        return weight.detach().to(self.target)

    def examine(self, name: str, weight: torch.Tensor, cast: torch.Tensor) -> None:
        """Count what a cast lost, where it can lose anything.

        Raises
        ------
        PrecisionError
            If a finite number became infinite.
        """
        import torch

        if not self.looks or not weight.is_floating_point():
            return
        overflowed = torch.isinf(cast) & torch.isfinite(weight)
        if bool(overflowed.any()):
            largest = float(weight.detach().abs().max())
            raise PrecisionError(
                f"The weight {name} holds {largest:.4g}, which overflows on the fp16 rung "
                f"(largest number 65504). Use bf16, fp32 or fp64 for this model."
            )
        self._changed += int((cast.to(torch.float32) != weight.to(torch.float32)).sum())
        self._total += int((weight != 0).sum())

    def buffers(self, model: torch.nn.Module) -> None:
        """Cast a model's buffers that are in the published dtype, in place.

        Buffers that are no part of a checkpoint are worked out in float32 on purpose, above all the inverse frequencies
        of rotary embeddings. They stay as they are, also where the weights are float32 too: every rung is to see the
        same positions.
        """
        import torch

        for module in model.modules():
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.dtype is torch.float32 and key in module._non_persistent_buffers_set:
                    continue
                if buffer.dtype is self._published and buffer.dtype is not self.target:
                    setattr(module, key, buffer.to(self.target))

    def record(self) -> dict[str, Any]:
        """What :func:`widen` returns, of the weights examined so far."""
        return {
            "published_dtype": str(self._published).removeprefix("torch."),
            "underflow_share": self._changed / self._total if self._total else 0.0,
        }


def widen(model: torch.nn.Module, rung: Rung) -> dict[str, Any]:
    """Cast a model's published weights to a rung, in place, without changing a single one.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose parameters are in their published dtype.
    rung : Rung
        The rung to stand on.

    Returns
    -------
    dict
        ``published_dtype`` (str), ``underflow_share`` (float: share of the non-zero weights that become zero or lose
        bits to subnormal numbers on the fp16 rung; 0.0 elsewhere).

    Raises
    ------
    PrecisionError
        If the rung cannot hold the published weights: it would narrow them, or one overflows in fp16.

    Notes
    -----
    Buffers in the published dtype are cast along with the weights; buffers kept in float32 on purpose (the inverse
    frequencies of rotary embeddings) stay, so that all rungs see the same positions.
    """
    import torch

    published = {p.dtype for p in model.parameters() if p.is_floating_point()}
    main = next((d for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64) if d in published), None)
    if main is None:
        raise PrecisionError("The model has no floating-point weights.")
    widening = Widening(main, rung)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            cast = widening.cast(name, parameter)
            widening.examine(name, parameter, cast)
            parameter.data = cast
        widening.buffers(model)
    config = getattr(model, "config", None)
    if config is not None:
        config.dtype = widening.target
    return widening.record()


def _keep_float64() -> Any:
    """Return a mode in which a float64 tensor stays float64 through ``.float()`` and ``.to(float32)``.

    transformers casts to float32 inside normalisation layers, eager softmax and rotary embeddings. That is widening for
    16-bit tensors, but it leaves a floor of 5e-8 under a float64 pass.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    narrow = (torch.float32, torch.float16, torch.bfloat16)
    softmaxes = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax)

    class KeepFloat64(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            first = args[0] if args else kwargs.get("input")
            if isinstance(first, torch.Tensor) and first.dtype is torch.float64:
                if func is torch.Tensor.float:
                    return first
                if func is torch.Tensor.to or func is torch.Tensor.type or func in softmaxes:
                    args = tuple(torch.float64 if any(a is d for d in narrow) else a for a in args)
                    kwargs = {k: torch.float64 if any(v is d for d in narrow) else v for k, v in kwargs.items()}
            return func(*args, **kwargs)

    return KeepFloat64()


def _accumulate_in_float32() -> Any:
    """Return a mode in which 16-bit matrix products on the CPU are computed in float32 and rounded once.

    This is what 16-bit matrix units do: exact products of 16-bit operands, accumulated in float32, one rounding of the
    result. It needs no such unit, and is several times faster than the reference kernels of a CPU without one.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    halves = (torch.bfloat16, torch.float16)
    functional = torch.nn.functional
    products = {
        functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm,
        torch.mm, torch.Tensor.mm, torch.baddbmm, torch.addmm, torch.einsum, functional.scaled_dot_product_attention,
    }  # fmt: skip
    # One layer's weights and the output embedding: enough for every chunk of every lane to find its weights widened.
    capacity = 16
    widened: OrderedDict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = OrderedDict()

    def widen_weight(weight: torch.Tensor) -> torch.Tensor:
        key = id(weight)
        if key not in widened:
            # An entry ends with its weight: weights that are streamed are not kept alive by their copies, and an id
            # that is used again finds nothing.
            forget = weakref.ref(weight, lambda _: widened.pop(key, None))
            widened[key] = (forget, weight.detach().to(torch.float32))
            if len(widened) > capacity:
                widened.popitem(last=False)
        widened.move_to_end(key)
        return widened[key][1]

    def widen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in halves:
            return widen_weight(value) if isinstance(value, torch.nn.Parameter) else value.to(torch.float32)
        if isinstance(value, (list, tuple)):
            return type(value)(widen(v) for v in value)
        return value

    class AccumulateInFloat32(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in products:
                named = kwargs.get("input", kwargs.get("query"))
                tensor = next((a for a in args if isinstance(a, torch.Tensor)), named)
                if isinstance(tensor, torch.Tensor) and tensor.dtype in halves and tensor.device.type == "cpu":
                    out = func(*(widen(a) for a in args), **{k: widen(v) for k, v in kwargs.items()})
                    return out.to(tensor.dtype)
            return func(*args, **kwargs)

    return AccumulateInFloat32()


@contextmanager
def numerics(rung: Rung, device: str = "cpu", half_matmul: str = "native") -> Iterator[dict[str, Any]]:
    """Set every numerical switch for a rung, and put all of them back afterwards.

    Parameters
    ----------
    rung : Rung
        The rung to compute on.
    device : str
        Torch device.
    half_matmul : {"native", "float32"}
        How 16-bit matrix products are computed on the CPU: by torch's own kernels, or in float32 with one rounding of
        the result. Other devices always use their own.

    Yields
    ------
    dict
        The switches, as recorded in a dataset's `numerics_json` attribute.

    Raises
    ------
    ConfigError
        If `half_matmul` is neither.
    PrecisionError
        If the rung needs a GPU and the device is none.
    """
    import torch

    if half_matmul not in HALF_MATMUL:
        raise ConfigError(f"half_matmul is {half_matmul!r}; it must be one of {', '.join(HALF_MATMUL)}.")
    cuda = device.startswith("cuda")
    if rung.needs_gpu and not cuda:
        raise PrecisionError(f"The rung {rung.name} needs a CUDA device; this pass runs on {device}.")
    half = rung.torch_dtype in ("bfloat16", "float16")
    with ExitStack() as stack:
        switches: dict[str, Any] = {
            "dtype": rung.torch_dtype,
            "float32_matmul": "tf32" if rung.name == "tf32" else "ieee",
            "float64_guard": rung.name == "fp64",
            "half_matmul": half_matmul if half and not cuda else "native",
            "deterministic_algorithms": True,
            "grad": False,
            "inference_mode": True,
        }
        stack.enter_context(_restored(torch.backends.cuda.matmul, "fp32_precision", switches["float32_matmul"]))
        reductions = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"
        for flag in (*reductions, "allow_fp16_accumulation"):
            stack.enter_context(_restored(torch.backends.cuda.matmul, flag, False))
            switches[flag] = False
        # What surrounds a pass must not choose its precision.
        stack.enter_context(torch.autocast("cuda" if cuda else "cpu", enabled=False))
        stack.enter_context(_restored(torch.backends.mkldnn.matmul, "fp32_precision", "ieee"))
        stack.enter_context(_deterministic())
        if cuda:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            # The flash and memory-efficient kernels do not exist for float64, and take no arbitrary mask in all
            # shapes: a fixed order of preference keeps the choice the same for every chunk that allows it.
            backends = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
            stack.enter_context(sdpa_kernel(backends))
            stack.enter_context(_heads_repeated())
            stack.enter_context(_math_attention_in_full())
            switches["sdpa_backends"] = [b.name for b in backends]
            switches["cublas_workspace_config"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        else:
            switches["sdpa_backends"] = ["CPU default"]
            switches["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        stack.enter_context(torch.inference_mode())
        if rung.name == "fp64":
            stack.enter_context(_keep_float64())
        if switches["half_matmul"] == "float32":
            stack.enter_context(_accumulate_in_float32())
        yield switches


@contextmanager
def _restored(owner: Any, path: str, value: Any) -> Iterator[None]:
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _heads_repeated() -> Iterator[None]:
    """Repeat the heads of grouped queries before attention, masked or not.

    transformers leaves that to the kernel where there is no mask, which is in full attention; but the memory-efficient
    kernel knows no groups, and the one in its place holds all scores at once: tokens squared, for every head.
    """
    from transformers.integrations import sdpa_attention

    with _restored(sdpa_attention, "use_gqa_in_sdpa", lambda *args, **kwargs: False):
        yield


@contextmanager
def _math_attention_in_full() -> Iterator[None]:
    """Have the plain attention kernel accumulate 16-bit sums in float32."""
    import torch

    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
