"""Function modes of torch that keep a precision what it says."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from drift.running.limits import WIDENED_WEIGHTS

if TYPE_CHECKING:
    import torch

__all__ = ["accumulate_in_float32", "keep_float64"]


def keep_float64() -> Any:
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


def accumulate_in_float32() -> Any:
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
    widened: OrderedDict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = OrderedDict()

    def widen_weight(weight: torch.Tensor) -> torch.Tensor:
        key = id(weight)
        if key not in widened:
            # An entry ends with its weight: weights that are streamed are not kept alive by their copies, and an id
            # that is used again finds nothing.
            forget = weakref.ref(weight, lambda _: widened.pop(key, None))
            widened[key] = (forget, weight.detach().to(torch.float32))
            if len(widened) > WIDENED_WEIGHTS:
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
