"""The merged model on disk: one folder with `manifest.json`, `backbone.safetensors` and `tasks/<task>.safetensors`.

The manifest names every file with its sha256, so that an artifact is either loaded whole and unaltered or refused. There is no pickle in it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from models.backbone import Backbone, BackboneConfig, load_tensors
from models.errors import ArtifactError, CheckpointError
from models.featurize import READING_RULE
from models.force_field import ForceField, ForceFieldConfig, ForceFieldExpert, MergedForceField
from models.graph_network import GraphNetwork, GraphNetworkConfig
from models.inputs import AtomsInput, FeatureInput, InputSchema, MoleculeInput
from models.router import RouterConfig
from models.task import TaskInfo
from models.unified import Expert, UnifiedModel, select_tasks

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BACKBONE = "backbone.safetensors"
CARD = "README.md"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


NetworkConfig = Annotated[BackboneConfig | GraphNetworkConfig | ForceFieldConfig, Field(discriminator="kind")]
Network = Backbone | GraphNetwork | ForceField
Member = Expert | ForceFieldExpert
"""What a task brings to a network."""
_TAKES: dict[type[BaseModel], type[BaseModel]] = {
    MoleculeInput: BackboneConfig,
    FeatureInput: GraphNetworkConfig,
    AtomsInput: ForceFieldConfig,
}


class Manifest(BaseModel):
    """What an artifact is and where it came from.

    Attributes:
        format_version: of this file format.
        name, version: of the model.
        created: UTC, ISO 8601.
        input: what the model takes.
        backbone, rank, router: shape and options; rank 0: there are no adapters.
        tasks: in the order of the experts.
        nearest: by task, other tasks whose experts the router is likely to find near, nearest first (`models.screening`). Empty: not known.
        provenance: configuration, seed, library versions and checksums of what it was made from.
        metrics: what was measured when it was made.
        files: sha256 of every other file, by path inside the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    name: str
    version: str
    created: str
    input: InputSchema = MoleculeInput()
    backbone: NetworkConfig
    rank: int = Field(ge=0)
    router: RouterConfig
    tasks: dict[str, TaskInfo] = Field(min_length=1)
    nearest: dict[str, tuple[str, ...]] = {}
    provenance: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        bad = [name for name in (self.name, *self.tasks) if not _NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"got names {bad}, expected lower-case letters, digits, '_' and '-'")
        return self

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if not isinstance(self.backbone, _TAKES[type(self.input)]):
            raise ValueError(f"input: got kind {self.input.kind!r} for a backbone of kind {self.backbone.kind!r}, which takes something else")
        by_task = {"graph": "num_features", "atoms": "elements"}.get(self.input.kind)
        if by_task and getattr(self.input, by_task).keys() != self.tasks.keys():
            raise ValueError(f"input.{by_task}: got entries for {list(getattr(self.input, by_task))!a}, expected one for each task")
        return self

    @model_validator(mode="after")
    def _check_nearest(self) -> Self:
        if self.nearest and self.nearest.keys() != self.tasks.keys():
            raise ValueError(f"nearest: got entries for {list(self.nearest)!a}, expected one for each task, or none at all")
        for task, others in self.nearest.items():
            if len({task, *others}) <= len(others) or not self.tasks.keys() >= set(others):
                raise ValueError(f"nearest: got {others!a} for {task}, expected other tasks of the manifest, each once")
        return self


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        manifest: its manifest, of all tasks.
        model: ready to answer those tasks that were loaded.
        digest: sha256 of the manifest file, and so of everything.
    """

    manifest: Manifest
    model: UnifiedModel | MergedForceField
    digest: str


@dataclass(frozen=True)
class ArtifactParts:
    """An artifact taken apart: the merged backbone, and what each task that was loaded brings; the manifest is of all tasks."""

    manifest: Manifest
    backbone: Network
    experts: dict[str, Any]
    digest: str

    @property
    def molecular_backbone(self) -> Backbone:
        """The backbone, for what only artifacts for molecules can have done to them. Raises ArtifactError."""
        if not isinstance(self.backbone, Backbone):
            raise ArtifactError(f"got an artifact of kind {self.manifest.input.kind!r}, expected one for molecules")
        return self.backbone


def make_manifest(
    name: str,
    version: str,
    backbone: BackboneConfig | GraphNetworkConfig | ForceFieldConfig,
    rank: int,
    router: RouterConfig,
    tasks: Mapping[str, TaskInfo],
    input: InputSchema | None = None,  # noqa: A002 - as in the file
    provenance: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> Manifest:
    """A manifest of today's format, made now; `save_artifact` fills in the checksums."""
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input=input or MoleculeInput(reading_rule=READING_RULE),
        backbone=backbone,
        rank=rank,
        router=router,
        tasks=dict(tasks),
        provenance=provenance or {},
        metrics=metrics or {},
    )


def save_artifact(folder: Path, manifest: Manifest, backbone: Network, experts: Mapping[str, Member], card: str = "") -> Manifest:
    """Write an artifact in one step: a reader sees the old folder or the new one, never a mixture.

    Args:
        folder: where; an artifact that is already there is replaced.
        manifest: without checksums.
        backbone: the merged one (its own BatchNorm statistics are not used and stay as they are).
        experts: by task, in the order of the manifest.
        card: text of `README.md`, the model card; none if empty.

    Returns:
        The manifest as written.
    """
    if tuple(experts) != tuple(manifest.tasks):
        raise ArtifactError(f"got experts {list(experts)}, expected those of the manifest, {list(manifest.tasks)}")
    contents = {BACKBONE: _serialise(backbone), **{_task_file(task): _serialise(expert) for task, expert in experts.items()}}
    if card:
        contents[CARD] = card.encode()
    manifest = manifest.model_copy(update={"files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}})
    contents[MANIFEST] = (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    try:
        for name, data in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def load_artifact(folder: Path, device: torch.device | str = "cpu", tasks: Sequence[str] | None = None) -> Artifact:
    """Load and verify an artifact or some of its tasks, ready to answer; the router then mixes these. Raises as `load_parts`."""
    parts = load_parts(folder, tasks)
    if isinstance(parts.backbone, ForceField):
        _check_elements(parts, folder)
        return Artifact(parts.manifest, MergedForceField(parts.backbone, parts.experts).to(device), parts.digest)
    return Artifact(parts.manifest, UnifiedModel(parts.backbone, parts.experts, parts.manifest.router).to(device), parts.digest)


def load_parts(folder: Path, tasks: Sequence[str] | None = None) -> ArtifactParts:
    """Load and verify what an artifact is made of, to make another one from it.

    Args:
        folder: of the artifact.
        tasks: whose files are read and in what order; no other task's file has to be there. None: all, and whatever else has a checksum.

    Raises:
        UnknownTaskError: the manifest has no such task.
        ArtifactError: a file is missing, altered or unexpected, the format version is not this one, or a tensor is missing, extra, misshapen or not
            finite; the message names it.
    """
    manifest, digest = read_manifest(folder)
    names, _ = select_tasks(tuple(manifest.tasks), tasks)
    needed = manifest.files if tasks is None else (BACKBONE, *map(_task_file, names))
    contents = {name: _read_verified(folder, name, manifest.files[name]) for name in needed}
    backbone = _network(manifest.backbone)
    _fill(backbone, contents[BACKBONE], folder / BACKBONE)
    experts = {task: _member(manifest, task) for task in names}
    for task, expert in experts.items():
        _fill(expert, contents[_task_file(task)], folder / _task_file(task))
    return ArtifactParts(manifest, backbone.eval(), experts, digest)


def _check_elements(parts: ArtifactParts, folder: Path) -> None:
    """What the manifest promises to answer, and what the tensors say, must be the same: else the first request would find out."""
    assert isinstance(parts.manifest.input, AtomsInput)  # as the manifest was checked
    for task, expert in parts.experts.items():
        known, declared = expert.elements.nonzero().flatten().tolist(), sorted(set(parts.manifest.input.elements[task]))
        if known != declared:
            raise ArtifactError(f"{folder}: got elements {known} in the tensors of {task}, expected those of the manifest, {declared}")


def _network(config: BackboneConfig | GraphNetworkConfig | ForceFieldConfig) -> Network:
    if isinstance(config, ForceFieldConfig):
        return ForceField(config)
    return GraphNetwork(config) if isinstance(config, GraphNetworkConfig) else Backbone(config)


def _member(manifest: Manifest, task: str) -> Member:
    if isinstance(manifest.backbone, ForceFieldConfig):
        return ForceFieldExpert(manifest.backbone)
    info = manifest.tasks[task]
    num_features = manifest.input.num_features[task] if isinstance(manifest.input, FeatureInput) else None
    return Expert(manifest.backbone, manifest.rank, info.labels, info.level, info.target, num_features)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest and its sha256, checked but for the tensors. Raises ArtifactError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"got no {MANIFEST} in {folder}, expected an artifact folder")
    data = path.read_bytes()
    try:
        raw = json.loads(data)
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise ArtifactError(f"{path}: got format version {version!r}, expected {FORMAT_VERSION}")
        manifest = Manifest.model_validate(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        raise ArtifactError(f"{path}: not a manifest: {error}") from error
    needed = {BACKBONE, *map(_task_file, manifest.tasks)}
    if wrong := needed - manifest.files.keys():
        raise ArtifactError(f"{path}: got no checksum of {', '.join(sorted(wrong))}")
    if wrong := manifest.files.keys() - needed - {CARD}:
        raise ArtifactError(f"{path}: got a checksum of {', '.join(map(ascii, sorted(wrong)))}, expected only {', '.join(sorted(needed | {CARD}))}")
    return manifest, hashlib.sha256(data).hexdigest()


def _task_file(task: str) -> str:
    return f"tasks/{task}.safetensors"


def _serialise(module: nn.Module) -> bytes:
    return save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()})


def _read_verified(folder: Path, name: str, sha256: str) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{folder}: got no readable {name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{folder / name}: got other contents than the manifest's sha256 says, expected {sha256[:12]}...")
    return data


def _fill(module: nn.Module, data: bytes, origin: Path) -> None:
    try:
        load_tensors(module, load(data), str(origin))
    except (CheckpointError, SafetensorError) as error:
        raise ArtifactError(f"{origin}: {error}") from error
