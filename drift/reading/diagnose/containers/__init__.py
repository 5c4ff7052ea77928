"""Files that hold tensors, whoever wrote them: safetensors, `.npy`, `.npz`, and `.pt` without torch.

Headers are read, numbers are not: every tensor is given as a place in its file.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from drift._outside import NoFileError, OutsideError, regular
from drift._tensor_files import read_header
from drift.errors import DatasetError
from drift.reading.diagnose.containers.archives import members
from drift.reading.diagnose.containers.held import Held
from drift.reading.diagnose.containers.npy import array
from drift.reading.diagnose.containers.npz import arrays
from drift.reading.diagnose.containers.pt import PICKLE, tensors
from drift.reading.diagnose.stored import Stored

__all__ = ["SUFFIXES", "Held", "tensors_in"]

#: How the names of such files end.
SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth")
_NPY, _ZIP = b"\x93NUMPY", b"PK"


def tensors_in(path: Path) -> Held:
    """Say what a file holds, by its content.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Held
        Its tensors by name (a lone array of a `.npy` has the name ``""``).

    Raises
    ------
    DatasetError
        If it cannot be read, is broken, or is no such file.
    """
    try:
        with regular(path) as (stream, _):
            head = stream.read(len(_NPY))
        if head == _NPY:
            return Held({"": array(path)})
        if head.startswith(_ZIP):
            found = members(path)
            return tensors(path, found) if any(name.endswith(PICKLE) for name in found) else arrays(path, found)
        header = read_header(path)
    except NoFileError as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except OutsideError as error:
        raise DatasetError(f"{path}: {error}. Write it again.") from error
    except (zipfile.BadZipFile, struct.error, ArithmeticError, NotImplementedError, ValueError) as error:
        raise DatasetError(f"{path}: is damaged ({error}). Write it again.") from error
    return Held(
        {name: Stored(name, path, entry.dtype, entry.shape, entry.begin) for name, entry in header.tensors.items()},
        header.metadata,
    )
