"""Training of a bank of experts, one per domain, without labels; KDEM and PPEM tie them together so
that they can be merged later.

The loss of a step is the sum over experts of the edge loss on a batch of their domain. KDEM adds,
every T1 steps, gamma * MSE(merged output, sum_i alpha_i output_i). PPEM sets, every T2 steps,
theta_i <- beta theta_i + (1 - beta) theta_bar for the experts i of the top k. Both use the batch of
one domain, in turn.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.studies.experts.config import ExpertsConfig, TrainingConfig, VariantConfig
from merging.studies.experts.domains import Domain
from merging.studies.experts.model import ExpertBank, edge_loss, merge_experts, route
from merging.training.loop import ResumableTraining
from models.data.batch import GraphBatch
from models.data.feature_graph import collate_features


def train_bank(
    domains: Sequence[Domain],
    config: ExpertsConfig,
    variant: VariantConfig,
    seed: int,
    checkpoint: Path,
) -> ExpertBank:
    """Train one expert per domain, on the CPU, without labels.

    Batches are drawn independently by domain, so without KDEM and PPEM an expert does not depend on
    the others.

    Args:
        domains: the domains, in the order of the experts.
        config: network, training and k.
        variant: weights of KDEM and PPEM.
        seed: of the common initialisation and of all batches; a resumed run equals an uninterrupted
            one.
        checkpoint: file of the state after every epoch.

    Raises:
        TrainingError: a parameter is no longer finite.
    """
    settings = config.training
    bank = ExpertBank(config.network, [domain.name for domain in domains], seed)
    optimizer = torch.optim.Adam(bank.parameters(), lr=settings.learning_rate, fused=True)
    training = ResumableTraining(bank, optimizer, checkpoint, seed, torch.device("cpu"))
    for epoch in training.epochs(settings.epochs, f"seed {seed}, {len(domains)} experts: epochs"):
        first = (epoch - 1) * settings.steps_per_epoch
        losses = []
        for step, batches in enumerate(
            zip(*(_draw(domain, settings, seed, epoch) for domain in domains), strict=True),
            start=first + 1,
        ):
            losses.append(_step(bank, optimizer, batches, variant, config.top_k, step))
        training.history.append(sum(losses) / len(losses) / len(domains))
        training.shown = {"loss": f"{training.history[-1]:.4f}"}
    return bank


def distillation(bank: ExpertBank, batch: GraphBatch, k: int) -> Tensor:
    """Compute KDEM's loss: the mean squared difference between the output of the merged expert and
    the ensemble of the k most competent experts, a scalar.

    Gradients flow through both sides, which share their weights: with the ensemble detached, as a
    teacher usually is, every step moves it too, and the difference grows.
    """
    alpha = route(bank.competence(batch).mean(1), k)
    return F.mse_loss(bank.merged(alpha, batch), bank.ensemble(alpha, batch))


def pull_together(bank: ExpertBank, batch: GraphBatch, k: int, beta: float) -> None:
    """Apply PPEM's step in place, with the k experts most competent for the batch."""
    pull_states(bank.states(), route(bank.competence(batch).mean(1), k), beta)


@torch.no_grad()
def pull_states(states: Sequence[dict[str, Tensor]], alpha: Tensor, beta: float) -> None:
    """Pull experts together in place: theta_i <- beta theta_i + (1 - beta) theta_bar for those of a
    weight above 0.

    Args:
        states: parameters of K experts, by name.
        alpha: (K,) weights of theta_bar, see `merge_experts`.
        beta: 1 changes nothing.
    """
    merged = merge_experts(states, alpha)
    for i in alpha.nonzero().flatten().tolist():
        for key, value in states[i].items():
            value.mul_(beta).add_(merged[key], alpha=1 - beta)


def _step(
    bank: ExpertBank,
    optimizer: torch.optim.Optimizer,
    batches: tuple[GraphBatch, ...],
    variant: VariantConfig,
    k: int,
    step: int,
) -> float:
    pairs = zip(bank.experts, batches, strict=True)
    edges = torch.stack([edge_loss(expert(batch), batch).mean() for expert, batch in pairs]).sum()
    loss = edges
    if variant.gamma and step % variant.distil_every == 0:
        batch = batches[step // variant.distil_every % len(batches)]
        loss = edges + variant.gamma * distillation(bank, batch, k)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if variant.beta < 1 and step % variant.pull_every == 0:
        pull_together(bank, batches[step // variant.pull_every % len(batches)], k, variant.beta)
    return float(edges.detach())


def _draw(domain: Domain, settings: TrainingConfig, seed: int, epoch: int) -> Iterator[GraphBatch]:
    """The batches of an epoch, of different graphs with about `batch_nodes` nodes together."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{epoch}/{domain.name}".encode()))
    mean = sum(graph.num_nodes for graph in domain.graphs) / len(domain.graphs)
    size = max(1, round(settings.batch_nodes / mean))
    for _ in range(settings.steps_per_epoch):
        chosen = torch.randperm(len(domain.graphs), generator=generator)[:size]
        yield collate_features([domain.graphs[i] for i in chosen.tolist()])
