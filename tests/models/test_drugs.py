"""Answers for drugs as quantiles."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from models.drugs import DrugInfo, DrugTable, quantile_levels
from models.errors import ArtifactError
from models.task import TaskInfo

TASKS = {"tox": TaskInfo(labels=("a", "b"))}
INFO = DrugInfo(
    molecules=3,
    source="a list 1.0",
    date="2026-01-01",
    terms="free",
    sha256="0" * 64,
    in_training=2,
    in_training_by_task={"tox": 2, "clear": 0},
    experts={"tox": "own", "clear": "both"},
)


def table_of(*labels: np.ndarray) -> DrugTable:
    return DrugTable.of({"tox": np.stack(labels, axis=1)})


def test_percentiles_are_the_shares_of_drugs_with_lower_answers() -> None:
    drugs = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    asked = np.random.default_rng(1).normal(size=500).astype(np.float32)
    found = table_of(drugs, drugs).percentiles("tox", np.stack([asked, asked], axis=1))
    below = 100 * (drugs[None] < asked[:, None]).mean(axis=1)
    assert found.shape == (500, 2)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_allclose(found[:, 0], below, atol=0.3)


def test_outside_of_all_drugs_it_is_0_and_100() -> None:
    table = table_of(np.linspace(0.2, 0.8, 1000))
    asked = np.array([[0.0], [0.2], [0.5], [0.8], [1.0]], np.float32)
    np.testing.assert_allclose(table.percentiles("tox", asked)[:, 0], [0, 0, 50, 100, 100])


def test_half_of_equal_drugs_count() -> None:
    """60 % of drugs are at the upper end, 20 % at the lower one."""
    table = table_of(np.repeat([0.0, 0.5, 1.0], [200, 200, 600]))
    asked = np.array([[-1.0], [0.0], [0.25], [0.5], [1.0], [2.0]])
    expected = [0, 10, 20, 30, 70, 100]
    np.testing.assert_allclose(table.percentiles("tox", asked)[:, 0], expected, atol=0.5)
    same = table_of(np.full(100, 0.5))
    assert same.percentiles("tox", np.array([[0.5], [0.4], [0.6]]))[:, 0].tolist() == [50, 0, 100]


def test_tails_are_fine() -> None:
    levels = quantile_levels()
    assert (levels[0], levels[-1], len(levels)) == (0, 100, 217)
    assert np.diff(levels[:11]) == pytest.approx(0.1, abs=1e-5)
    assert np.diff(levels[-11:]) == pytest.approx(0.1, abs=1e-5)
    assert np.diff(levels[10:-10]) == pytest.approx(0.5)


def test_a_table_is_written_and_read() -> None:
    table = table_of(np.arange(10.0), -np.arange(10.0))
    read = DrugTable.read(table.to_bytes(), TASKS)
    asked = np.array([[1.5, -1.5]])
    np.testing.assert_array_equal(read.percentiles("tox", asked), table.percentiles("tox", asked))
    left = DrugTable.of({"tox": np.zeros((5, 2)), "clear": np.zeros((5, 1))}).for_tasks(["clear"])
    assert left is not None
    assert list(left.quantiles) == ["clear"]
    assert left.for_tasks(["tox"]) is None


def test_the_description_of_some_tasks() -> None:
    left = INFO.for_tasks(["tox"])
    assert left is not None
    assert (left.in_training_by_task, left.experts) == ({"tox": 2}, {"tox": "own"})
    assert INFO.for_tasks(["other"]) is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("levels", lambda x: x[::-1].copy(), "expected quantiles in order"),
        ("levels", lambda x: x[1:].copy(), "expected 0, rising to 100"),
        ("quantiles/tox", lambda x: x[:, ::-1].copy(), "expected quantiles in order"),
        ("quantiles/tox", lambda x: x[:1].copy(), r"got float32 \(1, 217\), expected"),
        ("quantiles/tox", lambda x: x.astype(np.float16), "got float16"),
        ("quantiles/tox", lambda x: np.full_like(x, np.nan), "not finite"),
    ],
)
def test_damaged_tables_are_refused(name: str, change: object, message: str) -> None:
    arrays = dict(load(table_of(np.arange(10.0), np.arange(10.0)).to_bytes()))
    arrays[name] = change(arrays[name])  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        DrugTable.read(save(arrays), TASKS)


def test_tables_of_other_tasks_and_other_files_are_refused() -> None:
    data = table_of(np.arange(10.0), np.arange(10.0)).to_bytes()
    with pytest.raises(ArtifactError, match=r"got arrays .*expected levels, quantiles/other"):
        DrugTable.read(data, {"other": TASKS["tox"]})
    with pytest.raises(ArtifactError):
        DrugTable.read(b"nothing", TASKS)
