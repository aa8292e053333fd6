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
from models.backbone import Backbone, load_tensors
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


def merged(run: Run, method: str, scaling: float | None = None) -> Piece:
    """The merged backbone by one method: state dict of a Backbone."""

    def make(_: Path) -> Piece:
        experts = {task: part(finetuned(run, task).tensors, "backbone.") for task in run.config.tasks}
        result = merge(method, MergeInputs(run.pretrained(), experts, scaling))
        return Piece(result.backbone, {"method": method, "scaling": result.scaling, "tasks": list(run.config.tasks)})

    return run.piece(f"merged/{method}", merge_key(run, method, scaling), make)


def configured_merge(run: Run) -> Piece:
    """The merged backbone that the configuration asks for."""
    return merged(run, run.config.merge.method, run.config.merge.scaling)


def trained_adapters(run: Run, task: str) -> Piece:
    """The adapters of a task on the configured merged backbone, with their statistics: state dict of a TaskAdapters."""
    settings = run.config.alignment_for(task)

    def make(checkpoint: Path) -> Piece:
        dataset = run.dataset(task)
        teacher = load_backbone_state(run, part(finetuned(run, task).tensors, "backbone."))
        backbone = load_backbone_state(run, configured_merge(run).tensors)
        result = align(dataset.graphs, dataset.split.train, teacher, backbone, settings, run.seed, checkpoint, run.device, task)
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


def unified(run: Run, router: RouterConfig | None = None) -> UnifiedModel:
    """G-Merging's model: the configured merged backbone with all adapters and heads."""
    return UnifiedModel(load_backbone_state(run, configured_merge(run).tensors), experts(run), router or run.config.router).to(run.device)


def without_adapters(run: Run, task: str, method: str) -> UnifiedModel:
    """A baseline for one task: the fine-tuned model, or a merged backbone with that task's head, in the same form as `unified`.

    Merged backbones get BatchNorm statistics recomputed on the task's training molecules, as G-Merging does: the same footing.
    """
    config = run.config.pretrained.backbone
    none = TaskAdapters(config, rank=1).to(run.device)  # its `up` is zero: nothing is subtracted
    if method == "finetuned":
        state = part(finetuned(run, task).tensors, "backbone.")
        for layer in range(config.num_layers):
            none.norm_mean[layer] = state[f"batch_norms.{layer}.running_mean"]
            none.norm_var[layer] = state[f"batch_norms.{layer}.running_var"]
        backbone = load_backbone_state(run, state)
    else:
        backbone = load_backbone_state(run, merged(run, method, run.config.merge.scaling if method == run.config.merge.method else None).tensors)
        dataset = run.dataset(task)
        set_statistics(none, backbone.to(run.device), dataset.graphs, dataset.split.train, run.device)
    return UnifiedModel(backbone, {task: expert(run, task, none)}, RouterConfig()).to(run.device)


def adapters_from(run: Run, tensors: dict[str, Tensor]) -> TaskAdapters:
    """A TaskAdapters filled from its state dict."""
    adapters = TaskAdapters(run.config.pretrained.backbone, run.config.alignment.rank)
    load_tensors(adapters, tensors, "adapters")
    return adapters


def load_backbone_state(run: Run, state: dict[str, Tensor]) -> Backbone:
    """A backbone of the run's shape, in evaluation mode."""
    backbone = Backbone(run.config.pretrained.backbone)
    load_tensors(backbone, state, "backbone")
    return backbone.eval()


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def finetune_key(run: Run, task: str) -> str:
    """What a fine-tuned model depends on."""
    return fingerprint(run.config.pretrained, run.config.finetune_for(task), task, run.seed)


def merge_key(run: Run, method: str, scaling: float | None) -> str:
    """What a merged backbone depends on."""
    return fingerprint(method, str(scaling), *(finetune_key(run, task) for task in run.config.tasks))


def adapter_key(run: Run, task: str) -> str:
    """What a task's adapters depend on."""
    merge_section = run.config.merge
    return fingerprint(run.config.alignment_for(task), task, run.seed, merge_key(run, merge_section.method, merge_section.scaling))
