"""The results of a run: every method on every task, BatchNorm with stored and with batch statistics, on the test split."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from merging.config import fingerprint
from merging.evaluation import predict, roc_auc
from merging.pipeline import BASELINES, adapter_key, configured_merge, finetune_key, finetuned, merge_key, trained_adapters, unified, without_adapters
from merging.run import Run
from models.graph import GraphBatch
from models.unified import Routing, Statistics, UnifiedModel

PLAIN_METHODS = ("finetuned", *BASELINES)
ROUTINGS: dict[str, Routing] = {"gmerging_own": "own", "gmerging_moe": "moe"}
AUTHORS_BATCH_SIZE = 32
STORED_BATCH_SIZE = 256


def evaluate(run: Run) -> dict[str, Any]:
    """Evaluate all methods; what is already measured is read back.

    Returns:
        {"setting", "seed", "methods": {name: {"stored" | "batch": {"roc_auc": {task: value}, "average", "valid_roc_auc", "valid_average"}}}, ...},
        ROC-AUC in [0, 1], of the test split where not said otherwise.
    """
    methods: dict[str, Any] = {method: _over_tasks(run, method) for method in (*PLAIN_METHODS, *ROUTINGS)}
    return {
        "setting": run.config.setting,
        "seed": run.seed,
        "methods": methods,
        "recovery": {name: recovery(methods, name) for name in ROUTINGS},
        "merge": configured_merge(run).record,
        "router": run.config.router.model_dump(mode="json"),
        "finetuning": {task: finetuned(run, task).record for task in run.config.tasks},
        "alignment": {task: trained_adapters(run, task).record for task in run.config.tasks},
        "environment": environment(),
    }


def recovery(methods: dict[str, Any], name: str) -> float | None:
    """(method - weight average) / (fine-tuned - weight average) of the averages with stored statistics; None if there is nothing to recover."""
    average = {each: methods[each]["stored"]["average"] for each in (name, "weight_average", "finetuned")}
    gap: float = average["finetuned"] - average["weight_average"]
    return round((average[name] - average["weight_average"]) / gap, 4) if gap > 0 else None


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "rdkit", "numpy", "scipy", "scikit-learn", "g-merging")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def _over_tasks(run: Run, method: str) -> dict[str, Any]:
    by_task = {task: _one(run, method, task) for task in run.config.tasks}
    return {
        statistics: {
            "roc_auc": {task: each[statistics]["test"] for task, each in by_task.items()},
            "average": _mean([each[statistics]["test"] for each in by_task.values()]),
            "valid_roc_auc": {task: each[statistics]["valid"] for task, each in by_task.items()},
            "valid_average": _mean([each[statistics]["valid"] for each in by_task.values()]),
        }
        for statistics in ("stored", "batch")
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 5)


def _one(run: Run, method: str, task: str) -> dict[str, Any]:
    """One method on one task, both kinds of statistics, validation and test."""

    def measure() -> dict[str, Any]:
        model = unified(run) if method in ROUTINGS else without_adapters(run, task, method)
        return {
            "stored": measure_task(run, model, task, ROUTINGS.get(method, "own"), "stored"),
            "batch": measure_task(run, model, task, ROUTINGS.get(method, "own"), "batch"),
        }

    return run.record(f"evaluation/{method}/{task}", _key(run, method, task), measure)


def measure_task(run: Run, model: UnifiedModel, task: str, routing: Routing, statistics: Statistics) -> dict[str, float]:
    """ROC-AUC of a task on the validation and test parts. With batch statistics, batches of 32 in the order of the split."""
    dataset = run.dataset(task)
    size = AUTHORS_BATCH_SIZE if statistics == "batch" else STORED_BATCH_SIZE

    def logits(batch: GraphBatch) -> torch.Tensor:
        return model(batch, [task], routing, statistics).logits[task]  # type: ignore[no-any-return]

    parts = {"valid": dataset.split.valid, "test": dataset.split.test}
    return {
        name: round(roc_auc(dataset.labels[rows], predict(logits, dataset.graphs, rows, run.device, size)).mean, 5) for name, rows in parts.items()
    }


def _key(run: Run, method: str, task: str) -> str:
    if method in ROUTINGS:
        return fingerprint(method, run.config.router, *(adapter_key(run, each) for each in run.config.tasks))
    if method == "finetuned":
        return finetune_key(run, task)
    return merge_key(run, method)
