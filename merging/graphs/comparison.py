"""Separate, joint and merged models of a configuration side by side, over seeds."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merging.data.files import read_json, write_json
from merging.graphs.pipeline import (
    GraphRun,
    joint,
    measure_joint,
    measure_merged,
    measure_separate,
    merged,
    metrics,
    separate,
)
from merging.mergers.registry import MergeConfig
from merging.studies.markdown import markdown_table
from merging.studies.results import environment

MERGED_BY = (MergeConfig(method="weight_average"), MergeConfig(method="gnnmerge_pp"))


def compare_graphs(
    runs: Sequence[GraphRun], methods: Sequence[MergeConfig] = MERGED_BY
) -> dict[str, Any]:
    """Test scores by task of separate models, joint training and each merger, with seconds; `runs`
    differ in their seed only."""
    rows = {
        "separate": [measure_separate(run) for run in runs],
        "joint": [measure_joint(run) for run in runs],
    }
    seconds = {
        "separate": [
            round(sum(separate(run, task).record["seconds"] for task in run.config.tasks), 2)
            for run in runs
        ],
        "joint": [joint(run).record["seconds"] for run in runs],
    }
    for how in methods:
        rows[how.method] = [measure_merged(run, how) for run in runs]
        seconds[how.method] = [merged(run, how).record["seconds"] for run in runs]
    return {
        "setting": runs[0].config.setting,
        "config": runs[0].config.model_dump(mode="json"),
        "seeds": [run.seed for run in runs],
        "metric": metrics(runs[0]),
        "scores": {
            name: {task: _summary([scores[task] for scores in by_seed]) for task in by_seed[0]}
            for name, by_seed in rows.items()
        },
        "seconds": {name: _summary(values) for name, values in seconds.items()},
    }


def write_comparison(runs: Sequence[GraphRun], path: Path) -> dict[str, Any]:
    """Compare a configuration, given as its runs by seed, and write it to a JSON file; other
    settings that are there stay.

    Returns:
        What the file now says.
    """
    compared = compare_graphs(runs)
    others = [
        each
        for each in (read_json(path) or {"settings": []})["settings"]
        if each["setting"] != compared["setting"]
    ]
    content = {
        "what": (
            "test scores of separate, joint and merged models on graphs with numeric node features"
        ),
        "settings": sorted([*others, compared], key=lambda each: str(each["setting"])),
        "environment": environment(),
    }
    write_json(path, content)
    return content


def _summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample; 0 for one value) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.mean(values), 5),
        "std": round(deviation, 5),
        "values": list(values),
    }


def scores_table(settings: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each setting and task, scores of `compare_graphs` as mean and deviation;
    a method that a setting lacks is left blank."""
    names = list(dict.fromkeys(name for content in settings for name in content["scores"]))
    rows = []
    for content in settings:
        for task, metric in content["metric"].items():
            cells = [
                _cell(content["scores"][name][task], metric) if name in content["scores"] else ""
                for name in names
            ]
            rows.append([content["setting"], task, metric, *cells])
    return markdown_table(["setting", "task", "metric", *names], rows)


def _cell(value: dict[str, Any], metric: str) -> str:
    factor, digits = (1, 3) if metric == "mae" else (100, 1)
    return f"{factor * value['mean']:.{digits}f} +- {factor * value['std']:.{digits}f}"
