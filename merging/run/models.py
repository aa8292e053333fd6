"""The models of a run on molecules, put together from the results of its stages: fine-tuned models,
merged backbones with and without adapters, and G-Merging's model of all tasks.

All have one form, so that all are measured by the same code.
"""

from typing import Any, cast

from torch import Tensor

from merging.family import StateDict
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
from models.experts.adapter import TaskAdapters
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel


def expert(run: Run, task: str, tensors: StateDict | None = None) -> Expert:
    """A task's fine-tuned head behind its adapters, or behind those with the given tensors."""
    own = run.result(adapters(run, task)).tensors if tensors is None else tensors
    head = trained_model(run, teacher(run, task)).heads[task]
    return cast(Expert, run.family.expert(run.config, run.dataset(task), head, own))


def experts(run: Run) -> dict[str, Expert]:
    """Adapters and fine-tuned heads of all tasks."""
    return {task: expert(run, task) for task in run.tasks}


def unified_model(run: Run) -> UnifiedModel:
    """G-Merging's model: the configured merged backbone with all adapters and heads. Raises
    ConfigError: see `check_single_backbone`."""
    check_single_backbone(run)
    return UnifiedModel(merged_network(run), experts(run), run.config.routing).to(run.device)


def adapted_model(run: Run, task: str) -> UnifiedModel:
    """A model of one task: the merged backbone (the task's own version, if the merger gives one)
    with its adapters."""
    return single_task_model(run, merged_network(run, task), task, expert(run, task))


def single_task_model(run: Run, backbone: Any, task: str, own: Expert) -> UnifiedModel:
    """A model of one task, in the form of `unified_model`."""
    return UnifiedModel(backbone, {task: own}, RouterConfig()).to(run.device)


def without_adapters(run: Run, backbone: Any, task: str) -> UnifiedModel:
    """A backbone with a task's fine-tuned head and no adapters.

    BatchNorm statistics are recomputed on the task's training molecules, as G-Merging does: the
    same footing.
    """
    idle, dataset = _idle_adapters(run), run.dataset(task)
    data = dataset.graphs, dataset.split.train
    set_statistics(idle, backbone.to(run.device), *data, run.device)
    return _with_idle(run, backbone, task, idle)


def merged_model(run: Run, task: str) -> UnifiedModel:
    """A model of one task: the merged backbone without adapters."""
    return without_adapters(run, merged_network(run, task), task)


def finetuned_model(run: Run, task: str, backbone_of: str | None = None) -> UnifiedModel:
    """The fine-tuned model of a task; or its head on the backbone of another task (the
    backbone-swap matrix)."""
    backbone, idle = finetuned_network(run, backbone_of or task), _idle_adapters(run)
    state: dict[str, Tensor] = backbone.state_dict()
    for layer in range(backbone.config.num_layers):
        idle.norm_mean[layer] = state[f"batch_norms.{layer}.running_mean"]
        idle.norm_var[layer] = state[f"batch_norms.{layer}.running_var"]
    return _with_idle(run, backbone, task, idle)


def _idle_adapters(run: Run) -> TaskAdapters:
    """Their `up` is zero: nothing is subtracted."""
    return TaskAdapters(run.config.shape, rank=1).to(run.device)


def _with_idle(run: Run, backbone: Any, task: str, idle: TaskAdapters) -> UnifiedModel:
    return single_task_model(run, backbone, task, expert(run, task, idle.cpu().state_dict()))
