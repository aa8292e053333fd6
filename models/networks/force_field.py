"""Force fields: the energy of a structure, and forces as minus its gradient.

One network is shared by all tasks; atom embeddings, head, scale and energies of elements are a
task's own.
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

Activation = Literal["shifted_softplus", "silu"]


class ForceFieldShape(NetworkShape):
    """Shape of a force field; it travels in the artifact's manifest.

    Attributes:
        hidden_dim: numbers per atom.
        cutoff: Angstrom; atoms further apart do not see each other in one block.
    """

    hidden_dim: int = Field(default=64, ge=2)
    cutoff: float = Field(default=5.0, gt=0)

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Widths of a head: of its input, of its hidden layers, and 1."""
        raise NotImplementedError

    @property
    def head_activation(self) -> Activation:
        """Activation between the Linears of a head."""
        raise NotImplementedError


class AtomNetwork(nn.Module):
    """A network that turns embeddings of elements into embeddings of atoms in a structure.

    Attributes:
        config: its shape.
    """

    config: ForceFieldShape

    def forward(self, h: Tensor, batch: AtomsBatch, positions: Tensor) -> Tensor:
        """Compute atom embeddings, (N, d), of structures with their atoms at `positions`.

        Args:
            h: (N, d) embeddings of the elements.
            batch: the structures; their neighbours hold, their positions are not used.
            positions: (N, 3) in Angstrom.
        """
        raise NotImplementedError

    def linear_groups(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of all Linears in the order of the forward pass; no Linear of a group
        depends on another of the same group."""
        raise NotImplementedError


class ForceFieldExpert(nn.Module):
    """Everything that one task adds: atom embeddings, head, and scale of energies.

    The head is a row of Linears, `lin1`, `lin2` and so on.

    Attributes:
        atom_energies: (119,) float64, in eV, added per atom in float64: total energies are so large
            that float32 would lose the differences.
        scale: () float64, in eV, the unit of the head's output.
        elements: (119,) bool, the elements the task was trained on; others are refused.
    """

    atom_energies: Tensor
    scale: Tensor
    elements: Tensor

    def __init__(self, config: ForceFieldShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_ELEMENTS, config.hidden_dim)
        self.activation = config.head_activation
        dims = config.head_dims
        self.head_linears = tuple(f"lin{k}" for k in range(1, len(dims)))
        for name, width, following in zip(self.head_linears, dims, dims[1:], strict=False):
            self.add_module(name, nn.Linear(width, following))
        for linear in self.linears():
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.register_buffer("atom_energies", torch.zeros(NUM_ELEMENTS, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("elements", torch.zeros(NUM_ELEMENTS, dtype=torch.bool))

    def linears(self) -> list[nn.Linear]:
        """Return the Linears of the head, from first to last."""
        found = [self.get_submodule(name) for name in self.head_linears]
        return [linear for linear in found if isinstance(linear, nn.Linear)]

    def head(self, h: Tensor) -> Tensor:
        """Compute every atom's contribution to the energy, in units of `scale`: (N, d) -> (N,)."""
        *hidden, last = self.linears()
        for linear in hidden:
            h = self._activated(linear(h))
        out: Tensor = last(h)
        return out.squeeze(-1)

    def _activated(self, h: Tensor) -> Tensor:
        return F.silu(h) if self.activation == "silu" else F.softplus(h) - math.log(2.0)

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
    network: AtomNetwork, expert: ForceFieldExpert, batch: AtomsBatch, positions: Tensor
) -> Tensor:
    """Compute the energy of each structure with its atoms at `positions` (N, 3): (G,) float64 in
    eV.
    """
    atomwise = expert.head(network(expert.embedding(batch.numbers), batch, positions))
    return segment_sum(
        expert.scale * atomwise.double() + expert.atom_energies[batch.numbers],
        batch.batch,
        batch.num_graphs,
    )


def energy_and_forces(
    network: AtomNetwork, expert: ForceFieldExpert, batch: AtomsBatch, differentiable: bool = False
) -> ForceFieldOutput:
    """Compute one task's energies and forces.

    Args:
        network: of all tasks.
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

    def __init__(self, network: AtomNetwork, experts: Mapping[str, ForceFieldExpert]) -> None:
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
