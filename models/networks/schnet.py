"""SchNet, a network for force fields that sees the distances between atoms."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from models.data.atoms import AtomsBatch
from models.networks.force_field import Activation, AtomNetwork, ForceFieldShape

_LINEARS = ("conv.nn.0", "conv.nn.2", "conv.lin1", "conv.lin2", "lin")


class ForceFieldConfig(ForceFieldShape):
    """Shape of SchNet.

    Attributes:
        num_filters: numbers per message.
        num_interactions: blocks, each of one message passing.
        num_gaussians: in which a distance is expanded.
    """

    kind: Literal["schnet"] = "schnet"
    num_filters: int = Field(default=64, ge=1)
    num_interactions: int = Field(default=3, ge=1)
    num_gaussians: int = Field(default=32, ge=2)

    @property
    def size(self) -> tuple[int, int]:
        """Number and width of the blocks."""
        return self.num_interactions, self.hidden_dim

    @property
    def head_dims(self) -> tuple[int, ...]:
        """One hidden layer of half the width."""
        return self.hidden_dim, self.hidden_dim // 2, 1

    @property
    def head_activation(self) -> Activation:
        """That of the blocks."""
        return "shifted_softplus"


class ForceField(AtomNetwork):
    """The interaction blocks of SchNet as PyG implements them. Atom embedding and head belong to
    the experts.

    Source: Schuett et al. 2017, arXiv:1706.08566.
    """

    config: ForceFieldConfig

    def __init__(self, config: ForceFieldConfig) -> None:
        super().__init__()
        # imported here: importing PyG takes seconds, and only force fields need it
        from torch_geometric.nn.models.schnet import GaussianSmearing, InteractionBlock

        self.config = config
        self.distance_expansion = GaussianSmearing(0.0, config.cutoff, config.num_gaussians)
        shape = (config.hidden_dim, config.num_gaussians, config.num_filters, config.cutoff)
        blocks = [InteractionBlock(*shape) for _ in range(config.num_interactions)]
        for block in blocks:
            # the same module as `conv.nn`, which is what runs; every tensor gets one name in a
            # state dict
            del block.mlp
        self.interactions = nn.ModuleList(blocks)

    def forward(self, h: Tensor, batch: AtomsBatch, positions: Tensor) -> Tensor:
        """Compute atom embeddings (`AtomNetwork.forward`)."""
        source, target = batch.edge_index
        shifted = positions[source] + batch.shift.to(positions)
        distances = (shifted - positions[target]).norm(dim=-1)
        expanded = self.distance_expansion(distances)
        for interaction in self.interactions:
            h = h + interaction(h, batch.edge_index, distances, expanded)
        return h

    def linear_groups(self) -> tuple[tuple[str, ...], ...]:
        """Return the Linears by block, one at a time."""
        blocks = range(len(self.interactions))
        return tuple((f"interactions.{block}.{name}",) for block in blocks for name in _LINEARS)
