"""The model card of an artifact: what it is, how good, how it was made, and its limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from merging.data.molecule_dataset import said_cells, said_labels
from merging.family import OfflineFamily
from merging.mergers.registry import MERGERS
from merging.run.scores import AUTHORS_BATCH_SIZE
from merging.studies.markdown import average_cell, markdown_table, metric_cell, task_column
from merging.targets.metrics import by_task
from models.experts.unified import DEFAULT_ROUTING
from models.manifest import Manifest
from models.task import Target, TaskInfo

CALIBRATION = """\
Probabilities are calibrated by a temperature per label, fitted on the validation part and folded
into the heads (ROC-AUC does not change). On the test part, expected calibration error (15 bins) and
Brier score:"""
_METRICS_OF: dict[Target, tuple[str, ...]] = {
    "multilabel": ("roc_auc", "auprc"),
    "multiclass": ("accuracy", "roc_auc", "auprc"),
    "regression": ("mae", "rmse", "r2", "spearman"),
}
_TITLES = {
    "roc_auc": "ROC-AUC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
    "spearman": "Spearman",
}
_SCORES = {
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "mae": "mean absolute error",
    "energy": "error of energies, meV",
    "forces": "error of forces, meV / Angstrom",
}


def model_card(family: OfflineFamily, manifest: Manifest, methods: Mapping[str, Any]) -> str:
    """The README.md of an artifact.

    Args:
        family: its kind of model.
        manifest: of the artifact.
        methods: titles and scores of what it is compared with, by name (`Method.over_tasks`).
    """
    adapted = "gmerging_own" in methods
    tables = _adapted_scores(manifest, methods) if adapted else _plain_scores(manifest)
    config, records = manifest.provenance["config"], manifest.provenance["data"]
    read = {task: record for task, record in records.items() if record}
    data = f"## Data\n\n{data_table(read)}\n\n" if read else ""
    how = config["merge"]
    merger = f"{how['method']} ({MERGERS[how['method']].paper})"
    return f"""# {manifest.name} {manifest.version}

{family.about(manifest)}

{_tasks_table(manifest)}

{data}{tables}

## How it was made

Setting `{config["setting"]}`: {config["description"]}. Seed {manifest.provenance["seed"]}.
Merged by {merger}, options {how["options"] or "as published"}.
The whole configuration, library versions and checksums of weights and data are in `manifest.json`.

## Limits

{family.limits(manifest)}
"""


def _tasks_table(manifest: Manifest) -> str:
    rows = [
        [f"`{task}`", info.description, str(len(info.labels)), info.level, info.target]
        for task, info in manifest.tasks.items()
    ]
    return markdown_table(["task", "what", "labels", "level", "target"], rows)


def _plain_scores(manifest: Manifest) -> str:
    """Test scores of the tasks' own models and of the merged one."""
    measured, rows = manifest.metrics, []
    for task, metric in measured["metric"].items():
        own, ours = measured["separate"][task], measured["merged"][task]
        values = (
            {name: (own[name], ours[name]) for name in own}
            if isinstance(own, dict)
            else {metric: (own, ours)}
        )
        for name, pair in values.items():
            rows.append([f"`{task}`", _SCORES[name], *(f"{value:.4f}" for value in pair)])
    table = markdown_table(["task", "test score", "separate model", "this model"], rows)
    return f"## Test scores\n\n{table}"


def _adapted_scores(manifest: Manifest, methods: Mapping[str, Any]) -> str:
    """Test scores of all methods, with both kinds of statistics, and what calibration changed."""
    ours = {name: own["title"] for name, own in methods.items() if name.startswith("gmerging")}
    recovered = ", ".join(
        f"{title} {manifest.metrics['recovery'][name]}" for name, title in ours.items()
    )
    calibrated = manifest.metrics["calibration"]
    return f"""## Test ROC-AUC (percent), seed {manifest.provenance["seed"]}
{_other_metrics(manifest.tasks)}
BatchNorm with stored statistics, as the service answers:

{results_table(methods, "stored")}

Recovery (method - weight average) / (fine-tuned - weight average): {recovered}.

BatchNorm with the statistics of test batches of {AUTHORS_BATCH_SIZE}, as the G-Merging authors
evaluate (for comparison; a served answer never depends on its batch):

{results_table(methods, "batch")}

All metrics of this artifact on the test part, routing `{DEFAULT_ROUTING}`:

{metrics_tables(manifest.metrics["test"], manifest.tasks)}

## Calibration

{calibration_section(calibrated)}"""


def _other_metrics(infos: dict[str, TaskInfo]) -> str:
    """What columns with another metric than ROC-AUC hold."""
    if all(info.target == "multilabel" for info in infos.values()):
        return ""
    return """
A column with another metric names it: accuracy in percent, or the mean absolute error in standard
deviations of the training labels (`MAE / std`, the smaller the better). Recovery is of the average
scores of all tasks, where the score of an error is minus the error.
"""


def results_table(methods: Mapping[str, Any], statistics: str) -> str:
    """Markdown: test ROC-AUC in percent, or the metric that a column names; a row per method."""
    metrics = {task: name for task, (name, _) in by_task(methods["finetuned"][statistics]).items()}
    rows = []
    for method in methods.values():
        if statistics not in method:  # a merger that is measured only as it is served
            continue
        values = method[statistics]
        found, average = by_task(values), average_cell(metrics.values(), values["average"])
        rows.append([method["title"], *(metric_cell(*found[task]) for task in metrics), average])
    columns = [task_column(task, name) for task, name in metrics.items()]
    return markdown_table(["method", *columns, "average"], rows)


def metrics_tables(test: dict[str, dict[str, Any]], infos: dict[str, TaskInfo]) -> str:
    """Markdown: all test metrics, one table for each target that there is.

    Args:
        test: by task its metrics; of a regression by label.
        infos: of these tasks.
    """
    tables = []
    for target, names in _METRICS_OF.items():
        measured = {task: found for task, found in test.items() if infos[task].target == target}
        if not measured:
            continue
        titles = [_TITLES[name] for name in names]
        if target == "regression":
            head = ["task", "label", "unit", *titles]
            rows = [
                [task, label, infos[task].unit_of.get(label, ""), *_digits(found, names)]
                for task, by_label in measured.items()
                for label, found in by_label.items()
            ]
        else:
            head = ["task", *titles]
            rows = [[task, *_digits(found, names)] for task, found in measured.items()]
        tables.append(markdown_table(head, rows))
    return "\n\n".join(tables)


def _digits(found: dict[str, float | None], names: Sequence[str]) -> list[str]:
    values = [found[name] for name in names]
    return ["-" if value is None else f"{value:.4g}" for value in values]


def calibration_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: calibration errors on the test part, a row per task."""
    names = ("ece_before", "ece_after", "brier_before", "brier_after")
    rows = [[task, *(f"{own[name]:.3f}" for name in names)] for task, own in scores.items()]
    return markdown_table(["task", "ECE before", "after", "Brier score before", "after"], rows)


def calibration_section(scores: dict[str, dict[str, float]]) -> str:
    """What was calibrated, with its table; a sentence where no task has independent labels."""
    if not scores:
        return "Only probabilities of independent labels are calibrated, and there are none here."
    return f"{CALIBRATION}\n\n{calibration_table(scores)}"


def data_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """What each task was trained on, from `MoleculeDataset.record` by task."""
    head = ["task", "file", "molecules", "rows dropped", "split", "train / valid / test", "labels"]
    return markdown_table(head, [_data_row(task, record) for task, record in records.items()])


def _data_row(task: str, record: Mapping[str, Any]) -> list[str]:
    lacking = {subset: len(names) for subset, names in record["not_measured"].items() if names}
    labels = [said_labels(record), *said_cells(record)]
    labels += [f"{count} not measured in {subset}" for subset, count in lacking.items()]
    counts = [str(record[name]) for name in ("molecules", "dropped")]
    sizes = " / ".join(str(size) for size in record["parts"].values())
    return [task, record["file"], *counts, record["split"], sizes, "; ".join(labels)]
