"""The most that is taken from outside: every size that a file, flag or argument names is held against one.

A size is checked before anything is built from it, so that what is too large is one line and not a machine without
memory. Each bound lies far beyond what was ever measured with drift, and far within what a machine can do.
"""

from __future__ import annotations

__all__ = [
    "MOST_ANSWER_BYTES",
    "MOST_BLOCKS",
    "MOST_CELLS",
    "MOST_CELL_BYTES",
    "MOST_CONFIG_BYTES",
    "MOST_CSV_BYTES",
    "MOST_DEPTH",
    "MOST_DIGITS",
    "MOST_DIRECTORY_BYTES",
    "MOST_DOCUMENTS",
    "MOST_DUMP_FILES",
    "MOST_FACTS",
    "MOST_FILE_BYTES",
    "MOST_GENERATED",
    "MOST_GGUF_ITEMS",
    "MOST_HEADER_BYTES",
    "MOST_JSON_BYTES",
    "MOST_LABEL",
    "MOST_LABEL_DEPTH",
    "MOST_LOGPROB_BYTES",
    "MOST_OPTION",
    "MOST_PARAMETER_BYTES",
    "MOST_PICKLE_BYTES",
    "MOST_PICKLE_CODES",
    "MOST_PROMPT",
    "MOST_PROMPTS",
    "MOST_REPEATS",
    "MOST_SIZE",
    "MOST_STEPS",
    "MOST_TEXT_BYTES",
    "MOST_TOKENS",
    "MOST_VOCABULARY",
]

MOST_JSON_BYTES = 64 << 20
"""Bytes of a JSON file: ``sweep.json``, a ``config.json``, a manifest, an index of shards."""
MOST_HEADER_BYTES = 100 << 20
"""Bytes of a safetensors header, as the format's own library has it."""
MOST_PARAMETER_BYTES = 1 << 16
"""Characters of a value on a command line."""
MOST_DEPTH = 64
"""Levels of lists and objects inside one another, in JSON and YAML; twenty are more than anything here has."""
MOST_CONFIG_BYTES = 256 << 10
"""Bytes of a YAML configuration: its parser takes seconds for as many."""
MOST_DIGITS = 18
"""Digits of a whole number: what fits 64 bits."""
MOST_CSV_BYTES = 256 << 20
"""Bytes of a table of curves."""
MOST_LOGPROB_BYTES = 256 << 20
"""Bytes of a file of log-probabilities (JSON)."""
MOST_ANSWER_BYTES = 32 << 20
"""Bytes of one answer of a server."""
MOST_PROMPTS = 64
"""Prompts that a server is asked, and of which so many at a time."""
MOST_REPEATS = 16
"""How often a server is asked the same."""
MOST_GENERATED = 1024
"""Tokens that a server is asked to generate for a prompt."""
MOST_PROMPT = 1 << 20
"""Characters of a prompt."""
MOST_TEXT_BYTES = 1 << 30
"""Bytes of a text to take tokens from."""
MOST_FILE_BYTES = 4 << 30
"""Bytes of the file of a cell."""
MOST_CELL_BYTES = 4 << 30
"""Bytes of a cell's numbers in memory: a compressed file may claim a thousand times its own size."""
MOST_TOKENS = 1 << 24
"""Tokens of a text, and of a chunk."""
MOST_DOCUMENTS = 1 << 16
"""Documents of a cell."""
MOST_FACTS = 256
"""Facts that a task hides in a text."""
MOST_STEPS = 1 << 17
"""Chain steps: 131,072, a text of 128K tokens in chunks of one."""
MOST_CELLS = 10_000
"""Cells of a plan, controls not counted."""
MOST_OPTION = 2**31 - 1
"""A whole number in a protocol's label, where nothing narrower holds."""
MOST_LABEL = 1000
"""Characters of a protocol's label."""
MOST_LABEL_DEPTH = 16
"""Parentheses inside one another in a protocol's label."""
MOST_BLOCKS = 10_000
"""Blocks of a network."""
MOST_VOCABULARY = 1 << 24
"""Entries of a vocabulary."""
MOST_SIZE = 1 << 24
"""Any other size in a model's configuration: features, heads."""
MOST_GGUF_ITEMS = 1 << 24
"""Entries of the metadata of a GGUF file, and of an array in it."""
MOST_DUMP_FILES = 1 << 18
"""Files in a folder of dumped tensors: some debuggers write one per tensor and step."""
MOST_DIRECTORY_BYTES = 16 << 20
"""Bytes of the table of contents of a zip archive (`.npz`, `.pt`): a hundred thousand arrays."""
MOST_PICKLE_BYTES = 16 << 20
"""Bytes of what a `.pt` file says of its tensors, their numbers not counted."""
MOST_PICKLE_CODES = 1 << 20
"""Instructions of it: some forty a tensor."""
