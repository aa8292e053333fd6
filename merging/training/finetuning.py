"""Supervised fine-tuning of one task from the pre-trained backbone; resumable after every epoch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.molecule_dataset import MoleculeDataset
from merging.training.loop import ResumableTraining
from merging.training.losses import masked_loss
from merging.training.metrics import batches, predict, roc_auc
from merging.training.settings import FinetuneConfig
from models.classifier import GraphClassifier
from models.networks.hu2020 import BackboneConfig


@dataclass(frozen=True)
class FinetuneResult:
    """The kept model and how it came about.

    Attributes:
        tensors: state dict of the GraphClassifier at the best epoch.
        record: epochs run, best epoch, validation ROC-AUC by epoch, seconds; goes beside the
            weights as JSON.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def finetune(
    dataset: MoleculeDataset,
    pretrained: dict[str, Tensor],
    backbone: BackboneConfig,
    config: FinetuneConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
) -> FinetuneResult:
    """Train all weights on the training part and keep the epoch with the best validation ROC-AUC
    (the earliest of equals).

    Where no label of the validation part has both classes, the last epoch is kept.

    Args:
        dataset: the task.
        pretrained: state dict of the backbone to start from.
        backbone: its shape.
        config: epochs, batch size and so on.
        seed: of the head, the order of molecules and dropout; each epoch draws from its own seed,
            so a resumed run is the same run.
        checkpoint: where the state is kept after each epoch; removed by the caller once the result
            is stored.
        device: where to train.
    """
    torch.manual_seed(seed)
    model = GraphClassifier(backbone, len(dataset.label_names), config.dropout).to(device)
    model.backbone.load_state_dict(pretrained)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    training = ResumableTraining(model, optimizer, checkpoint, seed, device)
    for epoch in training.epochs(config.epochs, f"{dataset.task}: epochs"):
        loss = train_epoch(model, optimizer, dataset, config.batch_size, device)
        auc = _validate(model, dataset, device)
        training.keep_best(epoch, auc)
        training.shown = {
            "loss": f"{loss:.4f}",
            "valid": f"{auc:.4f}",
            "best": training.kept["best_epoch"],
        }
    record = {
        "epochs": config.epochs,
        "best_epoch": training.kept["best_epoch"],
        "valid_roc_auc": training.history,
        "seconds": round(training.seconds, 1),
    }
    return FinetuneResult(training.kept["best"], record)


def train_epoch(
    model: GraphClassifier,
    optimizer: torch.optim.Optimizer,
    dataset: MoleculeDataset,
    size: int,
    device: torch.device,
) -> float:
    """One pass over the training part in random order; returns the mean loss."""
    model.train()
    rows = dataset.split.train
    total = 0.0
    for part, batch in batches(dataset.graphs, rows[torch.randperm(len(rows))], size):
        loss = masked_loss(model(batch.to(device)), dataset.labels[part].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(part)
    return total / len(rows)


def _validate(model: GraphClassifier, dataset: MoleculeDataset, device: torch.device) -> float:
    """ROC-AUC of the validation part, in evaluation mode."""
    model.eval()
    rows = dataset.split.valid
    return roc_auc(dataset.labels[rows], predict(model, dataset.graphs, rows, device)).mean
