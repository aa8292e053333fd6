"""`POST /match`."""

from typing import Any

import httpx
import pytest
from rdkit import Chem

from service.core import pipeline
from service.schemas import ASPIRIN, MatchResponse
from tests.service.doubles import check_problem, metric, serving

FULLERENE = (
    "c12c3c4c5c1c1c6c7c2c2c8c3c3c9c4c4c%10c5c5c1c1c6c6c%11c7c2c2c7c8c3c3c8c9c4c4c9c%10c5c5c1c1c6"
    "c6c%11c2c2c7c3c3c8c4c4c9c5c1c1c6c2c3c41"
)
pytestmark = pytest.mark.anyio


async def asked(body: dict[str, Any], **settings: Any) -> httpx.Response:
    async with serving(**settings) as client:
        return await client.post("/match", json=body)


async def test_molecules_are_searched_in_the_order_of_the_request() -> None:
    response = await asked({"smiles": ["OC(=O)C", "C1CC", "CCO"], "smarts": "C(=O)[OH]"})
    assert response.status_code == 200
    MatchResponse.model_validate(response.json())
    acid, broken, ethanol = response.json()["matches"]
    assert acid == {"index": 0, "smiles": "CC(=O)O", "matches": True, "atoms": [[1, 2, 3]]}
    assert broken["error"]["code"] == "smiles_syntax"
    assert "matches" not in broken
    assert ethanol == {"index": 2, "smiles": "CCO", "matches": False, "atoms": []}


async def test_inchi_and_mol_blocks_are_searched_too() -> None:
    mol = Chem.MolFromSmiles("CCO")
    for body in ({"inchi": Chem.MolToInchi(mol)}, {"mol_block": Chem.MolToMolBlock(mol)}):
        (found,) = (await asked({**body, "smarts": "[OH]"})).json()["matches"]
        assert found["atoms"] == [[2]]


async def test_wrong_smarts_are_refused_with_their_place() -> None:
    problem = check_problem(await asked({"smiles": "C", "smarts": "CC["}), 422, "invalid_smarts")
    assert problem.detail.startswith("smarts: got no valid SMARTS near character 3")
    check_problem(await asked({"smiles": "C", "smarts": "C" * 1001}), 422, "invalid_request")
    check_problem(await asked({"smiles": "C", "smarts": ""}), 422, "invalid_request")


async def test_wrong_requests_are_refused() -> None:
    check_problem(await asked({"smiles": "C1CC", "smarts": "C"}), 422, "smiles_syntax")
    check_problem(await asked({"smiles": "C"}), 422, "invalid_request")
    check_problem(await asked({"smarts": "C"}), 422, "invalid_request")
    check_problem(await asked({"smiles": "C", "smarts": "C", "size": 5}), 422, "invalid_request")
    three = {"smiles": ["C", "C", "C"], "smarts": "C"}
    check_problem(await asked(three, max_molecules=2), 422, "too_many_molecules")


async def test_a_search_that_takes_too_long_is_an_error_of_its_molecule() -> None:
    """Every path of 26 atoms in a fullerene is tried: some 2^26."""
    body = {"smiles": [ASPIRIN, FULLERENE], "smarts": "~".join(["*"] * 26) + "~[#92]"}
    settings = {"parse_timeout_seconds": 0.5}
    response = await asked(body, **settings)
    assert response.status_code == 200
    good, late = response.json()["matches"]
    assert good["matches"] is False
    assert late["error"]["code"] == "parse_timeout"
    assert "to search" in late["error"]["message"]


async def test_results_are_cached_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as client:
        body = {"smiles": ["CCO", "CCN"], "smarts": "N"}
        first = await client.post("/match", json=body)

        async def never(*_: object) -> None:
            raise AssertionError("searched again")

        monkeypatch.setattr(pipeline.Parser, "apply", never)
        again = await client.post("/match", json=body)
    assert again.json() == first.json()


async def test_too_many_waiting_molecules_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_MOST_BESIDE", 1)
    smiles = ["C" * k for k in range(1, 6)]
    check_problem(await asked({"smiles": smiles, "smarts": "C"}), 429, "queue_full")


async def test_a_deadline_ends_the_wait() -> None:
    async with serving() as client:
        response = await client.post(
            "/match",
            json={"smiles": "CCO", "smarts": "C"},
            headers={"x-request-timeout": "0.000001"},
        )
    check_problem(response, 504, "deadline_exceeded")


async def test_requests_are_counted_under_their_route() -> None:
    async with serving() as client:
        await client.post("/match", json={"smiles": "CCO", "smarts": "C"})
        text = (await client.get("/metrics")).text
    series = 'gmerging_requests_total{method="POST",route="/match",status="200"}'
    assert metric(text, series) == 1
