"""The model card of an artifact: tasks, data, test scores, provenance and limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from merging.config.joint_alignment import JointAlignmentConfig, TeachersConfig
from merging.data.molecule_dataset import describe_cells, describe_labels, not_measured
from merging.family import OfflineFamily
from merging.mergers.registry import MERGERS
from merging.run.scores import AUTHORS_BATCH_SIZE
from merging.studies.markdown import average_cell, markdown_table, metric_cell, task_column
from merging.targets.metrics import scores_by_task
from models.experts.unified import DEFAULT_ROUTING
from models.manifest import Manifest
from models.task import Target, TaskInfo

_CALIBRATION = """\
Probabilities are calibrated by a temperature per label, fitted on the validation subset and folded
into the heads (ROC-AUC does not change). On the test subset, expected calibration error (15 bins)
and Brier score:"""
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
    """Write the model card of an artifact, its README.md.

    Args:
        family: the family of its model.
        manifest: its manifest.
        methods: title and scores (`Method.task_scores`) of the methods that the card compares, by
            name.
    """
    if manifest.streams:
        tables = _one_pass_scores(manifest, methods)
    elif "gmerging_own" in methods:
        tables = _adapted_scores(manifest, methods)
    else:
        tables = _plain_scores(manifest)
    config, records = manifest.provenance["config"], manifest.provenance["data"]
    read = {task: record for task, record in records.items() if record}
    data = f"## Data\n\n{data_table(read)}\n\n" if read else ""
    return f"""# {manifest.name} {manifest.version}

{family.card_introduction(manifest)}

{_tasks_table(manifest)}

{data}{tables}

## How it was made

Setting `{config["setting"]}`: {config["description"]}. Seed {manifest.provenance["seed"]}.
{_way_of_merging(family, manifest)}
The whole configuration, library versions and checksums of weights and data are in `manifest.json`.

## Limits

{family.card_limitations(manifest)}
"""


def _way_of_merging(family: OfflineFamily, manifest: Manifest) -> str:
    config = manifest.provenance["config"]
    if not manifest.streams:
        method, options = config["merge"]["method"], config["merge"]["options"]
        paper = MERGERS[method].paper
        return f"Merged by {method} ({paper}), options {options or 'as published'}."
    settings = JointAlignmentConfig.model_validate(config["one_pass"])
    tasks_of: dict[str, list[str]] = {}
    for task in manifest.tasks:
        tasks_of.setdefault(_teachers(settings.teachers_for(task)), []).append(task)
    taught = [f"{origin} ({', '.join(tasks)})" for origin, tasks in tasks_of.items()]
    teachers = next(iter(tasks_of)) if len(tasks_of) == 1 else "; ".join(taught)
    graphs = family.counted(next(iter(manifest.tasks.values())))
    return f"""\
Merged by joint alignment: without labels, one network learned to answer like its teachers on
unlabelled {graphs}, which include no test {graphs.removesuffix("s")} of any task
({settings.epochs} epochs, start: {settings.start}). Teachers: {teachers}."""


def _teachers(config: TeachersConfig) -> str:
    if config.artifact is not None:
        return f"the models of `{config.artifact}`"
    number = len(config.seeds)
    return f"means of {number} fine-tuned models" if number > 1 else "fine-tuned models"


def _tasks_table(manifest: Manifest) -> str:
    rows = [
        [f"`{task}`", info.description, str(len(info.labels)), info.level, info.target]
        for task, info in manifest.tasks.items()
    ]
    return markdown_table(["task", "what", "labels", "level", "target"], rows)


def _plain_scores(manifest: Manifest) -> str:
    """Tabulate the test scores of the separate models and of a merged model without adapters."""
    scores, rows = manifest.metrics, []
    for task, metric in scores["metric"].items():
        pair = scores["separate"][task], scores["merged"][task]
        separate, merged = (score if isinstance(score, dict) else {metric: score} for score in pair)
        for name, value in separate.items():
            digits = f"{value:.4f}", f"{merged[name]:.4f}"
            rows.append([f"`{task}`", _SCORES[name], *digits])
    table = markdown_table(["task", "test score", "separate model", "this model"], rows)
    return f"## Test scores\n\n{table}"


def _adapted_scores(manifest: Manifest, methods: Mapping[str, Any]) -> str:
    """Tabulate the test scores of all methods, with both BatchNorm statistics where networks have
    BatchNorm, and calibration."""
    recovery, stored, batch = manifest.metrics["recovery"], "", ""
    if any("batch" in method for method in methods.values()):
        stored = "BatchNorm with stored statistics, as the service answers:\n\n"
        batch = f"""
BatchNorm with the statistics of test batches of {AUTHORS_BATCH_SIZE}, as the G-Merging authors
evaluate (for comparison; a served answer never depends on its batch):

{results_table(methods, "batch")}
"""
    recovered = ", ".join(
        f"{method['title']} {recovery[name]}"
        for name, method in methods.items()
        if name.startswith("gmerging")
    )
    return f"""{_scores_title(manifest)}
{stored}{results_table(methods, "stored")}

Recovery (method - weight average) / (fine-tuned - weight average): {recovered}.
{batch}
{_all_metrics(manifest)}"""


def _one_pass_scores(manifest: Manifest, methods: Mapping[str, Any]) -> str:
    """Tabulate the test scores of joint alignment and its references, and calibration."""
    recovered = manifest.metrics["recovery"]["one_pass"]
    return f"""{_scores_title(manifest)}
{results_table(methods, "stored")}

Recovery (method - start) / (teachers - start): {recovered}.

{_all_metrics(manifest)}"""


def _scores_title(manifest: Manifest) -> str:
    seed = manifest.provenance["seed"]
    return f"## Test ROC-AUC (percent), seed {seed}\n{_other_metrics(manifest.tasks)}"


def _all_metrics(manifest: Manifest) -> str:
    """Tabulate all metrics of the artifact, and the calibration errors."""
    return f"""All metrics of this artifact on the test subset, routing `{DEFAULT_ROUTING}`:

{metrics_tables(manifest.metrics["test"], manifest.tasks)}

## Calibration

{calibration_section(manifest.metrics["calibration"])}"""


def _other_metrics(infos: dict[str, TaskInfo]) -> str:
    """Explain the columns with other metrics than ROC-AUC, if there are any."""
    if all(info.main_metric == "roc_auc" for info in infos.values()):
        return ""
    return """
A column with another metric names it: accuracy or AUPRC (average precision) in percent, Spearman's
rank correlation, or the mean absolute error in standard deviations of the training labels (`MAE /
std`, the smaller the better). Recovery is of the average scores of all tasks, where the score of an
error is minus the error.
"""


def results_table(methods: Mapping[str, Any], statistics: str) -> str:
    """Tabulate the test scores of methods in Markdown: ROC-AUC in percent, or the metric that a
    column names, with a row per method.

    Args:
        methods: title and scores (`Method.task_scores`) by name.
        statistics: "stored" or "batch", of BatchNorm; methods without these are left out.
    """
    first = next(iter(methods.values()))
    metrics = {task: name for task, (name, _) in scores_by_task(first[statistics]).items()}
    rows = []
    for method in methods.values():
        if statistics not in method:
            continue
        scores = scores_by_task(method[statistics])
        average = average_cell(metrics.values(), method[statistics]["average"])
        rows.append([method["title"], *(metric_cell(*scores[task]) for task in metrics), average])
    columns = [task_column(task, name) for task, name in metrics.items()]
    return markdown_table(["method", *columns, "average"], rows)


def metrics_tables(test: dict[str, dict[str, Any]], infos: dict[str, TaskInfo]) -> str:
    """Tabulate all test metrics in Markdown, with one table per target.

    Args:
        test: the metrics of every task; for a regression by label.
        infos: the tasks.
    """
    tables = []
    for target, names in _METRICS_OF.items():
        measured = {task: values for task, values in test.items() if infos[task].target == target}
        if not measured:
            continue
        titles = [_TITLES[name] for name in names]
        if target == "regression":
            head = ["task", "label", "unit", *titles]
            rows = [
                [task, label, infos[task].unit_of.get(label, ""), *_digits(values, names)]
                for task, by_label in measured.items()
                for label, values in by_label.items()
            ]
        else:
            head = ["task", *titles]
            rows = [[task, *_digits(values, names)] for task, values in measured.items()]
        tables.append(markdown_table(head, rows))
    return "\n\n".join(tables)


def _digits(values: dict[str, float | None], names: Sequence[str]) -> list[str]:
    return ["-" if (value := values[name]) is None else f"{value:.4g}" for name in names]


def calibration_section(errors: Mapping[str, Mapping[str, float]]) -> str:
    """Describe the calibration in Markdown, with a table of calibration errors on the test subset.

    Args:
        errors: by task "ece_before", "ece_after", "brier_before" and "brier_after"; empty if no
            task is `multilabel`.
    """
    if not errors:
        return "Only probabilities of independent labels are calibrated, and there are none here."
    names = ("ece_before", "ece_after", "brier_before", "brier_after")
    rows = [[task, *(f"{values[name]:.3f}" for name in names)] for task, values in errors.items()]
    head = ["task", "ECE before", "after", "Brier score before", "after"]
    return f"{_CALIBRATION}\n\n{markdown_table(head, rows)}"


def data_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Tabulate the data sets of tasks in Markdown, from their `MoleculeDataset.record`."""
    head = ["task", "file", "molecules", "rows dropped", "split", "train / valid / test", "labels"]
    return markdown_table(head, [_data_row(task, record) for task, record in records.items()])


def _data_row(task: str, record: Mapping[str, Any]) -> list[str]:
    labels = [describe_labels(record), *describe_cells(record)]
    labels += [f"{count} not measured in {subset}" for subset, count in not_measured(record)]
    counts = [str(record[name]) for name in ("molecules", "dropped")]
    sizes = " / ".join(str(size) for size in record["parts"].values())
    return [task, record["file"], *counts, record["split"], sizes, "; ".join(labels)]
