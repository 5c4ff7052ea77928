"""The version of the package, and the version of the numbers it produces."""

__version__ = "0.1.0"

NUMERICS_VERSION = "1"
"""Changes whenever the numbers that a cell holds could change; part of every cell's content hash."""

TASKS_VERSION = "1"
"""Changes whenever the texts, questions or scores of tasks could change; part of every task cell's content hash."""
