"""Release of a run as the artifact that the service loads, with its model card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merging.config.base import ReleaseConfig
from merging.data.split import Subset
from merging.family import SHARED_STREAM
from merging.mergers.registry import MergeConfig
from merging.release.card import model_card
from merging.run.meanings import meaning_texts, with_meanings
from merging.run.models import expert, shared_model, single_task_model
from merging.run.one_pass import settings_of, start_stages
from merging.run.run import Run
from merging.run.scores import (
    Method,
    environment,
    evaluation,
    finetuned_method,
    gmerging_methods,
    main_metric,
    merger_method,
    one_pass_methods,
    predict_subset,
    recovery,
    unified_forward,
)
from merging.run.stage import Stage
from merging.run.stages import heads, released_network
from merging.run.validation import unseen_outputs
from merging.targets.calibration import brier_score, expected_calibration_error, temperature_scale
from models.artifact import ArtifactComponents, check_output, save_artifact
from models.manifest import Manifest, StreamInfo, make_manifest

CalibrationErrors = dict[str, dict[str, float]]
"""By task "ece_before", "ece_after", "brier_before" and "brier_after", on the test rows."""


def release(run: Run, folder: Path, replace: bool = False) -> Manifest:
    """Run all stages that are not finished, calibrate probabilities, and write the artifact.

    Args:
        run: the run.
        folder: the folder of the artifact; an older version of it is replaced atomically.
        replace: True also replaces an artifact with another name or other tasks.

    Raises:
        ConfigError: the configuration has no `release`, a task cannot be served, its labels are
            described by texts about others, or the merger returns a network for every task.
        ArtifactError: the artifact may not be written there (`models.artifact.check_output`).
        DataError: the data of a task are missing or invalid.
    """
    identity = check_release(run, folder, replace)
    data = {task: run.dataset(task) for task in run.tasks}
    model, adapted = released_model(run), run.config.adapted
    network, experts = model.network, model.experts
    test = served_metrics(run, network, experts) if adapted else {}
    calibrated = calibrate(run, network, experts) if adapted else {}
    methods = {
        method.name: {"title": method.title, **method.task_scores()} for method in _methods(run)
    }
    measured = _metrics(run, methods, calibrated, test) if adapted else _plain_metrics(run)
    manifest = make_manifest(
        name=identity.name,
        version=identity.version,
        backbone=run.config.shape,
        rank=model.rank,
        router=run.config.routing,
        tasks={task: dataset.info for task, dataset in data.items()},
        input=run.family.input_schema(experts, data),
        provenance=_provenance(run),
        metrics=measured,
        streams=model.streams,
    )
    components = ArtifactComponents(manifest, network, experts, digest="")
    infos = with_meanings(run, components, run.tasks)
    manifest = manifest.model_copy(update={"tasks": infos})
    card = model_card(run.family, manifest, methods)
    return save_artifact(folder, manifest, network, experts, card, replace)


def check_release(run: Run, folder: Path, replace: bool = False) -> ReleaseConfig:
    """Check before training that a run can be released; return the name and version of its
    artifact. Raises the errors of `release`."""
    identity: ReleaseConfig = run.config.require_release()
    meaning_texts(run, run.tasks)
    check_output(folder, identity.name, identity.version, run.tasks, replace)
    return identity


def release_stages(run: Run) -> list[Stage]:
    """Return the stages whose results `release` reads."""
    return [stage for method in _methods(run) for stage in method.stages]


@dataclass(frozen=True)
class ReleasedModel:
    """What an artifact is made from.

    Attributes:
        network: the network that all tasks share.
        experts: by task.
        rank: of the adapters of tasks with a stream of their own; 0 if there are none.
        streams: descriptions of the shared streams, by name.
    """

    network: Any
    experts: dict[str, Any]
    rank: int = 0
    streams: Mapping[str, StreamInfo] = field(default_factory=dict)


def released_model(run: Run) -> ReleasedModel:
    """Return the model that a run releases: by its `method` the network of joint alignment, else
    the merged network with the expert (adapters, if the run trains them, and head) of every task.
    Raises ConfigError: the merger returns a network for every task."""
    if run.config.shares_stream:
        network, shared = shared_model(run)
        described = StreamInfo(tasks=run.tasks, graph_rank=settings_of(run).rank)
        return ReleasedModel(network, shared, streams={SHARED_STREAM: described})
    network = released_network(run)
    if run.config.rank:
        adapted = {task: expert(run, task) for task in run.tasks}
        return ReleasedModel(network, adapted, run.config.rank)
    head_of = heads(run)
    plain = {
        task: run.family.expert(run.config, run.dataset(task), head_of[task], {})
        for task in run.tasks
    }
    return ReleasedModel(network, plain, run.config.rank)


def needs_single_backbone(run: Run) -> bool:
    """Return whether the released model begins with a merged network: always, but for joint
    alignment that starts from another one."""
    return not run.config.shares_stream or bool(start_stages(run))


def _methods(run: Run) -> list[Method]:
    """Return the methods that the model card compares: the released one and its references."""
    config: MergeConfig = run.config.merge
    if run.config.shares_stream:
        return one_pass_methods(run)
    if not run.config.rank:
        return [finetuned_method(run), merger_method(run, config)]
    configs = {"weight_average": MergeConfig(method="weight_average"), config.method: config}
    mergers = [merger_method(run, merge) for merge in configs.values()]
    return [finetuned_method(run), *mergers, *gmerging_methods(run)]


def calibrate(run: Run, backbone: Any, experts: dict[str, Any]) -> CalibrationErrors:
    """Fit a temperature per label on the validation rows, and scale the heads of `multilabel` tasks
    by it in place.

    Args:
        run: the run of the experts.
        backbone: the merged backbone.
        experts: by task; evaluated with routing `own`, the default of the service.
    """
    errors: CalibrationErrors = {}
    for task, task_expert in experts.items():
        if run.dataset(task).info.target != "multilabel":
            continue
        valid, known = _answers(run, backbone, task, task_expert, "valid")
        scale = temperature_scale(unseen_outputs(run, task, valid), known)
        test, labels = _answers(run, backbone, task, task_expert, "test")
        head = task_expert.head
        head.weight.data *= scale.to(head.weight.device)[:, None]
        head.bias.data *= scale.to(head.bias.device)
        before, after = test.sigmoid(), (test * scale).sigmoid()
        errors[task] = {
            "ece_before": expected_calibration_error(before, labels),
            "ece_after": expected_calibration_error(after, labels),
            "brier_before": brier_score(before, labels),
            "brier_after": brier_score(after, labels),
        }
    return errors


def served_metrics(run: Run, backbone: Any, experts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Compute all test metrics of experts on a backbone with routing `own`: {task: {metric:
    value}}, for a regression {task: {label: {metric: value}}} in the unit of the label."""
    metrics: dict[str, dict[str, Any]] = {}
    for task, task_expert in experts.items():
        info = run.dataset(task).info
        outputs, labels = _answers(run, backbone, task, task_expert, "test")
        if info.target != "regression":
            metrics[task] = _rounded(run.family.metrics(outputs, labels, info))
            continue
        metrics[task] = {
            label: _rounded(run.family.metrics(outputs[:, [k]], labels[:, [k]], info))
            for k, label in enumerate(info.labels)
        }
    return metrics


def _answers(run: Run, backbone: Any, task: str, expert: Any, subset: Subset) -> tuple[Any, Any]:
    """Return the outputs of an expert on a backbone for a subset, and the labels."""
    forward = unified_forward(run, single_task_model(run, backbone, task, expert), task)
    return predict_subset(run, forward, task, subset)


def _rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    """Round to five digits; NaN becomes None, as JSON has no NaN."""
    return {name: None if math.isnan(value) else round(value, 5) for name, value in metrics.items()}


def _metrics(
    run: Run, methods: dict[str, Any], calibrated: CalibrationErrors, test: dict[str, Any]
) -> dict[str, Any]:
    averages = {name: method["stored"]["average"] for name, method in methods.items()}
    none, all_of_it = "weight_average", "finetuned"
    if run.config.shares_stream:
        none, all_of_it = "one_pass_start", "one_pass_teachers"
    recovered = {
        name: recovery(average, averages[none], averages[all_of_it])
        for name, average in averages.items()
    }
    stored = {name: method["stored"] for name, method in methods.items()}
    return stored | {"recovery": recovered, "calibration": calibrated, "test": test}


def _plain_metrics(run: Run) -> dict[str, Any]:
    """Return the test metrics of the separate and the merged models by task: a number, or numbers
    by metric where the family shows several."""
    metrics: dict[str, Any] = {"metric": {task: main_metric(run, task) for task in run.tasks}}
    for name, way in (("separate", "finetuned"), ("merged", "merged")):
        metrics[name] = {}
        for task in run.tasks:
            test = run.result(evaluation(way, run, task)).record["stored"]["test"]
            shown = run.family.table_metrics(run.dataset(task).info)
            values = {metric: test[metric] for metric in shown}
            metrics[name][task] = values if len(shown) > 1 else test[shown[0]]
    return metrics


def _provenance(run: Run) -> dict[str, Any]:
    """Return the configuration, seed, data and software versions that the artifact is made from."""
    return {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        **run.family.provenance(run.config, run.folders),
        **data_provenance(run),
        "environment": environment(),
    }


def data_provenance(run: Run) -> dict[str, Any]:
    """Return the SHA-256 of every data file and the record of how it was read, by task."""
    data = {task: run.dataset(task) for task in run.tasks}
    return {
        "data_sha256": {task: dict(dataset.sources) for task, dataset in data.items()},
        "data": {task: dict(dataset.record) for task, dataset in data.items()},
    }
