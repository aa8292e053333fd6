"""Answers for molecules and graphs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.families.inputs import Graph
from service.core.engine import TaskAnswer
from service.core.reading import ItemFailure


@dataclass(frozen=True)
class Answer:
    """Predictions for one molecule or graph.

    Attributes:
        smiles: canonical SMILES; None for a graph.
        tasks: predictions by task.
        graph: as the model read it; its atoms need not have the order of `smiles`
            (`models.data.located.locate` gives that).
        explanations: by name, what JSON can hold (`service.core.explaining`).
        mol_block: of the molecule, with computed coordinates, where the answer is to be an SDF; an
            error if they could not be computed in time.
    """

    smiles: str | None
    tasks: dict[str, TaskAnswer]
    graph: Graph | None = None
    explanations: Mapping[str, Any] = field(default_factory=dict)
    mol_block: str | ItemFailure | None = None


Result = Answer | ItemFailure
Outcome = dict[str, TaskAnswer] | ItemFailure
"""Predictions by task, or the reason why there are none, of one graph of a pass."""
