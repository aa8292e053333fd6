"""The unified model: one backbone, streams, graph adapters and heads predict all tasks in one
pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from models.data.batch import GraphBatch, mean_readout, pair_scores
from models.errors import InvalidInputError
from models.experts.adapter import Stream, apply_norm, batch_statistics
from models.experts.bank import AdapterBank, NodeAdapterBank
from models.experts.expert import TaskExpert
from models.experts.node_sums import NodeSum
from models.experts.router import RouterConfig, graph_distances, node_distances, routing_weights
from models.experts.streams import StreamSelection, StreamTable
from models.networks.base import LayeredNetwork
from models.ops.segment import segment_count
from models.task import OutputKind, answers, select_tasks
from models.transport.problem import Support

Routing = Literal["moe", "own", "merged"]
Statistics = Literal["stored", "batch"]
DEFAULT_ROUTING: Routing = "own"
"""Default routing: mixing costs more time and does not improve the scores (docs/results.md)."""


@dataclass(frozen=True)
class UnifiedOutput:
    """Output of a unified model for a batch of G graphs with N nodes.

    Attributes:
        logits: by task, (G, C), or (N, C) for a task at level "node", (P, 1) at level "pair".
        routing_weights: by task, (G, L+1, K): layers 0 to L - 1, then the graph site. For each
            graph and site the K weights sum to 1; they are one-hot for routing "own".
        targets: by task, what its logits are; tasks without an entry are multilabel.
        embeddings: by stream of the pass, (G, d), the readout before any graph adapter. The stream
            of a single task has the task's name.
    """

    logits: dict[str, Tensor]
    routing_weights: dict[str, Tensor]
    targets: Mapping[str, OutputKind] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """Predictions by task, (G or N, C): probabilities, or predicted values for regression."""
        return {task: answers(logits, self.target(task)) for task, logits in self.logits.items()}

    def target(self, task: str) -> OutputKind:
        """Return what the logits of a task are."""
        return self.targets.get(task, "multilabel")


class UnifiedModel(nn.Module):
    """A merged model of layered networks: backbone, streams, experts and router.

    A pass computes each stream once that the requested tasks read from: node tensors have the shape
    (N, S, d). Streams share the backbone's weights; each has its own node adapters, or none, and
    BatchNorm statistics. After the readout each task has its own graph adapter and head.

    Attributes:
        streams: which stream every task reads from.
        node_banks, shared_banks: by layer, the node adapters of streams of single tasks, between
            which the router mixes, and those of shared streams, whose rank may be 0. No banks where
            there are no such streams.
        graph_bank: the graph adapters of all tasks.
        norm_mean, norm_var: (L, streams, d), BatchNorm statistics.
    """

    norm_mean: Tensor
    norm_var: Tensor

    def __init__(
        self, backbone: LayeredNetwork, experts: Mapping[str, TaskExpert], router: RouterConfig
    ) -> None:
        """Raises InvalidInputError: see `models.experts.expert.shared_streams`."""
        super().__init__()
        self.backbone = backbone
        self.router = router
        self.tasks = tuple(experts)
        self.label_names = {task: expert.label_names for task, expert in experts.items()}
        num_layers = backbone.config.num_layers
        self.site_names = (*(f"layer_{k}" for k in range(num_layers)), "graph")
        self.streams = table = StreamTable(experts)
        self.node_banks = _node_banks(table.streams[: table.own])
        self.shared_banks = _node_banks(table.streams[table.own :])
        self.graph_bank = AdapterBank([expert.graph_adapter for expert in experts.values()])
        for name in ("norm_mean", "norm_var"):
            values = [stream.get_buffer(name) for stream in table.streams]
            self.register_buffer(name, torch.stack(values, 1))
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
                of KDEM). At node sites only the adapters of streams of single tasks mix, for these
                tasks; tasks that share a stream mix at the graph site alone.
            statistics: BatchNorm statistics. With "stored" a prediction depends on its graph only.
                With "batch", as in the authors' evaluation, it depends on the rest of the batch;
                for comparison only.

        Returns:
            Outputs of the requested tasks, in their order.

        Raises:
            UnknownTaskError: the model does not have a task.
            InvalidInputError: the routing or statistics are unknown, or a task is at level "pair"
                and the batch has no pairs.
        """
        if routing not in get_args(Routing) or statistics not in get_args(Statistics):
            raise InvalidInputError(
                f"got routing {routing!r} and statistics {statistics!r}, expected one of"
                f" {get_args(Routing)} and of {get_args(Statistics)}"
            )
        names, positions = select_tasks(self.tasks, tasks)
        found = self._run(batch, positions, routing, statistics)
        chosen, nodes = found.adapters.chosen, found.nodes
        logits = {}
        for t, (task, position) in enumerate(zip(names, positions, strict=True)):
            level = self.levels[task]
            h = found.corrected[:, t] if level == "graph" else nodes[:, chosen.of_task[t]]
            outputs = self.heads[position](h)
            logits[task] = pair_scores(outputs, batch) if level == "pair" else outputs
        weights = torch.stack(found.adapters.weights, dim=1)
        stream_names = [self.streams.names[k] for k in chosen.streams]
        return UnifiedOutput(
            logits,
            {task: weights[:, :, t] for t, task in enumerate(names)},
            self.targets,
            dict(zip(stream_names, found.readout.unbind(1), strict=True)),
        )

    def node_sums(
        self, batch: GraphBatch, labels: Mapping[str, Sequence[int]], routing: Routing
    ) -> dict[str, NodeSum]:
        """Split the outputs of labels into contributions of the nodes, exactly.

        The readout is a mean and the graph adapter relu(g D) U has no bias. With the units
        a = 1[g D > 0] that are active for a graph, its output is
        b + (1/N) sum_i h_i . w_eff, w_eff = w - D diag(a) U w for the head's weights w and bias b.
        With routing "moe" and "merged" the same holds with the graph's routing weights held fixed.

        Args:
            batch: G graphs.
            labels: by task at level "graph", positions of labels among the head's outputs.
            routing: as of `forward`.

        Returns:
            By task, the sums of these labels.

        Raises:
            UnknownTaskError: the model does not have a task.
            InvalidInputError: a task is at another level than "graph".
        """
        names, positions = select_tasks(self.tasks, tuple(labels))
        if inside := [task for task in names if self.levels[task] != "graph"]:
            got = f"got task {inside[0]!a} at level {self.levels[inside[0]]!r}"
            raise InvalidInputError(f"{got}, expected 'graph'")
        found = self._run(batch, positions, routing, "stored")
        sizes = segment_count(batch.batch, batch.num_graphs)
        # Sums over atoms in float64: a float32 loses up to 1e-5 of an output.
        nodes, readout = found.nodes.double(), found.readout.double()
        sums = {}
        for t, (task, position) in enumerate(zip(names, positions, strict=True)):
            head, rows = cast(nn.Linear, self.heads[position]), list(labels[task])
            h = found.adapters.subtract_tangent(t, readout, nodes)
            contributions = h @ head.weight[rows].double().T / sizes[batch.batch].unsqueeze(1)
            outputs = head(found.corrected[:, t])[:, rows]
            sums[task] = NodeSum(outputs, head.bias[rows], contributions, sizes.tolist())
        return sums

    def _run(
        self, batch: GraphBatch, positions: Sequence[int], routing: Routing, statistics: Statistics
    ) -> "_UnifiedPass":
        """Compute all that comes before the heads."""
        chosen = self.streams.select(positions)
        streams = torch.tensor(chosen.streams, device=batch.x.device)
        adapters = _AdapterPass(self, batch, chosen, routing)

        def normalise(layer: int, h: Tensor) -> Tensor:
            stored = self.norm_mean[layer][streams], self.norm_var[layer][streams]
            return apply_norm(
                self.backbone,
                layer,
                h,
                *(stored if statistics == "stored" else batch_statistics(h)),
            )

        encoded = self._encoded(batch, [self.streams.names[k] for k in chosen.streams])
        nodes = self.backbone(encoded, adapters.correct_nodes, normalise)
        readout = mean_readout(nodes, batch)
        return _UnifiedPass(adapters, nodes, readout, adapters.correct_graphs(readout))

    def _encoded(self, batch: GraphBatch, streams: Sequence[str]) -> GraphBatch:
        """Return the batch with the encoded node features of every stream, (N, S, in_dim); the
        batch itself if no task of the model has an encoder. Only streams of single tasks have
        encoders, by the task's name."""
        if not self._encoder_of:
            return batch
        numbers = [self._encoder_of.get(name) for name in streams]
        encoded = [batch.x if k is None else self.encoders[k](batch.x) for k in numbers]
        return replace(batch, x=torch.stack(encoded, dim=1))


@dataclass(frozen=True)
class _UnifiedPass:
    """What a pass computes before the heads.

    Attributes:
        adapters: which streams it has, and the routing weights.
        nodes: (N, S, d), node embeddings.
        readout: (G, S, d).
        corrected: (G, T, d), the readout after the graph adapters of the requested tasks.
    """

    adapters: "_AdapterPass"
    nodes: Tensor
    readout: Tensor
    corrected: Tensor


def _node_banks(streams: Sequence[Stream]) -> Sequence[NodeAdapterBank]:
    """Stack the node adapters of streams, by layer, as a list of modules; no banks without
    streams."""
    by_layer = zip(*(stream.node_adapters for stream in streams), strict=True)
    banks = nn.ModuleList(NodeAdapterBank(adapters) for adapters in by_layer)
    return cast(Sequence[NodeAdapterBank], banks)


class _AdapterPass:
    """The adapters in one pass: subtracts their outputs site by site and records routing weights.

    Attributes:
        experts, sharing: positions of the streams of single tasks in `node_banks`, (own,), and of
            shared streams in `shared_banks`.
        support: pairs of nodes of the transport problems; None if no node site mixes.
        shared: node routing weights (G, own, K_own) of the first site that mixes, with routing
            "merged".
        weights: routing weights (G, T, K) of the sites so far.
    """

    def __init__(
        self, model: UnifiedModel, batch: GraphBatch, chosen: StreamSelection, routing: Routing
    ) -> None:
        self.router, self.batch, self.chosen, self.routing = model.router, batch, chosen, routing
        self.node_banks, self.shared_banks = model.node_banks, model.shared_banks
        self.graph_bank, device = model.graph_bank, batch.x.device
        self.experts = torch.tensor(chosen.streams[: chosen.own], dtype=torch.int64, device=device)
        shared = [k - len(chosen.own_tasks) for k in chosen.streams[chosen.own :]]
        self.sharing = torch.tensor(shared, dtype=torch.int64, device=device)
        self.support = (
            Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs)
            if routing != "own" and chosen.own
            else None
        )
        self.shared: Tensor | None = None
        self.one_hot = chosen.one_hot(batch.num_graphs, model.graph_bank.up)
        self.weights: list[Tensor] = []

    def correct_nodes(self, layer: int, h: Tensor) -> Tensor:
        """Subtract adapter outputs after a layer: h (N, d) or (N, S, d) -> (N, S, d)."""
        h, own = h.unsqueeze(1) if h.dim() == 2 else h, self.chosen.own
        # all streams are one before the first layer's adapters
        first, others = (h, h) if h.shape[1] == 1 else (h[:, :own], h[:, own:])
        weights, corrected = None, []
        if len(self.experts):
            first, weights = self._correct_own(layer, first)
            corrected.append(first)
        if len(self.sharing):
            bank = self.shared_banks[layer]
            corrected.append(others - bank.target_outputs(others, self.sharing))
        self.weights.append(self.chosen.by_task(weights, self.one_hot))
        return corrected[0] if len(corrected) == 1 else torch.cat(corrected, 1)

    def _correct_own(self, layer: int, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Subtract adapter outputs in the streams of single tasks: h (N, own or 1, d) -> (N, own,
        d), and node routing weights, None if the layer does not mix."""
        bank = self.node_banks[layer]
        if self.support is None or not self.router.mixes(layer, len(self.node_banks)):
            return h - bank.target_outputs(h, self.experts), None
        if self.shared is not None:
            return self._fuse(layer, h, self.shared), self.shared
        z = bank.project(h).expand(-1, len(self.experts), -1, -1)
        distances = node_distances(z, bank.gram, self.experts, self.support, self.router)
        weights = routing_weights(distances, self.router.temperature, self.router.top_k)
        if self.routing == "merged":
            self.shared = weights
            return self._fuse(layer, h, weights), weights
        return h - bank.mix(z, weights[self.batch.batch]), weights

    def bank(self, site: int) -> AdapterBank:
        """Return the adapters that mix at a site."""
        return self.node_banks[site] if site < len(self.node_banks) else self.graph_bank

    def _fuse(self, site: int, h: Tensor, weights: Tensor) -> Tensor:
        """Subtract the output of one adapter of averaged parameters per graph and stream."""
        of_nodes = site < len(self.node_banks)
        sizes = segment_count(self.batch.batch, self.batch.num_graphs).tolist()
        corrected: Tensor = h - self.bank(site).fuse(
            h, weights, sizes if of_nodes else [1] * len(h)
        )
        return corrected

    def correct_graphs(self, h: Tensor) -> Tensor:
        """Subtract adapter outputs after the readout: h (G, S, d) -> (G, T, d)."""
        bank, of_task = self.graph_bank, list(self.chosen.of_task)
        by_task = h[:, of_task]
        if self.routing == "own":
            self.weights.append(self.one_hot)
            return by_task - bank.target_outputs(by_task, self._tasks(h))
        z = bank.project(h)
        if self.routing == "moe":
            self.weights.append(self._graph_weights(z))
            return by_task - bank.mix(z[:, of_task], self.weights[-1])
        weights = self._merged_weights(z)
        self.weights.append(weights)
        return self._fuse(len(self.node_banks), by_task, weights)

    def subtract_tangent(self, task: int, readout: Tensor, nodes: Tensor) -> Tensor:
        """Subtract from every node what the graph adapters would subtract if they were linear, as
        they are near the graph's readout.

        Args:
            task: number of the requested task, 0 to T - 1.
            readout: (G, S, d).
            nodes: (N, S, d).

        Returns:
            (N, d); the mean over a graph's nodes is the result of `correct_graphs` for the task.
        """
        stream, weights = self.chosen.of_task[task], self.weights[-1][:, task]
        h, at = nodes[:, stream], readout[:, stream]
        if self.routing == "merged":
            sizes = segment_count(self.batch.batch, self.batch.num_graphs).tolist()
            return h - self.graph_bank.fused_tangent(at, h, sizes, weights)
        return h - self.graph_bank.tangent(at, h, self.batch.batch, weights)

    def _merged_weights(self, z: Tensor) -> Tensor:
        """Return the weights (G, T, K) of routing "merged" at the graph site: those of the first
        node site that mixed where the task's stream has one, else those of this site."""
        if self.shared is None:
            return self._graph_weights(z)
        known = self.chosen.by_task(self.shared, self.one_hot)
        if all(self.chosen.has_own_stream):
            return known
        own = torch.tensor(self.chosen.has_own_stream, device=z.device).unsqueeze(1)
        return torch.where(own, known, self._graph_weights(z))

    def _graph_weights(self, z: Tensor) -> Tensor:
        """Compute the routing weights (G, T, K) of the graph site from projections (G, S, K, r)."""
        outputs = torch.einsum("gskr,krd->gskd", z, self.graph_bank.up)
        # Task by task: for all tasks of a stream at once the differences are K times as large.
        distances = [
            graph_distances(outputs[:, stream : stream + 1], task)
            for stream, task in zip(self.chosen.of_task, self._tasks(z).split(1), strict=True)
        ]
        router = self.router
        return routing_weights(torch.cat(distances, 1), router.graph_temperature, router.top_k)

    def _tasks(self, like: Tensor) -> Tensor:
        return torch.tensor(self.chosen.tasks, device=like.device)
