"""Force fields on SchNet: the energy of a structure, and forces as minus its gradient.

One network is shared by all tasks; embeddings, head and scale are a task's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.atoms import NUM_ELEMENTS, AtomsBatch
from models.errors import InvalidInputError
from models.networks.base import NetworkShape
from models.ops.segment import segment_sum
from models.task import select_tasks


class ForceFieldConfig(NetworkShape):
    """Shape of a force field; it travels in the artifact's manifest.

    Attributes:
        hidden_dim: numbers per atom.
        num_filters: numbers per message.
        num_interactions: blocks, each of one message passing.
        num_gaussians: in which a distance is expanded.
        cutoff: Angstrom; atoms further apart do not see each other in one block.
    """

    kind: Literal["schnet"] = "schnet"
    hidden_dim: int = Field(default=64, ge=2)
    num_filters: int = Field(default=64, ge=1)
    num_interactions: int = Field(default=3, ge=1)
    num_gaussians: int = Field(default=32, ge=2)
    cutoff: float = Field(default=5.0, gt=0)

    @property
    def size(self) -> tuple[int, int]:
        """Number and width of the blocks."""
        return self.num_interactions, self.hidden_dim


class ForceField(nn.Module):
    """The interaction blocks of SchNet as PyG implements them. Atom embedding and head belong to
    the experts.

    Source: Schuett et al. 2017, arXiv:1706.08566.
    """

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

    def forward(self, h: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Compute atom embeddings.

        Args:
            h: (N, d) embeddings of the elements.
            edge_index: (2, E).
            distances: (E,) in Angstrom.

        Returns:
            (N, d).
        """
        expanded = self.distance_expansion(distances)
        for interaction in self.interactions:
            h = h + interaction(h, edge_index, distances, expanded)
        return h


class ForceFieldExpert(nn.Module):
    """Everything that one task adds: atom embeddings, head, and scale of energies.

    Attributes:
        atom_energies: (119,) float64, in eV, added per atom in float64: total energies are so large
            that float32 would lose the differences.
        scale: () float64, in eV, the unit of the head's output.
        elements: (119,) bool, the elements the task was trained on; others are refused.
    """

    atom_energies: Tensor
    scale: Tensor
    elements: Tensor

    def __init__(self, config: ForceFieldConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_ELEMENTS, config.hidden_dim)
        self.lin1 = nn.Linear(config.hidden_dim, config.hidden_dim // 2)
        self.lin2 = nn.Linear(config.hidden_dim // 2, 1)
        for linear in (self.lin1, self.lin2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.register_buffer("atom_energies", torch.zeros(NUM_ELEMENTS, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("elements", torch.zeros(NUM_ELEMENTS, dtype=torch.bool))

    def head(self, h: Tensor) -> Tensor:
        """Compute every atom's contribution to the energy, in units of `scale`: (N, d) -> (N,)."""
        out: Tensor = self.lin2(F.softplus(self.lin1(h)) - math.log(2.0))
        return out.squeeze(-1)

    def check(self, batch: AtomsBatch) -> None:
        """Check that the task was trained on all elements of a batch.

        Raises:
            InvalidInputError: an element that it was not trained on.
        """
        if not bool(self.elements[batch.numbers].all()):
            unknown = batch.numbers[~self.elements[batch.numbers]].unique().tolist()
            raise InvalidInputError(
                f"numbers: got elements {unknown}, expected some of"
                f" {self.elements.nonzero().flatten().tolist()}"
            )


@dataclass(frozen=True)
class ForceFieldOutput:
    """Energies and forces for a batch of G structures with N atoms.

    Attributes:
        energy: (G,) float64, in eV.
        forces: (N, 3), in eV / Angstrom, minus the gradient of the energy with respect to the
            positions.
    """

    energy: Tensor
    forces: Tensor


def potential(
    network: ForceField, expert: ForceFieldExpert, batch: AtomsBatch, positions: Tensor
) -> Tensor:
    """Compute the energy of each structure with its atoms at `positions` (N, 3): (G,) float64 in
    eV.
    """
    source, target = batch.edge_index
    distances = (positions[source] + batch.shift.to(positions) - positions[target]).norm(dim=-1)
    atomwise = expert.head(network(expert.embedding(batch.numbers), batch.edge_index, distances))
    return segment_sum(
        expert.scale * atomwise.double() + expert.atom_energies[batch.numbers],
        batch.batch,
        batch.num_graphs,
    )


def energy_and_forces(
    network: ForceField, expert: ForceFieldExpert, batch: AtomsBatch, differentiable: bool = False
) -> ForceFieldOutput:
    """Compute one task's energies and forces.

    Args:
        network: the interaction blocks.
        expert: embeddings, head and scale of the task.
        batch: G structures with the neighbours within the network's cutoff.
        differentiable: keep the graph, so that a loss on the result has gradients with respect to
            the weights (for training).
    """
    with torch.enable_grad():
        positions = batch.positions.detach().clone().requires_grad_()
        energy = potential(network, expert, batch, positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=differentiable)
    return ForceFieldOutput(energy if differentiable else energy.detach(), -gradient)


class MergedForceField(nn.Module):
    """One network for several tasks, each with its own expert. An answer is a function of the
    structure, the task and the weights alone."""

    def __init__(self, network: ForceField, experts: Mapping[str, ForceFieldExpert]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tuple(experts)
        self.site_names: tuple[str, ...] = ()  # nothing is mixed
        # by number: a ModuleDict refuses names with a dot
        self.experts = nn.ModuleList(experts.values())
        self.requires_grad_(False).eval()

    def forward(
        self, batch: AtomsBatch, tasks: Sequence[str] | None = None
    ) -> dict[str, ForceFieldOutput]:
        """Answer tasks for a batch, also under `torch.no_grad` and `torch.inference_mode`.

        Args:
            batch: structures with the neighbours within `network.config.cutoff`.
            tasks: names in the order of the answers; None is all.

        Raises:
            UnknownTaskError: a task that the model does not have.
            InvalidInputError: an element that a task was not trained on.
        """
        names, _ = select_tasks(self.tasks, tasks)
        answers = {}
        # Forces are a gradient. Inference mode takes none, nor one of tensors made in it.
        with torch.inference_mode(False):
            batch = batch.clone()
            for name in names:
                expert = self.expert(name)
                expert.check(batch)
                answers[name] = energy_and_forces(self.network, expert, batch)
        return answers

    def expert(self, task: str) -> ForceFieldExpert:
        """Return the expert of a task.

        Raises:
            UnknownTaskError: a task that the model does not have.
        """
        _, (position,) = select_tasks(self.tasks, [task])
        expert = self.experts[position]
        assert isinstance(expert, ForceFieldExpert)
        return expert
