"""Low-rank adapters of force fields: what a task adds to the merged network, trained without labels
to answer like the task's own model."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merging.mergers.gffmerge import Model
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import (
    imitated_data,
    merged,
    merged_start,
    teacher,
    train_model,
    trained_model,
)
from merging.run.store import StageResult
from merging.studies.gffmerge import loaded_model
from merging.training.low_rank import add_low_rank, fold_low_rank, low_rank_deltas
from models.state_dict import load_tensors


def low_rank_adapters(rank: int, run: Run, task: str) -> Stage:
    """Return the stage that trains a low-rank delta on every Linear of the merged network, which
    stays as it is, and the task's head; its result is a `trained_model` of one task, and `numbers`
    of its record counts what was trained.

    Args:
        rank: of every delta.
        run: with settings of `RunConfig.imitation`.
        task: its name.
    """
    name, settings = f"low-rank/{task}", (rank, run.config.imitation)
    inputs, make = (merged(run), teacher(run, task)), partial(_make, rank, run, task)
    return Stage(name, run.seed, settings, inputs, make, run.dataset(task).size)


def _make(rank: int, run: Run, task: str, checkpoint: Path) -> StageResult:
    model = merged_start(run, {task: imitated_data(run, task)})
    torch.manual_seed(run.seed)
    add_low_rank(model.network, rank)
    trained = [*run.family.tuned_parameters(model.head(task))]
    trained += [weight for delta in low_rank_deltas(model.network) for weight in delta.parameters()]
    numbers = sum(weight.numel() for weight in trained)
    settings = run.config.imitation
    return train_model(run, model, settings, checkpoint, "adapters", numbers=numbers)


def adapted_model(rank: int, run: Run, task: str) -> Model:
    """Return the merged network with a task's adapters folded into its weights, and the task's
    expert."""
    trained = trained_model(run, low_rank_adapters(rank, run, task))
    network: Any = run.family.network(run.config.network)
    add_low_rank(network, rank)
    load_tensors(network, trained.network, f"adapted network of {task}")
    fold_low_rank(network)
    model = loaded_model(run, replace(trained, network=network.state_dict()))
    return model.network, model.expert(task)
