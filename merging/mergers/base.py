"""The inputs and the result of every merger."""

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
"""The networks with a readout and a linear head."""


class MergerOptions(BaseModel):
    """Options of a merger, the base of one class per merger. An unknown option is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Calibration:
    """What a merger may use of a task besides its weights; never a label.

    Attributes:
        head: state dict of the task's head; a linear one has weight (C, d) and bias (C,).
        batches: training graphs of the task; of every task the same number where there are enough.
        level: whether the head predicts for graphs or for nodes.
        nodes: for every batch the numbers of the nodes that belong to the task, for tasks that
            share a graph; empty if all nodes do.
        target: type of the labels; the head of a regression predicts in standard deviations.
    """

    head: dict[str, Tensor]
    batches: tuple[Any, ...]
    level: Level = "graph"
    nodes: tuple[Tensor, ...] = ()
    target: Target = "multilabel"

    def __post_init__(self) -> None:
        if not self.batches:
            raise InvalidInputError("calibration: got no batch of graphs, expected at least one")
        if self.nodes and len(self.nodes) != len(self.batches):
            raise InvalidInputError(
                f"calibration: got nodes of {len(self.nodes)} batches, expected of"
                f" {len(self.batches)} or of none"
            )

    def logits(self, node_embeddings: Tensor, batch: GraphBatch) -> Tensor:
        """Compute the outputs of the task's head: (N, d) -> (G, C), or (N, C) for a task on nodes
        or pairs of them."""
        h = mean_readout(node_embeddings, batch) if self.level == "graph" else node_embeddings
        return F.linear(h, self.head["weight"], self.head["bias"])

    def node_mask(self, number: int) -> Tensor:
        """Return which nodes of a batch, given by its number, belong to the task: (N,) bool."""
        batch = self.batches[number]
        mask = torch.full((batch.num_nodes,), not self.nodes, device=batch.x.device)
        if self.nodes:
            mask[self.nodes[number]] = True
        return mask


@dataclass(frozen=True)
class MergeInputs:
    """The backbones to merge: state dicts of one shape, on the device of the calibration graphs.

    Attributes:
        pretrained: theta_pre, from which all models were fine-tuned.
        finetuned: theta_k by task.
        config: shape of the networks.
        calibration: by task; empty for a merger that is not `calibrated` (`MergerSpec`).
        seed: seed of the merger's random numbers.
    """

    pretrained: dict[str, Tensor]
    finetuned: dict[str, dict[str, Tensor]]
    config: Any
    calibration: dict[str, Calibration] = field(default_factory=dict)
    seed: int = 0

    def task_vectors(self) -> dict[str, TaskVector]:
        """Return tau_k = theta_k - theta_pre by task. Raises CheckpointError: the backbones are not
        of one shape."""
        return {
            task: TaskVector.between(self.pretrained, finetuned)
            for task, finetuned in self.finetuned.items()
        }

    def network(self, tensors: dict[str, Tensor]) -> Any:
        """Build a backbone with a copy of the given weights, in evaluation mode, on their device.
        Raises CheckpointError: see `load_tensors`."""
        network = FAMILIES[self.config.kind].network(self.config)
        load_tensors(network, tensors, "a backbone to merge")
        return network.eval().to(next(iter(tensors.values())).device)

    def require_graph_labels(self, method: str) -> None:
        """Raise InvalidInputError if a task is on nodes or on pairs of them, for mergers whose
        objective is that of independent labels of graphs."""
        if on_nodes := sorted(
            task for task, calibration in self.calibration.items() if calibration.level != "graph"
        ):
            raise InvalidInputError(
                f"got {', '.join(on_nodes)} on nodes, expected tasks on graphs ({method} is for"
                " independent labels of graphs)"
            )

    def generator(self, *names: str) -> torch.Generator:
        """Return a generator seeded by the seed and the names alone, so that the order of tasks
        does not matter."""
        return torch.Generator().manual_seed(
            zlib.crc32("/".join((str(self.seed), *names)).encode())
        )


@dataclass(frozen=True)
class MergeResult:
    """The result of a merger.

    Attributes:
        backbone: state dict of the merged backbone; its BatchNorm running statistics are the
            pre-trained ones and are replaced per task.
        by_task: state dicts of the tasks' own versions of the backbone, for a method that makes
            them (EMR); empty otherwise.
        record: plain values on the merge, such as coefficients and iterations.
        head_orders: for a method that permutes hidden units (Git Re-Basin), by task the index in
            the task's own model of every merged unit, (d,) int64; a task that is missing keeps its
            order.
        heads: state dicts of the tasks' heads, for a method that solves them (GFFMerge); empty
            otherwise.
    """

    backbone: dict[str, Tensor]
    by_task: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    head_orders: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def backbone_for(self, task: str) -> dict[str, Tensor]:
        """Return the state dict of a task's version of the backbone, or of the shared one."""
        return self.by_task.get(task, self.backbone)

    def head_for(self, task: str, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a task's head for the merged backbone: the solved one, or the given one with the
        columns of its weight (C, d) in the merged order."""
        if task not in self.head_orders:
            return self.heads.get(task, head)
        return {**head, "weight": head["weight"][:, self.head_orders[task]]}


Merger = Callable[[MergeInputs, Any], MergeResult]
"""A function of the inputs and of the merger's own options (`MergerSpec.options`)."""


def stack_states(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of K state dicts of the same names: (K, *shape) by name."""
    dicts = list(states)
    return {key: torch.stack([state[key] for state in dicts]) for key in dicts[0]}
