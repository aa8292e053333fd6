"""All released artifacts in one service, as `GMERGING_MODELS=models/releases` starts it."""

from pathlib import Path

import pytest
import torch

import models
from models.artifact import load_artifact
from models.data.atoms import Atoms
from models.data.feature_graph import FeatureGraph, collate_features
from models.experts.unified import UnifiedModel
from models.networks.schnet import MergedForceField
from service.core.engine import load_engine
from tests.conftest import collate_atoms
from tests.service.doubles import serving, settings_of

pytestmark = pytest.mark.anyio

RELEASES = Path(models.__file__).parent / "releases"
WATER_LIKE = {
    "numbers": [8, 1, 1],
    "positions": [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]],
}


async def test_molecules_graphs_and_atoms_from_one_service() -> None:
    default = RELEASES / "admet"
    words = torch.zeros(3, 1433)
    words[0, :5] = words[1, 3:9] = words[2, 100:110] = 1
    graph = {"x": words.tolist(), "edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]]}
    settings = {"artifact": default, "models": RELEASES, "device": "cpu"}
    async with serving(load_engine(default, settings_of(device="cpu")), **settings) as client:
        assert set((await client.get("/model")).json()["models"]) == {
            path.name for path in RELEASES.iterdir()
        }
        body = {"smiles": "CC(=O)Oc1ccccc1C(=O)O", "tasks": ["bbbp"], "model": "moleculenet-gcn"}
        aspirin = (await client.post("/predict", json=body)).json()
        everything = (await client.post("/predict", json={"smiles": body["smiles"]})).json()
        topics = (
            await client.post("/predict", json={"model": "cora-label-split", "graphs": [graph]})
        ).json()
        forces = (
            await client.post(
                "/predict",
                json={"model": "md17-schnet", "graphs": [WATER_LIKE], "tasks": ["ethanol"]},
            )
        ).json()
    assert aspirin["predictions"][0]["tasks"]["bbbp"]["p_np"] == pytest.approx(0.63001204, abs=1e-4)
    assert everything["model"]["name"] == "admet"
    assert len(everything["predictions"][0]["tasks"]) == 31

    plain = load_artifact(RELEASES / "cora-label-split").model
    assert isinstance(plain, UnifiedModel)
    expected = plain(
        collate_features([FeatureGraph(words, torch.tensor(graph["edge_index"]))])
    ).probabilities
    for task, answer in topics["predictions"][0]["tasks"].items():
        torch.testing.assert_close(
            torch.tensor([list(node.values()) for node in answer["nodes"]]),
            expected[task],
            rtol=0,
            atol=1e-5,
        )

    field = load_artifact(RELEASES / "md17-schnet").model
    assert isinstance(field, MergedForceField)
    atoms = Atoms.from_lists(WATER_LIKE["numbers"], WATER_LIKE["positions"])  # type: ignore[arg-type]
    output = field(collate_atoms([atoms], field.network.config.cutoff), ["ethanol"])["ethanol"]
    answer = forces["predictions"][0]["tasks"]["ethanol"]
    assert answer["energy"] == pytest.approx(float(output.energy), abs=1e-4)
    torch.testing.assert_close(torch.tensor(answer["forces"]), output.forces, rtol=0, atol=1e-4)
