from typing import Any

import pytest
from pydantic import ValidationError

from service.schemas import ETHANOL_GRAPH, PREDICT_EXAMPLES, WATER, PredictRequest


def test_one_smiles_is_a_list_of_one() -> None:
    assert PredictRequest.model_validate({"smiles": "CCO"}).smiles == ["CCO"]
    assert PredictRequest.model_validate({"smiles": ["CCO", "C"]}).smiles == ["CCO", "C"]


def test_defaults() -> None:
    request = PredictRequest.model_validate({"smiles": "C"})
    assert (request.graphs, request.tasks, request.routing, request.explain) == (
        None,
        None,
        "own",
        [],
    )


@pytest.mark.parametrize("example", PREDICT_EXAMPLES.values(), ids=PREDICT_EXAMPLES)
def test_examples_are_valid(example: dict[str, Any]) -> None:
    PredictRequest.model_validate(example["value"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "none of smiles, inchi, mol_block, graphs"),
        ({"smiles": "C", "graphs": [ETHANOL_GRAPH]}, "smiles and graphs of smiles"),
        ({"smiles": "C", "inchi": "InChI=1S/CH4/h1H4"}, "smiles and inchi of smiles"),
        ({"inchi": []}, "at least 1 item"),
        ({"mol_block": 5}, "valid list"),
        ({"smiles": []}, "at least 1 item"),
        ({"graphs": []}, "at least 1 item"),
        ({"smiles": 5}, "valid list"),
        ({"smiles": {"a": "C"}}, "valid list"),
        ({"smiles": "C", "tasks": []}, "at least 1 item"),
        ({"smiles": "C", "tasks": ["a", "a"]}, "a task twice"),
        ({"smiles": "C", "tasks": ["a" * 65]}, "at most 64 characters"),
        ({"smiles": "C", "routing": "best"}, "'moe', 'own' or 'merged'"),
        ({"smiles": "C", "explain": ["everything"]}, "'routing'"),
        ({"smiles": "C", "task": ["a"]}, "did you mean .tasks."),
        ({"graphs": [{**ETHANOL_GRAPH, "y": 1}]}, "unknown field, expected some of x, edge_index"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": [["5", 0]]}]}, "valid number"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": [[True, 0]]}]}, "valid number"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": [[None, 0]]}]}, "valid number"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": [[float("nan"), 0]]}]}, "finite number"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": [[10**400, 0]]}]}, "valid number"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": 5}]}, "valid list"),
        ({"graphs": [{**ETHANOL_GRAPH, "edge_index": [[0.0], [1]]}]}, "valid integer"),
        ({"graphs": [{**WATER, "numbers": [8.0, 1, 1]}]}, "valid integer"),
        ({"graphs": [{**WATER, "numbers": [[8], 1, 1]}]}, "valid integer"),
        ({"graphs": [{**WATER, "positions": [[0, 0, float("inf")]]}]}, "finite number"),
        ({"graphs": [{**WATER, "positions": [["0", 0, 0]]}]}, "valid number"),
        ({"graphs": [{**WATER, "cell": [[False, 0, 0]]}]}, "valid number"),
    ],
)
def test_wrong_request_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PredictRequest.model_validate(body)


@pytest.mark.parametrize(
    "body",
    [
        {"smiles": "C", "tasks": [1] * 100},
        {"smiles": "C", "explain": [1] * 100},
        {"smiles": "C", **{f"unknown_{k}": 1 for k in range(100)}},
        {"graphs": [5] * 100},
        {"graphs": [{"positions": [["a"] * 100]}]},
        {"graphs": [{"numbers": ["a"] * 100}]},
        {"graphs": [{f"unknown_{k}": 1 for k in range(100)}]},
        {"graphs": [{**ETHANOL_GRAPH, "x": [["a"]] * 100}]},
        {"graphs": [{**ETHANOL_GRAPH, "x": [["a"] * 100]}]},
    ],
)
def test_many_mistakes_cost_no_more_than_a_few(body: dict[str, Any]) -> None:
    """A description of every one of a million mistakes is a way to fill the memory."""
    with pytest.raises(ValidationError) as error:
        PredictRequest.model_validate(body)
    assert error.value.error_count() <= 3


def test_what_is_no_text_is_kept_as_its_kind() -> None:
    body = {"smiles": ["C", None, 5, 1.5, True, ["C"], {"smiles": "C"}]}
    texts = PredictRequest.model_validate(body).smiles
    assert texts is not None
    assert [text if isinstance(text, str) else text.got for text in texts] == [
        *("C", "null", "a number", "a number", "true or false", "a list", "an object")
    ]


def test_document_shows_both_forms_of_smiles() -> None:
    forms = PredictRequest.model_json_schema()["properties"]["smiles"]["anyOf"]
    assert [form["type"] for form in forms] == ["string", "array", "null"]


def test_numbers_stay_as_they_were_written() -> None:
    """Whether 5 or 5.0 is of no matter in features and of much in atom types."""
    request = PredictRequest.model_validate({"graphs": [{"x": [[5, 5.0]]}]})
    assert request.graphs is not None
    assert request.graphs[0].x is not None
    assert [type(value) for value in request.graphs[0].x[0]] == [int, float]
