"""One backbone with one head: what is fine-tuned, and what merging starts from."""

from torch import Tensor, nn

from models.data.batch import GraphBatch, mean_readout
from models.networks.hu2020 import Backbone, BackboneConfig


class GraphClassifier(nn.Module):
    """Backbone, mean readout, linear head with one logit per label (Hu et al. 2020)."""

    def __init__(self, config: BackboneConfig, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = Backbone(config, dropout)
        self.head = nn.Linear(config.hidden_dim, num_labels)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Logits, (G, C)."""
        logits: Tensor = self.head(mean_readout(self.backbone(batch), batch))
        return logits
