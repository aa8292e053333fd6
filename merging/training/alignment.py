"""Adapter training: a frozen teacher, a frozen merged backbone, and adapters between them. No
labels are used.

Loss per graph (G-Merging, eq. 5 to 7): alpha * L1 of graph embeddings + sum over layers of TWD
between convolution outputs before BatchNorm.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.training.loop import ResumableTraining
from merging.training.metrics import batches
from merging.training.settings import AlignmentConfig
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.experts.adapter import LayerOutputs, TaskAdapters, apply_norm, batch_statistics, trace
from models.networks.hu2020 import Backbone
from models.transport.exact import solver_device
from models.transport.problem import Support
from models.transport.twd import twd_on_support

STATISTICS_BATCH = 1024
STATISTICS_MOLECULES = 8192
"""More molecules than this do not change a mean or a variance that matters: larger sets are sampled
evenly."""
CACHE_BYTES = 2 * 1024**3
"""A teacher's outputs are kept in memory up to this size; beyond it they are computed anew in every
epoch."""


@dataclass(frozen=True)
class AlignmentResult:
    """Trained adapters with their statistics, and how it went (epochs, loss by epoch, seconds)."""

    adapters: TaskAdapters
    record: dict[str, Any]


def alignment_loss(
    student: LayerOutputs, teacher: LayerOutputs, support: Support, config: AlignmentConfig
) -> Tensor:
    """Mean over the graphs of alpha * mean |g - g'| + twd_weight * sum_l TWD(H_l, H'_l): scalar. A
    term of weight 0 is not computed."""
    loss = config.alpha * (student.graph_embedding - teacher.graph_embedding).abs().mean()
    if not config.twd_weight:
        return loss
    for ours, theirs in zip(student.convolutions, teacher.convolutions, strict=True):
        distance = twd_on_support(
            ours,
            theirs,
            support,
            solver=config.solver,
            epsilon=config.epsilon,
            tolerance=config.tolerance,
            max_iters=config.max_iters,
        )
        loss = loss + config.twd_weight * distance.cost.mean()
    return loss


class Teacher:
    """The fine-tuned network's outputs for training molecules, computed once where they fit into
    `CACHE_BYTES`."""

    def __init__(
        self, backbone: Backbone, graphs: PackedGraphs, rows: Tensor, device: torch.device
    ) -> None:
        self._backbone, self._device = backbone, device
        config = backbone.config
        self._sizes = graphs.node_counts
        size = int(self._sizes[rows].sum()) * config.num_layers * config.hidden_dim * 4
        self._cache = self._outputs_by_graph(graphs, rows) if size <= CACHE_BYTES else None

    @torch.no_grad()
    def _outputs_by_graph(
        self, graphs: PackedGraphs, rows: Tensor
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """For each graph its layers' outputs (N, L, d) and its embedding (d,), on the CPU."""
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for part, batch in batches(graphs, rows, 256):
            outputs = trace(self._backbone, batch.to(self._device))
            layers = (
                torch.stack(outputs.convolutions, dim=1).cpu().split(self._sizes[part].tolist())
            )
            kept |= dict(
                zip(
                    part.tolist(),
                    zip(layers, outputs.graph_embedding.cpu(), strict=True),
                    strict=True,
                )
            )
        return kept

    @torch.no_grad()
    def __call__(self, rows: Tensor, batch: GraphBatch) -> LayerOutputs:
        """Outputs for the graphs `rows`, which `batch` holds."""
        if self._cache is None:
            return trace(self._backbone, batch)
        layers, embeddings = zip(*(self._cache[row] for row in rows.tolist()), strict=True)
        return LayerOutputs(
            torch.cat(layers).to(self._device).unbind(1), torch.stack(embeddings).to(self._device)
        )


@torch.no_grad()
def set_statistics(
    adapters: TaskAdapters,
    backbone: Backbone,
    graphs: PackedGraphs,
    rows: Tensor,
    device: torch.device,
) -> None:
    """Set the stored BatchNorm statistics to those of the task's stream on the given molecules.

    Every layer is normalised by its batch's own statistics on the way (large batches); means and
    variances are then pooled over the batches, so for up to `STATISTICS_BATCH` molecules they are
    exact.
    """
    if len(rows) > STATISTICS_MOLECULES:
        rows = rows[torch.linspace(0, len(rows) - 1, STATISTICS_MOLECULES).long()]
    count, first, second = (
        0,
        torch.zeros_like(adapters.norm_mean),
        torch.zeros_like(adapters.norm_var),
    )
    for _, batch in batches(graphs, rows, STATISTICS_BATCH):

        def observe(layer: int, h: Tensor) -> Tensor:
            mean, var = batch_statistics(h)
            first[layer] += mean * len(h)
            second[layer] += (var + mean.square()) * len(h)
            return apply_norm(backbone, layer, h, mean, var)

        backbone(batch.to(device), adapters.correct, observe)
        count += batch.num_nodes
    adapters.norm_mean.copy_(first / count)
    adapters.norm_var.copy_((second / count - adapters.norm_mean.square()).clamp(min=0))


def align(
    graphs: PackedGraphs,
    rows: Tensor,
    teacher: Backbone,
    backbone: Backbone,
    config: AlignmentConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
    name: str,
) -> AlignmentResult:
    """Train one task's adapters; both networks are in evaluation mode and stay as they are. The
    learning rate falls to 0 along a half cosine.

    Args:
        graphs, rows: the training molecules.
        teacher: theta_k with its own BatchNorm statistics.
        backbone: the merged backbone.
        config: epochs and so on; the last epoch is kept, as without labels there is nothing to
            choose by.
        seed: of the start and the order of molecules; each epoch draws from its own seed, so a
            resumed run is the same run.
        checkpoint: where the state is kept after each epoch.
        device: where to train.
        name: for the progress bar.
    """
    torch.manual_seed(seed)
    expected = Teacher(teacher.eval().requires_grad_(False).to(device), graphs, rows, device)
    backbone.eval().requires_grad_(False).to(device)
    adapters = TaskAdapters(backbone.config, config.rank).to(device)
    # Once, before the adapters move, and never again: statistics that follow the stream undo what
    # the adapters learn about means and scales, which gave three to four times the loss.
    set_statistics(adapters, backbone, graphs, rows, device)
    trained = {"all": adapters.sites, "nodes": adapters.sites[:-1], "graph": adapters.sites[-1:]}[
        config.sites
    ]
    # a site left out subtracts the zeros it starts with
    optimizer = torch.optim.Adam(trained.parameters(), lr=config.learning_rate, fused=True)
    training = ResumableTraining(adapters, optimizer, checkpoint, seed, device)
    for epoch in training.epochs(config.epochs, f"{name}: adapter epochs"):
        order = rows[torch.randperm(len(rows))[: config.max_molecules]]
        for group in optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / config.epochs))
            )
        losses = []
        for part, batch in batches(graphs, order, config.batch_size):
            batch = batch.to(device)
            losses.append(
                _step(adapters, optimizer, backbone, batch, expected(part, batch), config)
            )
        training.history.append(sum(losses) / len(losses))
        training.shown = {"loss": f"{training.history[-1]:.5f}"}
    record = {
        "epochs": config.epochs,
        "loss": training.history,
        "seconds": round(training.seconds, 1),
        "transport": f"{config.solver} on {solver_device(config.solver, device)}",
    }
    return AlignmentResult(adapters.cpu(), record)


def _step(
    adapters: TaskAdapters,
    optimizer: torch.optim.Optimizer,
    backbone: Backbone,
    batch: GraphBatch,
    target: LayerOutputs,
    config: AlignmentConfig,
) -> float:
    support = Support.from_graph(
        batch.edge_index, batch.batch, batch.num_graphs, config.support_order
    )
    loss = alignment_loss(adapters(backbone, batch), target, support, config)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
