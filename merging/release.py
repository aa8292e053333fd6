"""From a finished run to the artifact that the service answers from, with its model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.calibration import brier_score, expected_calibration_error, fit_scale
from merging.comparison import Row, gmerging_rows, merger_row, reference_rows
from merging.config import ReleaseConfig, release_of
from merging.files import sha256
from merging.pipeline import alone, experts, shared_backbone
from merging.report import data_table, markdown_table, percent
from merging.results import AUTHORS_BATCH_SIZE, environment, recovery, task_logits
from merging.run import Run
from models.artifact import Manifest, check_output, make_manifest, save_artifact
from models.backbone import Backbone, BackboneConfig
from models.task import TaskInfo
from models.unified import DEFAULT_ROUTING, Expert

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
    """What the model card shows: scores of the main methods by name, and of each task's probabilities before and after calibration."""

    methods: dict[str, Any]
    calibration: dict[str, dict[str, float]]


def release(run: Run, folder: Path, replace: bool = False) -> Manifest:
    """Run every stage that is not done yet, calibrate, and write the artifact.

    Args:
        run: the run.
        folder: of the artifact; an older version of it there is replaced in one step.
        replace: an artifact of another name or of other tasks may be replaced too.

    Raises:
        ConfigError: the configuration has no `release`.
        ArtifactError: the artifact may not be written there (`models.artifact.check_output`).
    """
    called = check_release(run, folder, replace)
    made, config = experts(run), run.config
    measured = Measured(
        {row.name: {"title": row.title, **row.over_tasks()} for row in _rows(run)},
        calibrate(run, shared_backbone(run), made),
    )
    infos = {task: TaskInfo(labels=run.dataset(task).label_names, description=config.dataset_for(task).about) for task in config.tasks}
    manifest = make_manifest(
        name=called.name,
        version=called.version,
        backbone=config.pretrained.backbone,
        rank=config.alignment.rank,
        router=config.router,
        tasks=infos,
        provenance=_provenance(run),
        metrics=_metrics(measured),
    )
    card = model_card(manifest, measured)
    return save_artifact(folder, manifest, shared_backbone(run), made, card, replace)


def check_release(run: Run, folder: Path, replace: bool = False) -> ReleaseConfig:
    """What the run's artifact is called; before hours of training. Raises as `release`."""
    called = release_of(run.config)
    check_output(folder, called.name, called.version, run.config.tasks, replace)
    return called


def _rows(run: Run) -> list[Row]:
    merge = run.config.merge
    baselines = {"weight_average": {}, merge.method: merge.options}
    return [reference_rows(run)[0], *(merger_row(run, method, options) for method, options in baselines.items()), *gmerging_rows(run)]


def calibrate(run: Run, backbone: Backbone, made: dict[str, Expert]) -> dict[str, dict[str, float]]:
    """Fold a temperature per label, fitted on the validation part, into the heads (in place).

    Args:
        run: that the experts are of.
        backbone: the merged one.
        made: experts by task; each is asked alone, by routing `own`, the service's default.

    Returns:
        By task, on the test part: "ece_before", "ece_after", "brier_before", "brier_after".
    """
    scores = {}
    for task, expert in made.items():
        model, dataset = alone(run, backbone, task, expert), run.dataset(task)
        valid = task_logits(run, model, task, "own", dataset.split.valid)
        test = task_logits(run, model, task, "own", dataset.split.test)
        scale = fit_scale(valid, dataset.labels[dataset.split.valid])
        expert.head.weight.data *= scale.to(run.device)[:, None]
        expert.head.bias.data *= scale.to(run.device)
        labels = dataset.labels[dataset.split.test]
        before, after = test.sigmoid(), (test * scale).sigmoid()
        scores[task] = {
            "ece_before": expected_calibration_error(before, labels),
            "ece_after": expected_calibration_error(after, labels),
            "brier_before": brier_score(before, labels),
            "brier_after": brier_score(after, labels),
        }
    return scores


def _metrics(measured: Measured) -> dict[str, Any]:
    averages = {name: method["stored"]["average"] for name, method in measured.methods.items()}
    recovered = {name: recovery(average, averages["weight_average"], averages["finetuned"]) for name, average in averages.items()}
    return {name: method["stored"] for name, method in measured.methods.items()} | {"recovery": recovered, "calibration": measured.calibration}


def _provenance(run: Run) -> dict[str, Any]:
    """Everything that the artifact was made from."""
    return {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        "pretrained_sha256": sha256(run.pretrained_path()),
        "pretrained_source": run.pretrained_source(),
        "data_sha256": {task: run.dataset(task).source_sha256 for task in run.config.tasks},
        "data": {task: run.dataset(task).record for task in run.config.tasks},
        "environment": environment(),
    }


def results_table(methods: dict[str, Any], statistics: str) -> str:
    """Markdown: test ROC-AUC in percent, a row per method."""
    tasks = list(methods["finetuned"][statistics]["roc_auc"])
    rows = []
    for method in methods.values():
        if statistics not in method:  # a merger that is measured only as it is served
            continue
        values = method[statistics]
        rows.append([method["title"], *(percent(values["roc_auc"][task]) for task in tasks), percent(values["average"])])
    return markdown_table(["method", *tasks, "average"], rows)


def calibration_table(scores: dict[str, dict[str, float]]) -> str:
    """Markdown: calibration errors on the test part, a row per task."""
    names = ("ece_before", "ece_after", "brier_before", "brier_after")
    rows = [[task, *(f"{each[name]:.3f}" for name in names)] for task, each in scores.items()]
    return markdown_table(["task", "ECE before", "after", "Brier score before", "after"], rows)


def _limits(manifest: Manifest) -> str:
    """What the tasks' data allow to say: those of MoleculeNet are known, others are their owner's."""
    described = manifest.provenance["config"]["datasets"]
    own = [task for task in manifest.tasks if described.get(task, {}).get("file")]
    published = [task for task in manifest.tasks if task not in own]
    lines = []
    if published:
        terms = "; SIDER's terms are share-alike and non-commercial" if "sider" in published else ""
        lines = [_CHEMISTRY, f"Data of {', '.join(published)}: MoleculeNet{terms}."]
    if own:
        lines += [f"Data of {', '.join(own)}: the files in the table above, under their owner's terms."]
        lines += ["Answers for molecules that are unlike those of the files are extrapolations."]
    return "\n".join(lines)


def model_card(manifest: Manifest, measured: Measured) -> str:
    """The README.md of an artifact."""
    rows = [[f"`{task}`", info.description, str(len(info.labels))] for task, info in manifest.tasks.items()]
    ours = {name: method["title"] for name, method in measured.methods.items() if name.startswith("gmerging")}
    recovered = ", ".join(f"{title} {manifest.metrics['recovery'][name]}" for name, title in ours.items())
    config, shape = manifest.provenance["config"], manifest.backbone
    assert isinstance(shape, BackboneConfig)  # as `release` makes it
    return f"""# {manifest.name} {manifest.version}

One {shape.kind.upper()} backbone ({shape.num_layers} layers x {shape.hidden_dim}) merged from {len(manifest.tasks)} fine-tuned models,
with adapters of rank {manifest.rank} at {shape.num_layers + 1} sites for each task.

{markdown_table(["task", "what", "labels"], rows)}

An answer is the probability that a label is 1, as the data set defines it. Without another wish it is given with routing `{DEFAULT_ROUTING}`.

## Data

{data_table(manifest.provenance["data"])}

## Test ROC-AUC (percent), seed {manifest.provenance["seed"]}

BatchNorm with stored statistics, as the service answers:

{results_table(measured.methods, "stored")}

Recovery (method - weight average) / (fine-tuned - weight average): {recovered}.

BatchNorm with the statistics of test batches of {AUTHORS_BATCH_SIZE}, as the G-Merging authors evaluate
(for comparison; a served answer never depends on its batch):

{results_table(measured.methods, "batch")}

## Calibration

{CALIBRATION}

{calibration_table(measured.calibration)}

## How it was made

Setting `{config["setting"]}`: {config["description"]}.
Merged by {config["merge"]["method"]}, options {config["merge"]["options"] or "as published"}.
The whole configuration, library versions and checksums of weights and data are in `manifest.json`.

## Limits

{_limits(manifest)}
Pre-trained weights: {manifest.provenance["pretrained_source"]}.
For research: no answer of this model is a statement on the safety of a substance.
"""
