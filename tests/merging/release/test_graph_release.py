import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.data.graph_file import read_graphs, write_molecules
from merging.data.task_data import AnswerTask
from merging.graphs import pipeline
from merging.graphs.comparison import compare_graphs, scores_table, write_comparison
from merging.graphs.evaluation import evaluate
from merging.graphs.pipeline import (
    GraphRun,
    head,
    joint,
    measure_merged,
    measure_separate,
    merged,
    separate,
)
from merging.graphs.release import release_graphs
from merging.graphs.training import fitted_model
from merging.mergers.registry import MergeConfig
from merging.run.run import Run
from models.artifact import load_artifact
from models.data.batch import GraphBatch
from models.errors import ConfigError
from tests.merging.graph_files import make_config, write_rule

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(tmp_path: Path) -> GraphRun:
    """Three tasks of all targets; one has features of another width."""
    tasks = {
        "classes": write_rule(tmp_path / "classes.npz", "node", "multiclass"),
        "numbers": write_rule(tmp_path / "numbers.npz", "graph", "regression", seed=1),
        "wide": write_rule(tmp_path / "wide.npz", "graph", "multilabel", features=9, seed=2),
    }
    training = {"epochs": 3, "batch_size": 32, "dropout": 0.0}
    config = make_config(
        tasks, encoder="svd", training=training, merge={"method": "weight_average"}
    )
    return GraphRun(config, 0, tmp_path, tmp_path / "work")


def varied(run: GraphRun, **changes: Any) -> GraphRun:
    return replace(run, config=type(run.config).model_validate(run.config.model_dump() | changes))


def test_released_artifact_answers_as_what_was_measured(small: GraphRun, tmp_path: Path) -> None:
    manifest = release_graphs(small, tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    assert artifact.manifest == manifest
    assert manifest.rank == 0
    assert {task: info.target for task, info in manifest.tasks.items()} == {
        "classes": "multiclass",
        "numbers": "regression",
        "wide": "multilabel",
    }
    assert manifest.input.model_dump() == {
        "kind": "graph",
        "num_features": {"classes": 4, "numbers": 4, "wide": 9},
    }
    result = merged(small)
    for task in small.config.tasks:
        data, raw = small.task(task), read_graphs(tmp_path / f"{task}.npz").graphs
        assert isinstance(data, AnswerTask)
        model = fitted_model(result.backbone, small.config.network, head(small, task, result), data)
        unencoded = replace(data, graphs=raw, encoder=None)
        every = torch.arange(len(raw))
        served = artifact.model(unencoded.batch(every), [task])
        torch.testing.assert_close(
            served.logits[task], model(data.batch(every)), atol=1e-5, rtol=1e-5
        )

        def answered(batch: GraphBatch, task: str = task) -> torch.Tensor:
            return artifact.model(batch, [task]).logits[task]  # type: ignore[no-any-return]

        assert evaluate(answered, unencoded, "test") == pytest.approx(
            manifest.metrics["merged"][task], abs=1e-4
        )
    assert manifest.metrics["separate"] == measure_separate(small)
    card = (tmp_path / "artifact/README.md").read_text()
    assert all(f"`{task}`" in card for task in manifest.tasks)
    assert set(manifest.provenance["data_sha256"]["wide"]) == {"wide.npz"}


def test_what_no_artifact_answers_is_refused_before_anything_is_trained(
    small: GraphRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train", None)
    linked = varied(small, tasks={"links": {"kind": "link", "graph": "cora"}})
    with pytest.raises(ConfigError, match="links of kind 'link'"):
        release_graphs(linked, tmp_path / "artifact")


def test_a_merger_of_several_networks_is_refused(small: GraphRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="emr"):
        release_graphs(varied(small, merge={"method": "emr"}), tmp_path / "artifact")


def test_finished_pieces_are_found_again(small: GraphRun, monkeypatch: pytest.MonkeyPatch) -> None:
    first, both, average = separate(small, "classes"), joint(small), merged(small)
    monkeypatch.setattr(pipeline, "train", None)
    monkeypatch.setattr(pipeline, "merge", None)
    again = separate(replace(small, _loaded={}), "classes")
    assert all(torch.equal(value, again.network[key]) for key, value in first.network.items())
    assert torch.equal(again.heads["classes"]["weight"], first.heads["classes"]["weight"])
    assert again.record == first.record
    assert joint(small).heads.keys() == both.heads.keys() == small.config.tasks.keys()
    assert all(
        torch.equal(value, merged(small).backbone[key]) for key, value in average.backbone.items()
    )
    with pytest.raises(TypeError):  # other settings make other pieces
        separate(varied(small, training={"epochs": 1}), "classes")


def test_weight_average_is_the_mean_of_the_separate_networks(small: GraphRun) -> None:
    networks = [separate(small, task).network for task in small.config.tasks]
    for key, value in merged(small).backbone.items():
        torch.testing.assert_close(
            value, torch.stack([network[key] for network in networks]).mean(0)
        )


def test_one_task_merges_to_itself(small: GraphRun) -> None:
    alone = varied(small, tasks={"classes": small.config.tasks["classes"].model_dump()})
    for method in ("weight_average", "gnnmerge_pp"):
        assert measure_merged(alone, MergeConfig(method=method)) == pytest.approx(
            measure_separate(alone), abs=1e-4
        )


def test_initialisation_is_shared_or_not(small: GraphRun) -> None:
    tasks = list(small.config.tasks)
    assert {small.initial_seed(task) for task in tasks} == {0}
    different = varied(small, initialisation="different")
    assert len({different.initial_seed(task) for task in tasks}) == len(tasks)
    changed = separate(different, "classes").network, separate(small, "classes").network
    assert not torch.equal(changed[0]["gnns.0.lin_l.weight"], changed[1]["gnns.0.lin_l.weight"])


def test_comparison_summarises_seeds(small: GraphRun, tmp_path: Path) -> None:
    runs = [small, replace(small, seed=1, _loaded={})]
    other = varied(small, setting="another")
    write_comparison([other], tmp_path / "results.json")
    for _ in range(2):  # the same setting again takes its own place
        content = write_comparison(runs, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == content
    beside, setting = content["settings"]
    assert beside["setting"] == "another"
    assert setting["metric"] == {"classes": "accuracy", "numbers": "mae", "wide": "roc_auc"}
    expected = [measure_separate(run)["numbers"] for run in runs]
    assert setting["scores"]["separate"]["numbers"]["values"] == expected
    assert setting["scores"]["separate"]["numbers"]["mean"] == pytest.approx(
        sum(expected) / 2, abs=1e-4
    )
    assert setting["scores"].keys() == {"separate", "joint", "weight_average", "gnnmerge_pp"}
    assert "| pico | numbers | mae |" in scores_table(content["settings"])
    assert compare_graphs(runs[:1])["scores"]["joint"]["wide"]["std"] == 0


def test_molecules_are_written_as_plain_graphs(pico_run: Run, tmp_path: Path) -> None:
    dataset = pico_run.dataset("nitrogen")
    write_molecules(dataset, tmp_path / "nitrogen.npz")
    stored = read_graphs(tmp_path / "nitrogen.npz")
    assert torch.equal(stored.labels, dataset.labels)
    assert stored.split is not None
    assert torch.equal(stored.split.test, dataset.split.test)
    for k, graph in enumerate(stored.graphs):
        expected = dataset.graphs.select(torch.tensor([k]))
        assert torch.equal(graph.x.argmax(1), expected.x[:, 0])
        assert torch.equal(graph.edge_index, expected.edge_index)


def test_page_shows_the_measured_table() -> None:
    content = json.loads((ROOT / "results/neighbours/generic-graphs.json").read_text())
    assert scores_table(content["settings"]) in (ROOT / "docs/generic-graphs.md").read_text()
