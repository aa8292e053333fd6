"""`POST /depict`."""

from typing import Any

import httpx
import pytest
from rdkit import Chem

from models.data.depiction import DepictionStyle, depict
from service.core import pipeline
from service.schemas import DepictResponse
from tests.service.doubles import check_problem, metric, serving

pytestmark = pytest.mark.anyio


async def asked(body: dict[str, Any], **settings: Any) -> httpx.Response:
    async with serving(**settings) as client:
        return await client.post("/depict", json=body)


async def test_molecules_are_drawn_in_the_order_of_the_request() -> None:
    response = await asked({"smiles": ["OCC", "C1CC", "[Na+].[Cl-]"], "width": 200})
    assert response.status_code == 200
    first, broken, salt = DepictResponse.model_validate(response.json()).pictures
    assert (first.index, first.smiles) == (0, "CCO")
    assert first.svg == depict("CCO", DepictionStyle(width=200))
    assert broken.svg is None
    assert broken.error is not None
    assert broken.error.code == "smiles_syntax"
    assert salt.svg


async def test_one_molecule_can_be_an_image() -> None:
    async with serving() as client:
        response = await client.post(
            "/depict", json={"smiles": "CCO"}, headers={"accept": "image/svg+xml"}
        )
    assert response.headers["content-type"].startswith("image/svg+xml")
    assert response.text == depict("CCO")


async def test_inchi_and_mol_blocks_are_drawn_too() -> None:
    mol = Chem.MolFromSmiles("CCO")
    for body in ({"inchi": Chem.MolToInchi(mol)}, {"mol_block": Chem.MolToMolBlock(mol)}):
        (picture,) = (await asked(body)).json()["pictures"]
        assert picture["svg"] == depict("CCO")


async def test_weights_colour_the_atoms_of_the_canonical_smiles() -> None:
    response = await asked({"smiles": ["OCC", "C"], "weights": [[1, 0, -1], None]})
    coloured, plain = response.json()["pictures"]
    assert coloured["svg"] == depict("CCO", weights=[1, 0, -1])
    assert plain["svg"] == depict("C")


async def test_wrong_requests_are_refused() -> None:
    body = {"smiles": ["CCO", "C"], "weights": [[1, 2], [1]]}
    first, second = (await asked(body)).json()["pictures"]
    assert first["error"]["code"] == "invalid_weights"
    assert "got 2 for CCO, expected 3" in first["error"]["message"]
    assert second["svg"]
    check_problem(await asked({"smiles": "C1CC"}), 422, "smiles_syntax")
    check_problem(await asked({"smiles": ["C"], "weights": []}), 422, "invalid_request")
    check_problem(await asked({"smiles": ["C"], "width": 5000}), 422, "invalid_request")
    check_problem(await asked({"smiles": ["C"], "theme": "drak"}), 422, "invalid_request")
    check_problem(await asked({"smiles": ["C"], "size": 5}), 422, "invalid_request")
    check_problem(await asked({}), 422, "invalid_request")
    three = {"smiles": ["C", "C", "C"]}
    check_problem(await asked(three, max_molecules=2), 422, "too_many_molecules")


async def test_pictures_are_cached_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as client:
        body = {"smiles": ["CCO", "CCN"]}
        first = await client.post("/depict", json=body)

        async def never(*_: object) -> None:
            raise AssertionError("drawn again")

        monkeypatch.setattr(pipeline.Parser, "apply", never)
        again = await client.post("/depict", json=body)
    assert again.json() == first.json()


async def test_too_many_waiting_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_MOST_BESIDE", 1)
    smiles = ["C" * k for k in range(1, 6)]
    check_problem(await asked({"smiles": smiles}), 429, "queue_full")


async def test_a_deadline_ends_the_wait() -> None:
    async with serving() as client:
        response = await client.post(
            "/depict", json={"smiles": "CCO"}, headers={"x-request-timeout": "0.000001"}
        )
    check_problem(response, 504, "deadline_exceeded")


async def test_requests_are_counted_under_their_route() -> None:
    async with serving() as client:
        await client.post("/depict", json={"smiles": "CCO"})
        text = (await client.get("/metrics")).text
    series = 'gmerging_requests_total{method="POST",route="/depict",status="200"}'
    assert metric(text, series) == 1
