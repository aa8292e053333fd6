"""From a finished run to the artifact that the service answers from, with its model card."""

import math
from pathlib import Path
from typing import Any

from merging.config.base import ReleaseConfig
from merging.mergers.registry import MergeConfig
from merging.release.calibration import brier_score, expected_calibration_error, temperature_scale
from merging.release.card import model_card
from merging.run.models import expert, single_task_model
from merging.run.run import Run
from merging.run.scores import (
    Method,
    environment,
    evaluation,
    finetuned_method,
    gmerging_methods,
    main_metric,
    merger_method,
    recovery,
    unified_forward,
)
from merging.run.stage import Stage
from merging.run.stages import check_single_backbone, heads, merged_network
from models.artifact import check_output, save_artifact
from models.errors import ConfigError
from models.manifest import Manifest, make_manifest

Calibrated = dict[str, dict[str, float]]


def release(run: Run, folder: Path, replace: bool = False) -> Manifest:
    """Run every stage that is not done yet, calibrate probabilities, and write the artifact.

    Args:
        run: the run.
        folder: of the artifact; an older version of it there is replaced in one step.
        replace: an artifact of another name or of other tasks may be replaced too.

    Raises:
        ConfigError: the configuration has no `release`, a task cannot be served, or the merger
            gives each task a network of its own.
        ArtifactError: the artifact may not be written there (`models.artifact.check_output`).
        DataError: a task's data are absent or wrong.
    """
    called = check_release(run, folder, replace)
    check_single_backbone(run)
    data = {task: run.dataset(task) for task in run.tasks}
    experts = released_experts(run)
    network, adapted = merged_network(run), run.family.adapters
    test = measure_served(run, network, experts) if adapted else {}
    calibrated = calibrate(run, network, experts) if adapted else {}
    methods = {
        method.name: {"title": method.title, **method.task_scores()} for method in _methods(run)
    }
    manifest = make_manifest(
        name=called.name,
        version=called.version,
        backbone=run.config.shape,
        rank=run.config.rank,
        router=run.config.routing,
        tasks={task: own.info for task, own in data.items()},
        input=run.family.input_schema(experts, data),
        provenance=_provenance(run),
        metrics=_metrics(methods, calibrated, test) if adapted else _plain_metrics(run),
    )
    card = model_card(run.family, manifest, methods)
    return save_artifact(folder, manifest, network, experts, card, replace)


def check_release(run: Run, folder: Path, replace: bool = False) -> ReleaseConfig:
    """What the run's artifact is called; before hours of training. Raises as `release`."""
    kinds = {task: getattr(run.config.dataset_for(task), "kind", "") for task in run.tasks}
    if unserved := [task for task, kind in kinds.items() if kind in run.family.unserved_data]:
        found = f"got {', '.join(unserved)} of kind {kinds[unserved[0]]!r}"
        raise ConfigError(
            f"tasks: {found}, which no artifact answers, expected tasks on nodes or graphs"
        )
    called: ReleaseConfig = run.config.require_release()
    check_output(folder, called.name, called.version, run.tasks, replace)
    return called


def release_stages(run: Run) -> list[Stage]:
    """All that `release` reads."""
    return [stage for method in _methods(run) for stage in method.stages]


def released_experts(run: Run) -> dict[str, Any]:
    """What each task brings to the artifact."""
    if run.family.adapters:
        return {task: expert(run, task) for task in run.tasks}
    own = heads(run)
    return {
        task: run.family.expert(run.config, run.dataset(task), own[task], {}) for task in run.tasks
    }


def _methods(run: Run) -> list[Method]:
    """What the artifact is compared with, and itself."""
    how: MergeConfig = run.config.merge
    if not run.family.adapters:
        return [finetuned_method(run), merger_method(run, how)]
    plain = {"weight_average": MergeConfig(method="weight_average"), how.method: how}
    mergers = [merger_method(run, config) for config in plain.values()]
    return [finetuned_method(run), *mergers, *gmerging_methods(run)]


def calibrate(run: Run, backbone: Any, experts: dict[str, Any]) -> Calibrated:
    """Fold a temperature per label, fitted on the validation rows, into the heads of tasks whose
    answers are probabilities of labels (in place).

    Args:
        run: that the experts are of.
        backbone: the merged one.
        experts: by task; each is asked by itself, by routing `own`, the service's default.

    Returns:
        By task, on the test rows: "ece_before", "ece_after", "brier_before", "brier_after".
    """
    found: Calibrated = {}
    for task, own in experts.items():
        data, model = run.dataset(task), single_task_model(run, backbone, task, own)
        if data.info.target != "multilabel":
            continue
        forward, size = unified_forward(run, model, task), run.family.evaluation_batch
        seen, known = run.family.predict(forward, data.steps("valid", size), run.device)
        scale = temperature_scale(seen, known)
        test, labels = run.family.predict(forward, data.steps("test", size), run.device)
        own.head.weight.data *= scale.to(run.device)[:, None]
        own.head.bias.data *= scale.to(run.device)
        before, after = test.sigmoid(), (test * scale).sigmoid()
        found[task] = {
            "ece_before": expected_calibration_error(before, labels),
            "ece_after": expected_calibration_error(after, labels),
            "brier_before": brier_score(before, labels),
            "brier_after": brier_score(after, labels),
        }
    return found


def measure_served(run: Run, backbone: Any, experts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All test metrics of experts on a backbone, asked by routing `own`: by task, and of a
    regression by label, in the label's unit."""
    found: dict[str, dict[str, Any]] = {}
    for task, own in experts.items():
        data, model = run.dataset(task), single_task_model(run, backbone, task, own)
        steps = data.steps("test", run.family.evaluation_batch)
        outputs, labels = run.family.predict(unified_forward(run, model, task), steps, run.device)
        if data.info.target != "regression":
            found[task] = _rounded(run.family.metrics(outputs, labels, data.info))
            continue
        found[task] = {
            label: _rounded(run.family.metrics(outputs[:, [k]], labels[:, [k]], data.info))
            for k, label in enumerate(data.info.labels)
        }
    return found


def _rounded(found: dict[str, float]) -> dict[str, float | None]:
    """Five digits; None where a metric is not defined, which JSON has no number for."""
    return {name: None if math.isnan(value) else round(value, 5) for name, value in found.items()}


def _metrics(
    methods: dict[str, Any], calibrated: Calibrated, test: dict[str, Any]
) -> dict[str, Any]:
    averages = {name: method["stored"]["average"] for name, method in methods.items()}
    recovered = {
        name: recovery(average, averages["weight_average"], averages["finetuned"])
        for name, average in averages.items()
    }
    stored = {name: method["stored"] for name, method in methods.items()}
    return stored | {"recovery": recovered, "calibration": calibrated, "test": test}


def _plain_metrics(run: Run) -> dict[str, Any]:
    """Test scores of the tasks' own models and of the artifact's; a number, or numbers by name."""
    found: dict[str, Any] = {"metric": {task: main_metric(run, task) for task in run.tasks}}
    for name, way in (("separate", "finetuned"), ("merged", "merged")):
        found[name] = {}
        for task in run.tasks:
            record = run.result(evaluation(way, run, task)).record
            test, shown = record["stored"]["test"], _shown(run, task)
            named = {metric: test[metric] for metric in shown}
            found[name][task] = named if len(shown) > 1 else test[shown[0]]
    return found


def _shown(run: Run, task: str) -> tuple[str, ...]:
    return run.family.table_metrics(run.dataset(task).info)


def _provenance(run: Run) -> dict[str, Any]:
    """Everything that the artifact was made from."""
    return {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        **run.family.provenance(run.config, run.folders),
        **data_provenance(run),
        "environment": environment(),
    }


def data_provenance(run: Run) -> dict[str, Any]:
    """Digests of the data, and how they were read."""
    sources = {task: dict(run.dataset(task).sources) for task in run.tasks}
    return {
        "data_sha256": sources,
        "data": {task: dict(run.dataset(task).record) for task in run.tasks},
    }
