"""merging.release.release.card"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merging.studies.markdown import average_cell, markdown_table, metric_cell, task_column
from merging.studies.report import data_table
from merging.studies.results import AUTHORS_BATCH_SIZE, by_task
from merging.training.metrics import Metric
from models.artifact import Manifest
from models.experts.unified import DEFAULT_ROUTING
from models.networks.hu2020 import BackboneConfig
from models.task import Target, TaskInfo

CALIBRATION = """\
Probabilities are calibrated by a temperature per label, fitted on the validation part and folded
into the heads (ROC-AUC does not change). On the test part, expected calibration error (15 bins) and
Brier score:"""
_CHEMISTRY = (
    "Trained on drug-like molecules and environmental chemicals; answers for other chemistry "
    "(polymers, metals, very large molecules) are extrapolations."
)


@dataclass(frozen=True)
class Measured:
    """What the model card shows: scores of the main methods by name, and of each task's
    probabilities before and after calibration, and all test metrics of the artifact itself
    (`merging.release.release.measure_served`)."""

    methods: dict[str, Any]
    calibration: dict[str, dict[str, float]]
    test: dict[str, dict[str, Any]]


def results_table(methods: dict[str, Any], statistics: str) -> str:
    """Markdown: test ROC-AUC in percent, or the metric that a column names; a row per method."""
    metrics = {task: name for task, (name, _) in by_task(methods["finetuned"][statistics]).items()}
    rows = []
    for method in methods.values():
        if statistics not in method:  # a merger that is measured only as it is served
            continue
        values = method[statistics]
        cells = [metric_cell(*by_task(values)[task]) for task in metrics]
        average = average_cell(metrics.values(), values["average"])
        rows.append([method["title"], *cells, average])
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


def calibration_table(scores: dict[str, dict[str, float]]) -> str:
    """Markdown: calibration errors on the test part, a row per task."""
    names = ("ece_before", "ece_after", "brier_before", "brier_after")
    rows = [[task, *(f"{each[name]:.3f}" for name in names)] for task, each in scores.items()]
    return markdown_table(["task", "ECE before", "after", "Brier score before", "after"], rows)


def calibration_section(scores: dict[str, dict[str, float]]) -> str:
    """What was calibrated, with its table; a sentence where no task has independent labels."""
    if not scores:
        return "Only probabilities of independent labels are calibrated, and there are none here."
    return f"{CALIBRATION}\n\n{calibration_table(scores)}"


def _limits(manifest: Manifest) -> str:
    """What the tasks' data allow to say: those of MoleculeNet are known, others are their
    owner's."""
    described = manifest.provenance["config"]["datasets"]
    own = [task for task in manifest.tasks if described.get(task, {}).get("file")]
    published = [task for task in manifest.tasks if task not in own]
    lines = []
    if published:
        terms = "; SIDER's terms are share-alike and non-commercial" if "sider" in published else ""
        lines = [_CHEMISTRY, f"Data of {', '.join(published)}: MoleculeNet{terms}."]
    if own:
        lines += [
            f"Data of {', '.join(own)}: the files in the table above, under their owner's terms."
        ]
        lines += ["Answers for molecules that are unlike those of the files are extrapolations."]
    return "\n".join(lines)


_ANSWERS: dict[Target, str] = {
    "multilabel": "An answer is the probability that a label is 1, as the data set defines it.",
    "multiclass": "An answer is a probability for each class; these sum to 1.",
    "regression": "An answer is a number, in the unit of its label.",
}


def _answers(infos: dict[str, TaskInfo]) -> str:
    """What an answer is; where tasks differ, of which."""
    tasks_of: dict[Target, list[str]] = {}
    for task, info in infos.items():
        tasks_of.setdefault(info.target, []).append(f"`{task}`")
    if len(tasks_of) == 1:
        return _ANSWERS[next(iter(tasks_of))]
    return "\n".join(f"{', '.join(tasks)}: {_ANSWERS[t]}" for t, tasks in tasks_of.items())


def _other_metrics(infos: dict[str, TaskInfo]) -> str:
    """What columns with another metric than ROC-AUC hold."""
    if all(info.target == "multilabel" for info in infos.values()):
        return ""
    return """
A column with another metric names it: accuracy in percent, or the mean absolute error in standard
deviations of the training labels (`MAE / std`, the smaller the better). Recovery is of the average
scores of all tasks, where the score of an error is minus the error.
"""


def model_card(manifest: Manifest, measured: Measured) -> str:
    """The README.md of an artifact."""
    rows = [
        [f"`{task}`", info.description, str(len(info.labels))]
        for task, info in manifest.tasks.items()
    ]
    ours = {
        name: method["title"]
        for name, method in measured.methods.items()
        if name.startswith("gmerging")
    }
    recovered = ", ".join(
        f"{title} {manifest.metrics['recovery'][name]}" for name, title in ours.items()
    )
    config, shape = manifest.provenance["config"], manifest.backbone
    assert isinstance(shape, BackboneConfig)  # as `release` makes it
    return f"""# {manifest.name} {manifest.version}

One {shape.kind.upper()} backbone ({shape.num_layers} layers x {shape.hidden_dim})
merged from {len(manifest.tasks)} fine-tuned models,
with adapters of rank {manifest.rank} at {shape.num_layers + 1} sites for each task.

{markdown_table(["task", "what", "labels"], rows)}

{_answers(manifest.tasks)}
Without another wish it is given with routing `{DEFAULT_ROUTING}`.

## Data

{data_table(manifest.provenance["data"])}

## Test ROC-AUC (percent), seed {manifest.provenance["seed"]}
{_other_metrics(manifest.tasks)}
BatchNorm with stored statistics, as the service answers:

{results_table(measured.methods, "stored")}

Recovery (method - weight average) / (fine-tuned - weight average): {recovered}.

BatchNorm with the statistics of test batches of {AUTHORS_BATCH_SIZE},
as the G-Merging authors evaluate
(for comparison; a served answer never depends on its batch):

{results_table(measured.methods, "batch")}

All metrics of this artifact on the test part, routing `{DEFAULT_ROUTING}`:

{metrics_tables(measured.test, manifest.tasks)}

## Calibration

{calibration_section(measured.calibration)}

## How it was made

Setting `{config["setting"]}`: {config["description"]}.
Merged by {config["merge"]["method"]}, options {config["merge"]["options"] or "as published"}.
The whole configuration, library versions and checksums of weights and data are in `manifest.json`.

## Limits

{_limits(manifest)}
Pre-trained weights: {manifest.provenance["pretrained_source"]}.
For research: no answer of this model is a statement on the safety of a substance.
"""


METRIC_TITLES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "mae": "mean absolute error",
}
