"""Which CUDA devices there are, asked of the driver: no torch here, for a plan is made in a second."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from functools import cache

__all__ = ["cuda_devices", "cuda_problem"]


@cache
def _ask() -> tuple[int, str]:
    """How many devices there are, and why none, if so."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return 0, "torch is not installed"
    if version.endswith("+cpu"):
        return 0, f"the installed torch {version} is built for CPUs only"
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0, "there is no NVIDIA driver (libcuda) on this machine"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value < 1:
        return 0, "the NVIDIA driver reports no usable device"
    return count.value, ""


def cuda_problem() -> str | None:
    """Why there is no CUDA device for torch, or None where there is one."""
    return _ask()[1] or None


def cuda_devices() -> tuple[str, ...]:
    """The devices that this process may use, each as ``CUDA_VISIBLE_DEVICES`` names it."""
    named = tuple(name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip())
    count = _ask()[0]
    return named[:count] if named else tuple(map(str, range(count)))
