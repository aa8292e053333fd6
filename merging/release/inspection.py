"""Description of an artifact, for people and for programs."""

from pathlib import Path
from typing import Any

from torch import nn

from merging.studies.markdown import METRIC_NAMES
from merging.targets.metrics import scores_by_task
from models.artifact import MANIFEST, ArtifactComponents, load_components, read_manifest
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


def inspect(folder: Path) -> dict[str, Any]:
    """Verify an artifact, and return its identity, tasks with their test scores, and numbers of
    parameters, beside those of separate models of the tasks, as JSON can hold them.

    Raises:
        ArtifactError: the artifact is damaged or incomplete.
    """
    artifact = load_components(folder)
    manifest, shape = artifact.manifest, artifact.manifest.backbone
    layers, width = shape.size
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    scores = _scores(manifest)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "format_version": manifest.format_version,
        "created": manifest.created,
        "digest": artifact.digest,
        "takes": manifest.input.kind,
        "backbone": {"kind": shape.kind, "layers": layers, "width": width},
        "rank": manifest.rank,
        "parameters": _parameters(artifact),
        "streams": {name: info.model_dump(mode="json") for name, info in manifest.streams.items()},
        "tasks": {
            task: info.model_dump(mode="json") | {"score": scores.get(task)}
            for task, info in manifest.tasks.items()
        },
        "surplus_files": sorted(files - {MANIFEST, *manifest.files}),
    }


def describe(folder: Path) -> str:
    """Return what `inspect` finds as several lines of text. Raises as it does."""
    manifest, found = read_manifest(folder)[0], inspect(folder)
    backbone, sizes = found["backbone"], found["parameters"]
    width = max(10, *map(len, manifest.tasks))
    rows = []
    for task, info in manifest.tasks.items():
        count = f"{len(info.labels):4} {_COUNTED[info.target][len(info.labels) > 1]:7}"
        about = ": ".join(filter(None, (info.description, _named(info))))
        score = found["tasks"][task]["score"]
        said = f"  {METRIC_NAMES[score['metric']]} {score['value']:.3f}" if score else ""
        rows.append(f"  {task:{width}} {count}{said}  {about}".rstrip())
    identity = f"{found['name']} {found['version']}, format {found['format_version']}"
    experts, merged, separate = len(found["tasks"]), sizes["all"], sizes["separate_models"]
    shares = f"all {merged:,}, {merged / separate:.2f} of {separate:,} for separate models"
    shape = f"{backbone['kind']}, {backbone['layers']} layers x {backbone['width']}"
    lines = [
        f"{identity}, made {found['created']}, verified, sha256 {found['digest'][:12]}",
        f"takes: {found['takes']}",
        f"backbone: {shape}, {sizes['backbone']:,} parameters",
        f"adapters: rank {found['rank']}, {experts} experts, {sizes['adapters']:,} parameters",
        *map(_stream_line, manifest.streams.items()),
        f"heads, statistics and other weights of single tasks {sizes['task_specific']:,}; {shares}",
        "tasks:",
        *rows,
    ]
    if found["surplus_files"]:
        unknown = ", ".join(map(ascii, found["surplus_files"]))
        lines.append(f"files that are not in the manifest, which nothing reads: {unknown}")
    return "\n".join(lines)


def _parameters(artifact: ArtifactComponents) -> dict[str, int]:
    """Count the parameters of the merged model, and of separate models of its tasks."""
    backbone = sum(parameter.numel() for parameter in artifact.backbone.parameters())
    modules = [*artifact.experts.values(), *_stream_modules(artifact).values()]
    sizes = [(key, value.numel()) for m in modules for key, value in m.state_dict().items()]
    adapters = sum(size for key, size in sizes if key.startswith(_ADAPTERS))
    task_specific = sum(size for _, size in sizes) - adapters
    return {
        "backbone": backbone,
        "adapters": adapters,
        "task_specific": task_specific,
        "all": backbone + adapters + task_specific,
        "separate_models": len(artifact.experts) * backbone + task_specific,
    }


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


def _scores(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return metric and test score of every task with the default routing, added tasks included."""
    released = f"gmerging_{DEFAULT_ROUTING}"
    found = scores_by_task(manifest.metrics.get(released) or manifest.metrics.get("one_pass", {}))
    for task, own in manifest.metrics.get("added", {}).items():
        found[task] = own["metric"], own["with_adapters"]
    return {task: {"metric": metric, "value": value} for task, (metric, value) in found.items()}
