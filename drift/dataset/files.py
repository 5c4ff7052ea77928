"""Write and read cells as netCDF files: whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import xarray as xr

from drift._bounds import MOST_CELL_BYTES, MOST_FILE_BYTES
from drift._outside import OutsideError, read_bytes
from drift.dataset.contract import COORDINATES, SCHEMA_VERSION, VARIABLES, schema_of
from drift.dataset.netcdf import encode
from drift.dataset.task_contract import TASK_COORDINATES, TASK_SCHEMA_VERSION, TASK_VARIABLES, is_task
from drift.dataset.validating import validate
from drift.errors import DatasetError, Fault
from drift.paths import outside_path
from drift.writing import TEMPORARY_SUFFIX, write_whole

__all__ = ["TEMPORARY_SUFFIX", "read", "read_attributes", "write"]

_T = TypeVar("_T")
_AGAIN = (
    "Copy it again from where it was sound; or rename it, so that it does not end in .nc, and run the sweep again, "
    "which computes the cell anew."
)
_CHARACTER = np.dtype("U1").itemsize
_OTHER = "Name the folder of a sweep, or one of its cells"
_UPGRADE = "Upgrade drift, or read it with the drift that wrote it."


# ---------------------------------------------------------------------------------------------- files
def write(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write one cell, whole or not at all.

    The bytes go to a temporary file beside the target, are flushed to the disk, and only then take the target's
    name; the folder is flushed last. So a file that exists is complete, whenever the process is killed. The same
    dataset gives the same bytes.

    Parameters
    ----------
    ds : xarray.Dataset
        A cell that keeps the contract.
    path : path
        The target; its folder is made if need be. An existing file is replaced.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    DatasetError
        If the dataset breaks the contract, or the disk refuses.
    """
    target = outside_path(path, DatasetError)
    validate(ds, source=target.name)
    # Through memory: a full disk is then an OSError of ours, not a crash inside the HDF5 library.
    payload = encode(_clean(ds))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, payload)
    except OSError as error:
        raise DatasetError(
            f"{target}: cannot be written ({error.strerror or error}). Check that the folder is writable and that "
            f"the disk has {len(payload) / 1e6:.1f} MB free, then run the sweep again; finished cells are kept."
        ) from error
    return target


def _clean(ds: xr.Dataset) -> xr.Dataset:
    """Copy `ds` in the contract's order and without encodings, so that equal datasets give equal bytes."""
    clean = ds.drop_encoding()[_names(ds)]
    coordinates = TASK_COORDINATES if is_task(ds.variables) else COORDINATES
    clean = clean.assign_coords({name: clean.coords[name] for name in coordinates if name in clean.coords})
    others = sorted(str(name) for name in clean.coords if name not in coordinates)  # which only a newer contract knows
    if others:
        clean = clean.drop_vars(others).assign_coords({name: clean.coords[name] for name in others})
    clean.attrs = dict(sorted(ds.attrs.items()))
    for name in clean.variables:
        clean[name].attrs = dict(sorted(clean[name].attrs.items()))
    return clean


def _names(ds: xr.Dataset) -> list[str]:
    """Variables of a cell in the contract's order, those that only a newer contract knows last."""
    known = TASK_VARIABLES if is_task(ds.variables) else VARIABLES
    return [n for n in known if n in ds.data_vars] + sorted(str(n) for n in ds.data_vars if n not in known)


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read one cell into memory; no file stays open.

    Parameters
    ----------
    path : path

    Returns
    -------
    xarray.Dataset
        Validated against the schema version that it was written under. ``ds.encoding["source"]`` is the path.

    Raises
    ------
    DatasetError
        If the file is missing, truncated, not netCDF, or breaks the contract; `fault` says which.
    """
    source = outside_path(path, DatasetError)
    ds = _parsed(source, _parse)
    try:
        validate(ds, source=str(source))
    except DatasetError as error:
        known = int(TASK_SCHEMA_VERSION if is_task(ds.variables) else SCHEMA_VERSION)
        remedy = _UPGRADE if (schema_of(ds.attrs) or 0) > known else _AGAIN
        raise DatasetError(f"{error}. {remedy}", fault=error.fault, problem=error.problem) from None
    ds.encoding["source"] = str(source)
    return ds


def read_attributes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what one cell says of itself, and none of its numbers: a hundredth of the time that :func:`read` takes.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict
        Attributes of the file. They are not validated.

    Raises
    ------
    DatasetError
        If the file is missing, truncated or not netCDF.
    """
    return _parsed(outside_path(path, DatasetError), _attributes)


def _parsed(source: Path, parse: Callable[[bytes], _T]) -> _T:
    """What a file's bytes are, and a plain word for what is wrong with them."""

    def damaged(problem: str, advice: str = "") -> DatasetError:
        return DatasetError(f"{source}: {problem}{advice}", fault=Fault.DAMAGED, problem=problem)

    try:
        payload = read_bytes(source, MOST_FILE_BYTES)
    except FileNotFoundError as error:
        raise damaged("no such file") from error
    except OSError as error:
        raise damaged(f"cannot be read ({error.strerror or error})") from error
    except OutsideError as error:
        raise damaged(f"cannot be read ({error})") from error
    if payload[:8] != b"\x89HDF\r\n\x1a\n":
        if source.suffix != ".nc":
            raise damaged("is no cell of a sweep, which are netCDF-4 files whose names end in .nc", f". {_OTHER}")
        raise damaged("is not a netCDF-4 file" if payload else "is empty", f". {_AGAIN}")
    try:
        return parse(payload)
    except Exception as error:  # the HDF5 library raises nearly every kind on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise damaged(f"truncated or damaged ({reason})", f". {_AGAIN}") from error


# Attributes by which netCDF-4 says in HDF5 what xarray keeps as dims and coords.
_MACHINERY = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS", "coordinates", "_FillValue")


def _parse(payload: bytes) -> xr.Dataset:
    """Parse netCDF-4 bytes.

    ``xarray.open_dataset`` gives the same (a test says so) but takes 0.3 s for the 38 variables of a cell, most of
    it in looking up the same dimensions again and again; here each is looked up once, which is ten times faster.
    """
    with h5py.File(io.BytesIO(payload), "r") as file:
        variables: dict[str, xr.Variable] = {}
        items = dict(file.items())
        _check_size(items)
        names = {_address(item.id): name for name, item in items.items()}
        for name, item in items.items():
            noted = item.attrs
            said = list(noted)  # each look-up goes to the file: the values of what is not asked for are not read
            meta = {k: _text(noted[k]) for k in said if k not in _MACHINERY and not k.startswith("_Netcdf4")}
            if "CLASS" in said and noted["CLASS"] == b"DIMENSION_SCALE":
                dims: tuple[str, ...] = (name,)
            else:
                links = noted["DIMENSION_LIST"] if "DIMENSION_LIST" in said else ()
                dims = tuple(names[_address(h5py.h5r.dereference(link[0], file.id))] for link in links)
            variables[name] = xr.Variable(dims, _text_array(item), meta)
        attrs = _own(file)
    task = is_task(variables)
    coordinates, known = (TASK_COORDINATES, TASK_VARIABLES) if task else (COORDINATES, VARIABLES)
    coords = [name for name in coordinates if name in variables]
    coords += sorted(name for name, v in variables.items() if v.dims == (name,) and name not in coordinates)
    data = [name for name in known if name in variables] + [n for n in variables if n not in {*known, *coords}]
    return xr.Dataset({n: variables[n] for n in data}, {n: variables[n] for n in coords}, attrs)


def _address(item: h5py.h5d.DatasetID) -> int:
    """Where in the file a dataset lies; its name is found by searching the file for it, six times as slow."""
    return int(h5py.h5o.get_info(item).addr)


def _check_size(items: Mapping[str, Any]) -> None:
    """Refuse what would take more memory than a cell may, before it is read: what is compressed may claim anything."""
    total = 0
    for name, item in items.items():
        if not isinstance(item, h5py.Dataset):
            raise ValueError(f"it has a group {name!r}")
        if item.external or item.is_virtual:
            raise ValueError(f"the numbers of {name!r} lie in another file")
        total += int(item.size or 0) * max(item.dtype.itemsize, 1)
        if total > MOST_CELL_BYTES:
            raise ValueError(f"its numbers would take more than {MOST_CELL_BYTES:,} bytes of memory")


def _attributes(payload: bytes) -> dict[str, Any]:
    with h5py.File(io.BytesIO(payload), "r") as file:
        return _own(file)


def _own(file: h5py.File) -> dict[str, Any]:
    return {k: _text(v) for k, v in file.attrs.items() if not k.startswith("_NC")}


def _text(value: object) -> object:
    if isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    texts = [value] if isinstance(value, str) else value.ravel().tolist() if isinstance(value, np.ndarray) else []
    for text in texts:
        if isinstance(text, str):
            text.encode()  # the HDF5 library hands on bytes that are no UTF-8 as halves of surrogate pairs
    return value.item() if isinstance(value, np.generic) else value


def _text_array(item: h5py.Dataset) -> np.ndarray:
    if h5py.check_string_dtype(item.dtype):
        texts = np.asarray(item.asstr()[()], dtype=object)  # netCDF text has no fixed width
        widest = max(map(len, texts.ravel().tolist()), default=0)
        if widest * texts.size * _CHARACTER > MOST_CELL_BYTES:
            raise ValueError(f"its texts would take more than {MOST_CELL_BYTES:,} bytes of memory")
        return texts.astype(str)
    return np.asarray(item[()])
