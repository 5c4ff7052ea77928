"""Weights of a rung as the same real numbers in another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drift.dataset.rungs import Rung
from drift.errors import PrecisionError

if TYPE_CHECKING:
    import torch

__all__ = ["Widening", "widen"]


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
