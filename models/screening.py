"""Screening for many experts: the candidates of each task, found in advance, and a model that
considers no other experts.

The router's work for a request grows with the number of experts K, and its tables with K^2. Which
experts are near depends mostly on the experts and little on the molecule, so it is estimated once,
on molecules without labels; a request is then routed exactly among few. Source: ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from models.artifact import ArtifactParts, Manifest
from models.compiled.model import CompiledModel, fastest
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, collate
from models.errors import InvalidInputError
from models.experts.adapter import apply_norm, trace
from models.experts.expert import Expert
from models.experts.router import RouterConfig, cosine_cost_from_gram, graph_distances
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedModel, UnifiedOutput
from models.networks.hu2020 import Backbone
from models.task import select_tasks

_SEED = 0
_BLOCK = 32  # rows at a time: the outputs of all experts for them fit into memory
_KEPT = 64  # small models in the cache


def nearest_experts(
    backbone: Backbone,
    experts: Mapping[str, Expert],
    router: RouterConfig,
    graphs: Sequence[MolGraph],
    most: int,
    tasks: Iterable[str] | None = None,
    nodes: int = 256,
) -> dict[str, tuple[str, ...]]:
    """Estimate which experts the router finds near for each task.

    The task's own stream (not the mixed one) passes over the graphs. At every site that mixes,
    every expert's mean distance from the task's own expert is taken: at the graph site the router's
    distance; at a node site, on a sample of nodes, the cost of leaving all mass where it is, an
    upper bound of the exact transport cost for a few matrix products. An expert ranks by the site
    where it is nearest, since every site chooses for itself; ties are broken by the mean over the
    sites, in units of the temperatures. This is a heuristic: it does not bound what it leaves out.
    How many experts are enough depends on how many are about equally near, times the number of
    sites (`benchmarks/many_experts.py`); experts without relatives have no short list.

    Runs on the CPU. Work for K tasks grows with K^2: K passes, and 4 d r K multiplications for each
    sampled row of each site and task.

    Args:
        backbone, experts, router: as of a `UnifiedModel`; no table of pairs of experts is made.
        graphs: a few hundred, like those that will be requested.
        most: most names per task.
        tasks: tasks to estimate for; None is all.
        nodes: number of nodes sampled from all graphs together, with a fixed seed.

    Returns:
        By task, names of other tasks, nearest first: `Manifest.nearest`.

    Raises:
        UnknownTaskError: a task without an expert.
        InvalidInputError: no graph.
    """
    names, positions = select_tasks(tuple(experts), None if tasks is None else tuple(tasks))
    batch, known = collate(graphs), tuple(experts)
    drawn = torch.randperm(batch.num_nodes, generator=torch.Generator().manual_seed(_SEED))[:nodes]
    num_layers = backbone.config.num_layers
    with torch.inference_mode():
        sites = {
            site: _Site(experts.values(), site)
            for site in range(num_layers + 1)
            if site == num_layers or router.mixes(site, num_layers)
        }
        found = {}
        for task, target in zip(names, positions, strict=True):
            inputs = _site_inputs(backbone, experts[task], batch, drawn)
            scores = [
                adapters.distances(inputs[site], target, site == num_layers)
                for site, adapters in sites.items()
            ]
            temperatures = [
                router.graph_temperature if site == num_layers else router.temperature
                for site in sites
            ]
            order = _order(torch.stack(scores) / torch.tensor(temperatures).unsqueeze(1))
            found[task] = tuple(known[k] for k in order if k != target)[:most]
    return found


class _Site:
    """The adapters of all experts at one site.

    Attributes:
        down: (d, K * r).
        up: (K * r, d).
        gram: (K, r, r) product of every `up` matrix with itself.
        size: K and r.
    """

    def __init__(self, experts: Iterable[Expert], site: int) -> None:
        adapters = [expert.adapters.sites[site] for expert in experts]
        self.down = torch.cat([adapter.get_parameter("down") for adapter in adapters], 1)
        up = torch.stack([adapter.get_parameter("up") for adapter in adapters])
        self.size, self.up, self.gram = up.shape[:2], up.flatten(0, 1), up @ up.mT

    def distances(self, h: Tensor, target: int, of_graphs: bool) -> Tensor:
        """Average over the rows of h (n, d) the distance of every expert from the target expert:
        (K,).
        """
        of_block = self._graph_distances if of_graphs else self._node_costs
        return torch.cat([of_block(block, target) for block in h.split(_BLOCK)]).mean(0)

    def _graph_distances(self, h: Tensor, target: int) -> Tensor:
        z = (h @ self.down).relu_().unflatten(1, self.size)
        outputs = torch.einsum("nkr,krd->nkd", z, self.up.unflatten(0, self.size))
        return graph_distances(outputs.unsqueeze(1), torch.tensor([target])).squeeze(1)

    def _node_costs(self, h: Tensor, target: int) -> Tensor:
        z = (h @ self.down).relu_().unflatten(1, self.size)
        output = z[:, target] @ self.up.unflatten(0, self.size)[target]
        inner = torch.linalg.vecdot((output @ self.up.T).unflatten(1, self.size), z)
        square = torch.einsum("nkr,krq,nkq->nk", z, self.gram, z).clamp_(min=0)
        return cosine_cost_from_gram(inner, square, square[:, target, None].expand_as(square))


def _site_inputs(
    backbone: Backbone, expert: Expert, batch: GraphBatch, drawn: Tensor
) -> list[Tensor]:
    """Record the inputs of the adapters of each site in the task's own stream.

    Returns:
        Per site: the sampled rows (n, d) at node sites, all (G, d) at the graph site.
    """
    adapters, inputs = expert.adapters, []

    def correct(site: int, h: Tensor) -> Tensor:
        inputs.append(h if site == backbone.config.num_layers else h[drawn])
        return adapters.correct(site, h)

    trace(
        backbone,
        batch,
        correct,
        lambda layer, h: apply_norm(
            backbone, layer, h, adapters.norm_mean[layer], adapters.norm_var[layer]
        ),
    )
    return inputs


def _order(scores: Tensor) -> list[int]:
    """Sort experts by their best rank over the sites, then by their mean score: (sites, K) -> K
    indices.
    """
    best = scores.argsort(1).argsort(1).amin(0)
    by_mean = scores.mean(0).argsort()
    order: list[int] = by_mean[best[by_mean].argsort(stable=True)].tolist()
    return order


def candidate_experts(manifest: Manifest, task: str) -> tuple[str, ...]:
    """Return the tasks whose experts are considered for a task.

    These are the task itself and its nearest, `candidates` of them; all tasks unless `is_screened`.

    Raises:
        UnknownTaskError: a task that the artifact does not have.
    """
    select_tasks(tuple(manifest.tasks), [task])
    return (
        (task, *manifest.nearest[task][: manifest.router.candidates])
        if is_screened(manifest)
        else tuple(manifest.tasks)
    )


def is_screened(manifest: Manifest) -> bool:
    """Return True if an artifact limits the experts that are considered for a task."""
    candidates = manifest.router.candidates
    return (
        bool(manifest.nearest) and candidates is not None and len(manifest.tasks) > candidates + 1
    )


class ScreenedModel:
    """A `UnifiedModel` of many experts with stored statistics, run as small models that are made on
    demand.

    Routings "moe" and "merged" use one small model per requested task, of its candidate experts;
    the routing weights are over all experts, 0 for the others. Routing "own" uses one model per
    group of consecutive tasks; its answers are the same. Every expert is held once in memory, and
    no pairs of experts.
    """

    def __init__(self, parts: ArtifactParts, device: torch.device | str = "cpu") -> None:
        """Load no model yet.

        Args:
            parts: an artifact with all its experts.
            device: where the small models run.

        Raises:
            InvalidInputError: the artifact has no `nearest`, no `candidates` or no more experts
                than those, or not all of its experts are loaded.
        """
        manifest = parts.manifest
        if not is_screened(manifest) or tuple(parts.experts) != tuple(manifest.tasks):
            raise InvalidInputError(
                "got an artifact without `nearest` and fewer `candidates` than experts, or parts of"
                " one, expected all that"
            )
        self.tasks, self._manifest = tuple(manifest.tasks), manifest
        self._position = {task: k for k, task in enumerate(self.tasks)}
        # A cache of a function, not of a method: no reference cycle, so that memory is freed as
        # soon as the last reference to this object goes.
        self._small = lru_cache(_KEPT)(partial(_small_model, parts, device))
        self.site_names = self._small(self.tasks[:1]).site_names

    def __call__(
        self,
        batch: GraphBatch,
        tasks: Sequence[str] | None = None,
        routing: Routing = DEFAULT_ROUTING,
    ) -> UnifiedOutput:
        """Answer tasks for a batch: see `UnifiedModel.forward`, with stored statistics."""
        names, _ = select_tasks(self.tasks, tasks)
        logits, weights = {}, {}
        for experts, requested in self._groups(names, routing).items():
            output = self._small(experts)(batch, requested, routing)
            positions = [self._position[task] for task in experts]
            for task in requested:
                logits[task], few = output.logits[task], output.routing_weights[task]
                weights[task] = few.new_zeros(*few.shape[:-1], len(self.tasks))
                weights[task][..., positions] = few
        targets = {task: self._manifest.tasks[task].target for task in names}
        return UnifiedOutput(
            {task: logits[task] for task in names}, {task: weights[task] for task in names}, targets
        )

    def _groups(self, names: Sequence[str], routing: Routing) -> dict[tuple[str, ...], list[str]]:
        """Group the requested tasks by the experts of the small model that answers them."""
        if routing != "own":
            return {candidate_experts(self._manifest, task): [task] for task in names}
        size = (self._manifest.router.candidates or 0) + 1
        groups: dict[tuple[str, ...], list[str]] = {}
        for task in names:
            first = self._position[task] // size * size
            groups.setdefault(self.tasks[first : first + size], []).append(task)
        return groups


def _small_model(
    parts: ArtifactParts, device: torch.device | str, experts: tuple[str, ...]
) -> CompiledModel | UnifiedModel:
    with torch.inference_mode(False):  # it outlives the request that it is made in
        return fastest(
            UnifiedModel(
                parts.molecular_backbone,
                {task: parts.experts[task] for task in experts},
                parts.manifest.router,
            ).to(device)
        )
