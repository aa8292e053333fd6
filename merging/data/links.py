"""Which nodes of a citation graph are linked: pairs, and their scores."""

import random
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from merging.config.base import Count, Section
from merging.data.planetoid import (
    NodeDataset,
    PlanetoidName,
)
from merging.data.task_data import SUBSETS, GraphTask, Step, Subset
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph
from models.task import TaskInfo


class LinkSpec(Section):
    """Which nodes of Cora or Citeseer are linked. It can be trained, merged and measured, but no
    artifact answers it.

    Attributes:
        graph: which.
        dim: width of the linear head; a pair's score is the dot product of its two outputs (Kipf
            and Welling 2016, arXiv:1611.07308).
    """

    kind: Literal["link"] = "link"
    graph: PlanetoidName
    dim: Count = 64
    about: str = ""


@dataclass(frozen=True, eq=False)
class LinkTask(GraphTask):
    """Which nodes of one graph are linked. The graph that is seen has the training links only.

    Attributes:
        outputs: width of the head.
        links: by subset, (2, n) pairs that are linked, each once.
        others: by subset, as many pairs that are not; for training None, since each epoch draws its
            own.
        known: (2, E) all links in both directions, which no drawn pair may be.
    """

    outputs: int
    links: dict[Subset, Tensor]
    others: dict[Subset, Tensor]
    known: Tensor

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """What a merger may see: the graph, and all of its nodes count."""
        return (self.whole,), ()

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """All pairs of a subset in one step; those without a link are drawn anew for training."""
        links = self.links[subset]
        others = (
            self.others[subset]
            if subset in self.others
            else unlinked(self.known, self.graphs[0].num_nodes, links.shape[1])
        )
        labels = torch.cat([torch.ones(links.shape[1]), torch.zeros(others.shape[1])]).unsqueeze(1)
        pairs = torch.cat([links, others], dim=1)
        return [Step(lambda: self.whole, labels, partial(_pair_scores, pairs))]


def _pair_scores(pairs: Tensor, outputs: Tensor) -> Tensor:
    """Dot products: pairs (2, n), outputs (N, D) -> (n, 1)."""
    return (outputs[pairs[0]] * outputs[pairs[1]]).sum(-1, keepdim=True)


def unlinked(edge_index: Tensor, nodes: int, count: int) -> Tensor:
    """(2, count) pairs of nodes without an edge, each once, drawn from torch's generator."""
    from torch_geometric.utils import (
        negative_sampling,  # takes seconds to import, and is needed only here
    )

    state = random.getstate()
    # PyG draws from Python's own generator, which no seed of ours reaches
    random.seed(int(torch.randint(2**31, ())))
    try:
        pairs: Tensor = negative_sampling(edge_index, nodes, 2 * count, force_undirected=True)
    finally:
        random.setstate(state)
    return pairs[:, : pairs.shape[1] // 2]


def link_task(spec: LinkSpec, dataset: NodeDataset, seed: int) -> LinkTask:
    """The links of a graph, 85 / 5 / 10 % of them to train, validate and test, by the seed."""
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
    info = TaskInfo(labels=("linked",), description=about, level="node")
    width = dataset.x.shape[1]
    return LinkTask(
        (seen,),
        width,
        None,
        info,
        spec.dim,
        by_subset,
        others,
        dataset.edge_index,
        sources=dataset.sources,
    )
