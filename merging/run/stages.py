"""The stages of a run, of whatever family: each task's own model, one model of all tasks, the
merged network, heads tuned on it, adapters; and what their results are, read back."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from merging.config.base import Setting
from merging.family import StateDict
from merging.mergers.base import Calibration, MergeInputs, MergeResult
from merging.mergers.registry import merge, merger_spec
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.training.alignment import align
from merging.training.supervised import MultitaskModel, TrainedModel, label_scale, train, untrained
from models.errors import ConfigError
from models.state_dict import sub_state


def teacher(run: Run, task: str) -> Stage:
    """A task's own model, trained on it alone (`trained`)."""
    config = run.config
    start = run.origin, config.initial_seed(task, run.seed)
    settings = config.shape, config.training_for(task), *start, *_data(run, task)
    size = run.dataset(task).size
    make = partial(_make_teacher, run, task)
    return Stage(f"finetuned/{task}", run.seed, settings, (), make, size)


def _make_teacher(run: Run, task: str, checkpoint: Path) -> StageResult:
    data, settings = run.dataset(task), run.config.training_for(task)
    start = run.initial(task), run.seed, settings.dropout
    model = untrained(run.family, run.config.shape, {task: data}, *start)
    made = train(model, settings, run.seed, checkpoint, run.device)
    return _kept(made, settings=settings.model_dump(), data=data.record)


def joint(run: Run) -> Stage:
    """One network with a head for each task, trained on all of them (`trained`). Raises
    ConfigError: the configuration does not say how."""
    config, settings = run.config, run.config.joint_training
    if settings is None:
        raise ConfigError(f"got no joint training in {config.setting!r}, expected its settings")
    data = (setting for task in run.tasks for setting in _data(run, task))
    size = sum(run.dataset(task).size for task in run.tasks)
    make = partial(_make_joint, run)
    start = config.shape, settings, run.origin
    return Stage("multitask", run.seed, (*start, *data), (), make, size)


def _make_joint(run: Run, checkpoint: Path) -> StageResult:
    settings = run.config.joint_training
    data = {task: run.family.shared(run.dataset(task), settings) for task in run.tasks}
    start = run.initial(), run.seed, settings.dropout
    model = untrained(run.family, run.config.shape, data, *start)
    made = train(model, settings, run.seed, checkpoint, run.device)
    return _kept(made, settings=settings.model_dump())


def merged(run: Run) -> Stage:
    """The teachers' networks merged as the configuration says, and each task's head as the merged
    network needs it (`merge_result`). Raises ConfigError: the merger cannot use what a task
    answers."""
    how, seen = run.config.merge, run.family.calibration_graphs(run.config)
    merger_spec(how.method).check_targets(
        {task: run.dataset(task).info.target for task in run.tasks}
    )
    teachers = tuple(teacher(run, task) for task in run.tasks)
    make = partial(_make_merged, run)
    return Stage(f"merged/{how.method}", run.seed, (how, seen), teachers, make)


def _make_merged(run: Run, _: Path) -> StageResult:
    how, family, shape = run.config.merge, run.family, run.config.shape
    models = {task: trained(run, teacher(run, task)) for task in run.tasks}
    networks = {task: model.network for task, model in models.items()}
    calibrated = run.tasks if merger_spec(how.method).calibrated else ()
    seen = {task: calibration(run, task) for task in calibrated}
    start = time.perf_counter()
    inputs = MergeInputs(sub_state(run.initial(), "network."), networks, shape, seen, run.seed)
    result = merge(how.method, inputs, how.options)
    seconds = round(time.perf_counter() - start, 4)
    if result.head_orders and family.adapters:
        raise ConfigError(
            f"got merge method {how.method!r}, which reorders hidden units, expected one that keeps"
            " the order of heads and teachers"
        )
    tensors = {f"backbone/{key}": value for key, value in result.backbone.items()}
    for task, model in models.items():
        given = (
            (model.network, model.heads[task]),
            lambda task=task: calibration_graphs(run, task)[0],
        )
        states = {"versions": result.by_task.get(task, {})}
        states["heads"] = family.settle(shape, result, task, *given)
        for name, state in states.items():
            tensors |= {f"{name}/{task}/{key}": value for key, value in state.items()}
    about = {"method": how.method, "options": how.options, "tasks": list(run.tasks)}
    return StageResult(tensors, {**about, **result.record, "seconds": seconds})


def tuned(run: Run) -> Stage:
    """The heads, trained for a short time on the merged network (`trained`)."""
    settings = run.config.tuning_after
    return Stage("tuned", run.seed, (settings,), (merged(run),), partial(_make_tuned, run))


def _make_tuned(run: Run, checkpoint: Path) -> StageResult:
    settings, found = run.config.tuning_after, merge_result(run)
    data = {task: run.dataset(task).first(settings.frames) for task in run.tasks}
    model = MultitaskModel(run.family, run.config.shape, data)
    model.network.load_state_dict(found.backbone)
    for task in run.tasks:
        model.head(task).load_state_dict(found.heads[task])
    made = train(model, settings, run.seed, checkpoint, run.device, "heads")
    return _kept(made, settings=settings.model_dump())


def adapters(run: Run, task: str) -> Stage:
    """A task's adapters on the merged network, with their statistics: state dict of a TaskAdapters.
    Raises ConfigError: models of this kind have none."""
    check_adapters(run)
    settings, size = run.config.alignment_for(task), run.dataset(task).size
    make = partial(_make_adapters, run, task)
    inputs = merged(run), teacher(run, task)
    return Stage(f"adapters/{task}", run.seed, (settings,), inputs, make, size)


def _make_adapters(run: Run, task: str, checkpoint: Path) -> StageResult:
    return aligned(run, task, merged_network(run, task), checkpoint)


def aligned(run: Run, task: str, student: Any, checkpoint: Path) -> StageResult:
    """Train a task's adapters on a network, which is frozen and moved to the run's device."""
    dataset, settings = run.dataset(task), run.config.alignment_for(task)
    data, networks = (dataset.graphs, dataset.split.train), (own_network(run, task), student)
    made = align(*data, *networks, settings, run.seed, checkpoint, run.device, task)
    return StageResult(
        made.adapters.state_dict(), {**made.record, "settings": settings.model_dump()}
    )


def check_adapters(run: Run) -> None:
    """Raises ConfigError: models of this kind have no adapters."""
    if not run.family.adapters:
        kind = run.config.shape.kind
        raise ConfigError(
            f"got a configuration of networks of kind {kind!r}, which have no adapters, expected"
            " one of molecules (`pretrained`)"
        )


# --- results ---


def trained(run: Run, stage: Stage) -> TrainedModel:
    """What `teacher`, `joint` or `tuned` made."""
    result = run.result(stage)
    tasks = dict.fromkeys(key.split("/")[0] for key in result.under("heads/"))
    heads = {task: result.under(f"heads/{task}/") for task in tasks}
    return TrainedModel(result.under("network/"), heads, result.record)


def merge_result(run: Run) -> MergeResult:
    """What `merged` made; `heads` are those of all tasks."""
    found = run.result(merged(run))
    by_task = {task: found.under(f"versions/{task}/") for task in run.tasks}
    heads = {task: found.under(f"heads/{task}/") for task in run.tasks}
    versions = {task: state for task, state in by_task.items() if state}
    return MergeResult(found.under("backbone/"), versions, found.record, heads=heads)


def heads_stage(run: Run) -> Stage:
    """The stage that the heads come from which an artifact gets."""
    return merged(run) if run.config.tuning_after is None else tuned(run)


def heads(run: Run) -> dict[str, StateDict]:
    """The heads that an artifact gets, by task: tuned, where that is configured."""
    if run.config.tuning_after is None:
        return merge_result(run).heads
    return trained(run, tuned(run)).heads


def calibration(run: Run, task: str) -> Calibration:
    """What a merger may see of a task: its head (of a regression, in standard deviations), and some
    training graphs without their labels."""
    head, data = trained(run, teacher(run, task)).heads[task], run.dataset(task)
    scale = label_scale(data)
    head = scale.unfold(head) if scale else head
    batches, nodes = calibration_graphs(run, task)
    return Calibration(head, tuple(batches), data.info.level, tuple(nodes), data.info.target)


def calibration_graphs(run: Run, task: str) -> tuple[Sequence[Any], Sequence[Tensor]]:
    """Those graphs in batches, and which nodes count (`TaskData.calibration`)."""
    count, size = run.family.calibration_graphs(run.config), run.family.calibration_batch
    found: tuple[Sequence[Any], Sequence[Tensor]] = run.dataset(task).calibration(
        count, size, run.seed
    )
    return found


def own_network(run: Run, task: str) -> Any:
    """A task's own network, in evaluation mode."""
    return _network(run, trained(run, teacher(run, task)).network)


def merged_network(run: Run, task: str | None = None) -> Any:
    """The merged network, or a task's own version of it where the merger gives one; in evaluation
    mode."""
    found = merge_result(run)
    state = found.backbone if task is None else found.backbone_for(task)
    return _network(run, state)


def check_shared(run: Run) -> None:
    """Raises ConfigError: the configured merger gives each task a network of its own."""
    if merge_result(run).by_task:
        raise ConfigError(
            f"got merge method {run.config.merge.method!r}, which gives each task its own backbone,"
            " expected one that gives one for all"
        )


def _network(run: Run, state: StateDict) -> nn.Module:
    network = run.family.network(run.config.shape)
    network.load_state_dict(state)
    return network.eval()


def _data(run: Run, task: str) -> tuple[Setting, ...]:
    """A task's data, by what is in their files."""
    described = run.family.settings(run.config, task)
    return task, *described, *run.dataset(task).sources.values()


def _kept(model: TrainedModel, **about: Any) -> StageResult:
    """In the form that `trained` reads."""
    tensors = {f"network/{key}": value for key, value in model.network.items()}
    for task, head in model.heads.items():
        tensors |= {f"heads/{task}/{key}": value for key, value in head.items()}
    return StageResult(tensors, {**model.record, **about})
