"""The applicability domain of a task as an artifact holds it: a file of the fingerprints of its
training molecules, with what was measured of every label, and a description in the manifest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.domain.measured import MeasuredLabel
from models.domain.neighbours import MoleculeSet, decoded, encoded
from models.errors import ArtifactError

SimilarityRule = Literal["ecfp4-1024-1"]
"""Names of the rules by which molecules are compared: `models.data.fingerprint.similarity_bits`."""
SIMILARITY_RULE: SimilarityRule = get_args(SimilarityRule)[-1]
"""The rule of new artifacts."""
_DTYPES = {"fingerprints": np.dtype(np.uint8), "rows": np.dtype(np.int32)}
_LABELS = TypeAdapter(tuple[MeasuredLabel, ...])
_HEADER = 8
"""Bytes of a safetensors file that hold the length of its header."""


class DomainInfo(BaseModel):
    """Description of the applicability domain of a task; travels in the artifact's manifest.

    Attributes:
        molecules: number of training molecules.
        file: the table that they are from; rows are lines of it, the first line is 1.
        split: how the table was split.
        confidence: of conformal sets.
        may_show: whether the terms of the data allow to show structures and measured values, where
            the operator has them.
        rule: by which molecules are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    molecules: int = Field(ge=1)
    file: str
    split: str
    confidence: float = Field(gt=0, lt=1)
    may_show: bool = False
    rule: SimilarityRule = SIMILARITY_RULE


@dataclass(frozen=True, eq=False)
class TaskDomain:
    """The training molecules of a task, and what was measured of its labels.

    Attributes:
        molecules: fingerprints of the training molecules.
        labels: in the order of the task's labels.
    """

    molecules: MoleculeSet
    labels: tuple[MeasuredLabel, ...]

    def to_bytes(self) -> bytes:
        """Return the content of the file, in the format of safetensors. It has no structure and no
        measured value of a molecule."""
        molecules, labels = self.molecules, _LABELS.dump_json(self.labels, exclude_defaults=True)
        arrays: dict[str, NDArray[Any]] = {"fingerprints": encoded(molecules.fingerprints)}
        return save({**arrays, "rows": molecules.rows}, {"labels": labels.decode()})

    @classmethod
    def from_bytes(cls, data: bytes, molecules: int, labels: int) -> "TaskDomain":
        """Read the content of a file.

        Args:
            data: from `to_bytes`.
            molecules: number of molecules, by the manifest.
            labels: number of the task's labels.

        Raises:
            ArtifactError: the content is damaged, or is not of so many molecules and labels.
        """
        try:
            arrays = load(data)
            measured = _LABELS.validate_json(_metadata(data).get("labels", ""))
        except (SafetensorError, ValidationError) as error:
            raise ArtifactError(f"not a domain: {error}") from error
        _check(arrays, molecules)
        if len(measured) != labels:
            raise ArtifactError(f"labels: got {len(measured)}, expected {labels}")
        found = MoleculeSet(decoded(arrays["fingerprints"], molecules), arrays["rows"])
        found.check()
        return cls(found, measured)


def _check(arrays: Mapping[str, NDArray[Any]], molecules: int) -> None:
    if arrays.keys() != _DTYPES.keys():
        raise ArtifactError(f"got arrays {sorted(arrays)}, expected {sorted(_DTYPES)}")
    for name, dtype in _DTYPES.items():
        array = arrays[name]
        if array.dtype != dtype or array.ndim != 1:
            got = f"{name}: got {array.dtype} {array.shape}"
            raise ArtifactError(f"{got}, expected {dtype} in one dimension")
    if len(arrays["rows"]) != molecules:
        raise ArtifactError(f"rows: got {len(arrays['rows'])}, expected {molecules}")


def _metadata(data: bytes) -> dict[str, str]:
    """Read the texts in the header of a file that `load` has read. The library reads them from
    files on disk only."""
    size = int.from_bytes(data[:_HEADER], "little")
    metadata: dict[str, str] = json.loads(data[_HEADER : _HEADER + size]).get("__metadata__", {})
    return metadata
