"""What a result was made with: packages, commit, device, driver, threads."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drift
from drift._version import NUMERICS_VERSION, __version__

if TYPE_CHECKING:
    import torch

__all__ = ["git_state", "package_versions", "provenance"]

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "xarray", "h5netcdf", "h5py", "gguf")


@cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on a result; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> tuple[str, bool]:
    """Commit of the source tree that drift runs from, and whether tracked files differ from it.

    An installed package is in no source tree: the commit is then ``""``.
    """
    root = Path(drift.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "", False
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def provenance(device: torch.device) -> dict[str, Any]:
    """Attributes that say what a result was made with.

    Parameters
    ----------
    device : torch.device
        Where the passes ran.
    """
    import torch

    commit, dirty = git_state()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        driver = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    else:
        name = _processor()
        driver = "none"
    return {
        "drift_version": __version__,
        "numerics_version": NUMERICS_VERSION,
        "git_commit": commit,
        "git_dirty": dirty,
        "versions_json": package_versions(),
        "device_name": name,
        "driver": driver,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
