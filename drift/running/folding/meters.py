"""How much memory was taken at most."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from drift.errors import ConfigError

__all__ = ["PeakMemory", "memory_of_the_device", "process_peak"]


@contextmanager
def memory_of_the_device() -> Iterator[None]:
    """Within it, a device that runs out of memory is an error for people.

    Raises
    ------
    ConfigError
        With what to do about it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"The device ran out of memory ({str(error).splitlines()[0]}). Have the weights read block by block "
            "(--weights streamed), take smaller chunks, a shorter text or a narrower --dtype, or a protocol that drops "
            "what is old (streaming, evict, merge)."
        ) from error


def process_peak() -> int:
    """Most bytes of memory that this process has ever held; 0 where the system does not say."""
    try:
        # Not `ru_maxrss`, if that can be helped: it begins at what the parent held when it forked.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class PeakMemory:
    """Peak memory of a stretch of work on a device.

    On a CUDA device, of the tensors that torch allocated there since :meth:`begin`, which resets torch's own count. On
    a CPU, of the whole process since it began: systems keep no other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        """Count from here."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def settle(self) -> None:
        """Wait until the device has done what it was given: what is timed must have happened."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def bytes(self) -> int:
        """Most bytes so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return process_peak()
