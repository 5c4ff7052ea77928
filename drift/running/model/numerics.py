"""The precision ladder: which numbers a pass computes with, and every switch that bears on them.

All rungs compute the same real function: the weights are the published ones, only ever widened. What differs is the
arithmetic, and with it the unit roundoff.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift.dataset.rungs import RUNGS, Rung
from drift.dataset.rungs import rung as rung_named
from drift.errors import ConfigError, PrecisionError
from drift.running.model.modes import accumulate_in_float32, keep_float64

if TYPE_CHECKING:
    import torch

__all__ = ["HALF_MATMUL", "computing_rung", "default_half_matmul", "numerics", "rung_of"]

HALF_MATMUL = ("native", "float32")
"""How 16-bit matrix products can be computed on a CPU, see :func:`numerics`."""


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


def computing_rung(model: Any, dtype: str | None = None) -> Rung:
    """Return the rung to compute on: that of a model's format, or the one that was named, if it is of that format.

    Raises
    ------
    ConfigError
        If the named rung is of another format.
    PrecisionError
        If the model's format is on no rung.
    """
    computed = rung_of(model.dtype) if dtype is None else rung_named(dtype)
    if computed.torch_dtype != str(model.dtype).removeprefix("torch."):
        raise ConfigError(f"dtype is {computed.name}, but the model is in {model.dtype}.")
    return computed


def _flags() -> set[str]:
    """What an x86 processor under Linux says that it can do; empty elsewhere."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return set()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return set(text.split("flags", 1)[1].split("\n")[0].split())
    except (OSError, IndexError):
        return set()


def default_half_matmul(device: str, dtype: str = "bf16") -> str:
    """Say how 16-bit matrix products should be computed on a device: ``native`` or ``float32``.

    x86 processors without instructions for the format (many have them for bfloat16 but not for float16) run 16-bit
    products through a reference path that is five to ten times slower than float32. There, ``float32`` is chosen.
    Needs no torch.
    """
    flags = _flags()
    if not device.startswith("cpu") or not flags:
        return "native"
    known = {"bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert"}, "fp16": {"avx512_fp16", "amx_fp16"}}
    return "native" if flags & known[dtype] else "float32"


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
        switches |= stack.enter_context(_cuda_attention()) if cuda else _cpu_attention()
        stack.enter_context(torch.inference_mode())
        if rung.name == "fp64":
            stack.enter_context(keep_float64())
        if switches["half_matmul"] == "float32":
            stack.enter_context(accumulate_in_float32())
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


def _cpu_attention() -> dict[str, Any]:
    """What is recorded of attention on the CPU, where torch leaves nothing to set."""
    import torch

    return {"sdpa_backends": ["CPU default"], "cpu_capability": torch.backends.cpu.get_cpu_capability()}


@contextmanager
def _cuda_attention() -> Iterator[dict[str, Any]]:
    """Have every chunk take the same attention kernel on a GPU where it can, and yield what is recorded of it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The flash and memory-efficient kernels do not exist for float64, and take no arbitrary mask in all shapes: a
    # fixed order of preference keeps the choice the same for every chunk that allows it.
    backends = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends), _heads_repeated(), _math_attention_in_full():
        yield {
            "sdpa_backends": [b.name for b in backends],
            "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }


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
        # Every new tensor would be filled with NaN first, in case something reads what nothing wrote: an eighth of the
        # time of a chain of small chunks.
        with _restored(torch.utils.deterministic, "fill_uninitialized_memory", False):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
