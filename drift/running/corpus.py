"""Where tokens come from: CPython's own prose and code, a text file, a hub dataset, and two controls.

``pydoc``
    The topics of CPython's interactive help, joined in alphabetical order: about 465,000 characters of English
    technical prose, on every machine that has Python.
``stdlib``
    The source of CPython's standard library (without its tests), in the order of its file names: megabytes of code.
``random``
    Token ids drawn uniformly from the vocabulary, special tokens excepted. A control: no structure at all.
``repeat``
    One token (the first of " the") again and again. A control: nothing but structure.
``file:PATH`` or an existing path
    A text file in UTF-8.
``hub:DATASET[:CONFIG[:SPLIT[:COLUMN]]]``
    A text column of a Hugging Face dataset (default split ``train``, column ``text``); needs the extra ``hub``.

Documents are disjoint stretches of one stream of tokens, so that several are replicates and not copies.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift._bounds import MOST_TEXT_BYTES
from drift._outside import OutsideError, read_bytes
from drift.errors import CorpusError
from drift.paths import outside_path

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CORPORA", "begins_with_bos", "documents", "identity", "text"]

CORPORA = ("pydoc", "stdlib", "random", "repeat")
"""Names of the corpora that need nothing but Python."""
_GENERATED = ("random", "repeat")
_REPEATED = " the"
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_PIECE = 1 << 16


def _known() -> str:
    return f"Known are {', '.join(CORPORA)}, file:PATH and hub:DATASET[:CONFIG[:SPLIT[:COLUMN]]]."


def _pydoc() -> str:
    if importlib.util.find_spec("pydoc_data") is None:
        raise CorpusError(
            f"corpus 'pydoc': this Python ({sys.executable}) was built without pydoc_data; use 'stdlib' or a text file."
        )
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _stdlib() -> str:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    # By relative name, not by path object: the order is then the same on every file system and platform.
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        # What the builder of this Python added would differ between machines with the same version.
        local = path.name.startswith(("_sysconfigdata", "sitecustomize")) or parts[0].startswith("config-")
        if local or _NOT_STDLIB & set(parts[:-1]):
            continue
        try:
            found.append(path.read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError):
            continue  # a handful of files are in other encodings on purpose
    if not found:
        raise CorpusError(f"corpus 'stdlib': no source files of the standard library in {root}; use 'pydoc' instead.")
    return "\n\n".join(found)


def _file(path: Path, name: str) -> str:
    try:
        return read_bytes(path, MOST_TEXT_BYTES).decode("utf-8")
    except FileNotFoundError as error:
        raise CorpusError(f"corpus {name!r}: there is no file {path}. {_known()}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus {name!r}: {path} is not UTF-8 text ({error}); convert it first.") from error
    except OutsideError as error:
        raise CorpusError(f"corpus {name!r}: {path} cannot be read ({error}).") from error
    except OSError as error:
        raise CorpusError(f"corpus {name!r}: {path} cannot be read ({error.strerror}).") from error


def _hub(name: str) -> str:
    parts = name.split(":")[1:]
    if not parts[0] or len(parts) > 4:
        raise CorpusError(f"corpus {name!r}: write hub:DATASET[:CONFIG[:SPLIT[:COLUMN]]].")
    dataset, config, split, column = [*parts, "", "", ""][:4]
    try:
        import datasets
    except ImportError as error:
        raise CorpusError(
            f"corpus {name!r}: hub datasets need the package `datasets`: pip install 'drift[hub]'."
        ) from error
    split, column = split or "train", column or "text"
    try:
        rows = datasets.load_dataset(dataset, config or None, split=split)
    except Exception as error:  # whatever the hub client and its HTTP library raise
        raise CorpusError(
            f"corpus {name!r}: the dataset cannot be loaded ({type(error).__name__}: {error}). Check its name, its "
            "configuration and split, and the network; a text file (file:PATH) needs neither."
        ) from error
    if column not in rows.column_names:
        raise CorpusError(f"corpus {name!r}: no column {column!r}; there are {', '.join(rows.column_names)}.")
    return "\n\n".join(str(value) for value in rows[column] if value)


@lru_cache(maxsize=4)
def _text(corpus: str, stamp: tuple[int, int] | None) -> str:
    if corpus == "pydoc":
        return _pydoc()
    if corpus == "stdlib":
        return _stdlib()
    if corpus.startswith("hub:"):
        return _hub(corpus)
    return _file(_path(corpus), corpus)


def _path(corpus: str) -> Path:
    return outside_path(corpus.removeprefix("file:"), CorpusError, said="corpus")


def text(corpus: str) -> str:
    """Text of a corpus.

    Parameters
    ----------
    corpus : str
        See the top of this module.

    Raises
    ------
    CorpusError
        There is no such corpus, it cannot be read, or it is one that is generated and has no text.
    """
    if corpus in _GENERATED:
        raise CorpusError(f"corpus {corpus!r} is generated token by token and has no text.")
    if corpus in CORPORA or corpus.startswith("hub:"):
        return _text(corpus, None)
    path = _path(corpus)
    if not corpus.startswith("file:") and not path.exists():
        raise CorpusError(f"no corpus {corpus!r}. {_known()}")
    if path.is_dir():
        raise CorpusError(f"corpus {corpus!r}: {path} is a folder; name a text file.")
    try:
        state = path.stat()
    except OSError as error:
        raise CorpusError(f"corpus {corpus!r}: there is no file {path} ({error.strerror}).") from error
    return _text(corpus, (state.st_size, state.st_mtime_ns))  # a file that changed is read again


def identity(corpus: str, seed: int = 0) -> str:
    """Sha256 of the text, or of the definition of a generated corpus; needs no torch and no tokenizer.

    Parameters
    ----------
    corpus : str
        See the top of this module.
    seed : int
        Counts for ``random`` only: the other corpora do not depend on it.
    """
    if corpus in _GENERATED:
        definition = {"corpus": corpus, "version": 1}
        definition |= {"seed": int(seed)} if corpus == "random" else {"token_of": _REPEATED}
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(text(corpus).encode("utf-8", "surrogatepass")).hexdigest()


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its BOS token in front of a text by default (Gemma's does, Qwen's does not)."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return False
    ids = list(tokenizer("a")["input_ids"])
    return bool(ids) and ids[0] == bos and list(tokenizer("a", add_special_tokens=False)["input_ids"])[:1] != [bos]


def _ids(tokenizer: Any, string: str) -> list[int]:
    encoded = tokenizer(string, add_special_tokens=False, verbose=False)
    return list(encoded["input_ids"])


def documents(corpus: str, tokenizer: Any, documents: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Cut a corpus into documents of equal length.

    Parameters
    ----------
    corpus : str
        See the top of this module.
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's own.
    documents, tokens : int
        How many documents, of how many tokens each; both at least 1.
    seed : int
        Seed of ``random``; the other corpora do not depend on it.

    Returns
    -------
    numpy.ndarray
        Token ids, int64, ``[document, token]``. Document `i` takes the tokens of the stream that follow those of
        document `i` - 1: no token of the text is used twice. Where the tokenizer adds a BOS token by default, every
        document is BOS and then ``tokens - 1`` tokens of the stream. Asking for more documents never changes the
        first ones.

    Raises
    ------
    CorpusError
        The corpus does not exist, or is too short; the message says how many tokens there are and what would fit.
    """
    import numpy as np

    for what, count in (("documents", documents), ("tokens", tokens)):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise CorpusError(f"corpus {corpus!r}: {what} must be a whole number of at least 1, not {count!r}.")
    bos = begins_with_bos(tokenizer)
    each = tokens - 1 if bos else tokens
    if corpus == "random":
        stretches = _random(tokenizer, documents, each, seed)
    elif corpus == "repeat":
        token = (_ids(tokenizer, _REPEATED) or _ids(tokenizer, "a") or [0])[0]
        stretches = np.full((documents, each), token, dtype=np.int64)
    else:
        stream = _stream(text(corpus), tokenizer, documents * each)
        if len(stream) < documents * each:
            raise _too_short(corpus, len(stream), documents, tokens, each)
        stretches = stream[: documents * each].reshape(documents, each)
    if bos:
        front = np.full((documents, 1), tokenizer.bos_token_id, dtype=np.int64)
        stretches = np.concatenate([front, stretches], axis=1)
    return np.ascontiguousarray(stretches)


def _pieces(string: str) -> Iterator[str]:
    """Cut a text at the first paragraph break after every 65,536 characters (or at a line break, if there is none)."""
    start = 0
    while start < len(string):
        at = start + _PIECE
        found = re.compile(r"\n\n(?=\S)").search(string, at, at + _PIECE) or re.compile(r"\n(?=\S)").search(string, at)
        stop = found.end() if found else len(string)
        yield string[start:stop]
        start = stop


class _Tokens:
    """The token stream of one text for one tokenizer, as far as it was asked for.

    The stream is, by definition, the tokens of the text's pieces one after the other. Where a tokenizer cuts can depend
    on what follows, so only fixed pieces give a stream whose beginning does not depend on how much of it is wanted.
    """

    def __init__(self, string: str, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._pieces = _pieces(string)
        self._ids: list[int] = []

    def take(self, count: int) -> np.ndarray:
        import numpy as np

        while len(self._ids) < count and (piece := next(self._pieces, None)) is not None:
            self._ids.extend(_ids(self.tokenizer, piece))
        return np.asarray(self._ids[:count], dtype=np.int64)


_streams: dict[tuple[str, int], _Tokens] = {}


def _stream(string: str, tokenizer: Any, count: int) -> np.ndarray:
    """First tokens of a text, at most `count`; the stream of the last text and tokenizer is remembered."""
    # The stream holds its tokenizer, so that the id in the key cannot be given to another while we remember it.
    key = (hashlib.sha256(string.encode("utf-8", "surrogatepass")).hexdigest(), id(tokenizer))
    if key not in _streams:
        _streams.clear()
        _streams[key] = _Tokens(string, tokenizer)
    return _streams[key].take(count)


def _random(tokenizer: Any, documents: int, each: int, seed: int) -> np.ndarray:
    import numpy as np

    special = sorted(set(tokenizer.all_special_ids))
    allowed = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int64), np.asarray(special, dtype=np.int64))
    if allowed.size == 0:
        raise CorpusError("corpus 'random': the tokenizer has special tokens only.")
    # One generator per document: the third document is the same whether three or ten are asked for, and of any length.
    rows = [np.random.default_rng([int(seed), row]).integers(allowed.size, size=each) for row in range(documents)]
    return allowed[np.stack(rows)]


def _too_short(corpus: str, there: int, documents: int, tokens: int, each: int) -> CorpusError:
    if there == 0:
        return CorpusError(f"corpus {corpus!r} is empty: 0 tokens; name a corpus with text in it.")
    fit = there // max(each, 1)
    longest = there // documents + (tokens - each)
    options = []
    if fit:
        options.append(f"{fit} document{'s' * (fit != 1)} of {tokens}")
    if there >= documents:
        options.append(f"{documents} document{'s' * (documents != 1)} of {longest}")
    return CorpusError(
        f"corpus {corpus!r} is too short: it has {there} tokens for this tokenizer, and {documents} x {tokens} were "
        f"asked for ({documents * each} of text). "
        + (f"{' or '.join(options)} would fit. " if options else "")
        + "Ask for less, or name a longer corpus ('stdlib' is the longest built in)."
    )
