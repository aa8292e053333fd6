"""What tasks have besides the D-MPNN that they share: heads, corrections, and the whole model."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.batch import GraphBatch, split_by_edges
from models.experts.adapter import Adapter
from models.networks.base import SiteHook
from models.networks.dmpnn import ACTIVATIONS, DmpnnConfig, DmpnnHead, MessagePassing
from models.task import OutputKind, TaskInfo

CACHED_EDGES = 2000
"""At most so many directed bonds are computed at a time on a CPU. Their states (300 numbers each)
then stay in the second cache: batches of 100 molecules take 1.5 times as long in one piece."""


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
        self.batch_norm = nn.BatchNorm1d(width) if head.batch_norm else None
        widths = [width, *head.hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.activation = ACTIVATIONS[head.activation]()

    def forward(self, molecules: Tensor) -> Tensor:
        """Compute outputs from the vectors of molecules: (G, d) -> (G, C)."""
        h = molecules if self.batch_norm is None else self.batch_norm(molecules)
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
        made = MessagePassing(network.shape, network.atom_dim, network.bond_dim)
        state = network.state_dict()
        made.load_state_dict({name: v + self.difference(name) for name, v in state.items()})
        return made.requires_grad_(False).eval().to(network.W_i.weight.device)


class SiteAdapters(nn.Module):
    """Adapters that correct the shared network for a task, by site; see `Correction`.

    Attributes:
        sites: of all sites, or of the molecule's vector alone.
    """

    def __init__(self, dim: int, rank: int, count: int) -> None:
        super().__init__()
        self.sites = nn.ModuleList(Adapter(dim, rank) for _ in range(count))

    @property
    def is_active(self) -> bool:
        """Whether anything is corrected."""
        return any(cast(Adapter, site).is_active for site in self.sites)

    def correct(self, site: int, h: Tensor) -> Tensor:
        """Subtract the output of a site's adapter: (*, d) -> (*, d)."""
        corrected: Tensor = h - self.sites[site](h)
        return corrected


class DmpnnExpert(nn.Module):
    """What a task has of its own.

    Attributes:
        members: networks whose mean is the answer.
        correction: of the shared network; None where there is none.
        kind: what the outputs are.
    """

    correction: Residual | SiteAdapters | None

    def __init__(self, shape: DmpnnConfig, head: DmpnnHead, rank: int, info: TaskInfo) -> None:
        super().__init__()
        self.kind: OutputKind = info.output_kind
        outputs = len(info.labels)
        self.members = nn.ModuleList(Member(shape, head, outputs) for _ in range(head.members))
        self.correction = None
        if head.correction == "residual":
            network = MessagePassing(shape, shape.atom_dim, shape.bond_dim)
            self.correction = Residual(network, rank)
        elif head.correction != "none":
            count = shape.num_sites if head.correction == "adapters" else 1
            self.correction = SiteAdapters(shape.hidden_dim, rank, count)

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
        # Low-rank differences are added once: a pass then costs what the task's own model does.
        self.folded = nn.ModuleDict(
            {
                str(k): expert.correction.added_to(cast(MessagePassing, network))
                for k, expert in enumerate(experts.values())
                if isinstance(expert.correction, Residual)
            }
        )
        self.requires_grad_(False).eval()

    def forward(self, batch: GraphBatch, positions: Sequence[int]) -> list[Tensor]:
        """Compute the outputs of tasks, by their positions; a list of (G, C).

        The mean of an ensemble is that of its predictions, as chemprop averages them: its outputs
        are the logits of mean probabilities, and the mean of numbers.
        """
        pieces = split_by_edges(batch, CACHED_EDGES) if batch.x.is_cpu else [batch]
        found = [self._outputs(piece, positions) for piece in pieces]
        return [torch.cat(of_task) for of_task in zip(*found, strict=True)]

    def _outputs(self, batch: GraphBatch, positions: Sequence[int]) -> list[Tensor]:
        vectors = _Vectors(self, batch)
        outputs = []
        for position in positions:
            expert = cast(DmpnnExpert, self.experts[position])
            found = [member(vectors.of(position, expert, member)) for member in expert.networks]
            outputs.append(_mean_outputs(found, expert.kind))
        return outputs


class _Vectors:
    """The vectors of a batch's molecules; a pass of the shared network is computed once."""

    def __init__(self, model: DmpnnModel, batch: GraphBatch) -> None:
        self.model, self.batch = model, batch
        self.known: dict[str, Tensor] = {}

    def of(self, position: int, expert: DmpnnExpert, member: Member) -> Tensor:
        """Return the vectors that a member of a task reads, (G, d)."""
        if member.network is not None:
            own: Tensor = member.network(self.batch)
            return own
        if str(position) in self.model.folded:
            return self._once(str(position), self.model.folded[str(position)], None)
        correction = cast(SiteAdapters | None, expert.correction)
        if correction is not None and len(correction.sites) > 1:
            return self._once(str(position), self.model.network, correction.correct)
        shared = self._once("", self.model.network, None)
        return shared if correction is None else correction.correct(0, shared)

    def _once(self, name: str, network: nn.Module, correct: SiteHook | None) -> Tensor:
        if name not in self.known:
            self.known[name] = network(self.batch, correct)
        return self.known[name]


def _mean_outputs(outputs: list[Tensor], kind: OutputKind) -> Tensor:
    """Return the outputs whose predictions are the mean of the members' predictions."""
    if len(outputs) == 1:
        return outputs[0]
    stacked = torch.stack(outputs).double()
    if kind == "multilabel":
        # log(mean p) - log(mean (1 - p)) is exact also where p is nearly 1.
        positive, negative = F.logsigmoid(stacked), F.logsigmoid(-stacked)
        return (positive.logsumexp(0) - negative.logsumexp(0)).float()
    if kind == "multiclass":
        return stacked.log_softmax(-1).logsumexp(0).float()
    return stacked.mean(0).float()
