"""Adding tasks to a finished artifact and taking them out: the merged backbone and the other tasks'
files stay as they are, to the last bit."""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from merging.data.files import sha256
from merging.data.molecule_files import read_molecules
from merging.release.card import calibration_section, data_table, metrics_tables
from merging.release.release import Calibrated, calibrate, data_provenance, measure_served
from merging.run.models import expert, finetuned, single_task_model, without_adapters
from merging.run.run import Run
from merging.run.scores import answering, measured
from merging.run.stage import Stage
from merging.run.stages import aligned, check_adapters, teacher
from merging.run.store import StageResult
from merging.studies.markdown import METRIC_NAMES, markdown_table, metric_cell
from merging.targets.metrics import SCORE_NAMES, reported
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
from models.manifest import Manifest
from models.names import check_distinct
from models.networks.hu2020 import Backbone, make_backbone
from models.screening import nearest_experts

_SCREENED_WITH = 300  # molecules
_LOOKED_AT = 10 * _SCREENED_WITH
_MEASURED = ("finetuned", "bare", "with_adapters")


def add_tasks(run: Run, artifact: Path, output: Path, replace: bool = False) -> Manifest:
    """Fine-tune the run's tasks, train their adapters on the artifact's backbone, calibrate them,
    and write a new artifact that answers them too.

    Args:
        run: its configuration describes the new tasks only, and names the new artifact (`release`).
        artifact: the folder of the finished artifact.
        output: the folder of the new one; it may be the same.
        replace: an artifact of another name or of other tasks may be replaced there too.

    Raises: as `check_addition`.
    """
    components, called = check_addition(run, artifact, output, replace), run.config.called()
    backbone, origin = components.molecular_backbone, components.manifest.files[BACKBONE]
    made = {
        task: expert(run, task, run.result(added_adapters(run, backbone, origin, task)).tensors)
        for task in run.tasks
    }
    gains = {task: gain(run, backbone, task, own) for task, own in made.items()}
    test = measure_served(run, backbone, made)
    calibrated = calibrate(run, backbone, made)
    infos = {task: run.dataset(task).info for task in made}
    before = components.manifest.metrics.get("added", {})
    added = {
        task: {**gains[task], "calibration": calibrated.get(task), "test": test[task]}
        for task in made
    }
    manifest = components.manifest.model_copy(
        update={
            "name": called.name,
            "version": called.version,
            "tasks": components.manifest.tasks | infos,
            "nearest": {},  # known of all tasks or of none
            "provenance": components.manifest.provenance | {"added": _provenance(run, components)},
            "metrics": components.manifest.metrics | {"added": before | added},
        }
    )
    card = _card(artifact) + _card_section(gains, calibrated)
    card += f"\n{metrics_tables(test, infos)}\n" + _data_section(run)
    experts = components.experts | made
    return save_artifact(
        output, manifest, components.backbone, experts, card, replace, components.digest
    )


def check_addition(
    run: Run, artifact: Path, output: Path, replace: bool = False
) -> ArtifactComponents:
    """The artifact, if the run's tasks may be added to it; before hours of training.

    Raises:
        ConfigError: the configuration does not fit the artifact (backbone, rank, pre-trained
            weights), a task is there already, it has no `release`, or models of its kind have no
            adapters.
        ArtifactError: the artifact is damaged, or may not be written there (`check_output`).
    """
    check_adapters(run)
    called, components = run.config.called(), load_components(artifact)
    _check_fit(run, components.manifest)
    tasks = [*components.manifest.tasks, *run.tasks]
    check_output(output, called.name, called.version, tasks, replace, components.digest)
    return components


def remove_tasks(
    artifact: Path, tasks: Sequence[str], output: Path, replace: bool = False
) -> Manifest:
    """Write an artifact without some of its tasks, under the same name and version; routing mixes
    the experts that are left.

    Args:
        artifact: the folder of the finished artifact.
        tasks: to take out.
        output: the folder of the new one; it may be the same.
        replace: an artifact of another name or of other tasks may be replaced there too.

    Raises:
        ConfigError: a task is not there, or none would be left.
        ArtifactError: the artifact is damaged, or may not be written there (`check_output`).
    """
    components = load_components(artifact)
    known = components.manifest.tasks
    if unknown := sorted(set(tasks) - known.keys()):
        raise ConfigError(
            f"--tasks: got {', '.join(unknown)}, expected names among those of the artifact,"
            f" {', '.join(known)}"
        )
    left = {task: info for task, info in known.items() if task not in tasks}
    if not left:
        raise ConfigError(
            f"--tasks: got all tasks of the artifact ({', '.join(known)}), expected at least one to"
            " stay"
        )
    removed = sorted({*components.manifest.provenance.get("removed", ()), *tasks})
    nearest = {
        task: tuple(other for other in others if other in left)
        for task, others in components.manifest.nearest.items()
        if task in left
    }
    provenance = components.manifest.provenance | {"removed": removed}
    manifest = components.manifest.model_copy(
        update={"tasks": left, "nearest": nearest, "provenance": provenance}
    )
    card = (
        _card(artifact)
        + f"\n## Removed later\n\n{', '.join(tasks)}. The tables above are of the artifact with"
        " them.\n"
    )
    experts = {task: components.experts[task] for task in left}
    return save_artifact(
        output, manifest, components.backbone, experts, card, replace, components.digest
    )


def screen(
    artifact: Path, molecules: Path, candidates: int, output: Path, replace: bool = False
) -> Manifest:
    """Write an artifact whose mixtures look at few experts: the `candidates` that are nearest to a
    task's own one, on molecules without labels.

    Args:
        artifact: with more tasks than candidates + 1.
        molecules: a file of molecules (`merging.data.molecule_files`), of which the first few
            hundred that can be read are taken.
        candidates: how many experts beside the own one.
        output: the folder of the new artifact; it may be the same.
        replace: an artifact of another name or of other tasks may be replaced there too.

    Raises:
        ConfigError: too many candidates, or no molecule can be read.
        DataError: no file of molecules.
        ArtifactError: the artifact is damaged, or may not be written there (`check_output`).
    """
    components = load_components(artifact)
    if not 1 <= candidates < len(components.experts) - 1:
        raise ConfigError(
            f"--candidates: got {candidates}, expected 1 to {len(components.experts) - 2},"
            " fewer than there are other tasks"
        )
    graphs, unreadable = readable_graphs(molecules)
    called = components.manifest.name, components.manifest.version
    check_output(output, *called, components.manifest.tasks, replace, components.digest)
    nearest = nearest_experts(
        components.molecular_backbone,
        components.experts,
        components.manifest.router,
        graphs,
        candidates,
    )
    router = components.manifest.router.model_copy(update={"candidates": candidates})
    screened = {"molecules": len(graphs), "unreadable": unreadable, "sha256": sha256(molecules)}
    provenance = components.manifest.provenance | {"screened": screened}
    update = {"nearest": nearest, "router": router, "provenance": provenance}
    manifest = components.manifest.model_copy(update=update)
    card, source = _card(artifact), components.digest
    return save_artifact(
        output, manifest, components.backbone, components.experts, card, replace, source
    )


def readable_graphs(path: Path) -> tuple[list[MolGraph], int]:
    """The first few hundred molecules of a file that can be read, and how many cannot before that.

    Raises:
        DataError: no such file.
        ConfigError: no molecule among the first few thousand.
    """
    graphs, unreadable = list[MolGraph](), list[MoleculeError]()
    molecules = islice(read_molecules(path), _LOOKED_AT)
    while group := list(islice(molecules, _SCREENED_WITH - len(graphs))):
        for graph in read_graphs(group):
            if isinstance(graph, MoleculeError):
                unreadable.append(graph)
            else:
                graphs.append(graph)
    if not graphs:
        first = f" (the first of {len(unreadable)}: {unreadable[0]})" if unreadable else ""
        found = f"got no readable SMILES in {path}{first}"
        raise ConfigError(f"--molecules: {found}, expected one a line")
    return graphs, len(unreadable)


def added_adapters(run: Run, backbone: Backbone, origin: str, task: str) -> Stage:
    """Adapters of a task on a finished backbone, with their statistics: state dict of a
    TaskAdapters. `origin` tells the backbone from others."""
    settings = run.config.alignment_for(task), origin
    make = partial(_make_adapters, run, backbone, task)
    size = run.dataset(task).size
    return Stage(f"added/{task}", run.seed, settings, (teacher(run, task),), make, size)


def _make_adapters(run: Run, backbone: Backbone, task: str, checkpoint: Path) -> StageResult:
    student = make_backbone(backbone.state_dict(), backbone.config, "finished backbone")
    return aligned(run, task, student, checkpoint)


def gain(run: Run, backbone: Backbone, task: str, made: Expert) -> dict[str, Any]:
    """What the new adapters reach: by the metric that is named (`SCORE_NAMES`), on the test rows,
    the fine-tuned model, its head on the bare backbone and with the adapters; and the share
    (with adapters - bare) / (fine-tuned - bare) of the gain, None where fine-tuning gains nothing.
    """
    models = {
        "finetuned": finetuned(run, task),
        "bare": without_adapters(run, backbone, task),
        "with_adapters": single_task_model(run, backbone, task, made),
    }
    target = run.dataset(task).info.target
    scores = {
        name: measured(run, answering(run, model, task), task)["test"]["score"]
        for name, model in models.items()
    }
    possible = scores["finetuned"] - scores["bare"]
    share = (scores["with_adapters"] - scores["bare"]) / possible if possible > 0 else None
    return {
        "metric": SCORE_NAMES[target],
        **{name: reported(value, target) for name, value in scores.items()},
        "share": None if share is None else round(share, 4),
    }


def _check_fit(run: Run, manifest: Manifest) -> None:
    config, problems = run.config, []
    digest = run.family.provenance(config, run.folders)["pretrained_sha256"]
    for name, got, expected in (
        ("pretrained.backbone", config.shape, manifest.backbone),
        ("alignment.rank", config.rank, manifest.rank),
        ("pretrained.weights, sha256", digest, manifest.provenance.get("pretrained_sha256")),
    ):
        if got != expected:
            problems.append(f"{name}: got {got}, expected the artifact's, {expected}")
    if there := sorted(set(config.tasks) & manifest.tasks.keys()):
        problems.append(f"tasks: got {', '.join(there)}, which the artifact has, expected new ones")
    else:
        try:
            check_distinct([*manifest.tasks, *config.tasks])
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


def _card(artifact: Path) -> str:
    path = artifact / CARD
    return path.read_text() if path.is_file() else ""


def _card_section(gains: dict[str, dict[str, Any]], calibrated: Calibrated) -> str:
    ways = ["fine-tuned", "backbone without adapters", "with adapters"]
    head = ["task", "metric", *ways, "share of the gain"]
    rows = [
        [
            task,
            METRIC_NAMES[found["metric"]],
            *(metric_cell(found["metric"], found[name]) for name in _MEASURED),
            str(found["share"]),
        ]
        for task, found in gains.items()
    ]
    return f"""
## Added later

On the test part, ROC-AUC and accuracy in percent, `MAE / std` in standard deviations of the
training labels (the smaller the better); all else in the artifact is unchanged.

{markdown_table(head, rows)}

{calibration_section(calibrated)}
"""


def _data_section(run: Run) -> str:
    return f"\n{data_table({task: run.dataset(task).record for task in run.tasks})}\n"
