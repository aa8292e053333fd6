"""Training of adapters, which align a frozen merged backbone with a frozen fine-tuned teacher. No
labels are used.

Loss per graph (G-Merging, eq. 5 to 7): alpha * L1 of what the head reads + sum over layers of TWD
between convolution outputs before BatchNorm. The head reads the graph embedding; that of a task on
nodes reads the last layer, whose outputs L1 then compares node by node (TWD lets mass move to
neighbours).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.config.training import AlignmentConfig
from merging.targets.metrics import batches
from merging.training.loop import ResumableTraining
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.experts.adapter import LayerOutputs, TaskAdapters, apply_norm, batch_statistics, trace
from models.networks.base import LayeredNetwork
from models.task import Level
from models.transport.exact import solver_device
from models.transport.problem import Support
from models.transport.twd import twd_on_support

STATISTICS_BATCH = 1024
STATISTICS_MOLECULES = 8192
"""Larger sets are sampled evenly: more molecules do not change means and variances noticeably."""
CACHE_BYTES = 2 * 1024**3
"""Up to this size a teacher's outputs are cached in memory; beyond it they are computed in every
epoch."""


@dataclass(frozen=True)
class AlignmentResult:
    """Trained adapters with their BatchNorm statistics, and a record of the training: epochs, loss
    by epoch, seconds, transport solver."""

    adapters: TaskAdapters
    record: dict[str, Any]


def alignment_loss(
    student: LayerOutputs,
    teacher: LayerOutputs,
    support: Support,
    config: AlignmentConfig,
    level: Level = "graph",
) -> Tensor:
    """Compute the mean over graphs of alpha * mean |g - g'| + twd_weight * sum_l TWD(H_l, H'_l).

    Args:
        student: outputs of the merged backbone with adapters.
        teacher: outputs of the fine-tuned backbone on the same batch.
        support: pairs of nodes that transport plans may use.
        config: the weights and the transport solver.
        level: of the task; g are the graph embeddings, or at other levels the outputs of the last
            layer.

    Returns:
        A scalar; a term of weight 0 is not computed.
    """
    loss = config.alpha * (_read(student, level) - _read(teacher, level)).abs().mean()
    if not config.twd_weight:
        return loss
    for layer, reference in zip(student.convolutions, teacher.convolutions, strict=True):
        distance = twd_on_support(
            layer,
            reference,
            support,
            solver=config.solver,
            epsilon=config.epsilon,
            tolerance=config.tolerance,
            max_iters=config.max_iters,
        )
        loss = loss + config.twd_weight * distance.cost.mean()
    return loss


def _read(outputs: LayerOutputs, level: Level) -> Tensor:
    return outputs.convolutions[-1] if level != "graph" else outputs.graph_embedding


class TeacherOutputs:
    """A fine-tuned network's outputs for its training molecules, computed once if they fit into
    `CACHE_BYTES`."""

    def __init__(
        self, backbone: LayeredNetwork, graphs: PackedGraphs, rows: Tensor, device: torch.device
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
        """By graph the outputs of its layers (N, L, d) and its embedding (d,), on the CPU."""
        cache: dict[int, tuple[Tensor, Tensor]] = {}
        for chosen, batch in batches(graphs, rows, 256):
            outputs = trace(self._backbone, batch.to(self._device))
            stacked = torch.stack(outputs.convolutions, dim=1).cpu()
            layers = stacked.split(self._sizes[chosen].tolist())
            embeddings = outputs.graph_embedding.cpu()
            cache |= zip(chosen.tolist(), zip(layers, embeddings, strict=True), strict=True)
        return cache

    @torch.no_grad()
    def __call__(self, rows: Tensor, batch: GraphBatch) -> LayerOutputs:
        """Return the teacher's outputs for the graphs `rows`, collated in `batch`."""
        if self._cache is None:
            return trace(self._backbone, batch)
        layers, embeddings = zip(*(self._cache[row] for row in rows.tolist()), strict=True)
        return LayerOutputs(
            torch.cat(layers).to(self._device).unbind(1), torch.stack(embeddings).to(self._device)
        )


@torch.no_grad()
def set_statistics(
    adapters: TaskAdapters,
    backbone: LayeredNetwork,
    graphs: PackedGraphs,
    rows: Tensor,
    device: torch.device,
) -> None:
    """Set the BatchNorm statistics stored with a task's adapters to those of its stream; a network
    without BatchNorm has none.

    Layers are normalised by the statistics of the current (large) batch; means and variances are
    then pooled over the batches, so they are exact for up to `STATISTICS_BATCH` molecules.

    Args:
        adapters: changed in place.
        backbone: the merged backbone.
        graphs, rows: the task's training graphs.
        device: of both networks.
    """
    if not len(backbone.batch_norms):
        return
    if len(rows) > STATISTICS_MOLECULES:
        rows = rows[torch.linspace(0, len(rows) - 1, STATISTICS_MOLECULES).long()]
    count = 0
    first, second = torch.zeros_like(adapters.norm_mean), torch.zeros_like(adapters.norm_var)
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
    teacher: LayeredNetwork,
    backbone: LayeredNetwork,
    config: AlignmentConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
    name: str,
    level: Level = "graph",
) -> AlignmentResult:
    """Train the adapters of one task; teacher and backbone are frozen, in evaluation mode. The
    learning rate decays to 0 along a half cosine.

    Args:
        graphs, rows: the training graphs.
        teacher: theta_k with its BatchNorm statistics.
        backbone: the merged backbone.
        config: epochs, loss and optimiser; the last epoch is kept, since without labels there is no
            score to select an epoch by.
        seed: of the initialisation and the order of graphs; every epoch draws from its own seed,
            so that a resumed run equals an uninterrupted one.
        checkpoint: file of the state after every epoch.
        device: where to train.
        name: shown in the progress bar.
        level: of the task.

    Raises:
        TrainingError: a parameter is no longer finite.
    """
    torch.manual_seed(seed)
    expected = TeacherOutputs(teacher.eval().requires_grad_(False).to(device), graphs, rows, device)
    backbone.eval().requires_grad_(False).to(device)
    adapters = TaskAdapters(backbone.config, config.rank).to(device)
    # Only once, before training: statistics that follow the stream undo what the adapters learn
    # about means and scales, which gave three to four times the loss.
    set_statistics(adapters, backbone, graphs, rows, device)
    trained = {"all": adapters.sites, "nodes": adapters.sites[:-1], "graph": adapters.sites[-1:]}[
        config.sites
    ]
    # A site that is not trained keeps subtracting the zeros of its initialisation.
    optimizer = torch.optim.Adam(trained.parameters(), lr=config.learning_rate, fused=True)
    training = ResumableTraining(adapters, optimizer, checkpoint, seed, device)
    for epoch in training.epochs(config.epochs, f"{name}: adapter epochs"):
        order = rows[torch.randperm(len(rows))[: config.max_molecules]]
        for group in optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / config.epochs))
            )
        losses = []
        for chosen, batch in batches(graphs, order, config.batch_size):
            batch = batch.to(device)
            target = expected(chosen, batch)
            loss = _loss(adapters, backbone, batch, target, config, level)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        training.history.append(sum(losses) / len(losses))
        training.shown = {"loss": f"{training.history[-1]:.5f}"}
    record = {
        "epochs": config.epochs,
        "loss": training.history,
        "seconds": round(training.seconds, 1),
        "transport": f"{config.solver} on {solver_device(config.solver, device)}",
    }
    return AlignmentResult(adapters.cpu(), record)


def _loss(
    adapters: TaskAdapters,
    backbone: LayeredNetwork,
    batch: GraphBatch,
    target: LayerOutputs,
    config: AlignmentConfig,
    level: Level,
) -> Tensor:
    support = Support.from_graph(
        batch.edge_index, batch.batch, batch.num_graphs, config.support_order
    )
    return alignment_loss(adapters(backbone, batch), target, support, config, level)
