"""A task's data in the form that training, mergers and measuring know: steps of a batch of graphs,
what is asked of the outputs, and labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from merging.data.split import Split
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
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
        """Numbers of the graphs that training sees, without looking at labels: all, unless the task
        says otherwise."""
        return torch.arange(len(self.graphs))


@dataclass(frozen=True, eq=False)
class AnswerTask(_Graphs):
    """A task that answers graphs or nodes, and so can be served.

    Attributes:
        info: labels, level, target.
        labels: M rows, M = G or sum N by the level: (M, C) float32 with NaN where missing, or for
            `multiclass` (M,) int64, -1 where unknown.
        split: rows of the three parts.
        some_nodes: the task is about some nodes of its graph (a label split): a merger then sees
            its training nodes, and not the whole graph.
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
        """Every row of a part once, `batch_size` graphs at a time; the order of graphs is drawn
        from torch's generator if it is to be shuffled."""
        rows: Tensor = getattr(self.split, part)
        graphs = self._owners[rows].unique()
        graphs = graphs[torch.randperm(len(graphs))] if shuffle else graphs
        for chosen in graphs.split(batch_size):
            kept, positions = self._rows_inside(rows, chosen)
            yield Step(
                self.batch(chosen),
                partial(torch.index_select, dim=0, index=positions),
                self.labels[kept],
            )

    def calibration(
        self, count: int, batch_size: int
    ) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """What a merger may see, without labels: at most `count` graphs with training rows, and
        which nodes of each batch count, if not all."""
        graphs = self.seen()
        chosen = graphs[torch.linspace(0, len(graphs) - 1, min(count, len(graphs))).long()].unique()
        parts = chosen.split(batch_size)
        batches = tuple(self.batch(part) for part in parts)
        return batches, (
            tuple(self._rows_inside(self.split.train, part)[1] for part in parts)
            if self.some_nodes
            else ()
        )

    @cached_property
    def _sizes(self) -> Tensor:
        """(G,) label rows of each graph."""
        return torch.tensor(
            [graph.num_nodes if self.level == "node" else 1 for graph in self.graphs]
        )

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
