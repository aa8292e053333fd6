"""Directed message-passing networks as chemprop builds them (D-MPNN), with heads by task.

Sources: Yang et al. 2019, "Analyzing learned molecular representations for property prediction",
arXiv:1904.01561; Heid et al. 2024, "Chemprop", doi:10.1021/acs.jcim.3c01250. State dicts have the
names of chemprop's.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.bond_graph import BondBatch
from models.names import Name
from models.networks.base import NetworkShape
from models.ops.segment import segment_mean, segment_sum
from models.task import OutputKind, TaskInfo

Messages = Literal["bonds", "atoms"]
"""Whether hidden states are of directed bonds (D-MPNN), or of atoms."""
Aggregation = Literal["mean", "sum", "norm"]
"""How atoms become a molecule; `norm` is the sum over a constant."""
Activation = Literal["relu", "leakyrelu", "prelu", "tanh", "elu"]
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


class DmpnnHead(BaseModel):
    """Shape of what a task has of its own.

    Attributes:
        hidden: widths of the hidden layers of the feed-forward network.
        activation: after its hidden layers.
        batch_norm: whether the molecule's vector is normalised first.
        members: number of networks whose mean is the answer (an ensemble).
        own: shape of the message passing that the task brings, one network per member; None if it
            reads from the shared one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Width, ...] = ()
    activation: Activation = "relu"
    batch_norm: bool = False
    members: Width = 1
    own: MessagePassingShape | None = None


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

    def forward(self, batch: BondBatch) -> Tensor:
        """Compute the vectors of molecules, (G, d)."""
        return self.aggregate(self.atoms(batch), batch)

    def atoms(self, batch: BondBatch) -> Tensor:
        """Compute the vectors of atoms, (N, d)."""
        arrived = self._pass(batch) if self.shape.messages == "bonds" else self._pass_atoms(batch)
        known, weight = self.atom_dim, self.W_o.weight
        h = F.linear(batch.x, weight[:, :known], self.W_o.bias)
        return self._activate(h.addmm_(arrived, weight[:, known:].t()))

    def aggregate(self, atoms: Tensor, batch: BondBatch) -> Tensor:
        """Combine the vectors of atoms by molecule: (N, d) -> (G, d)."""
        if self.shape.aggregation == "mean":
            return segment_mean(atoms, batch.batch, batch.num_graphs)
        total = segment_sum(atoms, batch.batch, batch.num_graphs)
        return total / self.shape.norm if self.shape.aggregation == "norm" else total

    def _pass(self, batch: BondBatch) -> Tensor:
        """Pass messages over directed bonds; return what arrives at atoms, (N, d)."""
        source, target = batch.edge_index
        atoms, known, weight = batch.num_nodes, self.atom_dim, self.W_i.weight
        # A product per atom and one per bond: both directions of a bond have the same features.
        of_atoms = F.linear(batch.x, weight[:, :known], self.W_i.bias)
        of_bonds = batch.edge_attr[::2] @ weight[:, known:].t()
        start = of_atoms.index_select(0, source).add_(of_bonds.repeat_interleave(2, 0))
        h = self._activate(start)
        for _ in range(1, self.shape.depth):
            h = (h + _reversed(h)) / 2 if self.shape.undirected else h
            messages = segment_sum(h, target, atoms).index_select(0, source).sub_(_reversed(h))
            h = self._activate(self.W_h(messages).add_(start))
        return segment_sum(h, target, atoms)

    def _pass_atoms(self, batch: BondBatch) -> Tensor:
        """Pass messages over atoms; return what arrives at atoms, (N, d)."""
        source, target = batch.edge_index
        start = self.W_i(batch.x)
        arriving = segment_sum(batch.edge_attr, target, batch.num_nodes)
        h = self._activate(start)
        for _ in range(1, self.shape.depth):
            states = h.index_select(0, source)
            if self.shape.undirected:
                states = (states + h.index_select(0, target)) / 2
            messages = segment_sum(states, target, batch.num_nodes)
            h = self._activate(self.W_h(torch.cat((messages, arriving), 1)).add_(start))
        return segment_sum(h.index_select(0, source), target, batch.num_nodes)

    def _activate(self, h: Tensor) -> Tensor:
        activated: Tensor = self.activation(h)
        return activated


def _reversed(h: Tensor) -> Tensor:
    """Swap the two directions of every bond: (E, d) -> (E, d)."""
    return h.view(-1, 2, h.shape[1]).flip(1).view_as(h)


class Member(nn.Module):
    """One network of a task: BatchNorm where it has one, the feed-forward network, and message
    passing where the task brings its own.

    Attributes:
        network: message passing; None if it is the shared one.
    """

    network: MessagePassing | None

    def __init__(self, shape: DmpnnConfig, head: DmpnnHead, outputs: int) -> None:
        super().__init__()
        self.network, width = None, shape.hidden_dim
        if head.own is not None:
            self.network = MessagePassing(head.own, shape.atom_dim, shape.bond_dim)
            width = head.own.hidden_dim
        self.norm = nn.BatchNorm1d(width) if head.batch_norm else None
        widths = [width, *head.hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.activation = ACTIVATIONS[head.activation]()

    def forward(self, molecules: Tensor) -> Tensor:
        """Compute outputs from the vectors of molecules: (G, d) -> (G, C)."""
        h = molecules if self.norm is None else self.norm(molecules)
        for k, layer in enumerate(self.layers):
            h = layer(self.activation(h) if k else h)
        return h


class Residual(nn.Module):
    """What a task adds to the weights of the shared network: a product of rank r for every matrix
    that this makes smaller, the difference itself for other tensors.

    Attributes:
        rank: r.
    """

    def __init__(self, network: MessagePassing, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.tensors = nn.ParameterDict()
        for name, value in network.state_dict().items():
            for key, shape in self._shapes(name, value.shape).items():
                self.tensors[key] = nn.Parameter(torch.zeros(shape))

    def _shapes(self, name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
        name = name.replace(".", "/")  # a ParameterDict takes no dots
        if len(shape) == 2 and self.rank * sum(shape) < shape.numel():
            return {f"{name}/left": (shape[0], self.rank), f"{name}/right": (self.rank, shape[1])}
        return {name: tuple(shape)}

    @property
    def is_active(self) -> bool:
        """Whether anything is added."""
        return any(bool((value != 0).any()) for value in self.tensors.values())

    def difference(self, name: str) -> Tensor:
        """Return what is added to a tensor of the network."""
        key = name.replace(".", "/")
        if key in self.tensors:
            whole: Tensor = self.tensors[key]
            return whole
        product: Tensor = self.tensors[f"{key}/left"] @ self.tensors[f"{key}/right"]
        return product

    def added_to(self, network: MessagePassing) -> MessagePassing:
        """Return a network of its own with the differences added."""
        made = MessagePassing(network.shape, network.atom_dim, _bond_dim(network))
        state = network.state_dict()
        made.load_state_dict({name: v + self.difference(name) for name, v in state.items()})
        return made.requires_grad_(False).eval().to(network.W_i.weight.device)


def _bond_dim(network: MessagePassing) -> int:
    if network.shape.messages == "bonds":
        return network.W_i.in_features - network.atom_dim
    return network.W_h.in_features - network.shape.hidden_dim


class DmpnnExpert(nn.Module):
    """What a task has of its own.

    Attributes:
        members: networks whose mean is the answer.
        residual: what the task adds to the shared network; None for rank 0, and where it brings its
            own networks.
        kind: what the outputs are.
    """

    residual: Residual | None

    def __init__(self, shape: DmpnnConfig, head: DmpnnHead, rank: int, info: TaskInfo) -> None:
        super().__init__()
        self.kind: OutputKind = info.output_kind
        outputs = len(info.labels)
        self.members = nn.ModuleList(Member(shape, head, outputs) for _ in range(head.members))
        self.residual = None
        if rank and head.own is None:
            network = MessagePassing(shape, shape.atom_dim, shape.bond_dim)
            self.residual = Residual(network, rank)

    @property
    def networks(self) -> list[Member]:
        """The members."""
        return [cast(Member, member) for member in self.members]


class DmpnnModel(nn.Module):
    """A shared network, or none, with the experts of all tasks. Experts are not mixed.

    Attributes:
        tasks: names of the tasks.
        site_names: none.
        kinds: what the outputs of the tasks are.
    """

    def __init__(self, network: nn.Module, experts: Mapping[str, DmpnnExpert]) -> None:
        super().__init__()
        self.tasks, self.site_names = tuple(experts), ()
        self.network = network
        self.kinds = tuple(expert.kind for expert in experts.values())
        self.experts = nn.ModuleList(experts.values())
        shared = cast(MessagePassing, network)
        # Low-rank differences are added once: a pass then costs what the task's own model does.
        self.folded = nn.ModuleDict(
            {
                str(k): expert.residual.added_to(shared)
                for k, expert in enumerate(experts.values())
                if expert.residual is not None
            }
        )
        self.requires_grad_(False).eval()

    def forward(self, batch: BondBatch, positions: list[int]) -> list[Tensor]:
        """Compute the outputs of tasks, by their positions; a list of (G, C).

        The mean of an ensemble is that of its predictions, as chemprop averages them: its outputs
        are the logits of mean probabilities, and the mean of numbers.
        """
        shared: Tensor | None = None
        outputs = []
        for position in positions:
            expert = cast(DmpnnExpert, self.experts[position])
            if expert.networks[0].network is not None:
                vectors = [cast(MessagePassing, m.network)(batch) for m in expert.networks]
            elif str(position) in self.folded:
                vectors = [self.folded[str(position)](batch)] * len(expert.networks)
            else:
                shared = self.network(batch) if shared is None else shared
                vectors = [shared] * len(expert.networks)
            found = [m(h) for m, h in zip(expert.networks, vectors, strict=True)]
            outputs.append(_mean_outputs(found, expert.kind))
        return outputs


def _mean_outputs(outputs: list[Tensor], kind: OutputKind) -> Tensor:
    """Return the outputs whose predictions are the mean of the members' predictions."""
    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack(outputs).double()
    if kind == "multilabel":
        # log(mean p) - log(mean (1 - p)): exact also where p is nearly 1
        positive, negative = F.logsigmoid(stacked), F.logsigmoid(-stacked)
        return (positive.logsumexp(0) - negative.logsumexp(0)).float()
    if kind == "multiclass":
        return stacked.log_softmax(-1).logsumexp(0).float()
    return stacked.mean(0).float()
