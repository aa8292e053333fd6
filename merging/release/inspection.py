"""Human-readable description of an artifact."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from merging.studies.markdown import METRIC_NAMES
from merging.targets.metrics import scores_by_task
from models.artifact import MANIFEST, load_components
from models.experts.unified import DEFAULT_ROUTING
from models.manifest import Manifest
from models.task import TaskInfo

_COUNTED = {
    "multilabel": ("label", "labels"),
    "multiclass": ("class", "classes"),
    "regression": ("number", "numbers"),
    "energy_and_forces": ("energy", ""),
}
_ADAPTER_TENSORS = ("adapters.sites.", "sites.", "graph.")
"""How the names of an adapter's tensors begin: of a task, of a shared stream, of a task on one."""


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
    streams = manifest.family.streams
    shared = streams.collect(artifact.experts) if streams else {}
    of_experts, of_streams = _sizes(artifact.experts), _sizes(shared)
    adapters = sum(
        size for key, size in of_experts + of_streams if key.startswith(_ADAPTER_TENSORS)
    )
    statistics = sum(size for key, size in of_streams if not key.startswith(_ADAPTER_TENSORS))
    total = sum(size for _, size in of_experts + of_streams)
    task_specific = total - adapters - statistics
    merged = backbone + total
    separate = len(artifact.experts) * (backbone + statistics) + task_specific
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    unknown = ", ".join(map(ascii, sorted(files - {MANIFEST, *manifest.files})))
    scores, width_of_names = _scores(manifest), max(10, *map(len, manifest.tasks))
    rows = []
    for task, info in manifest.tasks.items():
        count = f"{len(info.labels):4} {_COUNTED[info.target][len(info.labels) > 1]:7}"
        about = ": ".join(filter(None, (info.description, _named(info))))
        score = f"  {scores[task]}" if task in scores else ""
        rows.append(f"  {task:{width_of_names}} {count}{score}  {about}".rstrip())
    identity = f"{manifest.name} {manifest.version}, format {manifest.format_version}"
    ranks = {stream.graph_rank for stream in manifest.streams.values()}
    ranks |= {manifest.rank} if len(manifest.stream_of) < len(manifest.tasks) else set()
    rank, experts = ", ".join(map(str, sorted(ranks))), len(artifact.experts)
    shares = f"all {merged:,}, {merged / separate:.2f} of {separate:,} for separate models"
    lines = [
        f"{identity}, made {manifest.created}, verified, sha256 {artifact.digest[:12]}",
        f"takes: {manifest.input.kind}",
        f"backbone: {shape.kind}, {layers} layers x {width}, {backbone:,} parameters",
        f"adapters: rank {rank}, {experts} experts, {adapters:,} parameters",
        *(
            f"stream {name}: {', '.join(stream.tasks)} in one pass"
            for name, stream in manifest.streams.items()
        ),
        f"heads, statistics and other weights of single tasks {task_specific:,}; {shares}",
        "tasks:",
        *rows,
    ]
    if unknown:
        lines.append(f"files that are not in the manifest, which nothing reads: {unknown}")
    return "\n".join(lines)


def _sizes(modules: Mapping[str, nn.Module]) -> list[tuple[str, int]]:
    """Return name and size of all tensors of the modules."""
    return [
        (key, value.numel())
        for module in modules.values()
        for key, value in module.state_dict().items()
    ]


def _named(info: TaskInfo) -> str:
    """Return the classes of a task, or its values with units; nothing for independent labels."""
    if info.target == "multilabel":
        return ""
    if info.target == "energy_and_forces":
        return "energy [eV], forces [eV/Angstrom]"
    units = {label: f" [{unit}]" for label, unit in info.unit_of.items()}
    return ", ".join(f"{label}{units.get(label, '')}" for label in info.labels)


def _scores(manifest: Manifest) -> dict[str, str]:
    """Return the test metric of every task with the default routing, added tasks included."""
    released = "one_pass" if manifest.streams else f"gmerging_{DEFAULT_ROUTING}"
    found = scores_by_task(manifest.metrics.get(released, {}))
    for task, own in manifest.metrics.get("added", {}).items():
        found[task] = own["metric"], own["with_adapters"]
    return {task: f"{METRIC_NAMES[metric]} {value:.3f}" for task, (metric, value) in found.items()}
