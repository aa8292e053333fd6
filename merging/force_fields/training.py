"""Training of force fields on energies and forces: one task alone, several jointly, or heads only;
resumable after every epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from merging.data.frames import FrameDataset, Labels
from merging.training.loop import ResumableTraining
from merging.training.settings import FitConfig
from models.data.atoms import composition, energies_of_elements
from models.networks.schnet import (
    ForceField,
    ForceFieldExpert,
    ForceFieldOutput,
    MergedForceField,
    energy_and_forces,
    potential,
)

Trained = Literal["all", "heads"]
EVALUATION_BATCH = 25
_ALIGNED_FRAMES = 50


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors on some frames: of the energy in meV, of the components of the forces in
    meV / Angstrom."""

    energy: float
    forces: float


def fit_scale(expert: ForceFieldExpert, dataset: FrameDataset) -> None:
    """Set what an expert takes from the training frames: elements, scale (root mean square of the
    forces) and mean energy."""
    rows = dataset.split.train
    expert.elements[dataset.structures[0].numbers.unique()] = True
    expert.scale.copy_(dataset.forces[rows].double().pow(2).mean().sqrt())
    expert.atom_energies.copy_(
        energies_of_elements(composition(dataset.select(rows)), dataset.energy[rows])
    )


def loss_of(
    output: ForceFieldOutput, labels: Labels, scale: Tensor, energy_weight: float
) -> Tensor:
    """Mean square error of the components of the forces plus `energy_weight` times that of the
    energies, both over `scale` squared."""
    forces = ((output.forces - labels.forces) / scale.to(labels.forces)).pow(2).mean()
    return forces + energy_weight * ((output.energy - labels.energy) / scale).pow(2).mean().to(
        forces
    )


def fit(
    model: MergedForceField,
    datasets: Mapping[str, FrameDataset],
    config: FitConfig,
    seed: int,
    checkpoint: Path,
    trained: Trained = "all",
    frames: int | None = None,
) -> dict[str, Any]:
    """Train a model in place and leave it at the epoch with the least error of the forces on the
    validation frames, mean over the tasks.

    Args:
        model: the network and one expert for each task; each batch holds one task.
        datasets: by task.
        config: epochs and so on.
        seed: of the order of frames; each epoch draws from its own seed, so a resumed run is the
            same run.
        checkpoint: where the state is kept after each epoch; removed by the caller once the result
            is stored.
        trained: all weights, or those of the heads alone.
        frames: use the first so many training frames of each task; None is all.

    Returns:
        Epochs, best epoch, validation error of the forces by epoch in meV / Angstrom, gradient
        steps, seconds.
    """
    parameters = trainable(model, trained)
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    training = ResumableTraining(model, optimizer, checkpoint, seed, torch.device("cpu"))
    steps = 0
    for epoch in training.epochs(config.epochs, f"force field: epochs ({trained})"):
        for group in optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / config.epochs)) / 2
            )
        steps = _train_epoch(model, optimizer, datasets, config, frames)
        error = sum(
            evaluate(model, task, dataset, dataset.split.valid).forces
            for task, dataset in datasets.items()
        ) / len(datasets)
        training.keep_best(epoch, -error)
        training.shown = {"valid": f"{error:.1f}"}
    model.load_state_dict(training.kept["best"])
    model.requires_grad_(False)
    return {
        "epochs": len(training.history),
        "best_epoch": training.kept["best_epoch"],
        "valid_force_mae": [round(-score, 3) for score in training.history],
        "steps": steps * config.epochs,
        "seconds": round(training.seconds, 2),
    }


def trainable(model: MergedForceField, trained: Trained) -> list[torch.nn.Parameter]:
    """The parameters that a training moves; only those ask for gradients afterwards."""
    model.requires_grad_(trained == "all")
    for task in model.tasks:
        model.expert(task).lin1.requires_grad_(True)
        model.expert(task).lin2.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def start(
    network: ForceField,
    experts: Mapping[str, ForceFieldExpert],
    datasets: Mapping[str, FrameDataset],
) -> MergedForceField:
    """An untrained model whose experts know the scales of their tasks, and whose mean energies are
    right from the first step."""
    for task, expert in experts.items():
        fit_scale(expert, datasets[task])
        rows = datasets[task].split.train[:_ALIGNED_FRAMES]
        batch = datasets[task].select(rows)
        with torch.no_grad():
            error = datasets[task].energy[rows] - potential(network, expert, batch, batch.positions)
        expert.atom_energies += energies_of_elements(composition(batch), error)
    return MergedForceField(network, experts)


def _train_epoch(
    model: MergedForceField,
    optimizer: torch.optim.Optimizer,
    datasets: Mapping[str, FrameDataset],
    config: FitConfig,
    frames: int | None,
) -> int:
    """Number of gradient steps."""
    parts: list[tuple[str, Tensor]] = []
    for task, dataset in datasets.items():
        rows = dataset.split.train[:frames]
        parts += [(task, part) for part in rows[torch.randperm(len(rows))].split(config.batch_size)]
    for k in torch.randperm(len(parts)).tolist():
        task, part = parts[k]
        expert = model.expert(task)
        output = energy_and_forces(
            model.network, expert, datasets[task].select(part), differentiable=True
        )
        loss = loss_of(output, datasets[task].labels(part), expert.scale, config.energy_weight)
        # to None, so that the other tasks' experts stay as they are, Adam's momentum included
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(parts)


def evaluate(model: MergedForceField, task: str, dataset: FrameDataset, rows: Tensor) -> Errors:
    """Errors of a task on the frames at `rows`."""
    energy, forces = [], []
    for part in rows.split(EVALUATION_BATCH):
        output, labels = model(dataset.select(part), [task])[task], dataset.labels(part)
        energy.append((output.energy - labels.energy).abs())
        forces.append((output.forces - labels.forces).abs().flatten())
    return Errors(1e3 * float(torch.cat(energy).mean()), 1e3 * float(torch.cat(forces).mean()))
