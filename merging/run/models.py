"""The models of a run with adapters, built from the results of its stages: fine-tuned models,
merged backbones with and without adapters, and G-Merging's model of all tasks.

All are `UnifiedModel`s, so that one function evaluates them all.
"""

from typing import Any, cast

from torch import Tensor

from merging.family import SHARED_STREAM, StateDict
from merging.run.one_pass import one_pass_stream
from merging.run.run import Run
from merging.run.stages import (
    adapters,
    check_single_backbone,
    finetuned_network,
    merged_network,
    teacher,
    trained_model,
)
from merging.training.alignment import set_statistics
from models.experts.adapter import TaskAdapters, stream_of_backbone
from models.experts.expert import Expert, SharedExpert, TaskExpert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from models.state_dict import load_tensors


def expert(
    run: Run, task: str, tensors: StateDict | None = None, head: StateDict | None = None
) -> Expert:
    """Build a task's fine-tuned head with its adapters, or with the given adapters or head."""
    tensors = run.result(adapters(run, task)).tensors if tensors is None else tensors
    head = trained_model(run, teacher(run, task)).heads[task] if head is None else head
    return cast(Expert, run.family.expert(run.config, run.dataset(task), head, tensors))


def experts(run: Run) -> dict[str, Expert]:
    """Build the experts of all tasks, by task."""
    return {task: expert(run, task) for task in run.tasks}


def unified_model(run: Run) -> UnifiedModel:
    """Build G-Merging's model: the merged backbone with the adapters and heads of all tasks. Raises
    ConfigError: see `check_single_backbone`."""
    check_single_backbone(run)
    adapted = {task: run.family.step_expert(own) for task, own in experts(run).items()}
    return UnifiedModel(merged_network(run), adapted, run.config.routing).to(run.device)


def adapted_model(run: Run, task: str) -> UnifiedModel:
    """Build a model of one task: the merged backbone, or the task's own version of it where the
    merger makes one per task, with the task's adapters."""
    return single_task_model(run, merged_network(run, task), task, expert(run, task))


def single_task_model(run: Run, backbone: Any, task: str, task_expert: TaskExpert) -> UnifiedModel:
    """Build a model of one task, for the batches of its data, from a backbone and an expert, on the
    run's device."""
    own = {task: run.family.step_expert(task_expert)}
    return UnifiedModel(backbone, own, RouterConfig()).to(run.device)


def without_adapters(
    run: Run, backbone: Any, task: str, head: StateDict | None = None
) -> UnifiedModel:
    """Build a model of one task from a backbone and a head, without adapters.

    BatchNorm statistics, if the network has any, are recomputed on the task's training graphs, as
    G-Merging does, so that the two can be compared.

    Args:
        run: the run of the task.
        backbone: moved to the run's device.
        task: name of the task.
        head: state dict of its head; None for the fine-tuned one.
    """
    zero, (graphs, rows) = _zero_adapters(run), run.dataset(task).unlabelled()
    set_statistics(zero, backbone.to(run.device), graphs, rows, run.device)
    return _with_zero_adapters(run, backbone, task, zero, head)


def merged_model(run: Run, task: str) -> UnifiedModel:
    """Build a model of one task: the merged backbone without adapters."""
    return without_adapters(run, merged_network(run, task), task)


def finetuned_model(run: Run, task: str, backbone_of: str | None = None) -> UnifiedModel:
    """Build a task's fine-tuned model; or its head on the backbone of another task, for the
    backbone-swap matrix."""
    backbone, zero = finetuned_network(run, backbone_of or task), _zero_adapters(run)
    state: dict[str, Tensor] = backbone.state_dict()
    for layer in range(len(backbone.batch_norms)):
        zero.norm_mean[layer] = state[f"batch_norms.{layer}.running_mean"]
        zero.norm_var[layer] = state[f"batch_norms.{layer}.running_var"]
    return _with_zero_adapters(run, backbone, task, zero)


def shared_model(run: Run) -> tuple[Any, dict[str, SharedExpert]]:
    """Build the network of joint alignment and, by task, the experts that share its stream."""
    aligned = one_pass_stream(run).cpu()
    stream = stream_of_backbone(aligned.backbone, SHARED_STREAM)
    experts = {}
    for task, adapter, head in zip(aligned.tasks, aligned.adapters, aligned.heads, strict=True):
        info, rank = run.dataset(task).info, adapter.get_parameter("up").shape[0]
        experts[task] = SharedExpert(stream, rank, info.labels, info.level, info.output_kind)
        load_tensors(experts[task].graph, adapter.state_dict(), "graph adapter")
        load_tensors(experts[task].head, head.state_dict(), "head")
    return aligned.backbone, experts


def _zero_adapters(run: Run) -> TaskAdapters:
    """Adapters whose `up` is zero, so that they subtract nothing."""
    return TaskAdapters(run.config.shape, rank=1).to(run.device)


def _with_zero_adapters(
    run: Run, backbone: Any, task: str, zero: TaskAdapters, head: StateDict | None = None
) -> UnifiedModel:
    own = expert(run, task, zero.cpu().state_dict(), head)
    return single_task_model(run, backbone, task, own)
