"""Directed message-passing networks as chemprop builds them (D-MPNN).

Sources: Yang et al. 2019, "Analyzing learned molecular representations for property prediction",
arXiv:1904.01561; Heid et al. 2024, "Chemprop", doi:10.1021/acs.jcim.3c01250. State dicts have the
names of chemprop's.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.batch import GraphBatch
from models.names import Name
from models.networks.base import NetworkShape, SiteHook
from models.ops.bonds import arriving_states, bond_messages, first_states, reverse_bonds
from models.ops.segment import segment_mean, segment_sum

Messages = Literal["bonds", "atoms"]
"""Whether hidden states are of directed bonds (D-MPNN), or of atoms."""
Aggregation = Literal["mean", "sum", "norm"]
"""How atoms become a molecule; `norm` is the sum over a constant."""
Activation = Literal["relu", "leakyrelu", "prelu", "tanh", "elu"]
Correction = Literal["none", "residual", "adapters", "graph_adapter"]
"""What corrects the shared network for a task: nothing, low-rank differences of its weights,
adapters at all sites, or an adapter of the molecule's vector alone."""
Width = Annotated[int, Field(ge=1)]

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.1),
    "prelu": nn.PReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}
"""Activations by their names in chemprop. PReLU has a learned slope."""


class MessagePassingShape(BaseModel):
    """Shape of the message passing and of the aggregation.

    Attributes:
        hidden_dim: width d of the hidden states.
        depth: number of steps of message passing, the first one included.
        bias: whether `W_i` and `W_h` have biases; `W_o` always has one.
        activation: after every step.
        messages: see `Messages`.
        undirected: whether both directions of a bond send the mean of their states.
        aggregation: see `Aggregation`.
        norm: the constant of aggregation `norm`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_dim: Width = 300
    depth: Width = 3
    bias: bool = False
    activation: Activation = "relu"
    messages: Messages = "bonds"
    undirected: bool = False
    aggregation: Aggregation = "mean"
    norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0

    @property
    def num_sites(self) -> int:
        """Number of places that adapters correct: every step, the atoms, and the molecule."""
        return self.depth + 2


class DmpnnHead(BaseModel):
    """Shape of what a task has of its own.

    Attributes:
        hidden: widths of the hidden layers of the feed-forward network.
        activation: after its hidden layers.
        batch_norm: whether the molecule's vector is normalised first.
        members: number of networks whose mean is the answer (an ensemble).
        own: shape of the message passing that the task brings, one network per member; None if it
            reads from the shared one.
        correction: see `Correction`; the rank is the manifest's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Width, ...] = ()
    activation: Activation = "relu"
    batch_norm: bool = False
    members: Width = 1
    own: MessagePassingShape | None = None
    correction: Correction = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.own is not None and self.correction != "none":
            got = f"correction: got {self.correction!r} for a task with networks of its own"
            raise ValueError(f"{got}, expected 'none'")
        return self


class DmpnnConfig(NetworkShape, MessagePassingShape):
    """Shape of the shared message passing, and of the heads by task.

    Attributes:
        atom_dim, bond_dim: widths of the features of atoms and bonds.
        heads: by task.
    """

    kind: Literal["dmpnn"] = "dmpnn"
    atom_dim: Width
    bond_dim: Width
    heads: dict[Name, DmpnnHead] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Number of steps and width."""
        return self.depth, self.hidden_dim

    @property
    def is_shared(self) -> bool:
        """Whether any task reads from the shared network."""
        return any(head.own is None for head in self.heads.values()) or not self.heads


class MessagePassing(nn.Module):
    """Message passing over directed bonds, or over atoms, and the aggregation to molecules.

    Over bonds: h_0 = W_i [x_v, e_vw] and h_t = act(h_0 + W_h m_t), where m_t of bond v -> w is the
    sum of the states of bonds that end in v, without that of w -> v. Over atoms: h_0 = W_i x_v, and
    m_t of an atom is the sum over its neighbours of their states and the features of the bonds. In
    the end an atom is act(W_o [x_v, sum of the states that arrive]).
    """

    def __init__(self, shape: MessagePassingShape, atom_dim: int, bond_dim: int) -> None:
        super().__init__()
        self.shape, self.atom_dim = shape, atom_dim
        d, of_bonds = shape.hidden_dim, shape.messages == "bonds"
        self.W_i = nn.Linear(atom_dim + bond_dim * of_bonds, d, shape.bias)
        self.W_h = nn.Linear(d + bond_dim * (not of_bonds), d, shape.bias)
        self.W_o = nn.Linear(atom_dim + d, d)
        self.activation = ACTIVATIONS[shape.activation]()

    @property
    def bond_dim(self) -> int:
        """Width of the features of bonds."""
        if self.shape.messages == "bonds":
            return self.W_i.in_features - self.atom_dim
        return self.W_h.in_features - self.shape.hidden_dim

    @property
    def num_sites(self) -> int:
        """See `MessagePassingShape.num_sites`."""
        return self.shape.num_sites

    def forward(self, batch: GraphBatch, correct: SiteHook | None = None) -> Tensor:
        """Compute the vectors of molecules, (G, d).

        Args:
            batch: the molecules.
            correct: applied at every site: to the states of every step and then of the atoms before
                their activation, and to the vectors of the molecules.
        """
        correct = correct or _unchanged
        h = self.aggregate(self.atoms(batch, correct), batch)
        return correct(self.num_sites - 1, h)

    def atoms(self, batch: GraphBatch, correct: SiteHook) -> Tensor:
        """Compute the vectors of atoms, (N, d)."""
        over_bonds = self.shape.messages == "bonds"
        arrived = (self._pass_bonds if over_bonds else self._pass_atoms)(batch, correct)
        known, weight = self.atom_dim, self.W_o.weight
        h = F.linear(batch.x, weight[:, :known], self.W_o.bias)
        h = h.addmm_(arrived, weight[:, known:].t())
        return self._activate(correct(self.num_sites - 2, h), correct)

    def aggregate(self, atoms: Tensor, batch: GraphBatch) -> Tensor:
        """Combine the vectors of atoms by molecule: (N, d) -> (G, d)."""
        if self.shape.aggregation == "mean":
            return segment_mean(atoms, batch.batch, batch.num_graphs)
        total = segment_sum(atoms, batch.batch, batch.num_graphs)
        return total / self.shape.norm if self.shape.aggregation == "norm" else total

    def _pass_bonds(self, batch: GraphBatch, correct: SiteHook) -> Tensor:
        """Pass messages over directed bonds; return what arrives at atoms, (N, d)."""
        source, target = batch.edge_index
        atoms, known, weight = batch.num_nodes, self.atom_dim, self.W_i.weight
        # A product per atom and one per bond: both directions of a bond have the same features.
        of_atoms = F.linear(batch.x, weight[:, :known], self.W_i.bias)
        of_bonds = batch.edge_attr[::2] @ weight[:, known:].t()
        start = correct(0, first_states(of_atoms, of_bonds, source))
        h = self._activate(start)
        for step in range(1, self.shape.depth):
            h = (h + reverse_bonds(h)) / 2 if self.shape.undirected else h
            messages = bond_messages(h, source, target, atoms)
            h = self._activate(correct(step, self.W_h(messages).add_(start)), correct)
        return arriving_states(h, target, atoms)

    def _pass_atoms(self, batch: GraphBatch, correct: SiteHook) -> Tensor:
        """Pass messages over atoms; return what arrives at atoms, (N, d)."""
        source, target = batch.edge_index
        start = correct(0, self.W_i(batch.x))
        arriving = segment_sum(batch.edge_attr, target, batch.num_nodes)
        h = self._activate(start)
        for step in range(1, self.shape.depth):
            states = h.index_select(0, source)
            if self.shape.undirected:
                states = (states + h.index_select(0, target)) / 2
            messages = segment_sum(states, target, batch.num_nodes)
            messages = self.W_h(torch.cat((messages, arriving), 1))
            h = self._activate(correct(step, messages.add_(start)), correct)
        return segment_sum(h.index_select(0, source), target, batch.num_nodes)

    def _activate(self, h: Tensor, correct: SiteHook | None = None) -> Tensor:
        """Apply the activation, in place if `h` is a new tensor that no hook has seen."""
        if correct is _unchanged and isinstance(self.activation, nn.ReLU):
            return h.relu_()
        activated: Tensor = self.activation(h)
        return activated


def _unchanged(_: int, h: Tensor) -> Tensor:
    return h
