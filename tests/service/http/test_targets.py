"""Regression and classes of molecules over HTTP: every door answers them with units and names."""

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.artifact import load_artifact, save_artifact
from models.data.molecule import collate
from models.data.smiles import featurize
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.manifest import make_manifest
from models.networks.hu2020 import Backbone, BackboneConfig
from models.task import TaskInfo
from service.core.artifact_engine import load_engine
from service.schemas import PredictResponse, TasksResponse
from tests.service.doubles import serving, settings_of

pytestmark = pytest.mark.anyio
TASKS = {
    "bbbp": TaskInfo(labels=("p_np",)),
    "esol": TaskInfo(labels=("logS", "mp"), target="regression", units=("log mol/L", "")),
    "odour": TaskInfo(labels=("sweet", "sour", "none"), target="multiclass"),
    "plain": TaskInfo(labels=("y",), target="regression"),
}
UNITS = {"esol": {"logS": "log mol/L"}}
SMILES = ["CCO", "c1ccccc1C(=O)O", "C"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(11)
    config = BackboneConfig(kind="gcn", num_layers=2, hidden_dim=8)
    experts = {
        task: Expert(config, 2, info.labels, info.level, info.target)
        for task, info in TASKS.items()
    }
    for site in [site for expert in experts.values() for site in expert.adapters.sites]:
        torch.nn.init.normal_(site.up)
    experts["esol"].head.bias.data.copy_(torch.tensor([-3.0, 400.0]))
    router = RouterConfig(temperature=0.5, graph_temperature=0.5)
    folder = tmp_path_factory.mktemp("targets") / "targets"
    manifest = make_manifest("targets", "1.0.0", config, 2, router, TASKS)
    save_artifact(folder, manifest, Backbone(config), experts)
    return folder


@pytest.fixture
async def client(artifact: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(load_engine(artifact, settings_of(device="cpu"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(artifact: Path) -> dict[str, np.ndarray]:
    """By task what the loaded model says of `SMILES`, (3, labels)."""
    batch = collate([featurize(smiles).graph for smiles in SMILES])
    return {
        task: values.numpy()
        for task, values in load_artifact(artifact).model(batch).probabilities.items()
    }


def test_units_are_in_the_manifest_and_only_where_they_are_known(artifact: Path) -> None:
    tasks = json.loads((artifact / "manifest.json").read_text())["tasks"]
    assert tasks["esol"]["units"] == ["log mol/L", ""]
    assert all("units" not in tasks[task] for task in ("bbbp", "odour", "plain"))
    assert load_artifact(artifact).manifest.tasks == TASKS


async def test_predict(client: httpx.AsyncClient, expected: dict[str, np.ndarray]) -> None:
    response = await client.post("/predict", json={"smiles": SMILES})
    items = PredictResponse.model_validate(response.json()).predictions
    for k, item in enumerate(items):
        assert item.units == UNITS
        assert item.tasks is not None
        for task, info in TASKS.items():
            answer = item.tasks[task]
            assert isinstance(answer, dict)
            assert list(answer) == list(info.labels)
            assert list(answer.values()) == pytest.approx(expected[task][k], rel=CLOSE, abs=CLOSE)
        assert sum(item.tasks["odour"].values()) == pytest.approx(1)  # type: ignore[union-attr]
        assert item.tasks["esol"]["mp"] > 300  # type: ignore[index] # a number, and no probability


@pytest.mark.parametrize("tasks", [["bbbp"], ["odour"], ["plain"], ["bbbp", "odour"]])
async def test_answers_without_units_have_no_such_field(
    client: httpx.AsyncClient, tasks: list[str]
) -> None:
    (item,) = (await client.post("/predict", json={"smiles": "C", "tasks": tasks})).json()[
        "predictions"
    ]
    assert item.keys() == {"index", "smiles", "tasks"}


@pytest.mark.parametrize("routing", ["own", "moe", "merged"])
async def test_every_routing_answers_them(client: httpx.AsyncClient, routing: str) -> None:
    body = {"smiles": SMILES, "routing": routing, "explain": ["routing"]}
    items = (await client.post("/predict", json=body)).json()["predictions"]
    assert [item["units"] for item in items] == [UNITS] * 3
    assert sum(items[0]["tasks"]["odour"].values()) == pytest.approx(1, abs=1e-6)
    assert list(items[0]["routing"]["esol"]["graph"]) == list(TASKS)


async def test_a_file_as_csv_has_units_in_its_header(
    client: httpx.AsyncClient, expected: dict[str, np.ndarray]
) -> None:
    file = {"file": ("a.smi", "\n".join([*SMILES, "C1CC"]).encode())}
    text = (await client.post("/predict/file", files=file)).text
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = ["bbbp.p_np", "esol.logS [log mol/L]", "esol.mp"]
    columns += ["odour.sweet", "odour.sour", "odour.none", "plain.y"]
    assert list(rows[0])[-7:] == columns
    for k, row in enumerate(rows[:3]):
        values = np.concatenate([expected[task][k] for task in TASKS])
        assert [float(row[column]) for column in columns] == pytest.approx(values, rel=1e-4)
    assert rows[3]["gmerging_error"].startswith("smiles_syntax")
    assert [rows[3][column] for column in columns] == [""] * 7


@pytest.mark.parametrize("door", ["file", "stream"])
async def test_lines_carry_their_units(
    client: httpx.AsyncClient, door: str, expected: dict[str, np.ndarray]
) -> None:
    if door == "file":
        file = {"file": ("a.sdf", _sdf("CCO", "C"))}
        response = await client.post("/predict/file?output=ndjson&tasks=esol", files=file)
    else:
        body = b'"CCO"\n{"id": 7, "smiles": "C"}\n"C1CC"\n'
        response = await client.post("/predict/stream?tasks=esol", content=body)
    items = [json.loads(line) for line in response.text.splitlines()]
    assert [item["units"] for item in items[:2]] == [UNITS, UNITS]
    assert [item for item in items[2:] if "units" in item] == []  # an error has none
    numbers = [list(item["tasks"]["esol"].values()) for item in items[:2]]
    assert numbers == pytest.approx(expected["esol"][[0, 2]], rel=CLOSE)


def _sdf(*smiles: str) -> bytes:
    from rdkit import Chem

    blocks = [Chem.MolToMolBlock(Chem.MolFromSmiles(text)) for text in smiles]
    return "".join(f"{block}$$$$\n" for block in blocks).encode()


async def test_the_inference_protocol_names_columns_and_units(
    client: httpx.AsyncClient, expected: dict[str, np.ndarray]
) -> None:
    described = (await client.get("/v2/models/targets")).json()
    assert described["inputs"] == [{"name": "smiles", "datatype": "BYTES", "shape": [-1]}]
    outputs = {output["name"]: output for output in described["outputs"]}
    assert outputs["bbbp"] == {"name": "bbbp", "datatype": "FP32", "shape": [-1, 1]}
    esol = {"target": "regression", "label.0": "logS", "label.1": "mp", "unit.0": "log mol/L"}
    assert outputs["esol"]["parameters"] == esol
    assert outputs["odour"]["parameters"] == {
        "target": "multiclass",
        "label.0": "sweet",
        "label.1": "sour",
        "label.2": "none",
    }
    by_version = (await client.get("/v2/models/targets/versions/1.0.0")).json()
    assert by_version == described
    tensor = {"name": "smiles", "datatype": "BYTES", "shape": [3], "data": SMILES}
    infer: dict[str, Any] = {"inputs": [tensor]}
    answered = (await client.post("/v2/models/targets/infer", json=infer)).json()["outputs"]
    by_name = {output["name"]: output for output in answered}
    assert by_name["bbbp"].keys() == {"name", "datatype", "shape", "data"}
    assert by_name["esol"]["parameters"] == esol
    assert by_name["esol"]["data"] == pytest.approx(expected["esol"].ravel(), rel=CLOSE)
    infer["outputs"] = [{"name": "esol", "parameters": {"binary_data": True}}]
    response = await client.post("/v2/models/targets/infer", json=infer)
    length = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"] == {**esol, "binary_data_size": 24}
    values = np.frombuffer(response.content[length:], "<f4")
    assert values == pytest.approx(expected["esol"].ravel(), rel=CLOSE)


async def test_tasks_say_what_they_answer(client: httpx.AsyncClient) -> None:
    tasks = TasksResponse.model_validate((await client.get("/tasks")).json()).tasks
    assert [(task.name, task.target, task.units) for task in tasks] == [
        ("bbbp", "multilabel", None),
        ("esol", "regression", {"logS": "log mol/L"}),
        ("odour", "multiclass", None),
        ("plain", "regression", None),
    ]
