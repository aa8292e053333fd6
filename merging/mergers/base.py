"""What every merger takes and gives."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from merging.mergers.task_vector import TaskVector
from models.data.batch import GraphBatch, mean_readout
from models.errors import InvalidInputError
from models.families.table import FAMILIES
from models.networks.hu2020 import Backbone
from models.networks.pyg import GraphNetwork
from models.state_dict import load_tensors
from models.task import Level, Target

Network = Backbone | GraphNetwork
"""Those with a readout and a linear head."""


class MergerOptions(BaseModel):
    """Options of a merger; a subclass for each. Unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Calibration:
    """What a merger may see of a task besides its weights; never a label.

    Attributes:
        head: state dict of the task's own head; where it is linear, weight (C, d) and bias (C,).
        batches: training graphs of the task, the same number for every task where there are as
            many.
        level: whether the head answers for a graph or for each node.
        nodes: for each batch, the numbers of the nodes that count: where tasks share a graph, the
            nodes are what tells them apart; empty for all.
        target: what the head answers; numbers in standard deviations, whatever their units.
    """

    head: dict[str, Tensor]
    batches: tuple[Any, ...]
    level: Level = "graph"
    nodes: tuple[Tensor, ...] = ()
    target: Target = "multilabel"

    def __post_init__(self) -> None:
        if not self.batches:
            raise InvalidInputError("calibration: got no batch of molecules, expected at least one")
        if self.nodes and len(self.nodes) != len(self.batches):
            raise InvalidInputError(
                f"calibration: got nodes of {len(self.nodes)} batches, expected of"
                f" {len(self.batches)} or of none"
            )

    def logits(self, node_embeddings: Tensor, batch: GraphBatch) -> Tensor:
        """What the task's head says: (N, d) -> (G, C), or (N, C) where it answers for nodes."""
        answered = (
            mean_readout(node_embeddings, batch) if self.level == "graph" else node_embeddings
        )
        return F.linear(answered, self.head["weight"], self.head["bias"])

    def node_mask(self, number: int) -> Tensor:
        """Which nodes of the batch of that number count: (N,) bool."""
        batch = self.batches[number]
        mask = torch.full((batch.num_nodes,), not self.nodes, device=batch.x.device)
        if self.nodes:
            mask[self.nodes[number]] = True
        return mask


@dataclass(frozen=True)
class MergeInputs:
    """State dicts of backbones of one shape, on one device with the calibration; heads are never
    merged.

    Attributes:
        pretrained: theta_pre, where all experts started.
        finetuned: theta_k by task.
        config: shape of the networks; the registry says which kinds a merger can run.
        calibration: by task; empty for a merger whose row in the registry does not ask for it.
        seed: of what a merger draws.
    """

    pretrained: dict[str, Tensor]
    finetuned: dict[str, dict[str, Tensor]]
    config: Any
    calibration: dict[str, Calibration] = field(default_factory=dict)
    seed: int = 0

    def task_vectors(self) -> dict[str, TaskVector]:
        """tau_k by task. Raises CheckpointError if the backbones are not of one shape."""
        return {
            task: TaskVector.between(self.pretrained, finetuned)
            for task, finetuned in self.finetuned.items()
        }

    def network(self, tensors: dict[str, Tensor]) -> Any:
        """A backbone with these weights of its own, in evaluation mode, on their device. Raises
        CheckpointError (see `load_tensors`)."""
        network = FAMILIES[self.config.kind].network(self.config)
        load_tensors(network, tensors, "a backbone to merge")
        return network.eval().to(next(iter(tensors.values())).device)

    def require_graph_labels(self, method: str) -> None:
        """For mergers whose objective is that of independent labels of graphs. Raises
        InvalidInputError."""
        if on_nodes := sorted(
            task for task, seen in self.calibration.items() if seen.level == "node"
        ):
            raise InvalidInputError(
                f"got {', '.join(on_nodes)} on nodes, expected tasks on graphs ({method} is for"
                " independent labels of graphs)"
            )

    def generator(self, *names: str) -> torch.Generator:
        """Random numbers that depend on the seed and the names alone, so that the order of tasks is
        of no matter."""
        return torch.Generator().manual_seed(
            zlib.crc32("/".join((str(self.seed), *names)).encode())
        )


@dataclass(frozen=True)
class MergeResult:
    """The merged backbone.

    Attributes:
        backbone: state dict; BatchNorm running statistics are the pre-trained ones and are replaced
            per task.
        by_task: for a method that gives each task its own version (EMR), state dicts by task; empty
            otherwise.
        record: what was found on the way (coefficients, iterations), for people.
        head_orders: for a method that puts a model's hidden units in another order (Git Re-Basin):
            by task, which unit of the task's own model the merged unit i is, (d,) int64. A task
            that is absent has its own order.
        heads: for a method that solves heads too (GFFMerge), state dicts of them by task; empty
            otherwise.
    """

    backbone: dict[str, Tensor]
    by_task: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    head_orders: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def backbone_for(self, task: str) -> dict[str, Tensor]:
        """The state dict that answers a task."""
        return self.by_task.get(task, self.backbone)

    def head_for(self, task: str, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """State dict of a task's head as the merged backbone needs it, from the task's own: solved
        anew, or with the columns of its weight (C, d) in the merged order."""
        if task not in self.head_orders:
            return self.heads.get(task, head)
        return {**head, "weight": head["weight"][:, self.head_orders[task]]}


Merger = Callable[[MergeInputs, Any], MergeResult]
"""Takes the options of its own class; the registry knows which."""


def stack_states(tables: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """K tables of the same names as one, (K, *shape) by name."""
    rows = list(tables)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
