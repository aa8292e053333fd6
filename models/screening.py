"""Expert screening for artifacts with many experts: each task mixes only a precomputed list of
candidate experts.

The router's time per request grows with the number of experts K, and its tables with K^2. Which
experts are near depends mostly on the experts and little on the molecule, so candidates are
estimated once, on unlabelled molecules; requests are routed exactly among them. Source: ours.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from models.artifact import ArtifactComponents
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, collate
from models.errors import ArtifactError, InvalidInputError
from models.experts.adapter import Adapter, Stream, trace
from models.experts.bank import AdapterBank
from models.experts.expert import TaskExpert
from models.experts.node_sums import NodeSum
from models.experts.router import RouterConfig, cosine_cost_of_products, graph_distances
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedOutput
from models.manifest import Manifest
from models.networks.base import LayeredNetwork
from models.task import select_tasks

_SEED = 0
_BLOCK = 32  # rows at a time, so that the outputs of all experts fit into memory
_CACHED_MODELS = 64
_EXPLAINED_MODELS = 8


def nearest_experts(
    backbone: LayeredNetwork,
    experts: Mapping[str, TaskExpert],
    router: RouterConfig,
    graphs: Sequence[MolGraph],
    max_names: int,
    tasks: Iterable[str] | None = None,
    nodes: int = 256,
) -> dict[str, tuple[str, ...]]:
    """Estimate for each task which other experts its router finds nearest on a sample of graphs.

    The graphs pass through the task's stream with routing "own". At every site that mixes, the mean
    distance between each expert's output and that of the task's expert is computed: at the graph
    site the router's distance; at node sites, on sampled nodes, the cost of the identity plan, an
    upper bound of the transport cost. Experts are ranked by their best rank at any site; ties are
    broken by the mean over the sites of distance / temperature. Time grows with K^2 for K tasks: K
    passes, and 4 d r K multiplications per sampled row and site. Tasks that share a stream mix at
    the graph site alone: there they are ranked with all others, and at node sites they are last.
    Runs on the CPU. For the number of
    candidates needed see `benchmarks/many_experts.py`.

    Args:
        backbone, experts, router: see `UnifiedModel`.
        graphs: a few hundred, like those of later requests.
        max_names: maximal number of names per task.
        tasks: tasks to compute; None for all.
        nodes: number of nodes sampled from all graphs together, with a fixed seed.

    Returns:
        By task, names of other tasks, nearest first, for `Manifest.nearest`.

    Raises:
        UnknownTaskError: a task has no expert.
        InvalidInputError: there is no graph.
    """
    names, positions = select_tasks(tuple(experts), None if tasks is None else tuple(tasks))
    batch, known = collate(graphs), tuple(experts)
    drawn = torch.randperm(batch.num_nodes, generator=torch.Generator().manual_seed(_SEED))[:nodes]
    with torch.inference_mode():
        sites = _mixing_sites(experts.values(), router, backbone.config.num_layers)
        nearest = {}
        for task, target in zip(names, positions, strict=True):
            expert = experts[task]
            inputs = _site_inputs(backbone, expert.stream, batch, drawn)
            mixing = [k for k in sites if sites[k].is_graph or not expert.stream.name]
            distances = [sites[k].distances(inputs[k], target) for k in mixing]
            temperatures = torch.tensor([sites[k].temperature for k in mixing]).unsqueeze(1)
            order = _order(torch.stack(distances) / temperatures)
            nearest[task] = tuple(known[k] for k in order if k != target)[:max_names]
    return nearest


class _Site:
    """The adapters of all K experts that mix at one site, concatenated.

    Attributes:
        is_graph: True for the site after the readout.
        temperature: of the router at this site.
        mixing: positions of the M experts that mix here: all at the graph site, those of tasks with
            a stream of their own at node sites.
        size: (M, r).
        down: (d, M r).
        up: (M r, d).
        squares: (M, r, r), the Gram matrix W_up_k W_up_k^T of every expert k.
    """

    def __init__(
        self, adapters: Sequence[Adapter | None], is_graph: bool, temperature: float
    ) -> None:
        """Stack adapters; None for an expert that does not mix here."""
        self.is_graph, self.temperature, self._count = is_graph, temperature, len(adapters)
        self.mixing = [k for k, adapter in enumerate(adapters) if adapter is not None]
        bank = AdapterBank([adapter for adapter in adapters if adapter is not None])
        self.down, up = bank.down.flatten(1), bank.up
        self.size, self.up, self.squares = up.shape[:2], up.flatten(0, 1), up @ up.mT

    def distances(self, h: Tensor, target: int) -> Tensor:
        """Return the distances between the outputs of every expert and of expert `target`, averaged
        over the rows of the input h (n, d): (K,). They are infinite for experts that do not mix
        here, of which `target` is none."""
        of_block, row = self._graph_distances if self.is_graph else self._node_costs, self.mixing
        found = torch.cat([of_block(block, row.index(target)) for block in h.split(_BLOCK)])
        distances = found.new_full((self._count,), float("inf"))
        distances[row] = found.mean(0)
        return distances

    def _graph_distances(self, h: Tensor, target: int) -> Tensor:
        z = (h @ self.down).relu_().unflatten(1, self.size)
        outputs = torch.einsum("nkr,krd->nkd", z, self.up.unflatten(0, self.size))
        return graph_distances(outputs.unsqueeze(1), torch.tensor([target])).squeeze(1)

    def _node_costs(self, h: Tensor, target: int) -> Tensor:
        z = (h @ self.down).relu_().unflatten(1, self.size)
        output = z[:, target] @ self.up.unflatten(0, self.size)[target]
        inner = torch.linalg.vecdot((output @ self.up.T).unflatten(1, self.size), z)
        square = torch.einsum("nkr,krq,nkq->nk", z, self.squares, z).clamp_(min=0)
        return cosine_cost_of_products(inner, square, square[:, target, None].expand_as(square))


def _mixing_sites(
    experts: Collection[TaskExpert], router: RouterConfig, num_layers: int
) -> dict[int, _Site]:
    """Return the sites that mix, by number: layers, and `num_layers` for the site after the
    readout."""
    node_adapters = [None if e.stream.name else e.stream.node_adapters for e in experts]
    sites = {
        layer: _Site(
            [None if a is None else a[layer] for a in node_adapters], False, router.temperature
        )
        for layer in range(num_layers)
        if router.mixes(layer, num_layers) and any(node_adapters)
    }
    graph = _Site([e.graph_adapter for e in experts], True, router.graph_temperature)
    return sites | {num_layers: graph}


def _site_inputs(
    backbone: LayeredNetwork, stream: Stream, batch: GraphBatch, drawn: Tensor
) -> list[Tensor]:
    """Return the inputs of adapters in a stream with routing "own", by site: the drawn rows (n, d)
    at node sites, all rows (G, d) at the graph site."""
    inputs = []

    def correct(site: int, h: Tensor) -> Tensor:
        is_graph = site == backbone.config.num_layers
        inputs.append(h if is_graph else h[drawn])
        return h if is_graph else stream.correct(site, h)

    trace(backbone, batch, correct, partial(stream.normalise, backbone))
    return inputs


def _order(scores: Tensor) -> list[int]:
    """Sort experts by their best rank at any site, then by their mean score: (sites, K) -> K
    indices. An infinite score is no score."""
    best = scores.argsort(1).argsort(1).amin(0)
    by_mean = scores.mean(0).argsort()
    order: list[int] = by_mean[best[by_mean].argsort(stable=True)].tolist()
    return order


def candidate_experts(manifest: Manifest, task: str) -> tuple[str, ...]:
    """Return the tasks whose experts the mixture of a task considers: itself and the nearest
    `router.candidates` tasks, or all if the manifest is not screened. Raises UnknownTaskError."""
    select_tasks(tuple(manifest.tasks), [task])
    return (
        (task, *manifest.nearest[task][: manifest.router.candidates])
        if is_screened(manifest)
        else tuple(manifest.tasks)
    )


def is_screened(manifest: Manifest) -> bool:
    """Return True if tasks mix only candidate experts: the manifest has `nearest`, and fewer
    `router.candidates` than other experts."""
    candidates = manifest.router.candidates
    return (
        bool(manifest.nearest) and candidates is not None and len(manifest.tasks) > candidates + 1
    )


class ScreenedModel:
    """A merged model of many experts, run as small unified models that are built on first use.

    With routings "moe" and "merged" each requested task has a small model of its candidate experts;
    routing weights are over all K experts, 0 for other than candidates. With routing "own" a small
    model predicts several consecutive tasks, or all tasks that share a stream. BatchNorm uses the
    stored statistics. Experts are held in memory once; no K x K table is built.
    """

    def __init__(self, components: ArtifactComponents, device: torch.device | str = "cpu") -> None:
        """Build the model from an artifact with all of its experts.

        Raises:
            InvalidInputError: the manifest is not screened, see `is_screened`, or not all experts
                were loaded.
            ArtifactError: the model does not mix experts.
        """
        manifest = components.manifest
        if not is_screened(manifest) or tuple(components.experts) != tuple(manifest.tasks):
            raise InvalidInputError(
                "got an artifact that is not screened, or some of its experts; expected `nearest`,"
                " fewer `candidates` than experts, and all experts"
            )
        self.tasks, self._manifest = tuple(manifest.tasks), manifest
        self._position = {task: k for k, task in enumerate(self.tasks)}
        self._own_group = _own_groups(manifest)
        # Not a cached method: the cache would keep a reference to this object and its memory.
        self._small = lru_cache(_CACHED_MODELS)(partial(_served_model, components, device))
        self._explained = lru_cache(_EXPLAINED_MODELS)(partial(_small_model, components, device))
        self.site_names = self._small(self.tasks[:1]).site_names
        if not self.site_names:
            got = f"got `nearest` for a backbone of kind {manifest.backbone.kind!r}"
            raise ArtifactError(f"{got}, expected it only where experts are mixed")

    def __call__(
        self,
        batch: GraphBatch,
        tasks: Sequence[str] | None = None,
        routing: Routing = DEFAULT_ROUTING,
    ) -> UnifiedOutput:
        """Predict tasks for a batch: see `UnifiedModel.forward`."""
        names, _ = select_tasks(self.tasks, tasks)
        logits, weights, embeddings = {}, {}, dict[str, Tensor]()
        for experts, requested in self._groups(names, routing).items():
            output = self._small(experts)(batch, requested, routing)
            positions = [self._position[task] for task in experts]
            embeddings |= output.embeddings
            for task in requested:
                logits[task], few = output.logits[task], output.routing_weights[task]
                weights[task] = few.new_zeros(*few.shape[:-1], len(self.tasks))
                weights[task][..., positions] = few
        targets = {task: self._manifest.tasks[task].output_kind for task in names}
        return UnifiedOutput(
            {task: logits[task] for task in names},
            {task: weights[task] for task in names},
            targets,
            embeddings,
        )

    def node_sums(
        self, batch: GraphBatch, labels: Mapping[str, Sequence[int]], routing: Routing
    ) -> dict[str, NodeSum]:
        """Split outputs into contributions of the nodes: see `UnifiedModel.node_sums`."""
        names, _ = select_tasks(self.tasks, tuple(labels))
        sums: dict[str, NodeSum] = {}
        for experts, requested in self._groups(names, routing).items():
            chosen = {task: labels[task] for task in requested}
            sums |= self._explained(experts).node_sums(batch, chosen, routing)
        return {task: sums[task] for task in names}

    def _groups(self, names: Sequence[str], routing: Routing) -> dict[tuple[str, ...], list[str]]:
        """Group the requested tasks by the experts of the small model that predicts them."""
        if routing != "own":
            return {candidate_experts(self._manifest, task): [task] for task in names}
        groups: dict[tuple[str, ...], list[str]] = {}
        for task in names:
            groups.setdefault(self._own_group[task], []).append(task)
        return groups


def _own_groups(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Group the tasks for routing "own", by task: all that share a stream, and of those with a
    stream of their own as many consecutive ones as a task mixes."""
    groups = [stream.tasks for stream in manifest.streams.values()]
    stream_of = manifest.stream_of
    own = tuple(task for task in manifest.tasks if task not in stream_of)
    size = (manifest.router.candidates or 0) + 1
    groups += [own[first : first + size] for first in range(0, len(own), size)]
    return {task: group for group in groups for task in group}


def _small_model(
    components: ArtifactComponents, device: torch.device | str, tasks: tuple[str, ...]
) -> Any:
    family, experts = components.manifest.family, {task: components.experts[task] for task in tasks}
    with torch.inference_mode(False):  # it outlives the request that it is made in
        return family.model(components.backbone, experts, components.manifest.router).to(device)


def _served_model(
    components: ArtifactComponents, device: torch.device | str, tasks: tuple[str, ...]
) -> Any:
    family = components.manifest.family
    with torch.inference_mode(False):
        return family.served(_small_model(components, device, tasks))
