"""`quantized`: the carried cache is stored in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from drift.running.protocols.base import Carried, Protocol

if TYPE_CHECKING:
    from torch import Tensor

_FP8_MAX = 448.0  # largest number of float8_e4m3fn


@dataclass(frozen=True)
class Quantized(Protocol):
    """Keys and values are stored in 8 or 4 bits and dequantised for use.

    A chunk attends to its own keys and values as they were computed and to those of earlier chunks as they are stored.
    What a chunk appends is quantised once, when it is stored. Integers are asymmetric, with a scale and a zero point
    per group, which take 16-bit floating point in practice and are kept exact here; fp8 (e4m3) has a scale per group.

    Storing in fewer bits is rounding of its own, at a unit roundoff that does not depend on what the pass computes in:
    drift is the same at bf16 and at fp32, so next to the ladder it reads as structural.

    Attributes
    ----------
    format : {"int8", "int4", "fp8"}
        How numbers are stored.
    axis : {"token", "channel"}
        A group is one token's features in one head, or one feature of one head over the tokens of the chunk.
    """

    name: ClassVar[str] = "quantized"
    summary: ClassVar[str] = "keys and values are stored in few bits, and dequantised for use"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "format": ("int8", "int4", "fp8"),
        "axis": ("token", "channel"),
    }

    format: str = "int8"
    axis: str = "token"

    def slots(self, step: int, held: int, new: int) -> int:
        """All of them: storing in fewer bits drops none."""
        return held

    def carry(self, cache: Carried) -> None:
        """Replace what the step appended by what would be read back."""
        import torch

        old = max(0, cache.keys.shape[-2] - cache.new)
        cache.keys = torch.cat([cache.keys[..., :old, :], self.read_back(cache.keys[..., old:, :])], dim=-2)
        cache.values = torch.cat([cache.values[..., :old, :], self.read_back(cache.values[..., old:, :])], dim=-2)

    def read_back(self, x: Tensor) -> Tensor:
        """Quantise and dequantise [..., token, feature], in float32 or, for float64, in that; the dtype stays."""
        import torch

        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dim = -1 if self.axis == "token" else -2
        if self.format == "fp8":
            scale = wide.abs().amax(dim, keepdim=True) / _FP8_MAX
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            # By float32: a float64 would be rounded to float8 in two steps of torch's own choosing.
            stored = (wide / scale).to(torch.float32).to(torch.float8_e4m3fn)
            return (stored.to(wide.dtype) * scale).to(x.dtype)
        levels = 2 ** int(self.format.removeprefix("int")) - 1
        low, high = wide.amin(dim, keepdim=True), wide.amax(dim, keepdim=True)
        scale = (high - low) / levels
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        stored = torch.round((wide - low) / scale).clamp_(0, levels)
        return (stored * scale + low).to(x.dtype)
