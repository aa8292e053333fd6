"""All released artifacts in one service, as `GMERGING_MODELS=models/releases` starts it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from merging.data.chgnet_weights import licence
from models.artifact import load_artifact
from models.data.atoms import Atoms
from models.data.feature_graph import FeatureGraph, collate_features
from models.experts.unified import UnifiedModel
from models.networks.force_field import MergedForceField
from service.core.artifact_engine import load_engine
from tests.conftest import collate_atoms
from tests.pages import page
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


async def test_the_page_asks_the_force_field_from_a_pretrained_start() -> None:
    text = page("gffmerge-pretrained.md").read_text()
    requests = re.findall(
        r"/predict -H 'content-type: application/json' -d '(.*?)'\n```", text, re.S
    )
    answers = re.findall(r"```json\n(.*?)```", text, re.S)
    (body,), (shown,) = map(json.loads, requests), map(json.loads, answers)
    artifact = load_artifact(RELEASES / body["model"])
    default = RELEASES / "md17-schnet"
    settings = {"artifact": default, "models": RELEASES, "device": "cpu"}
    engine = load_engine(default, settings_of(device="cpu"))
    async with serving(engine, **settings) as client:
        found = (await client.post("/predict", json=body)).json()
        refused = await client.post("/predict", json=body | {"tasks": ["naphthalene"]})
    expected, answer = (content["predictions"][0]["tasks"]["ethanol"] for content in (shown, found))
    assert answer["energy"] == pytest.approx(expected["energy"], abs=2e-3)
    torch.testing.assert_close(
        torch.tensor(answer["forces"]), torch.tensor(expected["forces"]), rtol=0, atol=2e-3
    )
    assert refused.json()["detail"].startswith("numbers: got 8, expected elements that task 'napht")
    assert artifact.manifest.backbone.kind == "chgnet"
    card = (RELEASES / body["model"] / "README.md").read_text()
    assert licence() in card
    source = artifact.manifest.provenance["pretrained_source"]
    assert " ".join(source.split()) in " ".join(card.split())


MOLECULES = ["OC(=O)c1ccccc1OC(C)=O", "C", "[O-][N+](=O)c1ccccc1", "C[NH+](C)CCO.[Cl-]"]


@pytest.mark.parametrize("name", ["admet", "moleculenet-gcn"])
async def test_contributions_of_atoms_sum_to_the_answers(name: str) -> None:
    """Of a label of every task, with every way of combining experts and every routing."""
    engine = load_engine(RELEASES / name, settings_of(device="cpu"))
    labels = [f"{task}.{labels[-1]}" for task, labels in engine.info.labels.items()]
    async with serving(engine, parsers=1) as client:
        for begin in range(0, len(labels), 20):
            for routing in ("own", "moe", "merged"):
                names = labels[begin : begin + 20]
                body = {
                    "smiles": MOLECULES,
                    "tasks": [label.split(".", 1)[0] for label in names],
                    "routing": routing,
                    "explain": ["atoms"],
                    "explain_labels": names,
                }
                answered = await client.post("/predict", json=body)
                for item in answered.json()["predictions"]:
                    _check_sums(item, names)


def _check_sums(item: dict[str, Any], labels: list[str]) -> None:
    for name in labels:
        task, label = name.split(".", 1)
        split = item["atoms"][task][label]
        whole = split["baseline"] + sum(
            sum(expert["atoms"]) + expert["other"] for expert in split["experts"].values()
        )
        assert whole == pytest.approx(split["output"], rel=1e-5, abs=1e-5)
        output, answer = split["output"], item["tasks"][task][label]
        answers = {
            "log_odds": lambda output=output: 1 / (1 + math.exp(-output)),
            "value": lambda output=output: output,
            "log10_value": lambda output=output: 10**output,
        }
        assert answers[split["scale"]]() == pytest.approx(answer, rel=1e-4, abs=1e-5)
