"""The unified model compiled for the CPU: the answers of `models.experts.unified` for many
molecules at a time, at a fraction of the cost.

- **Equivalent nodes are computed once.** A node's state after l layers is a function of its
  surroundings up to l bonds away. Nodes with equal surroundings are one class
  (`models.compiled.batch`, exact), and a layer is computed once per class: over the whole batch
  where every stream uses one adapter, within each molecule where the router weighs the experts
  for every molecule.
- **Products are folded** (`models.compiled.fold`). The adapters' projections are products with the
  layer's weights and are multiplied in advance; bond embeddings and biases are one product with
  counts of bonds; BatchNorm is a factor and an offset.
- **The last layer is never computed for nodes.** No relu follows it, so the mean over the atoms
  is taken before the product; only the adapters' few columns are needed for every node.
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
from models.compiled.batch import Classes, CompiledBatch, graph_sums, readout_weights
from models.compiled.fold import ExpertSelection, FoldedLayer, fold_layer
from models.compiled.transport import transport_distances
from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.experts.router import routing_weights
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedModel, UnifiedOutput
from models.networks.hu2020 import Backbone
from models.task import select_tasks

_MIN_EPSILON = 0.05
_MAX_TOLERANCE = 60.0  # in units of epsilon; beyond both limits exponentials leave float32
_BLOCK_ROWS = 512  # rows of a product at a time, so that its operands stay in the cache
_CHUNK_ROWS = 4096  # rows of all streams together that are computed at a time


class Workspace:
    """Scratch buffers reused within one call; page-faulting new memory costs more than writing to
    it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor of this shape. It shares memory with the last one of this
        name.
        """
        size = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = torch.empty(size)
        return self._buffers[name][:size].view(shape)


class CompiledModel:
    """A `UnifiedModel` with stored statistics, compiled for the CPU in float32.

    Its answers are those of the model that it was made from, up to rounding. It keeps none of that
    model's tensors but the embeddings and the heads.

    Attributes:
        tasks: names of the tasks.
        site_names: names of the sites, `layer_0` to `layer_{L-1}` and `graph`.
    """

    def __init__(self, model: UnifiedModel) -> None:
        if not self.supports(model):
            raise InvalidInputError(
                "got a model that cannot be compiled, expected a GCN on the CPU with the plain"
                " entropic router"
            )
        self.tasks, self.site_names, self.targets = model.tasks, model.site_names, model.targets
        self._router, self._heads = model.router, model.heads
        backbone = cast(Backbone, model.backbone)  # a GCN for molecules, as `supports` says
        self._embeddings = (
            backbone.x_embedding1.weight.detach(),
            backbone.x_embedding2.weight.detach(),
        )
        self._layers = [fold_layer(model, layer) for layer in range(backbone.config.num_layers)]
        # (K, d, r) and (K, r, d)
        self._graph_down = model.bank.down[-1].movedim(1, 0).contiguous()
        self._graph_up = model.bank.up[-1].clone()

    @property
    def sizes(self) -> tuple[int, int]:
        """Width d of the backbone and rank r of the adapters."""
        return self._graph_down.shape[1], self._graph_down.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors of the model, in bytes."""
        tensors = [*self._embeddings, self._graph_down, self._graph_up, *self._heads.parameters()]
        tensors += [value for layer in self._layers for value in vars(layer).values()]
        return sum(value.numel() * value.element_size() for value in tensors)

    @staticmethod
    def supports(model: UnifiedModel) -> bool:
        """Check whether a model can be compiled.

        It must be a GCN for molecules on the CPU whose tasks are answers of graphs, with a router
        that solves the plain entropic problem.
        """
        router = model.router
        plain = router.solver == "sinkhorn" and not router.debias and router.epsilon >= _MIN_EPSILON
        if set(model.levels.values()) != {"graph"}:
            return False
        return (
            plain
            and router.tolerance / router.epsilon <= _MAX_TOLERANCE
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
        """Answer tasks for a batch: see `UnifiedModel.forward`, with stored statistics."""
        if routing not in get_args(Routing):
            raise InvalidInputError(f"got routing {routing!r}, expected one of {get_args(Routing)}")
        names, positions = select_tasks(self.tasks, tasks)
        selection = ExpertSelection(positions)
        graphs = CompiledBatch.from_batch(batch)
        workspace = Workspace()
        answer = (
            self._mixed_pass
            if routing != "own" and self._router.mixes(len(self._layers) - 2, len(self._layers))
            else self._single_adapter_pass
        )
        h, weights = answer(graphs, selection, routing, workspace)
        logits = {
            task: self._heads[position](h[k])
            for k, (task, position) in enumerate(zip(names, positions, strict=True))
        }
        mixed = {task: weights[:, :, k] for k, task in enumerate(names)}
        return UnifiedOutput(logits, mixed, self.targets)

    def _single_adapter_pass(
        self,
        graphs: CompiledBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor]:
        """Run every stream with its own adapter up to the last layer, where experts may be mixed,
        as at the graph site.

        Returns:
            (S, G, d) graph embeddings and (G, L + 1, S, K) routing weights.
        """
        classes = graphs.classes(len(self._layers) - 1, by_graph=False)
        sums = [
            graphs.bond_sums(representatives) for representatives in classes.representatives[1:]
        ]
        bonds = [
            (chunk @ layer.convolution[1]).numpy()
            for chunk, layer in zip(sums, self._layers, strict=False)
        ]
        # Streams are independent: as many at a time as fit the cache.
        streams_per_chunk = max(1, _CHUNK_ROWS // max(map(len, classes.representatives)))
        mixes_last = routing != "own" and self._router.mixes(
            len(self._layers) - 1, len(self._layers)
        )
        chunks = [
            self._single_adapter_chunk(graphs, classes, sums, bonds, chunk, mixes_last, workspace)
            for chunk in selection.split(streams_per_chunk)
        ]
        means, projected = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
        one_hot = self._one_hot(graphs, selection)
        weights = [one_hot] * (len(self._layers) - 1)
        correction, mixed = (
            self._mix_last_layer(
                graphs, projected, classes.of_node[-1], weights, selection, routing
            )
            if mixes_last
            else (projected, one_hot)
        )
        h, weights = self._normalise_last(means, correction, selection), [*weights, mixed]
        if routing != "own":
            return (self._merge_graphs if routing == "merged" else self._mix_graphs)(
                h, weights, selection
            )
        h = h - (h @ selection.select(self._graph_down)).relu_() @ selection.select(self._graph_up)
        return h, torch.stack([*weights, one_hot], 1)

    def _single_adapter_chunk(
        self,
        graphs: CompiledBatch,
        classes: Classes,
        sums: list[Tensor],
        bonds: list[NDArray[np.float32]],
        selection: ExpertSelection,
        mixes_last: bool,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor]:
        """Run some streams of `_single_adapter_pass`.

        Returns:
            (S, G, d) readout of the last layer before its adapters; and what is still needed to
            correct it: with `mixes_last` all adapters' projections of the classes before the last
            layer, (S, C, K * r), else the corrections by the streams' own adapters, (S, G, d).
        """
        h = (
            self._embed(graphs, classes.representatives[0])
            .expand(len(selection), -1, -1)
            .contiguous()
        )
        for level, layer in enumerate(self._layers[:-1]):
            projection, projection_bonds = layer.for_experts(selection)
            values = workspace.take("values", *h.shape)
            _product(h, layer.convolution[0], values)
            projected = kernels.project(h.numpy(), projection.numpy())
            h = workspace.take(
                "h", len(selection), len(classes.representatives[level + 1]), h.shape[-1]
            )
            kernels.single_adapter_layer(
                h.numpy(),
                values.numpy(),
                projected,
                bonds[level],
                torch.matmul(sums[level], projection_bonds).numpy(),
                selection.select(layer.up).numpy(),
                selection.select(layer.gain).numpy(),
                selection.select(layer.offset).numpy(),
                classes.representatives[level + 1],
                classes.of_node[level],
                *graphs.edges,
                graphs.scale,
            )
        layer = self._layers[-1]
        of_node = classes.of_node[-1]
        means = self._read_out(graphs, h, classes.of_node[-1])
        if mixes_last:
            all_projected = torch.empty(*h.shape[:2], layer.projection[0].shape[1])
            _product(h, layer.projection[0], all_projected)
            return means, all_projected
        projection, projection_bonds = layer.for_experts(selection)
        projected = kernels.project(h.numpy(), projection.numpy())
        projected_bonds = torch.matmul(graphs.bond_sums(None), projection_bonds).numpy()
        z = kernels.single_adapter_readout(
            projected, projected_bonds, of_node, *graphs.edges, graphs.scale, graphs.graph_starts
        )
        return means, torch.from_numpy(z) @ selection.select(layer.up)

    def _mixed_pass(
        self,
        graphs: CompiledBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor]:
        """Run streams with all adapters, mixed by the router's weights in every layer that mixes.

        Returns:
            As `_single_adapter_pass`.
        """
        chunks = [
            self._mixed_chunk(chunk, selection, routing, workspace)
            for chunk, _ in graphs.chunks(max(1, _CHUNK_ROWS // len(selection)))
        ]
        return torch.cat([h for h, _ in chunks], 1), torch.cat([weights for _, weights in chunks])

    def _mixed_chunk(
        self,
        graphs: CompiledBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor]:
        """Run `_mixed_pass` for graphs that fit the cache together."""
        answer = self._merge_layer if routing == "merged" else self._mix_layer
        classes = graphs.classes(len(self._layers) - 1, by_graph=True)
        h = self._embed(graphs, classes.representatives[0])
        weights: list[Tensor] = []
        for level, layer in enumerate(self._layers[:-1]):
            representatives = classes.representatives[level + 1]
            values = workspace.take("values", *h.shape[:2], layer.linear.shape[1])
            _product(h, layer.linear, values)
            messages, mixed, layer_weights = answer(
                graphs, classes, values, weights, selection, workspace
            )
            weights.append(layer_weights)
            correction, h = (
                workspace.take(name, len(selection), len(representatives), h.shape[-1])
                for name in ("values", "h")
            )
            _product(mixed, layer.up.flatten(0, 1), correction)
            gain = selection.select(layer.gain).numpy()
            offset = selection.select(layer.offset).numpy()
            kernels.activate(
                h.numpy(),
                messages.numpy(),
                correction.numpy(),
                gain,
                offset,
                representatives,
                graphs.scale,
            )
        of_node, projection = classes.of_node[-1], self._layers[-1].projection[0]
        projected = workspace.take("values", *h.shape[:2], projection.shape[1])
        _product(h, projection, projected)
        correction, last = self._mix_last_layer(
            graphs, projected, of_node, weights, selection, routing
        )
        h = self._normalise_last(self._read_out(graphs, h, of_node), correction, selection)
        return (self._merge_graphs if routing == "merged" else self._mix_graphs)(
            h, [*weights, last], selection
        )

    def _mix_layer(
        self,
        graphs: CompiledBatch,
        classes: Classes,
        values: Tensor,
        previous_weights: list[Tensor],
        selection: ExpertSelection,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Aggregate one layer and route it, layer `len(previous_weights)`.

        Args:
            values: (S or 1, C, d + K * r) product with the layer's weights.
            previous_weights: routing weights of the layers before, (G, S, K) each.

        Returns:
            (S or 1, C', d) messages, (S, C', K * r) the adapters' projections times their weights,
            and (G, S, K) the weights.
        """
        level = len(previous_weights)
        layer, representatives = self._layers[level], classes.representatives[level + 1]
        messages = workspace.take("messages", len(values), len(representatives), len(layer.linear))
        where = representatives, classes.of_node[level], *graphs.edges, graphs.scale
        sizes = len(selection), len(self.tasks), layer.self_gram.shape[-1]
        z = kernels.aggregate(
            messages.numpy(),
            values.numpy(),
            (graphs.bond_sums(representatives) @ layer.bonds).numpy(),
            *where,
            *sizes,
        )
        mixes = self._router.mixes(level, len(self._layers))
        weights = (
            self._route(graphs, layer, z, classes.of_node[level + 1], selection)
            if mixes
            else self._one_hot(graphs, selection)
        )
        return (
            messages,
            torch.from_numpy(
                kernels.weight_projections(z, weights.numpy(), graphs.graph[representatives])
            ),
            weights,
        )

    def _merge_layer(
        self,
        graphs: CompiledBatch,
        classes: Classes,
        values: Tensor,
        previous_weights: list[Tensor],
        selection: ExpertSelection,
        _: Workspace,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do as `_mix_layer` with the adapters' parameters averaged. The mean of their `up`
        matrices is left to the product that follows.
        """
        level = len(previous_weights)
        layer = self._layers[level]
        representatives = classes.representatives[level + 1]
        weights = self._one_hot(graphs, selection)
        both = _messages(
            graphs,
            values,
            graphs.bond_sums(representatives) @ layer.bonds,
            representatives,
            classes.of_node[level],
        )
        messages = both[..., : len(layer.linear)].contiguous()
        projected = both[..., len(layer.linear) :].unflatten(2, layer.up.shape[:2])
        if self._router.mixes(level, len(self._layers)):
            weights = self._shared_weights(
                graphs, layer, projected, classes.of_node[level + 1], previous_weights, selection
            )
        by_class = weights[torch.from_numpy(graphs.graph[representatives])].transpose(0, 1)
        return (
            messages,
            (_averaged(projected, by_class).unsqueeze(2) * by_class.unsqueeze(3)).flatten(2),
            weights,
        )

    def _mix_last_layer(
        self,
        graphs: CompiledBatch,
        projected: Tensor,
        of_node: NDArray[np.int64],
        previous_weights: list[Tensor],
        selection: ExpertSelection,
        routing: Routing,
    ) -> tuple[Tensor, Tensor]:
        """Compute the last layer's correction of the readout and its routing weights.

        Args:
            projected: (S or 1, C, K * r) the adapters' projections of the classes before the layer.
            of_node: (N,) class of each node.
            previous_weights: routing weights of the layers before.

        Returns:
            (S, G, d) correction and (G, S, K) weights.
        """
        found, begin = [], 0
        answer = self._merge_last_chunk if routing == "merged" else self._mix_last_chunk
        for chunk, here in graphs.chunks(max(1, _CHUNK_ROWS // len(selection))):
            end = begin + chunk.num_graphs
            found.append(
                answer(
                    chunk,
                    projected,
                    of_node[here],
                    [weights[begin:end] for weights in previous_weights],
                    selection,
                )
            )
            begin = end
        return torch.cat([correction for correction, _ in found], 1), torch.cat(
            [weights for _, weights in found]
        )

    def _mix_last_chunk(
        self,
        graphs: CompiledBatch,
        projected: Tensor,
        of_node: NDArray[np.int64],
        _: list[Tensor],
        selection: ExpertSelection,
    ) -> tuple[Tensor, Tensor]:
        """Run `_mix_last_layer` for graphs that fit the cache together."""
        layer, nodes = self._layers[-1], np.arange(len(graphs.scale))
        sizes = len(selection), len(self.tasks), layer.self_gram.shape[-1]
        where = nodes, of_node, *graphs.edges, graphs.scale
        nothing = np.empty((len(projected), len(nodes), 0), np.float32)
        z = kernels.aggregate(
            nothing,
            projected.numpy(),
            (graphs.bond_sums(None) @ layer.projection[1]).numpy(),
            *where,
            *sizes,
        )
        weights = self._route(graphs, layer, z, nodes, selection)
        mean = graphs.mean(torch.from_numpy(z).view(1, len(z), -1), nodes).view(-1, *z.shape[1:])[
            ..., : len(self.tasks)
        ]
        return torch.einsum("grsk,gsk,krd->sgd", mean, weights, layer.up), weights

    def _merge_last_chunk(
        self,
        graphs: CompiledBatch,
        projected: Tensor,
        of_node: NDArray[np.int64],
        previous_weights: list[Tensor],
        selection: ExpertSelection,
    ) -> tuple[Tensor, Tensor]:
        """Do as `_mix_last_chunk` with the adapters' parameters averaged."""
        layer, nodes = self._layers[-1], np.arange(len(graphs.scale))
        node_projected = _messages(
            graphs, projected, graphs.bond_sums(None) @ layer.projection[1], nodes, of_node
        ).unflatten(2, layer.up.shape[:2])
        weights = self._shared_weights(
            graphs, layer, node_projected, nodes, previous_weights, selection
        )
        mean = graphs.mean(
            _averaged(node_projected, weights[torch.from_numpy(graphs.graph)].transpose(0, 1)),
            nodes,
        )
        return torch.einsum("sgr,gsk,krd->sgd", mean, weights, layer.up), weights

    def _shared_weights(
        self,
        graphs: CompiledBatch,
        layer: FoldedLayer,
        projected: Tensor,
        of_node: NDArray[np.int64],
        previous_weights: list[Tensor],
        selection: ExpertSelection,
    ) -> Tensor:
        """Return the weights (G, S, K) by which a layer averages parameters: those of the first
        site that mixes, which may be this layer.

        Args:
            projected: (S or 1, C, K, r) the adapters' projections in this layer.
            of_node: (N,) class of each node.
            previous_weights: routing weights of the layers before.
        """
        known = self._known_weights(previous_weights)
        if known is not None:
            return known
        z = functional.pad(
            projected.relu().permute(1, 3, 0, 2), (0, layer.self_gram.shape[-1] - len(self.tasks))
        )
        return self._route(
            graphs,
            layer,
            z.expand(-1, -1, len(selection), -1).contiguous().numpy(),
            of_node,
            selection,
        )

    def _known_weights(self, previous_weights: list[Tensor]) -> Tensor | None:
        """Return the weights of the first site that mixes, or None if it comes later."""
        layers = len(self._layers)
        first = sum(not self._router.mixes(layer, layers) for layer in range(layers))
        return previous_weights[first] if first < len(previous_weights) else None

    def _one_hot(self, graphs: CompiledBatch, selection: ExpertSelection) -> Tensor:
        return (
            functional.one_hot(selection.experts, len(self.tasks))
            .to(self._graph_up.dtype)
            .expand(graphs.num_graphs, -1, -1)
            .contiguous()
        )

    def _merge_graphs(
        self, h: Tensor, previous_weights: list[Tensor], selection: ExpertSelection
    ) -> tuple[Tensor, Tensor]:
        """Do as `_mix_graphs` with the adapters' parameters averaged."""
        projected = h @ self._graph_down.unsqueeze(1)  # (K, S, G, r)
        weights = self._known_weights(previous_weights)
        if weights is None:
            weights = self._weigh_graphs(projected.relu() @ self._graph_up.unsqueeze(1), selection)
        z = _averaged(projected.permute(1, 2, 0, 3), weights.transpose(0, 1))
        return h - torch.einsum("sgr,gsk,krd->sgd", z, weights, self._graph_up), torch.stack(
            [*previous_weights, weights], 1
        )

    def _mix_graphs(
        self, h: Tensor, weights: list[Tensor], selection: ExpertSelection
    ) -> tuple[Tensor, Tensor]:
        """Correct graph embeddings (S, G, d) by the mixed experts.

        Args:
            weights: routing weights of the layers, (G, S, K) each.

        Returns:
            As `_single_adapter_pass`.
        """
        streams, graphs, width = h.shape
        z = (h.reshape(-1, width) @ self._graph_down).relu_()  # (K, S * G, r)
        outputs = (z @ self._graph_up).view(-1, streams, graphs, width)
        weights = [*weights, self._weigh_graphs(outputs, selection)]
        return h - torch.einsum("ksgd,gsk->sgd", outputs, weights[-1]), torch.stack(weights, 1)

    def _weigh_graphs(self, outputs: Tensor, selection: ExpertSelection) -> Tensor:
        """Compute the routing weights (G, S, K) of the graph site from the outputs (K, S, G, d)."""
        distances = kernels.mean_absolute_differences(outputs.numpy(), selection.experts.numpy())
        return routing_weights(
            torch.from_numpy(distances), self._router.graph_temperature, self._router.top_k
        )

    def _embed(self, graphs: CompiledBatch, representatives: NDArray[np.int64]) -> Tensor:
        """Embed the atoms of every class before the first layer, times `scale`: (1, C, d)."""
        rows = torch.from_numpy(representatives)
        atoms, chirality = graphs.atoms[rows].unbind(1)
        by_atom, by_chirality = self._embeddings
        return (
            (by_atom[atoms] + by_chirality[chirality]) * torch.from_numpy(graphs.scale)[rows, None]
        )[None]

    def _read_out(self, graphs: CompiledBatch, h: Tensor, of_node: NDArray[np.int64]) -> Tensor:
        """Average the last convolution's output over each graph without computing that output: h (S
        or 1, C, d) before the layer -> (S or 1, G, d).
        """
        linear, bonds = self._layers[-1].convolution
        counts = readout_weights(*graphs.edges, graphs.scale, graphs.graph_starts)
        received = torch.from_numpy(graph_sums(h.numpy(), of_node, counts, graphs.graph_starts))
        return (
            received @ linear
            + graphs.mean(graphs.bond_sums(None)[None], np.arange(len(graphs.scale))) @ bonds
        )

    def _normalise_last(
        self, means: Tensor, correction: Tensor, selection: ExpertSelection
    ) -> Tensor:
        """Subtract the correction from the readout and apply the last layer's BatchNorm, which no
        relu follows: (S or 1, G, d), (S, G, d) -> (S, G, d).
        """
        layer = self._layers[-1]
        return (means - correction) * selection.select(layer.gain).unsqueeze(1) + selection.select(
            layer.offset
        ).unsqueeze(1)

    def _route(
        self,
        graphs: CompiledBatch,
        layer: FoldedLayer,
        z: NDArray[np.float32],
        of_node: NDArray[np.int64],
        selection: ExpertSelection,
    ) -> Tensor:
        """Compute the routing weights (G, S, K) of a layer."""
        router = self._router
        cross_gram = selection.select(layer.cross_gram).permute(1, 2, 0, 3).contiguous()
        self_gram = layer.self_gram.unsqueeze(2).expand(cross_gram.shape).contiguous()
        problem = router.epsilon, router.tolerance, router.max_iters
        where = of_node, *graphs.edges, graphs.graph_starts
        distances = transport_distances(
            z, self_gram.numpy(), cross_gram.numpy(), selection.experts.numpy(), *where, *problem
        )
        return routing_weights(
            torch.from_numpy(distances)[..., : len(self.tasks)], router.temperature, router.top_k
        )


def _product(h: Tensor, weights: Tensor, out: Tensor) -> None:
    """Compute out = h @ weights block by block: (S, C, m), (m, w) -> (S, C, w)."""
    rows, results = h.flatten(0, 1), out.flatten(0, 1)
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        torch.mm(rows[block], weights, out=results[block])


def _messages(
    graphs: CompiledBatch,
    values: Tensor,
    bonds: Tensor,
    representatives: NDArray[np.int64],
    of_node: NDArray[np.int64],
) -> Tensor:
    """Aggregate the messages of every class: (S or 1, C, w) of the previous layer's classes and the
    bonds' contribution (C', w) -> (S or 1, C', w).
    """
    out = torch.empty(len(values), *bonds.shape)
    # the adapters' share is empty: all columns are messages
    kernels.aggregate(
        out.numpy(),
        values.numpy(),
        bonds.numpy(),
        representatives,
        of_node,
        *graphs.edges,
        graphs.scale,
        1,
        1,
        1,
    )
    return out


def _averaged(projected: Tensor, weights: Tensor) -> Tensor:
    """Apply the mean of the experts' `down` matrices, and relu: projections (S or 1, C, K, r),
    weights (S, C, K) -> (S, C, r).
    """
    return torch.einsum(
        "sckr,sck->scr", projected.expand(len(weights), -1, -1, -1), weights
    ).relu_()


def fastest(model: UnifiedModel) -> CompiledModel | UnifiedModel:
    """Return the compiled model, or the model itself on a GPU and where it cannot be compiled. The
    answers are the same.
    """
    return CompiledModel(model) if CompiledModel.supports(model) else model
