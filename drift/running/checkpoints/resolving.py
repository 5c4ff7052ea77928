"""Find the checkpoint that a name means."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from drift import _arguments as arguments
from drift.errors import CheckpointError
from drift.paths import outside_path
from drift.running.checkpoints.families import family_of
from drift.running.checkpoints.gguf_headers import gguf_architecture
from drift.running.checkpoints.headers import pickle_refusal, read_config
from drift.running.checkpoints.hub_cache import hub_config
from drift.running.checkpoints.names import HUB_ID, Checkpoint, embedded, safe_name

__all__ = ["resolve"]


def resolve(name: str) -> Checkpoint:
    """Say what a name stands for, without network and without torch.

    Parameters
    ----------
    name : str
        An embedded checkpoint's name, the path of a folder with safetensors, the path of a ``.gguf`` file, or a hub id
        ``organisation/model``. An existing path goes before a hub id of the same spelling.

    Raises
    ------
    CheckpointError
        The name stands for nothing; the message lists what there is.
    """
    name = os.fspath(arguments.path("name", name))
    entries = embedded()
    if name in entries:
        return Checkpoint(name, "embedded", entries[name]["family"], safe_name(name), entry=entries[name])
    path = outside_path(name, CheckpointError) if name else Path()
    if name and path.is_dir():
        if (path / "config.json").is_file():
            config = read_config(path)
            return Checkpoint(
                name,
                "folder",
                family_of(str(config.get("model_type", "unknown"))),
                safe_name(path.resolve().name),
                path,
            )
        found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{path}: no config.json in this folder, so it is not a checkpoint (it holds {found}). "
            "Name a folder written by save_pretrained, or a .gguf file by its full path."
        )
    if name and path.is_file():
        if path.suffix.lower() == ".gguf":
            return Checkpoint(name, "gguf", family_of(gguf_architecture(path)), safe_name(path.stem), path)
        raise CheckpointError(f"{path}: {pickle_refusal(path) or 'neither a folder nor a .gguf file'}.")
    if HUB_ID.fullmatch(name):
        cached = hub_config(name)
        family = family_of(str(cached.get("model_type", "unknown")))
        return Checkpoint(name, "hub", family, safe_name(name.replace("/", "--")))
    near = difflib.get_close_matches(name, entries, n=1, cutoff=0.4)
    raise CheckpointError(
        f"no checkpoint {name!r}: "
        + (f"did you mean {near[0]!r}? " if near else "")
        + f"Known are {', '.join(entries)}; a folder, a .gguf file or a hub id (organisation/model) does as well"
        + (", but there is no such path here." if os.sep in name or name.endswith(".gguf") else ".")
    )
