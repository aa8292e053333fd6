"""The engine of an artifact with forests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.artifact import load_artifact
from models.data.molecule import MolGraph
from models.data.smiles import featurize_all
from models.experts.combination import ExpertChoice
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PredictionQuery, TaskAnswer, UnsupportedQueryError
from service.core.reading import ItemFailure, MoleculeLimits, Parsed, read, read_all
from service.schemas import ETHANOL_GRAPH, GraphIn
from tests.service.doubles import (
    LABELS,
    save_pico_artifact,
    save_pico_forests,
    save_pico_shared_artifact,
    settings_of,
)

SMILES = ["CCO", "CC(=O)Oc1ccccc1C(=O)O", "c1ccccc1", "CCCCCCCCCCCCCC", "NCC(=O)[O-]"]
TASKS = tuple(LABELS)
LIMITS = MoleculeLimits(100, 1000)


@pytest.fixture(scope="module", params=[save_pico_artifact, save_pico_shared_artifact])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forests beside a network with a stream per task, and beside one with a shared stream."""
    return save_pico_forests(tmp_path_factory.mktemp("forests") / "pico", request.param)


@pytest.fixture(scope="module")
def engine(folder: Path) -> ArtifactEngine:
    return load_engine(folder, settings_of(device="cpu"))


def read_with(fingerprints: bool) -> list[MolGraph]:
    molecules = featurize_all(SMILES, fingerprints=fingerprints)
    return [molecule.graph for molecule in molecules]  # type: ignore[union-attr]


def answers(
    engine: ArtifactEngine, experts: ExpertChoice | None, graphs: list[MolGraph] | None = None
) -> dict[str, list[TaskAnswer]]:
    output = engine.run(read_with(True) if graphs is None else graphs, TASKS, "own", experts)
    return {task: [answer[task] for answer in output.answers] for task in TASKS}


def values(answers: list[TaskAnswer]) -> np.ndarray:
    return np.stack([answer.values for answer in answers])


def test_defaults_are_those_of_the_manifest(engine: ArtifactEngine) -> None:
    default, own = answers(engine, None), answers(engine, "own")
    assert np.array_equal(values(default["bbbp"]), values(own["bbbp"]))
    both, forest = answers(engine, "both"), answers(engine, "forest")
    assert np.array_equal(values(default["clintox"]), values(both["clintox"]))
    assert np.array_equal(values(default["tox21"]), values(forest["tox21"]))
    for task in ("clintox", "tox21"):
        found = [values(some[task]) for some in (own, both, forest)]
        assert np.abs(found[0] - found[1]).max() > 1e-3
        assert np.abs(found[1] - found[2]).max() > 1e-3
    assert [list(some["tox21"][0].experts) for some in (own, both, forest)] == [
        [],
        ["own", "forest"],
        ["forest"],
    ]


def test_both_is_the_scaled_mean_of_logits(engine: ArtifactEngine, folder: Path) -> None:
    forest = load_artifact(folder).forests["clintox"]
    rows = np.stack([graph.fingerprint.numpy() for graph in read_with(True)])  # type: ignore[attr-defined]
    own = torch.logit(torch.from_numpy(values(answers(engine, "own")["clintox"])).double())
    mean = (own.numpy() + forest.outputs(rows)) / 2 * forest.both_scale
    np.testing.assert_allclose(
        values(answers(engine, "both")["clintox"]), 1 / (1 + np.exp(-mean)), atol=1e-5
    )


def test_an_answer_does_not_depend_on_the_others(engine: ArtifactEngine) -> None:
    together, graphs = answers(engine, None), read_with(True)
    for k, graph in enumerate(graphs):
        alone = answers(engine, None, [graph])
        for task in TASKS:
            np.testing.assert_allclose(
                alone[task][0].values, together[task][k].values, atol=1e-6, rtol=0
            )


def test_graphs_without_a_fingerprint_are_answered_by_the_network(engine: ArtifactEngine) -> None:
    own = answers(engine, "own")
    mixed = [*read_with(True)[:2], *read_with(False)[2:]]
    found, default = answers(engine, None, mixed), answers(engine, None)
    for task in ("clintox", "tox21"):
        np.testing.assert_allclose(values(found[task][:2]), values(default[task][:2]), atol=1e-6)
        np.testing.assert_allclose(values(found[task][2:]), values(own[task][2:]), atol=1e-6)
        assert [answer.no_fingerprint for answer in found[task]] == [False] * 2 + [True] * 3
    assert not any(answer.no_fingerprint for answer in found["bbbp"])


def test_fingerprints_are_read_only_where_a_forest_answers(engine: ArtifactEngine) -> None:
    cases: list[tuple[list[str], ExpertChoice | None, bool]] = [
        (["bbbp"], None, False),
        (["clintox"], None, True),
        (["clintox"], "own", False),
        (["tox21", "bbbp"], None, True),
        (["tox21"], "forest", True),
    ]
    for tasks, experts, wanted in cases:
        query = PredictionQuery.checked("pico", engine, tasks, "own", experts)
        (parsed,) = read_all(["CCO"], LIMITS, query.requirements)
        assert isinstance(parsed, Parsed)
        assert hasattr(parsed.graph, "fingerprint") == wanted, (tasks, experts)


def test_a_graph_is_refused_where_the_forest_is_asked_for(engine: ArtifactEngine) -> None:
    graph = GraphIn.model_validate(ETHANOL_GRAPH)
    asked: list[tuple[ExpertChoice | None, type[Any]]] = [
        ("forest", ItemFailure),
        ("both", ItemFailure),
        ("own", Parsed),
        (None, Parsed),
    ]
    for experts, kind in asked:
        query = PredictionQuery.checked("pico", engine, ["tox21"], "own", experts)
        result = read(graph, LIMITS, query.requirements)
        assert isinstance(result, kind)
        if isinstance(result, ItemFailure):
            assert result.code == "unsupported_input"


def test_tasks_without_a_forest_refuse_it(engine: ArtifactEngine) -> None:
    with pytest.raises(UnsupportedQueryError) as refused:
        PredictionQuery.checked("pico", engine, None, "own", "forest")
    assert refused.value.code == "unsupported_experts"
    assert str(refused.value) == (
        f"got expert 'forest' for bbbp, without a forest in model {engine.info.name}, expected"
        " experts ['own'], or tasks among clintox, tox21"
    )


def test_queries_for_other_experts_do_not_share_passes(engine: ArtifactEngine) -> None:
    queries = {
        PredictionQuery.of("pico", engine, ["tox21"], "own", experts)
        for experts in (None, "own", "forest", "both")
    }
    assert len(queries) == 4


def test_an_answer_of_a_forest_that_is_not_finite_is_an_error(folder: Path) -> None:
    artifact = load_artifact(folder)
    artifact.forests["tox21"].scale[:] = np.nan
    broken = ArtifactEngine(artifact, torch.device("cpu"))
    with pytest.raises(FloatingPointError, match="not finite for tox21"):
        broken.run(read_with(True), ["tox21"], "own")
