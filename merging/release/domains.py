"""Applicability domains in a finished artifact: which molecules a task has learnt from, and how
wrong its answers are near and far from them. Its models stay bit-identical."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merging.release.extension import save_changed
from merging.release.labels import check_same_data, check_same_tasks, renamed_card
from merging.run.domains import measure_domain
from merging.run.meanings import meaning_texts
from merging.run.run import Run
from merging.run.scores import environment
from merging.targets.domain_scores import CONFIDENCE, FEWEST, FEWEST_OF_CLASS
from models.artifact import ArtifactComponents, check_output, load_components
from models.domain.measured import LEAST_COVERAGE
from models.domain.task_domain import TaskDomain
from models.errors import ConfigError
from models.manifest import Manifest

_TITLE = "## How far to trust"
_SECTION = f"""
{_TITLE}

`domain/` has, by task, hashed fingerprints of the training molecules (ECFP4, 1,024 bits), the error
of every label by similarity to them, measured on the validation and test molecules, and thresholds
of conformal sets, which are shown where their coverage held on the test molecules. It has no
structure and no measured value of a molecule.
"""


def add_domains(
    run: Run, artifact: Path, tasks: Sequence[str], output: Path, replace_other: bool = False
) -> Manifest:
    """Measure the applicability domains of tasks of an artifact, and write the artifact with them,
    under the configuration's name and version.

    Args:
        run: its configuration describes the data of the tasks.
        artifact: the folder of the existing artifact.
        tasks: the tasks, of run and artifact.
        output: the folder of the new artifact; it may be the same.
        replace_other: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError, ArtifactError: see `check_domains`.
        DataError: the data of a task are missing or invalid.
    """
    components = check_domains(run, artifact, tasks, output, replace_other)
    identity, manifest = run.config.require_release(), components.manifest
    texts = meaning_texts(run, tasks)
    domains, infos = dict(components.domains), dict(manifest.domains)
    for task in tasks:
        measured = measure_domain(run, components, task)
        shown = task in texts and texts[task].may_show
        domains[task] = measured.domain
        infos[task] = measured.info.model_copy(update={"may_show": shown})
    in_order = [task for task in manifest.tasks if task in infos]
    earlier = manifest.provenance.get("domains", {}).get("data_sha256", {})
    record = {
        "weights_of": manifest.weights_digest(components.digest),
        "tasks": in_order,
        "data_sha256": earlier | {task: dict(run.dataset(task).sources) for task in tasks},
        "seed": run.seed,
        "bands": f"thirds, of {FEWEST} molecules and {FEWEST_OF_CLASS} of a class at least",
        "conformal": f"{CONFIDENCE:g}, shown from a test coverage of {LEAST_COVERAGE:g}",
        "environment": environment(),
    }
    changes: dict[str, Any] = {
        "name": identity.name,
        "version": identity.version,
        "domains": {task: infos[task] for task in in_order},
        "provenance": manifest.provenance | {"domains": record},
    }
    card = renamed_card(components, identity)
    card = card if _TITLE in card else f"{card}{_SECTION}"
    components = replace(components, domains={task: domains[task] for task in in_order})
    return save_changed(output, components, changes, card, replace_other, same_weights=True)


def check_domains(
    run: Run, artifact: Path, tasks: Sequence[str], output: Path, replace_other: bool = False
) -> ArtifactComponents:
    """Check that the applicability domains of tasks can be measured; return the artifact.

    Raises:
        ConfigError: the configuration is of another family of networks, or has other tasks, labels
            or data files than the artifact was made from; the tasks are not on molecules; or it has
            no `release`.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    identity, components = run.config.require_release(), load_components(artifact)
    manifest = components.manifest
    check_same_tasks(run, manifest, tasks)
    version = identity.name, identity.version
    check_output(output, *version, manifest.tasks, replace_other, components.digest)
    if manifest.family.read_texts is None:
        got = f"got a model of kind {manifest.backbone.kind!r}"
        raise ConfigError(f"{got}, expected one of molecules, which have fingerprints")
    check_same_data(run, manifest, tasks)
    return components


def summary(task: str, labels: Sequence[str], domain: TaskDomain) -> list[str]:
    """Say what was measured of a task, and the coverage of conformal sets by label."""
    conformal = {
        label: measured.conformal
        for label, measured in zip(labels, domain.labels, strict=True)
        if measured.conformal is not None
    }
    kept = sum(found.holds for found in conformal.values())
    banded = sum(bool(measured.bands) for measured in domain.labels)
    lines = [
        f"{task}: {len(domain.molecules)} molecules; {len(labels)} labels, {banded} with bands,"
        f" {kept} with conformal sets"
    ]
    for label, found in conformal.items():
        shares = ", ".join(f"{100 * share:.1f} %" for share in found.coverage)
        dropped = "" if found.holds else "; not shown"
        lines.append(f"  {label}: sets held {shares} of the test molecules{dropped}")
    return lines
