"""What is written of a domain comes back; what does not fit is refused."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from models.domain.measured import MeasuredLabel
from models.domain.neighbours import encoded
from models.domain.task_domain import TaskDomain
from models.errors import ArtifactError
from tests.domains import molecules, task_domain

SMILES = molecules()[:40]


def test_a_domain_comes_back() -> None:
    domain = task_domain(SMILES, 2)
    found = TaskDomain.from_bytes(domain.to_bytes(), 40, 2)
    assert found.labels == domain.labels
    assert np.array_equal(found.molecules.fingerprints, domain.molecules.fingerprints)
    assert np.array_equal(found.molecules.rows, domain.molecules.rows)
    assert found.to_bytes() == domain.to_bytes()


def test_a_file_holds_no_structure() -> None:
    data = task_domain(SMILES, 1).to_bytes()
    assert not any(text.encode() in data for text in SMILES if len(text) > 8)


def changed(**arrays: Any) -> bytes:
    domain = task_domain(SMILES, 1)
    return save({**load(domain.to_bytes()), **arrays}, {"labels": "[{}]"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nothing", "not a domain"),
        (save({"rows": np.arange(3)}), "not a domain"),
        (save({"rows": np.arange(3)}, {"labels": "[{}]"}), r"got arrays \['rows'\], expected"),
        (changed(more=np.arange(3)), "got arrays"),
        (changed(rows=np.arange(40)), r"rows: got int64 \(40,\), expected int32"),
        (changed(rows=np.zeros((40, 1), np.int32)), r"rows: got int32 \(40, 1\), expected int32"),
        (changed(rows=np.arange(39, dtype=np.int32)), "rows: got 39, expected 40"),
        (changed(rows=np.arange(40, dtype=np.int32)[::-1].copy()), "not sorted"),
        (
            changed(fingerprints=encoded(task_domain(SMILES[:30], 1).molecules.fingerprints)),
            "without bits",
        ),
        (
            changed(fingerprints=encoded(task_domain(molecules()[:50], 1).molecules.fingerprints)),
            "expected those of 40 molecules",
        ),
        (save(load(changed()), {"labels": "[{}, {}]"}), "labels: got 2, expected 1"),
        (save(load(changed()), {"labels": '[{"bands": 1}]'}), "not a domain"),
    ],
)
def test_what_does_not_fit_is_refused(data: bytes, message: str) -> None:
    assert TaskDomain.from_bytes(changed(), 40, 1).labels == (MeasuredLabel(),)
    with pytest.raises(ArtifactError, match=message):
        TaskDomain.from_bytes(data, 40, 1)
