"""Measuring a run: scores, backbone swaps, expert weights, and the accounting of parameters and
seconds."""

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from merging.config.base import fingerprint
from merging.data.molecule_dataset import MoleculeDataset
from merging.run.run import Run
from merging.run.stages import (
    finetune_key,
    finetuned,
    finetuned_alone,
    merged,
    merged_backbone,
    trained_adapters,
    unified,
    unified_key,
)
from merging.training.losses import LabelScale
from merging.training.metrics import SCORE_NAMES, predict, reported, score
from models.data.batch import GraphBatch
from models.experts.unified import Routing, Statistics, UnifiedModel, UnifiedOutput
from models.state_dict import sub_state
from models.task import Target

AUTHORS_BATCH_SIZE = 32
STORED_BATCH_SIZE = 256
WEIGHTS_MOLECULES = 512


def measure_task(
    run: Run, model: UnifiedModel, task: str, routing: Routing, statistics: Statistics
) -> dict[str, float]:
    """Scores of a task on the validation and test parts (`both_parts`). With batch statistics,
    batches of 32 in the order of the split."""
    return both_parts(
        run.dataset(task), lambda _, rows: task_logits(run, model, task, routing, rows, statistics)
    )


def task_logits(
    run: Run,
    model: UnifiedModel,
    task: str,
    routing: Routing,
    rows: Tensor,
    statistics: Statistics = "stored",
) -> Tensor:
    """What a model says of a task's molecules, (len(rows), C), on the CPU."""
    size = AUTHORS_BATCH_SIZE if statistics == "batch" else STORED_BATCH_SIZE

    def forward(batch: GraphBatch) -> Tensor:
        return model(batch, [task], routing, statistics).logits[task]  # type: ignore[no-any-return]

    return predict(forward, run.dataset(task).graphs, rows, run.device, size)


def both_parts(
    dataset: MoleculeDataset, scores_of: Callable[[str, Tensor], Tensor]
) -> dict[str, float]:
    """Scores (`merging.training.metrics.score`) on the validation and test parts of what
    `scores_of` gives for a part's name and row numbers, (n, L); of a regression in standard
    deviations of the training labels, so that tasks can be averaged."""
    scale = LabelScale.of(dataset.info, [dataset.labels[dataset.split.train]])
    found = {}
    for name, rows in (("valid", dataset.split.valid), ("test", dataset.split.test)):
        output, labels = map(scale.standardised, (scores_of(name, rows), dataset.labels[rows]))
        found[name] = round(score(output.numpy(), labels.numpy(), dataset.info), 5)
    return found


def by_metric(scores: Mapping[str, float], targets: Mapping[str, Target]) -> dict[str, Any]:
    """Scores by task as results files have them: by the name of the metric (`SCORE_NAMES`), then by
    task, as that metric (`reported`)."""
    found: dict[str, dict[str, float]] = {}
    for task, value in scores.items():
        named = found.setdefault(SCORE_NAMES[targets[task]], {})
        named[task] = reported(value, targets[task])
    return found


def by_task(values: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """By task the name of its metric and its value, from what `by_metric` made."""
    names = [name for name in SCORE_NAMES.values() if name in values]
    return {task: (name, value) for name in names for task, value in values[name].items()}


def swap_matrix(run: Run) -> dict[str, dict[str, float]]:
    """Test score of each task's head on each task's fine-tuned backbone: {backbone: {task:
    value}}. The diagonal are the fine-tuned models."""
    return {
        source: {task: swapped(run, source, task) for task in run.config.tasks}
        for source in run.config.tasks
    }


def swapped(run: Run, source: str, task: str) -> float:
    """One entry of the matrix, measured now or read back."""

    def make() -> dict[str, float]:
        return measure_task(run, finetuned_alone(run, task, source), task, "own", "stored")

    key = fingerprint(finetune_key(run, source), finetune_key(run, task))
    return float(run.record(f"swap/{source}/{task}", key, make)["test"])


def expert_weights(run: Run) -> dict[str, dict[str, float]]:
    """How much the router lets each expert count, mean over sites and test molecules: {task:
    {expert: weight}}; a row sums to 1."""
    return {task: task_weights(run, task) for task in run.config.tasks}


def task_weights(run: Run, task: str) -> dict[str, float]:
    """One row of it, measured now or read back."""

    def make() -> dict[str, float]:
        model, rows = unified(run), run.dataset(task).split.test

        def weights(batch: GraphBatch) -> Tensor:
            output: UnifiedOutput = model(batch, [task], "moe")
            return output.routing_weights[task].mean(1)

        chosen = rows[torch.linspace(0, len(rows) - 1, min(len(rows), WEIGHTS_MOLECULES)).long()]
        means = predict(weights, run.dataset(task).graphs, chosen, run.device).mean(0)
        return {
            expert: round(float(mean), 4) for expert, mean in zip(model.tasks, means, strict=True)
        }

    return run.record(f"weights/{task}", unified_key(run), make)


def accounting(run: Run) -> dict[str, Any]:
    """Numbers (parameters and stored statistics) of the merged model against K models, and seconds
    of training and merging."""
    config, rank, tasks = (
        run.config.pretrained.backbone,
        run.config.alignment.rank,
        run.config.tasks,
    )
    site = 2 * config.hidden_dim * rank
    sites, norms = config.num_layers + 1, 2 * config.num_layers * config.hidden_dim
    heads = {
        task: sum(
            value.numel() for value in sub_state(finetuned(run, task).tensors, "head.").values()
        )
        for task in tasks
    }
    backbone = sum(parameter.numel() for parameter in merged_backbone(run).parameters())
    separate = sum(backbone + norms + head for head in heads.values())
    merged_total = backbone + sum(sites * site + norms + head for head in heads.values())
    return {
        "parameters": {
            "backbone": backbone,
            "adapter_site": site,
            "adapters_per_task": sites * site,
            "statistics_per_task": norms,
            "heads": heads,
            "merged_total": merged_total,
            "separate_total": separate,
            "share": round(merged_total / separate, 4),
        },
        "seconds": {
            "finetuning": {task: finetuned(run, task).record["seconds"] for task in tasks},
            "merging": merged(run).record["seconds"],
            "adapters": {task: trained_adapters(run, task).record["seconds"] for task in tasks},
        },
    }


def recovery(average: float, weight_average: float, finetuned: float) -> float | None:
    """(method - weight average) / (fine-tuned - weight average) of three average scores; None if
    there is nothing to recover.

    The score of an error is minus the error, so that of a regression alone it is the share of the
    error that averaging the weights adds, which the method takes away again.
    """
    gap = finetuned - weight_average
    return round((average - weight_average) / gap, 4) if gap > 0 else None


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "rdkit", "numpy", "scipy", "scikit-learn", "g-merging")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
