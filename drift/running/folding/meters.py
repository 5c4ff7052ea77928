"""How much memory was taken at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

__all__ = ["PeakMemory", "process_peak"]


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
