"""Where the files that are not code lie: manifests and notebooks, in a source tree or in an installed package."""

from __future__ import annotations

from pathlib import Path

from drift.errors import DriftError

__all__ = ["resource"]

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Path of a file that drift carries.

    Parameters
    ----------
    name : str
        Relative path as in the source tree, with forward slashes: ``"data/checkpoints.json"``,
        ``"notebooks/plateau.ipynb"``.

    Returns
    -------
    Path
        An existing file. An installed wheel keeps copies inside the package; a source tree (also one installed with
        ``pip install -e``) is read in place, so that an edited notebook is the one that runs.

    Raises
    ------
    DriftError
        There is no such file: the installation is incomplete.
    """
    places = (_PACKAGE / "_resource_files", _PACKAGE.parent)
    for place in places:
        path = place.joinpath(*name.split("/"))
        if path.is_file():
            return path
    raise DriftError(
        f"drift carries no file {name!r} (looked in {' and '.join(map(str, places))}). "
        "The installation is incomplete: install drift again."
    )
