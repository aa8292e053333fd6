"""The errors of the project, one family. Every message states what was got and what was
expected.
"""

import difflib
from collections.abc import Iterable


class GMergingError(Exception):
    """Base of all errors that G-Merging raises on purpose.

    Attributes:
        code: short machine-readable name, stable across releases; the service shows it to clients.
    """

    code = "gmerging_error"


class InvalidInputError(GMergingError, ValueError):
    """An argument has the wrong shape, range, type or value."""

    code = "invalid_input"


class MoleculeError(InvalidInputError):
    """A SMILES or a molecular graph cannot be read; `code` states the reason."""

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
    """A requested task is not one of the model's."""

    code = "unknown_task"


class ConfigError(GMergingError, ValueError):
    """A configuration file or setting is wrong."""

    code = "config_invalid"


class TrainingError(GMergingError, ArithmeticError):
    """A training has diverged: a loss or a weight is not finite."""

    code = "training_diverged"


class DataError(GMergingError, OSError):
    """A data file is missing or does not have the published format."""

    code = "data_unavailable"


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Suggest a known name: `, did you mean 'tasks'?`, or an empty text if none is similar.

    Case is ignored.

    Args:
        name: the unknown name.
        known: known names.
        prefix: common prefix of the known names, ignored in the comparison.
    """
    ends = {other.removeprefix(prefix).lower(): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(prefix).lower(), ends, n=1)
    return f", did you mean {ends[near[0]]!r}?" if near else ""
