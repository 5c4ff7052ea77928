"""Attributes of a cell that hold JSON: what each of them must be, and the one way to read one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift._outside import Form, OutsideError, parse_json
from drift.errors import DatasetError

__all__ = ["FORMS", "attribute"]

#: What the attributes must be that somebody reads; any other is JSON of any kind.
FORMS = {
    "config_json": Form.CELL_CONFIG,
    "versions_json": Form.VERSIONS,
    "numerics_json": Form.OBJECT,
    "protocol_json": Form.OBJECT,
    "floor_json": Form.FLOOR,
    "reckoned_json": Form.RECKONED,
    "thinned_json": Form.THINNED,
}


def attribute(attrs: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Read an attribute of a cell that is an object; empty where the cell has none.

    Raises
    ------
    DatasetError
        If it is not what it should be.
    """
    if name not in attrs:
        return {}
    try:
        return dict(parse_json(str(attrs[name]), FORMS.get(name, Form.OBJECT)))
    except OutsideError as error:
        raise DatasetError(f"the attribute {name} of a cell is {error}") from error
