"""How good a run's models are: the stages that measure them."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from merging.mergers.registry import MERGERS, MergeConfig
from merging.run.models import adapted, finetuned, merged_only, unified
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import adapters, heads, heads_stage, joint, merge_result, teacher, trained
from merging.run.store import StageResult
from merging.targets.metrics import MAIN_METRICS, scores_by_metric
from merging.training.supervised import label_scale, standardised
from models.experts.unified import Routing, Statistics, UnifiedModel, UnifiedOutput

Kinds = tuple[Statistics, ...]
BOTH: Kinds = ("stored", "batch")
Forward = Callable[[Any], Any]
"""What a task's head says of a batch."""
Measured = dict[str, dict[str, float]]
"""By subset ("valid", "test") the metrics that the family shows, and "score": the greater the
better, of a regression in standard deviations, so that tasks can be averaged."""
AUTHORS_BATCH_SIZE = 32
"""Of test batches whose statistics normalise them, as the G-Merging authors evaluate."""


@dataclass(frozen=True)
class Way:
    """A way to answer the tasks of a run.

    Attributes:
        stages: what it stands on, by run and task.
        forward: by run, task and kind of BatchNorm statistics, what answers a batch.
    """

    stages: Callable[[Run, str], tuple[Stage, ...]]
    forward: Callable[[Run, str, Statistics], Forward]


def score(run: Run, way: str, task: str, kinds: Kinds = ("stored",)) -> Stage:
    """What a way of answering is worth on a task: by kind of statistics, a `Measured`.

    Args:
        run: of the models.
        way: a name in `WAYS`.
        task: that is measured.
        kinds: of BatchNorm statistics; "batch" only where the paper's way of evaluating is to be
            shown, as no served answer comes from it.
    """
    inputs, size = WAYS[way].stages(run, task), run.dataset(task).size
    make = partial(_make_score, run, way, task, kinds)
    settings = *kinds, run.config.routing
    return Stage(f"evaluation/{way}/{task}", run.seed, settings, inputs, make, size)


def _make_score(run: Run, way: str, task: str, kinds: Kinds, _: Path) -> StageResult:
    forward = {kind: WAYS[way].forward(run, task, kind) for kind in kinds}
    return StageResult(record={kind: measured(run, forward[kind], task, kind) for kind in kinds})


def measured(run: Run, forward: Forward, task: str, kind: Statistics = "stored") -> Measured:
    """What is answered on the validation and test rows of a task, measured. With batch statistics,
    batches of 32 in the order of the split."""
    data, family = run.dataset(task), run.family
    size = AUTHORS_BATCH_SIZE if kind == "batch" else family.evaluation_batch
    found: Measured = {}
    for subset in ("valid", "test"):
        answers = family.answers(forward, data.steps(subset, size), run.device)
        found[subset] = values_of(run, task, *answers)
    return found


def values_of(run: Run, task: str, outputs: Any, labels: Any) -> dict[str, float]:
    """Of one subset, see `Measured`."""
    data, family = run.dataset(task), run.family
    found, scale = family.metrics(outputs, labels, data.info), label_scale(data)
    values = {name: found[name] for name in family.shown(data.info)}
    values["score"] = family.score(
        standardised(scale, outputs), standardised(scale, labels), data.info
    )
    return {name: round(value, 5) for name, value in values.items()}


def scores(run: Run, way: str, task: str, kinds: Kinds = ("stored",)) -> dict[str, Measured]:
    """What `score` gives."""
    return run.result(score(run, way, task, kinds)).record


def main_metric(run: Run, task: str) -> str:
    """What the answers of a task are mainly measured by."""
    return MAIN_METRICS[run.dataset(task).info.target]


def answering(
    run: Run, model: UnifiedModel, task: str, routing: Routing = "own", kind: Statistics = "stored"
) -> Forward:
    """What a model says of a batch for a task."""

    def forward(batch: Any) -> Any:
        output: UnifiedOutput = model(batch, [task], routing, kind)
        return output.logits[task]

    return forward


def plain(run: Run, task: str, network: Any, head: Any) -> Forward:
    """A network with a task's head, without adapters."""
    data = run.dataset(task)
    own, head = run.family.model(run.config.shape, network, head, data)
    placed = own.to(run.device), head.to(run.device)
    return lambda batch: run.family.outputs(*placed, batch, data.info, training=False)


def _finetuned(run: Run, task: str, kind: Statistics) -> Forward:
    if run.family.adapters:
        return answering(run, finetuned(run, task), task, kind=kind)
    model = trained(run, teacher(run, task))
    return plain(run, task, model.network, model.heads[task])


def _multitask(run: Run, task: str, kind: Statistics) -> Forward:
    model = trained(run, joint(run))
    return plain(run, task, model.network, model.heads[task])


def _merged(run: Run, task: str, kind: Statistics) -> Forward:
    if run.family.adapters:
        return answering(run, merged_only(run, task), task, kind=kind)
    return plain(run, task, merge_result(run).backbone_for(task), heads(run)[task])


def _adapted(run: Run, task: str, kind: Statistics) -> Forward:
    return answering(run, adapted(run, task), task, kind=kind)


def _routed(run: Run, task: str, kind: Statistics) -> Forward:
    return answering(run, unified(run), task, "moe", kind)


def _merged_stages(run: Run, task: str) -> tuple[Stage, ...]:
    return heads_stage(run), teacher(run, task)


def _adapted_stages(run: Run, task: str) -> tuple[Stage, ...]:
    return (adapters(run, task),)


def all_adapters(run: Run, task: str = "") -> tuple[Stage, ...]:
    """The adapters of all tasks."""
    return tuple(adapters(run, name) for name in run.tasks)


WAYS: dict[str, Way] = {
    "finetuned": Way(lambda run, task: (teacher(run, task),), _finetuned),
    "multitask": Way(lambda run, task: (joint(run),), _multitask),
    "merged": Way(_merged_stages, _merged),
    "adapted": Way(_adapted_stages, _adapted),
    "routed": Way(all_adapters, _routed),
}
"""Each task's own model; one model of all tasks; the merged network with each task's head; with its
own adapters too (G-Merging-s); with adapters mixed by the router (G-Merging)."""


@dataclass(frozen=True)
class Method:
    """A row of a table: a way of answering, with the settings of its run.

    Attributes:
        name: in results files.
        title: for people.
        run: the run with the row's own settings.
        stage: what measures it, by run, task and kinds of statistics: `score` of a way, or another.
        kinds: see `score`.
        only: the tasks that are measured; none means all of the run.
    """

    name: str
    title: str
    run: Run
    stage: Callable[[Run, str, Kinds], Stage]
    kinds: Kinds = ("stored",)
    only: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are measured."""
        return self.only or self.run.tasks

    @property
    def stages(self) -> list[Stage]:
        """What measures it, task by task."""
        return [self.stage(self.run, task, self.kinds) for task in self.tasks]

    def over_tasks(self) -> dict[str, Any]:
        """Scores of all tasks with averages, by kind of statistics: {metric: {task: test},
        "average", "valid_" + metric: {task: valid}, "valid_average"}, a metric for each target that
        there is (`SCORE_NAMES`); the averages are of the scores, the greater the better."""
        records = {
            task: self.run.result(stage).record
            for task, stage in zip(self.tasks, self.stages, strict=True)
        }
        targets = {task: self.run.dataset(task).info.target for task in records}
        found: dict[str, Any] = {}
        for kind in self.kinds:
            test, valid = (
                {task: record[kind][subset]["score"] for task, record in records.items()}
                for subset in ("test", "valid")
            )
            before = {
                f"valid_{name}": own for name, own in scores_by_metric(valid, targets).items()
            }
            found[kind] = {**scores_by_metric(test, targets), "average": _mean(test)}
            found[kind] |= {**before, "valid_average": _mean(valid)}
        return found


def _mean(values: dict[str, float]) -> float:
    return round(sum(values.values()) / len(values), 5)


def finetuned_method(run: Run) -> Method:
    """What merging is measured against: one model per task."""
    title = "Fine-tuned, one model per task"
    kinds = BOTH if run.family.adapters else ("stored",)
    return Method("finetuned", title, run, partial(_scored, "finetuned"), kinds)


def merger_method(run: Run, how: MergeConfig) -> Method:
    """A merged network with each task's head."""
    varied = replace(run, config=run.config.model_copy(update={"merge": how}))
    published = how.method in ("weight_average", "task_arithmetic") and run.family.adapters
    kinds = BOTH if published else ("stored",)
    title = MERGERS[how.method].title
    return Method(how.method, title, varied, partial(_scored, "merged"), kinds)


def adapted_method(run: Run, name: str, title: str, kinds: Kinds = ("stored",)) -> Method:
    """A merged backbone with each task's own adapters; for the configured merger this is
    G-Merging-s."""
    return Method(name, title, run, partial(_scored, "adapted"), kinds)


def routed_method(run: Run, name: str, title: str, kinds: Kinds = ("stored",)) -> Method:
    """G-Merging: adapters mixed by the router."""
    return Method(name, title, run, partial(_scored, "routed"), kinds)


def gmerging_methods(run: Run) -> list[Method]:
    """The two variants of G-Merging."""
    return [
        adapted_method(run, "gmerging_own", "G-Merging-s (`own`)", BOTH),
        routed_method(run, "gmerging_moe", "G-Merging (`moe`)", BOTH),
    ]


def _scored(way: str, run: Run, task: str, kinds: Kinds) -> Stage:
    return score(run, way, task, kinds)


def recovery(average: float, weight_average: float, finetuned: float) -> float | None:
    """(method - weight average) / (fine-tuned - weight average) of three average scores; None if
    there is nothing to recover.

    The score of an error is minus the error, so that of a regression alone it is the share of the
    error that averaging the weights adds, which the method takes away again.
    """
    gap = finetuned - weight_average
    return round((average - weight_average) / gap, 4) if gap > 0 else None


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "rdkit", "numpy", "scipy", "scikit-learn", "g-merging")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
