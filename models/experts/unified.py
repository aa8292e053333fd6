"""The unified model: one backbone, one adapter bank and K heads predict all tasks in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.batch import GraphBatch, mean_readout
from models.errors import InvalidInputError
from models.experts.adapter import apply_norm, batch_statistics
from models.experts.bank import AdapterBank
from models.experts.expert import Expert
from models.experts.router import RouterConfig, graph_distances, node_distances, routing_weights
from models.networks.base import LayeredNetwork
from models.ops.segment import segment_count
from models.task import OutputKind, answers, select_tasks
from models.transport.problem import Support

Routing = Literal["moe", "own", "merged"]
Statistics = Literal["stored", "batch"]
DEFAULT_ROUTING: Routing = "own"
"""Default routing: mixing costs more time and does not improve the scores (README)."""


@dataclass(frozen=True)
class UnifiedOutput:
    """Output of a unified model for a batch of G graphs with N nodes.

    Attributes:
        logits: by task, (G, C), or (N, C) for a task at level "node".
        routing_weights: by task, (G, L+1, K): layers 0 to L - 1, then the graph site. For each
            graph and site the K weights sum to 1; they are one-hot for routing "own".
        targets: by task, what its logits are; tasks without an entry are multilabel.
    """

    logits: dict[str, Tensor]
    routing_weights: dict[str, Tensor]
    targets: Mapping[str, OutputKind] = field(default_factory=dict)

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """Predictions by task, (G or N, C): probabilities, or predicted values for regression."""
        return {task: answers(logits, self.target(task)) for task, logits in self.logits.items()}

    def target(self, task: str) -> OutputKind:
        """Return what the logits of a task are."""
        return self.targets.get(task, "multilabel")


class UnifiedModel(nn.Module):
    """A merged model of layered networks: backbone, experts and router.

    A pass has one stream per requested task: node tensors have the shape (N, T, d). Streams share
    the backbone's weights; each has the adapters and BatchNorm statistics of its task.
    """

    def __init__(
        self, backbone: LayeredNetwork, experts: Mapping[str, Expert], router: RouterConfig
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.router = router
        self.tasks = tuple(experts)
        self.label_names = {task: expert.label_names for task, expert in experts.items()}
        self.site_names = (*(f"layer_{k}" for k in range(backbone.config.num_layers)), "graph")
        self.bank = AdapterBank([expert.adapters for expert in experts.values()])
        self.heads = nn.ModuleList(expert.head for expert in experts.values())
        encoders = {
            task: expert.encoder for task, expert in experts.items() if expert.encoder is not None
        }
        self._encoder_of = {task: k for k, task in enumerate(encoders)}
        # Not a ModuleDict: it refuses names with a dot, and "train".
        self.encoders = nn.ModuleList(encoders.values())
        self.levels = {task: expert.level for task, expert in experts.items()}
        self.targets = {task: expert.target for task, expert in experts.items()}
        self.requires_grad_(False).eval()

    def forward(
        self,
        batch: GraphBatch,
        tasks: Sequence[str] | None = None,
        routing: Routing = DEFAULT_ROUTING,
        statistics: Statistics = "stored",
    ) -> UnifiedOutput:
        """Predict tasks for a batch.

        Args:
            batch: G graphs.
            tasks: names of the requested tasks; None for all.
            routing: "own" subtracts the output of the task's own adapter (G-Merging-s). "moe"
                subtracts the weighted mean of all experts' adapter outputs. "merged" averages the
                adapters' parameters instead, with the weights of the first site that mixes, into
                one adapter per graph and task for that site and all later ones (the merged expert
                of KDEM).
            statistics: BatchNorm statistics. With "stored" a prediction depends on its graph only.
                With "batch", as in the authors' evaluation, it depends on the rest of the batch;
                for comparison only.

        Returns:
            Outputs of the requested tasks, in their order.

        Raises:
            UnknownTaskError: the model does not have a task.
            InvalidInputError: the routing or statistics are unknown.
        """
        if routing not in get_args(Routing) or statistics not in get_args(Statistics):
            raise InvalidInputError(
                f"got routing {routing!r} and statistics {statistics!r}, expected one of"
                f" {get_args(Routing)} and of {get_args(Statistics)}"
            )
        names, positions = select_tasks(self.tasks, tasks)
        experts = torch.tensor(positions, device=batch.x.device)
        stream = _Stream(self, batch, experts, routing)

        def normalise(layer: int, h: Tensor) -> Tensor:
            stored = self.bank.norm_mean[layer][experts], self.bank.norm_var[layer][experts]
            return apply_norm(
                self.backbone,
                layer,
                h,
                *(stored if statistics == "stored" else batch_statistics(h)),
            )

        nodes = self.backbone(self._encoded(batch, names), stream.correct_nodes, normalise)
        embeddings = {"node": nodes, "graph": stream.correct_graphs(mean_readout(nodes, batch))}
        logits = {
            task: self.heads[position](embeddings[self.levels[task]][:, t])
            for t, (task, position) in enumerate(zip(names, positions, strict=True))
        }
        weights = torch.stack(stream.weights, dim=1)
        return UnifiedOutput(
            logits, {task: weights[:, :, t] for t, task in enumerate(names)}, self.targets
        )

    def _encoded(self, batch: GraphBatch, tasks: Sequence[str]) -> GraphBatch:
        """Return the batch with the encoded node features of every task, (N, T, in_dim); the batch
        itself if no task of the model has an encoder."""
        if not self._encoder_of:
            return batch
        numbers = [self._encoder_of.get(task) for task in tasks]
        streams = [batch.x if k is None else self.encoders[k](batch.x) for k in numbers]
        return replace(batch, x=torch.stack(streams, dim=1))


class _Stream:
    """The adapters in one pass: subtracts their outputs site by site and records routing weights.

    Attributes:
        support: pairs of nodes of the transport problems; None if nothing mixes.
        shared: routing weights (G, T, K) of the first site that mixes, with routing "merged".
        weights: routing weights (G, T, K) of the sites so far.
    """

    def __init__(
        self, model: UnifiedModel, batch: GraphBatch, experts: Tensor, routing: Routing
    ) -> None:
        self.bank, self.router, self.batch, self.experts = model.bank, model.router, batch, experts
        self.support = (
            Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs)
            if routing != "own"
            else None
        )
        self.merges = routing == "merged"
        self.shared: Tensor | None = None
        self.one_hot = (
            F.one_hot(experts, len(model.tasks))
            .to(model.bank.up.dtype)
            .expand(batch.num_graphs, -1, -1)
        )
        self.weights: list[Tensor] = []

    def correct_nodes(self, layer: int, h: Tensor) -> Tensor:
        """Subtract adapter outputs after a layer: h (N, d) or (N, T, d) -> (N, T, d)."""
        h = h.unsqueeze(1) if h.dim() == 2 else h
        if self.support is None or not self.router.mixes(layer, len(self.bank.up) - 1):
            return self._subtract_target(layer, h)
        if self.shared is not None:
            return self._subtract_fused(layer, h, self.shared)
        z = self.bank.project(layer, h).expand(-1, len(self.experts), -1, -1)
        distances = node_distances(
            z, self.bank.gram[layer], self.experts, self.support, self.router
        )
        weights = routing_weights(distances, self.router.temperature, self.router.top_k)
        of_node = weights[self.batch.batch]
        return (
            self._subtract_fused(layer, h, weights)
            if self.merges
            else self._subtract(h, self.bank.mix(layer, z, of_node), weights)
        )

    def correct_graphs(self, h: Tensor) -> Tensor:
        """Subtract adapter outputs after the readout: h (G, T, d) -> (G, T, d)."""
        site = len(self.bank.up) - 1
        if self.support is None:
            return self._subtract_target(site, h)
        if self.shared is not None:
            return self._subtract_fused(site, h, self.shared)
        z = self.bank.project(site, h)
        outputs = torch.einsum("gtkr,krd->gtkd", z, self.bank.up[site])
        weights = routing_weights(
            graph_distances(outputs, self.experts), self.router.graph_temperature, self.router.top_k
        )
        return (
            self._subtract_fused(site, h, weights)
            if self.merges
            else self._subtract(h, self.bank.mix(site, z, weights), weights)
        )

    def _subtract_target(self, site: int, h: Tensor) -> Tensor:
        return self._subtract(h, self.bank.target_outputs(site, h, self.experts), self.one_hot)

    def _subtract_fused(self, site: int, h: Tensor, weights: Tensor) -> Tensor:
        self.shared = weights
        of_graphs = site == len(self.bank.up) - 1
        sizes = (
            [1] * len(h)
            if of_graphs
            else segment_count(self.batch.batch, self.batch.num_graphs).tolist()
        )
        return self._subtract(h, self.bank.fuse(site, h, weights, sizes), weights)

    def _subtract(self, h: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        self.weights.append(weights)
        return h - bias
