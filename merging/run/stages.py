"""The stages of a run, each skipped if its result is there: fine-tune, merge, train adapters,
assemble. Evaluation and release stand on these."""

import time
from pathlib import Path

import torch
from torch import Tensor

from merging.config.base import fingerprint
from merging.mergers.base import Calibration, MergeInputs, MergeResult
from merging.mergers.registry import merge, merger_spec
from merging.run.run import Run
from merging.run.store import Piece
from merging.training.alignment import align, set_statistics
from merging.training.finetuning import finetune
from merging.training.losses import LabelScale
from merging.training.metrics import batches
from models.data.smiles import READING_RULE
from models.errors import ConfigError
from models.experts.adapter import TaskAdapters
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from models.networks.hu2020 import Backbone, make_backbone
from models.state_dict import load_tensors, sub_state

CALIBRATION_MOLECULES = 256
CALIBRATION_BATCH = 32


def finetuned(run: Run, task: str) -> Piece:
    """The fine-tuned model of a task: state dict of a GraphClassifier."""
    settings = run.config.finetune_for(task)

    def make(checkpoint: Path) -> Piece:
        result = finetune(
            run.dataset(task),
            run.pretrained(),
            run.config.pretrained.backbone,
            settings,
            run.seed,
            checkpoint,
            run.device,
        )
        own = {"settings": settings.model_dump(), "data": run.dataset(task).record}
        return Piece(result.tensors, result.record | own)

    return run.piece(f"finetuned/{task}", finetune_key(run, task), make)


def merged(run: Run) -> MergeResult:
    """The merged backbone that the configuration asks for."""
    method, options = run.config.merge.method, run.config.merge.options

    def make(_: Path) -> Piece:
        experts = {
            task: sub_state(finetuned(run, task).tensors, "backbone.") for task in run.config.tasks
        }
        seen = (
            {task: calibration(run, task) for task in run.config.tasks}
            if merger_spec(method).calibrated
            else {}
        )
        start = time.perf_counter()
        result = merge(
            method,
            MergeInputs(run.pretrained(), experts, run.config.pretrained.backbone, seen, run.seed),
            options,
        )
        if result.head_orders:
            raise ConfigError(
                f"got merge method {method!r}, which reorders hidden units, expected one that keeps"
                " the order of heads and teachers"
            )
        tensors = {
            f"{task}/{key}": value
            for task, state in {"": result.backbone, **result.by_task}.items()
            for key, value in state.items()
        }
        seconds = round(time.perf_counter() - start, 2)
        return Piece(
            tensors,
            {
                "method": method,
                "options": options,
                "tasks": list(run.config.tasks),
                **result.record,
                "seconds": seconds,
            },
        )

    piece = run.piece(f"merged/{method}", merge_key(run), make)
    by_task = {
        task: state for task in run.config.tasks if (state := sub_state(piece.tensors, f"{task}/"))
    }
    return MergeResult(sub_state(piece.tensors, "/"), by_task, piece.record)


def calibration(run: Run, task: str) -> Calibration:
    """What a merger may see of a task: its head, and some training molecules without their
    labels."""
    dataset = run.dataset(task)
    generator = torch.Generator().manual_seed(run.seed)
    chosen = dataset.split.train[
        torch.randperm(len(dataset.split.train), generator=generator)[:CALIBRATION_MOLECULES]
    ]
    parts = tuple(batch for _, batch in batches(dataset.graphs, chosen, CALIBRATION_BATCH))
    scale = LabelScale.of(dataset.info, [dataset.labels[dataset.split.train]])
    head = scale.unfolded(sub_state(finetuned(run, task).tensors, "head."))
    return Calibration(head, parts, target=dataset.target)


def trained_adapters(run: Run, task: str) -> Piece:
    """The adapters of a task on the configured merged backbone, with their statistics: state dict
    of a TaskAdapters."""
    return run.piece(
        f"adapters/{task}",
        adapter_key(run, task),
        lambda checkpoint: aligned(run, task, merged_backbone(run, task), checkpoint),
    )


def aligned(run: Run, task: str, student: Backbone, checkpoint: Path) -> Piece:
    """Train a task's adapters on a backbone, which is frozen and moved to the run's device."""
    dataset, settings, teacher = (
        run.dataset(task),
        run.config.alignment_for(task),
        finetuned_backbone(run, task),
    )
    result = align(
        dataset.graphs,
        dataset.split.train,
        teacher,
        student,
        settings,
        run.seed,
        checkpoint,
        run.device,
        task,
    )
    return Piece(result.adapters.state_dict(), {**result.record, "settings": settings.model_dump()})


def experts(run: Run) -> dict[str, Expert]:
    """Adapters and fine-tuned heads of all tasks."""
    return {
        task: expert(run, task, adapters_from(run, trained_adapters(run, task).tensors))
        for task in run.config.tasks
    }


def expert(run: Run, task: str, adapters: TaskAdapters) -> Expert:
    """A task's fine-tuned head behind the given adapters."""
    info = run.dataset(task).info
    shape = run.config.pretrained.backbone
    made = Expert(shape, adapters.rank, info.labels, info.level, info.target)
    made.adapters = adapters
    load_tensors(made.head, sub_state(finetuned(run, task).tensors, "head."), f"head of {task}")
    return made


def unified(run: Run) -> UnifiedModel:
    """G-Merging's model: the configured merged backbone with all adapters and heads. Raises
    ConfigError (see `shared_backbone`)."""
    return UnifiedModel(shared_backbone(run), experts(run), run.config.router).to(run.device)


def adapted(run: Run, task: str) -> UnifiedModel:
    """One task alone: the merged backbone (the task's own version, if the merger gives one) with
    its adapters."""
    own = expert(run, task, adapters_from(run, trained_adapters(run, task).tensors))
    return alone(run, merged_backbone(run, task), task, own)


def without_adapters(run: Run, task: str) -> UnifiedModel:
    """One task alone: the merged backbone with the task's head."""
    return bare(run, merged_backbone(run, task), task)


def alone(run: Run, backbone: Backbone, task: str, own: Expert) -> UnifiedModel:
    """A model of one task, in the same form as `unified`: then all methods are measured by the same
    code."""
    return UnifiedModel(backbone, {task: own}, RouterConfig()).to(run.device)


def bare(run: Run, backbone: Backbone, task: str) -> UnifiedModel:
    """A backbone with a task's fine-tuned head and no adapters.

    BatchNorm statistics are recomputed on the task's training molecules, as G-Merging does: the
    same footing.
    """
    none, dataset = _no_adapters(run), run.dataset(task)
    set_statistics(none, backbone.to(run.device), dataset.graphs, dataset.split.train, run.device)
    return alone(run, backbone, task, expert(run, task, none))


def finetuned_alone(run: Run, task: str, backbone_of: str | None = None) -> UnifiedModel:
    """The fine-tuned model of a task alone; or its head on the backbone of another task (the
    backbone-swap matrix)."""
    backbone, none = finetuned_backbone(run, backbone_of or task), _no_adapters(run)
    state = backbone.state_dict()
    for layer in range(backbone.config.num_layers):
        none.norm_mean[layer] = state[f"batch_norms.{layer}.running_mean"]
        none.norm_var[layer] = state[f"batch_norms.{layer}.running_var"]
    return alone(run, backbone, task, expert(run, task, none))


def _no_adapters(run: Run) -> TaskAdapters:
    # its `up` is zero: nothing is subtracted
    return TaskAdapters(run.config.pretrained.backbone, rank=1).to(run.device)


def adapters_from(run: Run, tensors: dict[str, Tensor]) -> TaskAdapters:
    """A TaskAdapters filled from its state dict."""
    adapters = TaskAdapters(run.config.pretrained.backbone, run.config.alignment.rank)
    load_tensors(adapters, tensors, "adapters")
    return adapters


def merged_backbone(run: Run, task: str | None = None) -> Backbone:
    """The merged backbone, or a task's own version of it where the merger gives one; in evaluation
    mode."""
    result = merged(run)
    tensors = result.backbone if task is None else result.backbone_for(task)
    return make_backbone(tensors, run.config.pretrained.backbone, "merged backbone")


def shared_backbone(run: Run) -> Backbone:
    """The merged backbone that all tasks share, in evaluation mode.

    Raises:
        ConfigError: the configured merger gives each task its own.
    """
    if merged(run).by_task:
        raise ConfigError(
            f"got merge method {run.config.merge.method!r}, which gives each task its own backbone,"
            " expected one that gives one for all"
        )
    return merged_backbone(run)


def finetuned_backbone(run: Run, task: str) -> Backbone:
    """A task's fine-tuned backbone, in evaluation mode."""
    return make_backbone(
        sub_state(finetuned(run, task).tensors, "backbone."),
        run.config.pretrained.backbone,
        f"backbone of {task}",
    )


def finetune_key(run: Run, task: str) -> str:
    """What a fine-tuned model depends on: settings, seed, checkpoint and data themselves, and how
    molecules are read."""
    data = run.config.dataset_for(task), run.dataset(task).source_sha256, READING_RULE
    return fingerprint(run.start_key(), run.config.finetune_for(task), task, run.seed, *data)


def merge_key(run: Run) -> str:
    """What a merged backbone depends on."""
    return fingerprint(
        run.config.merge, run.seed, *(finetune_key(run, task) for task in run.config.tasks)
    )


def adapter_key(run: Run, task: str) -> str:
    """What a task's adapters depend on."""
    return fingerprint(run.config.alignment_for(task), task, run.seed, merge_key(run))


def unified_key(run: Run) -> str:
    """What the unified model depends on."""
    return fingerprint(run.config.router, *(adapter_key(run, task) for task in run.config.tasks))
