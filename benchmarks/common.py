"""Common to the scripts: their options, the finished run that they read, and the file of
results.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from merging.data.files import read_json, write_json
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.scores import evaluate, unified_forward
from models.experts.unified import Routing, UnifiedModel


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options of all scripts."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--config", type=Path, default=Path("gcn_supervised_contextpred.yaml"))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--data", type=Path, default=Path("../shared/data"))
    made.add_argument("--work", type=Path, default=Path("work"))
    return made


def run_of(arguments: argparse.Namespace) -> Run:
    """Open the run of the options, on one thread of the CPU."""
    torch.set_num_threads(1)
    return Run(
        load_config(arguments.config),
        arguments.seed,
        arguments.data,
        arguments.work,
        torch.device("cpu"),
    )


def by_task(
    description: str | None, script: str, measure: Callable[[Run, str], dict[str, Any]]
) -> None:
    """Run a script: measure each requested task and store it; other results in the file stay.

    Args:
        description: for `--help`.
        script: name of the result file.
        measure: gets the run and the name of a task.
    """
    options = parser(description)
    options.add_argument("tasks", nargs="+")
    arguments = options.parse_args()
    run = run_of(arguments)
    for task in arguments.tasks:
        found = measure(run, task)
        print(task, found, flush=True)
        store(run, script, task, found)


def areas(run: Run, model: UnifiedModel, task: str, routing: Routing = "own") -> dict[str, float]:
    """ROC-AUC of a model on the validation and test molecules of a task."""
    found = evaluate(run, unified_forward(run, model, task, routing), task)
    return {subset: values["roc_auc"] for subset, values in found.items()}


def store(run: Run, script: str, name: str, found: dict[str, Any]) -> None:
    """Merge results into `results/<setting>/<script>-seed<N>.json` under a name."""
    path = Path("results") / run.config.setting / f"{script}-seed{run.seed}.json"
    content = read_json(path) or {}
    write_json(path, content | {name: content.get(name, {}) | found})
