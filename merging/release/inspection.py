"""What is in an artifact, for people."""

from pathlib import Path

from merging.studies.markdown import METRIC_NAMES
from merging.training.metrics import by_task
from models.artifact import MANIFEST, ArtifactParts, load_parts
from models.experts.unified import DEFAULT_ROUTING


def describe(folder: Path) -> str:
    """Verify an artifact and describe it: tasks, metrics and parameters against K separate models.
    Raises ArtifactError."""
    parts = load_parts(folder)
    manifest, shape = parts.manifest, parts.manifest.backbone
    layers, width = shape.size
    backbone = sum(parameter.numel() for parameter in parts.backbone.parameters())
    brought = {
        key: sum(
            each.state_dict()[key].numel()
            for each in parts.experts.values()
            if key in each.state_dict()
        )
        for key in _keys(parts)
    }
    adapters = sum(count for key, count in brought.items() if key.startswith("adapters.sites."))
    own = sum(brought.values()) - adapters
    merged, separate = backbone + adapters + own, len(parts.experts) * backbone + own
    own_files = {MANIFEST, *manifest.files}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strangers = ", ".join(map(ascii, sorted(found - own_files)))
    scores = by_task(manifest.metrics.get(f"gmerging_{DEFAULT_ROUTING}", {}))
    rows = []
    for task, info in manifest.tasks.items():
        metric, value = scores.get(task, ("", 0.0))
        score = f"{METRIC_NAMES[metric]} {value:.3f}  " if metric else ""
        rows.append(f"  {task:10} {len(info.labels):4} labels  {score}{info.description}")
    return "\n".join(
        [
            (
                f"{manifest.name} {manifest.version}, format {manifest.format_version}, made"
                f" {manifest.created}, verified, sha256 {parts.digest[:12]}"
            ),
            f"takes: {manifest.input.kind}",
            (f"backbone: {shape.kind}, {layers} layers x {width}, {backbone:,} parameters"),
            (
                f"adapters: rank {manifest.rank}, {len(parts.experts)} experts, {adapters:,}"
                " parameters"
            ),
            (
                f"heads, statistics and whatever is a task's own {own:,}; all {merged:,},"
                f" {merged / separate:.2f} of {separate:,} for separate models"
            ),
            "tasks:",
            *rows,
            *(
                [f"files that are not its own, which nothing reads: {strangers}"]
                if strangers
                else []
            ),
        ]
    )


def _keys(parts: ArtifactParts) -> list[str]:
    return sorted({key for each in parts.experts.values() for key in each.state_dict()})
