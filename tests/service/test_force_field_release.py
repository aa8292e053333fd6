"""A force field on CHGNet from training to answers: released by the pipeline, from random weights,
and asked through HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from merging.families.force_fields import ChgnetRunConfig
from merging.release.release import release
from merging.run.run import Run
from models.artifact import load_artifact
from models.data.atoms import Atoms
from models.networks.force_field import MergedForceField
from service.core.artifact_engine import load_engine
from tests.conftest import collate_atoms
from tests.merging.families.test_force_fields import SHAPES, write_md17
from tests.merging.studies.test_pretrained_forces import CONFIG
from tests.service.doubles import serving, settings_of

pytestmark = pytest.mark.anyio

Item = dict[str, Any]
STEP = 0.01
"""Angstrom, of the difference quotients."""
MOLECULE = {
    "numbers": [8, 1, 1],
    "positions": [[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.1, -0.8, -0.4]],
}
CRYSTAL = {
    "numbers": [8, 1],
    "positions": [[0.0, 0.1, 0.0], [1.1, 0.9, 1.2]],
    "cell": [[2.5, 0.0, 0.0], [0.3, 2.4, 0.0], [0.0, 0.2, 2.6]],
}
GRAPHS = [MOLECULE, CRYSTAL]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merged in closed form, then aligned jointly."""
    path = tmp_path_factory.mktemp("release")
    for task in SHAPES:
        write_md17(path, task)
    changes = {
        "merge": {"method": "gffmerge", "options": {"pull": "zero"}},
        "tuning": None,
        "joint_alignment": CONFIG.training.model_dump(),
        "release": {"name": "pico-chgnet"},
    }
    config = ChgnetRunConfig.model_validate(CONFIG.model_dump() | changes)
    release(Run(config, 0, path, path / "work"), path / "artifact")
    return path / "artifact"


@pytest.fixture(scope="module")
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(load_engine(folder, settings_of(device="cpu"))) as found:
        yield found


async def ask(client: httpx.AsyncClient, graphs: list[Item], tasks: list[str]) -> list[Item]:
    response = await client.post("/predict", json={"graphs": graphs, "tasks": tasks})
    assert response.status_code == 200, response.text
    return list(response.json()["predictions"])


async def test_a_molecule_and_a_crystal_are_answered_as_by_the_model(
    client: httpx.AsyncClient, folder: Path
) -> None:
    model = load_artifact(folder).model
    assert isinstance(model, MergedForceField)
    assert model.tasks == tuple(SHAPES)
    items = await ask(client, GRAPHS, list(SHAPES))
    for sent, item in zip(GRAPHS, items, strict=True):
        batch = collate_atoms([Atoms.from_lists(**sent)], model.network.config.cutoff)
        assert (batch.shift.abs().max() > 0) == ("cell" in sent)
        for task, expected in model(batch).items():
            answer = item["tasks"][task]
            assert answer["energy"] == pytest.approx(float(expected.energy), abs=1e-4)
            np.testing.assert_allclose(answer["forces"], expected.forces, atol=1e-4)
    ethanol, water = (items[0]["tasks"][task]["energy"] for task in SHAPES)
    assert ethanol != water, "a task has embeddings and energies of its own"


@pytest.mark.parametrize("graph", GRAPHS, ids=["molecule", "crystal"])
async def test_forces_are_minus_the_gradient_of_the_energy(
    client: httpx.AsyncClient, graph: Item
) -> None:
    places = np.array(graph["positions"])
    moved = []
    for sign in (1, -1):
        for position in np.ndindex(places.shape):
            other = places.copy()
            other[position] += sign * STEP
            moved.append(graph | {"positions": other.tolist()})
    first, *others = await ask(client, [graph, *moved], ["water"])
    energies = np.array([item["tasks"]["water"]["energy"] for item in others])
    forward, backward = energies.reshape(2, *places.shape)
    forces = np.array(first["tasks"]["water"]["forces"])
    assert np.abs(forces).max() > 0.01
    np.testing.assert_allclose(forces, (backward - forward) / (2 * STEP), atol=0.02, rtol=0.02)


async def test_an_element_that_a_task_has_not_seen_is_refused(client: httpx.AsyncClient) -> None:
    carbon = MOLECULE | {"numbers": [6, 1, 1]}
    answered, refused = [(await ask(client, [carbon, MOLECULE], [task])) for task in SHAPES]
    assert all(item["tasks"] for item in answered)
    error = refused[0]["error"]
    assert error["code"] == "invalid_graph"
    expected = "numbers: got 6, expected elements that task 'water' was trained on: 1, 8"
    assert error["message"] == expected
    assert refused[1]["tasks"]["water"]["energy"]
    elements = {
        task["name"]: task["elements"] for task in (await client.get("/tasks")).json()["tasks"]
    }
    assert elements == {task: sorted(set(numbers)) for task, numbers in SHAPES.items()}


def test_the_card_says_how_it_was_made(folder: Path) -> None:
    card, artifact = (folder / "README.md").read_text(), load_artifact(folder)
    assert "trained together for 2 epochs" in card
    assert "options {'pull': 'zero'}" in card
    assert "Licence of the start" not in card, "it began from random weights"
    assert artifact.manifest.backbone.kind == "chgnet"
    assert not any(weight.requires_grad for weight in artifact.model.parameters())
    assert torch.isfinite(artifact.model.network.norm.weight).all()
