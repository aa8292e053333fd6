"""Adapters on networks for graphs with numeric features: training, routings, one pass, release."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.data.graph_file import read_graphs, write_graphs
from merging.data.split import Split
from merging.data.task_data import AnswerTask
from merging.families.graphs import GraphConfig
from merging.release.release import release
from merging.run.models import adapted_model, expert, unified_model
from merging.run.one_pass import one_pass, pool, teacher_outputs
from merging.run.run import Run
from merging.run.scores import EVALUATIONS, evaluation
from merging.run.stages import adapters, finetuned_network, merged_network
from merging.studies.report import compare_settings
from models.artifact import load_artifact
from models.data.batch import GraphBatch
from models.errors import ConfigError
from models.experts.adapter import trace
from tests.merging.graph_files import make_config, ring_graphs, rule, write_rule

ALIGNMENT = {"rank": 6, "epochs": 25, "batch_size": 16, "learning_rate": 0.02}
ONE_PASS = {"rank": 8, "epochs": 3, "batch_size": 32}
CPU = torch.device("cpu")


@pytest.fixture
def small(tmp_path: Path) -> Run:
    """A run with adapters on three tasks, one per target, whose features have one width."""
    tasks = {
        target: write_rule(tmp_path / f"{target}.npz", "graph", target, seed=k)
        for k, target in enumerate(("multiclass", "multilabel", "regression"))
    }
    merge = {"method": "weight_average"}
    training = {"epochs": 6, "batch_size": 16, "learning_rate": 0.03, "patience": None}
    config = make_config(
        tasks, alignment=ALIGNMENT, one_pass=ONE_PASS, training=training, merge=merge
    )
    return Run(config, 0, tmp_path, tmp_path / "work")


def varied(run: Run, **changes: Any) -> Run:
    config = type(run.config).model_validate(run.config.model_dump() | changes)
    return replace(run, config=config, _datasets={})


def encoded(run: Run, **changes: Any) -> Run:
    """The run with a task more, whose features are wider and go through an encoder."""
    wide = write_rule(run.data / "wide.npz", "graph", "multilabel", features=9, seed=7)
    tasks = {**run.config.model_dump()["tasks"], "wide": wide}
    return varied(run, tasks=tasks, encoder="svd", **changes)


def distance(run: Run, task: str, corrected: bool) -> float:
    """The mean absolute difference of graph embeddings to those of the task's own network, on its
    test graphs, which no training has seen."""
    data, own = run.dataset(task), expert(run, task)
    batch = data.batch(data.split.test)
    with torch.no_grad():
        expected = trace(finetuned_network(run, task), batch).graph_embedding
        student = merged_network(run)
        found = own.adapters(student, batch) if corrected else trace(student, batch)
        return float((found.graph_embedding - expected).abs().mean())


def test_adapters_bring_the_merged_network_back_to_the_teachers(small: Run) -> None:
    for task in small.tasks:
        loss = small.result(adapters(small, task)).record["loss"]
        assert loss[-1] < 0.5 * loss[0]
        assert distance(small, task, True) < 0.5 * distance(small, task, False)


def test_every_routing_is_evaluated(small: Run) -> None:
    """A bank of one expert has nothing to mix: `moe` and `merged` are then `own`."""
    for name in ("adapted", "routed", "routed_merged", "one_pass", "one_pass_routed"):
        for task in small.tasks:
            record = small.result(evaluation(name, small, task)).record
            assert record["stored"].keys() == {"valid", "test"}
    alone = varied(small, tasks={"multiclass": small.config.tasks["multiclass"].model_dump()})
    found = [alone.result(evaluation(name, alone, "multiclass")).record for name in ROUTED]
    assert found[0] == found[1] == found[2]


ROUTED = ("adapted", "routed", "routed_merged")


def test_own_adapters_answer_alike_in_the_bank_and_alone(small: Run) -> None:
    model = unified_model(small)
    for task in small.tasks:
        data = small.dataset(task)
        batch = data.batch(data.split.test)
        together, alone = model(batch, [task], "own"), adapted_model(small, task)(batch, [task])
        torch.testing.assert_close(together.logits[task], alone.logits[task], atol=1e-5, rtol=1e-5)
        mixed = model(batch, [task], "moe").routing_weights[task]
        assert mixed.shape == (len(data.split.test), 3, 3)
        torch.testing.assert_close(mixed.sum(-1), torch.ones(mixed.shape[:2]))


def test_adapters_stand_behind_an_encoder(small: Run, tmp_path: Path) -> None:
    run = encoded(small, one_pass=None)
    assert run.result(evaluation("routed", run, "wide")).record["stored"]["test"]
    assert distance(run, "wide", True) < 0.5 * distance(run, "wide", False)
    manifest = release(run, tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    raw = read_graphs(tmp_path / "wide.npz").graphs
    data = run.dataset("wide")
    assert isinstance(data, AnswerTask)
    plain = replace(data, graphs=raw, encoder=None).batch(data.split.test)
    served = artifact.model(plain, ["wide"], "moe").logits["wide"]
    measured = unified_model(run)(data.batch(data.split.test), ["wide"], "moe").logits["wide"]
    scale = manifest.metrics["calibration"]["wide"]
    assert scale["ece_after"] >= 0
    ratio = (served / measured).mean(0)  # the temperature of every label
    torch.testing.assert_close(served, measured * ratio, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["adapters", "one-pass"])
def test_released_artifact_answers_as_what_was_measured(
    method: str, small: Run, tmp_path: Path
) -> None:
    run = varied(small, method=method)
    manifest = release(run, tmp_path / "artifact")
    assert manifest.rank == (6 if method == "adapters" else 0)
    model = load_artifact(tmp_path / "artifact").model
    way = {"adapters": "adapted", "one-pass": "one_pass"}[method]
    for task in run.tasks:
        data = run.dataset(task)

        def answered(batch: GraphBatch, task: str = task) -> torch.Tensor:
            return model(batch, [task]).logits[task]  # type: ignore[no-any-return]

        answers = run.family.predict(answered, data.steps("test", 256), CPU)
        name, value = next(iter(run.family.metrics(*answers, data.info).items()))
        expected = run.result(evaluation(way, run, task)).record["stored"]["test"][name]
        assert value == pytest.approx(expected, abs=1e-4)
    card = (tmp_path / "artifact/README.md").read_text()
    assert ("adapters of rank 6 at 3 sites" if method == "adapters" else "one pass") in card
    assert "BatchNorm" not in card
    assert "unlabelled molecules" not in card


# --- the pool of one pass ---


def test_pool_has_every_graph_once_and_no_test_graph(small: Run) -> None:
    """A task with the graphs of another, in other subsets and with nodes in another order."""
    graphs = [relabelled(graph) for graph in ring_graphs(seed=0)]
    rows = torch.arange(len(graphs))
    split = Split(rows[20:], rows[:10], rows[10:20])
    path = small.data / "again.npz"
    write_graphs(path, graphs, rule(graphs, "graph", "multiclass"), split)
    first = small.config.tasks["multiclass"].model_dump()
    run = varied(small, tasks={"multiclass": first, "again": {**first, "file": path.name}})
    record = run.result(pool(run)).record
    kept = set(run.dataset("multiclass").split.train.tolist()) | set(split.train.tolist())
    kept -= {*run.dataset("multiclass").split.test.tolist(), *split.test.tolist()}
    assert record["graphs"] == len(kept)
    assert record["drawn"] == {"multiclass": 64, "again": 60}
    assert record["left_out"] + record["repeated"] == 124 - len(kept)


def relabelled(graph: Any) -> Any:
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    return type(graph)(graph.x[order], place[graph.edge_index])


def test_every_teacher_is_asked_for_the_whole_pool(small: Run) -> None:
    size = small.result(pool(small)).record["graphs"]
    for task in small.tasks:
        outputs = small.result(teacher_outputs(small, task)).tensors["outputs"]
        assert outputs.shape == (size, small.dataset(task).outputs)
    loss = small.result(one_pass(small)).record["loss"]
    assert loss[-1] < loss[0]


def test_a_release_teaches_one_pass(small: Run, tmp_path: Path) -> None:
    release(small, tmp_path / "artifact")
    section = ONE_PASS | {"teachers": {"artifact": str(tmp_path / "artifact")}}
    run = varied(small, one_pass=section)
    for name in ("one_pass_teachers", "one_pass_start", "one_pass"):
        assert name in EVALUATIONS
        assert run.result(evaluation(name, run, "regression")).record["stored"]["test"]["mae"] > 0


def test_one_pass_needs_graphs_that_all_teachers_take(small: Run) -> None:
    with pytest.raises(ConfigError, match="an encoder of the features of wide, expected features"):
        pool(encoded(small))
    nodes = write_rule(small.data / "nodes.npz", "node", "multiclass")
    run = varied(small, tasks={"nodes": nodes})
    with pytest.raises(ConfigError, match="got nodes, which is on nodes, expected tasks on graphs"):
        pool(run)


# --- nodes, other mergers, settings ---


def test_adapters_of_a_task_on_nodes_align_its_nodes(small: Run) -> None:
    """The head reads nodes, so that the graph adapter has nothing to do."""
    tasks = {
        target: write_rule(small.data / f"{target}-nodes.npz", "node", target, seed=k)
        for k, target in enumerate(("multiclass", "regression"))
    }
    run = varied(small, tasks=tasks, one_pass=None)
    for task in tasks:
        data, own = run.dataset(task), expert(run, task)
        assert not own.graph_adapter.is_active
        batch = data.batch(data.training_graphs())
        with torch.no_grad():
            expected = trace(finetuned_network(run, task), batch).convolutions[-1]
            before = trace(merged_network(run), batch).convolutions[-1]
            after = own.adapters(merged_network(run), batch).convolutions[-1]
        assert float((after - expected).abs().mean()) < 0.5 * float(
            (before - expected).abs().mean()
        )
        assert run.result(evaluation("routed", run, task)).record["stored"]["test"]


def test_a_merger_that_reorders_units_is_refused(small: Run) -> None:
    run = varied(small, merge={"method": "git_rebasin"}, initialisation="different")
    with pytest.raises(ConfigError, match="git_rebasin', which reorders hidden units"):
        run.result(adapters(run, "multilabel"))
    plain = varied(run, alignment=None, one_pass=None)
    assert plain.result(evaluation("merged", plain, "multilabel")).record["stored"]
    with pytest.raises(ConfigError, match="git_rebasin', which reorders hidden units"):
        run.result(adapters(run, "multilabel"))


def test_comparison_has_adapters_and_one_pass(small: Run, tmp_path: Path) -> None:
    def build(stages: Any, description: str, more: bool = False) -> None:
        small.build(stages, description)

    content = compare_settings([small], tmp_path / "results.json", build)
    scores = content["settings"][0]["scores"]
    assert {"gmerging_own", "gmerging_moe", "one_pass", "residual"} <= scores.keys()
    numbers = content["settings"][0]["numbers_per_task"]
    assert numbers["gmerging_own"] == sum(
        site.up.numel() + site.down.numel() for site in expert(small, "regression").adapters.sites
    )
    assert numbers["residual"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alignment_by_task": {"other": {}}}, r"got names \['other'\]"),
        ({"alignment_by_task": {"regression": {"rank": 7}}}, r"got ranks \[6, 7\]"),
        ({"alignment": None, "alignment_by_task": {"regression": {}}}, "without `alignment`"),
        ({"one_pass": None, "method": "one-pass"}, "got no section `one_pass`"),
        ({"one_pass": {"pool": {"files": ["zinc.smi"]}}}, "which are files of molecules"),
        ({"one_pass": {"task_weights": {"other": 2}}}, r"got names \['other'\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], said: str, small: Run
) -> None:
    with pytest.raises(ValueError, match=said):
        GraphConfig.model_validate(small.config.model_dump() | changes)


def test_settings_by_task_name_the_differences(small: Run) -> None:
    values = small.config.model_dump() | {"alignment_by_task": {"regression": {"epochs": 2}}}
    config = GraphConfig.model_validate(values)
    assert config.alignment_for("regression").epochs == 2
    assert config.alignment_for("regression").rank == config.rank == 6
    assert config.alignment_for("multiclass") == config.alignment
