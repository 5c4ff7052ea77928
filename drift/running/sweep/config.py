"""What a sweep is asked to do: axes, grids, presets, overrides, and errors a person can act on.

A configuration is a YAML file (or a preset, or a mapping from Python)::

    name: mine
    seed: 0
    tokens: 2048                   # axes at the top level hold for every grid
    grids:                         # each grid is the product of its axes; may be left out (one grid)
      - model: [smollm2-135m-instruct, gemma-3-270m]
        chunk_size: [64, 256]
      - model: qwen2.5-coder-0.5b-instruct
        protocol: reprime(token=151643)

Nothing here looks at checkpoints, text or devices: :mod:`drift.running.sweep.planning` does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, StrictBool, StrictStr, ValidationError
from pydantic import StrictInt as _StrictInt

from drift._bounds import MOST_DIGITS, MOST_DOCUMENTS, MOST_TOKENS
from drift._outside import OutsideError
from drift.dataset.labels import split_outside_parentheses
from drift.errors import ConfigError
from drift.paths import outside_path
from drift.running.protocols.full import FLOOR_DRAWS
from drift.running.sweep.yaml_files import read_yaml

__all__ = [
    "AXES",
    "DEFAULTS",
    "NO_TASK",
    "OPTIONS",
    "Config",
    "Grid",
    "closest",
    "load_config",
    "preset_path",
    "presets",
]

#: What the axis `task` holds where none is asked, and drift is measured.
NO_TASK = "none"
#: Each draw of the rounding floor is a whole pass, kept in memory beside the others.
MOST_DRAWS = 32
AXES: dict[str, str] = {
    "model": "checkpoint: embedded name, folder, .gguf file or hub id",
    "dtype": "rung of the precision ladder",
    "chunk_size": "tokens per chunk of the fold",
    "protocol": "how the fold carries its cache on",
    "reference": "what the fold is compared with: full, gold, fold64, previous, unperturbed",
    "task": "what is asked of the fold: none (drift is measured), needle, tracking, hops, cascade, state",
    "documents": "how many disjoint texts (replicates)",
    "tokens": "length of each text",
    "corpus": "where the text comes from: pydoc, stdlib, random, repeat, file:PATH, hub:DATASET",
    "attn_implementation": "sdpa or eager",
    "device": "auto, cpu or cuda",
}
OPTIONS: dict[str, str] = {
    "questions": "most questions of a text of a task",
    "logit_stride": "compare the logits of every n-th token only (1 = all)",
    "floor_draws": f"draws of the rounding floor: passes of full attention, disturbed (0 to {MOST_DRAWS}; 0 = none)",
    "allow_beyond_context": "true: texts may be longer than the model was trained for",
    "controls": "false: leave out the controls that every sweep runs on short texts",
    "half_matmul": "auto, native or float32: how bf16 and fp16 matrix products are computed on a CPU",
    "weights": "auto, resident or streamed: all in memory, or read from disk block by block (auto: as memory allows)",
}
DEFAULTS: dict[str, Any] = {
    "dtype": ["bf16", "fp32"],
    "chunk_size": [64],
    "protocol": ["append"],
    "reference": ["full"],
    "task": [NO_TASK],
    "documents": [1],
    "tokens": [1024],
    "corpus": ["pydoc"],
    "attn_implementation": ["sdpa"],
    "device": ["auto"],
    "questions": 1,
    "logit_stride": 1,
    "floor_draws": FLOOR_DRAWS,
    "allow_beyond_context": False,
    "controls": True,
    "half_matmul": "auto",
    "weights": "auto",
}
_INTEGERS = ("chunk_size", "documents", "tokens", "questions", "logit_stride", "floor_draws", "seed")
_HEAVIER = ("quick", "default", "retrieval", "readings", "deep", "retrieval-deep", "paper")
_PRESETS = Path(__file__).resolve().parent / "presets"
Attention = Literal["sdpa", "eager"]
Device = Literal["auto", "cpu", "cuda"]
HalfMatmul = Literal["auto", "native", "float32"]
WeightsKept = Literal["auto", "resident", "streamed"]
_T = TypeVar("_T")


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


_Text = Annotated[StrictStr, Field(min_length=1)]
_Count = Annotated[_StrictInt, Field(ge=1, le=MOST_TOKENS)]
_Values = Annotated[list[_T], BeforeValidator(_as_list), Field(min_length=1)]


class _Axes(BaseModel):
    """The axes as written in a file: a value or a list each, all of them optional."""

    model_config = ConfigDict(extra="forbid")

    model: _Values[_Text] | None = None
    dtype: _Values[_Text] | None = None
    chunk_size: _Values[_Count] | None = None
    protocol: _Values[_Text] | None = None
    reference: _Values[_Text] | None = None
    task: _Values[_Text] | None = None
    documents: _Values[Annotated[_StrictInt, Field(ge=1, le=MOST_DOCUMENTS)]] | None = None
    tokens: _Values[_Count] | None = None
    corpus: _Values[_Text] | None = None
    attn_implementation: _Values[Attention] | None = None
    device: _Values[Device] | None = None
    questions: Annotated[_StrictInt, Field(ge=1, le=MOST_DOCUMENTS)] | None = None
    logit_stride: _Count | None = None
    floor_draws: Annotated[_StrictInt, Field(ge=0, le=MOST_DRAWS)] | None = None
    allow_beyond_context: StrictBool | None = None
    controls: StrictBool | None = None
    half_matmul: HalfMatmul | None = None
    weights: WeightsKept | None = None


class _Document(_Axes):
    """A whole configuration file, as written."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    description: StrictStr = ""
    seed: Annotated[_StrictInt, Field(ge=0, lt=2**63)] = 0
    grids: Annotated[list[_Axes], Field(min_length=1)] | None = None


class Grid(BaseModel):
    """One product of axes, with every default filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: list[str]
    dtype: list[str]
    chunk_size: list[int]
    protocol: list[str]
    reference: list[str]
    task: list[str]
    documents: list[int]
    tokens: list[int]
    corpus: list[str]
    attn_implementation: list[str]
    device: list[str]
    questions: int
    logit_stride: int
    floor_draws: int
    allow_beyond_context: bool
    controls: bool
    half_matmul: str
    weights: str

    _origin: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, axis: str, value: object = None) -> str:
        """Where the value of an axis was written, for messages: ``mine.yaml: grids[1].dtype[0]`` or ``--set dtype``."""
        place = self._origin.get(axis, axis)
        values = getattr(self, axis)
        if isinstance(values, list) and len(values) > 1 and value in values and not place.startswith("--set"):
            place += f"[{values.index(value)}]"
        return place


class Config(BaseModel):
    """A sweep: a name, a seed and grids. Make one with :func:`load_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    seed: int
    grids: list[Grid]
    source: str


# ---------------------------------------------------------------- presets and files


def presets() -> dict[str, str]:
    """Names of the presets that come with drift, and what each is for.

    Returns
    -------
    dict of str to str
        Name to one-line description, ``quick`` first, the heaviest last.
    """
    order = {name: rank for rank, name in enumerate(_HEAVIER)}
    paths = sorted(_PRESETS.glob("*.yaml"), key=lambda path: (order.get(path.stem, 99), path.stem))
    return {path.stem: " ".join(str(_read(path, path.name).get("description", "")).split()) for path in paths}


def preset_path(name: str) -> Path:
    """The file of a preset, to copy and change."""
    return _PRESETS / f"{name}.yaml"


def closest(word: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing where no choice is near."""
    found = difflib.get_close_matches(str(word).lower(), list(choices), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _read(path: Path, where: str) -> dict[str, Any]:
    try:
        data = read_yaml(str(path))
    except OutsideError as error:
        raise ConfigError(f"{where}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror or error}") from error
    if data is None:
        raise ConfigError(f"{where}: empty; it needs at least `model:`. Axes: {', '.join(AXES)}")
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: must hold `axis: values` lines, but holds a {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def _locate(source: str | Path) -> tuple[Path, str]:
    """The file meant by a command line's CONFIG or PRESET, and what to call it in messages."""
    text = str(source)
    known = presets()
    if isinstance(source, str) and text in known:
        return preset_path(text), f"preset {text}"
    path = outside_path(text)
    if path.is_dir():
        raise ConfigError(f"{text}: a folder; give a YAML file or a preset ({', '.join(known)})")
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.exists():
            raise ConfigError(f"{text}: no such file. Presets: {', '.join(known)}{closest(path.stem, known)}")
        return path, text
    raise ConfigError(f"{text!r} is neither a preset nor a file. Presets: {', '.join(known)}{closest(text, known)}")


# ---------------------------------------------------------------- overrides


def parse_pair(text: str, flag: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """Take ``axis=a,b`` apart; the axis must be one of `names`."""
    axis, equals, rest = text.partition("=")
    axis = axis.strip().replace("-", "_")
    if not equals or not rest.strip():
        raise ConfigError(f"{flag} {text}: write {flag} axis=value or {flag} axis=value,value")
    if axis not in names:
        raise ConfigError(f"{flag} {text}: unknown axis {axis!r}{closest(axis, names)} Known: {', '.join(names)}")
    values = split_outside_parentheses(rest)
    if not all(values):
        raise ConfigError(f"{flag} {text}: an empty value between the commas")
    return axis, values


def _override(text: str) -> tuple[str, Any]:
    axis, words = parse_pair(text, "--set", (*AXES, *OPTIONS, "seed", "name"))
    values: list[Any] = list(words)
    if axis in _INTEGERS:
        if bad := [word for word in words if not re.fullmatch(rf"[+-]?\d{{1,{MOST_DIGITS}}}", word)]:
            raise ConfigError(
                f"--set {text[:80]}: {axis} takes whole numbers, but {bad[0][:40]!r} is none that is taken"
            )
        values = [int(word) for word in words]
    elif axis in ("allow_beyond_context", "controls"):
        if bad := [word for word in words if word.lower() not in ("true", "false")]:
            raise ConfigError(f"--set {text}: {axis} is true or false, not {bad[0]!r}")
        values = [word.lower() == "true" for word in words]
    if axis in AXES:
        return axis, values
    if len(values) > 1:
        raise ConfigError(f"--set {text}: {axis} takes one value, not {len(values)}")
    return axis, values[0]


# ---------------------------------------------------------------- errors in words


def _path(loc: Sequence[int | str], raw: object) -> tuple[str, object]:
    """A key path such as ``grids[0].dtype[1]`` and the offending value; an index into a scalar is left out."""
    path, value = "", raw
    for part in loc:
        if isinstance(part, int):
            if not isinstance(value, list) or part >= len(value):
                break
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, Mapping):
            path, value = f"{path}.{part}" if path else part, value.get(part)
        else:
            break
    return path, value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes; an object within itself
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _words(error: Mapping[str, Any], loc: Sequence[int | str], raw: object) -> str:
    """One pydantic error as one line: key path, what was wrong, what would be right."""
    kind, context = str(error["type"]), error.get("ctx", {})
    path, value = _path(loc, raw)
    shown = _shown(value)
    if kind == "extra_forbidden":
        top = len(loc) == 1
        known = [*AXES, *OPTIONS, *(("name", "description", "seed", "grids") if top else ())]
        return f"{path}: unknown axis or option{closest(loc[-1], known)} Known: {', '.join(known)}"
    if kind.startswith("int") or kind == "finite_number":
        hint = ""
        if isinstance(value, bool):
            hint = " (YAML reads yes, no, on and off as true and false)"
        elif isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value):
            hint = " (YAML reads 1e3 as text: write 1000)"
        return f"{path}: must be a whole number, but is {shown}{hint}"
    if kind == "string_type":
        if value is None:
            return f"{path}: must be text, but is empty"
        return f"{path}: must be text, but YAML reads it as {shown}: put it in quotes if it is meant as text"
    if kind == "bool_type":
        return f"{path}: must be true or false, but is {shown}"
    if kind == "greater_than_equal":
        return f"{path}: must be at least {context['ge']}, but is {shown}"
    if kind == "less_than":
        return f"{path}: must be below {context['lt']}, but is {shown}"
    if kind == "less_than_equal":
        return f"{path}: must be at most {context['le']}, but is {shown}"
    if kind in ("too_short", "string_too_short"):
        return f"{path}: must not be empty"
    if kind == "literal_error":
        names = _LITERALS.get(str(loc[-2] if isinstance(loc[-1], int) else loc[-1]), ())
        extra = " (Apple's mps is not supported)" if value == "mps" else ""
        return f"{path}: {shown} is not one of {', '.join(names)}{extra}{closest(value, names)}"
    if kind == "string_pattern_mismatch":
        return f"{path}: {shown} will not do as a folder's name: letters, digits, '.', '_' and '-', 64 at most"
    if kind == "list_type":
        return f"{path}: must be a list (lines that begin with '-'), but is {shown}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{path}: must hold `axis: values` lines, but is {shown}"
    return f"{path}: {error['msg']}"


_LITERALS: dict[str, tuple[str, ...]] = {
    "attn_implementation": get_args(Attention),
    "device": get_args(Device),
    "half_matmul": get_args(HalfMatmul),
    "weights": get_args(WeightsKept),
}


def _validate(raw: Mapping[str, Any], where: str) -> _Document:
    try:
        return _Document.model_validate(dict(raw))
    except ValidationError as error:
        lines = list(dict.fromkeys(_words(item, item["loc"], raw) for item in error.errors(include_url=False)))
    raise ConfigError("\n".join(f"{where}: {line}" for line in lines))


# ---------------------------------------------------------------- the way in


def load_config(source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration and apply overrides.

    Parameters
    ----------
    source : str, Path, mapping, optional
        A preset's name, a YAML file, or the same content as a mapping; the preset ``default`` if left out.
    overrides : sequence of str
        ``"axis=a,b"`` each: replaces that axis (or option, the seed or the name) in every grid.

    Returns
    -------
    Config
        With all defaults filled in. Values that name something (models, rungs, protocols, texts) are
        looked up by :func:`drift.running.sweep.planning.plan`, not here.

    Raises
    ------
    ConfigError
        One line per problem: the file, the key path, what is wrong and what would be right.
    """
    if isinstance(source, Mapping):
        where, raw, name = "config", dict(source), "sweep"
    else:
        path, where = _locate("default" if source is None else source)
        raw, name = _read(path, where), path.stem
    document = _validate(raw, where)
    replaced = dict(_override(text) for text in overrides)
    checked = _validate(replaced, "--set") if replaced else None

    def given(axes: _Axes, axis: str) -> Any:
        return getattr(axes, axis)

    grids = []
    for index, own in enumerate(document.grids or [_Axes()]):
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for axis in (*AXES, *OPTIONS):
            layers: list[tuple[_Axes | None, str]] = [
                (checked, f"--set {axis}"),
                (own, f"{where}: grids[{index}].{axis}"),
                (document, f"{where}: {axis}"),
            ]
            for layer, place in layers:
                if layer is not None and given(layer, axis) is not None:
                    value, origin[axis] = given(layer, axis), place
                    values[axis] = list(dict.fromkeys(value)) if isinstance(value, list) else value
                    break
            else:
                if axis == "model":
                    place = f"{where}: grids[{index}]" if document.grids else where
                    raise ConfigError(f"{place}: no `model:`; name at least one (python -m drift.checkpoints list)")
                values[axis], origin[axis] = DEFAULTS[axis], f"{where}: {axis} (default)"
        grid = Grid(**values)
        grid._origin.update(origin)
        grids.append(grid)
    if not document.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        name = "sweep"
    return Config(
        name=(checked and checked.name) or document.name or name,
        description=" ".join(document.description.split()),
        seed=replaced.get("seed", document.seed),
        grids=grids,
        source=where,
    )
