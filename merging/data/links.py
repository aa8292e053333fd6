"""Link prediction on a citation graph: pairs of nodes, and their scores."""

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from merging.config.base import Count, Section
from merging.data.planetoid import NodeDataset, PlanetoidName
from merging.data.split import SUBSETS, Subset
from merging.data.task_data import GraphTask, Step
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph
from models.task import TaskInfo


class LinkSpec(Section):
    """Link prediction on Cora or Citeseer.

    Attributes:
        graph: name of the graph.
        dim: width of the linear head; the score of a pair is the dot product of its two outputs
            (`models.data.batch.pair_scores`).
        about: a line about the task.
    """

    kind: Literal["link"] = "link"
    graph: PlanetoidName
    dim: Count = 64
    about: str = ""


@dataclass(frozen=True, eq=False)
class LinkTask(GraphTask):
    """Link prediction on one graph, whose edges are the training links only.

    Attributes:
        links: by subset, (2, n) linked pairs, in one direction.
        others: by subset, as many pairs that are not linked; absent for training, where every epoch
            draws its own.
        known: (2, E), all links in both directions.
    """

    links: dict[Subset, Tensor]
    others: dict[Subset, Tensor]
    known: Tensor

    @property
    def outputs(self) -> int:
        """Width of the head."""
        assert self.info.head_dim is not None  # of every task on pairs
        return self.info.head_dim

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """Return the whole graph as one batch, of which mergers use all nodes."""
        return (self.whole,), ()

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """Return one step with all pairs of a subset; for training, pairs without a link are drawn
        by the call."""
        links = self.links[subset]
        others = (
            self.others[subset]
            if subset in self.others
            else unlinked(self.known, self.graphs[0].num_nodes, links.shape[1])
        )
        labels = torch.cat([torch.ones(links.shape[1]), torch.zeros(others.shape[1])]).unsqueeze(1)
        pairs = torch.cat([links, others], dim=1)
        return [Step(partial(replace, self.whole, pairs=pairs), labels)]


def unlinked(edge_index: Tensor, nodes: int, count: int) -> Tensor:
    """Draw different pairs of nodes without an edge from torch's generator: (2, count)."""
    from torch_geometric.utils import (
        negative_sampling,  # takes seconds to import, and is needed only here
    )

    state = random.getstate()
    # PyG draws from Python's generator, which torch's seed does not set.
    random.seed(int(torch.randint(2**31, ())))
    try:
        pairs: Tensor = negative_sampling(edge_index, nodes, 2 * count, force_undirected=True)
    finally:
        random.setstate(state)
    return pairs[:, : pairs.shape[1] // 2]


def link_task(spec: LinkSpec, dataset: NodeDataset, seed: int) -> LinkTask:
    """Split the links of a graph at random into 85 / 5 / 10 % for training, validation and test,
    with as many pairs without a link for the latter two."""
    nodes, generator = len(dataset.x), torch.Generator().manual_seed(seed)
    links = dataset.edge_index[:, dataset.edge_index[0] < dataset.edge_index[1]]
    links = links[:, torch.randperm(links.shape[1], generator=generator)]
    valid, test = round(0.05 * links.shape[1]), round(0.1 * links.shape[1])
    sizes = [links.shape[1] - valid - test, valid, test]
    by_subset = dict(zip(SUBSETS, links.split(sizes, dim=1), strict=True))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        drawn = unlinked(dataset.edge_index, nodes, valid + test)
    others: dict[Subset, Tensor] = {"valid": drawn[:, :valid], "test": drawn[:, valid:]}
    train = by_subset["train"]
    seen = FeatureGraph(dataset.x, torch.cat([train, train.flip(0)], dim=1))
    about = spec.about or f"links between nodes of {spec.graph}"
    info = TaskInfo(labels=("linked",), description=about, level="pair", head_dim=spec.dim)
    width, known = dataset.x.shape[1], dataset.edge_index
    return LinkTask((seen,), width, None, info, by_subset, others, known, sources=dataset.sources)
