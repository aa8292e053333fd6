"""Pre-training on descriptors: a network learns to compute molecular descriptors, and the graph
embeddings of an earlier network, from the molecule alone.

Descriptors as targets: Burns et al. 2025 (CheMeleon, arXiv:2506.15792). Embeddings of a
pre-trained network as further targets keep what it learnt from supervised pre-training.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merging.config.base import Count, Section
from merging.data.descriptors import DESCRIPTORS
from models.data.batch import GraphBatch, mean_readout
from models.networks.hu2020 import Backbone, BackboneConfig

_LIMIT = 6.0
"""Targets further from the mean, in standard deviations, are moved to this distance: a few
molecules with extreme values would else rule the squared error."""
_LOGARITHMIC = 1e3
"""Descriptors with larger values are compared as sign(x) log(1 + |x|)."""
_SMALLEST_DEVIATION = 1e-6


class DescriptorPredictionConfig(Section):
    """Prediction of descriptors.

    Attributes:
        hidden_dim: width of the hidden layer between a molecule's embedding and the targets.
        teacher: name or path of a checkpoint whose graph embeddings are targets, too; None for
            descriptors alone.
        teacher_backbone: its shape.
    """

    kind: Literal["descriptors"]
    hidden_dim: Count = 512
    teacher: str | None = None
    teacher_backbone: BackboneConfig = BackboneConfig(kind="gcn")


@dataclass(frozen=True)
class RegressionScores:
    """Squared errors of standardised targets.

    Attributes:
        errors: (G, D), 0 where a target is not defined.
        defined: (G, D) bool.
    """

    errors: Tensor
    defined: Tensor

    def loss(self) -> Tensor:
        """Compute the mean squared error over all defined targets."""
        return self.errors.sum() / self.defined.sum()

    def accuracy(self) -> Tensor:
        """Compute the share of the targets' variance that is predicted, 1 - loss; at most 1."""
        return 1 - self.loss().detach().double()


class DescriptorPrediction(nn.Module):
    """Predicts standardised descriptors, and a teacher's graph embedding, from the mean or sum of a
    backbone's node embeddings.

    Mean and deviation of every target are those of the molecules given to `fit`; targets that are
    constant there, or not defined for one molecule in a hundred, are left out.
    """

    mean: Tensor
    deviation: Tensor
    logarithmic: Tensor
    used: Tensor

    def __init__(
        self,
        backbone: BackboneConfig,
        config: DescriptorPredictionConfig,
        teacher: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)
        width = len(DESCRIPTORS) + (teacher.config.hidden_dim if teacher else 0)
        self.head = nn.Sequential(
            nn.Linear(backbone.hidden_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, width),
        )
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.zeros(width))
        for name in ("logarithmic", "used"):
            self.register_buffer(name, torch.zeros(width, dtype=torch.bool))
        # In a tuple, so that its weights are not part of this module's state.
        self._teacher = (teacher.eval().requires_grad_(False),) if teacher else ()

    @torch.no_grad()
    def fit(self, batch: GraphBatch, descriptors: Tensor) -> None:
        """Choose the targets and their scales by a sample of molecules.

        Args:
            batch: G molecules.
            descriptors: (G, D), NaN where not defined.
        """
        targets = self._targets(batch, descriptors)
        self.logarithmic = (targets.abs().nan_to_num() > _LOGARITHMIC).any(0)
        targets = self._compressed(targets).double()
        defined = ~targets.isnan()
        count = defined.sum(0).clamp(min=1)
        mean = targets.nan_to_num().sum(0) / count
        deviation = (((targets - mean).nan_to_num() ** 2).sum(0) / count).sqrt()
        self.used = (defined.double().mean(0) > 0.99) & (deviation > _SMALLEST_DEVIATION)
        self.mean = mean.float()
        self.deviation = torch.where(self.used, deviation, 1.0).float()

    def forward(self, batch: GraphBatch, descriptors: Tensor) -> RegressionScores:
        """Compute the errors for a batch of G molecules with their descriptors (G, D)."""
        targets = self._compressed(self._targets(batch, descriptors))
        targets = ((targets - self.mean) / self.deviation).clamp(-_LIMIT, _LIMIT)
        defined = ~targets.isnan() & self.used
        predicted = self.head(mean_readout(self.backbone(batch), batch))
        errors = F.mse_loss(predicted, targets.nan_to_num(), reduction="none")
        return RegressionScores(errors * defined, defined)

    def _targets(self, batch: GraphBatch, descriptors: Tensor) -> Tensor:
        """Return the descriptors and the teacher's embedding, (G, D + d)."""
        with torch.no_grad():
            embeddings = [mean_readout(network(batch), batch) for network in self._teacher]
        return torch.cat([descriptors, *embeddings], 1)

    def _compressed(self, targets: Tensor) -> Tensor:
        compressed = targets.sign() * targets.abs().log1p()
        return torch.where(self.logarithmic, compressed, targets)
