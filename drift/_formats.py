"""What JSON from outside must be, format by format. Loaded by :mod:`drift._outside` when it is first asked.

Strict: a number in quotes is text, true is no number. What a format does not name is let pass.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from drift._bounds import MOST_BLOCKS, MOST_DOCUMENTS, MOST_LABEL, MOST_SIZE, MOST_TOKENS, MOST_VOCABULARY

__all__ = ["faults"]

_FEW = 3  # faults that are told
_LONGEST = 60  # characters of a value that are shown
_MOST_BYTES = 1 << 62
_MOST_SECONDS = 1e12
_MOST_NAME = 4096  # characters of the name of a served model


def _plain_name(name: str) -> str:
    """Refuse what is no name of a file in the same folder."""
    if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0")) or len(name.encode()) > 255:
        raise ValueError("must be the name of a file in the same folder, not a path")
    return name


class _Base(BaseModel):
    model_config = ConfigDict(strict=True, protected_namespaces=())


PlainName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0, le=_MOST_BYTES)]
Size = Annotated[int, Field(ge=1, le=MOST_SIZE)]


# ---------------------------------------------------------------- checkpoints
class Sizes(_Base):
    """Sizes of a model, as they are reckoned with."""

    layers: Annotated[int, Field(ge=1, le=MOST_BLOCKS)]
    hidden_size: Size
    intermediate_size: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocab_size: Annotated[int, Field(ge=1, le=MOST_VOCABULARY)]
    parameters: Count
    max_positions: Annotated[int, Field(ge=1, le=2**40)]
    tied: bool


class _Gguf(_Base):
    bytes: Count
    sha256: Sha256


class _Wheel(_Base):
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}\z")]
    file: PlainName
    bytes: Count
    sha256: Sha256
    member: Annotated[str, Field(min_length=1)]


class _Entry(_Base):
    family: str
    original: str
    license: str
    license_note: str
    weights: str
    gguf: _Gguf
    wheels: Annotated[list[_Wheel], Field(min_length=1)]
    shape: Sizes


class Manifest(_Base):
    """The checkpoints that are known by name."""

    checkpoints: dict[Annotated[str, Field(min_length=1, max_length=200)], _Entry]


class _RecordFile(_Base):
    sha256: Sha256
    bytes: Count


class Record(_Base):
    """What was written last into a folder of the cache."""

    format: int
    gguf_sha256: str
    files: dict[PlainName, _RecordFile]


class _Total(_Base):
    total_size: Count | float | None = None


class Index(_Base):
    """Which file holds which weight."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]
    metadata: _Total | None = None


class _Tensor(_Base):
    dtype: str
    shape: Annotated[list[Count], Field(max_length=16)]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


Tensors = dict[str, _Tensor]


# ---------------------------------------------------------------- sweeps
class PlanCell(_Base):
    """What ``sweep.json`` says of one cell."""

    file: PlainName | None = None
    path: str | None = None
    state: str | None = None
    hash: str | None = None
    reason: str | None = None


class PlanFailure(_Base):
    """What ``sweep.json`` says of a cell that failed."""

    file: str | None = None
    reason: str | None = None
    error: str | None = None
    message: str | None = None
    config: dict[str, Any] | None = None
    cell: dict[str, Any] | str | None = None


class PlanGroup(_Base):
    """How long a group took."""

    device: str
    dtype: str
    estimated_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    elapsed_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Grids(_Base):
    """The configuration in a ``sweep.json``."""

    grids: list[dict[str, Any]]


Text = str


# ---------------------------------------------------------------- attributes of cells
Versions = dict[str, str]


class CellConfig(_Base):
    """What was asked for: of what is said of it, what is read."""

    model: str | None = None
    dtype: str | None = None
    protocol: str | None = None
    reference: str | None = None
    corpus: str | None = None
    half_matmul: str | None = None
    chunk_size: Count | None = None
    documents: Count | None = None
    tokens: Count | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    versions: Versions | None = None


class Floor(_Base):
    """The draws of a rounding floor."""

    seeds: list[Count]


class SweepCell(_Base):
    """The record of a cell that a sweep made: all that it takes to compute it again."""

    model: str
    dtype: str
    protocol: Annotated[str, Field(max_length=MOST_LABEL)]
    reference: str = "full"
    control: str = ""
    corpus: str
    attn_implementation: str
    device: str
    half_matmul: str
    chunk_size: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    documents: Annotated[int, Field(ge=1, le=MOST_DOCUMENTS)]
    logit_stride: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    versions: Versions
    checkpoint_sha256: str
    corpus_sha256: str
    floor: Floor = Floor(seeds=[])


class Thinned(_Base):
    """What was left out of a cell."""

    layers: Annotated[list[Annotated[int, Field(ge=0, le=MOST_BLOCKS + 2)]], Field(min_length=3)]
    layers_of: Annotated[int, Field(ge=3, le=MOST_BLOCKS + 2)]
    bits: Annotated[int, Field(ge=1, le=64)]
    relative_error: Annotated[float, Field(ge=0)] = 0.0
    nonfinite_dropped: Count = 0


class _FoldShape(_Base):
    layers: Annotated[int, Field(ge=1, le=MOST_BLOCKS)]
    heads: Size
    kv_heads: Size
    head_dim: Size
    parameters: Annotated[int, Field(ge=1, le=_MOST_BYTES)]


class _Taken(_Base):
    memory_bytes: Annotated[float, Field(gt=0, le=_MOST_BYTES)]
    fold_seconds: Annotated[float, Field(gt=0, le=_MOST_SECONDS)]
    shape: _FoldShape | None = None


class _Published(_Taken):
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    chunk_size: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    dtype: str
    device: str


class Reckoned(_Base):
    """What a sweep reckoned that a task cell takes, and the published size."""

    published: _Published
    own: _Taken | None = None


# ---------------------------------------------------------------- log-probabilities
_Logprobs = list[float | None]
_Token = Annotated[int, Field(ge=-1, lt=2**63)]
_Tops = list[dict[str, float] | None]


class Logprobs(_Base):
    """One sequence of our own format."""

    tokens: list[_Token] | list[str]
    logprobs: _Logprobs
    top_logprobs: _Tops | None = None


class _VllmToken(_Base):
    logprob: float
    rank: int | None = None


class _VllmPrompt(_Base):
    prompt_logprobs: list[dict[str, _VllmToken] | None] | None = None
    prompt_token_ids: list[_Token] | None = None


class VllmRecord(_VllmPrompt):
    """A response of vLLM's server, or a request's output."""

    choices: list[_VllmPrompt] = []


_SglangToken = Annotated[list[_Token | float | str | None], Field(min_length=2, max_length=3)]
_SglangTops = list[list[_SglangToken] | None]


class _SglangInfo(_Base):
    input_token_logprobs: list[_SglangToken] | None = None
    output_token_logprobs: list[_SglangToken] | None = None
    input_top_logprobs: _SglangTops | None = None
    output_top_logprobs: _SglangTops | None = None


class SglangRecord(_Base):
    """A response of SGLang's ``/generate``."""

    meta_info: _SglangInfo


class _OpenAiTop(_Base):
    token: str
    logprob: float


class _OpenAiToken(_OpenAiTop):
    top_logprobs: list[_OpenAiTop] | None = None


class _OpenAiLogprobs(_Base):
    content: list[_OpenAiToken] | None = None
    tokens: list[str] | None = None
    token_logprobs: _Logprobs | None = None
    top_logprobs: _Tops | None = None


class _OpenAiChoice(_Base):
    logprobs: _OpenAiLogprobs | None = None


class OpenAiRecord(_Base):
    """A response of any server that speaks OpenAI's protocol."""

    choices: list[_OpenAiChoice]


# ---------------------------------------------------------------- servers
class _ServedModel(_Base):
    id: Annotated[str, Field(max_length=_MOST_NAME)]
    owned_by: str | None = None


class ServedModels(_Base):
    """What a server says of its models."""

    data: list[_ServedModel]


class _ServedTop(_Base):
    id: _Token | None = None
    token: str
    logprob: float


class _ServedToken(_ServedTop):
    top_logprobs: list[_ServedTop] | None = None


class _ServedLogprobs(_Base):
    content: list[_ServedToken] | None = None
    tokens: list[str] | None = None
    token_logprobs: _Logprobs | None = None
    top_logprobs: _Tops | None = None


class _ServedChoice(_VllmPrompt):
    text: str | None = None
    logprobs: _ServedLogprobs | None = None
    token_ids: list[_Token] | None = None


class _Cached(_Base):
    cached_tokens: Count | None = None


class _Usage(_Base):
    prompt_tokens: Count | None = None
    prompt_tokens_details: _Cached | None = None


class ServedCompletion(_Base):
    """A server's answer to a prompt."""

    choices: Annotated[list[_ServedChoice], Field(min_length=1)]
    usage: _Usage | None = None


# ---------------------------------------------------------------- faults in words
@lru_cache(maxsize=32)
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(globals()[name], config=None if _is_model(name) else ConfigDict(strict=True))


def _is_model(name: str) -> bool:
    kind = globals()[name]
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def faults(value: Any, form: str) -> list[str]:
    """Say what of a value is not as its form wants it: the first few places, none where all is well."""
    try:
        _adapter(form).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        said = [_words(item["loc"], item["msg"], item["type"], item.get("input")) for item in found[:_FEW]]
        return [*said, f"and {len(found) - _FEW} more faults"] if len(found) > _FEW else said
    return []


def _words(loc: tuple[int | str, ...], message: str, kind: str, value: object) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    path = path if len(path) <= 3 * _LONGEST else f"{path[: 3 * _LONGEST]}..."
    said = message.removeprefix("Value error, ").replace("Input should", "should")
    if kind == "missing":
        return f"{path or 'it'} is missing"
    said = {
        "model_type": "should be an object",
        "dict_type": "should be an object",
        "list_type": "should be a list",
    }.get(kind, said)
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
    return f"{path or 'it'} {said} (it is {shown})"
