"""A description of an artifact, for people."""

from pathlib import Path

from merging.studies.markdown import METRIC_NAMES
from merging.targets.metrics import by_task
from models.artifact import MANIFEST, load_parts
from models.experts.unified import DEFAULT_ROUTING
from models.manifest import Manifest
from models.task import TaskInfo

_COUNTED = {
    "multilabel": ("label", "labels"),
    "multiclass": ("class", "classes"),
    "regression": ("number", "numbers"),
    "energy_and_forces": ("energy", ""),
}


def describe(folder: Path) -> str:
    """Verify an artifact, and describe its tasks, metrics and number of parameters beside that of K
    separate models.

    Returns:
        Lines of text.

    Raises:
        ArtifactError: the artifact is damaged or incomplete.
    """
    artifact = load_parts(folder)
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
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    unknown = ", ".join(map(ascii, sorted(found - {MANIFEST, *manifest.files})))
    scores, column = _scores(manifest), max(10, *map(len, manifest.tasks))
    rows = []
    for task, info in manifest.tasks.items():
        counted = f"{len(info.labels):4} {_COUNTED[info.target][len(info.labels) > 1]:7}"
        about = ": ".join(filter(None, (info.description, _named(info))))
        score = f"  {scores[task]}" if task in scores else ""
        rows.append(f"  {task:{column}} {counted}{score}  {about}".rstrip())
    return "\n".join(
        [
            (
                f"{manifest.name} {manifest.version}, format {manifest.format_version}, made"
                f" {manifest.created}, verified, sha256 {artifact.digest[:12]}"
            ),
            f"takes: {manifest.input.kind}",
            (f"backbone: {shape.kind}, {layers} layers x {width}, {backbone:,} parameters"),
            (
                f"adapters: rank {manifest.rank}, {len(artifact.experts)} experts, {adapters:,}"
                " parameters"
            ),
            (
                f"heads, statistics and whatever is a task's own {task_specific:,}; all {merged:,},"
                f" {merged / separate:.2f} of {separate:,} for separate models"
            ),
            "tasks:",
            *rows,
            *([f"files that are not its own, which nothing reads: {unknown}"] if unknown else []),
        ]
    )


def _named(info: TaskInfo) -> str:
    """The classes of a task, or its numbers with their units; of independent labels nothing."""
    if info.target == "multilabel":
        return ""
    if info.target == "energy_and_forces":
        return "energy [eV], forces [eV/Angstrom]"
    units = {label: f" [{unit}]" for label, unit in info.unit_of.items()}
    return ", ".join(f"{label}{units.get(label, '')}" for label in info.labels)


def _scores(manifest: Manifest) -> dict[str, str]:
    """By task its test metric with the default routing, of the tasks that were added later too."""
    found = by_task(manifest.metrics.get(f"gmerging_{DEFAULT_ROUTING}", {}))
    for task, own in manifest.metrics.get("added", {}).items():
        found[task] = own["metric"], own["with_adapters"]
    return {task: f"{METRIC_NAMES[metric]} {value:.3f}" for task, (metric, value) in found.items()}
