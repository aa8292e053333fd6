"""Human-readable description of an artifact."""

from pathlib import Path

from torch import nn

from merging.studies.markdown import METRIC_NAMES
from merging.targets.metrics import scores_by_task
from models.artifact import MANIFEST, ArtifactComponents, load_components
from models.experts.unified import DEFAULT_ROUTING
from models.manifest import Manifest, StreamInfo
from models.task import TaskInfo

_ADAPTERS = ("adapters.sites.", "graph.", "sites.", "correction.")
"""Starts of the names of adapters' tensors: of a task with a stream of its own, of one that shares
its stream, of such a stream, and of corrections of a D-MPNN."""
_COUNTED = {
    "multilabel": ("label", "labels"),
    "multiclass": ("class", "classes"),
    "regression": ("number", "numbers"),
    "energy_and_forces": ("energy", ""),
}


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
    streams = _stream_modules(artifact)
    sizes += [(key, v.numel()) for s in streams.values() for key, v in s.state_dict().items()]
    adapters = sum(size for key, size in sizes if key.startswith(_ADAPTERS))
    task_specific = sum(size for _, size in sizes) - adapters
    merged = backbone + adapters + task_specific
    separate = len(artifact.experts) * backbone + task_specific
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
    rank, experts = manifest.rank, len(artifact.experts)
    shares = f"all {merged:,}, {merged / separate:.2f} of {separate:,} for separate models"
    lines = [
        f"{identity}, made {manifest.created}, verified, sha256 {artifact.digest[:12]}",
        f"takes: {manifest.input.kind}",
        f"backbone: {shape.kind}, {layers} layers x {width}, {backbone:,} parameters",
        f"adapters: rank {rank}, {experts} experts, {adapters:,} parameters",
        *map(_stream_line, manifest.streams.items()),
        f"heads, statistics and other weights of single tasks {task_specific:,}; {shares}",
        "tasks:",
        *rows,
    ]
    if unknown:
        lines.append(f"files that are not in the manifest, which nothing reads: {unknown}")
    return "\n".join(lines)


def _stream_modules(artifact: ArtifactComponents) -> dict[str, nn.Module]:
    """Return the streams that tasks share, by name."""
    modules = artifact.manifest.family.streams
    return {} if modules is None else modules.collect(artifact.experts)


def _stream_line(stream: tuple[str, StreamInfo]) -> str:
    name, info = stream
    nodes = f"node adapters of rank {info.rank}" if info.rank else "no node adapters"
    count = f"{len(info.tasks)} task" + "s" * (len(info.tasks) > 1)
    return f"stream {name}: {count}, {nodes}, graph adapters of rank {info.graph_rank}"


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
    released = f"gmerging_{DEFAULT_ROUTING}"
    found = scores_by_task(manifest.metrics.get(released) or manifest.metrics.get("one_pass", {}))
    for task, own in manifest.metrics.get("added", {}).items():
        found[task] = own["metric"], own["with_adapters"]
    return {task: f"{METRIC_NAMES[metric]} {value:.3f}" for task, (metric, value) in found.items()}
