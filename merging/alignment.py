"""Adapter training: a frozen teacher, a frozen merged backbone, and adapters between them. No labels are used.

Loss per graph (G-Merging, eq. 5 to 7): alpha * L1 of graph embeddings + sum over layers of TWD between convolution outputs before BatchNorm.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from merging.config import AlignmentConfig
from merging.evaluation import batches
from merging.files import write_atomically
from models.adapter import LayerOutputs, TaskAdapters, apply_norm, batch_statistics, trace
from models.backbone import Backbone
from models.graph import GraphBatch, PackedGraphs
from models.sinkhorn import Support
from models.twd import twd_on_support

STATISTICS_BATCH = 1024
STATISTICS_SAMPLE = 2048


@dataclass(frozen=True)
class AlignmentResult:
    """Trained adapters with their statistics, and how it went (epochs, loss by epoch, seconds)."""

    adapters: TaskAdapters
    record: dict[str, Any]


def alignment_loss(student: LayerOutputs, teacher: LayerOutputs, support: Support, config: AlignmentConfig) -> Tensor:
    """Mean over the graphs of alpha * mean |g - g'| + sum_l TWD(H_l, H'_l): scalar."""
    loss = config.alpha * (student.graph_embedding - teacher.graph_embedding).abs().mean()
    for ours, theirs in zip(student.convolutions, teacher.convolutions, strict=True):
        distance = twd_on_support(
            ours, theirs, support, solver=config.solver, epsilon=config.epsilon, tolerance=config.tolerance, max_iters=config.max_iters
        )
        loss = loss + distance.cost.mean()
    return loss


@torch.no_grad()
def set_statistics(adapters: TaskAdapters, backbone: Backbone, graphs: PackedGraphs, rows: Tensor, device: torch.device) -> None:
    """Set the stored BatchNorm statistics to those of the task's stream on the given molecules.

    Every layer is normalised by its batch's own statistics on the way (large batches); means and variances are then pooled over the batches, so for
    up to `STATISTICS_BATCH` molecules they are exact.
    """
    count, first, second = 0, torch.zeros_like(adapters.norm_mean), torch.zeros_like(adapters.norm_var)
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
    """Train one task's adapters; both networks are in evaluation mode and stay as they are.

    Args:
        graphs, rows: the training molecules.
        teacher: theta_k with its own BatchNorm statistics.
        backbone: the merged backbone.
        config: epochs and so on; the last epoch is kept, as without labels there is nothing to choose by.
        seed: of the start and the order of molecules; each epoch draws from its own seed, so a resumed run is the same run.
        checkpoint: where the state is kept after each epoch.
        device: where to train.
        name: for the progress bar.
    """
    torch.manual_seed(seed)
    teacher.eval().requires_grad_(False).to(device)
    backbone.eval().requires_grad_(False).to(device)
    adapters = TaskAdapters(backbone.config, config.rank).to(device)
    optimizer = torch.optim.Adam(adapters.parameters(), lr=config.learning_rate)
    history: list[float] = []
    seconds = 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        adapters.load_state_dict(state["adapters"])
        optimizer.load_state_dict(state["optimizer"])
        history, seconds = state["history"], state["seconds"]
    first = len(history) + 1
    progress = tqdm(range(first, config.epochs + 1), initial=first - 1, total=config.epochs, desc=f"{name}: adapter epochs", unit="epoch")
    for epoch in progress:
        start = time.perf_counter()
        torch.manual_seed(seed * 100_003 + epoch)
        order = rows[torch.randperm(len(rows))]
        # The stream moves while its adapters learn, so its statistics are taken anew each epoch; a sample is enough until the end.
        set_statistics(adapters, backbone, graphs, order[:STATISTICS_SAMPLE], device)
        losses = [_step(adapters, optimizer, teacher, backbone, batch, config) for batch in _on(graphs, order, config.batch_size, device)]
        history.append(sum(losses) / len(losses))
        seconds += time.perf_counter() - start
        progress.set_postfix(loss=f"{history[-1]:.5f}")
        state = {"adapters": adapters.state_dict(), "optimizer": optimizer.state_dict(), "history": history, "seconds": seconds}
        write_atomically(checkpoint, lambda path, state=state: torch.save(state, path))  # type: ignore[misc]
    set_statistics(adapters, backbone, graphs, rows, device)
    return AlignmentResult(adapters.cpu(), {"epochs": config.epochs, "loss": history, "seconds": round(seconds, 1)})


def _on(graphs: PackedGraphs, rows: Tensor, size: int, device: torch.device) -> Iterator[GraphBatch]:
    return (batch.to(device) for _, batch in batches(graphs, rows, size))


def _step(
    adapters: TaskAdapters, optimizer: torch.optim.Optimizer, teacher: Backbone, backbone: Backbone, batch: GraphBatch, config: AlignmentConfig
) -> float:
    with torch.no_grad():
        target = trace(teacher, batch)
    support = Support.from_graph(batch.edge_index, batch.batch, batch.num_graphs)
    loss = alignment_loss(adapters(backbone, batch), target, support, config)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
