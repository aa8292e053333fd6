"""Further results of a run: backbone swaps, routing weights, numbers of parameters, seconds."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.run.models import finetuned_model, unified_model
from merging.run.one_pass import one_pass
from merging.run.run import Run
from merging.run.scores import all_adapters, evaluate, unified_forward
from merging.run.stage import Stage
from merging.run.stages import adapters, merged, merged_network, teacher, trained_model
from merging.run.store import StageResult
from merging.targets.metrics import compute_outputs
from models.data.batch import GraphBatch
from models.experts.unified import UnifiedOutput

WEIGHTS_MOLECULES = 512


def swapped(run: Run, source: str, task: str) -> Stage:
    """Return the stage that scores the head of `task` on the fine-tuned backbone of `source`."""
    inputs, make = (teacher(run, source), teacher(run, task)), partial(_swap, run, source, task)
    return Stage(f"swap/{source}/{task}", run.seed, (), inputs, make, run.dataset(task).size)


def _swap(run: Run, source: str, task: str, _: Path) -> StageResult:
    forward = unified_forward(run, finetuned_model(run, task, source), task)
    return StageResult(record=dict(evaluate(run, forward, task)))


def swap_matrix(run: Run) -> dict[str, dict[str, float]]:
    """Return the test score of every head on every fine-tuned backbone, {backbone: {task: score}};
    the diagonal holds the fine-tuned models."""
    return {
        source: {
            task: run.result(swapped(run, source, task)).record["test"]["score"]
            for task in run.tasks
        }
        for source in run.tasks
    }


def task_weights(run: Run, task: str) -> Stage:
    """Return the stage that computes the routing weights of a task: {expert: weight}, averaged over
    adapter sites and test molecules, with sum 1."""
    inputs, size = all_adapters(run), run.dataset(task).size
    settings, make = (run.config.routing,), partial(_weigh, run, task)
    return Stage(f"weights/{task}", run.seed, settings, inputs, make, size)


def _weigh(run: Run, task: str, _: Path) -> StageResult:
    model, dataset = unified_model(run), run.dataset(task)
    rows = dataset.split.test

    def weights(batch: GraphBatch) -> Tensor:
        output: UnifiedOutput = model(batch, [task], "moe")
        return output.routing_weights[task].mean(1)

    chosen = rows[torch.linspace(0, len(rows) - 1, min(len(rows), WEIGHTS_MOLECULES)).long()]
    means = compute_outputs(weights, dataset.graphs, chosen, run.device).mean(0)
    named = zip(model.tasks, means, strict=True)
    return StageResult(record={name: round(float(mean), 4) for name, mean in named})


def expert_weights(run: Run) -> dict[str, dict[str, float]]:
    """Return the routing weights (`task_weights`) of all tasks: {task: {expert: weight}}."""
    return {task: run.result(task_weights(run, task)).record for task in run.tasks}


def accounting(run: Run) -> dict[str, Any]:
    """Count the numbers (parameters and stored statistics) of the merged model and of separate
    models, and of one shared stream where it is configured, and collect the seconds of training and
    merging."""
    shape, rank, tasks = run.config.shape, run.config.rank, run.tasks
    site = 2 * shape.hidden_dim * rank
    sites, norms = shape.num_layers + 1, 2 * shape.num_layers * shape.hidden_dim
    models = {task: trained_model(run, teacher(run, task)) for task in tasks}
    heads = {
        task: sum(value.numel() for value in model.heads[task].values())
        for task, model in models.items()
    }
    backbone = sum(parameter.numel() for parameter in merged_network(run).parameters())
    separate = sum(backbone + norms + head for head in heads.values())
    merged_total = backbone + sum(sites * site + norms + head for head in heads.values())
    seconds = {task: run.result(adapters(run, task)).record["seconds"] for task in tasks}
    shared: dict[str, Any] = {"parameters": {}, "seconds": {}}
    if run.config.one_pass is not None:
        ranked = 2 * shape.hidden_dim * run.config.one_pass.rank
        total = backbone + norms + sum(ranked + head for head in heads.values())
        shared["parameters"] = {"one_pass_adapter": ranked, "one_pass_total": total}
        shared["seconds"] = {"one_pass": run.result(one_pass(run)).record["seconds"]}
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
            **shared["parameters"],
        },
        "seconds": {
            "finetuning": {task: model.record["seconds"] for task, model in models.items()},
            "merging": run.result(merged(run)).record["seconds"],
            "adapters": seconds,
            **shared["seconds"],
        },
    }
