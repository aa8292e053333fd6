"""The data of a task as training, mergers and measuring see them, whatever the kind of model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from merging.data.split import Split
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.task import TaskInfo

Subset = Literal["train", "valid", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "valid", "test")
"""Of a task's rows: trained on, chosen by, reported on."""


def _whole(outputs: Any) -> Any:
    return outputs


@dataclass(frozen=True, eq=False)
class Step:
    """A batch and its labels. The batch is put together when it is asked for, so that the steps of
    an epoch can be shuffled without holding all of them.

    Attributes:
        load: gives the batch of G graphs.
        labels: (n, C) float32 with NaN where missing; (n,) int64 classes with -1 where unknown; or
            the energies and forces of `merging.data.frames`.
        select: from the outputs for the batch, (G, C) or (N, C), those that `labels` are of.
    """

    load: Callable[[], Any]
    labels: Any
    select: Callable[[Any], Any] = _whole

    @property
    def batch(self) -> Any:
        """The batch, made anew at each call."""
        return self.load()


class TaskData(Protocol):
    """The data of a task."""

    @property
    def info(self) -> TaskInfo:
        """Labels, level, target, and a line about the task."""

    @property
    def outputs(self) -> int:
        """Width of the head."""

    @property
    def sources(self) -> Mapping[str, str]:
        """sha256 of each file that was read, by name."""

    @property
    def record(self) -> Mapping[str, Any]:
        """How the files were read, plain values for records and cards; may be empty."""

    @property
    def size(self) -> int:
        """Number of graphs or atoms: what has most is started first."""

    @property
    def summary(self) -> str:
        """A line for people: what was read as what."""

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> Sequence[Step]:
        """The rows of a subset, each once, `batch_size` graphs at a time; a shuffled order is drawn
        from torch's generator when this is called."""

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """Batches of at most `count` training graphs, without labels, for mergers; and by batch
        which nodes count, or nothing where all do."""


def summary_of(info: TaskInfo, sources: Mapping[str, str]) -> str:
    """A line for people: what a task asks, and which files it was read from."""
    asked = f"{len(info.labels)} label{'s' if len(info.labels) > 1 else ''}, {info.level}"
    return f"{info.description}: {asked}, {info.target}; of {', '.join(sources)}"


@dataclass(frozen=True, eq=False)
class GraphTask:
    """A task on graphs with numeric node features.

    Attributes:
        graphs: G graphs, their features as wide as the network (encoded, if there is an encoder).
        num_features: F, before the encoder.
        encoder: the fixed one that has been applied; None if there is none.
        sources: see `TaskData`.
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
        """See `TaskData.summary`."""
        return summary_of(self.info, self.sources)

    @cached_property
    def whole(self) -> GraphBatch:
        """All graphs as one batch."""
        return collate_features(self.graphs)

    def batch(self, chosen: Tensor) -> GraphBatch:
        """The graphs with these numbers (G',), in that order."""
        if len(self.graphs) == 1:  # a large graph is not copied again in every epoch
            return self.whole
        return collate_features([self.graphs[k] for k in chosen.tolist()])

    def seen(self) -> Tensor:
        """Numbers of the graphs that training sees, without looking at labels: all, unless the task
        says otherwise."""
        return torch.arange(len(self.graphs))


@dataclass(frozen=True, eq=False)
class AnswerTask(GraphTask):
    """A task that answers graphs or nodes, and so can be served.

    Attributes:
        labels: M rows, M = G or sum N by the level: (M, C) float32 with NaN where missing, or for
            `multiclass` (M,) int64, -1 where unknown.
        split: rows of the three subsets.
        some_nodes: the task is about some nodes of its graph (a label split): a merger then sees
            its training nodes, and not the whole graph.
    """

    labels: Tensor
    split: Split
    some_nodes: bool = False

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.info.labels)

    def seen(self) -> Tensor:
        """Numbers of the graphs that have a training row."""
        owners: Tensor = self._owners[self.split.train].unique()
        return owners

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """See `TaskData.steps`; the order of graphs is what is shuffled."""
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
        """See `TaskData.calibration`; the graphs are taken evenly, whatever the seed."""
        graphs = self.seen()
        chosen = graphs[torch.linspace(0, len(graphs) - 1, min(count, len(graphs))).long()].unique()
        groups = chosen.split(batch_size)
        batches = tuple(self.batch(group) for group in groups)
        if not self.some_nodes:
            return batches, ()
        return batches, tuple(self._rows_inside(self.split.train, group)[1] for group in groups)

    @cached_property
    def _sizes(self) -> Tensor:
        """(G,) label rows of each graph."""
        on_nodes = self.info.level == "node"
        return torch.tensor([graph.num_nodes if on_nodes else 1 for graph in self.graphs])

    @cached_property
    def _owners(self) -> Tensor:
        """(M,) the graph of each label row."""
        return torch.repeat_interleave(torch.arange(len(self.graphs)), self._sizes)

    def _rows_inside(self, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Those label rows that belong to the chosen graphs, and where they are among the outputs
        for these."""
        rows = rows[torch.isin(self._owners[rows], chosen)]
        owners = self._owners[rows]
        starts = self._sizes.cumsum(0) - self._sizes
        offsets = torch.zeros_like(starts)
        offsets[chosen] = self._sizes[chosen].cumsum(0) - self._sizes[chosen]
        return rows, rows - starts[owners] + offsets[owners]
