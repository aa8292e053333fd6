"""models.experts.expert"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.data.batch import GraphBatch
from models.experts.adapter import TaskAdapters
from models.networks.base import LayeredNetwork, LayeredShape
from models.task import Level, Target


class Expert(nn.Module):
    """What one task brings: adapters with statistics, a head, the names of its labels, and where
    its node features need it, an encoder.

    Attributes:
        label_names: C names.
        level, target: see `models.task.TaskInfo`.
        encoder: from the task's node features (N, F) to the width of a graph network; None where
            they have it, and for molecules.
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
        """Logits (G, C) of a task on graphs without an encoder, of its own stream alone.

        That is what `UnifiedModel` answers with routing "own", without stacking.
        """
        logits: Tensor = self.head(self.adapters(backbone, batch).graph_embedding)
        return logits
