"""Trees on fingerprints beside the network (`gmerging study forests`): the gain of both over the
network alone, for network and forest seeds.

Everything that is chosen (kind of trees, inputs, default experts) is chosen by validation data; the
weights of the mean are fixed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from merging.data.files import write_json
from merging.data.split import Subset
from merging.run.forests import (
    SUBSETS,
    Outputs,
    default_experts,
    expert_gain,
    expert_outputs,
    expert_scores,
    forest,
    network_outputs,
)
from merging.run.run import Run
from merging.run.scores import environment
from merging.studies.markdown import markdown_table
from models.artifact import load_artifact
from models.errors import ConfigError
from models.experts.combination import EXPERTS, ExpertChoice

CHOICES: tuple[ExpertChoice, ...] = (*EXPERTS, "both")


def run_study(
    run: Run, artifacts: Sequence[Path], seeds: Sequence[int], tasks: Sequence[str], results: Path
) -> dict[str, Any]:
    """Measure network, forest and both on every task, and write the results after each.

    Args:
        run: its configuration describes the data of the tasks and the forests.
        artifacts: folders of the merged networks, such as those of several seeds.
        seeds: seeds of the forests.
        tasks: tasks of run and artifacts.
        results: the results file.

    Returns:
        {"tasks": {task: {"runs": [{"artifact", "seed", "kind", "inputs", "library", "default",
        "valid", "test"}], "gain": {choice: [gain, standard error]}}}, ...}: scores by choice of
        experts, and the mean gain on the test molecules over the network alone.

    Raises:
        UnknownTaskError: an artifact does not have one of the tasks.
        ConfigError: it has other labels, or a task can have no forest.
    """
    content: dict[str, Any] = {
        "setting": run.config.setting,
        "artifacts": [str(path) for path in artifacts],
        "seeds": list(seeds),
        "environment": environment(),
        "tasks": {},
    }
    for task in tasks:
        content["tasks"][task] = _measure(run, artifacts, seeds, task)
        write_json(results, content)
    return content


def _measure(
    run: Run, artifacts: Sequence[Path], seeds: Sequence[int], task: str
) -> dict[str, Any]:
    data = run.dataset(task)
    labels = {subset: data.labels[getattr(data.split, subset)] for subset in SUBSETS}
    networks = {str(path): _network_outputs(run, path, task) for path in artifacts}
    runs: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for seed in seeds:
        seeded = replace(run, seed=seed)
        result = seeded.result(forest(seeded, task))
        for path, own in networks.items():
            outputs = {
                subset: expert_outputs(own[subset], result.tensors[f"outputs/{subset}"])
                for subset in SUBSETS
            }
            default = default_experts(outputs["valid"], labels["valid"], data)
            chosen = {name: result.record[name] for name in ("kind", "inputs", "library")}
            scores: dict[str, Any] = {
                subset: expert_scores(outputs[subset], labels[subset], data) for subset in SUBSETS
            }
            runs.append({"artifact": path, "seed": seed, **chosen, "default": default, **scores})
            _add_pairs(pairs, outputs["test"], default)
    gains = {name: expert_gain(some, labels["test"], data) for name, some in pairs.items()}
    rounded = {name: [round(value, 5) for value in gain] for name, gain in gains.items()}
    return {"runs": runs, "gain": rounded}


def _add_pairs(
    pairs: dict[str, list[tuple[Tensor, Tensor]]], test: Outputs, default: ExpertChoice
) -> None:
    compared: Mapping[str, Tensor] = {
        "forest": test["forest"],
        "both": test["both"],
        "default": test[default],
    }
    for name, outputs in compared.items():
        pairs.setdefault(name, []).append((test["own"], outputs))


def _network_outputs(run: Run, artifact: Path, task: str) -> dict[Subset, Tensor]:
    loaded, labels = load_artifact(artifact, run.device, [task]), run.dataset(task).info.labels
    if (got := loaded.manifest.tasks[task].labels) != labels:
        expected = f"expected those of the data, {list(labels)}"
        raise ConfigError(f"{artifact}: got labels {list(got)} of {task}, {expected}")
    return network_outputs(run, loaded.model, task)


def gains_table(content: Mapping[str, Any]) -> str:
    """Tabulate scores and gains in Markdown: in percent, means over all runs. The standard error of
    the mean over tasks takes tasks as independent."""
    rows, measured = [], content["tasks"]
    for task, entry in measured.items():
        scores = [_score(entry, name) for name in CHOICES]
        kinds = sorted({f"{run['kind']}: {' + '.join(run['inputs'])}" for run in entry["runs"]})
        defaults = sorted({run["default"] for run in entry["runs"]})
        gains = [_gain(*entry["gain"][name]) for name in ("both", "default")]
        cells = [f"{score:.1f}" for score in scores]
        rows.append([task, "; ".join(kinds), *cells, ", ".join(defaults), *gains])
    means = []
    for name in ("both", "default"):
        gains_of = [entry["gain"][name] for entry in measured.values()]
        error = math.sqrt(sum(error**2 for _, error in gains_of)) / len(gains_of)
        means.append(_gain(fmean(gain for gain, _ in gains_of), error))
    columns = [fmean(_score(entry, name) for entry in measured.values()) for name in CHOICES]
    rows.append(["mean", "", *(f"{value:.1f}" for value in columns), "", *means])
    head = ["task", "trees", "network", "forest", "both", "default", "gain of both", "of default"]
    return markdown_table(head, rows)


def _score(entry: Mapping[str, Any], name: str) -> float:
    return 100 * fmean(run["test"][name] for run in entry["runs"])


def _gain(gain: float, error: float) -> str:
    return f"{100 * gain:+.1f} +- {100 * error:.1f}"
