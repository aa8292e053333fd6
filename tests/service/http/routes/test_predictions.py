"""The whole HTTP stack on a dummy engine, without a port."""

import asyncio
import json
import os

import pytest
from rdkit import Chem

from service.app import create_app
from service.core import parsing
from service.schemas import ETHANOL_GRAPH, PredictResponse
from tests.service.doubles import (
    LABELS,
    DummyEngine,
    check_problem,
    client_of,
    metric,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio


async def test_one_smiles() -> None:
    async with serving() as client:
        response = await client.post("/predict", json={"smiles": "OCC"})
    assert response.status_code == 200
    assert response.json() == {
        "model": {"name": "dummy", "version": "1", "digest": "0" * 64},
        "predictions": [
            {
                "index": 0,
                "smiles": "CCO",
                "tasks": {
                    "bbbp": {"p_np": 0.25},
                    "clintox": {"FDA_APPROVED": 0.2, "CT_TOX": 0.16666667},
                    "tox21": {"NR-AR": 0.16666667, "NR-ER": 0.14285715, "SR-p53": 0.125},
                },
            }
        ],
    }


async def test_bad_molecule_among_good_ones() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict", json={"smiles": ["C", "", "CC", "C1", "CCC"], "tasks": ["bbbp"]}
        )
    assert response.status_code == 200
    items = PredictResponse.model_validate(response.json()).predictions
    assert [item.index for item in items] == [0, 1, 2, 3, 4]
    assert [item.smiles for item in items] == ["C", None, "CC", None, "CCC"]
    assert [item.error.code if item.error else None for item in items] == [
        None,
        "empty_smiles",
        None,
        "smiles_syntax",
        None,
    ]
    assert [item.tasks["bbbp"]["p_np"] if item.tasks else None for item in items] == [
        0.5,
        None,
        0.33333334,
        None,
        0.25,
    ]


async def test_what_is_no_text_is_an_error_of_its_item() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict", json={"smiles": ["CCO", None, 5, ["C"], "C"], "tasks": ["bbbp"]}
        )
        alone = await client.post("/predict", json={"smiles": [None]})
    assert response.status_code == 200
    items = PredictResponse.model_validate(response.json()).predictions
    assert [item.index for item in items] == [0, 1, 2, 3, 4]
    assert [item.smiles for item in items] == ["CCO", None, None, None, "C"]
    assert [item.error.code if item.error else None for item in items] == [
        None,
        "empty_smiles",
        "not_text",
        "not_text",
        None,
    ]
    assert "null" in check_problem(alone, 422, "empty_smiles").detail


INCHI = "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"
MOL_BLOCK = str(Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")))


@pytest.mark.parametrize(
    "body",
    [
        {"smiles": ["CCO", INCHI, MOL_BLOCK, "CCO |$;;HO$|", "[CH3:1][13CH2]O[2H]"]},
        {"inchi": INCHI},
        {"inchi": [INCHI, INCHI]},
        {"mol_block": MOL_BLOCK},
        {"mol_block": [MOL_BLOCK, MOL_BLOCK.replace("M  END", "\nM  END")]},
    ],
)
async def test_every_writing_of_a_molecule_has_one_answer(body: dict[str, object]) -> None:
    async with serving() as client:
        expected = (await client.post("/predict", json={"smiles": "CCO"})).json()["predictions"][0]
        items = (await client.post("/predict", json=body)).json()["predictions"]
    assert items == [{**expected, "index": k} for k in range(len(items))]


async def test_a_field_for_one_format_takes_no_other() -> None:
    async with serving() as client:
        response = await client.post("/predict", json={"inchi": [INCHI, "CCO", None]})
        check_problem(
            await client.post("/predict", json={"mol_block": "CCO"}), 422, "mol_block_syntax"
        )
        check_problem(
            await client.post("/predict", json={"smiles": "CCO", "inchi": INCHI}),
            422,
            "invalid_request",
        )
    assert [item.get("error", {}).get("code") for item in response.json()["predictions"]] == [
        None,
        "inchi_syntax",
        "empty_smiles",
    ]


@pytest.mark.parametrize("smiles", ["C1", ["C1"]])
async def test_bad_molecule_alone(smiles: object) -> None:
    async with serving() as client:
        problem = check_problem(
            await client.post("/predict", json={"smiles": smiles}), 422, "smiles_syntax"
        )
    assert "C1" in problem.detail


async def test_only_bad_molecules_of_several_are_marked_each() -> None:
    async with serving() as client:
        response = await client.post("/predict", json={"smiles": ["", "C1"]})
    assert response.status_code == 200
    codes = [item["error"]["code"] for item in response.json()["predictions"]]
    assert codes == ["empty_smiles", "smiles_syntax"]


async def test_graph_equals_smiles_and_has_none() -> None:
    async with serving() as client:
        graph = await client.post("/predict", json={"graphs": [ETHANOL_GRAPH]})
        smiles = await client.post("/predict", json={"smiles": "CCO"})
    (from_graph,), (from_smiles,) = graph.json()["predictions"], smiles.json()["predictions"]
    assert from_graph["smiles"] is None
    assert from_graph["tasks"] == from_smiles["tasks"]


async def test_bad_graph_among_good_ones() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict",
            json={"graphs": [ETHANOL_GRAPH, {**ETHANOL_GRAPH, "x": [[5, 0]]}], "tasks": ["bbbp"]},
        )
    good, bad = response.json()["predictions"]
    assert good["tasks"] == {"bbbp": {"p_np": 0.25}}
    assert bad["error"]["code"] == "invalid_graph"


async def test_tasks_in_the_asked_order_and_routing_on_request() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict", json={"smiles": "C", "tasks": ["tox21", "bbbp"], "explain": ["routing"]}
        )
    (item,) = response.json()["predictions"]
    assert list(item["tasks"]) == list(item["routing"]) == ["tox21", "bbbp"]
    assert list(item["routing"]["bbbp"]) == ["layer_0", "graph"]
    for sites in item["routing"].values():
        for weights in sites.values():
            assert list(weights) == list(LABELS)
            assert sum(weights.values()) == pytest.approx(1)


async def test_unknown_task_is_named_with_the_known_ones() -> None:
    async with serving() as client:
        problem = check_problem(
            await client.post("/predict", json={"smiles": "C", "tasks": ["bbbp", "bbb"]}),
            422,
            "unknown_task",
        )
    assert "'bbb'" in problem.detail
    assert problem.model_extra == {"known_tasks": list(LABELS)}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"smiles": "C", "task": ["bbbp"]}, "#/task"),
        ({"smiles": "C", "tasks": ["bbbp", 7]}, "#/tasks/1"),
        (
            {"graphs": [ETHANOL_GRAPH, {"x": [["a", 0]], "edge_index": [], "edge_attr": []}]},
            "#/graphs/1/x/0/0",
        ),
        ({"smiles": "C", "a/b~c": 1}, "#/a~1b~0c"),
        ({}, "#"),
        ([], "#"),
    ],
)
async def test_invalid_request_points_at_the_field(body: object, pointer: str) -> None:
    async with serving() as client:
        problem = check_problem(await client.post("/predict", json=body), 422, "invalid_request")
    assert problem.errors is not None
    assert problem.errors[0].pointer == pointer


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b'{"smiles": ', "application/json", 400, "invalid_json"),
        (b'{"smiles": "\xff"}', "application/json", 400, "bad_request"),
        (b"[" * 100_000, "application/json", 400, "bad_request"),
        (b"", "application/json", 422, "invalid_request"),
        (b'{"smiles": "\\ud800"}', "application/json", 422, "smiles_syntax"),
        (b'{"smiles": "C", "\\ud800": 1}', "application/json", 422, "invalid_request"),
        (b'{"smiles": "C", "tasks": ["\\ud800"]}', "application/json", 422, "invalid_request"),
        (b'{"smiles": "C", "tasks": ["\\u0000\xc3\xa9"]}', "application/json", 422, "unknown_task"),
        (b'{"smiles": "C"}', "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b'{"smiles": "C"}', "", 415, "unsupported_media_type"),
    ],
)
async def test_bodies_that_are_no_request(
    content: bytes, content_type: str, status: int, code: str
) -> None:
    async with serving() as client:
        check_problem(
            await client.post("/predict", content=content, headers={"content-type": content_type}),
            status,
            code,
        )


async def test_limit_on_molecules() -> None:
    async with serving(max_molecules=3) as client:
        fitting = await client.post("/predict", json={"smiles": ["C"] * 3, "tasks": ["bbbp"]})
        tasks = [item["tasks"] for item in fitting.json()["predictions"]]
        assert tasks == [{"bbbp": {"p_np": 0.5}}] * 3
        for body in ({"smiles": ["C"] * 4}, {"graphs": [ETHANOL_GRAPH] * 4}):
            problem = check_problem(
                await client.post("/predict", json=body), 422, "too_many_molecules"
            )
            assert problem.limit == {"max_molecules": 3}
            assert "max_molecules" in problem.detail


@pytest.mark.parametrize(
    ("body", "code", "limit"),
    [
        ({"smiles": "CCCC"}, "too_many_atoms", "at most 3 (max_atoms)"),
        ({"smiles": "[CH3][CH3]"}, "smiles_too_long", "max_smiles_length"),
        ({"graphs": [{**ETHANOL_GRAPH, "x": [[5, 0]] * 4}]}, "too_many_atoms", "max_atoms"),
        (
            {"graphs": [{**ETHANOL_GRAPH, "edge_attr": [[0, 0]] * 13}]},
            "too_many_bonds",
            "max_atoms",
        ),
    ],
)
async def test_limits_on_a_molecule(body: dict[str, object], code: str, limit: str) -> None:
    async with serving(max_atoms=3, max_smiles_length=8) as client:
        problem = check_problem(await client.post("/predict", json=body), 422, code)
    assert limit in problem.detail


async def test_full_queue(engine: DummyEngine) -> None:
    async with serving(engine, max_batch_cost=9, max_pending_cost=9) as client:
        engine.gate.clear()
        held = asyncio.create_task(client.post("/predict", json={"smiles": "CC"}))
        await asyncio.to_thread(engine.entered.acquire)
        refused = await client.post("/predict", json={"smiles": "CC"})
        check_problem(refused, 429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/healthz")).json() == {"status": "alive"}
        engine.gate.set()
        (item,) = (await held).json()["predictions"]
        assert (item["smiles"], item["tasks"]["bbbp"]["p_np"]) == ("CC", 0.33333334)


async def test_failure_of_the_model_is_one_clients_500() -> None:
    async with serving() as client:
        response = await client.post(
            "/predict", json={"smiles": "[U]"}, headers={"x-request-id": "mine"}
        )
        problem = check_problem(response, 500, "internal")
        assert "broke" not in problem.detail
        assert response.headers["x-request-id"] == "mine"
        good = await client.post("/predict", json={"smiles": "C", "tasks": ["bbbp"]})
        assert good.json()["predictions"][0]["tasks"] == {"bbbp": {"p_np": 0.5}}
        text = (await client.get("/metrics")).text
    assert metric(text, 'gmerging_requests_total{method="POST",route="/predict",status="500"}') == 1


async def test_client_that_goes_away_leaves_the_queue(engine: DummyEngine) -> None:
    app = create_app(settings_of(), engine)
    body = json.dumps({"smiles": ["CC", "C"]}).encode()
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
    }
    scope |= {
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
    }
    async with app.router.lifespan_context(app), client_of(app) as client:
        engine.gate.clear()
        held = asyncio.create_task(client.post("/predict", json={"smiles": "C"}))
        await asyncio.to_thread(engine.entered.acquire)
        leaving = asyncio.create_task(app(scope, receive, send))
        while metric((await client.get("/metrics")).text, "gmerging_queue_molecules") < 2:
            await asyncio.sleep(0)
        gone.set()
        await leaving
        text = (await client.get("/metrics")).text
        assert metric(text, "gmerging_queue_molecules") == 0
        assert metric(text, 'gmerging_molecules_total{outcome="cancelled"}') == 2
        assert (
            metric(text, 'gmerging_requests_total{method="POST",route="/predict",status="499"}')
            == 1
        )
        engine.gate.set()
        assert (await held).json()["predictions"][0]["smiles"] == "C"
    assert engine.passes == [(1, tuple(LABELS), "own")]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nope", 404, "not_found"), ("GET", "/predict", 405, "method_not_allowed")],
)
async def test_wrong_address(method: str, path: str, status: int, code: str) -> None:
    async with serving() as client:
        check_problem(await client.request(method, path), status, code)


async def test_processes_that_cannot_read_keep_the_service_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parsing, "_read_first", os.abort)
    with pytest.raises(
        parsing.ParserStartError, match="the processes that read molecules do not work"
    ):
        async with serving():
            pytest.fail("it started")
