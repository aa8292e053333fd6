"""How far to trust an answer, over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.domain.structures import Structure, write_structures
from models.errors import ConfigError
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.schemas import ETHANOL_GRAPH, PredictResponse
from tests.domains import molecules
from tests.service.doubles import (
    check_problem,
    save_pico_artifact,
    save_pico_domains,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio
ASKED = {"smiles": ["CCO", molecules()[50]], "explain": ["domain"]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ArtifactEngine:
    folder = save_pico_domains(tmp_path_factory.mktemp("domains") / "pico")
    return load_engine(folder, settings_of(device="cpu"))


@pytest.fixture
async def client(engine: ArtifactEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine) as client:
        yield client


async def explained(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/predict", json={**ASKED, **body})
    assert response.status_code == 200, response.text
    PredictResponse.model_validate(response.json())
    items: list[dict[str, Any]] = response.json()["predictions"]
    return items


async def test_an_answer_has_its_domain_where_asked(client: httpx.AsyncClient) -> None:
    for item in await explained(client):
        assert list(item["tasks"]) == ["bbbp", "clintox", "tox21"]
        assert list(item["domain"]) == ["clintox", "tox21"]
    assert all("domain" not in item for item in await explained(client, explain=["routing"]))
    planted = (await explained(client))[1]["domain"]["clintox"]["nearest"][0]
    assert planted == {"similarity": 1.0, "row": 52}


async def test_a_molecule_that_cannot_be_read_has_its_error(client: httpx.AsyncClient) -> None:
    first, second = await explained(client, smiles=["C1", "CCO"])
    assert first["error"]["code"] == "smiles_syntax"
    assert "domain" not in first
    alone = (await explained(client, smiles=["CCO"]))[0]
    assert second["domain"] == alone["domain"], "from the cache, too"


async def test_more_molecules_than_one_call_searches(client: httpx.AsyncClient) -> None:
    many = molecules()[:40]
    items = await explained(client, smiles=many, tasks=["clintox"])
    nearest = [item["domain"]["clintox"]["nearest"][0] for item in items]
    for near, item in zip(nearest, items, strict=True):
        assert near["similarity"] == 1, item["smiles"]
    assert len({near["row"] for near in nearest}) > 30


async def test_what_cannot_be_explained_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict", json={**ASKED, "tasks": ["bbbp"]})
    problem = check_problem(response, 422, "unsupported_input")
    assert "expected tasks whose training molecules the artifact knows" in problem.detail
    body = {"graphs": [ETHANOL_GRAPH], "tasks": ["tox21"], "explain": ["domain"]}
    problem = check_problem(await client.post("/predict", json=body), 422, "unsupported_input")
    assert "got 'domain' for a graph" in problem.detail


async def test_a_model_without_domains_is_refused(tmp_path: Path) -> None:
    plain = load_engine(save_pico_artifact(tmp_path / "plain"), settings_of(device="cpu"))
    async with serving(plain) as client:
        problem = check_problem(await client.post("/predict", json=ASKED), 422, "unsupported_input")
    assert problem.detail.endswith("the artifact knows: none of this model")


async def test_structures_are_of_the_operators_file(engine: ArtifactEngine, tmp_path: Path) -> None:
    shown = Structure("c1ccccc1", {"CT_TOX": 0.0})
    known = {served.digest: [(52, shown), (12, shown)] for served in engine.info.domains.values()}
    write_structures(tmp_path / "structures.db", known)
    async with serving(engine, structures=tmp_path / "structures.db") as client:
        domain = (await explained(client))[1]["domain"]
    assert domain["clintox"]["nearest"][0]["smiles"] == "c1ccccc1"
    assert domain["clintox"]["nearest"][0]["values"] == {"CT_TOX": 0.0}
    assert all("smiles" not in near for near in domain["tox21"]["nearest"])
    with pytest.raises(ConfigError, match="expected a file of structures"):
        async with serving(engine, structures=tmp_path / "missing.db"):
            pass
