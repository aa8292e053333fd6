"""A task's data in the form that training, mergers and measuring know: steps of a batch of graphs, what is asked of the outputs, and labels."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from merging.graphs.config import FileSpec, GraphRunConfig, LinkSpec, PlanetoidSpec, TaskSpec
from merging.graphs.datasets import NodeDataset, load_planetoid
from merging.graphs.encoder import svd_encoder
from merging.graphs.npz import read_graphs
from merging.splits import Split, random_split
from models.errors import DataError
from models.graph import GraphBatch
from models.inputs import FeatureGraph, collate_features
from models.task import Level, Target, TaskInfo

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Step:
    """One batch with its question.

    Attributes:
        batch: G' graphs.
        select: from a head's outputs, (G', C) or (N, C) by the task's level, to logits.
        labels: of these logits: (n, C) float32 with NaN where missing, or (n,) int64 classes.
    """

    batch: GraphBatch
    select: Callable[[Tensor], Tensor]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class _Graphs:
    """What all tasks have in common.

    Attributes:
        graphs: G graphs, their features as wide as the network (encoded, if there is an encoder).
        num_features: F, before the encoder.
        encoder: the fixed one that has been applied; None if there is none.
    """

    graphs: tuple[FeatureGraph, ...]
    num_features: int
    encoder: nn.Linear | None

    @cached_property
    def _whole(self) -> GraphBatch:
        return collate_features(self.graphs)

    def batch(self, chosen: Tensor) -> GraphBatch:
        """The graphs with these numbers (G',), in that order."""
        if len(self.graphs) == 1:  # a large graph is not copied again in every epoch
            return self._whole
        return collate_features([self.graphs[k] for k in chosen.tolist()])

    def seen(self) -> Tensor:
        """Numbers of the graphs that training sees, without looking at labels: all, unless the task says otherwise."""
        return torch.arange(len(self.graphs))


@dataclass(frozen=True, eq=False)
class AnswerTask(_Graphs):
    """A task that answers graphs or nodes, and so can be served.

    Attributes:
        info: labels, level, target.
        labels: M rows, M = G or sum N by the level: (M, C) float32 with NaN where missing, or for `multiclass` (M,) int64, -1 where unknown.
        split: rows of the three parts.
        some_nodes: the task is about some nodes of its graph (a label split): a merger then sees its training nodes, and not the whole graph.
    """

    info: TaskInfo
    labels: Tensor
    split: Split
    some_nodes: bool = False

    @property
    def level(self) -> Level:
        """Of the answers."""
        return self.info.level

    @property
    def target(self) -> Target:
        """What the answers are."""
        return self.info.target

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return len(self.info.labels)

    def seen(self) -> Tensor:
        """Numbers of the graphs that have a training row."""
        owners: Tensor = self._owners[self.split.train].unique()
        return owners

    def steps(self, part: Part, batch_size: int, shuffle: bool = False) -> Iterator[Step]:
        """Every row of a part once, `batch_size` graphs at a time; the order of graphs is drawn from torch's generator if it is to be shuffled."""
        rows: Tensor = getattr(self.split, part)
        graphs = self._owners[rows].unique()
        graphs = graphs[torch.randperm(len(graphs))] if shuffle else graphs
        for chosen in graphs.split(batch_size):
            kept, positions = self._rows_inside(rows, chosen)
            yield Step(self.batch(chosen), partial(torch.index_select, dim=0, index=positions), self.labels[kept])

    def calibration(self, count: int, batch_size: int) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """What a merger may see, without labels: at most `count` graphs with training rows, and which nodes of each batch count, if not all."""
        graphs = self.seen()
        chosen = graphs[torch.linspace(0, len(graphs) - 1, min(count, len(graphs))).long()].unique()
        parts = chosen.split(batch_size)
        batches = tuple(self.batch(part) for part in parts)
        return batches, tuple(self._rows_inside(self.split.train, part)[1] for part in parts) if self.some_nodes else ()

    @cached_property
    def _sizes(self) -> Tensor:
        """(G,) label rows of each graph."""
        return torch.tensor([graph.num_nodes if self.level == "node" else 1 for graph in self.graphs])

    @cached_property
    def _owners(self) -> Tensor:
        """(M,) the graph of each label row."""
        return torch.repeat_interleave(torch.arange(len(self.graphs)), self._sizes)

    def _rows_inside(self, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Those label rows that belong to the chosen graphs, and where they are among the outputs for these."""
        rows = rows[torch.isin(self._owners[rows], chosen)]
        owners = self._owners[rows]
        starts = self._sizes.cumsum(0) - self._sizes
        offsets = torch.zeros_like(starts)
        offsets[chosen] = self._sizes[chosen].cumsum(0) - self._sizes[chosen]
        return rows, rows - starts[owners] + offsets[owners]


@dataclass(frozen=True, eq=False)
class LinkTask(_Graphs):
    """Which nodes of one graph are linked. The graph that is seen has the training links only.

    Attributes:
        outputs: width of the head.
        links: by part, (2, n) pairs that are linked, each once.
        others: by part, as many pairs that are not; for training None, since each epoch draws its own.
        known: (2, E) all links in both directions, which no drawn pair may be.
    """

    outputs: int
    links: dict[Part, Tensor]
    others: dict[Part, Tensor]
    known: Tensor
    level: Level = "node"
    target: Target = "multilabel"

    def calibration(self, count: int, batch_size: int) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """What a merger may see: the graph, and all of its nodes count."""
        return (self._whole,), ()

    def steps(self, part: Part, batch_size: int, shuffle: bool = False) -> Iterator[Step]:
        """All pairs of a part in one step; those without a link are drawn anew for training."""
        links = self.links[part]
        others = self.others[part] if part in self.others else unlinked(self.known, self.graphs[0].num_nodes, links.shape[1])
        labels = torch.cat([torch.ones(links.shape[1]), torch.zeros(others.shape[1])]).unsqueeze(1)
        yield Step(self._whole, partial(_pair_scores, torch.cat([links, others], dim=1)), labels)


TaskData = AnswerTask | LinkTask


def _pair_scores(pairs: Tensor, outputs: Tensor) -> Tensor:
    """Dot products: pairs (2, n), outputs (N, D) -> (n, 1)."""
    return (outputs[pairs[0]] * outputs[pairs[1]]).sum(-1, keepdim=True)


def unlinked(edge_index: Tensor, nodes: int, count: int) -> Tensor:
    """(2, count) pairs of nodes without an edge, each once, drawn from torch's generator."""
    from torch_geometric.utils import negative_sampling  # takes seconds to import, and is needed only here

    state = random.getstate()
    random.seed(int(torch.randint(2**31, ())))  # PyG draws from Python's own generator, which no seed of ours reaches
    try:
        pairs: Tensor = negative_sampling(edge_index, nodes, 2 * count, force_undirected=True)
    finally:
        random.setstate(state)
    return pairs[:, : pairs.shape[1] // 2]


def load_task(config: GraphRunConfig, task: str, data: Path, seed: int) -> TaskData:
    """A task's data, with its encoder applied.

    Args:
        config: of the run.
        task: one of its tasks.
        data: the data folder.
        seed: of random splits.

    Raises:
        DataError: a file is absent or wrong, or its features do not fit the network.
    """
    spec = config.tasks[task]
    loaded = _load(spec, data, seed)
    if loaded.num_features == config.network.in_dim:
        return loaded
    if config.encoder == "none":
        expected = f"{config.network.in_dim}, the network's `in_dim` (or `encoder: svd`)"
        raise DataError(f"task {task!r}: got {loaded.num_features} features for each node, expected {expected}")
    encoder = svd_encoder(torch.cat([loaded.graphs[k].x for k in loaded.seen().tolist()]), config.network.in_dim)
    encoded = tuple(FeatureGraph(encoder(graph.x), graph.edge_index) for graph in loaded.graphs)
    return replace(loaded, graphs=encoded, encoder=encoder)


def _load(spec: TaskSpec, data: Path, seed: int) -> TaskData:
    if isinstance(spec, FileSpec):
        return _from_file(spec, data, seed)
    dataset = load_planetoid(spec.graph, data)
    return _links(spec, dataset, seed) if isinstance(spec, LinkSpec) else _classes(spec, dataset, seed)


def _classes(spec: PlanetoidSpec, dataset: NodeDataset, seed: int) -> AnswerTask:
    classes = torch.tensor(range(len(dataset.class_names)) if spec.classes is None else spec.classes)
    wanted = torch.isin(dataset.labels, classes)
    numbers = torch.full((len(dataset.class_names) + 1,), -1)  # its last entry is for nodes without a class, -1
    numbers[classes] = torch.arange(len(classes))
    split = dataset.split if spec.split == "published" else random_split(len(dataset.labels), seed, 0.6, 0.2)
    parts = Split(*(rows[wanted[rows]] for rows in vars(split).values()))
    about = spec.about or f"class of a node of {spec.graph}"
    info = TaskInfo(labels=tuple(dataset.class_names[k] for k in classes), description=about, level="node", target="multiclass")
    graph = FeatureGraph(dataset.x, dataset.edge_index)
    return AnswerTask((graph,), graph.num_features, None, info, numbers[dataset.labels], parts, some_nodes=spec.classes is not None)


def _from_file(spec: FileSpec, data: Path, seed: int) -> AnswerTask:
    stored = read_graphs(data / spec.file)
    rows = len(stored.graphs) if spec.level == "graph" else sum(graph.num_nodes for graph in stored.graphs)
    if len(stored.labels) != rows:
        raise DataError(f"{spec.file}: got {len(stored.labels)} rows of labels, expected one for each {spec.level}, {rows}")
    problem = _misfit(stored.labels, spec)
    if problem:
        raise DataError(f"{spec.file}: labels: {problem}")
    split = stored.split or random_split(rows, seed, 0.8, 0.1)
    info = TaskInfo(labels=spec.labels, description=spec.about, level=spec.level, target=spec.target)
    return AnswerTask(stored.graphs, stored.graphs[0].num_features, None, info, stored.labels, split)


def _misfit(labels: Tensor, spec: FileSpec) -> str:
    """What is wrong with labels for a target; empty if nothing is."""
    count = len(spec.labels)
    if spec.target == "multiclass":
        if labels.dim() != 1 or not -1 <= int(labels.min()) <= int(labels.max()) < count:
            return f"got {labels.dtype} {tuple(labels.shape)}, expected classes (M,) of 0 to {count - 1}, or -1, by the names {list(spec.labels)}"
        return ""
    if labels.dim() != 2 or labels.shape[1] != count:
        return f"got {labels.dtype} {tuple(labels.shape)}, expected numbers (M, {count}), by the names {list(spec.labels)}"
    known = labels[~labels.isnan()]
    if spec.target == "multilabel" and not bool(((known == 0) | (known == 1)).all()):
        return "got a number other than 0 and 1, expected only these, or NaN where unknown"
    return "" if bool(known.isfinite().all()) else "got an infinite number, expected finite ones, or NaN where unknown"


def _links(spec: LinkSpec, dataset: NodeDataset, seed: int) -> LinkTask:
    nodes, generator = len(dataset.x), torch.Generator().manual_seed(seed)
    links = dataset.edge_index[:, dataset.edge_index[0] < dataset.edge_index[1]]
    links = links[:, torch.randperm(links.shape[1], generator=generator)]
    valid, test = round(0.05 * links.shape[1]), round(0.1 * links.shape[1])
    sizes = [links.shape[1] - valid - test, valid, test]
    parts = dict(zip(PARTS, links.split(sizes, dim=1), strict=True))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        drawn = unlinked(dataset.edge_index, nodes, valid + test)
    others: dict[Part, Tensor] = {"valid": drawn[:, :valid], "test": drawn[:, valid:]}
    seen = FeatureGraph(dataset.x, torch.cat([parts["train"], parts["train"].flip(0)], dim=1))
    return LinkTask((seen,), dataset.x.shape[1], None, spec.dim, parts, others, dataset.edge_index)
