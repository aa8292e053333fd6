"""Answers of a finished artifact for a list of drugs, as quantiles beside its tensors. These stay
bit-identical; no structure of the list goes into the artifact."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from merging.config.base import ReleaseConfig
from merging.data.files import sha256
from merging.data.molecule_files import read_molecules
from merging.release.extension import save_changed
from merging.run.run import Run
from merging.run.scores import environment
from models.artifact import ArtifactComponents, assemble, check_output, load_components
from models.data.fingerprint import fingerprints_of
from models.data.smiles import featurize_all
from models.drugs import DrugInfo, DrugTable
from models.errors import ConfigError, MoleculeError
from models.experts.combination import ForestMember, combine
from models.families.inputs import Graph, ReadMolecule, SizeLimits
from models.manifest import Manifest

_LARGEST = 10_000  # atoms
_BATCH = 128
_TITLE = "## Among drugs"
T = TypeVar("T")


@dataclass(frozen=True)
class DrugList:
    """A file of approved drugs, and where it is from.

    Attributes:
        path: a file of molecules (`merging.data.molecule_files`).
        source, date, terms: see `models.drugs.DrugInfo`.
    """

    path: Path
    source: str
    date: str
    terms: str


def add_drugs(
    run: Run, artifact: Path, drugs: DrugList, output: Path, replace_other: bool = False
) -> Manifest:
    """Predict for drugs as the artifact answers by default, and write the artifact with the
    quantiles of the answers, under the configuration's name and version.

    Args:
        run: its configuration describes the data of the artifact's tasks, in which drugs are looked
            for.
        artifact: the folder of the existing artifact.
        drugs: the list.
        output: the folder of the new artifact; it may be the same.
        replace_other: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError, ArtifactError: see `check_drugs`; or none of the drugs can be read.
        DataError: the list, or the data of a task, are missing or invalid.
    """
    components = check_drugs(run, artifact, output, replace_other)
    identity, manifest = run.config.require_release(), components.manifest
    molecules, unreadable = _read(drugs.path, manifest)
    table = DrugTable.of(_answers(components, [own.graph for own in molecules.values()], run))
    by_task = _in_training(run, manifest, set(_canonical([*molecules])))
    known = set().union(*by_task.values())
    info = DrugInfo(
        molecules=len(molecules),
        unreadable=unreadable,
        source=drugs.source,
        date=drugs.date,
        terms=drugs.terms,
        sha256=sha256(drugs.path),
        in_training=len(known),
        in_training_by_task={task: len(found) for task, found in by_task.items()},
        experts={
            task: manifest.forests[task].default if task in manifest.forests else "own"
            for task in manifest.tasks
        },
    )
    record = {
        "weights_of": manifest.weights_digest(components.digest),
        "environment": environment(),
    }
    changes: dict[str, Any] = {
        "name": identity.name,
        "version": identity.version,
        "drugs": info,
        "provenance": manifest.provenance | {"drugs": record},
    }
    card = _card(components, identity, info)
    changed = replace(components, drugs=table)
    return save_changed(output, changed, changes, card, replace_other, same_weights=True)


def check_drugs(
    run: Run, artifact: Path, output: Path, replace_other: bool = False
) -> ArtifactComponents:
    """Check before anything is read that drugs can be predicted; return the artifact.

    Raises:
        ConfigError: the configuration is of another family of networks, or lacks a task of the
            artifact; a task does not answer for molecules; or `release` is missing.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    identity, components = run.config.require_release(), load_components(artifact)
    manifest = components.manifest
    kind = manifest.backbone.kind
    if kind not in run.family.kinds:
        got = f"got a configuration of networks of kind {run.config.shape.kind!r}"
        raise ConfigError(f"{got}, expected one of the artifact's, {kind!r}")
    if manifest.family.read_texts is None:
        raise ConfigError(f"got an artifact of kind {kind!r}, expected one that reads molecules")
    for task, info in manifest.tasks.items():
        if task not in run.tasks:
            expected = f"expected those of the artifact, {', '.join(manifest.tasks)}"
            raise ConfigError(f"tasks: got none of the name {task!r}, {expected}")
        if info.level != "graph":
            expected = "expected one that answers for whole molecules"
            raise ConfigError(f"{task}: got a task at level {info.level!r}, {expected}")
    version = identity.name, identity.version
    check_output(output, *version, manifest.tasks, replace_other, components.digest)
    return components


def _read(path: Path, manifest: Manifest) -> tuple[dict[str, ReadMolecule], int]:
    """Read the drugs, each once, by canonical SMILES; count those that cannot be read."""
    read = manifest.family.read_texts
    assert read is not None
    shape, limits = (manifest.backbone, manifest.input), SizeLimits(_LARGEST)
    molecules, unreadable = dict[str, ReadMolecule](), 0
    for texts in _groups(read_molecules(path)):
        for molecule in read(texts, *shape, limits):
            if isinstance(molecule, MoleculeError):
                unreadable += 1
            else:
                molecules.setdefault(molecule.smiles, molecule)
    if not molecules:
        raise ConfigError(f"--molecules: got no readable SMILES in {path}, expected drugs")
    return molecules, unreadable


def _answers(
    components: ArtifactComponents, graphs: Sequence[Graph], run: Run
) -> dict[str, NDArray[Any]]:
    """Return the answers of the default experts by task, (molecules, labels)."""
    manifest, device = components.manifest, run.device
    model, tasks = assemble(components, device).model, list(manifest.tasks)
    found: dict[str, list[NDArray[Any]]] = {task: [] for task in tasks}
    with torch.inference_mode():
        for group in _groups(graphs):
            batch = manifest.family.collate(group).to(device)
            outputs = manifest.family.answer(model, batch, tasks, "own")
            members = {
                task: ForestMember(
                    components.forests[task], info, info.default, outputs[task].target
                )
                for task, info in manifest.forests.items()
                if info.default != "own"
            }
            combined = {}
            if members:
                own = {task: outputs[task].logits.cpu() for task in members}
                combined = combine(own, fingerprints_of(group)[1], members)
            for task in tasks:
                by_network = outputs[task].values.cpu().numpy()
                found[task].append(combined[task].values if task in combined else by_network)
    return {task: np.concatenate(rows) for task, rows in found.items()}


def _in_training(run: Run, manifest: Manifest, drugs: set[str]) -> dict[str, set[str]]:
    """Return by task the drugs that are training molecules."""
    found = {}
    for task in manifest.tasks:
        data = run.dataset(task)
        smiles = run.family.smiles(run.config, data, run.folders)
        train = (smiles[row] for row in data.split.train.tolist())
        found[task] = drugs.intersection(_canonical(train))
    return found


def _groups(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in groups of one batch."""
    left = iter(items)
    while group := list(islice(left, _BATCH)):
        yield group


def _canonical(smiles: Iterable[str]) -> Iterator[str]:
    """Yield the canonical SMILES of molecules, read as data sets are."""
    for texts in _groups(smiles):
        for molecule in featurize_all(texts, strict=False):
            if not isinstance(molecule, MoleculeError):
                yield molecule.smiles


def _card(components: ArtifactComponents, identity: ReleaseConfig, info: DrugInfo) -> str:
    """Return the model card with its new name and version, and the section about drugs."""
    old = f"# {components.manifest.name} {components.manifest.version}\n"
    card = components.card.removeprefix(old)
    if card != components.card:
        card = f"# {identity.name} {identity.version}\n{card}"
    before, _, _ = card.partition(f"\n{_TITLE}")
    return f"{before}{_section(info)}"


def _section(info: DrugInfo) -> str:
    unread = f" {info.unreadable} more could not be read." if info.unreadable else ""
    return f"""
{_TITLE}

`explain: drugs` compares answers with those for {info.molecules} approved drugs: what percentage of
them has a lower answer? {info.in_training} of the drugs are training molecules of this model: it
is a comparison, not a validation.{unread} The artifact has quantiles of the answers, no structures.

- List: {info.source}, {info.date}; SHA-256 of the file {info.sha256}
- Terms: {info.terms}
"""
