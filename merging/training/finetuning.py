"""Supervised fine-tuning of one task from the pre-trained backbone; resumable after every epoch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.molecule_dataset import MoleculeDataset
from merging.training.loop import ResumableTraining
from merging.training.losses import LabelScale, loss
from merging.training.metrics import SCORE_NAMES, batches, predict, reported, score
from merging.training.settings import FinetuneConfig
from models.classifier import GraphClassifier
from models.networks.hu2020 import BackboneConfig
from models.state_dict import sub_state


@dataclass(frozen=True)
class FinetuneResult:
    """The kept model and how it came about.

    Attributes:
        tensors: state dict of the GraphClassifier at the best epoch; the head of a regression
            answers in the units of the labels.
        record: epochs run, best epoch, validation score by epoch (`valid_roc_auc`,
            `valid_accuracy` or `valid_scaled_mae`), seconds; goes beside the weights as JSON.
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
    """Train all weights on the training part and keep the epoch with the best validation score
    (`merging.training.metrics.score`; the earliest of equals).

    Numbers are learnt in standard deviations of the training labels, and answered in their units.
    Where the validation part has no score (no label with both classes), the last epoch is kept.

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
    scale = LabelScale.of(dataset.info, [dataset.labels[dataset.split.train]])
    target = dataset.target
    standardised = replace(dataset, labels=scale.standardised(dataset.labels))
    for epoch in training.epochs(config.epochs, f"{dataset.task}: epochs"):
        mean_loss = train_epoch(model, optimizer, standardised, config.batch_size, device)
        reached = _validate(model, standardised, device)
        training.keep_best(epoch, reached)
        training.shown = {
            "loss": f"{mean_loss:.4f}",
            "valid": f"{reported(reached, target):.4f}",
            "best": training.kept["best_epoch"],
        }
    record = {
        "epochs": config.epochs,
        "best_epoch": training.kept["best_epoch"],
        f"valid_{SCORE_NAMES[target]}": [reported(reached, target) for reached in training.history],
        "seconds": round(training.seconds, 1),
    }
    best = training.kept["best"]
    head = {f"head.{name}": value for name, value in scale.folded(sub_state(best, "head.")).items()}
    return FinetuneResult(best | head, record)


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
        value = loss(model(batch.to(device)), dataset.labels[part].to(device), dataset.info)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total += float(value.detach()) * len(part)
    return total / len(rows)


def _validate(model: GraphClassifier, dataset: MoleculeDataset, device: torch.device) -> float:
    """Score of the validation part, in evaluation mode."""
    model.eval()
    rows = dataset.split.valid
    output = predict(model, dataset.graphs, rows, device)
    return score(output.numpy(), dataset.labels[rows].numpy(), dataset.info)
