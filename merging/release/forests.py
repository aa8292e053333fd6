"""Forests beside the network of a finished artifact. Backbone, adapters and heads stay
bit-identical."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from merging.data.split import Subset
from merging.release.extension import card_of, save_changed
from merging.run.forests import (
    SUBSETS,
    WEIGHT,
    Outputs,
    default_experts,
    expert_gain,
    expert_outputs,
    expert_scores,
    forest,
    network_outputs,
    trained_forest,
)
from merging.run.meanings import with_meanings
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.validation import unseen_outputs
from merging.studies.markdown import markdown_table
from merging.targets.calibration import brier_score, expected_calibration_error, temperature_scale
from models.artifact import ArtifactComponents, assemble, check_output, load_components
from models.data.fingerprint import FINGERPRINT_RULE
from models.errors import ConfigError
from models.experts.combination import ExpertChoice, ForestInfo
from models.experts.forest import Forest
from models.manifest import Manifest


@dataclass(frozen=True)
class AddedForest:
    """A calibrated forest with its description and its scores.

    Attributes:
        forest: the trees.
        info: for the manifest.
        metrics: scores of `own`, `forest` and `both` by subset, the gain of the default over the
            network on the test molecules with its standard error, and calibration errors.
    """

    forest: Forest
    info: ForestInfo
    metrics: dict[str, Any]


def add_forests(
    run: Run, artifact: Path, tasks: tuple[str, ...], output: Path, replace_other: bool = False
) -> Manifest:
    """Train forests for tasks of an artifact, choose by validation data which experts answer by
    default, calibrate, and write an artifact with these forests too.

    Args:
        run: its configuration describes the data of the tasks and names the new artifact.
        artifact: the folder of the existing artifact.
        tasks: the tasks, of run and artifact.
        output: the folder of the new artifact; it may be the same.
        replace_other: True also replaces an artifact with another name or other tasks there.

    Raises:
        ConfigError, ArtifactError: see `check_forests`.
    """
    components = check_forests(run, artifact, tasks, output, replace_other)
    identity, manifest = run.config.require_release(), components.manifest
    added = {task: _added(run, components, task) for task in tasks}
    forests = {**components.forests, **{task: new.forest for task, new in added.items()}}
    infos = {**manifest.forests, **{task: new.info for task, new in added.items()}}
    in_order = [task for task in manifest.tasks if task in infos]
    measured = {task: new.metrics for task, new in added.items()}
    record = {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        "to": components.digest,
        "tasks": list(tasks),
    }
    forest_infos = {task: infos[task] for task in in_order}
    # What was measured by similarity, and the answers for drugs, were without the new forests.
    domains = {task: own for task, own in components.domains.items() if task not in added}
    compared = [task for task in manifest.tasks if task not in tasks]
    drugs = components.drugs and components.drugs.for_tasks(compared)
    in_artifact = {task: forests[task] for task in in_order}
    components = replace(components, forests=in_artifact, domains=domains, drugs=drugs)
    described = replace(components, manifest=manifest.model_copy(update={"forests": forest_infos}))
    provenance = {"forests": [*manifest.provenance.get("forests", ()), record]}
    changes = {
        "name": identity.name,
        "version": identity.version,
        "input": manifest.input.model_copy(update={"fingerprint": FINGERPRINT_RULE}),
        "forests": forest_infos,
        "domains": {task: manifest.domains[task] for task in domains},
        "drugs": manifest.drugs and manifest.drugs.for_tasks(compared),
        "tasks": with_meanings(run, described, tasks),
        "provenance": manifest.provenance | provenance,
        "metrics": manifest.metrics
        | {"forests": {**manifest.metrics.get("forests", {}), **measured}},
    }
    card = card_of(artifact) + _card_section(added)
    return save_changed(output, components, changes, card, replace_other)


def check_forests(
    run: Run, artifact: Path, tasks: tuple[str, ...], output: Path, replace_other: bool = False
) -> ArtifactComponents:
    """Check before training that forests can be added to an artifact; return the artifact.

    Raises:
        ConfigError: the artifact does not have one of the tasks, or with other labels; a task can
            have no forest (`merging.run.forests.forest`); or `release` is missing.
        ArtifactError: the artifact is damaged, or may not be written to `output` (`check_output`).
    """
    identity, components = run.config.require_release(), load_components(artifact)
    known = components.manifest.tasks
    for task in tasks:
        if task not in known:
            expected = f"expected tasks of the artifact, {', '.join(known)}"
            raise ConfigError(f"tasks: got {task}, {expected}")
        labels = run.dataset(task).info.labels
        if labels != known[task].labels:
            expected = f"expected those of the artifact, {list(known[task].labels)}"
            raise ConfigError(f"tasks.{task}: got labels {list(labels)}, {expected}")
    forest_stages(run, tasks)
    version = identity.name, identity.version
    check_output(output, *version, known, replace_other, components.digest)
    return components


def forest_stages(run: Run, tasks: tuple[str, ...]) -> dict[str, Stage]:
    """Return the stages that train the forests, by task. Raises ConfigError: see
    `merging.run.forests.forest`."""
    return {task: forest(run, task) for task in tasks}


def _added(run: Run, components: ArtifactComponents, task: str) -> AddedForest:
    result, data = run.result(forest(run, task)), run.dataset(task)
    single = replace(components, experts={task: components.experts[task]}, forests={})
    own = network_outputs(run, assemble(single, run.device).model, task)
    outputs = {
        subset: expert_outputs(own[subset], result.tensors[f"outputs/{subset}"])
        for subset in SUBSETS
    }
    labels = {subset: data.labels[getattr(data.split, subset)] for subset in SUBSETS}
    unseen = unseen_outputs(run, task, own["valid"])
    if data.info.target == "multilabel":  # The artifact's network is calibrated already.
        unseen = unseen * temperature_scale(unseen, labels["valid"])
    outputs["valid"] = expert_outputs(unseen, result.tensors["outputs/valid"])
    default = default_experts(outputs["valid"], labels["valid"], data)
    trees, metrics = trained_forest(result), dict[str, Any]()
    for subset in SUBSETS:
        metrics[subset] = expert_scores(outputs[subset], labels[subset], data)
    pair = outputs["test"]["own"], outputs["test"][default]
    gain, error = expert_gain([pair], labels["test"], data)
    metrics |= {"gain": round(gain, 5), "gain_error": round(error, 5)}
    if data.info.target == "multilabel":
        trees, metrics["calibration"] = _calibrated(trees, outputs, labels)
    record = result.record
    info = ForestInfo(
        default=default, inputs=record["inputs"], library=record["library"], weight=WEIGHT
    )
    return AddedForest(trees, info, metrics)


def _calibrated(
    trees: Forest, outputs: Mapping[Subset, Outputs], labels: Mapping[Subset, Tensor]
) -> tuple[Forest, dict[str, Any]]:
    """Fit the temperatures of forest and mean on the validation molecules; return the forest with
    them, and the calibration errors on the test molecules by expert."""
    scales, errors = {}, dict[str, Any]()
    names: tuple[ExpertChoice, ...] = ("forest", "both")
    for name in names:
        scale = temperature_scale(outputs["valid"][name], labels["valid"])
        test, known = outputs["test"][name], labels["test"]
        before, after = test.sigmoid(), (test * scale).sigmoid()
        scales[name] = scale.double().numpy()
        errors[name] = {
            "ece_before": expected_calibration_error(before, known),
            "ece_after": expected_calibration_error(after, known),
            "brier_before": brier_score(before, known),
            "brier_after": brier_score(after, known),
        }
    return replace(trees, scale=scales["forest"], both_scale=scales["both"]), errors


_HEAD = ("task", "trees", "network", "forest", "both", "default", "gain")


def _card_section(added: Mapping[str, AddedForest]) -> str:
    rows = []
    for task, new in added.items():
        test, metrics = new.metrics["test"], new.metrics
        scores = [f"{100 * test[name]:.1f}" for name in ("own", "forest", "both")]
        trees = f"{new.info.library} on {' + '.join(new.info.inputs)}"
        gain = f"{100 * metrics['gain']:+.1f} +- {100 * metrics['gain_error']:.1f}"
        rows.append([task, trees, *scores, new.info.default, gain])
    return f"""
## Forests

Trees on fingerprints answer beside the network, alone or by the mean of logits (of a regression,
of values) with weights of one half. Scores on the test subset: ROC-AUC in percent; of a regression
minus the mean absolute error in percent of the standard deviation of the training labels. Kind of
trees, inputs and default were chosen by validation data; the gain is that of the default over the
network, with the standard error of a paired bootstrap.

{markdown_table(list(_HEAD), rows)}
"""
