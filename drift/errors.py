"""Errors meant for people: what was wrong, where, and what to do about it.

Every error that bad input can cause derives from :class:`DriftError`; command lines print its message
without a traceback. Anything else that escapes is a defect in drift itself.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "DatasetError",
    "DriftError",
    "EndpointError",
    "Fault",
    "PrecisionError",
    "ProtocolError",
    "ReportError",
    "UnsupportedModelError",
]


class DriftError(Exception):
    """Base class of all errors whose message is the whole story for the user."""


class ConfigError(DriftError):
    """A configuration, command line or argument that cannot be carried out as written."""


class ArgumentError(ConfigError, ValueError):
    """An argument of a function that is no value of its kind; the message names the argument."""


class ProtocolError(ConfigError):
    """A reading of the fold whose code contradicts itself: what it says of its cache is not what it leaves."""


class CheckpointError(DriftError):
    """Weights or a tokenizer that cannot be found, fetched, verified or trusted."""


class CorpusError(DriftError):
    """Text that cannot be found, or that is too short for what was asked."""


class Fault(Enum):
    """What is wrong with the file of a cell."""

    DAMAGED = "damaged"
    """It cannot be read."""
    CONTRACT = "contract"
    """It breaks the data contract."""
    CONFIG = "config"
    """It breaks the contract, and its configuration is not what its hash says."""


class DatasetError(DriftError):
    """A result file or folder that breaks the data contract.

    Parameters
    ----------
    message : str
        The whole story.
    fault : Fault, optional
        What kind of thing is wrong, where it is the file of a cell.
    problem : str
        What is wrong, without the file's name and without what to do about it; the message by default.
    """

    def __init__(self, message: str, *, fault: Fault | None = None, problem: str = "") -> None:
        super().__init__(message)
        self.fault = fault
        self.problem = problem or message


class Obstacle(Enum):
    """Why a cell cannot be computed again here."""

    UNSOUND = "unsound"
    """The file cannot be read, or is not what its own record says."""
    SETTINGS = "settings"
    """It was not made by a sweep, or with settings that are not known here."""
    NUMERICS = "numerics"
    """It was computed by a drift whose numbers are others."""
    WEIGHTS = "other_weights"
    """The weights of that name are others here."""
    MISSING = "missing_weights"
    """The weights are not on this machine."""
    TEXT = "other_text"
    """The text is another here, or is not there."""
    DEVICE = "device"
    """The device is not there."""
    FAILED = "failed"
    """Computing it failed."""


class UnverifiableError(DriftError):
    """A cell that cannot be computed again here.

    Parameters
    ----------
    message : str
        Why, and what to do.
    obstacle : Obstacle
        What kind of reason it is.
    """

    def __init__(self, message: str, obstacle: Obstacle) -> None:
        super().__init__(message)
        self.obstacle = obstacle


class PrecisionError(DriftError):
    """A rung of the precision ladder that the weights or the device cannot stand on."""


class ReportError(DriftError):
    """A notebook that cannot be run or rendered as asked."""


class EndpointError(DriftError):
    """A server that cannot be asked, or does not answer as it should.

    Parameters
    ----------
    message : str
        The whole story.
    status : int, optional
        The HTTP status, where there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class UnsupportedModelError(DriftError):
    """A model whose layers cannot be driven one at a time, or that keeps no KV cache."""
