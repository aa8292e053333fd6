"""The unified model compiled for the CPU: the answers of `models.experts.unified` for many
molecules at a time, at a fraction of the cost.

- **Equivalent nodes are computed once.** A node's state after l layers is a function of its
  surroundings up to l bonds away. Nodes with equal surroundings are one class
  (`models.compiled.batch`, exact), and a layer is computed once per class: over the whole batch
  where every stream uses one adapter, within each molecule where the router weighs the experts
  for every molecule.
- **A shared stream is computed once** for all of its tasks, and without node adapters nothing is
  done for any of them in the layers.
- **Products are folded** (`models.compiled.fold`). The adapters' projections are products with the
  layer's weights and are multiplied in advance; bond embeddings and biases are one product with
  counts of bonds; BatchNorm is a factor and an offset.
- **The last layer is never computed for nodes.** No relu follows it, so the mean over the atoms
  is taken before the product; only the adapters' few columns are needed for every node.
- **The rest is loops in the cache** (`models.compiled.kernels`): messages, adapter, BatchNorm and
  relu in one, and the router's transport problems.

Source: G-Merging, as in `models.experts.unified`; the folding and the classes are ours.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor

from models.compiled.batch import CompiledBatch, WholeBatch
from models.compiled.fold import KEPT_SELECTIONS, ExpertSelection, fold_layer
from models.compiled.graph_site import GraphSite
from models.compiled.streams import CompiledStreams, Workspace
from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.experts.streams import StreamSelection
from models.experts.unified import DEFAULT_ROUTING, Routing, UnifiedModel, UnifiedOutput
from models.networks.hu2020 import SUM_DIVISOR, Backbone
from models.task import select_tasks

_KINDS = "gcn", "gin_linear"
_MIN_EPSILON = 0.05
_MAX_TOLERANCE = 60.0  # in units of epsilon; beyond both limits exponentials leave float32


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
                "got a model that cannot be compiled, expected a GCN or a linear GIN on the CPU"
                " with the plain entropic router"
            )
        self.tasks, self.site_names, self.targets = model.tasks, model.site_names, model.targets
        self._table = model.streams
        backbone = cast(Backbone, model.backbone)  # as `supports` says
        self._embeddings = (
            backbone.x_embedding1.weight.detach(),
            backbone.x_embedding2.weight.detach(),
        )
        self._num_layers = backbone.config.num_layers
        self._normalised = backbone.config.kind == "gcn"
        self._sums = backbone.config.readout == "sum"
        # Streams of single tasks, which mix, and shared ones; either may be missing.
        self._groups: list[tuple[range, CompiledStreams]] = []
        own, streams = self._table.own, len(self._table.streams)
        for banks, members in (
            (model.node_banks, range(own)),
            (model.shared_banks, range(own, streams)),
        ):
            if not members:
                continue
            rows = slice(members.start, members.stop)
            layers = [
                fold_layer(backbone, layer, bank, mean[rows], var[rows])
                for layer, (bank, mean, var) in enumerate(
                    zip(banks, model.norm_mean, model.norm_var, strict=True)
                )
            ]
            group = CompiledStreams(self._embeddings, layers, model.router)
            self._groups.append((members, group))
        self._graph_site = GraphSite(model)
        self._selected = lru_cache(maxsize=KEPT_SELECTIONS)(self._select)

    @property
    def sizes(self) -> tuple[int, int]:
        """Width d of the backbone and largest rank r of the node adapters."""
        width = self._embeddings[0].shape[1]
        return width, max(group.rank for _, group in self._groups)

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors of the model, in bytes."""
        own = sum(value.numel() * value.element_size() for value in self._embeddings)
        groups = sum(group.num_bytes for _, group in self._groups)
        return own + groups + self._graph_site.num_bytes

    @staticmethod
    def supports(model: UnifiedModel) -> bool:
        """Check whether a model can be compiled.

        It must be a GCN or a linear GIN for molecules on the CPU whose tasks are answers of graphs,
        with a router that solves the plain entropic problem.
        """
        router = model.router
        plain = router.solver == "sinkhorn" and not router.debias and router.epsilon >= _MIN_EPSILON
        if set(model.levels.values()) != {"graph"}:
            return False
        return (
            plain
            and router.tolerance / router.epsilon <= _MAX_TOLERANCE
            and model.backbone.config.kind in _KINDS
            and model.graph_bank.up.is_cpu
        )

    def _select(self, tasks: tuple[str, ...] | None) -> tuple[tuple[str, ...], StreamSelection]:
        names, positions = select_tasks(self.tasks, tasks)
        return names, self._table.select(positions)

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
        names, chosen = self._selected(None if tasks is None else tuple(tasks))
        h, node_weights = self._readouts(batch, chosen, routing)
        logits, weights = self._answers(h, chosen, routing, node_weights)
        return UnifiedOutput(
            dict(zip(names, logits, strict=True)),
            {task: weights[:, :, t] for t, task in enumerate(names)},
            self.targets,
            {self._table.names[k]: h[s] for s, k in enumerate(chosen.streams)},
        )

    def _answers(
        self, h: Tensor, chosen: StreamSelection, routing: Routing, node_weights: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Compute logits (G, C) of every requested task from the readouts (S, G, d), and routing
        weights (G, L + 1, T, K) of all sites.

        Args:
            node_weights: by layer, (G, own, K_own) of the streams of single tasks; empty if there
                are none in the pass.
        """
        one_hot = chosen.one_hot(h.shape[1], h)
        if routing == "own":
            weights = one_hot.unsqueeze(1).expand(-1, self._num_layers + 1, -1, -1)
            return self._graph_site.own_logits(h, chosen), weights
        by_layer = [chosen.by_task(weights, one_hot) for weights in node_weights]
        known = None
        if by_layer and routing == "merged":
            known = self._groups[0][1].known_weights(by_layer)
        logits, mixed = self._graph_site.mixed_logits(h, chosen, routing, known)
        return logits, torch.stack([*(by_layer or [one_hot] * self._num_layers), mixed], 1)

    def _readouts(
        self, batch: GraphBatch, chosen: StreamSelection, routing: Routing
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the streams of a pass.

        Returns:
            (S, G, d) readouts, and by layer (G, own, K_own) routing weights of the streams of
            single tasks; none if the pass has no such streams.
        """
        graphs = CompiledBatch.from_batch(batch, self._normalised)
        whole, workspace = WholeBatch(graphs, self._num_layers - 1), Workspace()
        readouts, node_weights = [], list[Tensor]()
        for members, group in self._groups:
            selected = [k - members.start for k in chosen.streams if k in members]
            if not selected:
                continue
            mixes = members.start < self._table.own
            h, weights = group.run(
                graphs, whole, ExpertSelection(selected), routing if mixes else "own", workspace
            )
            readouts.append(h)
            if mixes:
                node_weights = weights
        h = torch.cat(readouts)
        if self._sums:
            sizes = np.diff(graphs.graph_starts).astype(np.float32) / SUM_DIVISOR
            h *= torch.from_numpy(sizes)[None, :, None]
        return h, node_weights


def fastest(model: UnifiedModel) -> CompiledModel | UnifiedModel:
    """Return the compiled model, or the model itself on a GPU and where it cannot be compiled. The
    answers are the same.
    """
    return CompiledModel(model) if CompiledModel.supports(model) else model
