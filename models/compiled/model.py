"""The unified model for many molecules at a time on a CPU: the same answers as
`models.experts.unified`, for a fraction of the work.

- **Nothing is computed twice.** A node's state after l layers is a function of its surroundings up
  to l bonds away. Nodes that cannot differ are one class (`models.compiled.batch`, exact), and a
  layer is computed once per class: over the whole batch where each task's own adapter is used,
  within each molecule where the router gives every molecule weights of its own.
- **Products are folded.** What an adapter projects is a product with the layer's weights, which are
  multiplied in advance; bond embeddings and biases are one product with counts of bonds; BatchNorm
  is a factor and an offset.
- **The last layer is never computed for nodes.** No relu follows it, so that the mean over the
  atoms goes before the product; only the adapters' few columns are needed for each node.
- **The rest is loops in the cache** (`models.compiled.kernels`): messages, adapter, BatchNorm and
  relu in one, and the router's transport problems.

Source: G-Merging, as in `models.experts.unified`; the folding and the classes are ours.
"""

import math
from collections.abc import Sequence
from typing import cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.compiled import kernels
from models.compiled.batch import Classes, PreparedBatch, graph_sums, readout_weights
from models.compiled.fold import ExpertSelection, FoldedLayer, fold_layer
from models.compiled.transport import transport_distances
from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.experts.router import routing_weights
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedModel, UnifiedOutput
from models.networks.hu2020 import Backbone
from models.task import select_tasks

_LEAST_EPSILON = 0.05
_MOST_TOLERANCE = 60.0  # in units of epsilon: beyond both, the kernel's numbers would leave float32
_BLOCK_ROWS = 512  # of a product: what it reads and writes then stays in the cache
_MOST_ROWS = 4096  # of all streams together that are worked on at a time


class _Room:
    """Memory that is used again and again during one call: fresh pages cost more than what is
    written to them."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, unfilled, in place of the last one of this name."""
        size = math.prod(shape)
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = torch.empty(size)
        return self._held[name][:size].view(shape)


class CompiledModel:
    """Answers as the `UnifiedModel` that it was made from does, with stored statistics, on the CPU,
    in float32.

    It keeps none of that model's tensors but the embeddings and the heads.
    """

    def __init__(self, model: UnifiedModel) -> None:
        if not self.supports(model):
            raise InvalidInputError(
                "got a model that cannot be compiled, expected a GCN on the CPU with the plain"
                " entropic router"
            )
        self.tasks, self.site_names = model.tasks, model.site_names
        self._router, self._heads = model.router, model.heads
        backbone = cast(Backbone, model.backbone)  # a GCN for molecules, as `supports` says
        self._embeddings = (
            backbone.x_embedding1.weight.detach(),
            backbone.x_embedding2.weight.detach(),
        )
        self._layers = [fold_layer(model, layer) for layer in range(backbone.config.num_layers)]
        # (K, d, r) and (K, r, d)
        self._graph_down, self._graph_up = (
            model.bank.down[-1].movedim(1, 0).contiguous(),
            model.bank.up[-1].clone(),
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Width d of the backbone and rank r of the adapters."""
        return self._graph_down.shape[1], self._graph_down.shape[2]

    @property
    def num_bytes(self) -> int:
        """Of all tensors that it holds."""
        tensors = [*self._embeddings, self._graph_down, self._graph_up, *self._heads.parameters()]
        tensors += [value for layer in self._layers for value in vars(layer).values()]
        return sum(value.numel() * value.element_size() for value in tensors)

    @staticmethod
    def supports(model: UnifiedModel) -> bool:
        """Whether a model can be compiled: a GCN for molecules on the CPU, labels of graphs, and a
        router that solves the plain entropic problem."""
        router = model.router
        plain = (
            router.solver == "sinkhorn" and not router.debias and router.epsilon >= _LEAST_EPSILON
        )
        if {*model.levels.values(), *model.targets.values()} != {"graph", "multilabel"}:
            return False
        return (
            plain
            and router.tolerance / router.epsilon <= _MOST_TOLERANCE
            and model.backbone.config.kind == "gcn"
            and model.bank.up.is_cpu
        )

    @torch.inference_mode()
    def __call__(
        self,
        batch: GraphBatch,
        tasks: Sequence[str] | None = None,
        routing: Routing = DEFAULT_ROUTING,
    ) -> UnifiedOutput:
        """As `UnifiedModel.forward`, with stored statistics."""
        if routing not in get_args(Routing):
            raise InvalidInputError(f"got routing {routing!r}, expected one of {get_args(Routing)}")
        names, positions = select_tasks(self.tasks, tasks)
        asked, graphs, room = ExpertSelection(positions), PreparedBatch.from_batch(batch), _Room()
        answer = (
            self._mixed
            if routing != "own" and self._router.mixes(len(self._layers) - 2, len(self._layers))
            else self._own
        )
        h, weights = answer(graphs, asked, routing, room)
        logits = {
            task: self._heads[position](h[k])
            for k, (task, position) in enumerate(zip(names, positions, strict=True))
        }
        return UnifiedOutput(logits, {task: weights[:, :, k] for k, task in enumerate(names)})

    def _own(
        self, graphs: PreparedBatch, asked: ExpertSelection, routing: Routing, room: _Room
    ) -> tuple[Tensor, Tensor]:
        """Streams with their own adapters, up to the last layer: there and at the graph site they
        may mix.

        Returns:
            (S, G, d) graph embeddings and (G, L + 1, S, K) weights.
        """
        classes = graphs.classes(len(self._layers) - 1, by_graph=False)
        sums = [graphs.bond_sums(first) for first in classes.first[1:]]
        bonds = [
            (part @ layer.wide[1]).numpy() for part, layer in zip(sums, self._layers, strict=False)
        ]
        # Streams have nothing to do with each other: as many at a time as stay in the cache
        # together.
        at_once = max(1, _MOST_ROWS // max(map(len, classes.first)))
        mixes_last = routing != "own" and self._router.mixes(
            len(self._layers) - 1, len(self._layers)
        )
        parts = [
            self._own_streams(graphs, classes, sums, bonds, part, mixes_last, room)
            for part in asked.split(at_once)
        ]
        means, seen = (torch.cat(each) for each in zip(*parts, strict=True))
        one_hot = self._one_hot(graphs, asked)
        weights = [one_hot] * (len(self._layers) - 1)
        taken, mixed = (
            self._mix_last(graphs, seen, classes.of_node[-1], weights, asked, routing)
            if mixes_last
            else (seen, one_hot)
        )
        h, weights = self._normalise_last(means, taken, asked), [*weights, mixed]
        if routing != "own":
            return (self._merge_graphs if routing == "merged" else self._mix_graphs)(
                h, weights, asked
            )
        h = h - (h @ asked.of(self._graph_down)).relu_() @ asked.of(self._graph_up)
        return h, torch.stack([*weights, one_hot], 1)

    def _own_streams(
        self,
        graphs: PreparedBatch,
        classes: Classes,
        sums: list[Tensor],
        bonds: list[NDArray[np.float32]],
        asked: ExpertSelection,
        mixes_last: bool,
        room: _Room,
    ) -> tuple[Tensor, Tensor]:
        """Some of the streams: the readout of the last layer before its adapters, (S, G, d), and
        with `mixes_last` what all adapters see of the classes before it, (S, C, K * r), else what
        the own ones take from the readout, (S, G, d)."""
        h = self._embed(graphs, classes.first[0]).expand(len(asked), -1, -1).contiguous()
        for level, layer in enumerate(self._layers[:-1]):
            narrow, narrow_bonds = layer.of_experts(asked)
            values = room.take("values", *h.shape)
            _product(h, layer.wide[0], values)
            seen = kernels.project(h.numpy(), narrow.numpy())
            h = room.take("h", len(asked), len(classes.first[level + 1]), h.shape[-1])
            kernels.aggregate_own(
                h.numpy(),
                values.numpy(),
                seen,
                bonds[level],
                torch.matmul(sums[level], narrow_bonds).numpy(),
                asked.of(layer.up).numpy(),
                asked.of(layer.gain).numpy(),
                asked.of(layer.offset).numpy(),
                classes.first[level + 1],
                classes.of_node[level],
                *graphs.edges,
                graphs.scale,
            )
        layer, of_node, means = (
            self._layers[-1],
            classes.of_node[-1],
            self._read_out(graphs, h, classes.of_node[-1]),
        )
        if mixes_last:
            projected = torch.empty(*h.shape[:2], layer.narrow[0].shape[1])
            _product(h, layer.narrow[0], projected)
            return means, projected
        narrow, narrow_bonds = layer.of_experts(asked)
        seen, seen_bonds = (
            kernels.project(h.numpy(), narrow.numpy()),
            torch.matmul(graphs.bond_sums(None), narrow_bonds).numpy(),
        )
        z = kernels.readout_own(
            seen, seen_bonds, of_node, *graphs.edges, graphs.scale, graphs.begins
        )
        return means, torch.from_numpy(z) @ asked.of(layer.up)

    def _mixed(
        self, graphs: PreparedBatch, asked: ExpertSelection, routing: Routing, room: _Room
    ) -> tuple[Tensor, Tensor]:
        """Streams with all adapters, weighed for every graph: as `_own`."""
        parts = [
            self._mixed_graphs(part, asked, routing, room)
            for part, _ in graphs.parts(max(1, _MOST_ROWS // len(asked)))
        ]
        return torch.cat([h for h, _ in parts], 1), torch.cat([weights for _, weights in parts])

    def _mixed_graphs(
        self, graphs: PreparedBatch, asked: ExpertSelection, routing: Routing, room: _Room
    ) -> tuple[Tensor, Tensor]:
        """`_mixed` for as many graphs as stay in the cache together."""
        answer = self._merge_layer if routing == "merged" else self._mix_layer
        classes = graphs.classes(len(self._layers) - 1, by_graph=True)
        h = self._embed(graphs, classes.first[0])
        weights: list[Tensor] = []
        for level, layer in enumerate(self._layers[:-1]):
            first, values = (
                classes.first[level + 1],
                room.take("values", *h.shape[:2], layer.linear.shape[1]),
            )
            _product(h, layer.linear, values)
            passed, mixed, weighed = answer(graphs, classes, values, weights, asked, room)
            weights.append(weighed)
            taken, h = (
                room.take(name, len(asked), len(first), h.shape[-1]) for name in ("values", "h")
            )
            _product(mixed, layer.up.flatten(0, 1), taken)
            gain, offset = asked.of(layer.gain).numpy(), asked.of(layer.offset).numpy()
            kernels.activate(
                h.numpy(), passed.numpy(), taken.numpy(), gain, offset, first, graphs.scale
            )
        of_node, narrow = classes.of_node[-1], self._layers[-1].narrow[0]
        projected = room.take("values", *h.shape[:2], narrow.shape[1])
        _product(h, narrow, projected)
        taken, last = self._mix_last(graphs, projected, of_node, weights, asked, routing)
        h = self._normalise_last(self._read_out(graphs, h, of_node), taken, asked)
        return (self._merge_graphs if routing == "merged" else self._mix_graphs)(
            h, [*weights, last], asked
        )

    def _mix_layer(
        self,
        graphs: PreparedBatch,
        classes: Classes,
        values: Tensor,
        before: list[Tensor],
        asked: ExpertSelection,
        room: _Room,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Messages of the layer after those whose weights are `before`: what goes on (S or 1, C',
        d), the adapters' parts (S, C', K * r) times their weights, and these (G, S, K). `values` (S
        or 1, C, d + K * r) are the product with the layer's weights."""
        level = len(before)
        layer, first = self._layers[level], classes.first[level + 1]
        passed = room.take("passed", len(values), len(first), len(layer.linear))
        where = first, classes.of_node[level], *graphs.edges, graphs.scale
        sizes = len(asked), len(self.tasks), layer.squares.shape[-1]
        z = kernels.aggregate(
            passed.numpy(),
            values.numpy(),
            (graphs.bond_sums(first) @ layer.bonds).numpy(),
            *where,
            *sizes,
        )
        mixes = self._router.mixes(level, len(self._layers))
        weights = (
            self._route(graphs, layer, z, classes.of_node[level + 1], asked)
            if mixes
            else self._one_hot(graphs, asked)
        )
        return (
            passed,
            torch.from_numpy(kernels.weigh(z, weights.numpy(), graphs.graph[first])),
            weights,
        )

    def _merge_layer(
        self,
        graphs: PreparedBatch,
        classes: Classes,
        values: Tensor,
        before: list[Tensor],
        asked: ExpertSelection,
        _: _Room,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_mix_layer` where the adapters' parameters are averaged; the mean of their `up` is left
        to the product that comes after it."""
        level = len(before)
        layer, first, weights = (
            self._layers[level],
            classes.first[level + 1],
            self._one_hot(graphs, asked),
        )
        both = _messages(
            graphs, values, graphs.bond_sums(first) @ layer.bonds, first, classes.of_node[level]
        )
        passed, seen = (
            both[..., : len(layer.linear)].contiguous(),
            both[..., len(layer.linear) :].unflatten(2, layer.up.shape[:2]),
        )
        if self._router.mixes(level, len(self._layers)):
            weights = self._share(graphs, layer, seen, classes.of_node[level + 1], before, asked)
        by_class = weights[torch.from_numpy(graphs.graph[first])].transpose(0, 1)
        return (
            passed,
            (_averaged(seen, by_class).unsqueeze(2) * by_class.unsqueeze(3)).flatten(2),
            weights,
        )

    def _mix_last(
        self,
        graphs: PreparedBatch,
        projected: Tensor,
        of_node: NDArray[np.int64],
        before: list[Tensor],
        asked: ExpertSelection,
        routing: Routing,
    ) -> tuple[Tensor, Tensor]:
        """What the adapters of the last layer take from the readout, (S, G, d), and their weights
        (G, S, K).

        Args:
            projected: (S or 1, C, K * r) what they see of the classes before the layer.
            of_node: (N,) which of them a node is.
            before: weights of the layers before.
        """
        found, begin = [], 0
        answer = self._merge_part if routing == "merged" else self._mix_part
        for part, here in graphs.parts(max(1, _MOST_ROWS // len(asked))):
            end = begin + part.num_graphs
            found.append(
                answer(part, projected, of_node[here], [each[begin:end] for each in before], asked)
            )
            begin = end
        return torch.cat([taken for taken, _ in found], 1), torch.cat(
            [weights for _, weights in found]
        )

    def _mix_part(
        self,
        graphs: PreparedBatch,
        projected: Tensor,
        of_node: NDArray[np.int64],
        _: list[Tensor],
        asked: ExpertSelection,
    ) -> tuple[Tensor, Tensor]:
        """`_mix_last` for as many graphs as stay in the cache together."""
        layer, nodes = self._layers[-1], np.arange(len(graphs.scale))
        sizes = len(asked), len(self.tasks), layer.squares.shape[-1]
        where, nothing = (
            (nodes, of_node, *graphs.edges, graphs.scale),
            np.empty((len(projected), len(nodes), 0), np.float32),
        )
        z = kernels.aggregate(
            nothing,
            projected.numpy(),
            (graphs.bond_sums(None) @ layer.narrow[1]).numpy(),
            *where,
            *sizes,
        )
        weights = self._route(graphs, layer, z, nodes, asked)
        mean = graphs.mean(torch.from_numpy(z).view(1, len(z), -1), nodes).view(-1, *z.shape[1:])[
            ..., : len(self.tasks)
        ]
        return torch.einsum("grsk,gsk,krd->sgd", mean, weights, layer.up), weights

    def _merge_part(
        self,
        graphs: PreparedBatch,
        projected: Tensor,
        of_node: NDArray[np.int64],
        before: list[Tensor],
        asked: ExpertSelection,
    ) -> tuple[Tensor, Tensor]:
        """`_mix_part` where the adapters' parameters are averaged."""
        layer, nodes = self._layers[-1], np.arange(len(graphs.scale))
        seen = _messages(
            graphs, projected, graphs.bond_sums(None) @ layer.narrow[1], nodes, of_node
        ).unflatten(2, layer.up.shape[:2])
        weights = self._share(graphs, layer, seen, nodes, before, asked)
        mean = graphs.mean(
            _averaged(seen, weights[torch.from_numpy(graphs.graph)].transpose(0, 1)), nodes
        )
        return torch.einsum("sgr,gsk,krd->sgd", mean, weights, layer.up), weights

    def _share(
        self,
        graphs: PreparedBatch,
        layer: FoldedLayer,
        seen: Tensor,
        of_node: NDArray[np.int64],
        before: list[Tensor],
        asked: ExpertSelection,
    ) -> Tensor:
        """By what a layer averages parameters, (G, S, K): the weights of the first site that mixes,
        maybe its own. It sees (S or 1, C, K, r)."""
        known = self._known(before)
        if known is not None:
            return known
        z = functional.pad(
            seen.relu().permute(1, 3, 0, 2), (0, layer.squares.shape[-1] - len(self.tasks))
        )
        return self._route(
            graphs, layer, z.expand(-1, -1, len(asked), -1).contiguous().numpy(), of_node, asked
        )

    def _known(self, before: list[Tensor]) -> Tensor | None:
        """The weights of the first site that mixes, if it is one of those before."""
        layers = len(self._layers)
        first = sum(not self._router.mixes(layer, layers) for layer in range(layers))
        return before[first] if first < len(before) else None

    def _one_hot(self, graphs: PreparedBatch, asked: ExpertSelection) -> Tensor:
        return (
            functional.one_hot(asked.experts, len(self.tasks))
            .to(self._graph_up.dtype)
            .expand(graphs.num_graphs, -1, -1)
            .contiguous()
        )

    def _merge_graphs(
        self, h: Tensor, before: list[Tensor], asked: ExpertSelection
    ) -> tuple[Tensor, Tensor]:
        """`_mix_graphs` where the adapters' parameters are averaged."""
        seen = h @ self._graph_down.unsqueeze(1)  # (K, S, G, r)
        weights = self._known(before)
        if weights is None:
            weights = self._weigh_graphs(seen.relu() @ self._graph_up.unsqueeze(1), asked)
        z = _averaged(seen.permute(1, 2, 0, 3), weights.transpose(0, 1))
        return h - torch.einsum("sgr,gsk,krd->sgd", z, weights, self._graph_up), torch.stack(
            [*before, weights], 1
        )

    def _mix_graphs(
        self, h: Tensor, weights: list[Tensor], asked: ExpertSelection
    ) -> tuple[Tensor, Tensor]:
        """The graph site: h (S, G, d) and the weights of the layers -> as `_mixed`."""
        streams, graphs, width = h.shape
        z = (h.reshape(-1, width) @ self._graph_down).relu_()  # (K, S * G, r)
        outputs = (z @ self._graph_up).view(-1, streams, graphs, width)
        weights = [*weights, self._weigh_graphs(outputs, asked)]
        return h - torch.einsum("ksgd,gsk->sgd", outputs, weights[-1]), torch.stack(weights, 1)

    def _weigh_graphs(self, outputs: Tensor, asked: ExpertSelection) -> Tensor:
        """Weights of the experts at the graph site, (G, S, K), from their outputs (K, S, G, d)."""
        distances = kernels.mean_differences(outputs.numpy(), asked.experts.numpy())
        return routing_weights(
            torch.from_numpy(distances), self._router.graph_temperature, self._router.top_k
        )

    def _embed(self, graphs: PreparedBatch, first: NDArray[np.int64]) -> Tensor:
        """(1, C, d) atom embeddings of the classes before the first layer, times scale."""
        rows = torch.from_numpy(first)
        atoms, chirality = graphs.atoms[rows].unbind(1)
        by_atom, by_chirality = self._embeddings
        return (
            (by_atom[atoms] + by_chirality[chirality]) * torch.from_numpy(graphs.scale)[rows, None]
        )[None]

    def _read_out(self, graphs: PreparedBatch, h: Tensor, of_node: NDArray[np.int64]) -> Tensor:
        """The mean over each graph of the last convolution's output, without that output: h (S or
        1, C, d) before the layer -> (S or 1, G, d)."""
        linear, bonds = self._layers[-1].wide
        counts = readout_weights(*graphs.edges, graphs.scale, graphs.begins)
        received = torch.from_numpy(graph_sums(h.numpy(), of_node, counts, graphs.begins))
        return (
            received @ linear
            + graphs.mean(graphs.bond_sums(None)[None], np.arange(len(graphs.scale))) @ bonds
        )

    def _normalise_last(self, means: Tensor, taken: Tensor, asked: ExpertSelection) -> Tensor:
        """BatchNorm of the last layer, after which no relu comes, on the readout: (S or 1, G, d)
        less (S, G, d) -> (S, G, d)."""
        layer = self._layers[-1]
        return (means - taken) * asked.of(layer.gain).unsqueeze(1) + asked.of(
            layer.offset
        ).unsqueeze(1)

    def _route(
        self,
        graphs: PreparedBatch,
        layer: FoldedLayer,
        z: NDArray[np.float32],
        of_node: NDArray[np.int64],
        asked: ExpertSelection,
    ) -> Tensor:
        """Weights of the experts at a layer, (G, S, K)."""
        router = self._router
        facing = asked.of(layer.facing).permute(1, 2, 0, 3).contiguous()
        squares = layer.squares.unsqueeze(2).expand(facing.shape).contiguous()
        problem = router.epsilon, router.tolerance, router.max_iters
        where = of_node, *graphs.edges, graphs.begins
        distances = transport_distances(
            z, squares.numpy(), facing.numpy(), asked.experts.numpy(), *where, *problem
        )
        return routing_weights(
            torch.from_numpy(distances)[..., : len(self.tasks)], router.temperature, router.top_k
        )


def _product(h: Tensor, weights: Tensor, out: Tensor) -> None:
    """out = h @ weights, block by block: (S, C, m) and (m, w) -> (S, C, w)."""
    rows, results = h.flatten(0, 1), out.flatten(0, 1)
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        torch.mm(rows[block], weights, out=results[block])


def _messages(
    graphs: PreparedBatch,
    values: Tensor,
    bonds: Tensor,
    first: NDArray[np.int64],
    of_node: NDArray[np.int64],
) -> Tensor:
    """Messages of each class as they are: (S or 1, C, w) of the classes before and what the bonds
    add (C', w) -> (S or 1, C', w)."""
    out = torch.empty(len(values), *bonds.shape)
    # all columns go on
    kernels.aggregate(
        out.numpy(),
        values.numpy(),
        bonds.numpy(),
        first,
        of_node,
        *graphs.edges,
        graphs.scale,
        1,
        1,
        1,
    )
    return out


def _averaged(seen: Tensor, weights: Tensor) -> Tensor:
    """What an adapter whose `down` is the mean of the experts' makes of what theirs see: (S or 1,
    C, K, r), (S, C, K) -> (S, C, r)."""
    return torch.einsum("sckr,sck->scr", seen.expand(len(weights), -1, -1, -1), weights).relu_()


def fastest(model: UnifiedModel) -> CompiledModel | UnifiedModel:
    """Compiled, or on a GPU, and for what cannot be compiled, the plain model; its answers are the
    same."""
    return CompiledModel(model) if CompiledModel.supports(model) else model
