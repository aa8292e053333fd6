"""Molecules that a run's tasks train on and that are test molecules of its other tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.files import write_json
from merging.run.run import Run
from merging.run.stages import check_molecules
from merging.studies.markdown import markdown_table


@dataclass(frozen=True)
class TaskMolecules:
    """The molecules of a task, whatever their stereochemistry, as numbers
    (`merging.data.molecule_split.molecule_numbers`).

    Attributes:
        learnt: (n,), of the training and validation rows.
        test: (m,), the different test molecules.
    """

    learnt: Tensor
    test: Tensor


def run_study(run: Run, folder: Path) -> dict[str, Any]:
    """Count for every pair of tasks the rows of the one whose molecule is a test molecule of the
    other, and write `<setting>/overlaps.json` and `<setting>/overlaps.md`.

    Args:
        run: a run on molecules; its seed does not change training and validation rows together.
        folder: of the results.

    Returns:
        {"setting", "seed", "related", "learnt": {task: rows}, "test": {task: molecules}, "rows":
        {learning task: {tested task: rows}}, "left": the same after the rows of related tasks were
        left out}; pairs without such rows are absent.

    Raises:
        ConfigError: the run is not one on molecules.
        DataError: the data of a task are missing or invalid.
    """
    check_molecules(run)
    whole = replace(run, config=run.config.model_copy(update={"related": ()}))
    before, after = _molecules(whole), _molecules(run)
    content = {
        "setting": run.config.setting,
        "seed": run.seed,
        "related": [list(group) for group in run.config.related],
        "learnt": {task: len(own.learnt) for task, own in before.items()},
        "test": {task: len(own.test) for task, own in before.items()},
        "rows": count_overlaps(before),
        "left": count_overlaps(after),
    }
    target = folder / run.config.setting
    write_json(target / "overlaps.json", content)
    (target / "overlaps.md").write_text(overlap_tables(content))
    return content


def _molecules(run: Run) -> dict[str, TaskMolecules]:
    found = {}
    for task in run.tasks:
        # Not by `Run.dataset`, which keeps the graphs of all tasks in memory.
        data = run.family.read(run.config, task, run.folders, run.seed)
        rows = torch.cat([data.split.train, data.split.valid])
        found[task] = TaskMolecules(data.molecules[rows, 1], data.test_molecules)
    return found


def count_overlaps(molecules: Mapping[str, TaskMolecules]) -> dict[str, dict[str, int]]:
    """Count the learnt rows of every task whose molecule is a test molecule of another task:
    {learning task: {tested task: rows}}, without pairs that have none."""
    counts = {
        learning: {
            tested: int(torch.isin(own.learnt, other.test).sum())
            for tested, other in molecules.items()
            if tested != learning
        }
        for learning, own in molecules.items()
    }
    return {
        learning: {tested: rows for tested, rows in found.items() if rows}
        for learning, found in counts.items()
    }


def overlap_tables(content: Mapping[str, Any]) -> str:
    """Tabulate the result of `run_study` in Markdown: every pair of tasks, a row for the one that
    learns and a column for the one that is tested; and what was left out for related tasks."""
    tasks = list(content["learnt"])
    head = ["", "task", "rows", *(str(k) for k in range(1, len(tasks) + 1))]
    rows = []
    for k, learning in enumerate(tasks, 1):
        found = content["rows"][learning]
        cells = [str(found[tested]) if tested in found else "" for tested in tasks]
        rows.append([str(k), learning, str(content["learnt"][learning]), *cells])
    molecules = ["", "test molecules", "", *(str(content["test"][task]) for task in tasks)]
    left_out = [
        [learning, tested, *(f"{value}" for value in counts)]
        for learning, tested, *counts in _left_out(content)
    ]
    titles = ["task that learns", "task that is tested", "rows with its molecules", "of them left"]
    related = markdown_table(titles, left_out) if left_out else "No tasks are said to be related."
    return f"""# Test molecules of one task among the training molecules of another

Training and validation rows of the task of a row whose molecule, whatever its stereochemistry, is a
test molecule of the task of a column, by its number.

{markdown_table(head, [*rows, molecules])}

## Related tasks

{related}
"""


def _left_out(content: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """Return the pairs of related tasks with the number of rows before and after leaving out."""
    pairs = dict.fromkeys(
        (learning, tested)
        for group in content["related"]
        for learning in group
        for tested in group
        if tested in content["rows"][learning]
    )
    return [
        (
            learning,
            tested,
            content["rows"][learning][tested],
            content["left"][learning].get(tested, 0),
        )
        for learning, tested in pairs
    ]
