"""The project's one family of errors. Every message says what was got and what was expected."""

import difflib
from collections.abc import Iterable


class GMergingError(Exception):
    """Base of all errors that G-Merging raises on purpose.

    Attributes:
        code: a short machine-readable name, stable across releases; the service shows it to
            clients.
    """

    code = "gmerging_error"


class InvalidInputError(GMergingError, ValueError):
    """An argument has the wrong shape, range, type or value."""

    code = "invalid_input"


class MoleculeError(InvalidInputError):
    """A SMILES or a molecular graph cannot be read; `code` says in which way."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class CheckpointError(GMergingError, ValueError):
    """A checkpoint has missing, extra, misshapen or non-finite tensors."""

    code = "checkpoint_mismatch"


class ArtifactError(GMergingError, ValueError):
    """An artifact folder is incomplete, altered, of another format version, or not finite."""

    code = "artifact_invalid"


class UnknownTaskError(GMergingError, LookupError):
    """A task was asked for that the model does not have."""

    code = "unknown_task"


class ConfigError(GMergingError, ValueError):
    """A configuration file or setting is wrong."""

    code = "config_invalid"


class TrainingError(GMergingError, ArithmeticError):
    """A training has left the finite numbers."""

    code = "training_diverged"


class DataError(GMergingError, OSError):
    """A data file is absent or does not have the published form."""

    code = "data_unavailable"


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence on an unknown name: `, did you mean 'tasks'?`, or nothing if no known
    name is like it, in capital letters or small ones.

    Args:
        name: that is not known.
        known: names.
        prefix: with which all of them begin, and which therefore says nothing.
    """
    ends = {other.removeprefix(prefix).lower(): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(prefix).lower(), ends, n=1)
    return f", did you mean {ends[near[0]]!r}?" if near else ""
