"""How the hidden states that blocks hand each other lie in memory: one stream, or several beside each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drift.errors import UnsupportedModelError

__all__ = ["Streams"]


@dataclass(frozen=True)
class Streams:
    """The residual streams of a model.

    The descent knows states [text, token, feature]; there, the features of several streams lie side by side.

    Attributes
    ----------
    axis : int or None
        Where the streams are among the dimensions of a block's own states; None where there is one alone.
    count : int
        How many there are.
    """

    axis: int | None = None
    count: int = 1

    @classmethod
    def of(cls, name: str, states: object, tokens: int) -> Streams:
        """How states of one text of ``tokens`` tokens lie in memory, which a block called ``name`` was given.

        Raises
        ------
        UnsupportedModelError
            If that cannot be told.
        """
        if isinstance(states, Tensor):
            if states.ndim == 3 and states.shape[:2] == (1, tokens):
                return cls()
            if states.ndim == 4 and states.shape[:2] == (1, tokens):
                return cls(2, states.shape[2])
            if states.ndim == 4 and states.shape[1:3] == (1, tokens):
                return cls(0, states.shape[0])
        raise UnsupportedModelError(
            f"{name} is not given hidden states [text, token, feature] of a text's tokens, nor several streams of "
            "these, so the blocks of this architecture cannot be driven one by one."
        )

    def fits(self, states: object) -> bool:
        """Whether what a block was given may be such states."""
        if not isinstance(states, Tensor) or states.ndim != (3 if self.axis is None else 4):
            return False
        return self.axis is None or states.shape[self.axis] == self.count

    def first(self, states: Tensor) -> Tensor:
        """The first of the streams [text, token, feature]."""
        return states if self.axis is None else states.select(self.axis, 0)

    def joined(self, states: Tensor) -> Tensor:
        """A block's own states as [text, token, feature]."""
        return states if self.axis is None else states.movedim(self.axis, 2).flatten(2)

    def parted(self, states: Tensor) -> Tensor:
        """States [text, token, feature] as a block's own, laid out in memory as the model lays them out."""
        if self.axis is None:
            return states
        return states.unflatten(2, (self.count, -1)).movedim(2, self.axis).contiguous()
