"""The Open Inference Protocol over HTTP, by hand and with a client that nobody here wrote."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rdkit import Chem

from models.data.smiles import featurize
from service.app import create_app
from service.core.artifact_engine import ArtifactEngine, load_engine
from tests.service.doubles import (
    LABELS,
    DummyEngine,
    check_problem,
    client_of,
    serving,
    settings_of,
    stacked,
)
from tests.service.formats.test_inference_protocol import body
from tests.service.test_server import SMILES, process

INFER = "/v2/models/dummy/infer"


@pytest.mark.anyio
async def test_other_writings_than_smiles() -> None:
    block = str(Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")))
    async with serving() as client:
        answer = await client.post(
            INFER, json=body("CCO", "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3", block, "CCO |$;;HO$|")
        )
        refused = await client.post(INFER, json=body("CCO", "CCO |Sg:n:1:3:ht|"))
    assert answer.status_code == 200
    for output in answer.json()["outputs"]:
        rows = np.array(output["data"]).reshape(output["shape"])
        assert (rows == rows[0]).all()
    assert (refused.status_code, refused.json()["code"]) == (422, "polymer")
    assert "smiles[1]" in refused.json()["detail"]


@pytest.mark.anyio
async def test_infer() -> None:
    async with serving() as client:
        response = await client.post(
            INFER,
            json=body(
                "OCC",
                "C",
                id="r1",
                outputs=[{"name": "tox21"}, {"name": "bbbp"}],
                unknown={"is": "allowed"},
            ),
        )
    assert response.json() == {
        "model_name": "dummy",
        "model_version": "1",
        "id": "r1",
        "parameters": {"digest": "0" * 64},
        "outputs": [
            {
                "name": "tox21",
                "datatype": "FP32",
                "shape": [2, 3],
                "data": [0.16666667, 0.14285715, 0.125, 0.25, 0.2, 0.16666667],
            },
            {"name": "bbbp", "datatype": "FP32", "shape": [2, 1], "data": [0.25, 0.5]},
        ],
    }


@pytest.mark.anyio
async def test_models_are_listed_by_the_names_of_their_addresses() -> None:
    async with serving(model_name="mine") as client:
        (name,) = (await client.get("/v2/models")).json()["models"]
        assert name == "mine"
        assert (await client.get(f"/v2/models/{name}/ready")).status_code == 200
        answer = (await client.post(f"/v2/models/{name}/infer", json=body("CCO"))).json()
        assert answer["model_name"] == "mine"
        check_problem(await client.get("/v2/models/dummy"), 404, "unknown_model")


@pytest.mark.anyio
async def test_metadata_and_health() -> None:
    async with serving() as client:
        server, model, ready, health, live = [
            (await client.get(path)).json()
            for path in (
                "/v2",
                "/v2/models/dummy",
                "/v2/models/dummy/ready",
                "/v2/health/ready",
                "/v2/health/live",
            )
        ]
    assert (server["name"], server["extensions"]) == ("g-merging", ["binary_tensor_data"])
    assert model["inputs"] == [{"name": "smiles", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"] == [
        {"name": task, "datatype": "FP32", "shape": [-1, len(labels)]}
        for task, labels in LABELS.items()
    ]
    assert (ready["ready"], health["ready"], live["live"]) == (True, True, True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        (INFER, body("C", "C1"), 422, "smiles_syntax"),
        (INFER, body("C", outputs=[{"name": "nope"}]), 422, "unknown_task"),
        (INFER, body(*["C"] * 6), 422, "too_many_molecules"),
        (INFER, {}, 400, "invalid_request"),
        ("/v2/models/nope/infer", body("C"), 404, "unknown_model"),
        ("/v2/models/nope/versions/1/infer", body("C"), 404, "unknown_model"),
        ("/v2/models/dummy/versions/2/infer", body("C"), 404, "unknown_version"),
    ],
)
async def test_refusals_say_why_in_both_ways(
    path: str, content: Any, status: int, code: str
) -> None:
    async with serving(max_molecules=5) as client:
        response = await client.post(path, json=content)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["error"] == response.json()["detail"]
    if code == "smiles_syntax":
        assert "smiles[1]" in response.json()["error"]


@pytest.mark.anyio
async def test_version_is_the_artifacts_or_a_404() -> None:
    async with serving() as client:
        for end in ("", "/ready"):
            named = await client.get(f"/v2/models/dummy/versions/1{end}")
            assert (named.status_code, named.json()) == (
                200,
                (await client.get(f"/v2/models/dummy{end}")).json(),
            )
            other = await client.get(f"/v2/models/dummy/versions/0.9{end}")
            assert (other.status_code, other.json()["code"]) == (404, "unknown_version")
            assert (
                other.json()["error"]
                == "got version '0.9' of dummy, expected the one that there is, '1'"
            )
        assert (await client.get("/v2/models/dummy")).json()["versions"] == ["1"]
        answer = await client.post("/v2/models/dummy/versions/1/infer", json=body("C"))
        assert answer.json() == (await client.post(INFER, json=body("C"))).json()


@pytest.mark.anyio
async def test_model_that_is_replaced_while_the_body_comes_does_not_answer_for_its_version() -> (
    None
):
    app = create_app(settings_of(), DummyEngine())

    async def slow() -> AsyncIterator[bytes]:
        registry = app.state.services.models
        registry._install("dummy", DummyEngine(version="2"))
        yield json.dumps(body("C")).encode()

    async with app.router.lifespan_context(app), client_of(app) as client:
        response = await client.post("/v2/models/dummy/versions/1/infer", content=slow())
    assert (response.status_code, response.json()["code"]) == (404, "unknown_version")


@pytest.fixture(scope="module")
def server(pico_artifact: Path) -> Iterator[tuple[str, ArtifactEngine]]:
    with process(port=0, artifact=pico_artifact, device="cpu") as (_, url):
        yield url.removeprefix("http://"), load_engine(pico_artifact, settings_of(device="cpu"))


@pytest.mark.parametrize("as_binary", [True, False])
def test_tritonclient(server: tuple[str, ArtifactEngine], as_binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    url, engine = server
    client = triton.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pico")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert [tensor["name"] for tensor in client.get_model_metadata("pico")["outputs"]] == list(
        engine.info.tasks
    )

    smiles = triton.InferInput("smiles", [len(SMILES)], "BYTES")
    smiles.set_data_from_numpy(np.array(SMILES, dtype=np.object_), binary_data=as_binary)
    wanted = [
        triton.InferRequestedOutput(task, binary_data=as_binary) for task in engine.info.tasks
    ]
    for outputs in (wanted, None):
        result = client.infer(
            "pico", [smiles], outputs=outputs, request_id="7", parameters={"routing": "moe"}
        )
        offline = engine.run([featurize(text).graph for text in SMILES], engine.info.tasks, "moe")
        for task in engine.info.tasks:
            np.testing.assert_allclose(result.as_numpy(task), stacked(offline, task), atol=1e-5)
        assert result.get_response()["id"] == "7"

    smiles.set_data_from_numpy(
        np.array(["C1"] * len(SMILES), dtype=np.object_), binary_data=as_binary
    )
    with pytest.raises(triton.InferenceServerException, match="not valid SMILES syntax"):
        client.infer("pico", [smiles])
    with pytest.raises(triton.InferenceServerException, match="unknown model 'nope'"):
        client.infer("nope", [smiles])
    client.close()


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_tritonclient_with_a_version_and_compression(
    server: tuple[str, ArtifactEngine], algorithm: str | None
) -> None:
    triton = pytest.importorskip("tritonclient.http")
    url, engine = server
    client, version = triton.InferenceServerClient(url), engine.info.version
    assert client.is_model_ready("pico", version)
    assert not client.is_model_ready("pico", "9")
    assert client.get_model_metadata("pico", version)["versions"] == [version]
    smiles = triton.InferInput("smiles", [len(SMILES)], "BYTES")
    smiles.set_data_from_numpy(np.array(SMILES, dtype=np.object_))
    result = client.infer(
        "pico",
        [smiles],
        model_version=version,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    offline = engine.run([featurize(text).graph for text in SMILES], engine.info.tasks, "own")
    for task in engine.info.tasks:
        np.testing.assert_allclose(result.as_numpy(task), stacked(offline, task), atol=1e-5)
    assert result.get_response()["model_version"] == version
    with pytest.raises(
        triton.InferenceServerException, match=f"expected the one that there is, '{version}'"
    ):
        client.infer("pico", [smiles], model_version="9")
    client.close()


def test_without_keys_it_is_open_as_predict_is(server: tuple[str, ArtifactEngine]) -> None:
    assert httpx.get(f"http://{server[0]}/v2").json()["name"] == "g-merging"
