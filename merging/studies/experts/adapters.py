"""The graph adapters of a shared stream as experts: their ensemble, one adapter of averaged
parameters, and joint alignment that ties the adapters together (KDEM, PPEM).

With g the readout of a graph, expert i subtracts f_i(g) = relu(g D_i) U_i. For a request on task k
the experts count by w = softmax_i(-mean |f_i(g) - f_k(g)| / temperature) over the nearest ones. The
ensemble subtracts sum_i w_i f_i(g), as routing `moe`; the merged expert relu(g D') U' with D' =
sum_i w_i D_i and U' = sum_i w_i U_i, as routing `merged`.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merging.studies.experts.config import VariantConfig
from merging.studies.experts.training import pull_states
from merging.training.joint_alignment import SharedOutputs, SharedStream
from models.data.batch import GraphBatch
from models.experts.adapter import Adapter
from models.experts.router import RouterConfig, graph_distances, routing_weights


@dataclass(frozen=True, eq=False)
class AdapterExperts:
    """K adapters of one shape; gradients flow to them.

    Attributes:
        down: (K, d, r).
        up: (K, r, d).
        router: its temperature of the graph site and `top_k`.
    """

    down: Tensor
    up: Tensor
    router: RouterConfig

    @classmethod
    def of(cls, stream: SharedStream, router: RouterConfig) -> "AdapterExperts":
        """Return the graph adapters of a stream, in the order of its tasks."""
        adapters = [cast(Adapter, adapter) for adapter in stream.adapters]
        down, up = (torch.stack([getattr(a, name) for a in adapters]) for name in ("down", "up"))
        return cls(down, up, router)

    def outputs(self, readout: Tensor) -> Tensor:
        """Compute what every expert subtracts: (G, d) -> (G, K, d)."""
        hidden = torch.einsum("gd,kdr->gkr", readout, self.down).relu()
        return torch.einsum("gkr,krd->gkd", hidden, self.up)

    def distances(self, outputs: Tensor, task: int) -> Tensor:
        """Compute the mean absolute difference of all experts' outputs (G, K, d) to those of the
        task's own expert, (G, K)."""
        return graph_distances(outputs[:, None], torch.tensor([task]))[:, 0]

    def weights(self, distances: Tensor, task: int, strangers: bool = False) -> Tensor:
        """Compute routing weights, (*, K) -> (*, K); with `strangers` the task's own expert is left
        out."""
        if strangers:
            own = torch.arange(distances.shape[-1]) == task
            distances = distances.masked_fill(own, float("inf"))
        return routing_weights(distances, self.router.graph_temperature, self.router.top_k)

    def merged(self, readout: Tensor, weights: Tensor) -> Tensor:
        """Compute what the expert of averaged parameters subtracts, one for every graph: readouts
        (G, d), weights (G, K) -> (G, d)."""
        down, up = (torch.einsum("gk,kij->gij", weights, own) for own in (self.down, self.up))
        return ((readout[:, None] @ down).relu() @ up)[:, 0]


def ensemble(outputs: Tensor, weights: Tensor) -> Tensor:
    """Average outputs: (G, K, d), (G, K) -> (G, d)."""
    return torch.einsum("gk,gkd->gd", weights, outputs)


def distillation(experts: AdapterExperts, readout: Tensor, task: int) -> Tensor:
    """Compute KDEM's loss for requests on a task: the squared difference between what the merged
    expert and the ensemble subtract, relative to the ensemble's square, a scalar.

    It is relative since adapters subtract little: the plain square would be far below the loss of
    any training. Weights and scale are held fixed. Gradients flow through both sides, see
    `merging.studies.experts.training.distillation`.
    """
    outputs = experts.outputs(readout)
    weights = experts.weights(experts.distances(outputs.detach(), task), task)
    expected = ensemble(outputs, weights)
    scale = expected.detach().square().mean().clamp(min=torch.finfo(expected.dtype).tiny)
    return F.mse_loss(experts.merged(readout, weights), expected) / scale


class TiedStream(SharedStream):
    """A shared stream whose adapters are tied together while they are trained: KDEM's term of the
    loss, and PPEM's pulls after a step. Both look at the requests of one task, in turn.

    Attributes:
        tie: weights of KDEM and PPEM.
        router: see `AdapterExperts`.
    """

    tie: VariantConfig
    router: RouterConfig
    _readout: Tensor

    @classmethod
    def of(cls, stream: SharedStream, tie: VariantConfig, router: RouterConfig) -> "TiedStream":
        """Tie a stream, whose modules are taken over."""
        layers = (cast(nn.Linear, head) for head in stream.heads)
        heads = dict(zip(stream.tasks, layers, strict=True))
        rank = stream.adapters[0].get_parameter("up").shape[0]
        tied = cls(stream.backbone, heads, rank)
        tied.adapters, tied.tie, tied.router = stream.adapters, tie, router
        return tied

    def forward(self, batch: GraphBatch) -> SharedOutputs:
        """See `SharedStream.forward`; keeps the readout for the terms of this step."""
        found = super().forward(batch)
        self._readout = found.readout
        return found

    def own_loss(self, step: int) -> Tensor | float:
        """KDEM's term of a step. See `JointStudent.own_loss`."""
        if not self.tie.gamma or step % self.tie.distil_every:
            return 0.0
        task = step // self.tie.distil_every % len(self.tasks)
        experts = AdapterExperts.of(self, self.router)
        # The experts are the adapters; what they read is no part of them.
        return self.tie.gamma * distillation(experts, self._readout.detach(), task)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """PPEM's pull. All graphs of a batch share one merged expert, by their mean distances."""
        if self.tie.beta == 1 or step % self.tie.pull_every:
            return
        task = step // self.tie.pull_every % len(self.tasks)
        experts = AdapterExperts.of(self, self.router)
        distances = experts.distances(experts.outputs(self._readout), task).mean(0)
        states = [dict[str, Tensor](adapter.named_parameters()) for adapter in self.adapters]
        pull_states(states, experts.weights(distances, task), self.tie.beta)


def share_draw(stream: SharedStream) -> SharedStream:
    """Let all adapters start from the first one's `down`, as those of `training.alignment.align`
    do; without it every task has a draw of its own."""
    first, *others = stream.adapters
    for adapter in others:
        adapter.load_state_dict(first.state_dict())
    return stream
