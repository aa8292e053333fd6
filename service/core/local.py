"""Predictions for one caller in its own process: no queue, no cache, no deadline.

The service answers many clients at a time, so that what shares a pass depends on who else asks.
Here passes depend on the molecules alone: the same molecules in the same groups give the same bits.
"""

from collections.abc import Iterator, Sequence

from models.families.inputs import Graph
from service.core.answer import Outcome, Result
from service.core.engine import PredictionQuery
from service.core.pipeline import run_pass, with_errors
from service.core.reading import ItemFailure, MoleculeLimits, Parsed, Source, read_all
from service.settings import Settings


def predict(query: PredictionQuery, settings: Settings, sources: Sequence[Source]) -> list[Result]:
    """Read molecules in this process and predict for them.

    No time limit is set for reading a molecule: RDKit cannot be interrupted in the process that
    calls it.

    Args:
        query: model, tasks, routing and experts.
        settings: limits of molecules and of passes.
        sources: unread molecules.

    Returns:
        One result per source, in their order.
    """
    limits = MoleculeLimits(settings.max_atoms, settings.max_smiles_length)
    parsed = read_all(sources, limits, query.requirements)
    return predict_parsed(query, parsed, settings.max_batch_cost)


def predict_parsed(
    query: PredictionQuery, parsed: Sequence[Parsed | ItemFailure], max_batch_cost: int
) -> list[Result]:
    """Predict for molecules that were read, in passes of at most `max_batch_cost` (a molecule that
    costs more has a pass of its own). Returns one result per molecule, in their order."""
    graphs = [item.graph for item in parsed if isinstance(item, Parsed)]
    outcomes: list[Outcome] = []
    for portion in _passes(query, graphs, max_batch_cost):
        outcomes += run_pass(query, portion)
    return with_errors(parsed, outcomes)


def _passes(
    query: PredictionQuery, graphs: Sequence[Graph], max_batch_cost: int
) -> Iterator[list[Graph]]:
    portion: list[Graph] = []
    cost = 0
    for graph in graphs:
        added = query.requirements.family.cost(graph) * query.num_streams
        if portion and cost + added > max_batch_cost:
            yield portion
            portion, cost = [], 0
        portion.append(graph)
        cost += added
    if portion:
        yield portion
