"""Links of a graph: pairs that are none, and their split."""

import random

import pytest
import torch
from torch import Tensor

from merging.data.links import LinkSpec, link_task, unlinked
from merging.data.planetoid import NodeDataset
from merging.data.split import Split

NODES = 30


def dataset() -> NodeDataset:
    """A graph of 30 nodes with about 90 links, both directions, sorted."""
    above = torch.triu(
        torch.rand(NODES, NODES, generator=torch.Generator().manual_seed(0)) < 0.2, diagonal=1
    )
    rows = torch.arange(NODES)
    return NodeDataset(
        "cora",
        torch.eye(NODES),
        (above | above.T).nonzero().T,
        torch.zeros(NODES, dtype=torch.int64),
        ("class_0",),
        Split(rows[:10], rows[10:20], rows[20:]),
    )


def codes(pairs: Tensor) -> Tensor:
    return pairs.min(0).values * NODES + pairs.max(0).values


def test_unlinked_pairs_are_neither_linked_nor_loops_nor_repeated() -> None:
    edges = dataset().edge_index
    pairs = unlinked(edges, NODES, 100)
    assert pairs.shape == (2, 100)
    assert not torch.isin(codes(pairs), codes(edges)).any()
    assert (pairs[0] != pairs[1]).all()
    assert len(codes(pairs).unique()) == 100


def test_unlinked_pairs_follow_torchs_seed_and_leave_pythons_alone() -> None:
    edges = dataset().edge_index
    random.seed(5)
    expected = random.Random(5).random()
    torch.manual_seed(1)
    first = unlinked(edges, NODES, 20)
    assert random.random() == expected
    torch.manual_seed(1)
    assert torch.equal(unlinked(edges, NODES, 20), first)
    assert not torch.equal(unlinked(edges, NODES, 20), first)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_task_splits_the_links_by_its_seed_alone(seed: int) -> None:
    data, spec = dataset(), LinkSpec(graph="cora", dim=7)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    task = link_task(spec, data, seed)
    assert torch.equal(torch.get_rng_state(), before)
    total = data.edge_index.shape[1] // 2
    sizes = [task.links[name].shape[1] for name in ("train", "valid", "test")]
    assert sizes[1:] == [round(0.05 * total), round(0.1 * total)]
    assert sum(sizes) == total
    every = torch.cat([codes(task.links[name]) for name in ("train", "valid", "test")])
    assert torch.equal(every.sort().values, codes(data.edge_index).unique())
    assert task.outputs == 7
    assert set(task.others) == {"valid", "test"}
    again = link_task(spec, data, seed)
    assert torch.equal(again.others["test"], task.others["test"])
    other = link_task(spec, data, seed + 1)
    assert not torch.equal(other.links["test"], task.links["test"])


def test_the_graph_that_is_seen_has_training_links_only() -> None:
    task = link_task(LinkSpec(graph="cora"), dataset(), 0)
    (graph,) = task.graphs
    assert torch.equal(codes(graph.edge_index).unique(), codes(task.links["train"]).sort().values)
    assert graph.edge_index.shape[1] == 2 * task.links["train"].shape[1]
    assert torch.equal(task.known, dataset().edge_index)


def test_a_step_has_the_pairs_whose_labels_it_has() -> None:
    """The links first, then as many pairs that are none."""
    task = link_task(LinkSpec(graph="cora", dim=7), dataset(), 0)
    assert (task.info.level, task.info.head_dim) == ("pair", 7)
    (step,) = task.steps("test", 1)
    assert step.batch.pairs is not None
    links, others = step.batch.pairs.chunk(2, dim=1)
    assert torch.equal(links, task.links["test"])
    assert torch.equal(others, task.others["test"])
    assert step.labels.flatten().tolist() == [1.0] * links.shape[1] + [0.0] * links.shape[1]
