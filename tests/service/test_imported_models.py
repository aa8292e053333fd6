"""Models of chemprop, imported and served."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merging.imports.config import make_import_config
from merging.imports.importing import import_models
from service.core.artifact_engine import load_engine
from tests.merging.imports.chemprop_files import FILES, PREDICTIONS, saved
from tests.service.doubles import serving, settings_of

pytestmark = pytest.mark.anyio

ONE, OTHER = "C[C@H](N)C(=O)O", "N[C@@H](C)C(=O)O"
"""One molecule; a tag of chirality is of the order of writing."""


def artifact(folder: Path, models: dict[str, str], **settings: Any) -> Path:
    config = make_import_config({"models": models, "method": "separate", **settings}, "test")
    import_models(config, folder / "made", folder / "work")
    return folder / "made"


async def answered(folder: Path, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    settings = {"artifact": folder, "device": "cpu"}
    async with serving(load_engine(folder, settings_of(device="cpu")), **settings) as client:
        return [(await client.post("/predict", json=body)).json() for body in bodies]


async def test_it_answers_over_http_as_chemprop_does(tmp_path: Path) -> None:
    folder = artifact(tmp_path, {"sol": str(FILES / "regression.pt")})
    smiles = [*PREDICTIONS["regression.pt"], "C1CC", "*"]
    (answer,) = await answered(folder, {"smiles": smiles})
    *good, broken, dummy = answer["predictions"]
    assert broken["error"]["code"] == "smiles_syntax"
    assert set(dummy["tasks"]["sol"]) == {"logS", "mp"}  # chemprop answers it too
    for item, expected in zip(good, PREDICTIONS["regression.pt"].values(), strict=True):
        assert list(item["tasks"]["sol"].values()) == pytest.approx(expected, rel=1e-4)


async def test_spellings_are_kept_apart_where_they_decide(tmp_path: Path) -> None:
    """Also in the cache: the second request comes after the first was answered."""
    models = {"tox": str(FILES / "binary.pt")}
    bodies = [{"smiles": spelling} for spelling in (ONE, OTHER, ONE)]

    def number(answer: dict[str, Any]) -> float:
        (item,) = answer["predictions"]
        assert item["smiles"] == ONE  # the canonical SMILES
        return float(item["tasks"]["tox"]["toxic"])

    first, other, again = map(number, await answered(artifact(tmp_path, models), *bodies))
    assert first == pytest.approx(PREDICTIONS["binary.pt"][ONE][0], rel=1e-5)
    assert first == again
    assert abs(first - other) > 1e-6
    folder = artifact(tmp_path / "canonical", models, reading="canonical")
    first, other, again = map(number, await answered(folder, *bodies))
    assert first == other == again == pytest.approx(PREDICTIONS["binary.pt"][ONE][0], rel=1e-5)


async def test_graphs_are_answered_and_others_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path, {"y": str(FILES / "tanh.pt")})
    graph = {"x": [[1.0] * 52] * 2, "edge_index": [[0, 1], [1, 0]], "edge_attr": [[1.0, 0.0]] * 2}
    short = graph | {"x": [[1.0] * 3] * 2}
    (answer,) = await answered(folder, {"graphs": [graph, short]})
    good, refused = answer["predictions"]
    assert list(good["tasks"]["y"])
    assert refused["error"]["message"].startswith("x: got rows of [3] numbers, expected 52")
    (problem,) = await answered(folder, {"smiles": "CCO", "routing": "moe"})
    assert "a model that mixes no experts, expected 'own'" in problem["detail"]


async def test_tasks_tell_how_far_they_are_from_the_own_models(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def noisy(content: dict[str, Any]) -> None:
        for key, value in content["state_dict"].items():
            if "W_" in key:
                content["state_dict"][key] = value + 0.1 * torch.randn_like(value)

    models = {name: str(saved(tmp_path / f"{name}.pt", noisy)) for name in ("tox", "sol")}
    smiles = tmp_path / "molecules.smi"
    smiles.write_text("\n".join("C" * k + "O" for k in range(1, 30)))
    settings = {"method": "residual", "rank": 1, "molecules": str(smiles)}
    folder = artifact(tmp_path, models, **settings)
    async with serving(load_engine(folder, settings_of(device="cpu")), artifact=folder) as client:
        tasks = (await client.get("/tasks")).json()["tasks"]
        described = (await client.get("/model")).json()
    assert all(0 < task["difference"] < 2 for task in tasks)
    assert described["input"]["reading"] == "as_written"
    assert described["metrics"]["difference"]["tox"] == tasks[0]["difference"]
