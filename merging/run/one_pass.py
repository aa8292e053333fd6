"""The stages of joint alignment (`one-pass`): a pool of unlabelled graphs, the teachers' outputs
on it, and one network that answers all tasks; and functions that read their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.config.base import Setting
from merging.config.joint_alignment import JointAlignmentConfig, PoolConfig, TeachersConfig
from merging.data.files import sha256
from merging.data.molecule_files import read_molecules
from merging.data.pool import draw
from merging.family import SHARED_STREAM
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import (
    check_single_backbone,
    finetuned_network,
    merged,
    merged_network,
    task_settings,
    teacher,
    trained_model,
)
from merging.run.store import StageResult
from merging.targets.metrics import compute_outputs
from merging.training.joint_alignment import (
    SharedStream,
    Targets,
    align_jointly,
    check_activations,
    linear,
    shared_stream,
    start_heads,
)
from merging.training.teachers import EnsembleTeacher, NetworkTeacher, Teacher
from models.artifact import ArtifactComponents, load_components, read_manifest
from models.compiled.model import fastest
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.errors import ConfigError, DataError
from models.experts.adapter import stream_of_backbone, trace
from models.experts.expert import SharedExpert, TaskExpert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel, UnifiedOutput
from models.state_dict import load_tensors, read_tensors, sub_state


def settings_of(run: Run) -> JointAlignmentConfig:
    """Return the settings of joint alignment. Raises ConfigError: the configuration has none."""
    settings: JointAlignmentConfig | None = getattr(run.config, "one_pass", None)
    if settings is None:
        raise ConfigError(
            f"one_pass: got no such section in configuration {run.config.setting!r}, expected"
            " settings of joint alignment (`one_pass: {}` takes the defaults)"
        )
    return settings


# --- the pool ---


def pool(run: Run) -> Stage:
    """Return the stage that draws the pool; its tensors are the fields of `PackedGraphs`.

    Raises:
        ConfigError: see `settings_of`, or the tasks do not take the same graphs.
        DataError: a file is missing.
    """
    settings = settings_of(run).pool
    run.family.check_pool({task: run.dataset(task) for task in run.tasks})
    files = (sha256(_pool_file(run, name)) for name in settings.files)
    data = (setting for task in run.tasks for setting in task_settings(run, task))
    depends = settings, run.family.pool_rule, *files, *data
    return Stage("pool", run.seed, depends, (), partial(_make_pool, run, settings))


def _make_pool(run: Run, settings: PoolConfig, _: Path) -> StageResult:
    family = run.family
    items = {
        task: family.pool_items(run.config, run.dataset(task), run.folders) for task in run.tasks
    }
    sources, left_out = dict[str, list[Any]](), list[Any]()
    for task in run.tasks if settings.tasks is None else settings.tasks:
        most = settings.most_by_task.get(task, settings.most_per_task)
        sources[task] = draw(items[task]["train"], most, run.seed, task)
    for name in settings.files:
        molecules = read_molecules(_pool_file(run, name))
        sources[name] = draw(molecules, settings.most_per_file, run.seed, name)
    for by_subset in items.values():
        left_out += by_subset["test"]
        left_out += by_subset["valid"] if settings.leave_out_validation else []
    made = family.make_pool(run.config, sources, left_out, run.seed, run.workers)
    return StageResult(dict(vars(made.graphs)), made.record)


def _pool_file(run: Run, name: str) -> Path:
    path = run.data / name
    if not path.is_file():
        expected = "expected SMILES, one a line, or a table (set GMERGING_DATA)"
        raise DataError(f"one_pass.pool.files: got no file {name} in {run.data}, {expected}")
    return path


# --- the teachers ---


@dataclass(frozen=True)
class TeacherSource:
    """Where a task's teacher comes from.

    Attributes:
        settings: values that its outputs depend on.
        stages: stages that it is built from.
        build: builds it.
    """

    settings: tuple[Setting, ...]
    stages: tuple[Stage, ...]
    build: Callable[[], Teacher]


def teacher_source(run: Run, task: str) -> TeacherSource:
    """Return the source of a task's teacher: an artifact, or fine-tuned models of the run. Raises
    ArtifactError: the artifact cannot be read."""
    chosen = settings_of(run).teachers_for(task)
    if chosen.artifact is not None:
        folder = Path(chosen.artifact)
        return TeacherSource(
            (_weights_digest(folder),), (), partial(_artifact_teacher, run, task, folder)
        )
    members = [replace(run, seed=seed) for seed in chosen.seeds or (run.seed,)]
    stages = tuple(teacher(member, task) for member in members)
    return TeacherSource((), stages, partial(_finetuned_teacher, members, task))


def _weights_digest(folder: Path) -> str:
    """Identify the weights of an artifact. Describing its labels changes its digest, but not this
    one, so that results made with the weights keep their keys."""
    manifest, digest = read_manifest(folder)
    return manifest.weights_digest(digest)


def _artifact_teacher(run: Run, task: str, folder: Path) -> NetworkTeacher:
    """The stream that a task of an artifact reads from, with its graph adapter and head."""
    components, info = _teaching_artifact(run, folder, task), run.dataset(task).info
    found = components.manifest.tasks[task]
    if (found.labels, found.output_kind) != (info.labels, info.output_kind):
        raise ConfigError(
            f"one_pass.teachers: got {folder} with {found.output_kind} {list(found.labels)} of"
            f" {task}, expected {info.output_kind} {list(info.labels)}"
        )
    backbone: Any = components.backbone.to(run.device)
    expert: Any = components.experts[task]
    expert = expert.requires_grad_(False).eval().to(run.device)
    expert.stream.to(run.device)  # A shared one is no part of its expert.
    traced, answer = partial(expert.trace, backbone), _answering(backbone, task, expert)
    return NetworkTeacher(info.labels, expert.head, backbone.config, traced, answer)


def _teaching_artifact(run: Run, folder: Path, task: str) -> ArtifactComponents:
    """Load a task of an artifact whose networks take the graphs of the run. Raises ConfigError:
    they do not."""
    components = load_components(folder, [task])
    shape: Any = components.manifest.backbone
    taken = run.config.shape.in_dim
    if shape.kind not in run.family.kinds:
        expected = f"expected one of {', '.join(run.family.kinds)}"
        raise ConfigError(f"one_pass.teachers: got {folder}, a network of {shape.kind}, {expected}")
    if shape.in_dim != taken or components.experts[task].encoder is not None:
        got = f"got {folder}, whose graphs for {task} have other features"
        expected = f"expected {taken} for each node, without an encoder"
        raise ConfigError(f"one_pass.teachers: {got}, {expected}")
    return components


def _finetuned_teacher(members: list[Run], task: str) -> Teacher:
    teachers = [_finetuned_member(run, task) for run in members]
    return teachers[0] if len(teachers) == 1 else EnsembleTeacher(teachers)


def _finetuned_member(run: Run, task: str) -> NetworkTeacher:
    head = trained_model(run, teacher(run, task)).heads[task]
    network = finetuned_network(run, task).requires_grad_(False).to(run.device)
    layer = linear(head["weight"], head["bias"]).requires_grad_(False).to(run.device)
    info = run.dataset(task).info
    stream = stream_of_backbone(network, SHARED_STREAM)
    expert = SharedExpert(stream, 1, info.labels, info.level, info.output_kind).to(run.device)
    load_tensors(expert.head, head, "head")
    answer = _answering(network, task, expert.requires_grad_(False))
    return NetworkTeacher(info.labels, layer, network.config, partial(trace, network), answer)


def _answering(backbone: Any, task: str, expert: TaskExpert) -> Callable[[GraphBatch], Tensor]:
    """Return the function that computes the outputs of a task's expert as the service does."""
    model = fastest(UnifiedModel(backbone, {task: expert}, RouterConfig()).eval())

    def answer(batch: GraphBatch) -> Tensor:
        output: UnifiedOutput = model(batch, [task])
        return output.logits[task]

    return answer


def one_pass_teacher(run: Run, task: str) -> Teacher:
    """Build the teacher of a task, on the run's device. Raises ConfigError: the artifact has other
    labels than the task."""
    return teacher_source(run, task).build()


def teacher_outputs(run: Run, task: str) -> Stage:
    """Return the stage that asks a task's teacher for every graph of the pool; its tensor
    `outputs` is (P, C) float32."""
    source = teacher_source(run, task)
    inputs, make = (pool(run), *source.stages), partial(_make_outputs, run, task)
    return Stage(f"teacher-outputs/{task}", run.seed, source.settings, inputs, make)


def _make_outputs(run: Run, task: str, _: Path) -> StageResult:
    graphs, answering = PackedGraphs(**run.result(pool(run)).tensors), one_pass_teacher(run, task)
    rows = torch.arange(len(graphs))
    outputs = compute_outputs(answering.outputs, graphs, rows, run.device)
    return StageResult({"outputs": outputs.float()}, {"labels": list(answering.labels)})


# --- the shared stream ---


def one_pass(run: Run) -> Stage:
    """Return the stage of joint alignment; its tensors are `SharedStream.tensors`.

    Raises:
        ConfigError: see `settings_of`.
        DataError, CheckpointError, ArtifactError: a file of the pool, the start or the artifact of
            the teachers is missing or invalid.
    """
    settings = settings_of(run)
    start = _start_fingerprint(run)
    # The pool and the teachers are part of the inputs' keys.
    others: dict[str, Any] = {"teachers": TeachersConfig(), "teachers_by_task": {}}
    others["pool"] = PoolConfig(watched=settings.pool.watched)
    depends = run.config.shape, settings.model_copy(update=others), start
    inputs = *(teacher_outputs(run, task) for task in run.tasks), *start_stages(run)
    return Stage("one-pass", run.seed, depends, inputs, partial(_make_one_pass, run), 2**31)


def _start_fingerprint(run: Run) -> str:
    """What identifies the backbone that training starts from, besides `start_stages`."""
    settings = settings_of(run)
    if settings.start == "merged":
        artifact = settings.teachers.artifact
        return "" if artifact is None else _weights_digest(Path(artifact))
    if settings.start == "pretrained":
        return run.initial_fingerprint
    read_tensors(Path(settings.start))  # Its errors name the file.
    return sha256(Path(settings.start))


def start_stages(run: Run) -> tuple[Stage, ...]:
    """Return the stages that the start of joint alignment is read from."""
    settings = settings_of(run)
    from_run = settings.start == "merged" and settings.teachers.artifact is None
    return (merged(run),) if from_run else ()


def start_network(run: Run) -> Any:
    """Build the backbone that training starts from; `merged` is that of the artifact where an
    artifact teaches. Raises CheckpointError: its shape is not the configuration's."""
    settings, shape = settings_of(run), run.config.shape
    if start_stages(run):
        check_single_backbone(run)
        return merged_network(run)
    network: nn.Module = run.family.network(shape)
    if settings.start == "merged":
        folder = Path(str(settings.teachers.artifact))
        state = _teaching_artifact(run, folder, run.tasks[0]).backbone.state_dict()
        load_tensors(network, state, f"{folder}, as the start of one_pass,")
    elif settings.start == "pretrained":
        load_tensors(network, sub_state(run.initial_state(), "network."), "the pre-trained weights")
    else:
        load_tensors(network, read_tensors(Path(settings.start)), settings.start)
    return network


def start_stream(run: Run, task: str) -> SharedStream:
    """Build the shared stream of one task as training starts from it; see `start_network` and
    `merging.training.joint_alignment.start_heads`."""
    graphs = PackedGraphs(**run.result(pool(run)).tensors)
    return _start(run, graphs, {task: one_pass_teacher(run, task)}, {task: _targets(run, task)})


def _start(
    run: Run, graphs: PackedGraphs, teachers: Mapping[str, Teacher], targets: Mapping[str, Targets]
) -> SharedStream:
    network = start_network(run).to(run.device)
    heads = start_heads(network, graphs, teachers, targets, run.device)
    return SharedStream(network.cpu(), heads, settings_of(run).rank)


def _targets(run: Run, task: str) -> Targets:
    outputs = run.result(teacher_outputs(run, task)).tensors["outputs"]
    return Targets.of(outputs, run.dataset(task).info, settings_of(run).least_logit)


def _make_one_pass(run: Run, checkpoint: Path) -> StageResult:
    return train_stream(run, checkpoint, run.seed, lambda stream: stream)


def train_stream(
    run: Run, checkpoint: Path, seed: int, prepare: Callable[[SharedStream], SharedStream]
) -> StageResult:
    """Train a shared stream, from the results of the inputs of `one_pass`.

    Args:
        run: the run, whose seed is that of pool and teachers.
        checkpoint: file of the resumable state.
        seed: of the adapters' first weights and of the order of molecules.
        prepare: changes the stream before training.

    Returns:
        What `one_pass` describes.
    """
    settings, drawn = settings_of(run), run.result(pool(run))
    teachers = {task: one_pass_teacher(run, task) for task in run.tasks}
    check_activations(teachers, settings.losses, run.config.shape)
    targets = {task: _targets(run, task) for task in run.tasks}
    graphs, place = PackedGraphs(**drawn.tensors), (seed, checkpoint, run.device)
    torch.manual_seed(seed)
    stream = prepare(_start(run, graphs, teachers, targets)).requires_grad_(True)
    trained = align_jointly(stream, graphs, targets, teachers, settings, *place)
    record = {**trained.record, "pool": drawn.record, "settings": settings.model_dump(mode="json")}
    return StageResult(trained.stream.tensors(), record)


def one_pass_stream(run: Run) -> SharedStream:
    """Return the result of `one_pass` in evaluation mode, on the run's device."""
    return stream_of(run, run.result(one_pass(run)))


def stream_of(run: Run, result: StageResult) -> SharedStream:
    """Build the shared stream of a result of `train_stream`, in evaluation mode, on the run's
    device."""
    network: Any = run.family.network(run.config.shape)
    load_tensors(network, result.under("backbone/"), "a shared stream")
    by_task = result.by_task("tasks/")  # A file's tensors are sorted by name.
    return shared_stream(network, {task: by_task[task] for task in run.tasks}).to(run.device)
