"""The pickle in a `.pt` file, read and not run: what it says of tensors, and of the containers that hold them.

``torch.load(weights_only=True)`` calls a few functions that it trusts. Here none is called and no name is looked up:
a name stays a name, and what would be made by one is noted as that.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from drift._bounds import MOST_DEPTH, MOST_PICKLE_BYTES, MOST_PICKLE_CODES
from drift._outside import OutsideError

__all__ = ["Made", "Name", "Persistent", "leaves", "said"]

_LONGEST_NAME = 512
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A function or class that is named: module and name."""

    text: str


@dataclass(frozen=True)
class Persistent:
    """What lies outside of the pickle: a storage of numbers."""

    key: Any


@dataclass(eq=False)
class Made:
    """What something unknown would have made of its arguments, and what was put into it afterwards."""

    by: Any
    given: Any
    items: dict = field(default_factory=dict)
    entries: list = field(default_factory=list)
    state: Any = None


class _Machine:
    """The stack of a pickle: what is a container holds what it was given, and nothing is called."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def push(self, value: Any) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def put(self, pairs: list[Any]) -> None:
        """Put keys and values into what lies on top."""
        top = self.stack[-1]
        into = top if isinstance(top, dict) else top.items if isinstance(top, Made) else {}
        for key, value in zip(pairs[::2], pairs[1::2], strict=False):
            into[key if isinstance(key, str | int) else f"#{len(into)}"] = value

    def extend(self, values: list[Any]) -> None:
        """Append to what lies on top."""
        top = self.stack[-1]
        (top if isinstance(top, list) else top.entries if isinstance(top, Made) else []).extend(values)

    def make(self, count: int) -> None:
        """Note what would be made of the last few things, the first of which makes it."""
        by, *given = self.stack[-count:]
        del self.stack[-count:]
        arguments = given[0] if given and isinstance(given[0], tuple) else ()
        self.stack.append({} if by == Name("collections OrderedDict") else Made(by, arguments))

    def do(self, code: str, argument: Any) -> None:
        """Carry out an instruction."""
        if code in _VALUES:
            self.stack.append(argument)
        elif code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            self.stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[code])]
            self.stack.append(tuple(reversed(items)))
        elif code in _CODES:
            _CODES[code](self, argument)
        else:
            raise OutsideError(f"its pickle has the instruction {code}, which no file of tensors needs")


def _mark(machine: _Machine, argument: Any) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _global(machine: _Machine, argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise OutsideError("its pickle names something by what is no text")
    machine.stack.append(Name(f"{module} {name}"))


def _built(machine: _Machine, argument: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Made):
        machine.stack[-1].state = state


def _dict(machine: _Machine, argument: Any) -> None:
    pairs = machine.marked()
    machine.stack.append({})
    machine.put(pairs)


def _memoize(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else int(argument)] = machine.stack[-1]


def _pop(machine: _Machine, argument: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _drop(machine: _Machine, argument: Any) -> None:
    machine.marked()


def _set(machine: _Machine, argument: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.put([key, value])


def _get(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[int(argument)])


_CODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "MARK": _mark,
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.marked())),
    "LIST": lambda machine, argument: machine.push(machine.marked()),
    "FROZENSET": lambda machine, argument: machine.push(tuple(machine.marked())),
    "DICT": _dict,
    "APPEND": lambda machine, argument: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, argument: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, argument: machine.extend(machine.marked()),
    "SETITEM": _set,
    "SETITEMS": lambda machine, argument: machine.put(machine.marked()),
    "GLOBAL": lambda machine, argument: machine.stack.append(Name(str(argument))),
    "STACK_GLOBAL": _global,
    "BINPERSID": lambda machine, argument: machine.stack.append(Persistent(machine.stack.pop())),
    "REDUCE": lambda machine, argument: machine.make(2),
    "NEWOBJ": lambda machine, argument: machine.make(2),
    "NEWOBJ_EX": lambda machine, argument: machine.make(3),
    "BUILD": _built,
    "DUP": lambda machine, argument: machine.stack.append(machine.stack[-1]),
    "POP": _pop,
    "POP_MARK": _drop,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
}


def said(raw: bytes) -> Any:
    """Read a pickle.

    Parameters
    ----------
    raw : bytes
        The whole of it.

    Returns
    -------
    object
        Texts, numbers, None, dict, list, tuple, :class:`Name`, :class:`Persistent` and :class:`Made`.

    Raises
    ------
    OutsideError
        If it is none, too long, or has instructions that no file of tensors needs.
    """
    if len(raw) > MOST_PICKLE_BYTES:
        raise OutsideError(f"its pickle is {len(raw):,} bytes long; at most {MOST_PICKLE_BYTES:,} are read")
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= MOST_PICKLE_CODES:
                raise OutsideError(f"its pickle has more than {MOST_PICKLE_CODES:,} instructions")
            if opcode.name == "STOP":
                break
            machine.do(opcode.name, argument)
        return machine.stack[-1]
    except (IndexError, KeyError) as error:
        raise OutsideError("its pickle takes what nobody put there") from error
    except OutsideError:
        raise
    except ValueError as error:
        raise OutsideError(f"its pickle is none ({error})") from error


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        # The same long text may be the key of many.
        keys = (key for key in value if not isinstance(key, str) or len(key) <= _LONGEST_NAME)
        yield from ((f".{key}", value[key]) for key in keys)
    elif isinstance(value, tuple):
        yield from ((f".{index}", part) for index, part in enumerate(value))
    elif isinstance(value, list):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, Made):
        yield from _parts(value.items)
        yield from _parts(value.entries)
        yield from _parts(value.state)


def leaves(value: Any) -> Iterator[tuple[str, Made]]:
    """Yield what was made of arguments, anywhere inside of containers, with its name.

    Yields
    ------
    name : str
        Keys and places in tuples after a point, places in lists in brackets; ``""`` if it is not in a container.
        What has none (too long, too deep) is left out, and a container that is there several times is told once.
    found : Made
    """
    seen: set[int] = set()
    pending: list[tuple[str, Any, int]] = [("", value, 0)]
    while pending:
        name, found, depth = pending.pop()
        if len(name) > _LONGEST_NAME or depth > MOST_DEPTH:
            continue
        parts = [(name + step, part, depth + 1) for step, part in _parts(found)]
        if parts and id(found) in seen:
            continue
        seen.add(id(found))
        pending.extend(reversed(parts))
        if isinstance(found, Made):
            yield name.removeprefix("."), found
