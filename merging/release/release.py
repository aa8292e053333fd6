"""From a finished run to the artifact that the service answers from, with its model card."""

from pathlib import Path
from typing import Any

from merging.data.files import sha256
from merging.release.calibration import brier_score, expected_calibration_error, temperature_scale
from merging.release.card import Measured, model_card
from merging.run.config import ReleaseConfig, release_of
from merging.run.run import Run
from merging.run.stages import alone, experts, shared_backbone
from merging.studies.results import environment, recovery, task_logits
from merging.studies.rows import Row, gmerging_rows, merger_row, reference_rows
from models.artifact import check_output, save_artifact
from models.experts.expert import Expert
from models.manifest import Manifest, make_manifest
from models.networks.hu2020 import Backbone
from models.task import TaskInfo


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
    infos = {
        task: TaskInfo(
            labels=run.dataset(task).label_names, description=config.dataset_for(task).about
        )
        for task in config.tasks
    }
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
    return [
        reference_rows(run)[0],
        *(merger_row(run, method, options) for method, options in baselines.items()),
        *gmerging_rows(run),
    ]


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
        scale = temperature_scale(valid, dataset.labels[dataset.split.valid])
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
    recovered = {
        name: recovery(average, averages["weight_average"], averages["finetuned"])
        for name, average in averages.items()
    }
    return {name: method["stored"] for name, method in measured.methods.items()} | {
        "recovery": recovered,
        "calibration": measured.calibration,
    }


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
