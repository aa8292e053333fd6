"""`explain: ["atoms"]` over HTTP: sums, orders, limits, refusals."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import torch

from models.data.fingerprint import DESCRIPTORS
from models.experts.unified import Routing
from service.core import parsing
from service.core.answer import Answer
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PredictionQuery
from service.core.explaining import Explained
from service.core.pipeline import Pipeline
from service.core.reading import ITEM_CODES
from service.core.splitting import AnswerSplitter
from service.explanation_schemas import AtomsOut
from service.schemas import ETHANOL_GRAPH, PredictResponse
from service.telemetry.metrics import Metrics
from tests.service.doubles import (
    DummyEngine,
    check_problem,
    save_pico_artifact,
    save_pico_force_field,
    save_pico_forests,
    save_pico_graph_artifact,
    save_pico_shared_artifact,
    serving,
    settings_of,
)

pytestmark = pytest.mark.anyio
SMILES = ["OC(=O)c1ccccc1OC(C)=O", "C", "[Na+].[O-]C(=O)[C@@H](N)C", "CCCCCCCCCCC"]
LABELS = ["bbbp.p_np", "clintox.CT_TOX", "tox21.SR-p53", "tox21.NR-AR"]
ASPIRIN = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "OC(=O)c1ccccc1OC(C)=O",
    "c1cc(C(=O)O)c(cc1)OC(=O)C",
    "InChI=1S/C9H8O4/c1-6(10)13-8-5-3-2-4-7(8)9(11)12/h2-5H,1H3,(H,11,12)",
)
Save = Callable[[Path], Path]


def engine_of(save: Save, folder: Path) -> ArtifactEngine:
    return load_engine(save(folder / "artifact"), settings_of(device="cpu"))


@pytest.fixture(scope="module", params=[save_pico_artifact, save_pico_shared_artifact])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ArtifactEngine:
    """Trees beside a network with a stream per task, and beside one with a shared stream."""
    folder = tmp_path_factory.mktemp("atoms")
    return engine_of(lambda path: save_pico_forests(path, request.param), folder)


async def ask(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/predict", json={"explain": ["atoms"], **body})
    assert response.status_code == 200, response.text
    PredictResponse.model_validate(response.json())
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return predictions


def check_sums(item: dict[str, Any], labels: list[str], nodes: int) -> None:
    """The labels are explained, and baseline and contributions sum to what was answered."""
    known = {f"{task}.{label}" for task, found in item["atoms"].items() for label in found}
    assert known == set(labels)
    for name in labels:
        task, label = name.split(".", 1)
        found = AtomsOut.model_validate(item["atoms"][task][label])
        parts = [sum(of_expert.atoms) + of_expert.other for of_expert in found.experts.values()]
        assert found.baseline + sum(parts) == pytest.approx(found.output, abs=1e-5)
        answered = item["tasks"][task][label]
        assert 1 / (1 + math.exp(-found.output)) == pytest.approx(answered, abs=1e-6)
        assert all(len(of_expert.atoms) == nodes for of_expert in found.experts.values())
        assert sum(of_expert.weight for of_expert in found.experts.values()) == 1


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("experts", [None, ["own"]])
async def test_contributions_sum_to_the_answers(
    engine: ArtifactEngine, routing: Routing, experts: list[str] | None
) -> None:
    async with serving(engine, parsers=1) as client:
        items = await ask(
            client, smiles=SMILES, routing=routing, experts=experts, explain_labels=LABELS
        )
    for item, atoms in zip(items, (13, 1, 7, 11), strict=True):
        check_sums(item, LABELS, atoms)
        used = {task: set(found) for task, (found, *_) in experts_by_task(item).items()}
        trees = {"own"} if experts else {"own", "forest"}
        assert used["clintox"] == trees
        assert used["bbbp"] == {"own"}
        assert used["tox21"] == ({"own"} if experts else {"forest"})


def experts_by_task(item: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By task, the experts of every label."""
    return {
        task: [split["experts"] for split in labels.values()]
        for task, labels in item["atoms"].items()
    }


async def test_every_spelling_alone_and_in_a_batch_gives_the_same(engine: ArtifactEngine) -> None:
    """Atoms have the order of the answered SMILES; symmetric ones contribute alike."""
    async with serving(engine, parsers=1) as client:
        together = await ask(client, smiles=[*ASPIRIN, "CCO"], explain_labels=LABELS)
        (alone,) = await ask(client, smiles=ASPIRIN[0], explain_labels=LABELS)
        (toluene,) = await ask(client, smiles="Cc1ccccc1", explain_labels=LABELS)
    for item in together[:-1]:
        assert item["smiles"] == ASPIRIN[0]
        for task, labels in alone["atoms"].items():
            for label, expected in labels.items():
                found = item["atoms"][task][label]
                for name, of_expert in expected["experts"].items():
                    values = found["experts"][name]["atoms"]
                    assert values == pytest.approx(of_expert["atoms"], abs=1e-5)
    for found in (e for splits in experts_by_task(toluene).values() for e in splits):
        for of_expert in found.values():
            atoms = of_expert["atoms"]
            assert atoms[2:4] == pytest.approx([atoms[6], atoms[5]], abs=1e-5)


async def test_largest_columns_are_listed(engine: ArtifactEngine) -> None:
    """Those of the pico trees ask for two descriptors, one of which lies on no atom."""
    async with serving(engine, parsers=1) as client:
        (item,) = await ask(client, smiles=ASPIRIN[0], explain_labels=["tox21.NR-AR"])
    split = item["atoms"]["tox21"]["NR-AR"]["experts"]["forest"]
    assert 0 < len(split["bits"]) <= 10
    sizes = [abs(bit["contribution"]) for bit in split["bits"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {bit["name"] for bit in split["bits"]} <= set(DESCRIPTORS)
    assert all(bit["atoms"] == [] for bit in split["bits"])
    assert sum(bit["contribution"] for bit in split["bits"]) == pytest.approx(split["other"])


async def test_graphs_are_explained_by_the_network(engine: ArtifactEngine) -> None:
    async with serving(engine, parsers=1) as client:
        (item,) = await ask(client, graphs=[ETHANOL_GRAPH], explain_labels=LABELS)
        (text,) = await ask(client, smiles="CCO", experts=["own"], explain_labels=LABELS)
    assert item["without_forest"] == ["clintox", "tox21"]
    check_sums(item, LABELS, 3)
    for name in LABELS:
        task, label = name.split(".", 1)
        found, expected = (x["atoms"][task][label]["experts"]["own"]["atoms"] for x in (item, text))
        assert found == pytest.approx(expected, abs=1e-6)


async def test_molecules_that_cannot_be_read_have_their_error(engine: ArtifactEngine) -> None:
    async with serving(engine, parsers=1) as client:
        good, bad, *_ = await ask(client, smiles=["C", "C1", "CC"], explain_labels=LABELS[:1])
        only = {"smiles": ["C1", "C2"], "explain": ["atoms"], "explain_labels": LABELS[:1]}
        none = (await client.post("/predict", json=only)).json()["predictions"]
    check_sums(good, LABELS[:1], 1)
    assert "atoms" not in bad
    assert [item["error"]["code"] for item in none] == ["smiles_syntax"] * 2


async def test_a_molecule_that_a_process_loses_has_no_explanation(
    engine: ArtifactEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(engine, parsers=1) as client:
        body = {"smiles": ["C", "CC"], "tasks": ["bbbp"], "explain": ["atoms"]}

        def late(self: parsing.Parser, *_: object) -> Any:
            failure = parsing.ItemFailure("parse_timeout", "too late")
            future = asyncio.get_running_loop().create_future()
            future.set_result([failure, failure])
            return future

        monkeypatch.setattr(parsing.Parser, "apply", late)
        items = await ask(client, **body)
    for item in items:
        assert "atoms" not in item
        assert item["explanation_errors"] == {
            "atoms": {"code": "parse_timeout", "message": "too late"}
        }


async def test_labels_are_limited(tmp_path: Path) -> None:
    def many(folder: Path) -> Path:
        return save_pico_artifact(folder, {"many": tuple(f"l{k}" for k in range(21))})

    async with serving(engine_of(many, tmp_path), parsers=1) as client:
        body = {"smiles": "CCO", "explain": ["atoms"]}
        refused = await client.post("/predict", json=body)
        names = [f"many.l{k}" for k in range(20)]
        (item,) = await ask(client, smiles="CCO", explain_labels=names)
    problem = check_problem(refused, 422, "too_many_labels")
    assert problem.detail == (
        "got explain ['atoms'] for 21 labels, expected at most 20, named by explain_labels"
    )
    assert problem.limit == {"explained_labels": 20}
    check_sums(item, names, 3)


@pytest.mark.parametrize(
    ("save", "body", "detail"),
    [
        (
            save_pico_graph_artifact,
            {"tasks": ["papers"], "graphs": [{"x": [[1, 0, 0]], "edge_index": [[], []]}]},
            "got explain ['atoms'] for papers, which answers for every node",
        ),
        (
            save_pico_force_field,
            {"tasks": ["ethanol"], "graphs": [{"numbers": [8], "positions": [[0, 0, 0]]}]},
            "got explain ['atoms'] for model pico-forces, a schnet",
        ),
    ],
)
async def test_models_that_are_no_sums_are_refused_by_name(
    tmp_path: Path, save: Save, body: dict[str, Any], detail: str
) -> None:
    async with serving(engine_of(save, tmp_path), parsers=1) as client:
        refused = await client.post("/predict", json={**body, "explain": ["atoms"]})
    assert check_problem(refused, 422, "unsupported_explanation").detail.startswith(detail)


async def test_values_of_graphs_are_sums_over_their_nodes(tmp_path: Path) -> None:
    """A regression on graphs that are no molecules."""
    graph = {"x": [[0, 1.5, 0], [1, 0, 0.25]], "edge_index": [[0, 1], [1, 0]]}
    async with serving(engine_of(save_pico_graph_artifact, tmp_path), parsers=1) as client:
        (item,) = await ask(client, tasks=["weights"], graphs=[graph])
    split = item["atoms"]["weights"]["grams"]
    assert split["scale"] == "value"
    assert split["output"] == pytest.approx(item["tasks"]["weights"]["grams"], abs=1e-5)
    own = split["experts"]["own"]
    assert len(own["atoms"]) == 2
    assert split["baseline"] + sum(own["atoms"]) == pytest.approx(split["output"], abs=1e-5)


async def test_a_molecule_without_atoms_is_answered_and_explained(engine: ArtifactEngine) -> None:
    async with serving(engine, parsers=1) as client:
        left, whole, *_ = await ask(
            client,
            smiles=[ASPIRIN[1], ASPIRIN[1], "CCO", None],
            without_atoms=[[10, 11, 12], [], [3], [0]],
            explain_labels=LABELS,
        )
        (expected,) = await ask(client, smiles="CC(=O)Oc1ccccc1", explain_labels=LABELS)
        errors = await client.post(
            "/predict", json={"smiles": ["CCO", "CCO"], "without_atoms": [[3], [0, 1, 2]]}
        )
        blocks = await ask(client, inchi=[ASPIRIN[3]], without_atoms=[[0]], explain=[])
    assert left["smiles"] == "CC(=O)Oc1ccccc1"
    assert left["tasks"] == expected["tasks"]
    check_sums(left, LABELS, 10)
    assert whole["smiles"] == ASPIRIN[0]
    codes = [item["error"]["code"] for item in errors.json()["predictions"]]
    assert codes == ["invalid_atoms"] * 2
    assert blocks[0]["smiles"] == "O=COc1ccccc1C(=O)O"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"smiles": "CCO", "without_atoms": [[0], [1]]}, "got 2 for 1 molecules"),
        ({"graphs": [ETHANOL_GRAPH], "without_atoms": [[0]]}, "got graphs, expected molecules"),
        ({"smiles": "CCO", "without_atoms": [[-1]]}, "greater than or equal to 0"),
        ({"smiles": "CCO", "without_atoms": [[0.5]]}, "valid integer"),
    ],
)
async def test_wrong_atoms_are_refused(body: dict[str, Any], detail: str) -> None:
    async with serving(parsers=1) as client:
        refused = await client.post("/predict", json=body)
    assert detail in check_problem(refused, 422, "invalid_request").detail


async def test_an_explanation_is_admitted_as_one_more_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost counts when a request is admitted, and while the model explains it."""
    engine, metrics = DummyEngine(), Metrics(ITEM_CODES)
    pipeline = Pipeline(settings_of(), metrics)
    metrics.read_gauges_with(pipeline.gauges)
    await pipeline.start()
    pending: list[float] = []
    split = DummyEngine.split

    def noting(self: DummyEngine, *words: Any) -> Any:
        pending.append(pipeline.gauges().pending_cost)
        return split(self, *words)

    monkeypatch.setattr(DummyEngine, "split", noting)
    query = PredictionQuery.of("dummy", engine, ["bbbp", "tox21"], "own")
    explained = Explained.checked(["atoms"], engine.info, query.tasks, ["tox21.NR-AR"])
    try:
        engine.gate.clear()
        asked = asyncio.create_task(pipeline.predict(query, ["CCO"], explained=explained))
        await asyncio.to_thread(engine.entered.acquire)
        admitted = pipeline.gauges().pending_cost
        engine.gate.set()
        (answer,) = await asked
    finally:
        engine.gate.set()
        await pipeline.close()
    assert admitted == 2 * 3  # what was read is exact: two streams of three atoms
    assert pending == [3]  # one stream
    assert explained.num_streams(engine.info) == 1
    assert isinstance(answer, Answer)
    (values,) = answer.explanations["atoms"]["tox21"].values()
    np.testing.assert_allclose(values["experts"]["own"]["atoms"], [values["output"] / 3] * 3)


def test_a_pass_that_does_not_fit_into_memory_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(save_pico_artifact, tmp_path)
    graphs = [engine.info.requirements.smallest("bbbp")] * 5
    expected = engine.split(graphs, {"bbbp": (0,)}, "own")
    whole, sizes = AnswerSplitter.split, []

    def small(self: AnswerSplitter, graphs: Any, *rest: Any) -> Any:
        sizes.append(len(graphs))
        if len(graphs) > 2:
            raise torch.OutOfMemoryError
        return whole(self, graphs, *rest)

    monkeypatch.setattr(AnswerSplitter, "split", small)
    found = engine.split(graphs, {"bbbp": (0,)}, "own")
    assert sizes == [5, 2, 3, 1, 2]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["bbbp"].outputs, other["bbbp"].outputs, atol=1e-6)
