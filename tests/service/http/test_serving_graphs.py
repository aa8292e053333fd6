"""Three models side by side, of molecules, of graphs and of atoms, through the whole HTTP stack:
`docs/serving-graphs.md`."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.artifact import load_artifact, load_components, save_artifact
from models.data.atoms import Atoms
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import MolGraph, collate
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.families.atoms import Structure
from models.manifest import make_manifest
from models.networks.hu2020 import Backbone, BackboneConfig
from models.task import TaskInfo
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.reading import ITEM_CODES
from service.schemas import (
    ETHANOL_GRAPH,
    FEATURE_GRAPH,
    WATER,
    ModelResponse,
    PredictResponse,
    Problem,
    TasksResponse,
)
from tests.conftest import collate_atoms
from tests.pages import page
from tests.service.doubles import (
    ELEMENTS,
    FEATURES,
    metric,
    save_pico_artifact,
    save_pico_force_field,
    save_pico_graph_artifact,
    save_pico_link_artifact,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio

Item = dict[str, Any]
CLOSE = 1e-5
SALT = {
    "numbers": [11, 17],
    "positions": [[0, 0, 0], [2.4, 0, 0]],
    "cell": [[4.8, 0, 0], [0, 4.8, 0], [0, 0, 4.8]],
}
ONE_NODE = {"x": [[1, 0, 2]], "edge_index": [[], []]}
STAR = {
    "x": [[0.5, 1, k] for k in range(6)],
    "edge_index": [[0] * 5 + [1, 2, 3, 4, 5], [1, 2, 3, 4, 5] + [0] * 5],
}
WIDE = {"x": [[1, 2, 3, 4, 5.5], [0, 1, 0, 1, 0]], "edge_index": [[0, 1], [1, 0]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model in `pico`, the others in `models`."""
    path = tmp_path_factory.mktemp("three")
    save_pico_artifact(path / "pico")
    save_pico_graph_artifact(path / "models" / "graphs")
    save_pico_force_field(path / "models" / "forces")
    save_pico_link_artifact(path / "models" / "links")
    return path


@pytest.fixture(scope="module")
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Passes are small, so that requests are cut."""
    engine = load_engine(folder / "pico", settings_of(device="cpu"))
    async with serving(engine, models=folder / "models", device="cpu", max_batch_cost=60) as client:
        yield client


async def ask(
    client: httpx.AsyncClient, model: str, graphs: list[Item], tasks: list[str], **rest: Any
) -> list[Item]:
    response = await client.post(
        "/predict", json={"model": model, "graphs": graphs, "tasks": tasks, **rest}
    )
    assert response.status_code == 200, response.text
    items = PredictResponse.model_validate(response.json()).predictions
    assert [item.index for item in items] == list(range(len(graphs)))
    assert all(
        item.smiles is None and (item.tasks is None) == (item.error is not None) for item in items
    )
    return list(response.json()["predictions"])


def check_problem(response: httpx.Response, code: str, status: int = 422) -> Problem:
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert (response.status_code, problem.code) == (status, code), response.text
    return problem


def flat(value: Any) -> list[float]:
    """All numbers of an answer."""
    if isinstance(value, dict | list):
        return [
            number
            for entry in (value.values() if isinstance(value, dict) else value)
            for number in flat(entry)
        ]
    return [value]


# --- what is answered


async def test_node_answers_are_the_models(client: httpx.AsyncClient, folder: Path) -> None:
    model = load_artifact(folder / "models" / "graphs").model
    graphs = [FEATURE_GRAPH, ONE_NODE, STAR]
    for routing in ("own", "moe", "merged"):
        items = await ask(client, "graphs", graphs, ["papers", "weights"], routing=routing)
        for sent, item in zip(graphs, items, strict=True):
            expected = model(
                collate_features([FeatureGraph.from_lists(sent["x"], sent["edge_index"])]),
                ["papers", "weights"],
                routing,
            ).probabilities
            nodes = item["tasks"]["papers"]["nodes"]
            assert [list(row) for row in nodes] == [["theory", "practice", "neither"]] * len(
                sent["x"]
            )
            np.testing.assert_allclose(
                [list(row.values()) for row in nodes], expected["papers"], atol=CLOSE
            )
            np.testing.assert_allclose(
                np.sum([list(row.values()) for row in nodes], axis=1), 1, atol=CLOSE
            )
            assert item["tasks"]["weights"] == {
                "grams": pytest.approx(expected["weights"].item(), rel=1e-5)
            }


async def test_task_with_an_encoder(client: httpx.AsyncClient, folder: Path) -> None:
    model = load_artifact(folder / "models" / "graphs").model
    (item,) = await ask(client, "graphs", [WIDE], ["pages"])
    expected = model(
        collate_features([FeatureGraph.from_lists(WIDE["x"], WIDE["edge_index"])]), ["pages"]
    ).probabilities["pages"]
    np.testing.assert_allclose(
        [list(row.values()) for row in item["tasks"]["pages"]["nodes"]], expected, atol=CLOSE
    )


async def test_energies_and_forces_are_the_models(client: httpx.AsyncClient, folder: Path) -> None:
    model = load_artifact(folder / "models" / "forces").model
    structures = [SALT, {"numbers": [8], "positions": [[0, 0, 0]]}, WATER]
    items = await ask(client, "forces", structures, ["salt"])
    for sent, item in zip(structures, items, strict=True):
        expected = model(
            collate_atoms(
                [Atoms.from_lists(sent["numbers"], sent["positions"], sent.get("cell"))], 4.0
            ),
            ["salt"],
        )["salt"]
        assert item["tasks"]["salt"]["energy"] == pytest.approx(expected.energy.item(), abs=CLOSE)
        np.testing.assert_allclose(item["tasks"]["salt"]["forces"], expected.forces, atol=CLOSE)


async def test_forces_are_minus_the_gradient_of_the_energy(client: httpx.AsyncClient) -> None:
    """Central differences of what the service says of moved atoms: so energies have digits
    enough."""
    (item,), step = await ask(client, "forces", [WATER], ["ethanol"]), 5e-3
    moved = []
    for atom in range(3):
        for axis in range(3):
            for sign in (1, -1):
                positions = [list(map(float, row)) for row in WATER["positions"]]
                positions[atom][axis] += sign * step
                moved.append({**WATER, "positions": positions})
    energies = [
        answer["tasks"]["ethanol"]["energy"]
        for answer in await ask(client, "forces", moved, ["ethanol"])
    ]
    slopes = [
        (up - down) / (2 * step) for up, down in zip(energies[::2], energies[1::2], strict=True)
    ]
    np.testing.assert_allclose(
        np.array(item["tasks"]["ethanol"]["forces"]).ravel(), -np.array(slopes), atol=2e-3
    )
    assert np.abs(item["tasks"]["ethanol"]["forces"]).max() > 0.1


async def test_shifting_a_crystal_by_a_lattice_vector_changes_nothing(
    client: httpx.AsyncClient,
) -> None:
    shifted = {**SALT, "positions": [[0, 0, 0], [2.4 + 4.8, -4.8, 0]]}
    cluster = {name: SALT[name] for name in ("numbers", "positions")}
    one, other, alone = await ask(client, "forces", [SALT, shifted, cluster], ["salt"])
    assert flat(one["tasks"]) == pytest.approx(flat(other["tasks"]), abs=1e-4)
    assert abs(one["tasks"]["salt"]["energy"] - alone["tasks"]["salt"]["energy"]) > 1e-3


@pytest.mark.parametrize(
    ("model", "graphs", "tasks"),
    [
        ("graphs", [FEATURE_GRAPH, ONE_NODE, STAR] * 4, ["papers", "weights"]),
        ("graphs", [WIDE] * 3, ["pages"]),
        ("forces", [SALT, WATER] * 4, ["salt"]),
    ],
)
async def test_batch_equals_single(
    client: httpx.AsyncClient, model: str, graphs: list[Item], tasks: list[str]
) -> None:
    together = await ask(client, model, graphs, tasks)
    for graph, item in zip(graphs, together, strict=True):
        (alone,) = await ask(client, model, [graph], tasks)
        assert flat(alone["tasks"]) == pytest.approx(flat(item["tasks"]), abs=CLOSE)


async def test_requests_at_the_same_time_get_their_own(client: httpx.AsyncClient) -> None:
    asked = [
        ("graphs", STAR, "papers"),
        ("forces", WATER, "ethanol"),
        ("graphs", WIDE, "pages"),
        ("forces", SALT, "salt"),
        ("pico", ETHANOL_GRAPH, "bbbp"),
    ]
    alone = [(await ask(client, model, [graph], [task]))[0] for model, graph, task in asked]
    at_once = await asyncio.gather(
        *(ask(client, model, [graph] * 3, [task]) for model, graph, task in asked * 3)
    )
    for item, items in zip(alone * 3, at_once, strict=True):
        for other in items:
            assert flat(other["tasks"]) == pytest.approx(flat(item["tasks"]), abs=CLOSE)


async def test_routing_weights(client: httpx.AsyncClient) -> None:
    (item,) = await ask(client, "graphs", [STAR], ["papers"], routing="moe", explain=["routing"])
    assert list(item["routing"]["papers"]) == ["layer_0", "layer_1", "graph"]
    for weights in item["routing"]["papers"].values():
        assert list(weights) == list(FEATURES)
        assert sum(weights.values()) == pytest.approx(1)
    (item,) = await ask(client, "forces", [WATER], ["ethanol"], explain=["routing"])
    assert item["routing"] == {"ethanol": {}}


async def test_without_adapters(tmp_path: Path) -> None:
    """What closed-form mergers make has rank 0; every routing is then the same answer."""
    engine = load_engine(
        save_pico_graph_artifact(tmp_path / "flat", rank=0), settings_of(device="cpu")
    )
    async with serving(engine) as client:
        answers = [
            flat(
                (await ask(client, "pico-graphs", [STAR], ["papers"], routing=routing))[0]["tasks"]
            )
            for routing in ("own", "moe", "merged")
        ]
    assert answers[0] == pytest.approx(answers[1], abs=CLOSE)
    assert answers[0] == pytest.approx(answers[2], abs=CLOSE)


async def test_molecules_may_have_answers_for_each_atom_and_of_classes(tmp_path: Path) -> None:
    config = BackboneConfig(kind="gcn", num_layers=2, hidden_dim=8)
    tasks = {
        "charges": TaskInfo(labels=("charge",), level="node", target="regression"),
        "odour": TaskInfo(labels=("sweet", "sour", "none"), target="multiclass"),
    }
    torch.manual_seed(3)
    experts = {
        task: Expert(config, 2, info.labels, info.level, info.target)
        for task, info in tasks.items()
    }
    for site in [site for expert in experts.values() for site in expert.adapters.sites]:
        torch.nn.init.normal_(site.up)  # zero by default: an adapter that does nothing
    save_artifact(
        tmp_path / "atoms",
        make_manifest("atoms", "1.0.0", config, 2, RouterConfig(), tasks),
        Backbone(config),
        experts,
    )
    engine = load_engine(tmp_path / "atoms", settings_of(device="cpu"))
    expected = (
        load_artifact(tmp_path / "atoms")
        .model(collate([MolGraph.from_lists(**ETHANOL_GRAPH)]))
        .probabilities
    )
    async with serving(engine) as client:
        (item,) = await ask(client, "atoms", [ETHANOL_GRAPH], ["charges", "odour"])
        assert [atom["charge"] for atom in item["tasks"]["charges"]["nodes"]] == pytest.approx(
            expected["charges"][:, 0].tolist(), abs=CLOSE
        )
        assert list(item["tasks"]["odour"].values()) == pytest.approx(
            expected["odour"][0].tolist(), abs=CLOSE
        )
        # Who sends a SMILES does not know the order of its atoms, and the cache does not either.
        assert (
            "whose atoms have an order"
            in check_problem(
                await client.post("/predict", json={"smiles": "OCC"}), "unsupported_input"
            ).detail
        )
        (item,) = (
            await client.post("/predict", json={"smiles": "OCC", "tasks": ["odour"]})
        ).json()["predictions"]
        assert list(item["tasks"]["odour"].values()) == pytest.approx(
            expected["odour"][0].tolist(), abs=CLOSE
        )
        file = {"file": ("a.smi", b"CCO\n")}
        assert (
            "a task that answers for each atom"
            in check_problem(
                await client.post("/predict/file", files=file), "unsupported_input"
            ).detail
        )
        table = (await client.post("/predict/file?tasks=odour", files=file)).text.splitlines()
        assert table[0].endswith("odour.sweet,odour.sour,odour.none")
        assert [float(value) for value in table[1].split(",")[-3:]] == pytest.approx(
            expected["odour"][0].tolist(), abs=CLOSE
        )
        infer = {"inputs": [{"name": "smiles", "datatype": "BYTES", "shape": [1], "data": ["C"]}]}
        check_problem(await client.post("/v2/models/atoms/infer", json=infer), "unsupported_input")
        assert (
            await client.post(
                "/v2/models/atoms/infer", json={**infer, "outputs": [{"name": "odour"}]}
            )
        ).status_code == 200


# --- what is refused

BAD_FEATURES: list[tuple[Item, str]] = [
    ({**FEATURE_GRAPH, "x": [[1, 2]] * 3}, "invalid_graph"),
    ({**FEATURE_GRAPH, "edge_index": [[0], [0]]}, "invalid_graph"),
    ({**FEATURE_GRAPH, "edge_index": [[0], [9]]}, "invalid_graph"),
    ({**FEATURE_GRAPH, "x": [[1e39, 0, 0]] * 3}, "invalid_graph"),
    ({**FEATURE_GRAPH, "x": [[3e38, 3e38, 3e38]] * 3}, "not_finite"),
    ({**FEATURE_GRAPH, "x": [[1, 2, 3]] * 501}, "too_many_atoms"),
    (ETHANOL_GRAPH, "invalid_graph"),
    (WATER, "invalid_graph"),
    ({}, "invalid_graph"),
]
BAD_ATOMS: list[tuple[Item, str]] = [
    ({**WATER, "positions": [[0, 0, 0]] * 3}, "invalid_graph"),
    ({**WATER, "numbers": [26, 1, 1]}, "invalid_graph"),
    ({**WATER, "numbers": [8, 1]}, "invalid_graph"),
    ({**SALT, "numbers": [11, 6]}, "invalid_graph"),
    ({**SALT, "cell": [[0, 0, 0]] * 3}, "invalid_graph"),
    ({"numbers": [1] * 501, "positions": [[0, 0, 2 * k] for k in range(501)]}, "too_many_atoms"),
    (FEATURE_GRAPH, "invalid_graph"),
    ({}, "invalid_graph"),
]
BAD_MOLECULES: list[tuple[Item, str]] = [
    ({**ETHANOL_GRAPH, "positions": [[0, 0, 0]] * 3}, "invalid_graph"),
    ({**ETHANOL_GRAPH, "x": [[5.0, 0], [5, 0], [7, 0]]}, "invalid_graph"),
    (FEATURE_GRAPH, "invalid_graph"),
    (WATER, "invalid_graph"),
]


@pytest.mark.parametrize(
    ("model", "good", "task", "bad"),
    [
        ("graphs", FEATURE_GRAPH, "papers", BAD_FEATURES),
        ("forces", WATER, "ethanol", BAD_ATOMS),
        ("pico", ETHANOL_GRAPH, "bbbp", BAD_MOLECULES),
    ],
)
async def test_what_is_wrong_gets_its_error_and_hinders_nothing(
    client: httpx.AsyncClient, model: str, good: Item, task: str, bad: list[tuple[Item, str]]
) -> None:
    (alone,) = await ask(client, model, [good], [task])
    items = await ask(client, model, [graph for wrong, _ in bad for graph in (good, wrong)], [task])
    for item in items[0::2]:
        assert flat(item["tasks"]) == pytest.approx(flat(alone["tasks"]), abs=CLOSE)
    assert [item["error"]["code"] for item in items[1::2]] == [code for _, code in bad]
    for wrong, code in bad:
        check_problem(
            await client.post(
                "/predict", json={"model": model, "graphs": [wrong], "tasks": [task]}
            ),
            code,
        )


async def test_a_huge_feature_costs_other_requests_nothing(client: httpx.AsyncClient) -> None:
    huge = {**FEATURE_GRAPH, "x": [[3e38] * 3] * 3}
    (alone,) = await ask(client, "graphs", [STAR], ["papers"])
    for items in await asyncio.gather(
        *(ask(client, "graphs", [STAR, huge][:: 1 if k % 2 else -1], ["papers"]) for k in range(6))
    ):
        (good,) = (item for item in items if "tasks" in item)
        assert flat(good["tasks"]) == pytest.approx(flat(alone["tasks"]), abs=CLOSE)


async def test_width_has_to_fit_every_asked_task(client: httpx.AsyncClient) -> None:
    problem = check_problem(
        await client.post("/predict", json={"model": "graphs", "graphs": [FEATURE_GRAPH]}),
        "invalid_graph",
    )
    assert "got 3 features of a node, expected 5 for task 'pages'" in problem.detail


async def test_element_has_to_be_known_to_every_asked_task(client: httpx.AsyncClient) -> None:
    problem = check_problem(
        await client.post("/predict", json={"model": "forces", "graphs": [SALT]}), "invalid_graph"
    )
    assert (
        "got 11, 17, expected elements that task 'ethanol' was trained on: 1, 6, 8"
        in problem.detail
    )


@pytest.mark.parametrize("model", ["graphs", "forces"])
async def test_smiles_are_refused_by_what_takes_none(client: httpx.AsyncClient, model: str) -> None:
    check_problem(
        await client.post("/predict", json={"model": model, "smiles": "CCO"}), "unsupported_input"
    )
    response = await client.post("/predict", json={"model": model, "smiles": ["CCO", "C1"]})
    assert [item["error"]["code"] for item in response.json()["predictions"]] == [
        "unsupported_input"
    ] * 2


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", '"1"', "true", "null"])
@pytest.mark.parametrize("field", ["x", "positions", "cell"])
async def test_what_is_no_number_is_no_request(
    client: httpx.AsyncClient, field: str, text: str
) -> None:
    body = f'{{"model": "graphs", "graphs": [{{"{field}": [[0, {text}, 0]]}}]}}'
    response = await client.post(
        "/predict", content=body, headers={"content-type": "application/json"}
    )
    problem = check_problem(response, "invalid_request")
    assert problem.errors is not None
    assert problem.errors[0].pointer == f"#/graphs/0/{field}/0/1"


async def test_a_large_body_of_wrong_values_is_one_error(client: httpx.AsyncClient) -> None:
    body = '{"graphs": [{"x": [' + ",".join(['["a","b"]'] * 300_000) + "]}]}"
    problem = check_problem(
        await client.post("/predict", content=body, headers={"content-type": "application/json"}),
        "invalid_request",
    )
    assert problem.errors is not None
    assert len(problem.errors) == 1


@pytest.mark.parametrize("routing", ["moe", "merged"])
async def test_a_force_field_has_nothing_to_mix(client: httpx.AsyncClient, routing: str) -> None:
    problem = check_problem(
        await client.post(
            "/predict", json={"model": "forces", "graphs": [WATER], "routing": routing}
        ),
        "invalid_request",
    )
    assert "expected 'own'" in problem.detail
    check_problem(
        await client.post(f"/predict/stream?model=forces&routing={routing}", content=b'"C"\n'),
        "invalid_request",
    )


@pytest.mark.parametrize("model", ["graphs", "forces"])
async def test_files_and_the_inference_protocol_are_for_molecules(
    client: httpx.AsyncClient, model: str
) -> None:
    file = {"file": ("a.smi", b"CCO\n")}
    assert (
        f"model {'pico-' + model}"
        in check_problem(
            await client.post(f"/predict/file?model={model}", files=file), "unsupported_input"
        ).detail
    )
    check_problem(await client.get(f"/v2/models/{model}"), "unsupported_input")
    infer = {"inputs": [{"name": "smiles", "datatype": "BYTES", "shape": [1], "data": ["C"]}]}
    check_problem(await client.post(f"/v2/models/{model}/infer", json=infer), "unsupported_input")
    assert (await client.get(f"/v2/models/{model}/ready")).json() == {"name": model, "ready": True}


# --- streams, descriptions, the running of it


async def test_streams(client: httpx.AsyncClient) -> None:
    (expected,) = await ask(client, "graphs", [STAR], ["papers"])
    lines = [
        {"id": 7, "graph": STAR},
        {"smiles": "C"},
        {"graph": WATER},
        {"graph": {"x": "no"}},
        {"id": "z", "graph": STAR},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    response = await client.post("/predict/stream?model=graphs&tasks=papers", content=body)
    items = [json.loads(line) for line in response.text.splitlines()]
    assert [item.get("id") for item in items] == [7, None, None, None, "z"]
    assert [item.get("error", {}).get("code") for item in items] == [
        None,
        "unsupported_input",
        "invalid_graph",
        "invalid_line",
        None,
    ]
    assert flat(items[0]["tasks"]) == pytest.approx(flat(expected["tasks"]), abs=CLOSE)
    assert items[0]["tasks"] == items[4]["tasks"]
    response = await client.post(
        "/predict/stream?model=forces&tasks=salt",
        content="".join(json.dumps({"graph": SALT}) + "\n" for _ in range(70)),
    )
    (expected,) = await ask(client, "forces", [SALT], ["salt"])
    assert len(response.text.splitlines()) == 70
    for line in response.text.splitlines():
        assert flat(json.loads(line)["tasks"]) == pytest.approx(flat(expected["tasks"]), abs=CLOSE)


async def test_what_the_models_say_of_themselves(client: httpx.AsyncClient) -> None:
    tasks = {
        model: {
            task.name: task
            for task in TasksResponse.model_validate(
                (await client.get("/tasks", params={"model": model})).json()
            ).tasks
        }
        for model in ("pico", "graphs", "forces")
    }
    assert [
        (task.level, task.target, task.num_features, task.elements)
        for task in tasks["pico"].values()
    ] == [("graph", "multilabel", None, None)] * 3
    assert [(task.level, task.target, task.num_features) for task in tasks["graphs"].values()] == [
        ("node", "multiclass", 3),
        ("node", "multilabel", 5),
        ("graph", "regression", 3),
    ]
    assert {name: (task.target, task.elements) for name, task in tasks["forces"].items()} == {
        name: ("energy_and_forces", elements) for name, elements in ELEMENTS.items()
    }
    inputs = {
        model: (
            ModelResponse.model_validate(
                (await client.get("/model", params={"model": model})).json()
            ).input
        )
        for model in tasks
    }
    assert {model: schema.kind for model, schema in inputs.items()} == {
        "pico": "molecule",
        "graphs": "graph",
        "forces": "atoms",
    }


async def test_documents_are_as_they_are_answered(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert set(schemas["GraphIn"]["properties"]) == {
        "x",
        "edge_index",
        "edge_attr",
        "pairs",
        "numbers",
        "positions",
        "cell",
    }
    assert {"NodesOut", "PairsOut", "EnergyAndForcesOut", "FeatureInput", "AtomsInput"} <= set(
        schemas
    )
    kept = schemas["GraphIn"]["properties"]["x"]["anyOf"]
    assert [form["type"] for form in kept] == ["array", "null"]


async def test_metrics_of_molecules_are_of_molecules(folder: Path) -> None:
    async with serving(
        load_engine(folder / "models" / "graphs", settings_of(device="cpu"))
    ) as client:
        await ask(client, "pico-graphs", [STAR, {}], ["papers"])
        text = (await client.get("/metrics")).text
    assert metric(text, "gmerging_molecule_atoms_count") == 0
    assert metric(text, "gmerging_rare_element_molecules_total") == 0
    assert metric(text, 'gmerging_molecules_total{outcome="ok"}') == 1
    assert metric(text, 'gmerging_molecules_total{outcome="invalid_graph"}') == 1
    assert metric(text, "gmerging_batch_atoms_sum") == 6


async def test_limits(folder: Path) -> None:
    engine = load_engine(folder / "models" / "graphs", settings_of(device="cpu"))
    async with serving(engine, max_atoms=5, max_molecules=3) as client:
        problem = check_problem(
            await client.post("/predict", json={"graphs": [STAR], "tasks": ["papers"]}),
            "too_many_atoms",
        )
        assert "got 6 atoms or nodes, expected at most 5 (max_atoms)" in problem.detail
        check_problem(
            await client.post("/predict", json={"graphs": [ONE_NODE] * 4}), "too_many_molecules"
        )


async def test_reload_while_other_models_answer(folder: Path, tmp_path: Path) -> None:
    """The same name first with a force field behind it, then with a model of graphs: the new one
    takes what it takes."""
    shutil.copytree(folder / "models", tmp_path / "models")
    async with serving(
        load_engine(folder / "pico", settings_of(device="cpu")),
        models=tmp_path / "models",
        watch_seconds=0.05,
        device="cpu",
    ) as client:
        await ask(client, "forces", [WATER], ["ethanol"])
        shutil.rmtree(tmp_path / "models" / "forces")
        save_pico_graph_artifact(tmp_path / "models" / "forces")
        async with asyncio.timeout(30):
            while (
                "graph"
                not in (await client.get("/model", params={"model": "forces"})).text.partition(
                    '"input":'
                )[2][:20]
            ):
                await asyncio.sleep(0.05)
        await ask(client, "forces", [STAR], ["papers"])
        check_problem(
            await client.post(
                "/predict", json={"model": "forces", "graphs": [WATER], "tasks": ["papers"]}
            ),
            "invalid_graph",
        )
        assert (await client.get("/readyz")).status_code == 200


# --- engines


@pytest.fixture(scope="module")
def forces(folder: Path) -> ArtifactEngine:
    return load_engine(folder / "models" / "forces", settings_of(device="cpu"))


def test_engine_says_what_it_takes(folder: Path, forces: ArtifactEngine) -> None:
    assert (forces.info.sites, forces.info.routings) == ((), ("own",))
    assert (
        forces.info.requirements.shape
        == load_components(folder / "models" / "forces").manifest.backbone
    )
    graphs = load_engine(folder / "models" / "graphs", settings_of(device="cpu"))
    assert graphs.info.routings == ("moe", "own", "merged")


def test_too_little_memory_means_smaller_passes(
    forces: ArtifactEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = Structure(
        torch.tensor([8, 1]),
        torch.tensor([[0.0, 0, 0], [0, 0, 1]]),
        torch.tensor([[0, 1], [1, 0]]),
        torch.zeros(2, 3),
        torch.tensor([1, 0]),
    )
    whole, one_pass = forces.run([atoms] * 4, ("ethanol",), "own"), forces._pass

    def small_gpu(graphs: list[Structure], *rest: Any) -> Any:
        if len(graphs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return one_pass(graphs, *rest)

    monkeypatch.setattr(forces, "_pass", small_gpu)
    components = forces.run([atoms] * 4, ("ethanol",), "own")
    for one, other in zip(whole.answers, components.answers, strict=True):
        np.testing.assert_allclose(one["ethanol"].values, other["ethanol"].values, atol=CLOSE)
        np.testing.assert_allclose(one["ethanol"].forces, other["ethanol"].forces, atol=CLOSE)


def test_no_answer_is_better_than_one_that_is_not_finite(folder: Path) -> None:
    artifact = load_artifact(folder / "models" / "forces")
    artifact.model.experts[0].scale.fill_(float("nan"))
    atoms = Structure(
        torch.tensor([8]),
        torch.zeros(1, 3),
        torch.empty((2, 0), dtype=torch.int64),
        torch.empty(0, 3),
        torch.empty(0, dtype=torch.int64),
    )
    with pytest.raises(FloatingPointError, match="ethanol"):
        ArtifactEngine(artifact, torch.device("cpu")).run([atoms], ("ethanol",), "own")


# --- pairs of nodes


async def test_pairs_are_answered_in_their_order_whatever_else_is_asked(
    client: httpx.AsyncClient, folder: Path
) -> None:
    pairs = [[0, 1], [2, 0], [1, 1], [0, 1]]
    graphs = [FEATURE_GRAPH | {"pairs": pairs}, STAR | {"pairs": [[0, 5]]}]
    items = await ask(client, "links", graphs, ["links", "papers"])
    answers = [item["tasks"]["links"]["pairs"] for item in items]
    assert [len(found) for found in answers] == [4, 1]
    assert [len(item["tasks"]["papers"]["nodes"]) for item in items] == [3, 6]
    model = load_artifact(folder / "models" / "links").model
    for graph, found in zip(graphs, answers, strict=True):
        batch = collate_features([FeatureGraph.from_lists(**graph)])
        expected = model(batch, ["links"]).probabilities["links"].flatten().tolist()
        assert [answer["linked"] for answer in found] == pytest.approx(expected, abs=CLOSE)
    one, other, itself, again = (answer["linked"] for answer in answers[0])
    assert one == again
    assert len({one, other, itself}) == 3
    backwards = [[pair[1], pair[0]] for pair in pairs]
    (item,) = await ask(client, "links", [FEATURE_GRAPH | {"pairs": backwards}], ["links"])
    assert item["tasks"]["links"]["pairs"] == answers[0]


@pytest.mark.parametrize(
    ("changes", "tasks", "message"),
    [
        ({}, ["links"], "pairs: got none for task 'links', which answers for pairs of nodes"),
        ({"pairs": []}, ["links", "papers"], "pairs: got none for task 'links'"),
        ({"pairs": [[0, 1]]}, ["papers"], "pairs: got 1 for papers, none of which answers for"),
        ({"pairs": [[0, 3]]}, ["links"], "pairs: got nodes from 0 to 3, expected 0 to 2"),
        ({"pairs": [[-1, 2]]}, ["links"], "pairs: got nodes from -1 to 2, expected 0 to 2"),
        ({"pairs": [[0, 1, 2]]}, ["links"], "pairs: got one of 3 nodes, expected two nodes"),
        ({"pairs": [[0, 1], []]}, ["links"], "pairs: got one of 0 nodes, expected two nodes"),
    ],
)
async def test_pairs_that_cannot_be_answered_hinder_no_other_graph(
    client: httpx.AsyncClient, changes: Item, tasks: list[str], message: str
) -> None:
    good = FEATURE_GRAPH | ({"pairs": [[0, 2]]} if "links" in tasks else {})
    items = await ask(client, "links", [good, FEATURE_GRAPH | changes], tasks)
    assert set(items[0]["tasks"]) == set(tasks)
    assert items[1]["error"]["code"] == "invalid_graph"
    assert items[1]["error"]["message"].startswith(message)


async def test_too_many_pairs_are_refused(client: httpx.AsyncClient) -> None:
    many = FEATURE_GRAPH | {"pairs": [[0, 1]] * 100_001}
    body = {"model": "links", "graphs": [many], "tasks": ["links"]}
    problem = check_problem(await client.post("/predict", json=body), "too_many_edges")
    assert "got 100001 pairs, expected at most 100000" in problem.detail


async def test_a_pair_of_a_model_without_such_tasks_is_refused(client: httpx.AsyncClient) -> None:
    for model, graph in (("graphs", FEATURE_GRAPH), ("forces", WATER)):
        body = {"model": model, "graphs": [graph | {"pairs": [[0, 1]]}]}
        check_problem(await client.post("/predict", json=body), "invalid_graph")


async def test_tasks_say_that_they_answer_for_pairs(client: httpx.AsyncClient) -> None:
    response = await client.get("/tasks", params={"model": "links"})
    tasks = TasksResponse.model_validate(response.json()).tasks
    assert {task.name: task.level for task in tasks} == {"links": "pair", "papers": "node"}
    described = (await client.get("/model", params={"model": "links"})).json()
    assert described["input"]["pair_tasks"] == ["links"]


def test_a_manifest_and_its_input_agree_on_pairs(folder: Path) -> None:
    manifest = load_components(folder / "models" / "links").manifest
    values = manifest.model_dump()
    for tasks in ((), ("links", "papers")):
        changed = values | {"input": values["input"] | {"pair_tasks": tasks}}
        with pytest.raises(ValueError, match="at level 'pair'"):
            type(manifest).model_validate(changed)


# --- the page

PAGE = page("serving-graphs.md").read_text()


def test_page_shows_what_is_answered_of_every_kind() -> None:
    assert [tuple(example) for example in examples()] == [
        ("graphs", "tasks"),
        ("model", "graphs", "tasks"),
        ("model", "graphs", "tasks"),
        ("model", "graphs", "tasks"),
    ]


def examples() -> list[Item]:
    """Bodies of the page's requests."""
    return [
        json.loads(text)
        for text in re.findall(
            r"/predict -H 'content-type: application/json' -d '(.*?)'\n```", PAGE, re.DOTALL
        )
    ]


async def test_requests_of_the_page_get_the_answers_of_the_page(client: httpx.AsyncClient) -> None:
    shown = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    for body, expected in zip(examples(), shown[:4], strict=True):
        (item,), (theirs,) = (
            (await client.post("/predict", json=body)).json()["predictions"],
            expected["predictions"],
        )
        assert (item["index"], item["smiles"], list(item["tasks"])) == (
            theirs["index"],
            theirs["smiles"],
            list(theirs["tasks"]),
        )
        assert json.dumps(item["tasks"]).count('"') == json.dumps(theirs["tasks"]).count('"')
        assert flat(item["tasks"]) == pytest.approx(flat(theirs["tasks"]), abs=1e-4)
    response = await client.post(
        "/predict", json={"model": "graphs", "graphs": [FEATURE_GRAPH, FEATURE_GRAPH]}
    )
    assert response.json()["predictions"][0]["error"] == shown[4]


def test_every_code_of_the_page_exists() -> None:
    codes = re.findall(r"^\| `(\w+)` \| ", PAGE.partition("## Errors")[2], re.MULTILINE)
    assert len(codes) == 6
    assert set(codes) <= set(ITEM_CODES)
