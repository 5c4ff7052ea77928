"""What a fold takes of a device's memory, before anything is there. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from drift.errors import ConfigError
from drift.running.checkpoints.names import Shape

__all__ = ["CHARACTERS_PER_TOKEN", "Needs", "weights_kept"]

#: Fewer than any prose has, so that the estimate of a text's tokens is on the safe side.
CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class Needs:
    """Bytes that a fold needs of a device.

    Attributes
    ----------
    weights : float
        All weights.
    streamed : float
        Of streamed weights what is there at once: the embeddings, one block, and the next one on its way.
    cache : float
        Keys and values of the text in every block; sliding windows hold fewer.
    """

    weights: float
    streamed: float
    cache: float

    @classmethod
    def of(cls, shape: Shape, item: int, slots: int) -> Needs:
        """Of a model of a shape at `item` bytes a number, and a cache of `slots` slots."""
        embedding = shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)
        block = max(shape.parameters - embedding, 0) / shape.layers
        return cls(
            float(item) * shape.parameters,
            item * (embedding + 2 * block),
            2.0 * shape.layers * shape.kv_heads * shape.head_dim * item * slots,
        )


def weights_kept(needs: Needs | None, room: float | None) -> str:
    """Say whether weights are kept in memory, if they fit beside the cache, or read block by block.

    Parameters
    ----------
    needs : Needs or None
        None where nothing is known of the model before it is there.
    room : float or None
        Bytes that the device has free for them; None where it does not say.

    Returns
    -------
    str
        ``resident`` or ``streamed``.

    Raises
    ------
    ConfigError
        If neither would fit; it says what it would take.
    """
    if needs is None or room is None or needs.weights + needs.cache <= room:
        return "resident"
    if needs.streamed + needs.cache <= room:
        return "streamed"
    raise ConfigError(
        f"This takes about {needs.cache / 1e9:.1f} GB for the cache and {needs.weights / 1e9:.1f} GB for the weights, "
        f"or {needs.streamed / 1e9:.1f} GB where they are read block by block; {max(room, 0) / 1e9:.1f} GB are free. "
        "Shorten the text, take a narrower --dtype or a smaller model, or a protocol that drops what is old "
        "(streaming, evict, merge); --weights resident or streamed tries it all the same."
    )
