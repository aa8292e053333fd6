"""What the labels of an artifact's tasks mean: texts, numbers of rows, and test scores of the
answers that the artifact gives by default."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from merging.data.split import Subset
from merging.meanings.texts import task_text
from merging.run.run import Run
from merging.targets.label_scores import (
    LabelMeasures,
    calibration_error,
    counts_of,
    distribution_of,
    draw_counts,
    label_score,
)
from merging.training.forest import fingerprint_rows
from models.artifact import ArtifactComponents, assemble
from models.experts.combination import ForestMember, combine
from models.meaning import LabelMeaning, LabelText, TaskMeaning, TaskText
from models.task import TaskInfo

_SUBSETS: tuple[Subset, ...] = ("train", "valid", "test")


def meaning_texts(run: Run, tasks: Iterable[str]) -> dict[str, TaskText]:
    """Return the texts about those of the tasks whose labels somebody described. Raises
    ConfigError: a text is missing, or about another label (`merging.meanings.texts.task_text`)."""
    described = {task: run.config.meaning_of(task) for task in tasks}
    return {
        task: task_text(entry, task, run.dataset(task).info)
        for task, entry in described.items()
        if entry is not None
    }


def with_meanings(
    run: Run, components: ArtifactComponents, tasks: Iterable[str]
) -> dict[str, TaskInfo]:
    """Describe the labels of tasks of an artifact, and measure them on the test rows.

    Args:
        run: its configuration describes the data of the tasks.
        components: the artifact, calibrated.
        tasks: those to describe; the others stay as they are.

    Returns:
        All tasks of the artifact's manifest.
    """
    texts = meaning_texts(run, tasks)
    infos = dict(components.manifest.tasks)
    for task, text in texts.items():
        meaning = _meaning(run, components, task, text)
        infos[task] = infos[task].model_copy(update={"meaning": meaning})
    return infos


def _meaning(run: Run, components: ArtifactComponents, task: str, text: TaskText) -> TaskMeaning:
    data, family = run.dataset(task), run.family
    info: TaskInfo = data.info
    known = {
        subset: family.label_columns(
            family.concatenate(
                [step.labels for step in data.steps(subset, family.evaluation_batch)]
            ),
            info,
        )
        for subset in _SUBSETS
    }
    predicted = family.label_measures(*_predict(run, components, task), info)
    drawn = draw_counts(len(known["test"][0]))
    labels = [
        _label(text.labels[label], [known[subset][k] for subset in _SUBSETS], own, drawn)
        for k, (label, own) in enumerate(zip(info.labels, predicted, strict=True))
    ]
    forest = components.manifest.forests.get(task)
    return TaskMeaning(
        source=text.source,
        terms=text.terms,
        counted=family.counted(info),
        answered_by="own" if forest is None else forest.default,
        labels=tuple(labels),
    )


def _predict(run: Run, components: ArtifactComponents, task: str) -> tuple[Any, Any]:
    """Return the predictions of the labelled test rows, as the artifact answers by default, and
    their labels."""
    data, family, manifest = run.dataset(task), run.family, components.manifest
    expert = family.step_expert(components.experts[task])
    single = replace(components, experts={task: expert}, forests={})
    model = assemble(single, run.device).model
    info = manifest.forests.get(task)
    by_network = info is None or info.default == "own"

    def forward(batch: Any) -> Any:
        output = manifest.family.answer(model, batch, [task], "own")[task]
        return family.served(output) if by_network else output.logits

    steps = data.steps("test", family.evaluation_batch)
    outputs, labels = family.predict(forward, steps, run.device)
    if info is None or info.default == "own":
        return outputs, labels
    smiles = family.smiles(run.config, data, run.folders)
    rows = fingerprint_rows([smiles[row] for row in data.split.test.tolist()], task)
    kind = manifest.tasks[task].output_kind
    member = ForestMember(components.forests[task], info, info.default, kind)
    values = combine({task: outputs}, rows, {task: member})[task].values
    return torch.from_numpy(values), labels


def _label(
    text: LabelText, known: Sequence[Any], predicted: LabelMeasures, drawn: Any
) -> LabelMeaning:
    """Describe a label by its text, its known values in the three subsets, its predictions on the
    test rows, and draws of these rows."""
    scores = (label_score(measure, drawn) for measure in predicted.measures)
    common = {
        **text.model_dump(),
        "counts": counts_of(known),
        "scores": tuple(score for score in scores if score is not None),
    }
    if text.one is None:
        return LabelMeaning(**common, distribution=distribution_of(known))
    error = calibration_error(predicted.predictions, predicted.known)
    return LabelMeaning(**common, positives=counts_of(known, 1.0), calibration_error=error)
