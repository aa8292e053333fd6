"""`explain: ["alerts"]`."""

from typing import Any

import pytest

from models.data.alerts import structural_alerts
from service.core import pipeline
from service.core.explanations.alerts import alerts_of
from service.core.parsing import Parser
from service.core.reading import ItemFailure
from service.schemas import ETHANOL_GRAPH, PredictResponse
from tests.service.doubles import serving

pytestmark = pytest.mark.anyio
QUINONE = "O=C1C=CC(=O)C=C1"


async def asked(body: dict[str, Any]) -> list[Any]:
    async with serving() as client:
        response = await client.post("/predict", json={"explain": ["alerts"], **body})
    assert response.status_code == 200
    PredictResponse.model_validate(response.json())
    return list(response.json()["predictions"])


async def test_alerts_refer_to_the_atoms_of_the_answered_smiles() -> None:
    ethanol, quinone, broken = await asked({"smiles": ["OCC", "C1=CC(=O)C=CC1=O", "C1"]})
    assert ethanol["alerts"] == []
    assert quinone["smiles"] == QUINONE
    assert [alert["name"] for alert in quinone["alerts"]] == [
        alert.name for alert in structural_alerts(QUINONE)
    ]
    assert quinone["alerts"][0]["catalog"] == "PAINS"
    assert quinone["alerts"][0]["atoms"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert "alerts" not in broken


async def test_a_graph_has_an_error_in_place_of_alerts() -> None:
    (item,) = await asked({"graphs": [ETHANOL_GRAPH]})
    assert "alerts" not in item
    assert item["tasks"]
    assert item["explanation_errors"]["alerts"]["code"] == "unsupported_explanation"


async def test_a_search_that_fails_costs_the_explanation_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = ItemFailure("parse_timeout", "took more than 5 s")

    async def apply(self: Parser, items: Any, work: Any, verb: str) -> list[ItemFailure]:
        return [late] * len(items)

    monkeypatch.setattr(pipeline.Parser, "apply", apply)
    (item,) = await asked({"smiles": "CCO"})
    assert item["tasks"]
    assert "alerts" not in item
    assert item["explanation_errors"] == {"alerts": vars(late)}


async def test_alerts_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as client:
        body = {"smiles": [QUINONE, QUINONE], "explain": ["alerts"]}
        first = await client.post("/predict", json=body)

        async def never(*_: object) -> None:
            raise AssertionError("searched again")

        monkeypatch.setattr(pipeline.Parser, "apply", never)
        again = await client.post("/predict", json=body)
    assert again.json() == first.json()


def test_what_cannot_be_read_again_is_an_error() -> None:
    found = alerts_of("C1CC")
    assert isinstance(found, ItemFailure)
    assert found.code == "smiles_syntax"
