"""Percentiles among drugs, and structural alerts, as tables in Python."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from gmerging.alerts import alerts_frame
from gmerging.drugs import drugs_frame
from models.data.alerts import structural_alerts
from service.core.answer import Answer
from service.core.engine import PredictionQuery, UnsupportedQueryError, load_engine
from service.core.explaining import Explained
from service.core.local import predict
from service.settings import Settings
from tests.service.doubles import save_pico_drugs

QUINONE = "O=C1C=CC(=O)C=C1"
ASKED = Explained(("drugs",), {"bbbp": ("p_np",), "tox21": ("NR-AR",)})


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[PredictionQuery, dict[str, Answer]]:
    """A query of a model with a table of drugs, and its answers."""
    folder = save_pico_drugs(Path(tmp_path_factory.mktemp("drugs")) / "pico")
    settings = Settings(artifact=folder, device="cpu")
    query = PredictionQuery.of("pico", load_engine(folder, settings), ["bbbp", "tox21"], "own")
    answers = predict(query, settings, [QUINONE, "CCO"])
    return query, {name: a for name, a in zip("ab", answers, strict=True) if isinstance(a, Answer)}


def test_drugs(asked: tuple[PredictionQuery, dict[str, Answer]]) -> None:
    query, answers = asked
    frame = drugs_frame(query, answers, ASKED, pd)
    assert frame[["molecule", "task", "label"]].to_numpy().tolist() == [
        ["a", "bbbp", "p_np"],
        ["b", "bbbp", "p_np"],
    ]
    assert frame.percentile.tolist() == pytest.approx((100 * frame.value).tolist(), abs=0.1)
    empty = drugs_frame(query, {}, ASKED, pd)
    assert list(empty.columns) == list(frame.columns)
    with pytest.raises(UnsupportedQueryError, match="expected 'own'"):
        drugs_frame(replace(query, routing="moe"), answers, ASKED, pd)


def test_alerts(asked: tuple[PredictionQuery, dict[str, Answer]]) -> None:
    frame = alerts_frame(asked[1], pd)
    assert set(frame.molecule) == {"a"}
    expected = [(own.catalog, own.name, own.atoms) for own in structural_alerts(QUINONE)]
    assert list(frame[["catalog", "name", "atoms"]].itertuples(index=False, name=None)) == expected
    assert alerts_frame({"g": Answer(None, {})}, pd).empty
