"""One block, computed again from states that somebody dumped: in the model's own precision, and in float64."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch

from drift.dataset.rungs import rung
from drift.errors import ArgumentError, UnsupportedModelError
from drift.running.descent.blocks import DescendingLane, run_block
from drift.running.descent.decoders import blocks_of, driving_of
from drift.running.descent.guard import admit
from drift.running.descent.head import open_head
from drift.running.descent.lanes import Lane
from drift.running.model.numerics import computing_rung, default_half_matmul, numerics
from drift.running.model.weights import weights_of
from drift.running.protocols.base import Chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

__all__ = ["Recomputer"]


class Recomputer:
    """Computes blocks of a model again, each on its own.

    Parameters
    ----------
    model : PreTrainedModel
        A supported causal language model, resident or streamed.

    Raises
    ------
    UnsupportedModelError
        If it cannot be driven block by block.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        admit(model)
        if not driving_of(model).plain:
            raise UnsupportedModelError(
                f"{type(model).__name__}: blocks may need more than the states that were dumped (what other blocks "
                "hand them, or the token ids), so none is computed again on its own. Dump fp32, or give --floor."
            )
        own, device = computing_rung(model), str(weights_of(model).device)
        half = default_half_matmul(device, own.name) if own.name in ("bf16", "fp16") else "native"
        wide = weights_of(model).beside(rung("fp64"))
        # Grouped products of experts know no float64 in torch.
        wide.config._experts_implementation = "eager"
        self._models = {False: model, True: wide}
        self._numerics = {False: (own, device, half), True: (rung("fp64"), device, "native")}
        self._device = device
        #: Blocks of the model.
        self.depth = len(blocks_of(model))

    def block(self, block: int, states: NDArray[np.floating], wide: bool) -> dict[str, NDArray[np.float64]]:
        """Compute a block by full attention.

        Parameters
        ----------
        block : int
            The block; 1 is the first.
        states : ndarray [token, feature]
            What it reads: the output of the block before, of a text from its first token on.
        wide : bool
            In float64 instead of the model's own precision.

        Returns
        -------
        dict
            ``hidden`` [token, feature], ``key`` and ``value`` [head, token, feature], float64.

        Raises
        ------
        ArgumentError
            If the model has no such block, or states of another width.
        """
        model = self._models[wide]
        if not 1 <= block <= self.depth:
            raise ArgumentError(f"The dump has a block {block}; {type(model).__name__} has {self.depth} blocks.")
        count = len(states)
        lane = Lane(torch.zeros(count, dtype=torch.int64, device=self._device), (Chunk(0, count),))
        down = DescendingLane(lane, model, [self._given(states, wide)], handed=[()], between=[{}])
        with ExitStack() as stack:
            stack.enter_context(weights_of(model).block(block - 1))
            stack.enter_context(numerics(*self._numerics[wide]))
            pair = run_block(block - 1, down, lambda step, keys, values: None).pair
            assert pair is not None  # of a plain model, whose blocks all attend
            found = {"hidden": down.text(down.states), "key": pair[0], "value": pair[1]}
            return {kind: tensor.double().cpu().numpy() for kind, tensor in found.items()}

    def head(
        self, states: NDArray[np.floating], rows: NDArray[np.integer], wide: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute what follows the last block.

        Parameters
        ----------
        states : ndarray [token, feature]
            The last block's output.
        rows : ndarray of int [row]
            Tokens whose logits are wanted, at least one.
        wide : bool
            In float64 instead of the model's own precision.

        Returns
        -------
        final : ndarray of float64 [token, feature]
            After the final norm.
        logits : ndarray of float64 [row, vocabulary]
        """
        with open_head(self._models[wide]) as head, numerics(*self._numerics[wide]):
            final, logits = head(self._given(states, wide), torch.from_numpy(rows))
            return final.double().cpu().numpy(), logits.double().cpu().numpy()

    def _given(self, states: NDArray[np.floating], wide: bool) -> torch.Tensor:
        """States as the model takes them: [1, token, feature]."""
        model = self._models[wide]
        width = model.config.get_text_config(decoder=True).hidden_size
        if states.shape[-1] != width:
            raise ArgumentError(
                f"The dump's hidden states have {states.shape[-1]} features; {type(model).__name__} has {width}."
            )
        return torch.from_numpy(np.ascontiguousarray(states)).to(self._device, model.dtype)[None]
