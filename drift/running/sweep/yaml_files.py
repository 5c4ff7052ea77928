"""Read YAML that people write: plain values, lists and objects, each error with its line and its key.

Less than YAML can do, on purpose: an alias may stand for a million values, a tag for any type, and what a date or a
number cannot be read as is an error of the person's that has a place in the file.
"""

from __future__ import annotations

from typing import Any

import yaml

from drift._bounds import MOST_CONFIG_BYTES, MOST_DEPTH
from drift._outside import OutsideError, read_bytes

__all__ = ["parse_yaml", "read_yaml"]

_LONGEST_NUMBER = 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Composes nodes; aliases and depth are refused while composing, before anything grows."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"the alias *{event.anchor[:40]} is not taken: write the values out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        if self.depth >= MOST_DEPTH:
            problem = f"nested too deep; at most {MOST_DEPTH} levels are read"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _refusal(node: yaml.Node, path: str, problem: str) -> OutsideError:
    return OutsideError(f"{_place(node.start_mark)}{f'{path[:200]}: ' if path else ''}{problem}")


def parse_yaml(payload: bytes) -> Any:
    """Read YAML.

    Parameters
    ----------
    payload : bytes

    Returns
    -------
    object
        Of dicts, lists and plain values; None where the text is empty.

    Raises
    ------
    OutsideError
        With line and key, where there are any.
    """
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OutsideError(f"not a text file ({error.reason} at byte {error.start})") from error
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _built(loader, node, "")
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        problem = error.problem or str(error).splitlines()[0]
        raise OutsideError(f"{_place(error.problem_mark)}not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise OutsideError(f"not valid YAML: {str(error).splitlines()[0]}") from error


def read_yaml(path: str) -> Any:
    """Read a YAML file; errors as :func:`drift._outside.read_bytes` and :func:`parse_yaml`."""
    return parse_yaml(read_bytes(path, MOST_CONFIG_BYTES))


def _built(loader: _Loader, node: yaml.Node, path: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(loader, node, path)
    if node.tag not in _PLAIN:
        raise _refusal(node, path, f"the type {node.tag[:60]!r} is not taken here")
    if isinstance(node, yaml.SequenceNode):
        return [_built(loader, item, f"{path}[{place}]") for place, item in enumerate(node.value)]
    made: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refusal(key_node, path, "a list or an object cannot be a key")
        if key_node.tag == _MERGE:
            raise _refusal(key_node, path, "the merge key << is not taken: write the values out")
        key = _scalar(loader, key_node, path)
        if key in made:
            raise _refusal(key_node, path, f"not valid YAML: the key {str(key)[:60]!r} stands here twice")
        made[key] = _built(loader, value_node, f"{path}.{key_node.value}" if path else str(key_node.value))
    return made


def _scalar(loader: _Loader, node: yaml.ScalarNode, path: str) -> Any:
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise _refusal(node, path, f"a number of {len(node.value):,} characters")
    try:
        return loader.construct_object(node)
    except yaml.constructor.ConstructorError as error:
        raise _refusal(node, path, str(error.problem)) from error
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:  # what YAML's own types raise
        kind = node.tag.rsplit(":", 1)[-1]
        raise _refusal(
            node, path, f"{node.value[:60]!r} cannot be read as YAML's {kind} ({error}); put it in quotes if it is text"
        ) from error
