"""Experts: the task-specific modules of a merged model."""

from collections.abc import Sequence

from torch import Tensor, nn

from models.data.batch import GraphBatch
from models.experts.adapter import TaskAdapters
from models.networks.base import LayeredNetwork, LayeredShape
from models.task import Level, OutputKind


class Expert(nn.Module):
    """Adapters, BatchNorm statistics, linear head and, where needed, input encoder of one task.

    Attributes:
        label_names: C names, in the order of the head's outputs.
        level: see `models.task.TaskInfo`.
        target: what the head's outputs are, `TaskInfo.output_kind`.
        adapters: adapters and BatchNorm statistics.
        head: (*, d) -> (*, C).
        encoder: linear map of node features (N, F) -> (N, in_dim); None if F is the network's
            `in_dim`, or the network has embedding tables.
    """

    def __init__(
        self,
        config: LayeredShape,
        rank: int,
        label_names: Sequence[str],
        level: Level = "graph",
        target: OutputKind = "multilabel",
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        self.label_names, self.level, self.target = tuple(label_names), level, target
        self.adapters = TaskAdapters(config, rank)
        self.head = nn.Linear(config.hidden_dim, len(self.label_names))
        self.encoder: nn.Linear | None = None
        if num_features is not None and config.in_dim not in (None, num_features):
            self.encoder = nn.Linear(num_features, config.in_dim)

    def forward(self, backbone: LayeredNetwork, batch: GraphBatch) -> Tensor:
        """Compute logits (G, C) of a task at level "graph" without an encoder.

        They equal those of `UnifiedModel` with routing "own", without stacking adapters.
        """
        logits: Tensor = self.head(self.adapters(backbone, batch).graph_embedding)
        return logits
