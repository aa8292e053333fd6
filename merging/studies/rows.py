"""Every method on every task: the rows of the paper's table, ablations and sweeps. What is measured
once is kept as a piece and read back."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from merging.config.base import fingerprint
from merging.data.molecule_dataset import load_smiles
from merging.mergers.registry import MERGERS
from merging.run.config import BASE_VARIANT
from merging.run.jobs import Job
from merging.run.run import Run
from merging.run.stages import (
    adapted,
    adapter_key,
    finetune_key,
    finetuned,
    finetuned_alone,
    merge_key,
    merged,
    trained_adapters,
    unified,
    unified_key,
    without_adapters,
)
from merging.run.store import Piece
from merging.studies.forests import fit_predict, neutral
from merging.studies.results import (
    both_parts,
    by_metric,
    measure_task,
    swapped,
    task_weights,
)
from merging.training.metrics import predict
from merging.training.multitask import classifier_state, train_multitask
from models.classifier import GraphClassifier
from models.data.smiles import READING_RULE
from models.experts.unified import Routing, Statistics, UnifiedModel
from models.task import Target

Kinds = tuple[Statistics, ...]
BOTH: Kinds = ("stored", "batch")
Scores = dict[str, dict[str, float]]
"""By statistics ("stored", and "batch" where BatchNorm is there) and part ("valid", "test"): a
score, ROC-AUC in [0, 1] for independent labels (`merging.training.metrics.score`)."""


@dataclass(frozen=True)
class Row:
    """A method of the comparison, ready to be measured.

    Attributes:
        name: in results files.
        title: for people.
        run: the run with the row's own settings.
        score: measures a task with each of the given kinds of statistics.
        key: what the score depends on.
        kinds: of BatchNorm statistics; "batch" only where the paper's way of evaluating is to be
            shown, as no served answer comes from it.
        adapters: which it has, those of the measured tasks alone or of all.
        only: the tasks that are measured; none means all of the run.
    """

    name: str
    title: str
    run: Run
    score: Callable[[Run, str, Kinds], Scores]
    key: Callable[[Run, str], str]
    kinds: Kinds = ("stored",)
    adapters: Literal["none", "measured", "all"] = "none"
    only: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are measured."""
        return self.only or self.run.config.tasks

    @property
    def adapted(self) -> tuple[str, ...]:
        """The tasks whose adapters must be trained first."""
        return {"none": (), "measured": self.tasks, "all": self.run.config.tasks}[self.adapters]

    def measure(self, task: str) -> Scores:
        """The scores of a task, measured now or read back."""
        key = fingerprint(self.key(self.run, task), *self.kinds)
        return self.run.record(
            f"evaluation/{self.name}/{task}", key, partial(self.score, self.run, task, self.kinds)
        )

    def over_tasks(self) -> dict[str, Any]:
        """Scores of all tasks with averages: {kind: {"roc_auc": {task: test}, "average",
        "valid_roc_auc": {task: valid}, "valid_average"}}. Tasks of other targets are under the name
        of their metric; the averages are of the scores of all (the greater, the better)."""
        measured = {task: self.measure(task) for task in self.tasks}
        targets = {task: self.run.dataset(task).target for task in self.tasks}
        return {
            kind: _averaged({task: parts[kind] for task, parts in measured.items()}, targets)
            for kind in self.kinds
        }


def _averaged(
    measured: dict[str, dict[str, float]], targets: Mapping[str, Target]
) -> dict[str, Any]:
    test, valid = (
        {task: scores[subset] for task, scores in measured.items()} for subset in ("test", "valid")
    )
    return {
        **by_metric(test, targets),
        "average": _mean(test),
        **{f"valid_{name}": values for name, values in by_metric(valid, targets).items()},
        "valid_average": _mean(valid),
    }


def _mean(values: dict[str, float]) -> float:
    return round(sum(values.values()) / len(values), 5)


# --- the rows of the table ---


def reference_rows(run: Run) -> list[Row]:
    """What merging is measured against: one model per task, one trained on all of them, and no
    network at all."""
    rows = [
        Row(
            "finetuned",
            "Fine-tuned, one model per task",
            run,
            partial(_score_network, finetuned_alone, "own"),
            finetune_key,
            BOTH,
        )
    ]
    if run.config.compare.multitask is not None:
        rows.append(Row("multitask", "Multi-task learning", run, _score_multitask, _multitask_key))
    if run.config.compare.forest_trees is not None:
        rows.append(
            Row(
                "ecfp4_random_forest",
                "ECFP4 + random forest",
                run,
                partial(_score_forest, str),
                _forest_key,
            )
        )
        rows.append(
            Row(
                "ecfp4_random_forest_neutral",
                "the same, charges neutralised",
                run,
                partial(_score_forest, neutral),
                _forest_key,
            )
        )
    return rows


def merger_row(run: Run, method: str, options: dict[str, Any]) -> Row:
    """A merged backbone with each task's head."""
    varied = run.varied(merge={"method": method, "options": options})
    kinds = BOTH if method in ("weight_average", "task_arithmetic") else ("stored",)
    return Row(
        method,
        MERGERS[method].title,
        varied,
        partial(_score_network, without_adapters, "own"),
        _merged_key,
        kinds,
    )


def adapted_row(run: Run, name: str, title: str, kinds: Kinds = ("stored",)) -> Row:
    """A merged backbone with each task's own adapters; for the configured merger this is
    G-Merging-s."""
    return Row(
        name, title, run, partial(_score_network, adapted, "own"), adapter_key, kinds, "measured"
    )


def routed_row(run: Run, name: str, title: str, kinds: Kinds = ("stored",)) -> Row:
    """G-Merging: adapters mixed by the router."""
    return Row(
        name, title, run, partial(_score_network, _unified_for, "moe"), _routed_key, kinds, "all"
    )


def gmerging_rows(run: Run) -> list[Row]:
    """The two variants of the method."""
    return [
        adapted_row(run, "gmerging_own", "G-Merging-s (`own`)", BOTH),
        routed_row(run, "gmerging_moe", "G-Merging (`moe`)", BOTH),
    ]


def candidates(run: Run, method: str) -> list[Row]:
    """A merger with each of its configured option sets."""
    return [merger_row(run, method, options) for options in run.config.compare.mergers[method]]


def merger_candidates(run: Run) -> list[Row]:
    """All that must be measured before mergers are chosen."""
    return [row for method in run.config.compare.mergers for row in candidates(run, method)]


def chosen_merger(run: Run, method: str) -> Row:
    """The candidate of a merger that is best by validation average with stored statistics; the
    earliest of equals."""
    rows = candidates(run, method)
    return (
        max(rows, key=lambda row: row.over_tasks()["stored"]["valid_average"])
        if len(rows) > 1
        else rows[0]
    )


def table_rows(run: Run) -> list[Row]:
    """All rows of a setting's table, in its order. Candidates of mergers are measured to choose
    among them."""
    return [
        *reference_rows(run),
        *(chosen_merger(run, method) for method in run.config.compare.mergers),
        *gmerging_rows(run),
    ]


def ablation_rows(run: Run) -> dict[str, list[Row]]:
    """By group ("ablations", and each sweep) variants of G-Merging. All share `ablation_base`,
    which by itself is the first row of each group."""
    compare = run.config.compare
    base, groups = (
        run.varied(**compare.ablation_base),
        {
            "ablations": compare.ablations,
            **compare.sweeps,
        },
    )
    return {group: _variants(base, changes) for group, changes in groups.items() if changes}


def _variants(base: Run, changes: dict[str, dict[str, dict[str, Any]]]) -> list[Row]:
    """With each task's own adapters; in a group that varies the router, routed."""
    row, name = (
        (routed_row, "gmerging_moe")
        if any("router" in change for change in changes.values())
        else (adapted_row, "gmerging_own")
    )
    only = base.config.compare.ablation_tasks
    return [
        replace(row(base.varied(**change), name, title), only=only)
        for title, change in {BASE_VARIANT: {}, **changes}.items()
    ]


# --- work to be done before rows are measured, in an order in which no two pieces are made twice
# ---


def finetuning_jobs(runs: list[Run]) -> list[Job]:
    """One model per task."""
    return [
        partial(finetuned, run, task)
        for run in runs
        for task in largest_first(run, run.config.tasks)
    ]


def multitask_jobs(runs: list[Run]) -> list[Job]:
    """One model for all tasks, where it is configured."""
    return [partial(multitask, run) for run in runs if run.config.compare.multitask is not None]


def merging_jobs(runs: list[Run]) -> list[Job]:
    """The merged backbone of every run, each once."""
    return [partial(merged, run) for run in {merge_key(run): run for run in runs}.values()]


def adapter_jobs(rows: list[Row]) -> list[Job]:
    """The adapters that the rows need, each once."""
    distinct = {
        adapter_key(row.run, task): partial(trained_adapters, row.run, task)
        for row in rows
        for task in largest_first(row.run, row.adapted)
    }
    return list(distinct.values())


def measuring_jobs(rows: list[Row]) -> list[Job]:
    """The scores of all rows on all tasks."""
    return [
        partial(row.measure, task) for row in rows for task in largest_first(row.run, row.tasks)
    ]


def swap_jobs(runs: list[Run]) -> list[Job]:
    """What the heatmaps show."""
    pairs = [(run, task) for run in runs for task in largest_first(run, run.config.tasks)]
    jobs: list[Job] = [
        partial(swapped, run, source, task) for run, task in pairs for source in run.config.tasks
    ]
    return jobs + [partial(task_weights, run, task) for run, task in pairs]


def largest_first(run: Run, tasks: Iterable[str]) -> list[str]:
    """Tasks by number of molecules, so that no process is left alone with the longest at the
    end."""
    return sorted(tasks, key=lambda task: -len(run.dataset(task).graphs))


# --- pieces and scores ---


def multitask(run: Run) -> Piece:
    """One backbone and all heads, trained together."""
    settings = run.config.compare.multitask
    assert settings is not None  # rows and jobs ask only where it is configured

    def make(checkpoint: Path) -> Piece:
        datasets = {task: run.dataset(task) for task in run.config.tasks}
        result = train_multitask(
            datasets,
            run.pretrained(),
            run.config.pretrained.backbone,
            settings,
            run.seed,
            checkpoint,
            run.device,
        )
        return Piece(result.tensors, {**result.record, "settings": settings.model_dump()})

    return run.piece("multitask", _multitask_key(run, ""), make)


def _score_network(
    model_of: Callable[[Run, str], UnifiedModel],
    routing: Routing,
    run: Run,
    task: str,
    kinds: Kinds,
) -> Scores:
    model = model_of(run, task)
    return {kind: measure_task(run, model, task, routing, kind) for kind in kinds}


def _unified_for(run: Run, task: str) -> UnifiedModel:
    return unified(run)


def _score_multitask(run: Run, task: str, kinds: Kinds) -> Scores:
    dataset = run.dataset(task)
    model = (
        GraphClassifier(run.config.pretrained.backbone, len(dataset.label_names))
        .to(run.device)
        .eval()
    )
    model.load_state_dict(classifier_state(multitask(run).tensors, task))
    return {
        "stored": both_parts(
            dataset, lambda _, rows: predict(model, dataset.graphs, rows, run.device)
        )
    }


def _score_forest(drawn: Callable[[str], str], run: Run, task: str, kinds: Kinds) -> Scores:
    dataset = run.dataset(task)
    smiles = [
        drawn(each)
        for each in load_smiles(dataset, run.config.dataset_for(task), run.data, run.work / "data")
    ]
    scores = fit_predict(dataset, smiles, _trees(run, task), run.seed)
    return {"stored": both_parts(dataset, lambda part, _: scores[part])}


def _merged_key(run: Run, task: str) -> str:
    return fingerprint(merge_key(run), task)


def _routed_key(run: Run, task: str) -> str:
    return unified_key(run)


def _multitask_key(run: Run, task: str) -> str:
    settings = run.config.compare.multitask
    assert settings is not None  # as above
    data = [
        part
        for each in run.config.tasks
        for part in (each, run.config.dataset_for(each), run.dataset(each).source_sha256)
    ]
    return fingerprint(settings, run.start_key(), run.seed, READING_RULE, *data)


def _forest_key(run: Run, task: str) -> str:
    return fingerprint(
        _trees(run, task),
        run.seed,
        run.dataset(task).source_sha256,
        run.config.dataset_for(task),
        READING_RULE,
    )


def _trees(run: Run, task: str) -> int:
    trees = run.config.compare.forest_trees_by_task.get(task, run.config.compare.forest_trees)
    assert trees is not None  # as above
    return trees
