"""Artifacts: merged models on disk, as folders with `manifest.json`, `backbone.safetensors`,
`tasks/<task>.safetensors`; for streams that tasks share, `streams/<stream>.safetensors`; for tasks
with a forest, `forests/<task>.safetensors`; for tasks with an applicability domain,
`domain/<task>.safetensors`; and for comparisons with drugs, `drugs.safetensors`.

The manifest holds the sha256 of every other file; an artifact with altered files is refused. No
file is a pickle.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from models.data.fingerprint import WIDTH
from models.domain.task_domain import TaskDomain
from models.drugs import DrugTable
from models.errors import ArtifactError, CheckpointError, InvalidInputError
from models.experts.forest import Forest
from models.experts.layouts import read_forest
from models.families.molecules import molecular_backbone
from models.files import replace_folder, sync, temporary_beside
from models.manifest import FORMAT_VERSION, STREAMS_VERSION, Manifest, format_version
from models.networks.hu2020 import Backbone
from models.state_dict import load_tensors
from models.task import select_tasks
from models.trial import try_tasks
from models.validation import problems_of

MANIFEST = "manifest.json"
BACKBONE = "backbone.safetensors"
DRUGS = "drugs.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        manifest: its manifest, with all tasks.
        model: merged model of the loaded tasks, from `ModelFamily.model`.
        digest: sha256 of the manifest file, which identifies the contents of all files.
        forests, domains: of the loaded tasks that have one, by task.
        card: text of the model card; empty if there is none.
        drugs: answers of the loaded tasks for drugs; None if there is no table of them.
    """

    manifest: Manifest
    model: Any
    digest: str
    forests: Mapping[str, Forest] = field(default_factory=dict)
    card: str = ""
    domains: Mapping[str, TaskDomain] = field(default_factory=dict)
    drugs: DrugTable | None = None


@dataclass(frozen=True)
class ArtifactComponents:
    """The separate modules of a loaded artifact, from which `assemble` builds the merged model.

    Attributes:
        manifest: its manifest, with all tasks.
        backbone: the merged network.
        experts: adapters, head, ... of the loaded tasks, by task; where tasks share a stream, their
            experts hold it.
        digest: sha256 of the manifest file.
        forests, domains: of the loaded tasks that have one, by task.
        card: text of the model card; empty if there is none, or only some tasks are loaded.
        drugs: answers of the loaded tasks for drugs; None if there is no table of them.
    """

    manifest: Manifest
    backbone: nn.Module
    experts: dict[str, Any]
    digest: str
    forests: Mapping[str, Forest] = field(default_factory=dict)
    card: str = ""
    domains: Mapping[str, TaskDomain] = field(default_factory=dict)
    drugs: DrugTable | None = None

    @property
    def molecular_backbone(self) -> Backbone:
        """The backbone as one of the networks of Hu et al. 2020. Raises ArtifactError if it is
        another network."""
        return molecular_backbone(self.backbone, self.manifest.input.kind)


def check_output(
    folder: Path,
    name: str,
    version: str,
    tasks: Iterable[str],
    replace: bool = False,
    made_from: str | None = None,
) -> Path:
    """Check that an artifact may be written to a folder; callers check before training, too.

    The folder may be missing or empty, or hold an artifact of the same name and tasks in the same
    or an older version. Other contents and read-only artifacts are never replaced.

    Args:
        folder: where to write.
        name, version, tasks: of the artifact to write.
        replace: also allow replacing an artifact of another name, other tasks or a newer version.
        made_from: digest of an artifact that may be replaced in any case, because the new one is
            derived from it.

    Returns:
        The folder, absolute and without symbolic links.

    Raises:
        ArtifactError: the folder may not be written; the message gives the reason.
    """
    target = _writable(folder)
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return target
    if not target.is_dir():
        raise ArtifactError(f"{folder}: got a file, expected a new folder, or an artifact")
    try:
        old, digest = read_manifest(target)
    except ArtifactError as error:
        message = f"got a folder that is no artifact, expected a new or empty one: {error}"
        raise ArtifactError(f"{folder}: {message}") from error
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if strangers := sorted(found - old.files.keys() - {MANIFEST}):
        raise ArtifactError(
            f"{folder}: got an artifact with files that are not its own, which would be lost "
            f"({', '.join(map(ascii, strangers[:5]))}), expected them elsewhere"
        )
    folders = target, *(target / name for name in ("tasks", "streams", "forests", "domain"))
    if any(path.exists() and not _may_change(path) for path in folders):
        raise ArtifactError(
            f"{folder}: got a read-only artifact, expected one that may be replaced"
        )
    if replace or digest == made_from:
        return target
    if old.name != name or old.tasks.keys() != set(tasks):
        raise ArtifactError(
            f"{folder}: got another artifact there, {old.name} {old.version} with tasks "
            f"{', '.join(old.tasks)}; expected {name} with tasks {', '.join(tasks)}, or another "
            "folder, or --replace"
        )
    if _numbers(version) < _numbers(old.version):
        raise ArtifactError(
            f"{folder}: got a newer artifact there, {name} {old.version}; expected none newer than"
            f" {version}, or another folder, or --replace"
        )
    return target


def _writable(folder: Path) -> Path:
    """Return the folder, absolute and without symbolic links. Raises ArtifactError if nothing can
    be written there."""
    try:
        target = folder.resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()
    except (OSError, RuntimeError, ValueError) as error:
        got = f"got a path that leads nowhere: {error}"
        raise ArtifactError(f"{str(folder)!a}: {got}, expected a folder") from error
    if os.path.ismount(target):
        raise ArtifactError(f"{folder}: got a mount point, expected a folder in it")
    for parent in target.parents:
        if (parent / MANIFEST).is_file() and (parent / BACKBONE).is_file():
            message = f"got a folder inside the artifact {parent}, expected one outside"
            raise ArtifactError(f"{folder}: {message}")
    there = next(parent for parent in target.parents if os.path.lexists(parent))
    trial = temporary_beside(there / target.name)
    try:  # permissions do not tell: the file system may be read-only
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        got = f"got {there} ({error.strerror})"
        raise ArtifactError(f"{folder}: {got}, expected a folder that can be written to") from error
    return target


def _may_change(folder: Path) -> bool:
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _numbers(version: str) -> list[int]:
    """Return the numbers of a version, for comparison: 1.10.0 is newer than 1.9.0."""
    return [int(number) for number in re.findall(r"\d+", version)]


def save_artifact(
    folder: Path,
    manifest: Manifest,
    backbone: nn.Module,
    experts: Mapping[str, nn.Module],
    card: str = "",
    replace: bool = False,
    made_from: str | None = None,
    forests: Mapping[str, Forest] | None = None,
    domains: Mapping[str, TaskDomain] | None = None,
    drugs: DrugTable | None = None,
) -> Manifest:
    """Write an artifact atomically: readers see the old folder or the new one.

    The artifact is written to a temporary folder, loaded from there, and tried on a small input of
    every task; only then does it replace the folder. On errors the folder is unchanged.

    Args:
        folder: where to write, see `check_output`.
        manifest: without checksums.
        backbone: the merged network. Its BatchNorm statistics are not used; experts have theirs.
        experts: by task, in the order of the manifest.
        card: text of the model card, `README.md`; empty for none.
        replace, made_from: see `check_output`.
        forests, domains: by task, those of the manifest; None if it has none.
        drugs: of the tasks that the manifest names; None if it has no drugs.

    Returns:
        The manifest as written, with checksums.

    Raises:
        ArtifactError: the folder may not be written, writing failed, or the artifact is unusable.
    """
    if tuple(experts) != tuple(manifest.tasks):
        raise ArtifactError(
            f"got experts {list(experts)}, expected those of the manifest, {list(manifest.tasks)}"
        )
    forests, domains = forests or {}, domains or {}
    for name, given, described in (
        ("forests", forests, manifest.forests),
        ("domains", domains, manifest.domains),
        (
            "drugs",
            drugs.quantiles if drugs else {},
            manifest.drugs.experts if manifest.drugs else {},
        ),
    ):
        if given.keys() != described.keys():
            expected = f"expected those of the manifest, {list(described)}"
            raise ArtifactError(f"got {name} {list(given)}, {expected}")
    manifest = _validated(manifest, folder)
    contents = _contents(manifest, backbone, experts, forests, domains, card)
    contents |= {DRUGS: drugs.to_bytes()} if drugs else {}
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = manifest.model_copy(update={"files": checksums})
    contents[MANIFEST] = (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode()
    target = check_output(
        folder, manifest.name, manifest.version, manifest.tasks, replace, made_from
    )
    temporary = temporary_beside(target)
    try:
        _write(temporary, contents)
        _read_back(temporary)
        # Again, because the folder may have changed since.
        check_output(folder, manifest.name, manifest.version, manifest.tasks, replace, made_from)
        replace_folder(temporary, target)
    except ArtifactError as error:
        message = str(error).replace(str(temporary), str(target))
        raise ArtifactError(f"not written: {message}") from error
    except OSError as error:
        raise ArtifactError(f"{folder}: could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _validated(manifest: Manifest, folder: Path) -> Manifest:
    """Validate a manifest again: a copy with changed fields was never validated. Its format version
    is that of its fields."""
    manifest = manifest.model_copy(update={"format_version": format_version(manifest.streams)})
    try:
        return Manifest.model_validate(manifest.model_dump())
    except ValidationError as error:
        problems = problems_of(error, Manifest)
        raise ArtifactError(f"{folder}: not written, not a manifest: {problems}") from error


def _contents(
    manifest: Manifest,
    backbone: nn.Module,
    experts: Mapping[str, nn.Module],
    forests: Mapping[str, Forest],
    domains: Mapping[str, TaskDomain],
    card: str,
) -> dict[str, bytes]:
    """Return the contents of an artifact's files without the manifest, by path in the folder.
    Raises ArtifactError if the experts share other streams than the manifest says."""
    contents = {BACKBONE: _serialise(backbone)}
    streams = _shared_streams(manifest, experts)
    contents |= {_stream_file(name): _serialise(stream) for name, stream in streams.items()}
    contents |= {_task_file(task): _serialise(expert) for task, expert in experts.items()}
    contents |= {_forest_file(task): forest.to_bytes() for task, forest in forests.items()}
    contents |= {domain_file(task): domain.to_bytes() for task, domain in domains.items()}
    return contents | ({CARD: card.encode()} if card else {})


def _shared_streams(
    manifest: Manifest, experts: Mapping[str, nn.Module]
) -> Mapping[str, nn.Module]:
    """Collect the streams that the experts share, and check that they are the manifest's."""
    modules = manifest.family.streams
    if modules is None:
        return {}
    try:
        streams = modules.collect(experts)
        readers = {task: set(modules.collect({task: experts[task]})) for task in experts}
    except InvalidInputError as error:
        raise ArtifactError(f"not written: {error}") from error
    for task, found in readers.items():
        if found != {manifest.stream_of[task]} if task in manifest.stream_of else found:
            got = f"not written: got {task} on stream {', '.join(found) or 'of its own'}"
            expected = manifest.stream_of.get(task, "of its own")
            raise ArtifactError(f"{got}, expected that of the manifest, {expected}")
    return streams


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        sync(path)
    for parent in {(folder / name).parent for name in contents}:
        sync(parent)


def _read_back(folder: Path) -> None:
    """Load a written artifact and run its tasks. Raises ArtifactError."""
    components = load_components(folder)
    try:
        try_tasks(components.manifest, components.backbone, components.experts)
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}") from error


def load_artifact(
    folder: Path, device: torch.device | str = "cpu", tasks: Sequence[str] | None = None
) -> Artifact:
    """Load and verify an artifact, and build its merged model on a device.

    With `tasks` the model has only these tasks, and mixes only their experts. Arguments and errors
    are those of `load_components`.
    """
    return assemble(load_components(folder, tasks), device)


def assemble(components: ArtifactComponents, device: torch.device | str = "cpu") -> Artifact:
    """Build the merged model on a device from the separate modules of an artifact."""
    manifest = components.manifest
    model = manifest.family.model(components.backbone, components.experts, manifest.router)
    optional = components.forests, components.card, components.domains, components.drugs
    return Artifact(manifest, model.to(device), components.digest, *optional)


def load_components(folder: Path, tasks: Sequence[str] | None = None) -> ArtifactComponents:
    """Load and verify backbone and experts of an artifact without assembling the merged model.

    Args:
        folder: of the artifact.
        tasks: names of the tasks to load, in this order; files of other tasks, and of streams that
            only these read from, may be missing. None loads all tasks and verifies every file.

    Raises:
        UnknownTaskError: the manifest does not have a task.
        ArtifactError: a file is missing, altered or unexpected; the format version is not known; a
            tensor is missing, unexpected, of another shape or not finite; or the family rejects a
            stream or an expert (`ModelFamily.check_expert`). The message names the file and the
            tensor.
    """
    manifest, digest = read_manifest(folder)
    names, _ = select_tasks(tuple(manifest.tasks), tasks)
    needed = manifest.files if tasks is None else _files(manifest, names)
    contents = {name: _read_verified(folder, name, manifest.files[name]) for name in needed}
    backbone, streams, experts = _modules(manifest, names, folder)
    _fill(backbone, contents[BACKBONE], folder / BACKBONE)
    for name, stream in streams.items():
        file = _stream_file(name)
        _fill(stream, contents[file], folder / file)
        _checked(folder / file, _check_stream, manifest, name, stream)
    for task, expert in experts.items():
        file = _task_file(task)
        _fill(expert, contents[file], folder / file)
        _checked(folder / file, manifest.family.check_expert, expert, manifest.input, task)
    forests = {
        task: _read_forest(manifest, task, contents[_forest_file(task)], folder)
        for task in names
        if task in manifest.forests
    }
    domains = {
        task: _read_domain(manifest, task, contents[domain_file(task)], folder)
        for task in names
        if task in manifest.domains
    }
    card = contents.get(CARD, b"").decode(errors="replace")
    drugs = _read_drugs(manifest, contents[DRUGS], folder) if DRUGS in contents else None
    optional = forests, card, domains, drugs.for_tasks(names) if drugs else None
    return ArtifactComponents(manifest, backbone.eval(), experts, digest, *optional)


def _read_drugs(manifest: Manifest, data: bytes, folder: Path) -> DrugTable:
    assert manifest.drugs is not None, "only a manifest with drugs has their file"
    tasks = {task: manifest.tasks[task] for task in manifest.drugs.experts}
    try:
        return DrugTable.read(data, tasks)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / DRUGS}: {error}") from error


def _read_forest(manifest: Manifest, task: str, data: bytes, folder: Path) -> Forest:
    try:
        return read_forest(data, WIDTH, len(manifest.tasks[task].labels))
    except ArtifactError as error:
        raise ArtifactError(f"{folder / _forest_file(task)}: {error}") from error


def _read_domain(manifest: Manifest, task: str, data: bytes, folder: Path) -> TaskDomain:
    molecules, labels = manifest.domains[task].molecules, len(manifest.tasks[task].labels)
    try:
        return TaskDomain.from_bytes(data, molecules, labels)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / domain_file(task)}: {error}") from error


def _files(manifest: Manifest, tasks: Iterable[str]) -> list[str]:
    """Return the files with weights that some tasks need, by path in the folder."""
    names = list(tasks)
    streams = dict.fromkeys(
        manifest.stream_of[task] for task in names if task in manifest.stream_of
    )
    forests = [task for task in names if task in manifest.forests]
    domains = [task for task in names if task in manifest.domains]
    files = *map(_stream_file, streams), *map(_task_file, names), *map(_forest_file, forests)
    drugs = [DRUGS] if manifest.drugs else []
    return [BACKBONE, *files, *map(domain_file, domains), *drugs]


def _checked(path: Path, check: Callable[..., None], *arguments: object) -> None:
    """Call a check of loaded weights; its ArtifactError names their file."""
    try:
        check(*arguments)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _check_stream(manifest: Manifest, name: str, stream: nn.Module) -> None:
    modules = manifest.family.streams
    assert modules is not None, "a manifest with streams is of a family that has them"
    modules.check_stream(stream, manifest.backbone, manifest.input, manifest.streams[name].tasks)


def _modules(
    manifest: Manifest, tasks: Iterable[str], folder: Path
) -> tuple[nn.Module, dict[str, nn.Module], dict[str, nn.Module]]:
    """Build the network, the shared streams by name and the experts by task, whose weights are
    loaded afterwards. Raises ArtifactError if the sizes are too large."""
    family, shape = manifest.family, manifest.backbone
    streams: dict[str, nn.Module] = {}
    experts: dict[str, nn.Module] = {}
    try:
        network = family.network(shape)
        for task in tasks:
            info, name = manifest.tasks[task], manifest.stream_of.get(task)
            if name is None or family.streams is None:
                experts[task] = family.expert(shape, manifest.rank, info, manifest.input, task)
                continue
            described = manifest.streams[name]
            if name not in streams:
                streams[name] = family.streams.stream(shape, described.rank, name)
            experts[task] = family.streams.expert(streams[name], described.graph_rank, info)
    except (RuntimeError, MemoryError) as error:
        found = f"got sizes of a network that cannot be made: {error}"
        raise ArtifactError(
            f"{folder / MANIFEST}: {found}, expected those of the tensors"
        ) from error
    return network, streams, experts


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Read and check only the manifest of an artifact.

    Returns:
        The manifest, and the sha256 of its file.

    Raises:
        ArtifactError: the folder has no valid manifest of this format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"got no {MANIFEST} in {folder}, expected an artifact folder")
    data = path.read_bytes()
    try:
        raw = json.loads(data)
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version not in (FORMAT_VERSION, STREAMS_VERSION) or isinstance(version, bool):
            raise ArtifactError(
                f"{path}: got format version {version!r}, expected {FORMAT_VERSION}, or"
                f" {STREAMS_VERSION} with streams"
            )
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        problems = problems_of(error, Manifest)
        raise ArtifactError(f"{path}: not a manifest: {problems}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a manifest: {error}") from error
    needed = set(_files(manifest, manifest.tasks))
    if wrong := needed - manifest.files.keys():
        raise ArtifactError(f"{path}: got no checksum of {', '.join(sorted(wrong))}")
    if wrong := manifest.files.keys() - needed - {CARD}:
        raise ArtifactError(
            f"{path}: got a checksum of {', '.join(map(ascii, sorted(wrong)))}, expected only"
            f" {', '.join(sorted(needed | {CARD}))}"
        )
    return manifest, hashlib.sha256(data).hexdigest()


def _task_file(task: str) -> str:
    return f"tasks/{task}.safetensors"


def _stream_file(stream: str) -> str:
    return f"streams/{stream}.safetensors"


def _forest_file(task: str) -> str:
    return f"forests/{task}.safetensors"


def domain_file(task: str) -> str:
    """Return the path in an artifact's folder of the file of a task's applicability domain."""
    return f"domain/{task}.safetensors"


def _serialise(module: nn.Module) -> bytes:
    return save(
        {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    )


def _read_verified(folder: Path, name: str, sha256: str) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{folder}: got no readable {name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(
            f"{folder / name}: got other contents than the manifest's sha256 says, expected"
            f" {sha256[:12]}..."
        )
    return data


def _fill(module: nn.Module, data: bytes, origin: Path) -> None:
    try:
        load_tensors(module, load(data), str(origin))
    except (CheckpointError, SafetensorError) as error:
        raise ArtifactError(f"{origin}: {error}") from error
