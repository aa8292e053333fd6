"""Many experts: a list of candidates for every task, made in advance, and a model that mixes only
these.

The router's work per request grows with the number of experts K, and its tables with K^2. Which
experts are near depends mostly on the experts, little on the molecule. So it is estimated once, on
molecules without labels; a request is then routed exactly among the candidates. Source: ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from models.artifact import ArtifactParts
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, collate
from models.errors import ArtifactError, InvalidInputError
from models.experts.adapter import apply_norm, trace
from models.experts.expert import Expert
from models.experts.router import RouterConfig, cosine_cost_of_products, graph_distances
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedOutput
from models.manifest import Manifest
from models.networks.base import LayeredNetwork
from models.task import select_tasks

_SEED = 0
_BLOCK = 32  # rows at a time: what all experts say of them then fits into memory
_KEPT = 64  # small models at a time


def nearest_experts(
    backbone: LayeredNetwork,
    experts: Mapping[str, Expert],
    router: RouterConfig,
    graphs: Sequence[MolGraph],
    most: int,
    tasks: Iterable[str] | None = None,
    nodes: int = 256,
) -> dict[str, tuple[str, ...]]:
    """The experts that a task's router is likely to find near. An estimate: an expert that is left
    out may be near for some molecule.

    The graphs pass through the task's own stream (routing "own"). At every site that mixes, the
    mean distance of every expert's output from the own expert's is taken: at the graph site the
    router's distance; at a node site the cost of moving no mass, on a sample of nodes, which is an
    upper bound of the exact transport cost and takes a few matrix products. Experts are ranked by
    the best of their ranks at the sites, since every site mixes by its own distances; ties are
    broken by the mean distance over the sites, in units of the temperatures. How many candidates
    are enough: `benchmarks/many_experts.py`; experts that are about equally far have no short list.
    Runs on the CPU.

    Work for K tasks grows with K^2: K passes, and 4 d r K multiplications per sampled row and site
    of a pass.

    Args:
        backbone, experts, router: as of a `UnifiedModel`; no table of pairs of experts is made.
        graphs: a few hundred, like those of later requests.
        most: maximal number of names per task.
        tasks: whose nearest experts to find; None: all.
        nodes: number of nodes drawn from all graphs together, with a fixed seed.

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
                adapters.distances(inputs[site], own, site == num_layers)
                for site, adapters in sites.items()
            ]
            temperatures = [
                router.graph_temperature if site == num_layers else router.temperature
                for site in sites
            ]
            order = _order(torch.stack(scores) / torch.tensor(temperatures).unsqueeze(1))
            found[task] = tuple(known[k] for k in order if k != own)[:most]
    return found


class _Site:
    """The adapters of all experts at one site, concatenated.

    Attributes:
        size: (K, r).
        down: (d, K r).
        up: (K r, d).
        squares: (K, r, r), W_up_k W_up_k^T of every expert k.
    """

    def __init__(self, experts: Iterable[Expert], site: int) -> None:
        adapters = [expert.adapters.sites[site] for expert in experts]
        self.down = torch.cat([adapter.get_parameter("down") for adapter in adapters], 1)
        up = torch.stack([adapter.get_parameter("up") for adapter in adapters])
        self.size, self.up, self.squares = up.shape[:2], up.flatten(0, 1), up @ up.mT

    def distances(self, h: Tensor, own: int, of_graphs: bool) -> Tensor:
        """Distance of every expert's output from the own expert's, mean over the rows of h (n, d):
        (K,)."""
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
    backbone: LayeredNetwork, expert: Expert, batch: GraphBatch, drawn: Tensor
) -> list[Tensor]:
    """Inputs of a task's adapters in its own stream, by site: the drawn rows (n, d) at node sites,
    all rows (G, d) at the graph site."""
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
    """Experts sorted by their best rank at any site, then by their mean score: (sites, K) -> K
    numbers."""
    best = scores.argsort(1).argsort(1).amin(0)
    by_mean = scores.mean(0).argsort()
    order: list[int] = by_mean[best[by_mean].argsort(stable=True)].tolist()
    return order


def candidate_experts(manifest: Manifest, task: str) -> tuple[str, ...]:
    """The tasks whose experts a task's mixture considers: itself and the nearest `candidates`; all
    tasks unless `is_screened`."""
    select_tasks(tuple(manifest.tasks), [task])
    return (
        (task, *manifest.nearest[task][: manifest.router.candidates])
        if is_screened(manifest)
        else tuple(manifest.tasks)
    )


def is_screened(manifest: Manifest) -> bool:
    """Whether a task's mixture considers only some of the artifact's experts."""
    candidates = manifest.router.candidates
    return (
        bool(manifest.nearest) and candidates is not None and len(manifest.tasks) > candidates + 1
    )


class ScreenedModel:
    """Answers for all experts from small models of a few of them, which are made on first use.

    With routings "moe" and "merged" every requested task has a small model of its candidate
    experts; the routing weights are over all experts, 0 for those that are no candidates. With
    routing "own" a small model answers several neighbouring tasks, as `UnifiedModel` does. Stored
    statistics. Every expert is held once; no table of pairs of experts is made.
    """

    def __init__(self, parts: ArtifactParts, device: torch.device | str = "cpu") -> None:
        """Prepare; small models are made when they are needed.

        Raises:
            InvalidInputError: the artifact has no `nearest`, no `candidates`, or no more experts
                than candidates; or not all of its experts are loaded.
            ArtifactError: its model mixes no experts.
        """
        manifest = parts.manifest
        if not is_screened(manifest) or tuple(parts.experts) != tuple(manifest.tasks):
            raise InvalidInputError(
                "got an artifact without `nearest` and fewer `candidates` than experts, or parts of"
                " one, expected all that"
            )
        self.tasks, self._manifest = tuple(manifest.tasks), manifest
        self._position = {task: k for k, task in enumerate(self.tasks)}
        # A cached function, not a method: it holds no reference to this object, whose memory is
        # freed as soon as it is dropped.
        self._small = lru_cache(_KEPT)(partial(_small_model, parts, device))
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
        """As `UnifiedModel.forward`, with stored statistics."""
        names, _ = select_tasks(self.tasks, tasks)
        logits, weights = {}, {}
        for experts, asked in self._groups(names, routing).items():
            output = self._small(experts)(batch, asked, routing)
            positions = [self._position[task] for task in experts]
            for task in asked:
                logits[task], few = output.logits[task], output.routing_weights[task]
                weights[task] = few.new_zeros(*few.shape[:-1], len(self.tasks))
                weights[task][..., positions] = few
        targets = {task: self._manifest.tasks[task].target for task in names}
        return UnifiedOutput(
            {task: logits[task] for task in names}, {task: weights[task] for task in names}, targets
        )

    def _groups(self, names: Sequence[str], routing: Routing) -> dict[tuple[str, ...], list[str]]:
        """The requested tasks by the experts of the small model that answers them."""
        if routing != "own":
            return {candidate_experts(self._manifest, task): [task] for task in names}
        size = (self._manifest.router.candidates or 0) + 1
        groups: dict[tuple[str, ...], list[str]] = {}
        for task in names:
            first = self._position[task] // size * size
            groups.setdefault(self.tasks[first : first + size], []).append(task)
        return groups


def _small_model(parts: ArtifactParts, device: torch.device | str, tasks: tuple[str, ...]) -> Any:
    family, experts = parts.manifest.family, {task: parts.experts[task] for task in tasks}
    with torch.inference_mode(False):  # it outlives the request that it is made in
        model = family.model(parts.backbone, experts, parts.manifest.router)
        return family.served(model.to(device))
