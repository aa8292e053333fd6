"""`output=sdf` of `/predict/file` and of jobs."""

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from rdkit import Chem

from tests.service.doubles import check_problem, serving

pytestmark = pytest.mark.anyio
TABLE = "name,smiles\na,OCC\nb,C1\nc,C\n"


def molecules(content: bytes) -> list[Any]:
    return list(Chem.ForwardSDMolSupplier(BytesIO(content)))


async def test_a_file_and_a_job_have_the_same_records(tmp_path: Path) -> None:
    path = "/predict/file?output=sdf&tasks=bbbp&id_field=name"
    files = {"file": ("m.csv", TABLE.encode())}
    async with serving(jobs=tmp_path / "jobs") as client:
        direct = await client.post(path, files=files)
        made = await client.post(path, files=files, headers={"prefer": "respond-async"})
        place = made.headers["location"]
        for _ in range(300):
            state = (await client.get(place)).json()
            if state["state"] not in ("queued", "running"):
                break
            await asyncio.sleep(0.1)
        result = await client.get(f"{place}/result")
    assert direct.headers["content-type"] == "chemical/x-mdl-sdfile"
    assert (state["state"], state["failed"]) == ("done", 1)
    assert result.content == direct.content
    assert result.headers["content-disposition"].endswith('.sdf"')
    first, broken, last = molecules(direct.content)
    assert (first.GetProp("_Name"), Chem.MolToSmiles(first)) == ("a", "CCO")
    assert first.GetProp("bbbp.p_np") == "0.25"
    assert (broken.GetNumAtoms(), broken.GetProp("name")) == (0, "b")
    assert broken.GetProp("gmerging_error").startswith("smiles_syntax: ")
    assert Chem.MolToSmiles(last) == "C"


async def test_an_sdf_comes_back_with_its_own_coordinates() -> None:
    mol = Chem.MolFromSmiles("OCC")
    Chem.rdDepictor.Compute2DCoords(mol)
    block = Chem.MolToMolBlock(mol)
    content = f"{block}>  <activity>\n7\n\n$$$$\n"
    async with serving() as client:
        files = {"file": ("m.sdf", content.encode())}
        response = await client.post("/predict/file?output=sdf&tasks=bbbp", files=files)
    assert response.text.startswith(block)
    (read,) = molecules(response.content)
    assert read.GetProp("activity") == "7"
    assert read.GetProp("bbbp.p_np") == "0.25"


async def test_an_sdf_has_no_formulas_to_escape() -> None:
    async with serving() as client:
        files = {"file": ("m.csv", TABLE.encode())}
        response = await client.post("/predict/file?output=sdf&escape_formulas=1", files=files)
    check_problem(response, 422, "invalid_request")
