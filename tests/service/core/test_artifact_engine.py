from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from models.artifact import load_artifact, load_components, save_artifact
from models.data.molecule import MolGraph
from models.data.smiles import featurize
from models.errors import ArtifactError, ConfigError
from models.experts.unified import Routing
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PassOutput
from tests.service.doubles import LABELS, save_pico_shared_artifact, settings_of, stacked

SMILES = [
    "CCO",
    "c1ccccc1C(=O)O",
    "C",
    "CC(=O)Oc1ccccc1C(=O)O",
    "[Na+].[Cl-]",
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
]
GRAPHS = [featurize(smiles).graph for smiles in SMILES]


@pytest.fixture(scope="module")
def pico(pico_artifact: Path) -> ArtifactEngine:
    return load_engine(pico_artifact, settings_of(device="cpu"))


def test_info_is_the_manifest(pico: ArtifactEngine, pico_artifact: Path) -> None:
    info = pico.info
    assert (info.name, info.version, info.device, info.tasks) == (
        "pico",
        "0.1.0",
        "cpu",
        tuple(LABELS),
    )
    assert info.labels == LABELS
    assert info.sites == ("layer_0", "layer_1", "graph")
    assert info.digest == load_artifact(pico_artifact).digest
    assert info.details["rank"] == 2


@pytest.mark.parametrize("routing", get_args(Routing))
def test_shapes_and_sums(pico: ArtifactEngine, routing: str) -> None:
    output = pico.run(GRAPHS, ("tox21", "bbbp"), routing)
    assert {task: stacked(output, task).shape for task in output.answers[0]} == {
        "tox21": (6, 3),
        "bbbp": (6, 1),
    }
    for weights in map(output.routing, ("tox21", "bbbp")):
        assert weights.shape == (6, 3, 3)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_a_pass_computes_a_shared_stream_once(tmp_path: Path) -> None:
    info = load_engine(save_pico_shared_artifact(tmp_path / "a"), settings_of(device="cpu")).info
    assert info.stream_of == {"clintox": "common", "tox21": "common"}
    assert [info.count_streams(tasks) for tasks in (LABELS, ["tox21", "clintox"], ["bbbp"])] == [
        2,
        1,
        1,
    ]


def test_routing_makes_a_difference(pico: ArtifactEngine) -> None:
    """Otherwise the tests above and over HTTP would prove little."""
    mixed, own = (
        stacked(pico.run(GRAPHS, ("bbbp",), routing), "bbbp") for routing in ("moe", "own")
    )
    assert np.abs(mixed - own).max() > 1e-3
    assert mixed.std() > 1e-3


@pytest.mark.parametrize("routing", get_args(Routing))
def test_an_answer_depends_on_its_molecule_and_task_alone(
    pico: ArtifactEngine, routing: str
) -> None:
    together = pico.run(GRAPHS, tuple(LABELS), routing)
    for k, graph in enumerate(GRAPHS):
        for task in LABELS:
            alone = pico.run([graph], (task,), routing)
            np.testing.assert_allclose(
                stacked(alone, task)[0], stacked(together, task)[k], atol=1e-5
            )
            np.testing.assert_allclose(alone.routing(task)[0], together.routing(task)[k], atol=1e-5)


@pytest.mark.parametrize("routing", get_args(Routing))
def test_few_candidates_change_the_work_and_not_the_form(
    pico: ArtifactEngine, pico_artifact: Path, tmp_path: Path, routing: Routing
) -> None:
    components = load_components(pico_artifact)
    tasks = tuple(components.experts)
    nearest = {task: tuple(other for other in tasks if other != task)[::-1] for task in tasks}
    router = components.manifest.router.model_copy(update={"candidates": 1})
    save_artifact(
        tmp_path / "many",
        components.manifest.model_copy(update={"nearest": nearest, "router": router}),
        components.backbone,
        components.experts,
    )
    engine = load_engine(tmp_path / "many", settings_of(device="cpu"))
    assert (engine.info.sites, engine.info.labels) == (pico.info.sites, pico.info.labels)
    output, whole = (model.run(GRAPHS, tasks, routing) for model in (engine, pico))
    assert list(output.answers[0]) == list(whole.answers[0])
    for k, task in enumerate(tasks):
        weights = output.routing(task)
        assert weights.shape == whole.routing(task).shape
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        left_out = ({0, 1, 2} - {k, tasks.index(nearest[task][0])}).pop()
        assert not weights[..., left_out].any()
        if routing == "own":
            np.testing.assert_allclose(stacked(output, task), stacked(whole, task), atol=1e-5)


def test_no_answer_is_better_than_one_that_is_not_finite(pico_artifact: Path) -> None:
    artifact = load_artifact(pico_artifact)
    artifact.model.heads[1].bias.data.fill_(float("nan"))
    engine = ArtifactEngine(artifact, torch.device("cpu"))
    with pytest.raises(FloatingPointError, match="clintox"):
        engine.run(GRAPHS, tuple(LABELS), "moe")


def test_too_little_memory_means_smaller_passes(
    pico: ArtifactEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pico.run(GRAPHS, ("bbbp",), "moe")
    one_pass, sizes = pico._pass, []

    def small_gpu(graphs: list[MolGraph], *rest: Any) -> PassOutput:
        sizes.append(len(graphs))
        if len(graphs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return one_pass(graphs, *rest)

    monkeypatch.setattr(pico, "_pass", small_gpu)
    components = pico.run(GRAPHS, ("bbbp",), "moe")
    assert sizes == [6, 3, 1, 2, 3, 1, 2]
    np.testing.assert_allclose(stacked(components, "bbbp"), stacked(whole, "bbbp"), atol=1e-5)
    np.testing.assert_allclose(components.routing("bbbp"), whole.routing("bbbp"), atol=1e-5)


def test_a_molecule_that_is_too_large_by_itself_is_an_error(
    pico: ArtifactEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(*_: object) -> PassOutput:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pico, "_pass", no_gpu)
    with pytest.raises(torch.OutOfMemoryError):
        pico.run(GRAPHS[:1], ("bbbp",), "moe")


def test_missing_artifact_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing_here"):
        load_engine(tmp_path / "nothing_here", settings_of())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_a_clear_error(pico_artifact: Path) -> None:
    with pytest.raises(ConfigError, match="GMERGING_DEVICE: got device 'cuda'"):
        load_engine(pico_artifact, settings_of(device="cuda"))
