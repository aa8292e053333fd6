"""Changes of a finished artifact: adding tasks, removing tasks, and screening experts. The merged
backbone and the files of the other tasks stay bit-identical."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from merging.data.files import sha256
from merging.data.molecule_files import read_molecules
from merging.release.card import calibration_section, data_table, metrics_tables
from merging.release.release import CalibrationErrors, calibrate, data_provenance, served_metrics
from merging.run.meanings import meaning_texts, with_meanings
from merging.run.models import expert, finetuned_model, single_task_model, without_adapters
from merging.run.run import Run
from merging.run.scores import evaluate, unified_forward
from merging.run.stage import Stage
from merging.run.stages import align_adapters, check_molecules, teacher
from merging.run.store import StageResult
from merging.studies.markdown import METRIC_NAMES, markdown_table, metric_cell
from merging.targets.metrics import metric_of_score, score_name
from models.artifact import (
    BACKBONE,
    CARD,
    ArtifactComponents,
    check_output,
    load_components,
    save_artifact,
)
from models.data.molecule import MolGraph
from models.data.smiles import read_graphs
from models.errors import ConfigError, InvalidInputError, MoleculeError
from models.experts.expert import Expert
from models.manifest import WITHOUT_TRAINING, Manifest, StreamInfo
from models.names import check_distinct
from models.networks.hu2020 import Backbone, make_backbone
from models.screening import nearest_experts
from models.task import TaskInfo

_SCREENED_WITH = 300  # molecules
_MOST_READ = 10 * _SCREENED_WITH
_MEASURED = ("finetuned", "bare", "with_adapters")


def add_tasks(run: Run, artifact: Path, output: Path, replace: bool = False) -> Manifest:
    """Fine-tune the tasks of a run, train and calibrate their adapters on the backbone of an
    artifact, and write an artifact with these tasks too. An added task has a stream of its own on
    the artifact's backbone, with adapters of the rank of other such tasks, if there are any.

    Args:
        run: its configuration describes only the new tasks, and names the new artifact (`release`).
        artifact: the folder of the existing artifact.
        output: the folder of the new artifact; it may be the same.
        replace: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError, ArtifactError: see `check_addition`.
    """
    components = check_addition(run, artifact, output, replace)
    identity = run.config.require_release()
    backbone, digest = components.molecular_backbone, components.manifest.files[BACKBONE]
    experts = {
        task: expert(run, task, run.result(added_adapters(run, backbone, digest, task)).tensors)
        for task in run.tasks
    }
    gains = {task: adapter_gain(run, backbone, task, added) for task, added in experts.items()}
    test = served_metrics(run, backbone, experts)
    calibrated = calibrate(run, backbone, experts)
    infos = {task: run.dataset(task).info for task in experts}
    metrics = {
        task: {**gains[task], "calibration": calibrated.get(task), "test": test[task]}
        for task in experts
    }
    manifest, old_experts = components.manifest, components.experts
    with_new = manifest.model_copy(update={"tasks": manifest.tasks | infos, "nearest": {}})
    components = dataclasses.replace(components, experts=old_experts | experts)
    described = dataclasses.replace(components, manifest=with_new)
    changes = {
        "name": identity.name,
        "version": identity.version,
        "rank": run.config.rank,
        "tasks": with_meanings(run, described, run.tasks),
        "nearest": {},  # must list all tasks or none
        "provenance": manifest.provenance | {"added": _provenance(run, components)},
        "metrics": manifest.metrics | {"added": manifest.metrics.get("added", {}) | metrics},
    }
    tables = f"\n{metrics_tables(test, infos)}\n\n{data_table(data_provenance(run)['data'])}\n"
    card = card_of(artifact) + _card_section(gains, calibrated) + tables
    return save_changed(output, components, changes, card, replace)


def check_addition(
    run: Run, artifact: Path, output: Path, replace: bool = False
) -> ArtifactComponents:
    """Check before training that the tasks of a run can be added to an artifact; return the
    artifact.

    Raises:
        ConfigError: the configuration does not match the artifact (backbone, rank, pre-trained
            weights), the artifact has one of the tasks, `release` is missing, or the family has no
            adapters.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    check_molecules(run)
    identity, components = run.config.require_release(), load_components(artifact)
    _check_fit(run, components.manifest)
    tasks = [*components.manifest.tasks, *run.tasks]
    check_output(output, identity.name, identity.version, tasks, replace, components.digest)
    meaning_texts(run, run.tasks)
    return components


def remove_tasks(
    artifact: Path, tasks: Sequence[str], output: Path, replace: bool = False
) -> Manifest:
    """Write an artifact without some of its tasks, with the same name and version; routing mixes
    the remaining experts.

    Args:
        artifact: the folder of the existing artifact.
        tasks: the tasks to remove.
        output: the folder of the new artifact; it may be the same.
        replace: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError: the artifact does not have one of the tasks, or none would remain.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    components = load_components(artifact)
    manifest, names = components.manifest, ", ".join(components.manifest.tasks)
    if unknown := sorted(set(tasks) - manifest.tasks.keys()):
        expected = f"expected names among those of the artifact, {names}"
        raise ConfigError(f"--tasks: got {', '.join(unknown)}, {expected}")
    remaining = {task: info for task, info in manifest.tasks.items() if task not in tasks}
    if not remaining:
        expected = "expected at least one to stay"
        raise ConfigError(f"--tasks: got all tasks of the artifact ({names}), {expected}")
    removed = sorted({*manifest.provenance.get("removed", ()), *tasks})
    nearest = {
        task: tuple(other for other in others if other in remaining)
        for task, others in manifest.nearest.items()
        if task in remaining
    }
    forests = {task: own for task, own in components.forests.items() if task in remaining}
    domains = {task: own for task, own in components.domains.items() if task in remaining}
    changes = {
        "input": manifest.input if forests else manifest.input.without_fingerprint(),
        "tasks": remaining,
        "streams": _remaining_streams(manifest, remaining),
        "nearest": nearest,
        "forests": {task: manifest.forests[task] for task in forests},
        "domains": {task: manifest.domains[task] for task in domains},
        "drugs": manifest.drugs and manifest.drugs.for_tasks([*remaining]),
        "provenance": manifest.provenance | {"removed": removed},
    }
    note = f"{', '.join(tasks)}. The tables above are of the artifact with them."
    card = f"{card_of(artifact)}\n## Removed later\n\n{note}\n"
    experts = {task: components.experts[task] for task in remaining}
    drugs = components.drugs and components.drugs.for_tasks([*remaining])
    components = dataclasses.replace(
        components, experts=experts, forests=forests, domains=domains, drugs=drugs
    )
    return save_changed(output, components, changes, card, replace)


def _remaining_streams(
    manifest: Manifest, remaining: Mapping[str, TaskInfo]
) -> dict[str, StreamInfo]:
    """Return the shared streams with the remaining tasks; those without any are left out."""
    tasks = {
        name: tuple(task for task in stream.tasks if task in remaining)
        for name, stream in manifest.streams.items()
    }
    return {
        name: stream.model_copy(update={"tasks": tasks[name]})
        for name, stream in manifest.streams.items()
        if tasks[name]
    }


def screen(
    artifact: Path, molecules: Path, candidates: int, output: Path, replace: bool = False
) -> Manifest:
    """Write an artifact whose router mixes fewer experts: that of the task and the `candidates`
    experts nearest to it, measured on unlabelled molecules.

    Args:
        artifact: the folder of an artifact with more than candidates + 1 tasks.
        molecules: a file of molecules (`merging.data.molecule_files`); the first 300 readable ones
            are used.
        candidates: number of experts besides that of the task.
        output: the folder of the new artifact; it may be the same.
        replace: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError: there are too many candidates, or no molecule can be read.
        DataError: the file of molecules does not exist.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    components = load_components(artifact)
    manifest, others = components.manifest, len(components.experts) - 1
    if not 1 <= candidates < others:
        expected = f"expected 1 to {others - 1}, fewer than there are other tasks"
        raise ConfigError(f"--candidates: got {candidates}, {expected}")
    graphs, unreadable = readable_graphs(molecules)
    identity = manifest.name, manifest.version
    check_output(output, *identity, manifest.tasks, replace, components.digest)
    backbone, experts = components.molecular_backbone, components.experts
    screened = {"molecules": len(graphs), "unreadable": unreadable, "sha256": sha256(molecules)}
    changes = {
        "nearest": nearest_experts(backbone, experts, manifest.router, graphs, candidates),
        "router": manifest.router.model_copy(update={"candidates": candidates}),
        "provenance": manifest.provenance | {"screened": screened},
    }
    return save_changed(output, components, changes, card_of(artifact), replace)


def save_changed(
    output: Path,
    components: ArtifactComponents,
    changes: dict[str, Any],
    card: str,
    replace: bool,
    same_weights: bool = False,
) -> Manifest:
    """Write an artifact that was derived from another one.

    Args:
        output: its folder; may be that of the other one.
        components: with changed experts, forests, domains and drugs, and the manifest and digest
            of the other one.
        changes: fields of the manifest that differ.
        card: its model card.
        replace: see `models.artifact.check_output`.
        same_weights: whether all tensors are those of the other one. Otherwise the manifest no
            longer names an artifact that they are of (`Manifest.weights_digest`).
    """
    manifest = components.manifest.model_copy(update=changes)
    if not same_weights:
        provenance = dict(manifest.provenance)
        for name in provenance.keys() & set(WITHOUT_TRAINING):
            record = provenance[name]
            provenance[name] = {key: record[key] for key in record if key != "weights_of"}
        manifest = manifest.model_copy(update={"provenance": provenance})
    written = components.backbone, components.experts, card, replace, components.digest
    optional = components.forests, components.domains, components.drugs
    return save_artifact(output, manifest, *written, *optional)


def readable_graphs(path: Path) -> tuple[list[MolGraph], int]:
    """Read the first 300 readable molecules among the first 3,000 of a file; return them and the
    number of unreadable ones before the last.

    Raises:
        DataError: the file does not exist.
        ConfigError: none of the molecules can be read.
    """
    graphs, unreadable = list[MolGraph](), list[MoleculeError]()
    molecules = islice(read_molecules(path), _MOST_READ)
    while group := list(islice(molecules, _SCREENED_WITH - len(graphs))):
        for graph in read_graphs(group):
            if isinstance(graph, MoleculeError):
                unreadable.append(graph)
            else:
                graphs.append(graph)
    if not graphs:
        first = f" (the first of {len(unreadable)}: {unreadable[0]})" if unreadable else ""
        got = f"got no readable SMILES in {path}{first}"
        raise ConfigError(f"--molecules: {got}, expected one a line")
    return graphs, len(unreadable)


def added_adapters(run: Run, backbone: Backbone, digest: str, task: str) -> Stage:
    """Return the stage that trains the adapters of a task on an artifact's backbone.

    Args:
        run: the run of the new task.
        backbone: the backbone of the artifact.
        digest: the SHA-256 of its file, which identifies it in the key of the stage.
        task: the new task.

    Returns:
        A stage whose tensors are the state dict of a `TaskAdapters`.
    """
    settings = run.config.alignment_for(task), digest
    make = partial(_make_adapters, run, backbone, task)
    size = run.dataset(task).size
    return Stage(f"added/{task}", run.seed, settings, (teacher(run, task),), make, size)


def _make_adapters(run: Run, backbone: Backbone, task: str, checkpoint: Path) -> StageResult:
    student = make_backbone(backbone.state_dict(), backbone.config, "finished backbone")
    return align_adapters(run, task, student, checkpoint)


def adapter_gain(run: Run, backbone: Backbone, task: str, added: Expert) -> dict[str, Any]:
    """Compute how much of the gain of fine-tuning new adapters recover, on the test rows.

    Args:
        run: the run of the new task.
        backbone: the backbone of the artifact.
        task: the new task.
        added: its head and adapters.

    Returns:
        {"metric": name (`SCORE_NAMES`), "finetuned", "bare", "with_adapters": values of it for the
        fine-tuned model and for its head on the backbone without and with adapters, "share":
        (with_adapters - bare) / (finetuned - bare) of the scores, None if fine-tuning gains
        nothing}.
    """
    models = {
        "finetuned": finetuned_model(run, task),
        "bare": without_adapters(run, backbone, task),
        "with_adapters": single_task_model(run, backbone, task, added),
    }
    metric = score_name(run.dataset(task).info.main_metric)
    scores = {
        name: evaluate(run, unified_forward(run, model, task), task)["test"]["score"]
        for name, model in models.items()
    }
    possible = scores["finetuned"] - scores["bare"]
    share = (scores["with_adapters"] - scores["bare"]) / possible if possible > 0 else None
    return {
        "metric": metric,
        **{name: metric_of_score(value, metric) for name, value in scores.items()},
        "share": None if share is None else round(share, 4),
    }


def _check_fit(run: Run, manifest: Manifest) -> None:
    config, problems = run.config, []
    digest = run.family.provenance(config, run.folders)["pretrained_sha256"]
    # Where all tasks share streams, the added ones are the first with adapters of this rank.
    has_own = len(manifest.stream_of) < len(manifest.tasks)
    for name, got, expected in (
        ("pretrained.backbone", config.shape, manifest.backbone),
        ("alignment.rank", config.rank, manifest.rank if has_own else config.rank),
        ("pretrained.weights, sha256", digest, manifest.provenance.get("pretrained_sha256")),
    ):
        if got != expected:
            problems.append(f"{name}: got {got}, expected the artifact's, {expected}")
    if streams := sorted(set(config.tasks) & manifest.streams.keys()):
        problems.append(
            f"tasks: got {', '.join(streams)}, a stream of the artifact, expected names"
            " of their own"
        )
    if present := sorted(set(config.tasks) & manifest.tasks.keys()):
        names = ", ".join(present)
        problems.append(f"tasks: got {names}, which the artifact has, expected new ones")
    else:
        try:
            check_distinct([*manifest.tasks, *manifest.streams, *config.tasks])
        except InvalidInputError as error:
            problems.append(f"tasks, with the artifact's: {error}")
    if problems:
        raise ConfigError("; ".join(problems))


def _provenance(run: Run, components: ArtifactComponents) -> list[dict[str, Any]]:
    added = {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        **data_provenance(run),
        "to": components.digest,
    }
    return [*components.manifest.provenance.get("added", ()), added]


def card_of(artifact: Path) -> str:
    """Return the text of an artifact's model card; empty if it has none."""
    path = artifact / CARD
    return path.read_text() if path.is_file() else ""


def _card_section(gains: dict[str, dict[str, Any]], calibrated: CalibrationErrors) -> str:
    models = ["fine-tuned", "backbone without adapters", "with adapters"]
    head = ["task", "metric", *models, "share of the gain"]
    rows = []
    for task, gain in gains.items():
        cells = [metric_cell(gain["metric"], gain[name]) for name in _MEASURED]
        rows.append([task, METRIC_NAMES[gain["metric"]], *cells, str(gain["share"])])
    return f"""
## Added later

On the test subset, ROC-AUC, AUPRC and accuracy in percent, `MAE / std` in standard deviations of
the training labels (the smaller the better); all else in the artifact is unchanged.

{markdown_table(head, rows)}

{calibration_section(calibrated)}
"""
