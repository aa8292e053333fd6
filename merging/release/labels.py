"""What the labels of a finished artifact mean. Its tensors stay bit-identical; the manifest keeps
the digest of the artifact that they are of (`models.manifest.Manifest.weights_digest`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merging.config.base import ReleaseConfig
from merging.release.extension import save_changed
from merging.run.meanings import meaning_texts, with_meanings
from merging.run.run import Run
from merging.run.scores import environment
from merging.targets.label_scores import DRAWS, LEVEL
from models.artifact import ArtifactComponents, check_output, load_components
from models.errors import ConfigError
from models.manifest import Manifest

_LABELS_TITLE = "## Labels"
_LABELS = f"""
{_LABELS_TITLE}

What each label means, where its data are from and under which terms, how many rows have it, and its
own test score with a 95 % interval are in `manifest.json` (`tasks`, `meaning`) and in the answer of
`GET /tasks`.
"""


def describe_labels(run: Run, artifact: Path, output: Path, replace: bool = False) -> Manifest:
    """Describe the labels of an artifact by the texts of a configuration, measure them on the test
    rows, and write the artifact with these descriptions, under the configuration's name and
    version.

    Args:
        run: its configuration describes the data of the artifact's tasks, and their labels.
        artifact: the folder of the existing artifact.
        output: the folder of the new artifact; it may be the same.
        replace: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError, ArtifactError: see `check_description`.
        DataError: the data of a task are missing or invalid.
    """
    components = check_description(run, artifact, output, replace)
    identity, manifest = run.config.require_release(), components.manifest
    tasks = list(meaning_texts(run, manifest.tasks))
    record = {
        "weights_of": manifest.weights_digest(components.digest),
        "tasks": tasks,
        "data_sha256": {task: dict(run.dataset(task).sources) for task in tasks},
        "seed": run.seed,
        "interval": f"{LEVEL:g} %, percentile bootstrap over test rows, {DRAWS} draws",
        "environment": environment(),
    }
    changes: dict[str, Any] = {
        "name": identity.name,
        "version": identity.version,
        "tasks": with_meanings(run, components, manifest.tasks),
        "provenance": manifest.provenance | {"meanings": record},
    }
    card = renamed_card(components, identity)
    card = card if _LABELS_TITLE in card else f"{card}{_LABELS}"
    return save_changed(output, components, changes, card, replace, same_weights=True)


def renamed_card(components: ArtifactComponents, identity: ReleaseConfig) -> str:
    """Return the model card of an artifact with its new name and version."""
    old = f"# {components.manifest.name} {components.manifest.version}\n"
    card = components.card.removeprefix(old)
    if card != components.card:
        card = f"# {identity.name} {identity.version}\n{card}"
    return card


def check_description(
    run: Run, artifact: Path, output: Path, replace: bool = False
) -> ArtifactComponents:
    """Check that the labels of an artifact can be described and measured; return the artifact.

    Raises:
        ConfigError: the configuration is of another family of networks, lacks a task of the
            artifact, describes none of its labels or other ones, has other data files than the
            artifact was made from, or has no `release`.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    identity, components = run.config.require_release(), load_components(artifact)
    manifest = components.manifest
    check_same_tasks(run, manifest, list(manifest.tasks))
    version = identity.name, identity.version
    check_output(output, *version, manifest.tasks, replace, components.digest)
    if not meaning_texts(run, manifest.tasks):
        raise ConfigError("meanings: got none of the artifact's tasks, expected texts about some")
    check_same_data(run, manifest, list(manifest.tasks))
    return components


def check_same_tasks(run: Run, manifest: Manifest, tasks: Sequence[str]) -> None:
    """Raise ConfigError if the configuration is of another family of networks than the artifact, or
    one of the two lacks one of the tasks."""
    if manifest.backbone.kind not in run.family.kinds:
        got = f"got a configuration of networks of kind {run.config.shape.kind!r}"
        raise ConfigError(f"{got}, expected one of the artifact's, {manifest.backbone.kind!r}")
    if missing := [task for task in tasks if task not in run.tasks]:
        got = f"tasks: got none of the name {missing[0]!r}"
        raise ConfigError(f"{got}, expected those of the artifact, {', '.join(manifest.tasks)}")
    if unknown := [task for task in tasks if task not in manifest.tasks]:
        expected = f"expected tasks of the artifact, {', '.join(manifest.tasks)}"
        raise ConfigError(f"tasks: got {unknown[0]}, {expected}")


def check_same_data(run: Run, manifest: Manifest, tasks: Sequence[str]) -> None:
    """Raise ConfigError if tasks have other labels or data files than the artifact was made
    from."""
    for task in tasks:
        data, labels = run.dataset(task), manifest.tasks[task].labels
        if data.info.labels != labels:
            expected = f"expected those of the artifact, {list(labels[:5])}"
            raise ConfigError(f"tasks.{task}: got labels {list(data.info.labels[:5])}, {expected}")
        _check_files(task, dict(data.sources), manifest)


def _check_files(task: str, found: dict[str, str], manifest: Manifest) -> None:
    """Raise ConfigError if a task's data files are others than the manifest names."""
    named = manifest.provenance.get("data_sha256", {}).get(task)
    if named is None:  # Added tasks and older force fields do not say.
        return
    expected = {named} if isinstance(named, str) else set(named.values())
    if set(found.values()) != expected:
        got = f"tasks.{task}: got data files {', '.join(found)} that the artifact was not made from"
        raise ConfigError(f"{got}, expected the SHA-256 of its provenance")
