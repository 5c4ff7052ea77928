"""Fetch a checkpoint from the hub."""

from __future__ import annotations

from pathlib import Path

from drift.errors import CheckpointError
from drift.running.checkpoints.cache import disk_full, is_disk_full
from drift.running.checkpoints.headers import check_folder
from drift.running.checkpoints.names import embedded

__all__ = ["fetch_hub"]

_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def fetch_hub(name: str) -> Path:
    """Fetch a model of the hub; returns its folder in the hub's own cache.

    Raises
    ------
    CheckpointError
        It is gated, absent, or cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: this hub model is gated. Accept its terms at https://huggingface.co/{name}, log in with "
            "`hf auth login` (or set HF_TOKEN), and run the same command again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: the hub has no such model (or it is private: log in with `hf auth login`). "
            f"Known without a hub are {', '.join(embedded())}."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name}: not a valid hub id ({error}).") from error
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        if is_disk_full(error):
            raise disk_full(Path(getattr(error, "filename", None) or name), 0) from error
        raise CheckpointError(
            f"{name}: not in the local hub cache, and the hub cannot be reached ({type(error).__name__}). Check the "
            "network (HF_ENDPOINT for a mirror; HF_HUB_OFFLINE must not be set), or name a folder. "
            f"Known without a hub are {', '.join(embedded())}."
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: this hub repository has no config.json, so it is not a transformers model.")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{name}: this hub model has no safetensors; pickled weights are refused, because loading a pickle runs "
            "whatever code is in it. Convert it once with save_pretrained, and name the new folder."
        )
    check_folder(folder)
    return folder
