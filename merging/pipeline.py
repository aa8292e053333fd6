"""The stages of a run, each skipped if its result is there: fine-tune, merge, train adapters, assemble. Evaluation and release stand on these."""

from pathlib import Path

from torch import Tensor

from merging.alignment import align, set_statistics
from merging.config import fingerprint
from merging.finetuning import finetune
from merging.mergers.contract import MergeInputs
from merging.registry import merge
from merging.run import Piece, Run
from models.adapter import TaskAdapters
from models.backbone import Backbone, load_tensors, make_backbone
from models.router import RouterConfig
from models.unified import Expert, UnifiedModel

BASELINES = ("weight_average", "task_arithmetic")


def finetuned(run: Run, task: str) -> Piece:
    """The fine-tuned model of a task: state dict of a GraphClassifier."""
    settings = run.config.finetune_for(task)

    def make(checkpoint: Path) -> Piece:
        result = finetune(run.dataset(task), run.pretrained(), run.config.pretrained.backbone, settings, run.seed, checkpoint, run.device)
        return Piece(result.tensors, {**result.record, "settings": settings.model_dump()})

    return run.piece(f"finetuned/{task}", finetune_key(run, task), make)


def merged(run: Run, method: str) -> Piece:
    """The merged backbone by one method: state dict of a Backbone. The configured method has the configured scaling, any other its own default."""

    def make(_: Path) -> Piece:
        experts = {task: part(finetuned(run, task).tensors, "backbone.") for task in run.config.tasks}
        result = merge(method, MergeInputs(run.pretrained(), experts, _scaling(run, method)))
        return Piece(result.backbone, {"method": method, "scaling": result.scaling, "tasks": list(run.config.tasks)})

    return run.piece(f"merged/{method}", merge_key(run, method), make)


def configured_merge(run: Run) -> Piece:
    """The merged backbone that the configuration asks for."""
    return merged(run, run.config.merge.method)


def trained_adapters(run: Run, task: str) -> Piece:
    """The adapters of a task on the configured merged backbone, with their statistics: state dict of a TaskAdapters."""
    settings = run.config.alignment_for(task)

    def make(checkpoint: Path) -> Piece:
        dataset = run.dataset(task)
        teacher, student = finetuned_backbone(run, task), merged_backbone(run)
        result = align(dataset.graphs, dataset.split.train, teacher, student, settings, run.seed, checkpoint, run.device, task)
        return Piece(result.adapters.state_dict(), {**result.record, "settings": settings.model_dump()})

    return run.piece(f"adapters/{task}", adapter_key(run, task), make)


def experts(run: Run) -> dict[str, Expert]:
    """Adapters and fine-tuned heads of all tasks."""
    return {task: expert(run, task, adapters_from(run, trained_adapters(run, task).tensors)) for task in run.config.tasks}


def expert(run: Run, task: str, adapters: TaskAdapters) -> Expert:
    """A task's fine-tuned head behind the given adapters."""
    made = Expert(run.config.pretrained.backbone, adapters.rank, run.dataset(task).label_names)
    made.adapters = adapters
    load_tensors(made.head, part(finetuned(run, task).tensors, "head."), f"head of {task}")
    return made


def unified(run: Run) -> UnifiedModel:
    """G-Merging's model: the configured merged backbone with all adapters and heads."""
    return UnifiedModel(merged_backbone(run), experts(run), run.config.router).to(run.device)


def without_adapters(run: Run, task: str, method: str) -> UnifiedModel:
    """A baseline for one task: the fine-tuned model, or a merged backbone with that task's head, in the same form as `unified`.

    Merged backbones get BatchNorm statistics recomputed on the task's training molecules, as G-Merging does: the same footing.
    """
    config = run.config.pretrained.backbone
    none = TaskAdapters(config, rank=1).to(run.device)  # its `up` is zero: nothing is subtracted
    if method == "finetuned":
        backbone = finetuned_backbone(run, task)
        state = backbone.state_dict()
        for layer in range(config.num_layers):
            none.norm_mean[layer] = state[f"batch_norms.{layer}.running_mean"]
            none.norm_var[layer] = state[f"batch_norms.{layer}.running_var"]
    else:
        backbone = merged_backbone(run, method)
        dataset = run.dataset(task)
        set_statistics(none, backbone.to(run.device), dataset.graphs, dataset.split.train, run.device)
    return UnifiedModel(backbone, {task: expert(run, task, none)}, RouterConfig()).to(run.device)


def adapters_from(run: Run, tensors: dict[str, Tensor]) -> TaskAdapters:
    """A TaskAdapters filled from its state dict."""
    adapters = TaskAdapters(run.config.pretrained.backbone, run.config.alignment.rank)
    load_tensors(adapters, tensors, "adapters")
    return adapters


def merged_backbone(run: Run, method: str | None = None) -> Backbone:
    """The merged backbone by one method (None: the configured one), in evaluation mode."""
    return make_backbone(merged(run, method or run.config.merge.method).tensors, run.config.pretrained.backbone, "merged backbone")


def finetuned_backbone(run: Run, task: str) -> Backbone:
    """A task's fine-tuned backbone, in evaluation mode."""
    return make_backbone(part(finetuned(run, task).tensors, "backbone."), run.config.pretrained.backbone, f"backbone of {task}")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def finetune_key(run: Run, task: str) -> str:
    """What a fine-tuned model depends on: settings, seed, and the data itself."""
    data = run.config.dataset_for(task), run.dataset(task).source_sha256
    return fingerprint(run.config.pretrained, run.config.finetune_for(task), task, run.seed, *data)


def _scaling(run: Run, method: str) -> float | None:
    return run.config.merge.scaling if method == run.config.merge.method else None


def merge_key(run: Run, method: str) -> str:
    """What a merged backbone depends on."""
    return fingerprint(method, str(_scaling(run, method)), *(finetune_key(run, task) for task in run.config.tasks))


def adapter_key(run: Run, task: str) -> str:
    """What a task's adapters depend on."""
    return fingerprint(run.config.alignment_for(task), task, run.seed, merge_key(run, run.config.merge.method))
