"""`GET /tasks`, `GET /model` and the admin's routes."""

import asyncio
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.artifact import load_components, save_artifact
from models.data.schema import MoleculeInput
from models.meaning import Counts, LabelMeaning, TaskMeaning
from models.task import TaskInfo
from service.schemas import ModelResponse, TasksResponse
from tests.service.doubles import (
    DETAILS,
    LABELS,
    DummyEngine,
    check_problem,
    metric,
    save_pico_artifact,
    save_pico_force_field,
    save_pico_graph_artifact,
    save_pico_shared_artifact,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio


async def test_tasks_are_described_with_their_labels() -> None:
    async with serving() as client:
        response = await client.get("/tasks")
        by_name = await client.get("/tasks?model=dummy")
        unknown = await client.get("/tasks?model=nope")
    assert response.status_code == 200
    tasks = TasksResponse.model_validate(response.json()).tasks
    assert [(task.name, task.labels) for task in tasks] == list(LABELS.items())
    expected = {"description": "a task", "level": "graph", "target": "multilabel"}
    nothing = {"num_features": None, "elements": None, "stream": None}
    first = {"name": "bbbp", "labels": ["p_np"], **expected, **nothing}
    assert first.items() <= response.json()["tasks"][0].items()
    assert by_name.json() == response.json()
    check_problem(unknown, 422, "unknown_model")


async def test_tasks_of_other_inputs_say_what_they_take(tmp_path: Path) -> None:
    save_pico_graph_artifact(tmp_path / "graphs")
    save_pico_force_field(tmp_path / "forces")
    async with serving(models=tmp_path, device="cpu") as client:
        graphs = (await client.get("/tasks?model=graphs")).json()["tasks"]
        forces = (await client.get("/tasks?model=forces")).json()["tasks"]
    assert [(task["level"], task["target"], task["num_features"]) for task in graphs] == [
        ("node", "multiclass", 3),
        ("node", "multilabel", 5),
        ("graph", "regression", 3),
    ]
    assert {task["elements"] for task in graphs} == {None}
    assert [(task["target"], task["elements"], task["num_features"]) for task in forces] == [
        ("energy_and_forces", [1, 6, 8], None),
        ("energy_and_forces", [1, 8, 11, 17], None),
    ]


async def test_tasks_on_a_shared_stream_say_so_and_answer_with_every_routing(
    tmp_path: Path,
) -> None:
    save_pico_shared_artifact(tmp_path / "shared")
    async with serving(models=tmp_path, device="cpu") as client:
        tasks = (await client.get("/tasks?model=shared")).json()["tasks"]
        model = (await client.get("/model?model=shared")).json()
        query = {"smiles": "CCO", "model": "shared", "explain": ["routing"]}
        answers = {
            routing: await client.post("/predict", json=query | {"routing": routing})
            for routing in ("own", "moe", "merged")
        }
    assert [task["stream"] for task in tasks] == [None, "common", "common"]
    assert (model["format_version"], model["rank"]) == (2, 2)
    for routing, answer in answers.items():
        (item,) = answer.json()["predictions"]
        assert list(item["tasks"]) == list(LABELS)
        for task, weights in item["routing"].items():
            assert sum(weights["graph"].values()) == pytest.approx(1, abs=1e-3)
            if task != "bbbp" or routing == "own":
                assert weights["layer_0"] == {other: float(other == task) for other in LABELS}
            assert (max(weights["graph"].values()) == 1) == (
                routing == "own" or (task == "bbbp" and routing == "merged")
            )


async def test_model_is_described_by_its_artifact_and_the_limits_of_the_service() -> None:
    async with serving(max_atoms=77) as client:
        response = await client.get("/model")
    model = ModelResponse.model_validate(response.json())
    assert model.input == MoleculeInput(reading_rule=1)
    defaults = settings_of(max_atoms=77)
    names = ("max_molecules", "max_atoms", "max_smiles_length", "max_body_bytes", "max_file_bytes")
    assert {name: value for name, value in response.json().items() if name != "input"} == {
        **{"name": "dummy", "version": "1", "digest": "0" * 64, "device": "cpu"},
        **{"tasks": list(LABELS), "sites": ["layer_0", "graph"], "models": ["dummy"]},
        "limits": {name: getattr(defaults, name) for name in names},
        "drugs": None,
        **DETAILS,
    }


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "#/action", "Field required"),
        ({"action": "delete"}, "#/action", "Input should be 'load', 'reload' or 'unload'"),
        ({"action": "load", "actoin": 1}, "#/actoin", "did you mean 'action'?"),
    ],
)
async def test_wrong_action(body: dict[str, Any], pointer: str, detail: str) -> None:
    async with serving(api_keys=KEYS) as client:
        response = await client.post("/admin/models/dummy", json=body, headers=ADMIN)
    problem = check_problem(response, 422, "invalid_request")
    assert problem.errors is not None
    assert problem.errors[0].pointer == pointer
    assert detail in problem.errors[0].detail


async def test_default_model_is_listed_with_its_artifact() -> None:
    async with serving(api_keys=KEYS) as client:
        response = await client.get("/admin/models", headers=ADMIN)
    assert response.json() == {
        "models": [
            {
                **{"model": "dummy", "loaded": True, "default": True},
                **{"name": "dummy", "version": "1", "digest": "0" * 64},
            }
        ]
    }


ADMIN = {"authorization": "Bearer admin"}


KEYS = json.dumps([{"name": "boss", "sha256": hashlib.sha256(b"admin").hexdigest(), "admin": True}])


async def change(
    client: httpx.AsyncClient, name: str, action: str
) -> tuple[int, dict[str, object]]:
    response = await client.post(f"/admin/models/{name}", json={"action": action}, headers=ADMIN)
    return response.status_code, response.json()


async def test_admin(pico_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(pico_artifact, tmp_path / "second")
    async with serving(api_keys=KEYS, models=tmp_path, device="cpu") as client:
        names = [
            model["model"]
            for model in (await client.get("/admin/models", headers=ADMIN)).json()["models"]
        ]
        assert names == ["dummy", "second"]
        body = {"smiles": "CCO", "tasks": ["bbbp"], "model": "second"}
        before = (await client.post("/predict", json=body, headers=ADMIN)).json()
        assert before["model"]["name"] == "pico"
        status, state = await change(client, "second", "reload")
        assert (status, state["version"], state["loaded"], state["default"]) == (
            200,
            "0.1.0",
            True,
            False,
        )

        tensor = next((tmp_path / "second").glob("*.safetensors"))
        content = bytearray(tensor.read_bytes())
        content[-1] ^= 1
        tensor.write_bytes(content)
        status, problem = await change(client, "second", "reload")
        assert (status, problem["code"]) == (422, "artifact_invalid")
        assert (await client.post("/predict", json=body, headers=ADMIN)).json() == before

        assert (await change(client, "second", "unload"))[1]["loaded"] is False
        refusals = [
            await change(client, name, action)
            for name, action in (("second", "reload"), ("nope", "load"), ("dummy", "unload"))
        ]
        assert [(status, problem["code"]) for status, problem in refusals] == [
            (404, "unknown_model"),
            (404, "unknown_model"),
            (409, "default_model"),
        ]
        gone = await client.post("/predict", json=body, headers=ADMIN)
        assert (gone.status_code, gone.json()["code"]) == (422, "unknown_model")
        text = (await client.get("/metrics")).text
    assert [
        metric(text, f'gmerging_model_loads_total{{outcome="{outcome}"}}')
        for outcome in ("ok", "failed", "unloaded")
    ] == [3, 1, 1]


async def test_reload_adds_and_removes_tasks(pico_artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico_artifact, tmp_path / "second"))
    body = {"smiles": "CCO", "model": "second"}
    async with serving(api_keys=KEYS, models=tmp_path, device="cpu") as client:
        for labels in ({"bbbp": ("p_np",)}, {**LABELS, "ninth": ("a", "b")}):
            shutil.rmtree(folder)
            save_pico_artifact(folder, labels)
            assert (await change(client, "second", "reload"))[0] == 200
            (item,) = (await client.post("/predict", json=body, headers=ADMIN)).json()[
                "predictions"
            ]
            assert {task: tuple(values) for task, values in item["tasks"].items()} == labels


async def test_request_under_way_ends_with_the_model_it_began_with(
    tmp_path: Path, engine: DummyEngine
) -> None:
    save_pico_artifact(tmp_path / "main")
    async with serving(engine, api_keys=KEYS, artifact=tmp_path / "main", device="cpu") as client:
        engine.gate.clear()
        old = asyncio.create_task(
            client.post("/predict", json={"smiles": "C", "tasks": ["bbbp"]}, headers=ADMIN)
        )
        await asyncio.to_thread(engine.entered.acquire)
        assert (await change(client, "dummy", "reload"))[0] == 200
        new = asyncio.create_task(
            client.post("/predict", json={"smiles": "C", "tasks": ["bbbp"]}, headers=ADMIN)
        )
        await asyncio.sleep(0.1)
        engine.gate.set()
        assert [(await answer).json()["model"]["name"] for answer in (old, new)] == [
            "dummy",
            "pico",
        ]


def described_info() -> TaskInfo:
    label = LabelMeaning(
        name="penetration",
        measured="Whether it penetrates.",
        direction="neither",
        one="penetrates",
        counts=Counts(train=6, valid=1, test=1),
        positives=Counts(train=2, valid=0, test=0),
    )
    meaning = TaskMeaning(source="a paper", terms="CC0", counted="molecules", labels=(label,))
    return TaskInfo(labels=("p_np",), description="a task", meaning=meaning)


async def test_tasks_say_what_their_labels_mean() -> None:
    engine = DummyEngine()
    infos = {**engine.info.task_infos, "bbbp": described_info()}
    engine.info = replace(engine.info, task_infos=infos)
    async with serving(engine) as client:
        tasks = (await client.get("/tasks")).json()["tasks"]
    assert [task["meaning"] is None for task in tasks] == [False, True, True]
    assert tasks[0]["meaning"] == {
        "source": "a paper",
        "terms": "CC0",
        "counted": "molecules",
        "answered_by": "own",
        "labels": {
            "p_np": {
                "name": "penetration",
                "measured": "Whether it penetrates.",
                "direction": "neither",
                "one": "penetrates",
                "counts": {"train": 6, "valid": 1, "test": 1},
                "positives": {"train": 2, "valid": 0, "test": 0},
                "scores": [],
                "base_rate": 0.25,
            }
        },
    }


async def test_the_card_of_a_model_is_markdown(tmp_path: Path) -> None:
    folder = save_pico_artifact(tmp_path / "models/pico")
    components = load_components(folder)
    experts = components.backbone, components.experts
    save_artifact(folder, components.manifest, *experts, "# pico\n\nÜber.\n")
    save_pico_artifact(tmp_path / "models/bare")
    async with serving(models=tmp_path / "models", device="cpu") as client:
        card = await client.get("/model/card?model=pico")
        bare = await client.get("/model/card?model=bare")
        default = await client.get("/model/card")
        unknown = await client.get("/model/card?model=nope")
    assert card.status_code == 200
    assert card.headers["content-type"] == "text/markdown; charset=utf-8"
    assert card.text == "# pico\n\nÜber.\n"
    problem = check_problem(bare, 404, "not_found")
    assert "got model pico, which has no model card" in problem.detail
    check_problem(default, 404, "not_found")
    check_problem(unknown, 422, "unknown_model")
