"""Measured scores beside the public leaderboards of TDC's ADMET benchmark group (Huang et al.
2021)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merging.data.files import read_json, write_json
from merging.run.forests import EXPERT_EVALUATIONS, expert_evaluation
from merging.run.run import Run
from merging.run.scores import EVALUATIONS, evaluation, main_metric
from merging.run.stage import Stage
from merging.studies.markdown import markdown_table
from merging.studies.report import Build
from models.errors import ConfigError, DataError
from models.task import Metric
from models.validation import one_of, problems_of

METHODS = (*EVALUATIONS, *EXPERT_EVALUATIONS)
"""Names of what can be measured."""
BoardMetric = Literal["AUROC", "AUPRC", "Spearman", "MAE"]
METRIC_OF: dict[BoardMetric, Metric] = {
    "AUROC": "roc_auc",
    "AUPRC": "auprc",
    "Spearman": "spearman",
    "MAE": "mae",
}
"""Our names of the boards' metrics."""
REFERENCES = ("ContextPred", "AttrMasking", "Chemprop-RDKit", "MapLight + GNN")
"""Entries of the boards that have a column of their own: the two fine-tuned GINs of Hu et al. 2020,
the network beside descriptors, and the best list that others could reproduce."""
TEACHER = "ContextPred"
"""The entry that fine-tuned models are compared with in its standard deviations."""
BEST = "best listed"
_DIGITS = 3  # of the boards
File = TypeVar("File", bound=BaseModel)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Board(_File):
    """The leaderboard of a task.

    Attributes:
        metric: MAE, of which less is better, or another one.
        note: on the origin of the entries.
        entries: name, mean and standard deviation over seeds.
    """

    metric: BoardMetric
    note: str = ""
    entries: tuple[tuple[str, float, float], ...] = Field(min_length=1)

    @property
    def sign(self) -> int:
        """1 if greater is better, else -1."""
        return -1 if self.metric == "MAE" else 1

    def find(self, name: str) -> tuple[str, float, float] | None:
        """Return an entry by its name, or the best one for `BEST`; None if there is none."""
        if name == BEST:
            return max(self.entries, key=lambda entry: self.sign * entry[1])
        return next((entry for entry in self.entries if entry[0] == name), None)


class Boards(_File):
    """Leaderboards by task, and where they were collected."""

    source: str
    tasks: dict[str, Board]


class Scores(_File):
    """Measured test scores, in the units of the labels.

    Attributes:
        metrics: by task.
        methods: by method and task, the values by seed.
    """

    metrics: dict[str, Metric] = {}
    methods: dict[str, dict[str, dict[int, float]]] = {}


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value) and number of values."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Compute them."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def read_boards(path: Path) -> Boards:
    """Read leaderboards: {"source", "tasks": {task: {"metric", "entries": [[name, mean, std],
    ...]}}}. Raises DataError: the file does not exist or holds something else."""
    return _read(path, Boards)


def read_scores(path: Path) -> Scores:
    """Read the file that `collect_scores` writes. Raises DataError: the file does not exist or
    holds something else."""
    return _read(path, Scores)


def _read(path: Path, kind: type[File]) -> File:
    content = read_json(path)
    if content is None:
        raise DataError(f"got no file {path}, expected {(kind.__doc__ or '').splitlines()[0]}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {problems_of(error, kind)}") from error


def collect_scores(
    runs: Sequence[Run], methods: Sequence[str], tasks: Sequence[str], path: Path, build: Build
) -> Scores:
    """Measure methods on the test molecules of tasks, and add the main metrics to a file of scores,
    which keeps its other methods, tasks and seeds.

    Args:
        runs: one run per seed.
        methods: names among `METHODS`.
        tasks: of the runs.
        path: of the file.
        build: runs the stages.

    Raises:
        ConfigError: a method is unknown.
        DataError: the file holds something else than scores.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"got method {method!r}, expected {one_of(method, METHODS)}")
    stages: dict[tuple[str, str, int], tuple[Run, Stage]] = {
        (method, task, run.seed): (run, _evaluation(method, run, task))
        for method in methods
        for task in tasks
        for run in runs
    }
    build([stage for _, stage in stages.values()], "scores")
    before = read_scores(path) if path.is_file() else Scores()
    scores = before.model_dump()
    scores["metrics"] |= {task: main_metric(runs[0], task) for task in tasks}
    for (method, task, seed), (run, stage) in stages.items():
        value = run.result(stage).record["stored"]["test"][scores["metrics"][task]]
        scores["methods"].setdefault(method, {}).setdefault(task, {})[seed] = value
    found = Scores.model_validate(scores)
    write_json(path, json.loads(found.model_dump_json()))
    return found


def _evaluation(method: str, run: Run, task: str) -> Stage:
    made = expert_evaluation if method in EXPERT_EVALUATIONS else evaluation
    return made(method, run, task)


def compare_with_boards(scores: Scores, boards: Boards) -> dict[str, Any]:
    """Compare measured scores with leaderboards.

    A method counts as no worse than an entry if its mean over seeds, rounded to three digits as the
    boards are, is as good or better.

    Returns:
        {"source", "tasks": {task: {"metric", "ours": {method: {"mean", "std", "seeds"}}, "board":
        {name: [name, mean, std]}}}, "no_worse": {method: {name: [tasks, compared tasks]}},
        "difference": {method: {"mean": of (ours - ContextPred) / its standard deviation, positive
        where ours is better, "tasks": their number}}}, for the tasks that have a board.

    Raises:
        DataError: no task has a board, or a task was measured by another metric than its board.
    """
    tasks = {task: board for task, board in boards.tasks.items() if _measured(scores, task)}
    if not tasks:
        measured = ", ".join(scores.metrics) or "none"
        raise DataError(f"got scores of {measured}, expected some of {', '.join(boards.tasks)}")
    for task, board in tasks.items():
        expected = METRIC_OF[board.metric]
        if scores.metrics.get(task) != expected:
            got = f"{task}: got scores by {scores.metrics.get(task)}"
            raise DataError(f"{got}, expected {expected} as its board")
    return {
        "source": boards.source,
        "tasks": {task: _compared(scores, task, board) for task, board in tasks.items()},
        "no_worse": {
            method: {name: _count(scores, tasks, method, name) for name in (*REFERENCES, BEST)}
            for method in scores.methods
        },
        "difference": {method: _difference(scores, tasks, method) for method in scores.methods},
    }


def _measured(scores: Scores, task: str) -> dict[str, Spread]:
    """Return the spread over seeds of every method that was measured on a task."""
    return {
        method: Spread.of(list(by_task[task].values()))
        for method, by_task in scores.methods.items()
        if by_task.get(task)
    }


def _compared(scores: Scores, task: str, board: Board) -> dict[str, Any]:
    found = {name: board.find(name) for name in (*REFERENCES, BEST)}
    return {
        "metric": board.metric,
        "ours": {
            method: {"mean": own.mean, "std": own.std, "seeds": own.count}
            for method, own in _measured(scores, task).items()
        },
        "board": {name: list(entry) for name, entry in found.items() if entry is not None},
    }


def _count(scores: Scores, tasks: Mapping[str, Board], method: str, name: str) -> list[int]:
    """Return on how many tasks a method is no worse than an entry, and how many have both."""
    results = []
    for task, board in tasks.items():
        own, entry = _measured(scores, task).get(method), board.find(name)
        if own is not None and entry is not None:
            results.append(board.sign * (round(own.mean, _DIGITS) - round(entry[1], _DIGITS)) >= 0)
    return [sum(results), len(results)]


def _difference(scores: Scores, tasks: Mapping[str, Board], method: str) -> dict[str, Any]:
    values = []
    for task, board in tasks.items():
        own, entry = _measured(scores, task).get(method), board.find(TEACHER)
        if own is not None and entry is not None and entry[2] > 0:
            values.append(board.sign * (own.mean - entry[1]) / entry[2])
    return {"mean": fmean(values) if values else None, "tasks": len(values)}


def boards_tables(content: Mapping[str, Any]) -> str:
    """Tabulate the result of `compare_with_boards` in Markdown."""
    methods = list(content["no_worse"])
    rows = []
    for task, compared in content["tasks"].items():
        ours = [_ours(compared["ours"].get(method)) for method in methods]
        board = [_entry(compared["board"].get(name)) for name in REFERENCES]
        name, mean, std = compared["board"][BEST]
        best = f"{_entry([name, mean, std])} ({name})"
        rows.append([task, compared["metric"], *ours, *board, best])
    table = markdown_table(["task", "metric", *methods, *REFERENCES, BEST], rows)
    counts = []
    for method in methods:
        pairs = content["no_worse"][method].values()
        difference = content["difference"][method]
        shown = "" if difference["mean"] is None else f"{difference['mean']:+.2f}"
        cells = [f"{won} of {of}" for won, of in pairs]
        counts.append([method, *cells, f"{shown} ({difference['tasks']} tasks)"])
    head = ["method", *REFERENCES, BEST, f"mean difference to {TEACHER}"]
    return f"""# Test scores beside TDC's ADMET leaderboards

Mean ± sample standard deviation over seeds, in brackets the number of seeds; of MAE, less is
better. Leaderboards: {content["source"]}.

{table}

Tasks on which a method is no worse than an entry, at the boards' three digits; and the mean over
tasks of the difference to {TEACHER}, in standard deviations of {TEACHER} (positive: better):

{markdown_table(head, counts)}
"""


def _ours(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return ""
    spread = "" if own["std"] is None else f" ± {own['std']:.3f}"
    return f"{own['mean']:.3f}{spread} ({own['seeds']})"


def _entry(entry: Sequence[Any] | None) -> str:
    return "" if entry is None else f"{entry[1]:.3f} ± {entry[2]:.3f}"


def run_study(scores: Path, boards: Path, folder: Path) -> dict[str, Any]:
    """Compare a file of scores with a file of leaderboards, and write `boards.json` and `boards.md`
    into a folder. Raises DataError: see `compare_with_boards`, or a file cannot be read."""
    content = compare_with_boards(read_scores(scores), read_boards(boards))
    write_json(folder / "boards.json", content)
    (folder / "boards.md").write_text(boards_tables(content))
    return content
