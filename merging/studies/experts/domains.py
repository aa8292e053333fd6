"""Data sets as domains of one mixture of experts: graphs with node features of one width, and
labels that only the probe reads."""

from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from merging.data.encoders import atom_features, svd_features, unit_mean_square
from merging.data.molecule_dataset import MOLECULENET, load_dataset
from merging.data.planetoid import CLASS_NAMES, PlanetoidName, load_planetoid
from merging.data.split import Split
from merging.studies.experts.config import ExpertsConfig
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.ops.segment import segment_count


@dataclass(frozen=True)
class Domain:
    """A data set as a domain.

    Attributes:
        name: of the data set.
        graphs: the training molecules, or the pieces of a large graph: for the training of the
            expert and for competence, without labels.
        evaluated: all molecules, or the whole graph, as one batch: for the probe.
        labels: (N,) int64, the classes of nodes, -1 where unknown; or (G, C) float32, the labels of
            molecules, 0, 1 or NaN.
        split: row numbers of `labels`.
    """

    name: str
    graphs: tuple[FeatureGraph, ...]
    evaluated: GraphBatch
    labels: Tensor
    split: Split

    @property
    def has_node_labels(self) -> bool:
        """Whether labels are classes of nodes; otherwise they are labels of graphs."""
        return self.labels.dim() == 1


def load_domain(name: str, config: ExpertsConfig, data: Path, cache: Path) -> Domain:
    """Read a domain from the data folder; it does not depend on the seed of a run.

    Args:
        name: of the data set.
        config: width of the features, and sizes.
        data: the data folder.
        cache: folder in which featurised molecules are kept.

    Raises:
        DataError: the data are absent, or do not have the published form.
    """
    for citation in CLASS_NAMES:
        if name == citation:
            return _citation(citation, config, data)
    return _molecules(name, config, data, cache)


def _citation(name: PlanetoidName, config: ExpertsConfig, data: Path) -> Domain:
    dataset = load_planetoid(name, data)
    whole = FeatureGraph(
        unit_mean_square(svd_features(dataset.x, config.network.in_dim)), dataset.edge_index
    )
    return Domain(
        name,
        tuple(pieces(whole, config.piece_nodes)),
        collate_features([whole]),
        dataset.labels,
        dataset.split,
    )


def _molecules(name: str, config: ExpertsConfig, data: Path, cache: Path) -> Domain:
    dataset = load_dataset(name, MOLECULENET[name], data, cache)
    train = dataset.split.train
    train = train[
        torch.linspace(0, len(train) - 1, min(len(train), config.max_train_graphs)).long()
    ]
    sizes = [len(train), len(dataset.split.valid), len(dataset.split.test)]
    rows = torch.cat([train, dataset.split.valid, dataset.split.test])
    batch = dataset.graphs.select(rows)
    x = unit_mean_square(atom_features(batch.x, config.network.in_dim))
    evaluated = GraphBatch(x, batch.edge_index, batch.edge_attr, batch.batch, batch.num_graphs)
    return Domain(
        name,
        graphs_of(evaluated)[: len(train)],
        evaluated,
        dataset.labels[rows],
        Split(*torch.arange(len(rows)).split(sizes)),
    )


def graphs_of(batch: GraphBatch) -> tuple[FeatureGraph, ...]:
    """Split a batch into its graphs: the inverse of `collate_features`."""
    nodes = batch.x.split(segment_count(batch.batch, batch.num_graphs).tolist())
    edges = batch.edge_index.split(
        segment_count(batch.batch[batch.edge_index[0]], batch.num_graphs).tolist(), 1
    )
    offsets = [0, *accumulate(len(x) for x in nodes)]
    return tuple(
        FeatureGraph(x, edge_index - offset)
        for x, edge_index, offset in zip(nodes, edges, offsets, strict=False)
    )


def pieces(graph: FeatureGraph, size: int) -> list[FeatureGraph]:
    """Cut a graph into pieces of at most `size` nodes, grown breadth first from the first remaining
    node; small components share a piece.

    Edges between pieces are lost: with pieces of 256 nodes Cora keeps 68 % and Citeseer 79 % of its
    edges.
    """
    owner = torch.from_numpy(_grow(graph, size))
    inside = owner[graph.edge_index[0]] == owner[graph.edge_index[1]]
    kept, position = graph.edge_index[:, inside], torch.empty_like(owner)
    found = []
    for piece in range(int(owner.max()) + 1):
        nodes = (owner == piece).nonzero().flatten()
        position[nodes] = torch.arange(len(nodes))
        found.append(FeatureGraph(graph.x[nodes], position[kept[:, owner[kept[0]] == piece]]))
    return found


def _grow(graph: FeatureGraph, size: int) -> NDArray[np.int64]:
    """(N,), the number of the piece of every node."""
    source, target = graph.edge_index.numpy()
    neighbours = csr_matrix(
        (np.ones(len(source)), (source, target)), shape=(graph.num_nodes, graph.num_nodes)
    )
    owner, piece, filled = np.full(graph.num_nodes, -1, dtype=np.int64), 0, 0
    for start in range(graph.num_nodes):
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if owner[node] >= 0:
                continue
            # The rest of this component starts the next piece when its turn comes.
            if filled == size:
                piece, filled = piece + 1, 0
                queue.clear()
            owner[node], filled = piece, filled + 1
            queue.extend(neighbours.indices[neighbours.indptr[node] : neighbours.indptr[node + 1]])
    return owner
