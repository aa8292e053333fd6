"""What is in an artifact, for people."""

from pathlib import Path

from torch import nn

from models.artifact import load_artifact
from models.unified import DEFAULT_ROUTING


def describe(folder: Path) -> str:
    """Verify an artifact and describe it: tasks, metrics and parameters against K separate models. Raises ArtifactError."""
    artifact = load_artifact(folder)
    manifest, model = artifact.manifest, artifact.model
    backbone, heads = _count(model.backbone), _count(model.heads)
    site = 2 * manifest.backbone.hidden_dim * manifest.rank
    adapters = site * len(model.site_names) * len(model.tasks)
    statistics = model.bank.norm_mean.numel() + model.bank.norm_var.numel()
    separate = len(model.tasks) * backbone + heads + statistics
    merged = backbone + heads + adapters + statistics
    scores = manifest.metrics.get(f"gmerging_{DEFAULT_ROUTING}", {}).get("roc_auc", {})
    rows = []
    for task, info in manifest.tasks.items():
        score = f"ROC-AUC {scores[task]:.3f}  " if task in scores else ""
        rows.append(f"  {task:10} {len(info.labels):4} labels  {score}{info.description}")
    return "\n".join(
        [
            f"{manifest.name} {manifest.version}, format {manifest.format_version}, made {manifest.created}, verified, sha256 {artifact.digest[:12]}",
            f"backbone: {manifest.backbone.kind}, {manifest.backbone.num_layers} layers x {manifest.backbone.hidden_dim}, {backbone:,} parameters",
            f"adapters: rank {manifest.rank}, {len(model.site_names)} sites x {len(model.tasks)} experts x {site:,} = {adapters:,} parameters",
            f"heads {heads:,}, BatchNorm statistics {statistics:,}; all {merged:,}, {merged / separate:.2f} of {separate:,} for separate models",
            "tasks:",
            *rows,
        ]
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
