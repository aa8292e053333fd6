"""Runs on graphs, without adapters: stages, release and comparison are those of molecules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gmerging.cli.main import main
from merging.data.graph_file import read_graphs, write_molecules
from merging.data.links import LinkSpec, link_task
from merging.data.planetoid import NodeDataset
from merging.data.split import Split
from merging.data.task_data import AnswerTask
from merging.families import graphs
from merging.families.graphs import GRAPHS
from merging.mergers.registry import MergeConfig
from merging.release.release import release
from merging.run import stages
from merging.run.run import Run
from merging.run.scores import evaluation
from merging.run.stages import heads, joint, merge_result, teacher, trained_model
from merging.studies.report import compare_settings, comparison_table
from models.artifact import load_artifact
from models.data.batch import GraphBatch
from models.errors import ConfigError
from tests.merging.graph_files import make_config, write_rule
from tests.pages import page

ROOT = Path(__file__).parents[3]
LINKS = {"kind": "link", "graph": "cora", "dim": 6}


@pytest.fixture
def small(tmp_path: Path) -> Run:
    """A run on three tasks, one per target; one of them has features of another width."""
    tasks = {
        "classes": write_rule(tmp_path / "classes.npz", "node", "multiclass"),
        "numbers": write_rule(tmp_path / "numbers.npz", "graph", "regression", seed=1),
        "wide": write_rule(tmp_path / "wide.npz", "graph", "multilabel", features=9, seed=2),
    }
    training = {"epochs": 3, "batch_size": 32, "dropout": 0.0}
    merge = {"method": "weight_average"}
    config = make_config(tasks, encoder="svd", training=training, merge=merge)
    return Run(config, 0, tmp_path, tmp_path / "work")


def varied(run: Run, **changes: Any) -> Run:
    config = type(run.config).model_validate(run.config.model_dump() | changes)
    return replace(run, config=config, _datasets={})


def measured(run: Run, way: str) -> dict[str, float]:
    """Return the main test metric of an evaluation, by task."""
    records = {task: run.result(evaluation(way, run, task)).record for task in run.tasks}
    return {task: next(iter(record["stored"]["test"].values())) for task, record in records.items()}


def test_labels_of_graphs_and_nodes_are_measured_as_the_artifact_answers(
    small: Run, tmp_path: Path
) -> None:
    """With an encoder of one task, which its data have gone through already."""
    config, text = small.config, {"name": "a", "measured": "Something.", "direction": "neither"}
    infos = {task: small.dataset(task).info for task in small.tasks}
    meanings = {
        task: {
            "source": "made in a test",
            "terms": "CC0",
            "labels": {
                label: text | ({} if info.target == "regression" else {"one": "it is"})
                for label in info.labels
            },
        }
        for task, info in infos.items()
    }
    config = type(config).model_validate(config.model_dump() | {"meanings": meanings})
    manifest = release(replace(small, config=config), tmp_path / "artifact")
    found = {task: info.meaning for task, info in manifest.tasks.items()}
    for task, meaning in found.items():
        assert meaning is not None
        scores = [own.scores[0] for own in meaning.labels if own.scores]
        expected = manifest.metrics["merged"][task]
        if infos[task].target == "multiclass":
            counts = [own.positives.test for own in meaning.labels if own.positives]
            assert meaning.counted == "nodes"
            right = sum(score.value * count for score, count in zip(scores, counts, strict=True))
            assert right / sum(counts) == pytest.approx(expected, abs=1e-4)
        else:
            assert meaning.counted == "graphs"
            average = sum(score.value for score in scores) / len(scores)
            assert average == pytest.approx(expected, rel=1e-3)


def test_released_artifact_answers_as_what_was_measured(small: Run, tmp_path: Path) -> None:
    manifest = release(small, tmp_path / "artifact")
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
    result = merge_result(small)
    for task in small.tasks:
        data, raw = small.dataset(task), read_graphs(tmp_path / f"{task}.npz").graphs
        assert isinstance(data, AnswerTask)
        network, head = GRAPHS.load_model(
            small.config.network, result.backbone, heads(small)[task], data
        )
        unencoded = replace(data, graphs=raw, encoder=None)
        every = torch.arange(len(raw))
        served = artifact.model(unencoded.batch(every), [task])
        expected = GRAPHS.outputs(network, head, data.batch(every), data.info, training=False)
        torch.testing.assert_close(served.logits[task], expected, atol=1e-5, rtol=1e-5)

        def answered(batch: GraphBatch, task: str = task) -> torch.Tensor:
            return artifact.model(batch, [task]).logits[task]  # type: ignore[no-any-return]

        answers = GRAPHS.predict(answered, unencoded.steps("test", 256), torch.device("cpu"))
        value, *_ = GRAPHS.metrics(*answers, data.info).values()  # the main one first
        assert value == pytest.approx(manifest.metrics["merged"][task], abs=1e-4)
    assert manifest.metrics["separate"] == measured(small, "finetuned")
    card = (tmp_path / "artifact/README.md").read_text()
    assert all(f"`{task}`" in card for task in manifest.tasks)
    assert set(manifest.provenance["data_sha256"]["wide"]) == {"wide.npz"}


@pytest.mark.parametrize("alignment", [None, {"rank": 8, "epochs": 3}], ids=["plain", "adapters"])
def test_link_prediction_is_released_as_it_was_measured(
    alignment: dict[str, int] | None, small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = write_rule(tmp_path / "rule.npz", "node", "multiclass", seed=3)
    changes = {"tasks": {"classes": rule, "links": LINKS}, "encoder": "none"}
    run = varied(small, **changes, alignment=alignment)
    (graph, *_), spec = read_graphs(tmp_path / "rule.npz").graphs, LinkSpec.model_validate(LINKS)
    nodes = torch.arange(graph.num_nodes)
    subject = torch.zeros(graph.num_nodes, dtype=torch.int64)
    parts = Split(nodes[:4], nodes[4:6], nodes[6:])
    cora = NodeDataset("cora", graph.x, graph.edge_index, subject, ("a",), parts)
    monkeypatch.setattr(graphs, "load_planetoid", lambda name, folder: cora)
    manifest = release(run, tmp_path / "artifact")
    info = manifest.tasks["links"]
    assert (info.level, info.head_dim) == ("pair", 6)
    assert manifest.input.tasks_on_pairs == ("links",)
    artifact, data = load_artifact(tmp_path / "artifact"), link_task(spec, cora, run.seed)
    (step,) = data.steps("test", 1)
    scores = GRAPHS.metrics(
        artifact.model(step.batch, ["links"]).logits["links"], step.labels, info
    )
    kept = manifest.metrics
    expected = kept["test"]["links"]["roc_auc"] if alignment else kept["merged"]["links"]
    assert scores["roc_auc"] == pytest.approx(expected, abs=1e-4)


def test_a_merger_of_several_networks_is_refused(small: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="emr"):
        release(varied(small, merge={"method": "emr"}), tmp_path / "artifact")


def test_finished_results_are_found_again(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, both = (
        trained_model(small, teacher(small, "classes")),
        trained_model(small, joint(small)),
    )
    average = merge_result(small)
    monkeypatch.setattr(stages, "train", None)
    monkeypatch.setattr(stages, "merge", None)
    fresh = replace(small, _datasets={})
    again = trained_model(fresh, teacher(fresh, "classes"))
    assert all(torch.equal(value, again.network[key]) for key, value in first.network.items())
    assert torch.equal(again.heads["classes"]["weight"], first.heads["classes"]["weight"])
    assert again.record == first.record
    assert trained_model(small, joint(small)).heads.keys() == both.heads.keys() == set(small.tasks)
    found = merge_result(small).backbone
    assert all(torch.equal(value, found[key]) for key, value in average.backbone.items())
    for changes in ({"training": {"epochs": 1}}, {"encoder": "none"}):
        other = varied(small, **changes)
        with pytest.raises(TypeError):  # other settings make other results
            trained_model(other, teacher(other, "classes"))


def test_weight_average_is_the_mean_of_the_separate_networks(small: Run) -> None:
    networks = [trained_model(small, teacher(small, task)).network for task in small.tasks]
    for key, value in merge_result(small).backbone.items():
        torch.testing.assert_close(value, torch.stack([own[key] for own in networks]).mean(0))


def test_one_task_merges_to_itself(small: Run) -> None:
    alone = varied(small, tasks={"classes": small.config.tasks["classes"].model_dump()})
    for method in ("weight_average", "gnnmerge_pp"):
        run = varied(alone, merge=MergeConfig(method=method).model_dump())
        assert measured(run, "merged") == pytest.approx(measured(run, "finetuned"), abs=1e-4)


def test_heads_follow_reordered_units(small: Run) -> None:
    """Git Re-Basin permutes the second model's units into the order of the first, its head's
    columns too."""
    run = varied(small, merge={"method": "git_rebasin"}, initialisation="different")
    own = {task: trained_model(run, teacher(run, task)).heads[task]["weight"] for task in run.tasks}
    merged = merge_result(run).heads
    assert torch.equal(merged["classes"]["weight"], own["classes"])
    for task in ("numbers", "wide"):
        weight = merged[task]["weight"]
        assert not torch.equal(weight, own[task])
        assert torch.equal(weight.sort(1).values, own[task].sort(1).values)


def test_initialisation_is_shared_or_not(small: Run) -> None:
    assert {small.config.initial_seed(task, small.seed) for task in small.tasks} == {0}
    different = varied(small, initialisation="different")
    seeds = {different.config.initial_seed(task, small.seed) for task in small.tasks}
    assert len(seeds) == len(small.tasks)
    first, second = (
        trained_model(run, teacher(run, "classes")).network["gnns.0.lin_l.weight"]
        for run in (different, small)
    )
    assert not torch.equal(first, second)


def test_comparison_summarises_seeds(small: Run, tmp_path: Path) -> None:
    def build(run: Run) -> Any:
        return lambda stages, description: run.build(stages, description)

    runs = [small, replace(small, seed=1, _datasets={})]
    other = varied(small, setting="another")
    compare_settings([other], tmp_path / "results.json", build(other))
    for _ in range(2):  # the same setting again takes its own place
        content = compare_settings(runs, tmp_path / "results.json", build(small))
    assert json.loads((tmp_path / "results.json").read_text()) == content
    beside, setting = content["settings"]
    assert beside["setting"] == "another"
    assert setting["metric"] == {"classes": "accuracy", "numbers": "mae", "wide": "roc_auc"}
    expected = [measured(run, "finetuned")["numbers"] for run in runs]
    assert setting["scores"]["separate"]["numbers"]["values"] == expected
    assert setting["scores"]["separate"]["numbers"]["mean"] == pytest.approx(
        sum(expected) / 2, abs=1e-4
    )
    merged = {"weight_average", "message_calibration", "gnnmerge_pp"}
    assert setting["scores"].keys() == {"separate", "joint", *merged}
    assert setting["seconds"].keys() == setting["scores"].keys()
    assert "| pico | numbers | mae |" in comparison_table(content["settings"])
    assert beside["scores"]["joint"]["wide"]["std"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("add-task", "--artifact", "moleculenet-gcn", "--output", "b"),
            "'pyg_sage', expected one of molecules",
        ),
        (("train-adapters",), "which trains no adapters, expected one of molecules"),
        (("plan",), "expected one of molecules"),
        (("ablate",), "expected one of molecules"),
    ],
)
def test_commands_for_adapters_and_molecules_refuse_others(
    words: tuple[str, ...],
    said: str,
    small: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "graphs.yaml"
    path.write_text(json.dumps(small.config.model_dump(mode="json")))
    folders = ("--data", str(tmp_path), "--work", str(tmp_path / "work"))
    assert main([*words, "--config", str(path), *folders]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


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
    assert comparison_table(content["settings"]) in page("generic-graphs.md").read_text()
