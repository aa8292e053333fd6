"""The stages of a run: each task's own model, one model of all tasks, the merged network, heads
tuned on it, adapters; and functions that read their results."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from merging.config.base import Setting
from merging.config.training import TrainingConfig
from merging.data.task_data import TaskData
from merging.family import StateDict
from merging.mergers.base import Calibration, MergeInputs, MergeResult
from merging.mergers.registry import merge, merger_spec
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.training.alignment import align
from merging.training.supervised import (
    MultitaskModel,
    TrainedModel,
    TrainedParameters,
    initial_model,
    label_scale,
    train,
)
from models.errors import ConfigError
from models.state_dict import sub_state

ImitationStart = Literal["merged", "pretrained"]


def teacher(run: Run, task: str) -> Stage:
    """Return the stage that trains a task's own model; its result is a `trained_model`."""
    config = run.config
    start = run.initial_fingerprint, config.initial_seed(task, run.seed)
    settings = config.shape, config.training_for(task), *start, *task_settings(run, task)
    size = run.dataset(task).size
    make = partial(_make_teacher, run, task)
    return Stage(f"finetuned/{task}", run.seed, settings, (), make, size)


def _make_teacher(run: Run, task: str, checkpoint: Path) -> StageResult:
    data, settings = run.dataset(task), run.config.training_for(task)
    start = run.initial_state(task), run.seed, settings.dropout
    model = initial_model(run.family, run.config.shape, {task: data}, *start)
    run.family.start_head(model.network, model.head(task), data, settings)
    return train_model(run, model, settings, checkpoint, data=data.record)


def joint(run: Run) -> Stage:
    """Return the stage that trains one network with a head per task on all tasks; its result is a
    `trained_model`. Raises ConfigError: the configuration has no joint training."""
    config, settings = run.config, run.config.joint_training
    if settings is None:
        raise ConfigError(f"got no joint training in {config.setting!r}, expected its settings")
    data = (setting for task in run.tasks for setting in task_settings(run, task))
    size = sum(run.dataset(task).size for task in run.tasks)
    start = config.shape, settings, run.initial_fingerprint
    return Stage("multitask", run.seed, (*start, *data), (), partial(_make_joint, run), size)


def _make_joint(run: Run, checkpoint: Path) -> StageResult:
    settings = run.config.joint_training
    data = {task: run.family.joint_data(run.dataset(task), settings) for task in run.tasks}
    start = run.initial_state(), run.seed, settings.dropout
    model = initial_model(run.family, run.config.shape, data, *start)
    return train_model(run, model, settings, checkpoint)


def merged(run: Run) -> Stage:
    """Return the stage that merges the tasks' networks and computes their heads for the merged one;
    its result is a `merge_result`. Raises ConfigError: the merger does not support the target of a
    task."""
    config, graphs = run.config.merge, run.family.calibration_graphs(run.config)
    targets = {task: run.dataset(task).info.target for task in run.tasks}
    merger_spec(config.method).check_targets(targets)
    teachers = tuple(teacher(run, task) for task in run.tasks)
    make = partial(_make_merged, run)
    return Stage(f"merged/{config.method}", run.seed, (config, graphs), teachers, make)


def _make_merged(run: Run, _: Path) -> StageResult:
    config, family, shape = run.config.merge, run.family, run.config.shape
    models = {task: trained_model(run, teacher(run, task)) for task in run.tasks}
    networks = {task: model.network for task, model in models.items()}
    calibrated = run.tasks if merger_spec(config.method).calibrated else ()
    calibrations = {task: calibration(run, task) for task in calibrated}
    pretrained = sub_state(run.initial_state(), "network.")
    start = time.perf_counter()
    inputs = MergeInputs(pretrained, networks, shape, calibrations, run.seed)
    result = merge(config.method, inputs, config.options)
    seconds = round(time.perf_counter() - start, 4)
    if result.head_orders and run.config.rank:
        raise _reordered(config.method)
    heads = {}
    for task, model in models.items():
        own = model.network, model.heads[task]
        batches = partial(_calibration_batches, run, task)
        heads[task] = family.merged_head(shape, result, task, own, batches)
    tensors = {f"backbone/{key}": value for key, value in result.backbone.items()}
    tensors |= _by_task("versions", result.by_task) | _by_task("heads", heads)
    record = {"method": config.method, "options": config.options, "tasks": list(run.tasks)}
    return StageResult(tensors, {**record, **result.record, "seconds": seconds})


def tuned(run: Run) -> Stage:
    """Return the stage that trains the heads on the merged network, which stays as it is; its
    result is a `trained_model`."""
    settings = run.config.head_tuning
    return Stage("tuned", run.seed, (settings,), (merged(run),), partial(_make_tuned, run))


def _make_tuned(run: Run, checkpoint: Path) -> StageResult:
    settings = run.config.head_tuning
    data = {task: run.dataset(task).first(settings.frames) for task in run.tasks}
    return train_model(run, merged_start(run, data), settings, checkpoint, "heads")


def merged_start(run: Run, data: Mapping[str, TaskData]) -> MultitaskModel:
    """Build a model of the given tasks with the weights and heads of `merged`."""
    result, model = merge_result(run), MultitaskModel(run.family, run.config.shape, data)
    model.network.load_state_dict(result.backbone)
    for task in data:
        model.head(task).load_state_dict(result.heads[task])
    return model


def aligned(run: Run, start: ImitationStart = "merged") -> Stage:
    """Return the stage that trains one network with a head per task to answer like the tasks' own
    models, without labels (joint alignment of families whose tasks share no input graphs); its
    result is a `trained_model`.

    Args:
        run: with settings of `RunConfig.imitation`.
        start: the merged network and heads, or the weights that the tasks' own models started from.

    Raises:
        ConfigError: the configuration has no such settings.
    """
    settings = run.config.imitation
    if settings is None:
        got = f"got no joint alignment in {run.config.setting!r}"
        raise ConfigError(f"{got}, expected its settings")
    inputs = tuple(teacher(run, task) for task in run.tasks)
    inputs = (merged(run), *inputs) if start == "merged" else inputs
    make, size = partial(_make_aligned, run, start), sum(stage.size for stage in inputs)
    return Stage(f"aligned/{start}", run.seed, (settings,), inputs, make, size)


def _make_aligned(run: Run, start: ImitationStart, checkpoint: Path) -> StageResult:
    data = {task: imitated_data(run, task) for task in run.tasks}
    if start == "merged":
        model = merged_start(run, data)
    else:
        model = initial_model(run.family, run.config.shape, data, run.initial_state(), run.seed)
    return train_model(run, model, run.config.imitation, checkpoint)


def imitated_data(run: Run, task: str) -> Any:
    """Return a task's data with the answers of its own model in place of labels."""
    data, own = run.dataset(task), trained_model(run, teacher(run, task))
    modules = run.family.load_model(run.config.shape, own.network, own.heads[task], data)
    on_device = modules[0].to(run.device), modules[1].to(run.device)
    return run.family.imitated_data(data, *on_device, run.device)


def adapters(run: Run, task: str) -> Stage:
    """Return the stage that trains a task's adapters on the merged network; its tensors are the
    state dict of a TaskAdapters, BatchNorm statistics included. Raises ConfigError: the family has
    no adapters."""
    check_adapters(run)
    settings, size = run.config.alignment_for(task), run.dataset(task).size
    make = partial(_make_adapters, run, task)
    inputs = merged(run), teacher(run, task)
    return Stage(f"adapters/{task}", run.seed, (settings,), inputs, make, size)


def _make_adapters(run: Run, task: str, checkpoint: Path) -> StageResult:
    kept, head = merge_result(run).heads[task], trained_model(run, teacher(run, task)).heads[task]
    if any(not torch.equal(value, kept[key]) for key, value in head.items()):
        raise _reordered(run.config.merge.method)  # merged by a run without adapters
    return align_adapters(run, task, merged_network(run, task), checkpoint)


def _reordered(method: str) -> ConfigError:
    return ConfigError(
        f"got merge method {method!r}, which reorders hidden units, expected one that keeps the"
        " order of heads and teachers"
    )


def align_adapters(run: Run, task: str, student: Any, checkpoint: Path) -> StageResult:
    """Train a task's adapters on a student network, which is frozen and moved to the run's
    device."""
    dataset, settings = run.dataset(task), run.config.alignment_for(task)
    graphs, rows = dataset.unlabelled()
    trained = align(
        graphs,
        rows,
        finetuned_network(run, task),
        student,
        settings,
        run.seed,
        checkpoint,
        run.device,
        task,
        dataset.info.level,
    )
    record = {**trained.record, "settings": settings.model_dump()}
    return StageResult(trained.adapters.state_dict(), record)


def check_adapters(run: Run) -> None:
    """Raise ConfigError if the run trains no adapters."""
    if not run.config.rank:
        raise ConfigError(
            f"{_configured(run)}, which trains no adapters, expected one of molecules"
            " (`pretrained`), or of graphs with a section `alignment`"
        )


def check_molecules(run: Run) -> None:
    """Raise ConfigError if the run is not on molecules."""
    if not run.family.of_molecules:
        raise ConfigError(f"{_configured(run)}, expected one of molecules (`pretrained`)")


def _configured(run: Run) -> str:
    return f"got a configuration of networks of kind {run.config.shape.kind!r}"


# --- results ---


def trained_model(run: Run, stage: Stage) -> TrainedModel:
    """Return the result of `teacher`, `joint`, `tuned` or `aligned`."""
    result = run.result(stage)
    return TrainedModel(result.under("network/"), result.by_task("heads/"), result.record)


def merge_result(run: Run) -> MergeResult:
    """Return the result of `merged`; its `heads` are those of all tasks."""
    result = run.result(merged(run))
    versions, heads = result.by_task("versions/"), result.by_task("heads/")
    return MergeResult(result.under("backbone/"), versions, result.record, heads=heads)


def heads_stage(run: Run) -> Stage:
    """Return the stage whose heads the artifact gets: `aligned` or `tuned` if configured, else
    `merged`."""
    if run.config.imitation is not None:
        return aligned(run)
    return merged(run) if run.config.head_tuning is None else tuned(run)


def heads(run: Run) -> dict[str, StateDict]:
    """Return the heads of the artifact, by task."""
    return run.result(heads_stage(run)).by_task("heads/")


def shared_weights(run: Run, task: str) -> StateDict:
    """Return the weights of the network that the heads of the artifact are for: those of `aligned`
    if configured, else the merged ones, the task's own version of them where there are several."""
    if run.config.imitation is not None:
        return trained_model(run, aligned(run)).network
    return merge_result(run).backbone_for(task)


def calibration(run: Run, task: str) -> Calibration:
    """Return what a merger may use of a task: its head (of a regression, in standard deviations of
    the labels), and some training graphs without labels."""
    head, data = trained_model(run, teacher(run, task)).heads[task], run.dataset(task)
    scale = label_scale(data)
    head = scale.unfold(head) if scale else head
    batches, nodes = calibration_graphs(run, task)
    return Calibration(head, tuple(batches), data.info.level, tuple(nodes), data.info.target)


def calibration_graphs(run: Run, task: str) -> tuple[Sequence[Any], Sequence[Tensor]]:
    """Return the graphs of a task that a merger may use, in batches, and by batch the nodes that
    count (`TaskData.calibration`)."""
    count, size = run.family.calibration_graphs(run.config), run.family.calibration_batch
    dataset: TaskData = run.dataset(task)
    return dataset.calibration(count, size, run.seed)


def _calibration_batches(run: Run, task: str) -> Sequence[Any]:
    return calibration_graphs(run, task)[0]


def finetuned_network(run: Run, task: str) -> Any:
    """Return the network of a task's own model, in evaluation mode."""
    return _network(run, trained_model(run, teacher(run, task)).network)


def merged_network(run: Run, task: str | None = None) -> Any:
    """Return the merged network, in evaluation mode; with a task, its own version of it where the
    merger makes one per task."""
    result = merge_result(run)
    return _network(run, result.backbone if task is None else result.backbone_for(task))


def released_network(run: Run) -> Any:
    """Return the network that the heads of the artifact are for (`shared_weights`), where it is one
    for all tasks, in evaluation mode. Raises ConfigError: see `check_single_backbone`."""
    check_single_backbone(run)
    return _network(run, shared_weights(run, run.tasks[0]))


def check_single_backbone(run: Run) -> None:
    """Raise ConfigError if the configured merger makes one backbone per task."""
    if merge_result(run).by_task:
        raise ConfigError(
            f"got merge method {run.config.merge.method!r}, which gives each task its own backbone,"
            " expected one that gives one for all"
        )


def _network(run: Run, state: StateDict) -> nn.Module:
    network = run.family.network(run.config.shape)
    network.load_state_dict(state)
    return network.eval()


def task_settings(run: Run, task: str) -> tuple[Setting, ...]:
    """Return what a stage on a task's data depends on: the task's name, settings of its data, and
    the SHA-256 of its files."""
    settings = run.family.data_settings(run.config, task)
    return task, *settings, *run.dataset(task).sources.values()


def train_model(
    run: Run,
    model: MultitaskModel,
    settings: TrainingConfig,
    checkpoint: Path,
    parameters: TrainedParameters = "all",
    **record: Any,
) -> StageResult:
    """Train a model; the result is what `trained_model` reads."""
    made = train(model, settings, run.seed, checkpoint, run.device, parameters)
    tensors = {f"network/{key}": value for key, value in made.network.items()}
    tensors |= _by_task("heads", made.heads)
    return StageResult(tensors, {**made.record, "settings": settings.model_dump(), **record})


def _by_task(name: str, states: Mapping[str, StateDict]) -> StateDict:
    """State dicts by task as one, with keys `<name>/<task>/<key>`."""
    return {
        f"{name}/{task}/{key}": value
        for task, state in states.items()
        for key, value in state.items()
    }
