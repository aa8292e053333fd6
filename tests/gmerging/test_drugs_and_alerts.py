"""Percentiles among drugs, and structural alerts, as tables in Python."""

from pathlib import Path

import pandas as pd
import pytest

import gmerging
from models.data.alerts import structural_alerts
from service.core.engine import UnsupportedQueryError
from tests.service.doubles import save_pico_drugs

QUINONE = "O=C1C=CC(=O)C=C1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gmerging.Model:
    """A model with a table of drugs."""
    folder = save_pico_drugs(Path(tmp_path_factory.mktemp("drugs")) / "pico")
    return gmerging.load(folder, device="cpu")


def test_drugs(model: gmerging.Model) -> None:
    tasks, labels = ["bbbp", "tox21"], ["bbbp.p_np", "tox21.NR-AR"]
    asked = {"explanations": "drugs", "labels": labels}
    smiles = pd.Series([QUINONE, "CCO", "C1"], index=["a", "a", "b"])  # two rows of one name
    frame = model.explain(smiles, tasks, **asked)["drugs"]
    assert frame[["molecule", "task", "label"]].to_numpy().tolist() == [["a", "bbbp", "p_np"]] * 2
    expected = model.predict(smiles, tasks)["bbbp.p_np"][:2]
    assert frame.value.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert frame.percentile.tolist() == pytest.approx((100 * frame.value).tolist(), abs=0.1)
    empty = model.explain([], tasks, **asked)["drugs"]
    assert list(empty.columns) == list(frame.columns)
    with pytest.raises(UnsupportedQueryError, match="expected 'own'"):
        model.explain(smiles, tasks, routing="moe", **asked)


def test_alerts(model: gmerging.Model) -> None:
    found = model.explain([QUINONE, "CCO"], "bbbp", explanations=["alerts"])
    assert set(found) == {"alerts"}
    frame = found["alerts"]
    assert set(frame.molecule) == {0}
    expected = [(own.catalog, own.name, own.atoms) for own in structural_alerts(QUINONE)]
    assert list(frame[["catalog", "name", "atoms"]].itertuples(index=False, name=None)) == expected
