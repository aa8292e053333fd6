"""Streams of a compiled model up to the readout: classes of nodes, folded layers and the router at
node sites. See `models.compiled.model`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.compiled import kernels
from models.compiled.batch import Classes, CompiledBatch, WholeBatch, graph_sums, readout_weights
from models.compiled.fold import KEPT_SELECTIONS, ExpertSelection, FoldedLayer, SelectedLayer
from models.compiled.transport import transport_distances
from models.experts.router import RouterConfig, routing_weights
from models.experts.unified import Routing

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


class CompiledStreams:
    """Streams with node adapters of one rank, which the router may mix; the rank may be 0.

    Each stream has one expert at node sites, its own: K experts for K streams.
    """

    def __init__(
        self, embeddings: tuple[Tensor, Tensor], layers: Sequence[FoldedLayer], router: RouterConfig
    ) -> None:
        """Build the streams from embeddings of atom types and chirality tags, (types, d) and
        (tags, d), and their L layers."""
        self._embeddings, self._layers, self._router = embeddings, list(layers), router
        self._selected = lru_cache(maxsize=KEPT_SELECTIONS)(self._select)

    @property
    def rank(self) -> int:
        """Rank r of the node adapters."""
        return self._layers[0].up.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of all layers' tensors, in bytes."""
        return sum(layer.num_bytes for layer in self._layers)

    def _select(self, experts: tuple[int, ...]) -> list[SelectedLayer]:
        selection = ExpertSelection(experts)
        return [layer.for_experts(selection) for layer in self._layers]

    def run(
        self,
        graphs: CompiledBatch,
        whole: WholeBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run some streams up to the readout.

        Args:
            graphs, whole: the batch.
            selection: S of the K streams.
            routing: "own" for streams that do not mix.
            workspace: scratch memory.

        Returns:
            (S, G, d) readouts after the last BatchNorm, and by layer (G, S, K) routing weights,
            none for "own".
        """
        if routing != "own" and self._router.mixes(len(self._layers) - 2, len(self._layers)):
            return self._mixed_pass(graphs, selection, routing, workspace)
        return self._single_adapter_pass(graphs, whole, selection, routing, workspace)

    def known_weights(self, previous_weights: list[Tensor]) -> Tensor | None:
        """Return the weights of the first site that mixes, or None if it comes after the layers of
        `previous_weights`."""
        layers = len(self._layers)
        first = sum(not self._router.mixes(layer, layers) for layer in range(layers))
        return previous_weights[first] if first < len(previous_weights) else None

    def _single_adapter_pass(
        self,
        graphs: CompiledBatch,
        whole: WholeBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run every stream with its own adapter up to the last layer, where experts may be mixed.
        See `run`."""
        classes = whole.classes
        bonds = [
            (chunk @ layer.convolution[1]).numpy()
            for chunk, layer in zip(whole.bond_sums, self._layers, strict=False)
        ]
        # Streams are independent: as many at a time as fit the cache.
        streams_per_chunk = max(1, _CHUNK_ROWS // max(map(len, classes.representatives)))
        mixes_last = routing != "own" and self._router.mixes(
            len(self._layers) - 1, len(self._layers)
        )
        chunks = [
            self._single_adapter_chunk(graphs, whole, bonds, chunk, mixes_last, workspace)
            for chunk in selection.split(streams_per_chunk)
        ]
        means, projected = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
        if routing == "own":
            return self._normalise_last(means, projected, selection), []
        one_hot = self._one_hot(graphs, selection)
        weights = [one_hot] * (len(self._layers) - 1)
        correction, mixed = (
            self._mix_last_layer(
                graphs, projected, classes.of_node[-1], weights, selection, routing
            )
            if mixes_last
            else (projected, one_hot)
        )
        return self._normalise_last(means, correction, selection), [*weights, mixed]

    def _single_adapter_chunk(
        self,
        graphs: CompiledBatch,
        whole: WholeBatch,
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
        classes, sums = whole.classes, whole.bond_sums
        h = (
            self._embed(graphs, classes.representatives[0])
            .expand(len(selection), -1, -1)
            .contiguous()
        )
        selected = self._selected(selection.positions)
        for level, (layer, own) in enumerate(zip(self._layers[:-1], selected, strict=False)):
            values = workspace.take("values", *h.shape)
            _product(h, layer.convolution[0], values)
            projected, projected_bonds = self._project(h, own, sums[level])
            h = workspace.take(
                "h", len(selection), len(classes.representatives[level + 1]), h.shape[-1]
            )
            kernels.single_adapter_layer(
                h.numpy(),
                values.numpy(),
                projected,
                bonds[level],
                projected_bonds,
                own.up,
                own.gain,
                own.offset,
                classes.representatives[level + 1],
                classes.of_node[level],
                *graphs.edges,
                graphs.scale,
            )
        layer, of_node = self._layers[-1], classes.of_node[-1]
        means = self._read_out(graphs, h, of_node)
        if mixes_last:
            all_projected = torch.empty(*h.shape[:2], layer.projection[0].shape[1])
            _product(h, layer.projection[0], all_projected)
            return means, all_projected
        if not self.rank:
            return means, torch.zeros(()).expand(means.shape)
        own = selected[-1]
        projected, projected_bonds = self._project(h, own, graphs.bonds_by_node)
        z = kernels.single_adapter_readout(
            projected, projected_bonds, of_node, *graphs.edges, graphs.scale, graphs.graph_starts
        )
        return means, torch.from_numpy(z) @ torch.from_numpy(own.up)

    def _project(
        self, h: Tensor, layer: SelectedLayer, bond_sums: Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute what the adapters see: h (S, C, d) -> (S, C, r), and of the bonds (S, C', r)."""
        if not self.rank:
            streams = len(h)
            return (
                np.empty((streams, h.shape[1], 0), np.float32),
                np.empty((streams, len(bond_sums), 0), np.float32),
            )
        projected = kernels.project(h.numpy(), layer.projection)
        return projected, torch.matmul(bond_sums, layer.bonds).numpy()

    def _mixed_pass(
        self,
        graphs: CompiledBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run streams with all adapters, mixed by the router's weights in every layer that mixes.
        See `run`."""
        chunks = [
            self._mixed_chunk(chunk, selection, routing, workspace)
            for chunk, _ in graphs.chunks(max(1, _CHUNK_ROWS // len(selection)))
        ]
        weights = [torch.cat(by_chunk) for by_chunk in zip(*(w for _, w in chunks), strict=True)]
        return torch.cat([h for h, _ in chunks], 1), weights

    def _mixed_chunk(
        self,
        graphs: CompiledBatch,
        selection: ExpertSelection,
        routing: Routing,
        workspace: Workspace,
    ) -> tuple[Tensor, list[Tensor]]:
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
        return h, [*weights, last]

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
        sizes = len(selection), len(layer.up), layer.self_gram.shape[-1]
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
        sizes = len(selection), len(layer.up), layer.self_gram.shape[-1]
        where = nodes, of_node, *graphs.edges, graphs.scale
        nothing = np.empty((len(projected), len(nodes), 0), np.float32)
        z = kernels.aggregate(
            nothing,
            projected.numpy(),
            (graphs.bonds_by_node @ layer.projection[1]).numpy(),
            *where,
            *sizes,
        )
        weights = self._route(graphs, layer, z, nodes, selection)
        mean = graphs.mean(torch.from_numpy(z).view(1, len(z), -1), nodes).view(-1, *z.shape[1:])[
            ..., : len(layer.up)
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
            graphs, projected, graphs.bonds_by_node @ layer.projection[1], nodes, of_node
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
        known = self.known_weights(previous_weights)
        if known is not None:
            return known
        z = functional.pad(
            projected.relu().permute(1, 3, 0, 2), (0, layer.self_gram.shape[-1] - len(layer.up))
        )
        return self._route(
            graphs,
            layer,
            z.expand(-1, -1, len(selection), -1).contiguous().numpy(),
            of_node,
            selection,
        )

    def _one_hot(self, graphs: CompiledBatch, selection: ExpertSelection) -> Tensor:
        return (
            functional.one_hot(selection.experts, len(self._layers[0].up))
            .to(torch.float32)
            .expand(graphs.num_graphs, -1, -1)
            .contiguous()
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
            + graphs.mean(graphs.bonds_by_node[None], np.arange(len(graphs.scale))) @ bonds
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
            torch.from_numpy(distances)[..., : len(layer.up)], router.temperature, router.top_k
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
