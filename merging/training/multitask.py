"""Multi-task learning, a reference for merging: one backbone with one head per task, trained
jointly with all labels; resumable after every epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.data.molecule_dataset import MoleculeDataset
from merging.training.loop import ResumableTraining
from merging.training.losses import LabelScale, loss
from merging.training.metrics import mean_of_defined, predict, score
from merging.training.settings import MultitaskConfig
from models.data.batch import GraphBatch, mean_readout
from models.networks.hu2020 import Backbone, BackboneConfig
from models.state_dict import sub_state


@dataclass(frozen=True)
class MultitaskResult:
    """The kept model and how it came about.

    Attributes:
        tensors: at the best epoch: `backbone.*` as in a Backbone's state dict, and
            `heads.<task>.weight` (C, d) and `.bias` (C,).
        record: epochs run, best epoch, validation ROC-AUC by epoch (averaged over tasks, and of
            each), seconds; goes beside the weights as JSON.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


class MultitaskClassifier(nn.Module):
    """One backbone, mean readout, and for each task a linear head with one logit per label; one
    label count per task."""

    def __init__(
        self, config: BackboneConfig, num_labels: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = Backbone(config, dropout)
        # by number: a ModuleDict refuses names with a dot
        self.heads = nn.ModuleList(nn.Linear(config.hidden_dim, count) for count in num_labels)

    def forward(self, batch: GraphBatch, position: int) -> Tensor:
        """Logits of the task at that position, (G, C)."""
        logits: Tensor = self.heads[position](mean_readout(self.backbone(batch), batch))
        return logits


def train_multitask(
    datasets: dict[str, MoleculeDataset],
    pretrained: dict[str, Tensor],
    backbone: BackboneConfig,
    config: MultitaskConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
) -> MultitaskResult:
    """Train all weights on all tasks and keep the epoch with the best average validation score
    (`merging.training.metrics.score`; the earliest of equals).

    Each batch holds one task; the backbone's BatchNorm keeps one set of statistics, of the batches
    of all tasks. A task whose validation part has no label with both classes is left out of the
    average; where none has one, the last epoch is kept.

    Args:
        datasets: by task.
        pretrained: state dict of the backbone to start from.
        backbone: its shape.
        config: epochs, batch size and so on.
        seed: of the heads, the choice and order of molecules and dropout; each epoch draws from its
            own seed, so a resumed run is the same run.
        checkpoint: where the state is kept after each epoch; removed by the caller once the result
            is stored.
        device: where to train.
    """
    torch.manual_seed(seed)
    model = MultitaskClassifier(
        backbone, [len(dataset.label_names) for dataset in datasets.values()], config.dropout
    ).to(device)
    model.backbone.load_state_dict(pretrained)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    training = ResumableTraining(model, optimizer, checkpoint, seed, device)
    scales = {
        task: LabelScale.of(dataset.info, [dataset.labels[dataset.split.train]])
        for task, dataset in datasets.items()
    }
    standardised = [
        replace(dataset, labels=scales[task].standardised(dataset.labels))
        for task, dataset in datasets.items()
    ]
    for epoch in training.epochs(config.epochs, "multi-task: epochs"):
        mean_loss = _train_epoch(model, optimizer, standardised, config, device)
        by_task = _validate(model, standardised, device)
        reached = mean_of_defined(by_task)
        training.keep_best(epoch, reached)
        training.kept["by_task"] = [*training.kept.get("by_task", []), by_task]
        training.shown = {
            "loss": f"{mean_loss:.4f}",
            "valid": f"{reached:.4f}",
            "best": training.kept["best_epoch"],
        }
    binary = all(dataset.target == "multilabel" for dataset in datasets.values())
    return _result(training, scales, "roc_auc" if binary else "score")


def classifier_state(tensors: dict[str, Tensor], task: str) -> dict[str, Tensor]:
    """One task's part of the result's tensors, as the state dict of a GraphClassifier."""
    backbone = {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    return backbone | {
        f"head.{name}": tensors[f"heads.{task}.{name}"] for name in ("weight", "bias")
    }


def draw_batches(
    datasets: Sequence[MoleculeDataset], cap: int, batch_size: int
) -> list[tuple[int, Tensor]]:
    """One epoch's batches, as task position and row numbers, in random order: of each task at most
    `cap` training molecules, each once."""
    parts = []
    for position, dataset in enumerate(datasets):
        rows = dataset.split.train
        parts += [
            (position, part) for part in rows[torch.randperm(len(rows))[:cap]].split(batch_size)
        ]
    return [parts[k] for k in torch.randperm(len(parts)).tolist()]


def _train_epoch(
    model: MultitaskClassifier,
    optimizer: torch.optim.Optimizer,
    datasets: Sequence[MoleculeDataset],
    config: MultitaskConfig,
    device: torch.device,
) -> float:
    """Mean loss over the molecules drawn."""
    model.train()
    drawn = draw_batches(datasets, config.cap, config.batch_size)
    total = 0.0
    for position, part in drawn:
        dataset = datasets[position]
        output = model(dataset.graphs.select(part).to(device), position)
        value = loss(output, dataset.labels[part].to(device), dataset.info)
        # to None, so that the other tasks' heads stay as they are, Adam's momentum included
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total += float(value.detach()) * len(part)
    return total / sum(len(part) for _, part in drawn)


def _validate(
    model: MultitaskClassifier, datasets: Sequence[MoleculeDataset], device: torch.device
) -> list[float]:
    """Score of each task's validation part, in evaluation mode."""
    model.eval()
    scores = []
    for position, dataset in enumerate(datasets):
        rows = dataset.split.valid
        output = predict(partial(model, position=position), dataset.graphs, rows, device)
        scores.append(score(output.numpy(), dataset.labels[rows].numpy(), dataset.info))
    return scores


def _result(
    training: ResumableTraining, scales: Mapping[str, LabelScale], measure: str
) -> MultitaskResult:
    state, by_epoch = training.kept["best"], training.kept["by_task"]
    tensors = {key: value for key, value in state.items() if key.startswith("backbone.")}
    for position, (task, scale) in enumerate(scales.items()):
        head = scale.folded(sub_state(state, f"heads.{position}."))
        tensors |= {f"heads.{task}.{name}": value for name, value in head.items()}
    record = {
        "epochs": len(training.history),
        "best_epoch": training.kept["best_epoch"],
        f"valid_{measure}": training.history,
        f"valid_{measure}_by_task": {
            task: [scores[position] for scores in by_epoch] for position, task in enumerate(scales)
        },
        "seconds": round(training.seconds, 1),
    }
    return MultitaskResult(tensors, record)
