"""Human-readable description of an artifact."""

from pathlib import Path

from merging.studies.markdown import METRIC_NAMES
from merging.targets.metrics import scores_by_task
from models.artifact import MANIFEST, load_components
from models.experts.unified import DEFAULT_ROUTING


def describe(folder: Path) -> str:
    """Verify an artifact, and describe its tasks, metrics and number of parameters, compared with
    separate models of the tasks.

    Returns:
        Several lines of text.

    Raises:
        ArtifactError: the artifact is damaged or incomplete.
    """
    artifact = load_components(folder)
    manifest, shape = artifact.manifest, artifact.manifest.backbone
    layers, width = shape.size
    backbone = sum(parameter.numel() for parameter in artifact.backbone.parameters())
    sizes = [
        (key, value.numel())
        for expert in artifact.experts.values()
        for key, value in expert.state_dict().items()
    ]
    adapters = sum(size for key, size in sizes if key.startswith("adapters.sites."))
    task_specific = sum(size for _, size in sizes) - adapters
    merged = backbone + adapters + task_specific
    separate = len(artifact.experts) * backbone + task_specific
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    unknown = ", ".join(map(ascii, sorted(files - {MANIFEST, *manifest.files})))
    scores = scores_by_task(manifest.metrics.get(f"gmerging_{DEFAULT_ROUTING}", {}))
    rows = []
    for task, info in manifest.tasks.items():
        metric, value = scores.get(task, ("", 0.0))
        score = f"{METRIC_NAMES[metric]} {value:.3f}  " if metric else ""
        rows.append(f"  {task:10} {len(info.labels):4} labels  {score}{info.description}")
    identity = f"{manifest.name} {manifest.version}, format {manifest.format_version}"
    rank, experts = manifest.rank, len(artifact.experts)
    shares = f"all {merged:,}, {merged / separate:.2f} of {separate:,} for separate models"
    lines = [
        f"{identity}, made {manifest.created}, verified, sha256 {artifact.digest[:12]}",
        f"takes: {manifest.input.kind}",
        f"backbone: {shape.kind}, {layers} layers x {width}, {backbone:,} parameters",
        f"adapters: rank {rank}, {experts} experts, {adapters:,} parameters",
        f"heads, statistics and other weights of single tasks {task_specific:,}; {shares}",
        "tasks:",
        *rows,
    ]
    if unknown:
        lines.append(f"files that are not in the manifest, which nothing reads: {unknown}")
    return "\n".join(lines)
