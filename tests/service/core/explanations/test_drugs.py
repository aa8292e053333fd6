"""`explain: ["drugs"]`."""

from dataclasses import replace
from typing import Any

import pytest

from models.data.smiles import read_graph
from service.core.answer import Answer
from service.core.explanations.drugs import check_drugs, percentiles
from service.schemas import PredictResponse
from tests.service.doubles import (
    DRUGS,
    LABELS,
    DummyEngine,
    check_problem,
    engine_with_drugs,
    query_of,
    serving,
)

pytestmark = pytest.mark.anyio


async def asked(body: dict[str, Any], engine: DummyEngine | None = None) -> Any:
    async with serving(engine or engine_with_drugs()) as client:
        return await client.post("/predict", json={"explain": ["drugs"], **body})


async def test_answers_are_compared_with_those_for_drugs() -> None:
    response = await asked({"smiles": ["CCO", "C1", "C"]})
    PredictResponse.model_validate(response.json())
    first, broken, last = response.json()["predictions"]
    # 1 / (atoms + task + label + 1)
    assert first["tasks"]["bbbp"]["p_np"] == 0.25
    assert first["drugs"] == {
        "bbbp": {"p_np": 25.0},
        "clintox": {"FDA_APPROVED": 20.0, "CT_TOX": 16.67},
    }
    assert last["drugs"]["bbbp"] == {"p_np": 50.0}
    assert "drugs" not in broken
    assert "explanation_errors" not in first


async def test_labels_can_be_named() -> None:
    response = await asked({"smiles": "C", "explain_labels": ["clintox.CT_TOX"]})
    (item,) = response.json()["predictions"]
    assert item["drugs"] == {"clintox": {"CT_TOX": 25.0}}
    assert set(item["tasks"]) == set(LABELS)


async def test_nothing_is_added_unasked() -> None:
    async with serving(engine_with_drugs()) as client:
        response = await client.post("/predict", json={"smiles": "C"})
        model = (await client.get("/model")).json()
    assert "drugs" not in response.json()["predictions"][0]
    assert model["drugs"] == DRUGS


async def test_other_models_and_other_answers_are_refused() -> None:
    problem = check_problem(
        await asked({"smiles": "C"}, DummyEngine()), 422, "unsupported_explanation"
    )
    assert "gmerging add-drugs" in problem.detail
    moe = await asked({"smiles": "C", "routing": "moe"})
    problem = check_problem(moe, 422, "unsupported_explanation")
    assert "expected 'own'" in problem.detail
    explicit = await asked({"smiles": "C", "experts": ["own"]})
    assert explicit.status_code == 200, "these are the default ones"


async def test_a_model_without_the_table_says_so() -> None:
    async with serving() as client:
        model = (await client.get("/model")).json()
    assert model["drugs"] is None


def test_answers_by_the_network_alone_are_not_compared() -> None:
    """A graph has no fingerprint, and drugs were predicted by network and forest."""
    engine = engine_with_drugs()
    query = query_of(engine)
    (answers,) = engine.run([read_graph("C")], ["bbbp"], "own").answers
    alone = {"bbbp": replace(answers["bbbp"], no_fingerprint=True)}
    found = percentiles(
        engine.info,
        check_drugs(query),
        [Answer(None, alone), Answer("C", answers)],
        {"bbbp": ("p_np",), "tox21": ("NR-AR",)},
    )
    assert found == [{}, {"bbbp": {"p_np": 50.0}}]
