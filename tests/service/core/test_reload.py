"""An answer names the artifact that gave it, also while models are replaced.

Two artifacts of one name and of the same tasks, whose answers differ, take turns while clients ask
in every way there is; each answer is compared with what its digest's artifact says offline.
"""

import asyncio
import csv
import hashlib
import io
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import httpx
import pytest
import torch

from models.artifact import load_artifact, load_components, save_artifact
from models.data.molecule import collate
from models.data.smiles import featurize
from models.files import replace_folder
from service.core.artifact_engine import load_engine
from tests.service.doubles import metric, save_pico_artifact, serving, settings_of

pytestmark = pytest.mark.anyio
ADMIN = {"authorization": "Bearer admin"}
KEYS = json.dumps([{"name": "a", "sha256": hashlib.sha256(b"admin").hexdigest(), "admin": True}])
LABELS = {"hERG": ("blocker",), "CYP3A4.v2": ("inhibitor", "substrate"), "Tox21_NR-AR": ("active",)}
SMILES = ("CCO", "c1ccccc1C(=O)O", "CC(=O)Oc1ccccc1C(=O)O")
RELOADS = 8
Numbers = Mapping[str, list[float]]
"""By SMILES: the answers of all tasks and labels, in their order."""
Answered = tuple[str, Numbers]
"""The digest that an answer names, and its numbers."""
Ask = Callable[[httpx.AsyncClient, str], Awaitable[list[Answered]]]


def offline(folder: Path) -> Answered:
    artifact = load_artifact(folder)
    batch = collate([featurize(smiles).graph for smiles in SMILES])
    by_task = artifact.model(batch, routing="own").probabilities
    rows = torch.cat([by_task[task] for task in LABELS], dim=1).tolist()
    return artifact.digest, dict(zip(SMILES, rows, strict=True))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    first = save_pico_artifact(folder / "first", LABELS)
    components = load_components(first)
    with torch.no_grad():
        for expert in components.experts.values():
            expert.head.bias += 1.0
    save_artifact(folder / "second", components.manifest, components.backbone, components.experts)
    return first, folder / "second"


def flat(tasks: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [tasks[task][label] for task, labels in LABELS.items() for label in labels]


async def ask_predict(client: httpx.AsyncClient, model: str) -> list[Answered]:
    body = {"smiles": list(SMILES), "model": model}
    response = await client.post("/predict", json=body, headers=ADMIN)
    assert response.status_code == 200, response.text
    items = response.json()["predictions"]
    numbers = {smiles: flat(item["tasks"]) for smiles, item in zip(SMILES, items, strict=True)}
    return [(response.json()["model"]["digest"], numbers)]


async def ask_stream(client: httpx.AsyncClient, model: str) -> list[Answered]:
    content = "".join(f"{json.dumps(smiles)}\n" for smiles in SMILES)
    address = f"/predict/stream?model={model}"
    response = await client.post(address, content=content, headers=ADMIN)
    assert response.status_code == 200, response.text
    lines = [json.loads(line)["tasks"] for line in response.text.splitlines()]
    numbers = dict(zip(SMILES, map(flat, lines), strict=True))
    return [(response.headers["x-model-digest"], numbers)]


async def ask_protocol(client: httpx.AsyncClient, model: str) -> list[Answered]:
    tensor = {"name": "smiles", "datatype": "BYTES", "shape": [len(SMILES)], "data": list(SMILES)}
    address = f"/v2/models/{model}/infer"
    response = await client.post(address, json={"inputs": [tensor]}, headers=ADMIN)
    assert response.status_code == 200, response.text
    body = response.json()
    assert [output["name"] for output in body["outputs"]] == list(LABELS)
    outputs = [torch.tensor(output["data"]).view(output["shape"]) for output in body["outputs"]]
    rows = torch.cat(outputs, dim=1).tolist()
    return [(body["parameters"]["digest"], dict(zip(SMILES, rows, strict=True)))]


async def ask_file(client: httpx.AsyncClient, model: str) -> list[Answered]:
    file = {"file": ("molecules.csv", "\n".join(["smiles", *SMILES]))}
    address = f"/predict/file?model={model}"
    response = await client.post(address, files=file, headers=ADMIN)
    assert response.status_code == 200, response.text
    rows = list(csv.DictReader(io.StringIO(response.text)))
    names = [f"{task}.{label}" for task, labels in LABELS.items() for label in labels]
    numbers = {row["smiles"]: [float(row[name]) for name in names] for row in rows}
    return [(response.headers["x-model-digest"], numbers)]


ASKED: dict[str, Ask] = {
    "predict": ask_predict,
    "stream": ask_stream,
    "v2": ask_protocol,
    "file": ask_file,
}


def check(answered: Answered, expected: Mapping[str, Numbers]) -> None:
    digest, numbers = answered
    assert numbers.keys() == set(SMILES)
    for smiles, values in numbers.items():
        assert values == pytest.approx(expected[digest][smiles], abs=1e-5)


def put(artifact: Path, place: Path) -> None:
    """As an operator does: written beside it, then in its place."""
    copy = Path(shutil.copytree(artifact, place.with_name(f".{place.name}.new")))
    replace_folder(copy, place)


async def reload(client: httpx.AsyncClient, name: str) -> str:
    address = f"/admin/models/{name}"
    response = await client.post(address, json={"action": "reload"}, headers=ADMIN)
    assert response.status_code == 200, response.text
    digest: str = response.json()["digest"]
    return digest


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
async def test_every_answer_is_of_the_artifact_that_it_names(
    artifacts: tuple[Path, Path], tmp_path: Path, cache_bytes: int
) -> None:
    """The default model is `pico`, another one `second`; both are replaced all the time."""
    expected = dict(map(offline, artifacts))
    one, other = (torch.tensor(list(numbers.values())) for numbers in expected.values())
    assert len(expected) == 2
    assert bool(((one - other).abs() > 0.01).all())
    places = {"pico": tmp_path / "main", "second": tmp_path / "models" / "second"}
    places["second"].parent.mkdir()
    for place in places.values():
        put(artifacts[0], place)
    done, seen = asyncio.Event(), {name: set[str]() for name in places}
    options = {"api_keys": KEYS, "artifact": places["pico"], "models": tmp_path / "models"}
    main = load_engine(places["pico"], settings_of(device="cpu"))
    async with serving(main, **options, cache_bytes=cache_bytes, device="cpu") as client:

        async def asking(ask: Ask, model: str) -> int:
            count = 0
            while not done.is_set():
                for answered in await ask(client, model):
                    check(answered, expected)
                    seen[model].add(answered[0])
                    count += 1
            return count

        clients = [
            asyncio.create_task(asking(*pair)) for pair in itertools.product(ASKED.values(), places)
        ]
        for k in range(1, RELOADS + 1):
            artifact = artifacts[k % 2]
            for name, place in places.items():
                await asyncio.to_thread(put, artifact, place)
                assert await reload(client, name) == load_artifact(artifact).digest
                # Who asks after a reload was answered is answered by the new model.
                ((digest, _),) = await ask_predict(client, name)
                assert digest == load_artifact(artifact).digest
            await asyncio.sleep(0.02)
        done.set()
        counts = await asyncio.gather(*clients)
    assert min(counts) > 1
    assert all(digests == expected.keys() for digests in seen.values())


@pytest.mark.parametrize("way", ["stream", "file"])
async def test_what_has_begun_ends_with_the_model_it_began_with(
    artifacts: tuple[Path, Path], tmp_path: Path, way: str
) -> None:
    expected = dict(map(offline, artifacts))
    old, new = expected
    place = tmp_path / "models" / "second"
    place.parent.mkdir()
    put(artifacts[0], place)
    begun, reloaded = asyncio.Event(), asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        for k in range(200):
            if k == 100:
                begun.set()
                await reloaded.wait()
            yield f"{json.dumps(SMILES[k % 3])}\n".encode()

    async with serving(api_keys=KEYS, models=tmp_path / "models", device="cpu") as client:
        if way == "stream":
            address = "/predict/stream?model=second"
            asked = asyncio.create_task(client.post(address, content=lines(), headers=ADMIN))
            await begun.wait()
        else:
            rows = [SMILES[k % 3] for k in range(2000)]
            files = {"file": ("molecules.csv", "\n".join(["smiles", *rows]))}
            address = "/predict/file?model=second&output=ndjson"
            asked = asyncio.create_task(client.post(address, files=files, headers=ADMIN))
            await asyncio.sleep(0.1)
        put(artifacts[1], place)
        assert await reload(client, "second") == new
        reloaded.set()
        response = await asked
        ((digest, _),) = await ask_stream(client, "second")
        assert digest == new
    answered = [json.loads(line)["tasks"] for line in response.text.splitlines()]
    assert len(answered) == (200 if way == "stream" else 2000)
    for k, tasks in enumerate(answered):
        wanted = expected[response.headers["x-model-digest"]][SMILES[k % 3]]
        assert flat(tasks) == pytest.approx(wanted, abs=1e-5)
    assert way == "file" or response.headers["x-model-digest"] == old


async def test_tasks_with_names_of_the_field_are_served(
    artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(artifacts[0], tmp_path / "Pico_v1.2")
    async with serving(api_keys=KEYS, models=tmp_path, device="cpu") as client:
        body = {"smiles": "CCO", "model": "Pico_v1.2", "tasks": ["CYP3A4.v2"], "routing": "moe"}
        response = await client.post("/predict", json=body, headers=ADMIN)
        assert response.json()["predictions"][0]["tasks"].keys() == {"CYP3A4.v2"}
        query = "model=Pico_v1.2&tasks=hERG&tasks=Tox21_NR-AR"
        lines = await client.post(f"/predict/stream?{query}", content='"CCO"', headers=ADMIN)
        assert lines.json()["tasks"].keys() == {"hERG", "Tox21_NR-AR"}
        refused = await client.post("/predict", json=body | {"tasks": ["herg"]}, headers=ADMIN)
        assert refused.json()["code"] == "unknown_task"
        outputs = (await client.get("/v2/models/Pico_v1.2", headers=ADMIN)).json()["outputs"]
        assert [output["name"] for output in outputs] == list(LABELS)
        text = (await client.get("/metrics")).text
    series = 'gmerging_routed_molecules_total{model="Pico_v1.2",task="CYP3A4.v2"}'
    assert metric(text, series) == 1


async def test_an_artifact_that_is_being_written_is_no_model(
    artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("second", ".second.host-7-0123456789abcdef"):
        shutil.copytree(artifacts[0], tmp_path / name)
    async with serving(api_keys=KEYS, models=tmp_path, device="cpu") as client:
        models = (await client.get("/admin/models", headers=ADMIN)).json()["models"]
    assert [model["model"] for model in models] == ["dummy", "second"]
