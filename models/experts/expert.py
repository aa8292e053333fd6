"""What one task brings to a merged network."""

from collections.abc import Sequence

from torch import Tensor, nn

from models.data.batch import GraphBatch
from models.experts.adapter import TaskAdapters
from models.networks.base import LayeredNetwork, LayeredShape
from models.task import Level, Target


class Expert(nn.Module):
    """One task's adapters with their BatchNorm statistics, its linear head, and an encoder where
    its node features are not as wide as the network.

    Attributes:
        label_names: C names, in the order of the head's outputs.
        level, target: see `models.task.TaskInfo`.
        encoder: node features (N, F) -> (N, in_dim); None where F is the network's `in_dim`, and
            for networks that embed atoms by tables.
    """

    def __init__(
        self,
        config: LayeredShape,
        rank: int,
        label_names: Sequence[str],
        level: Level = "graph",
        target: Target = "multilabel",
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
        """Logits (G, C) of a task at level "graph" without an encoder.

        `UnifiedModel` gives the same with routing "own"; this needs no stacked adapters.
        """
        logits: Tensor = self.head(self.adapters(backbone, batch).graph_embedding)
        return logits
