"""Many experts: which ones a task's mixture looks at, found in advance, and a model that looks at
no others.

The router's work for a request grows with the number of experts K, and its tables with K^2. Which
experts are near is mostly a matter of the experts and not of the molecule, so that it is estimated
once, on molecules without labels; a request is then routed exactly, among few. Source: ours.
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
from models.experts.router import RouterConfig, cosine_cost_of_products, graph_distances
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedModel, UnifiedOutput
from models.networks.hu2020 import Backbone
from models.task import select_tasks

_SEED = 0
_BLOCK = 32  # rows at a time: what all experts say of them then fits into memory
_KEPT = 64  # small models at a time


def nearest_experts(
    backbone: Backbone,
    experts: Mapping[str, Expert],
    router: RouterConfig,
    graphs: Sequence[MolGraph],
    most: int,
    tasks: Iterable[str] | None = None,
    nodes: int = 256,
) -> dict[str, tuple[str, ...]]:
    """Which experts a task's router is likely to find near: a screen, and no bound on what it
    leaves out.

    The task's own stream (not the mixed one) passes over the graphs. At each site that mixes, every
    expert's mean distance from the own expert is taken: at the graph site the router's own, at a
    node site the cost of leaving all mass where it is, on a sample of nodes. That is what the
    transport problem costs at most, if solved exactly, as a few matrix products. An expert is as
    near as at the site where it is nearest of all, since each site chooses for itself; ties are
    broken by the mean over the sites, in units of the temperatures. How many are enough depends on
    how many are about equally near, times the sites (`benchmarks/many_experts.py`); experts without
    relatives have no short list. Runs on the CPU.

    Work for K tasks grows with K^2: K passes, and 4 d r K multiplications for each sampled row of
    each site of each.

    Args:
        backbone, experts, router: as of a `UnifiedModel`; no table of pairs of experts is made.
        graphs: a few hundred, like those that will be asked about.
        most: how many names for each task, at most.
        tasks: for which; None is all.
        nodes: how many are drawn of all graphs together, with a fixed seed.

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
        for task, own in zip(names, positions, strict=True):
            inputs = _site_inputs(backbone, experts[task], batch, drawn)
            scores = [
                each.distances(inputs[site], own, site == num_layers)
                for site, each in sites.items()
            ]
            temperatures = [
                router.graph_temperature if site == num_layers else router.temperature
                for site in sites
            ]
            order = _order(torch.stack(scores) / torch.tensor(temperatures).unsqueeze(1))
            found[task] = tuple(known[k] for k in order if k != own)[:most]
    return found


class _Site:
    """The adapters of all experts at one site, side by side: down (d, K r), up (K r, d), squares
    (K, r, r) the products of each with itself."""

    def __init__(self, experts: Iterable[Expert], site: int) -> None:
        adapters = [expert.adapters.sites[site] for expert in experts]
        self.down = torch.cat([adapter.get_parameter("down") for adapter in adapters], 1)
        up = torch.stack([adapter.get_parameter("up") for adapter in adapters])
        self.size, self.up, self.squares = up.shape[:2], up.flatten(0, 1), up @ up.mT

    def distances(self, h: Tensor, own: int, of_graphs: bool) -> Tensor:
        """Mean over the rows of h (n, d) of each expert's distance from the own one: (K,)."""
        of_block = self._graph_distances if of_graphs else self._node_costs
        return torch.cat([of_block(block, own) for block in h.split(_BLOCK)]).mean(0)

    def _graph_distances(self, h: Tensor, own: int) -> Tensor:
        z = (h @ self.down).relu_().unflatten(1, self.size)
        outputs = torch.einsum("nkr,krd->nkd", z, self.up.unflatten(0, self.size))
        return graph_distances(outputs.unsqueeze(1), torch.tensor([own])).squeeze(1)

    def _node_costs(self, h: Tensor, own: int) -> Tensor:
        z = (h @ self.down).relu_().unflatten(1, self.size)
        output = z[:, own] @ self.up.unflatten(0, self.size)[own]
        inner = torch.linalg.vecdot((output @ self.up.T).unflatten(1, self.size), z)
        square = torch.einsum("nkr,krq,nkq->nk", z, self.squares, z).clamp_(min=0)
        return cosine_cost_of_products(inner, square, square[:, own, None].expand_as(square))


def _site_inputs(
    backbone: Backbone, expert: Expert, batch: GraphBatch, drawn: Tensor
) -> list[Tensor]:
    """What the adapters of each site see in the task's own stream: the drawn rows (n, d) at node
    sites, all (G, d) at the graph site."""
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
    """Experts by the best of their ranks at the sites, then by the mean of their scores: (sites, K)
    -> K numbers."""
    best = scores.argsort(1).argsort(1).amin(0)
    by_mean = scores.mean(0).argsort()
    order: list[int] = by_mean[best[by_mean].argsort(stable=True)].tolist()
    return order


def candidate_experts(manifest: Manifest, task: str) -> tuple[str, ...]:
    """The tasks whose experts are looked at for a task: itself and its nearest, `candidates` of
    them; all tasks unless `is_screened`."""
    select_tasks(tuple(manifest.tasks), [task])
    return (
        (task, *manifest.nearest[task][: manifest.router.candidates])
        if is_screened(manifest)
        else tuple(manifest.tasks)
    )


def is_screened(manifest: Manifest) -> bool:
    """Whether an artifact wants not all of its experts to be looked at."""
    candidates = manifest.router.candidates
    return (
        bool(manifest.nearest) and candidates is not None and len(manifest.tasks) > candidates + 1
    )


class ScreenedModel:
    """Answers as a `UnifiedModel` of all experts does, with stored statistics, from small models
    that are made when they are needed.

    Routings "moe" and "merged" have one small model for each asked task, of the experts that are
    looked at for it; the answer's weights are over all experts and zero for the others. Routing
    "own" has one for so many tasks in a row; its answers are the same. Every expert is held once,
    and no pairs of them.
    """

    def __init__(self, parts: ArtifactParts, device: torch.device | str = "cpu") -> None:
        """Raises InvalidInputError: the artifact has no table, no `candidates`, or no more experts
        than those; or not all of them are loaded."""
        manifest = parts.manifest
        if not is_screened(manifest) or tuple(parts.experts) != tuple(manifest.tasks):
            raise InvalidInputError(
                "got an artifact without `nearest` and fewer `candidates` than experts, or parts of"
                " one, expected all that"
            )
        self.tasks, self._manifest = tuple(manifest.tasks), manifest
        self._position = {task: k for k, task in enumerate(self.tasks)}
        # Of a function and not of a method: nothing then points back to this object, and its memory
        # is free as soon as it is dropped.
        self._small = lru_cache(_KEPT)(partial(_small_model, parts, device))
        self.site_names = self._small(self.tasks[:1]).site_names

    def __call__(
        self,
        batch: GraphBatch,
        tasks: Sequence[str] | None = None,
        routing: Routing = DEFAULT_ROUTING,
    ) -> UnifiedOutput:
        """As `UnifiedModel.forward`, with stored statistics."""
        names, _ = select_tasks(self.tasks, tasks)
        logits, weights = {}, {}
        for experts, asked in self._groups(names, routing).items():
            output = self._small(experts)(batch, asked, routing)
            positions = [self._position[each] for each in experts]
            for task in asked:
                logits[task], few = output.logits[task], output.routing_weights[task]
                weights[task] = few.new_zeros(*few.shape[:-1], len(self.tasks))
                weights[task][..., positions] = few
        targets = {task: self._manifest.tasks[task].target for task in names}
        return UnifiedOutput(
            {task: logits[task] for task in names}, {task: weights[task] for task in names}, targets
        )

    def _groups(self, names: Sequence[str], routing: Routing) -> dict[tuple[str, ...], list[str]]:
        """The asked tasks by the experts of the small model that answers them."""
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
