from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging.data.links import LinkTask, unlinked
from merging.data.task_data import AnswerTask
from merging.families.graphs import load_task
from merging.graphs.evaluation import evaluate
from merging.graphs.training import TaskModel, TrainResult, fitted_model, initial_network, train
from merging.training.metrics import metrics
from merging.training.settings import GraphTrainingConfig
from models.data.feature_graph import FeatureGraph, collate_features
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from tests.merging.graph_files import NETWORK, TRAINING, make_config, write_rule

SHAPE = GraphNetworkConfig.model_validate(NETWORK)
KINDS = [
    (level, target)
    for level in ("graph", "node")
    for target in ("multilabel", "multiclass", "regression")
]


def make_task(folder: Path, level: str, target: str, seed: int = 0) -> AnswerTask:
    loaded = load_task(
        make_config(
            {"a": write_rule(folder / f"{level}-{target}-{seed}.npz", level, target, seed=seed)}
        ),
        "a",
        folder,
        0,
    )
    assert isinstance(loaded, AnswerTask)
    return loaded


def run(
    tasks: dict[str, Any],
    checkpoint: Path,
    seed: int = 0,
    shape: GraphNetworkConfig = SHAPE,
    **changes: Any,
) -> TrainResult:
    settings = GraphTrainingConfig.model_validate(TRAINING | changes)
    return train(tasks, initial_network(shape, seed), shape, settings, seed, checkpoint)


def constant_score(task: AnswerTask) -> float:
    """What the best answer without looking at a graph reaches on the test part."""
    train_labels, labels = task.labels[task.split.train], task.labels[task.split.test]
    if task.target == "multiclass":
        return float(
            (labels[labels >= 0] == train_labels[train_labels >= 0].mode().values).double().mean()
        )
    if task.target == "multilabel":
        return 0.5
    medians = train_labels.nanmedian(0).values.expand_as(labels)
    return metrics(medians.numpy(), labels.numpy(), task.info)["mae"]


@pytest.mark.parametrize(("level", "target"), KINDS)
def test_every_target_is_learnt(tmp_path: Path, level: str, target: str) -> None:
    task = make_task(tmp_path, level, target)
    result = run({"a": task}, tmp_path / "state.pt")
    reached, constant = (
        evaluate(fitted_model(result.network, SHAPE, result.heads["a"], task), task, "test"),
        constant_score(task),
    )
    if target == "regression":  # an error, in the units of the labels
        assert reached < 0.5 * constant
    else:
        assert reached > constant + 0.5 * (1 - constant)


@pytest.mark.parametrize("kind", ["pyg_gcn", "pyg_gin", "pyg_gat"])
def test_every_network_learns(tmp_path: Path, kind: str) -> None:
    task, shape = (
        make_task(tmp_path, "graph", "multiclass"),
        GraphNetworkConfig.model_validate(NETWORK | {"kind": kind}),
    )
    result = run({"a": task}, tmp_path / "state.pt", shape=shape)
    assert (
        evaluate(fitted_model(result.network, shape, result.heads["a"], task), task, "test")
        > constant_score(task) + 0.2
    )


def test_joint_training_learns_targets_of_all_kinds(tmp_path: Path) -> None:
    tasks = {
        f"{level}-{target}": make_task(tmp_path, level, target)
        for level, target in (("graph", "multiclass"), ("node", "regression"))
    }
    result = run(tasks, tmp_path / "state.pt")
    reached = {
        name: evaluate(fitted_model(result.network, SHAPE, result.heads[name], task), task, "test")
        for name, task in tasks.items()
    }
    assert reached["graph-multiclass"] > constant_score(tasks["graph-multiclass"]) + 0.2
    assert reached["node-regression"] < 0.5 * constant_score(tasks["node-regression"])


def test_stopped_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    tasks = {
        "a": make_task(tmp_path, "graph", "multiclass"),
        "b": make_task(tmp_path, "node", "regression"),
    }
    whole = run(tasks, tmp_path / "whole.pt", epochs=4, dropout=0.3)
    run(tasks, tmp_path / "parts.pt", epochs=2, dropout=0.3)
    parts = run(tasks, tmp_path / "parts.pt", epochs=4, dropout=0.3)
    assert parts.record["valid"] == whole.record["valid"]
    assert_same(parts, whole)


def assert_same(one: TrainResult, other: TrainResult) -> None:
    assert all(torch.equal(value, other.network[key]) for key, value in one.network.items())
    assert all(
        torch.equal(value, other.heads[task][key])
        for task, head in one.heads.items()
        for key, value in head.items()
    )


def test_seed_decides(tmp_path: Path) -> None:
    tasks = {"a": make_task(tmp_path, "node", "multiclass")}
    first, again, other = (
        run(tasks, tmp_path / f"{k}.pt", seed=seed, epochs=2) for k, seed in enumerate((0, 0, 1))
    )
    assert_same(first, again)
    assert not torch.equal(first.heads["a"]["weight"], other.heads["a"]["weight"])


def test_ends_when_nothing_gets_better_and_keeps_the_best(tmp_path: Path) -> None:
    task = make_task(tmp_path, "graph", "multiclass")
    result = run({"a": task}, tmp_path / "state.pt", epochs=40, patience=3)
    history, best = result.record["valid"], result.record["best_epoch"]
    assert len(history) == best + 3 < 40
    assert best == history.index(max(history)) + 1
    assert evaluate(
        fitted_model(result.network, SHAPE, result.heads["a"], task), task, "valid"
    ) == pytest.approx(max(history))


def test_units_of_a_regression_change_nothing_but_the_answers(tmp_path: Path) -> None:
    """Labels of 1000 y + 7 are learnt as y is, and answered in their own units."""
    task = make_task(tmp_path, "graph", "regression")
    scaled = AnswerTask(
        task.graphs, task.num_features, None, task.info, 1000 * task.labels + 7, task.split
    )
    plain, large = (
        run({"a": each}, tmp_path / f"{k}.pt", epochs=3) for k, each in enumerate((task, scaled))
    )
    torch.testing.assert_close(
        large.heads["a"]["weight"], 1000 * plain.heads["a"]["weight"], rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        large.heads["a"]["bias"], 1000 * plain.heads["a"]["bias"] + 7, rtol=1e-3, atol=1e-1
    )
    assert large.record["valid"] == pytest.approx(plain.record["valid"], rel=1e-3)


def two_blocks(size: int = 30) -> LinkTask:
    """Two groups of nodes, linked inside at random; the features tell the groups apart."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(2 * size) // size
    pairs = torch.combinations(torch.arange(2 * size)).T
    linked = (group[pairs[0]] == group[pairs[1]]) & (
        torch.rand(pairs.shape[1], generator=generator) < 0.3
    )
    links = pairs[:, linked][:, torch.randperm(int(linked.sum()), generator=generator)]
    known = torch.cat([links, links.flip(0)], dim=1)
    test, train_links = links[:, :40], links[:, 40:]
    torch.manual_seed(0)
    others = unlinked(known, 2 * size, 80)
    x = torch.nn.functional.one_hot(group, 4).float() + 0.3 * torch.randn(
        2 * size, 4, generator=generator
    )
    graph = FeatureGraph(x, torch.cat([train_links, train_links.flip(0)], dim=1))
    parts = {"train": train_links, "valid": test[:, :20], "test": test[:, 20:]}
    return LinkTask(
        (graph,), 4, None, 8, parts, {"valid": others[:, :20], "test": others[:, 20:60]}, known
    )  # type: ignore[arg-type]


def test_links_are_learnt(tmp_path: Path) -> None:
    task = two_blocks()
    result = run({"a": task}, tmp_path / "state.pt")
    # of pairs within a group half are linked
    assert (
        evaluate(fitted_model(result.network, SHAPE, result.heads["a"], task), task, "test") > 0.7
    )


def test_pairs_without_a_link_are_drawn_anew_from_our_own_seed() -> None:
    task = two_blocks()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return unlinked(task.known, 60, 50)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    codes, known = drawn(0)[0] * 60 + drawn(0)[1], task.known[0] * 60 + task.known[1]
    assert not torch.isin(codes, known).any()


def test_a_model_is_its_network_and_its_head() -> None:
    torch.manual_seed(0)
    graph = FeatureGraph(torch.randn(3, 4), torch.tensor([[0, 1], [1, 0]]))
    task = LinkTask((graph,), 4, None, 2, {}, {}, graph.edge_index)
    batch = task.calibration(1, 1)[0][0]
    network = GraphNetwork(SHAPE).eval()
    nodes, graphs = TaskModel(network, "node", 2), TaskModel(network, "graph", 2)
    graphs.head.load_state_dict(nodes.head.state_dict())
    torch.testing.assert_close(graphs(batch), nodes(batch).mean(0, keepdim=True))


@pytest.mark.parametrize("kind", ["pyg_gcn", "pyg_sage", "pyg_gin", "pyg_gat"])
def test_nodes_within_one_link_more_than_layers_decide_an_answer(kind: str) -> None:
    """What the page says of asking about one node of a graph that is too large for a request."""
    shape = GraphNetworkConfig.model_validate(NETWORK | {"kind": kind})
    generator = torch.Generator().manual_seed(0)
    pairs = torch.combinations(torch.arange(60)).T
    links = pairs[:, torch.rand(pairs.shape[1], generator=generator) < 0.03]
    graph = FeatureGraph(
        torch.randn(60, 4, generator=generator), torch.cat([links, links.flip(0)], dim=1)
    )
    near = torch.zeros(60, dtype=torch.bool).index_fill(0, torch.tensor(7), True)
    for _ in range(shape.num_layers + 1):
        near[graph.edge_index[1][near[graph.edge_index[0]]]] = True
    assert 5 < int(near.sum()) < 55
    numbers = near.cumsum(0) - 1
    inside = graph.edge_index[:, near[graph.edge_index].all(0)]
    part = FeatureGraph(graph.x[near], numbers[inside])
    torch.manual_seed(0)
    network = GraphNetwork(shape).eval()
    torch.testing.assert_close(
        network(collate_features([part]))[numbers[7]], network(collate_features([graph]))[7]
    )
