"""Which cells belong together, and what to call them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from drift.dataset.contract import SCALARS
from drift.dataset.sweep import Sweep, scalar
from drift.reading.wording.tables import code

__all__ = [
    "DEEP_STEPS",
    "TEXT_AXES",
    "after_layer",
    "axis_value",
    "cell_identity",
    "deepest",
    "file_name",
    "grouped_cells",
    "judged_chains",
    "layer_words",
    "longest",
    "protocol_lines",
    "protocol_summaries",
    "select",
]


def cell_identity(ds: xr.Dataset) -> dict[str, Any]:
    """Scalar coordinates of a cell, and the number of its tokens, as plain values."""
    return {name: ds[name].item() for name in SCALARS} | {"tokens": int(ds["token_stop"].values[-1])}


def select(sweep: Sweep, models: Sequence[str] | str | None = None) -> Sweep:
    """Keep some models (a list, or text with commas); ``None`` keeps all."""
    if models is None:
        return sweep
    wanted = [m.strip() for m in models.split(",")] if isinstance(models, str) else list(models)
    return sweep.sel(model=wanted)


def protocol_summaries(sweep: Sweep) -> dict[str, str]:
    """Say of each protocol label what it does, as the cells that ran it say; empty where no cell does."""
    found: dict[str, str] = {}
    for label in map(str, sweep.values("protocol")):
        said = (str(ds.attrs.get("protocol_summary", "")) for ds in sweep if ds["protocol"].item() == label)
        found[label] = next((words for words in said if words), "")
    return found


def protocol_lines(sweep: Sweep) -> list[str]:
    """List the readings of a sweep in Markdown: label, and what it does where the cells say it."""
    return [f"**{code(label)}**" + (f": {said}" if said else "") for label, said in protocol_summaries(sweep).items()]


def layer_words(ds: xr.Dataset, layer: int) -> str:
    """Name a layer in a sentence."""
    kind = str(ds["layer_kind"].sel(layer=layer).item())
    return {"embedding": "the embeddings", "final_norm": "the final norm"}.get(kind, f"block {layer}")


def after_layer(ds: xr.Dataset, layer: int) -> str:
    """Name the place behind a layer in a sentence."""
    return f"after {layer_words(ds, layer)}"


def longest(sweep: Sweep) -> Sweep:
    """Keep, per model, precision and protocol, the cells of the smallest chunk size: the longest chains."""
    smallest: dict[tuple[Any, ...], int] = {}
    for ds in sweep:
        key = tuple(ds[n].item() for n in ("model", "dtype", "protocol"))
        smallest[key] = min(smallest.get(key, ds["chunk_size"].item()), ds["chunk_size"].item())
    return sweep.derive(
        ds
        for ds in sweep
        if ds["chunk_size"].item() == smallest[tuple(ds[n].item() for n in ("model", "dtype", "protocol"))]
    )


def file_name(ds: xr.Dataset) -> str:
    """Name of the file that a cell came from; its title where it came from none."""
    return Path(str(ds.encoding.get("source", ""))).name or str(ds.attrs.get("title", ""))


def axis_value(ds: xr.Dataset, axis: str) -> Any:
    """Value of a cell on an axis; the number of tokens counts as one."""
    return int(ds.variables["token_stop"].values[-1]) if axis == "tokens" else scalar(ds, axis)


TEXT_AXES = ("tokens", "attn_implementation", "device", "reference")  # what cells share beside the claim's axis


def grouped_cells(sweep: Sweep, *keys: str) -> Iterator[tuple[dict[str, Any], list[xr.Dataset]]]:
    """Cells that agree in `keys`, in attention, device, and number of tokens and documents."""
    groups: dict[tuple[Any, ...], list[xr.Dataset]] = {}
    for ds in sweep:
        # Documents are compared one with one: they must be the same texts.
        text = str(ds.attrs.get("tokens_sha256", ""))
        key = (*(axis_value(ds, k) for k in (*keys, *TEXT_AXES)), ds.sizes["document"], text)
        groups.setdefault(key, []).append(ds)
    for key, cells in groups.items():
        yield dict(zip((*keys, *TEXT_AXES, "documents", "text"), key, strict=True)), cells


def deepest(sweep: Sweep) -> list[xr.Dataset]:
    """Per model and precision the longest chain; the one with more documents where two are equally long."""
    found: dict[tuple[str, str], xr.Dataset] = {}
    for ds in sweep:
        key = (axis_value(ds, "model"), axis_value(ds, "dtype"))
        size = (ds.sizes["step"], ds.sizes["document"])
        if key not in found or size > (found[key].sizes["step"], found[key].sizes["document"]):
            found[key] = ds
    return list(found.values())


#: A chain of so many steps is judged in whatever chunks it comes: 31 transitions, three times as deep as the published
#: rise. A shorter one is judged where there is none deeper.
DEEP_STEPS = 32


def judged_chains(sweep: Sweep) -> list[xr.Dataset]:
    """The chains that verdicts on depth rest on: of every model and precision the deepest, then those in other chunks.

    A chain in other chunks counts from :data:`DEEP_STEPS` steps on; per chunk size it is the longest one, and of those
    as long the one with more documents.
    """
    first = deepest(sweep)
    there = {id(ds) for ds in first}
    sizes = sorted({axis_value(ds, "chunk_size") for ds in sweep})
    by_size = (deepest(sweep.derive(ds for ds in sweep if axis_value(ds, "chunk_size") == size)) for size in sizes)
    return first + [ds for cells in by_size for ds in cells if ds.sizes["step"] >= DEEP_STEPS and id(ds) not in there]
