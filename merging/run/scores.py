"""Evaluation of the models of a run on the validation and test data of its tasks."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from merging.data.split import Subset
from merging.family import StateDict
from merging.mergers.registry import MERGERS, MergeConfig
from merging.run.models import (
    adapted_model,
    finetuned_model,
    merged_model,
    shared_model,
    unified_model,
    without_adapters,
)
from merging.run.one_pass import (
    one_pass,
    one_pass_stream,
    one_pass_teacher,
    start_stages,
    start_stream,
    teacher_outputs,
)
from merging.run.run import Run
from merging.run.stage import Stage
from merging.run.stages import (
    adapters,
    heads,
    heads_stage,
    joint,
    shared_weights,
    teacher,
    trained_model,
)
from merging.run.store import StageResult
from merging.targets.metrics import scores_by_metric
from merging.training.supervised import label_scale, standardised
from models.compiled.model import fastest
from models.experts.unified import Routing, Statistics, UnifiedModel, UnifiedOutput

StatisticsKinds = tuple[Statistics, ...]
BOTH_STATISTICS: StatisticsKinds = ("stored", "batch")
Forward = Callable[[Any], Any]
"""Computes a task's outputs for a batch."""
SubsetMetrics = dict[str, dict[str, float]]
"""By subset ("valid", "test") the metrics shown in tables, and "score", which can be averaged over
tasks: greater is better, and errors of regressions are in standard deviations of the labels."""
AUTHORS_BATCH_SIZE = 32
"""Size of the test batches whose statistics normalise them, as in the G-Merging authors' code."""


@dataclass(frozen=True)
class Evaluation:
    """A kind of model that is evaluated.

    Attributes:
        stages: returns the stages that the model of a run and a task is built from.
        forward: builds that model, for a kind of BatchNorm statistics.
    """

    stages: Callable[[Run, str], tuple[Stage, ...]]
    forward: Callable[[Run, str, Statistics], Forward]


def evaluation(name: str, run: Run, task: str, kinds: StatisticsKinds = ("stored",)) -> Stage:
    """Return the stage that evaluates a model on a task; its record is `SubsetMetrics` by kind of
    statistics.

    Args:
        name: a key of `EVALUATIONS`.
        run: the run that the model belongs to.
        task: the task whose data are used.
        kinds: kinds of BatchNorm statistics. "batch" reproduces the evaluation of the paper; no
            served answer uses it.
    """
    inputs, size = EVALUATIONS[name].stages(run, task), run.dataset(task).size
    make = partial(_make_evaluation, name, run, task, kinds)
    settings = *kinds, run.config.routing
    return Stage(f"evaluation/{name}/{task}", run.seed, settings, inputs, make, size)


def _make_evaluation(
    name: str, run: Run, task: str, kinds: StatisticsKinds, _: Path
) -> StageResult:
    forward = {kind: EVALUATIONS[name].forward(run, task, kind) for kind in kinds}
    return StageResult(record={kind: evaluate(run, forward[kind], task, kind) for kind in kinds})


def evaluate(run: Run, forward: Forward, task: str, kind: Statistics = "stored") -> SubsetMetrics:
    """Compute the metrics of a model on the validation and test rows of a task. With batch
    statistics, batches have 32 molecules, in the order of the split."""
    data, family = run.dataset(task), run.family
    size = AUTHORS_BATCH_SIZE if kind == "batch" else family.evaluation_batch
    metrics: SubsetMetrics = {}
    for subset in ("valid", "test"):
        predictions = family.predict(forward, data.steps(subset, size), run.device)
        metrics[subset] = subset_metrics(run, task, *predictions)
    return metrics


def subset_metrics(run: Run, task: str, outputs: Any, labels: Any) -> dict[str, float]:
    """Compute the metrics and the score of a task's outputs on one subset (`SubsetMetrics`)."""
    data, family = run.dataset(task), run.family
    metrics, scale = family.metrics(outputs, labels, data.info), label_scale(data)
    values = {name: metrics[name] for name in family.table_metrics(data.info)}
    values["score"] = family.score(
        standardised(scale, outputs), standardised(scale, labels), data.info
    )
    return {name: round(value, 5) for name, value in values.items()}


def predict_subset(run: Run, forward: Forward, task: str, subset: Subset) -> tuple[Any, Any]:
    """Compute the outputs of `forward` on the rows of a subset of a task; return them and the
    labels, on the CPU."""
    steps = run.dataset(task).steps(subset, run.family.evaluation_batch)
    outputs, labels = run.family.predict(forward, steps, run.device)
    return outputs, labels


def main_metric(run: Run, task: str) -> str:
    """Return the name of the main metric of a task."""
    metric: str = run.dataset(task).info.main_metric
    return metric


def unified_forward(
    run: Run, model: UnifiedModel, task: str, routing: Routing = "own", kind: Statistics = "stored"
) -> Forward:
    """Return the function from a batch to a unified model's logits for a task; with stored
    statistics as the service computes them, by the compiled model where there is one."""
    answer: Callable[..., UnifiedOutput] = (
        fastest(model.eval()) if kind == "stored" else partial(model, statistics=kind)
    )
    return lambda batch: answer(batch, [task], routing).logits[task]


def plain_forward(run: Run, task: str, network: StateDict, head: StateDict) -> Forward:
    """Return the function from a batch to the outputs of a network with a task's head, without
    adapters."""
    data = run.dataset(task)
    modules = run.family.load_model(run.config.shape, network, head, data)
    on_device = modules[0].to(run.device), modules[1].to(run.device)
    return lambda batch: run.family.outputs(*on_device, batch, data.info, training=False)


def _trained(run: Run, task: str, stage: Stage) -> Forward:
    model = trained_model(run, stage)
    return plain_forward(run, task, model.network, model.heads[task])


def _finetuned(run: Run, task: str, kind: Statistics) -> Forward:
    if run.family.batch_norm:
        return unified_forward(run, finetuned_model(run, task), task, kind=kind)
    return _trained(run, task, teacher(run, task))


def _merged(run: Run, task: str, kind: Statistics) -> Forward:
    if run.family.batch_norm:
        return unified_forward(run, merged_model(run, task), task, kind=kind)
    return plain_forward(run, task, shared_weights(run, task), heads(run)[task])


def _one_pass(run: Run, task: str, kind: Statistics) -> Forward:
    stream = one_pass_stream(run)
    return lambda batch: stream(batch).outputs[task]


def _one_pass_routed(run: Run, task: str, kind: Statistics) -> Forward:
    backbone, experts = shared_model(run)
    model = UnifiedModel(backbone, experts, run.config.routing).to(run.device)
    return unified_forward(run, model, task, "moe", kind)


def _one_pass_start(run: Run, task: str, kind: Statistics) -> Forward:
    stream = start_stream(run, task)
    head = stream.heads[0].state_dict()
    if not run.family.batch_norm:
        return plain_forward(run, task, stream.backbone.state_dict(), head)
    model = without_adapters(run, stream.backbone, task, head)
    return unified_forward(run, model, task, kind=kind)


def all_adapters(run: Run, task: str = "") -> tuple[Stage, ...]:
    """Return the stages that train the adapters of all tasks."""
    return tuple(adapters(run, name) for name in run.tasks)


EVALUATIONS: dict[str, Evaluation] = {
    "finetuned": Evaluation(lambda run, task: (teacher(run, task),), _finetuned),
    "multitask": Evaluation(
        lambda run, task: (joint(run),), lambda run, task, kind: _trained(run, task, joint(run))
    ),
    "merged": Evaluation(lambda run, task: (heads_stage(run), teacher(run, task)), _merged),
    "adapted": Evaluation(
        lambda run, task: (adapters(run, task),),
        lambda run, task, kind: unified_forward(run, adapted_model(run, task), task, kind=kind),
    ),
    "routed": Evaluation(
        all_adapters,
        lambda run, task, kind: unified_forward(run, unified_model(run), task, "moe", kind),
    ),
    "routed_merged": Evaluation(
        all_adapters,
        lambda run, task, kind: unified_forward(run, unified_model(run), task, "merged", kind),
    ),
    "one_pass": Evaluation(lambda run, task: (one_pass(run),), _one_pass),
    "one_pass_routed": Evaluation(lambda run, task: (one_pass(run),), _one_pass_routed),
    # The outputs on the pool are not read; they identify the teacher.
    "one_pass_teachers": Evaluation(
        lambda run, task: (teacher_outputs(run, task),),
        lambda run, task, kind: one_pass_teacher(run, task).outputs,
    ),
    "one_pass_start": Evaluation(
        lambda run, task: (teacher_outputs(run, task), *start_stages(run)), _one_pass_start
    ),
}
"""Every task's own model; one model trained on all tasks; the merged network with the task's head;
the same with the task's adapters (G-Merging-s); with adapters mixed by the router (G-Merging); with
one adapter of averaged parameters (routing `merged`); one network aligned with all teachers, which
answers all tasks in one pass; the same with the graph adapters of its tasks mixed by the router;
its teachers; the backbone that it started from, with the heads that it started from."""


@dataclass(frozen=True)
class Method:
    """A row of a results table: an evaluation with the settings of its run.

    Attributes:
        name: key in results files.
        title: name in tables and figures.
        run: the run, with the row's settings.
        stage: returns the stage that evaluates a task, such as `partial(evaluation, "merged")`.
        kinds: kinds of BatchNorm statistics.
        only: names of the tasks to evaluate; empty for all tasks of the run.
    """

    name: str
    title: str
    run: Run
    stage: Callable[[Run, str, StatisticsKinds], Stage]
    kinds: StatisticsKinds = ("stored",)
    only: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the evaluated tasks."""
        return self.only or self.run.tasks

    @property
    def stages(self) -> list[Stage]:
        """The stages that evaluate the tasks, one per task."""
        return [self.stage(self.run, task, self.kinds) for task in self.tasks]

    def task_scores(self) -> dict[str, Any]:
        """Return the scores of all tasks with averages, by kind of statistics: {metric: {task:
        test}, "average", "valid_" + metric: {task: valid}, "valid_average"}, with a metric for
        every target that occurs (`SCORE_NAMES`). In averages, greater is better."""
        records = {
            task: self.run.result(stage).record
            for task, stage in zip(self.tasks, self.stages, strict=True)
        }
        infos = {task: self.run.dataset(task).info for task in records}
        by_kind: dict[str, Any] = {kind: {} for kind in self.kinds}
        for kind, scores in by_kind.items():
            for subset, prefix in (("test", ""), ("valid", "valid_")):
                values = {task: record[kind][subset]["score"] for task, record in records.items()}
                for name, by_task in scores_by_metric(values, infos).items():
                    scores[f"{prefix}{name}"] = by_task
                scores[f"{prefix}average"] = round(sum(values.values()) / len(values), 5)
        return by_kind


def finetuned_method(run: Run) -> Method:
    """Return the row of the fine-tuned models, one per task."""
    title = "Fine-tuned, one model per task"
    return Method("finetuned", title, run, partial(evaluation, "finetuned"), _both(run))


def _both(run: Run) -> StatisticsKinds:
    """Both kinds of statistics, where networks have BatchNorm."""
    return BOTH_STATISTICS if run.family.batch_norm else ("stored",)


def joint_method(run: Run, title: str) -> Method:
    """Return the row of one model trained on all tasks."""
    return Method("multitask", title, run, partial(evaluation, "multitask"))


def merger_method(run: Run, config: MergeConfig) -> Method:
    """Return the row of a merger without adapters."""
    merged_run = replace(run, config=run.config.model_copy(update={"merge": config}))
    published = config.method in ("weight_average", "task_arithmetic")
    kinds: StatisticsKinds = _both(run) if published else ("stored",)
    title = MERGERS[config.method].title
    return Method(config.method, title, merged_run, partial(evaluation, "merged"), kinds)


def adapted_method(run: Run, name: str, title: str, kinds: StatisticsKinds = ("stored",)) -> Method:
    """Return the row of the merged backbone with every task's own adapters (G-Merging-s)."""
    return Method(name, title, run, partial(evaluation, "adapted"), kinds)


def routed_method(run: Run, name: str, title: str, kinds: StatisticsKinds = ("stored",)) -> Method:
    """Return the row of the merged backbone with adapters mixed by the router (G-Merging)."""
    return Method(name, title, run, partial(evaluation, "routed"), kinds)


def gmerging_methods(run: Run) -> list[Method]:
    """Return the rows of the two variants of G-Merging."""
    return [
        adapted_method(run, "gmerging_own", "G-Merging-s (`own`)", _both(run)),
        routed_method(run, "gmerging_moe", "G-Merging (`moe`)", _both(run)),
    ]


def one_pass_method(run: Run) -> Method:
    """Return the row of one network aligned with all teachers (joint alignment)."""
    title = "One pass (joint alignment)"
    return Method("one_pass", title, run, partial(evaluation, "one_pass"))


def one_pass_methods(run: Run) -> list[Method]:
    """Return the row of joint alignment and those of its references."""
    titles = {
        "one_pass_teachers": "Teachers, one model per task",
        "one_pass_start": "Start, without training",
    }
    references = [
        Method(name, title, run, partial(evaluation, name)) for name, title in titles.items()
    ]
    return [*references, one_pass_method(run)]


def recovery(average: float, weight_average: float, finetuned_model: float) -> float | None:
    """Compute the share of the gap that a method closes, (method - weight average) / (fine-tuned -
    weight average), from average scores; None if there is no gap.

    The score of a regression is minus its error: there it is the share removed of the error that
    weight averaging adds.
    """
    gap = finetuned_model - weight_average
    return round((average - weight_average) / gap, 4) if gap > 0 else None


def environment() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    packages = ("torch", "rdkit", "numpy", "scipy", "scikit-learn", "g-merging")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
