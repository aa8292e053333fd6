"""Network and forest over HTTP: what a request asks for, and what every route answers."""

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.bulk.jobs import JobStore
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PredictionQuery
from service.core.parsing import Parser
from service.core.reading import InputRequirements, Source
from service.formats.molecule_files import FileFormat
from service.schemas import ETHANOL_GRAPH, PredictResponse, TasksResponse
from tests.service.doubles import (
    check_problem,
    client_of,
    metric,
    save_pico_artifact,
    save_pico_forests,
    save_pico_shared_artifact,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio
SMILES = ["CCO", "CC(=O)Oc1ccccc1C(=O)O"]
BOTH = ["clintox", "tox21"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ArtifactEngine:
    folder = save_pico_forests(tmp_path_factory.mktemp("forests") / "pico")
    return load_engine(folder, settings_of(device="cpu"))


@pytest.fixture
async def client(engine: ArtifactEngine, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_of(jobs=tmp_path / "jobs"), engine)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


async def predict(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/predict", json={"smiles": SMILES, "tasks": BOTH, **body})
    assert response.status_code == 200, response.text
    PredictResponse.model_validate(response.json())
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return predictions


async def test_tasks_say_which_experts_answer(client: httpx.AsyncClient) -> None:
    response = await client.get("/tasks")
    tasks = {task.name: task.experts for task in TasksResponse(**response.json()).tasks}
    assert tasks["bbbp"] is None
    assert tasks["clintox"] is not None
    assert tasks["clintox"].model_dump() == {
        "default": "both",
        "inputs": ("ecfp4",),
        "library": "by hand 1",
        "weight": 0.5,
    }
    assert tasks["tox21"] is not None
    assert tasks["tox21"].default == "forest"


async def test_experts_explain_the_answer(client: httpx.AsyncClient) -> None:
    default = await predict(client, explain=["experts", "routing"])
    own = await predict(client, experts=["own"], explain=["experts"])
    forest = await predict(client, experts=["forest"])
    both = await predict(client, experts=["forest", "own"])
    for k, item in enumerate(default):
        said = item["experts"]["clintox"]
        assert {name: expert["weight"] for name, expert in said.items()} == {
            "own": 0.5,
            "forest": 0.5,
        }
        assert said["own"]["values"] == own[k]["tasks"]["clintox"]
        assert said["forest"]["values"] == forest[k]["tasks"]["clintox"]
        assert item["tasks"]["clintox"] == both[k]["tasks"]["clintox"]
        assert list(item["experts"]["tox21"]) == ["forest"]
        assert item["experts"]["tox21"]["forest"] == {
            "weight": 1.0,
            "values": item["tasks"]["tox21"],
        }
        assert item["tasks"]["tox21"] == forest[k]["tasks"]["tox21"] != own[k]["tasks"]["tox21"]
        assert own[k]["experts"]["tox21"] == {
            "own": {"weight": 1.0, "values": own[k]["tasks"]["tox21"]}
        }
        assert "experts" not in both[k]
        assert "without_forest" not in item
        assert "routing" in item


@pytest.mark.parametrize("save_network", [save_pico_artifact, save_pico_shared_artifact])
async def test_a_short_molecule_alone_is_answered_by_the_forest(
    save_network: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone on an idle service it is read without another process, with its fingerprint too."""
    handed, run = [], Parser._run

    async def noted(parser: Parser, chunk: list[Source], needs: InputRequirements) -> Any:
        handed.append(list(chunk))
        return await run(parser, chunk, needs)

    monkeypatch.setattr(Parser, "_run", noted)
    engine = load_engine(
        save_pico_forests(tmp_path / "pico", save_network), settings_of(device="cpu")
    )
    async with serving(engine, cache_bytes=0) as client:
        handed.clear()
        for experts in (None, ["forest"], ["own", "forest"], ["own"]):
            body = {"experts": experts, "explain": ["experts"]}
            alone = [(await predict(client, smiles=text, **body))[0] for text in SMILES]
            assert handed == []
            together = await predict(client, **body)
            assert handed == [SMILES]
            handed.clear()
            for task in BOTH:
                for first, second in zip(alone, together, strict=True):
                    assert "without_forest" not in first
                    assert first["experts"][task].keys() == second["experts"][task].keys()
                    assert first["tasks"][task] == pytest.approx(second["tasks"][task], abs=1e-6)
            assert ("forest" in alone[0]["experts"]["tox21"]) == (experts != ["own"])


async def test_answers_are_cached_by_experts(client: httpx.AsyncClient) -> None:
    asked: list[dict[str, Any]] = [{}, {"experts": ["own"]}, {"experts": ["forest"]}]
    first = [await predict(client, explain=["experts"], **body) for body in asked]
    again = [await predict(client, explain=["experts"], **body) for body in asked]
    assert first == again
    text = (await client.get("/metrics")).text
    assert metric(text, 'gmerging_cache_total{result="hit"}') == 3 * len(SMILES)


async def test_a_graph_is_answered_by_the_network_and_says_so(client: httpx.AsyncClient) -> None:
    body = {"graphs": [ETHANOL_GRAPH]}
    (answer,) = (await client.post("/predict", json=body)).json()["predictions"]
    assert answer["without_forest"] == ["clintox", "tox21"]
    own = (await predict(client, smiles="OCC", experts=["own"]))[0]["tasks"]
    for task in BOTH:
        assert answer["tasks"][task] == pytest.approx(own[task], abs=1e-6)
    body |= {"experts": ["own"]}
    (answer,) = (await client.post("/predict", json=body)).json()["predictions"]
    assert "without_forest" not in answer


@pytest.mark.parametrize("graphs", [1, 2])
async def test_a_forest_refuses_graphs(client: httpx.AsyncClient, graphs: int) -> None:
    body = {"graphs": [ETHANOL_GRAPH] * graphs, "tasks": BOTH, "experts": ["forest"]}
    problem = check_problem(await client.post("/predict", json=body), 422, "unsupported_input")
    assert "needs a fingerprint, expected a molecule as text" in problem.detail


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"experts": ["forrest"]}, "invalid_request", "did you mean 'forest'?"),
        ({"experts": ["own", "own"]}, "invalid_request", "each once"),
        ({"experts": []}, "invalid_request", "experts"),
        ({"experts": "own"}, "invalid_request", "experts"),
        ({"experts": ["forest"]}, "unsupported_experts", "got expert 'forest' for bbbp, without"),
        ({"expert": ["forest"]}, "invalid_request", "did you mean 'experts'?"),
    ],
)
async def test_wrong_experts_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], code: str, message: str
) -> None:
    response = await client.post("/predict", json={"smiles": "C", **body})
    problem = check_problem(response, 422, code)
    assert message in response.text, problem


async def test_a_model_without_forests_refuses_them(tmp_path: Path) -> None:
    folder = save_pico_artifact(tmp_path / "plain")
    app = create_app(settings_of(), load_engine(folder, settings_of(device="cpu")))
    async with app.router.lifespan_context(app), client_of(app) as client:
        own = await client.post("/predict", json={"smiles": "C", "experts": ["own"]})
        assert own.status_code == 200
        body = {"smiles": "C", "tasks": ["bbbp"], "experts": ["own", "forest"]}
        refused = await client.post("/predict", json=body)
        problem = check_problem(refused, 422, "unsupported_experts")
        assert problem.detail.endswith("in model pico, expected experts ['own']")


async def test_streams(client: httpx.AsyncClient) -> None:
    lines = [json.dumps(SMILES[0]), json.dumps({"graph": ETHANOL_GRAPH, "id": "g"})]
    url = "/predict/stream?tasks=clintox"
    answers = []
    for query in ("", "&experts=forest", "&experts=own,forest&explain_experts=true"):
        response = await client.post(url + query, content="\n".join(lines))
        answers.append([json.loads(line) for line in response.text.splitlines()])
    default, forest, both = answers
    expected = await predict(client, tasks=["clintox"], experts=["forest"])
    assert default[1]["without_forest"] == ["clintox"]
    assert forest[0]["tasks"] == expected[0]["tasks"]
    assert forest[1]["error"]["code"] == "unsupported_input"
    assert both[0]["tasks"] == default[0]["tasks"]
    assert list(both[0]["experts"]["clintox"]) == ["own", "forest"]
    refused = await client.post(f"{url}&experts=forst", content="")
    assert "did you mean 'forest'?" in check_problem(refused, 422, "invalid_request").detail


async def test_files_and_jobs(client: httpx.AsyncClient) -> None:
    expected = await predict(client, tasks=["tox21"], experts=["own", "forest"])
    values = [str(value) for value in expected[0]["tasks"]["tox21"].values()]
    files = {"file": ("m.smi", "\n".join(SMILES))}
    url = "/predict/file?tasks=tox21"
    direct = await client.post(f"{url}&experts=own&experts=forest", files=files)
    assert direct.text.splitlines()[1].split(",")[-3:] == values
    form = await client.post(url, files=files, data={"experts": "own,forest"})
    assert form.text == direct.text
    assert (await client.post(url, files=files)).text != direct.text
    compressed = {"file": ("m.smi.gz", gzip.compress("\n".join(SMILES).encode()))}
    created = await client.post(
        f"{url}&experts=own,forest", files=compressed, headers={"Prefer": "respond-async"}
    )
    assert created.status_code == 202
    job = f"/jobs/{created.json()['id']}"
    while (state := (await client.get(job)).json()["state"]) in ("queued", "running"):
        await asyncio.sleep(0.02)
    assert state == "done"
    assert (await client.get(f"{job}/result")).text == direct.text


async def test_inference_protocol(client: httpx.AsyncClient) -> None:
    tensor = {"name": "smiles", "datatype": "BYTES", "shape": [2], "data": SMILES}
    body = {"inputs": [tensor], "outputs": [{"name": "tox21"}]}
    url = "/v2/models/pico/infer"
    for experts in ("own", "forest", "own,forest"):
        expected = await predict(client, tasks=["tox21"], experts=experts.split(","))
        response = await client.post(url, json={**body, "parameters": {"experts": experts}})
        flat = [value for item in expected for value in item["tasks"]["tox21"].values()]
        assert response.json()["outputs"][0]["data"] == flat
    for parameters in ({"experts": "forst"}, {"expert": "own"}):
        response = await client.post(url, json={**body, "parameters": parameters})
        assert "did you mean" in check_problem(response, 400, "invalid_request").detail


async def test_a_job_for_a_forest_that_is_gone_fails(
    engine: ArtifactEngine, tmp_path: Path
) -> None:
    store = JobStore(tmp_path / "jobs", 1000)
    query = PredictionQuery.of("pico", engine, ["tox21"], "own", "forest")
    job = store.create(io.BytesIO(b"C\n"), "", FileFormat("smi"), query, "csv")
    plain = load_engine(save_pico_artifact(tmp_path / "plain"), settings_of(device="cpu"))
    app = create_app(settings_of(jobs=tmp_path / "jobs"), plain)
    async with app.router.lifespan_context(app), client_of(app) as client:
        while (found := (await client.get(f"/jobs/{job.id}")).json())["finished"] is None:
            await asyncio.sleep(0.02)
    assert found["state"] == "failed"
    assert "got expert 'forest' for tox21, without a forest in model pico" in found["error"]
