from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging.config.training import GraphTrainingConfig
from merging.data.links import LinkTask, unlinked
from merging.data.split import Split, Subset
from merging.data.task_data import AnswerTask
from merging.families.graphs import GRAPHS, GraphConfig
from merging.family import Folders
from merging.targets.losses import LabelScale, compute_loss
from merging.targets.metrics import compute_metrics
from merging.training.supervised import (
    MultitaskModel,
    TrainedModel,
    initial_model,
    label_scale,
    train,
)
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.task import METRICS, Target, TaskInfo
from tests.merging.graph_files import NETWORK, TRAINING, make_config, write_rule

SHAPE = GraphNetworkConfig.model_validate(NETWORK)
KINDS = [
    (level, target)
    for level in ("graph", "node")
    for target in ("multilabel", "multiclass", "regression")
]


def make_task(folder: Path, level: str, target: str, seed: int = 0) -> AnswerTask:
    written = write_rule(folder / f"{level}-{target}-{seed}.npz", level, target, seed=seed)
    loaded = GRAPHS.read(make_config({"a": written}), "a", Folders(folder, folder), 0)
    assert isinstance(loaded, AnswerTask)
    return loaded


def run(
    tasks: dict[str, Any],
    checkpoint: Path,
    seed: int = 0,
    shape: GraphNetworkConfig = SHAPE,
    **changes: Any,
) -> TrainedModel:
    settings = GraphTrainingConfig.model_validate(TRAINING | changes)
    config = GraphConfig.model_construct(network=shape)
    initial = GRAPHS.initial_state(config, seed, Folders(checkpoint.parent, checkpoint.parent))
    model = initial_model(GRAPHS, shape, tasks, initial, seed, settings.dropout)
    return train(model, settings, seed, checkpoint)


def evaluate(
    result: TrainedModel, name: str, task: Any, subset: Subset, shape: GraphNetworkConfig = SHAPE
) -> float:
    network, head = GRAPHS.load_model(shape, result.network, result.heads[name], task)

    def forward(batch: GraphBatch) -> Tensor:
        said: Tensor = GRAPHS.outputs(network, head, batch, task.info, training=False)
        return said

    answers = GRAPHS.predict(forward, task.steps(subset, 256), torch.device("cpu"))
    return GRAPHS.metrics(*answers, task.info)[task.info.main_metric]


def score(target: Target, labels: Tensor, outputs: Tensor) -> float:
    info = TaskInfo(labels=tuple(f"{k}" for k in range(outputs.shape[1])), target=target)
    return compute_metrics(outputs.numpy(), labels.numpy(), info)[METRICS[target][0]]


def constant_score(task: AnswerTask) -> float:
    """What the best answer without looking at a graph reaches on the test rows."""
    seen, labels = task.labels[task.split.train], task.labels[task.split.test]
    target = task.info.target
    if target == "multiclass":
        return float((labels[labels >= 0] == seen[seen >= 0].mode().values).double().mean())
    if target == "multilabel":
        return 0.5
    return score("regression", labels, seen.nanmedian(0).values.expand_as(labels))


@pytest.mark.parametrize(("level", "target"), KINDS)
def test_every_target_is_learnt(tmp_path: Path, level: str, target: str) -> None:
    task = make_task(tmp_path, level, target)
    result = run({"a": task}, tmp_path / "state.pt")
    reached, constant = (evaluate(result, "a", task, "test"), constant_score(task))
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
    assert evaluate(result, "a", task, "test", shape) > constant_score(task) + 0.2


def test_joint_training_learns_targets_of_all_kinds(tmp_path: Path) -> None:
    tasks = {
        f"{level}-{target}": make_task(tmp_path, level, target)
        for level, target in (("graph", "multiclass"), ("node", "regression"))
    }
    result = run(tasks, tmp_path / "state.pt")
    reached = {name: evaluate(result, name, task, "test") for name, task in tasks.items()}
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


def assert_same(one: TrainedModel, other: TrainedModel) -> None:
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
    assert evaluate(result, "a", task, "valid") == pytest.approx(max(history))


def test_units_of_a_regression_change_nothing_but_the_answers(tmp_path: Path) -> None:
    """Labels of 1000 y + 7 are learnt as y is, and answered in their own units."""
    task = make_task(tmp_path, "graph", "regression")
    scaled = AnswerTask(
        task.graphs, task.num_features, None, task.info, 1000 * task.labels + 7, task.split
    )
    plain, large = (
        run({"a": own}, tmp_path / f"{k}.pt", epochs=3) for k, own in enumerate((task, scaled))
    )
    torch.testing.assert_close(
        large.heads["a"]["weight"], 1000 * plain.heads["a"]["weight"], rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        large.heads["a"]["bias"], 1000 * plain.heads["a"]["bias"] + 7, rtol=1e-3, atol=1e-1
    )
    assert large.record["valid"] == pytest.approx(plain.record["valid"], rel=1e-3)


def test_scale_by_hand(tmp_path: Path) -> None:
    task = make_task(tmp_path, "graph", "regression")
    task.labels[task.split.train] = torch.nan
    task.labels[task.split.train[:2]] = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scale = LabelScale.fit(task.info, (step.labels for step in task.steps("train", 16)))
    assert scale.mean.tolist() == [2, 5]
    assert scale.deviation.tolist() == [1, 1]  # a constant label is not divided by zero


def test_only_a_regression_has_a_scale(tmp_path: Path) -> None:
    assert label_scale(make_task(tmp_path, "graph", "regression"))
    assert label_scale(make_task(tmp_path, "graph", "multilabel")) is None


def test_losses_by_hand() -> None:
    nan = torch.nan

    def known_loss(target: Target, outputs: Tensor, labels: Tensor) -> Tensor:
        return compute_loss(outputs, labels, TaskInfo(labels=("a", "b"), target=target))

    numbers = known_loss(
        "regression", torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[3.0, nan], [nan, 1.0]])
    )
    assert float(numbers) == pytest.approx((4 + 1) / 2)
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert float(known_loss("multiclass", logits, torch.tensor([0, -1]))) == pytest.approx(
        float(torch.log1p(torch.exp(torch.tensor(-2.0))))
    )
    unknown: tuple[tuple[Target, Tensor], ...] = (
        ("multiclass", torch.tensor([-1, -1])),
        ("regression", torch.full((2, 2), nan)),
        ("multilabel", torch.full((2, 2), nan)),
    )
    for target, labels in unknown:
        assert float(known_loss(target, logits, labels)) == 0


def test_scores_by_hand() -> None:
    nan = torch.nan
    assert score(
        "multiclass", torch.tensor([0, 1, -1, 1]), torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    ) == pytest.approx(2 / 3)
    assert score(
        "regression", torch.tensor([[0.0, nan], [2.0, 4.0]]), torch.tensor([[1.0, 9.0], [2.0, 1.0]])
    ) == pytest.approx((0.5 + 3) / 2)
    assert score(
        "multilabel",
        torch.tensor([[0.0], [1.0], [nan], [1.0]]),
        torch.tensor([[0.0], [1.0], [9.0], [-1.0]]),
    ) == pytest.approx(0.5)


LINKED = TaskInfo(labels=("linked",), level="pair", head_dim=8)


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
    drawn = {"valid": others[:, :20], "test": others[:, 20:60]}
    return LinkTask((graph,), 4, None, LINKED, parts, drawn, known)  # type: ignore[arg-type]


def test_links_are_learnt(tmp_path: Path) -> None:
    task = two_blocks()
    result = run({"a": task}, tmp_path / "state.pt")
    # of pairs within a group half are linked
    assert evaluate(result, "a", task, "test") > 0.7


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
    info = TaskInfo(labels=("a", "b"), level="node")
    rows = torch.arange(3)
    task = AnswerTask((graph,), 4, None, info, torch.ones(3, 2), Split(rows, rows, rows))
    batch = task.calibration(1, 1, 0)[0][0]
    whole = replace(task, info=info.model_copy(update={"level": "graph"}))
    model = MultitaskModel(GRAPHS, SHAPE, {"nodes": task, "graphs": whole}).eval()
    model.head("graphs").load_state_dict(model.head("nodes").state_dict())
    nodes = model(batch, "nodes")
    assert nodes.shape == (3, 2)
    torch.testing.assert_close(model(batch, "graphs"), nodes.mean(0, keepdim=True))


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
    around = FeatureGraph(graph.x[near], numbers[inside])
    torch.manual_seed(0)
    network = GraphNetwork(shape).eval()
    torch.testing.assert_close(
        network(collate_features([around]))[numbers[7]], network(collate_features([graph]))[7]
    )
