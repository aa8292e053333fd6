"""The data of a task, in the form that training, merging and evaluation use for every model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from merging.data.split import Split, Subset
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features, pack_features
from models.data.molecule import PackedGraphs
from models.task import TaskInfo


def _whole(outputs: Any) -> Any:
    return outputs


@dataclass(frozen=True, eq=False)
class Step:
    """A batch and its labels. The batch is collated on access, so that the steps of an epoch can be
    shuffled without holding all batches in memory.

    Attributes:
        load: collates the batch of G graphs.
        labels: (n, C) float32 with NaN where missing; (n,) int64 classes with -1 where unknown; or
            the energies and forces of `merging.data.frames`.
        select: takes the outputs for the batch, (G, C) or (N, C), and returns those of the n
            labelled graphs or nodes.
    """

    load: Callable[[], Any]
    labels: Any
    select: Callable[[Any], Any] = _whole

    @property
    def batch(self) -> Any:
        """The batch, collated at every access."""
        return self.load()


class TaskData(Protocol):
    """Interface of a task's data for training, merging and evaluation."""

    @property
    def info(self) -> TaskInfo:
        """Labels, level, target and description of the task."""

    @property
    def outputs(self) -> int:
        """Width of the head."""

    @property
    def sources(self) -> Mapping[str, str]:
        """SHA-256 of every file that was read, by name."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Plain values for records and cards on how the files were read; may be empty."""

    @property
    def size(self) -> int:
        """Number of graphs, nodes or atoms; larger tasks are scheduled first."""

    @property
    def summary(self) -> str:
        """A line that describes the task and the files that it was read from."""

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> Sequence[Step]:
        """Return the steps of one pass over a subset, `batch_size` graphs per step; a shuffled
        order is drawn from torch's generator by the call."""

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """Return batches of at most `count` training graphs for mergers, without labels, and by
        batch the numbers of the nodes to use; no numbers where all nodes are used."""


class UnlabelledData(Protocol):
    """Interface of a task's data for training without labels: adapters, joint alignment."""

    def unlabelled(self) -> tuple[PackedGraphs, Tensor]:
        """Return graphs, and the numbers (n,) of those that have training rows."""


def summary_of(info: TaskInfo, sources: Mapping[str, str]) -> str:
    """Describe a task and the files that it was read from in one line."""
    labels = f"{len(info.labels)} label{'s' if len(info.labels) > 1 else ''}, {info.level}"
    return f"{info.description}: {labels}, {info.target}; of {', '.join(sources)}"


@dataclass(frozen=True, eq=False)
class GraphTask:
    """A task on graphs with numeric node features.

    Attributes:
        graphs: G graphs, their features as wide as the network (encoded, if there is an encoder).
        num_features: F, before the encoder.
        encoder: the fixed linear map that has been applied to the features; None if there is none.
        sources, record: see `TaskData`.
    """

    graphs: tuple[FeatureGraph, ...]
    num_features: int
    encoder: nn.Linear | None
    info: TaskInfo
    sources: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    record: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return sum(graph.num_nodes for graph in self.graphs)

    @property
    def summary(self) -> str:
        """A line that describes the task and the files that it was read from."""
        return summary_of(self.info, self.sources)

    @cached_property
    def whole(self) -> GraphBatch:
        """All graphs as one batch."""
        return collate_features(self.graphs)

    def batch(self, chosen: Tensor) -> GraphBatch:
        """Collate the graphs with the numbers `chosen` (G',), in that order."""
        if len(self.graphs) == 1:  # a large graph is not copied in every epoch
            return self.whole
        return collate_features([self.graphs[k] for k in chosen.tolist()])

    def training_graphs(self) -> Tensor:
        """Return the numbers of the graphs that training uses; here of all graphs."""
        return torch.arange(len(self.graphs))

    def unlabelled(self) -> tuple[PackedGraphs, Tensor]:
        """See `UnlabelledData.unlabelled`."""
        return self.packed, self.training_graphs()

    @cached_property
    def packed(self) -> PackedGraphs:
        """All graphs in flat tensors."""
        return pack_features(self.graphs)


@dataclass(frozen=True, eq=False)
class AnswerTask(GraphTask):
    """A task with labels of graphs or of nodes, which can be released and served.

    Attributes:
        labels: M rows, M = G or sum N by the level: (M, C) float32 with NaN where missing, or for
            `multiclass` (M,) int64, -1 where unknown.
        split: rows of the three subsets.
        some_nodes: True if the task is on a subset of its graph's nodes; mergers then use its
            training nodes only.
    """

    labels: Tensor
    split: Split
    some_nodes: bool = False

    @property
    def outputs(self) -> int:
        """C, the width of the head."""
        return len(self.info.labels)

    def training_graphs(self) -> Tensor:
        """Return the numbers of the graphs that have a training row."""
        owners: Tensor = self._owners[self.split.train].unique()
        return owners

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """Return the steps of a subset (`TaskData.steps`); graphs are shuffled, not rows."""
        rows: Tensor = getattr(self.split, subset)
        graphs = self._owners[rows].unique()
        graphs = graphs[torch.randperm(len(graphs))] if shuffle else graphs
        return [self._step(rows, chosen) for chosen in graphs.split(batch_size)]

    def _step(self, rows: Tensor, chosen: Tensor) -> Step:
        kept, positions = self._rows_inside(rows, chosen)
        select = partial(torch.index_select, dim=0, index=positions)
        return Step(partial(self.batch, chosen), self.labels[kept], select)

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """Return graphs for mergers (`TaskData.calibration`), taken evenly whatever the seed."""
        graphs = self.training_graphs()
        chosen = graphs[torch.linspace(0, len(graphs) - 1, min(count, len(graphs))).long()].unique()
        groups = chosen.split(batch_size)
        batches = tuple(self.batch(group) for group in groups)
        if not self.some_nodes:
            return batches, ()
        return batches, tuple(self._rows_inside(self.split.train, group)[1] for group in groups)

    @cached_property
    def _sizes(self) -> Tensor:
        """(G,), the number of label rows of every graph."""
        on_nodes = self.info.level == "node"
        return torch.tensor([graph.num_nodes if on_nodes else 1 for graph in self.graphs])

    @cached_property
    def _owners(self) -> Tensor:
        """(M,), the graph of every label row."""
        return torch.repeat_interleave(torch.arange(len(self.graphs)), self._sizes)

    def _rows_inside(self, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the label rows of the chosen graphs, and their positions in the outputs."""
        rows = rows[torch.isin(self._owners[rows], chosen)]
        owners = self._owners[rows]
        starts = self._sizes.cumsum(0) - self._sizes
        offsets = torch.zeros_like(starts)
        offsets[chosen] = self._sizes[chosen].cumsum(0) - self._sizes[chosen]
        return rows, rows - starts[owners] + offsets[owners]
