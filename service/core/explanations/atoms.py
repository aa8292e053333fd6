"""`explain: ["atoms"]`: what every atom contributes to an answer.

The contributions of the network are exact (`UnifiedModel.node_sums`), those of the trees are exact
Shapley values of the fingerprint's columns (`Forest.column_sums`), which are spread over the atoms
that set them. They are weighed and scaled as the answer is, so that baseline and contributions sum
to it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.data.fingerprint import BITS, DESCRIPTORS
from models.data.located import LocatedColumn
from models.experts.contributions import AnswerSum, ExpertSum
from models.task import OutputKind
from service.core.answer import Answer, Result
from service.core.engine import EngineInfo, PredictionQuery
from service.core.explaining import Explained
from service.core.explanations.locating import Located, Wire, locate, received, send
from service.core.parsing import Parser
from service.core.reading import InputRequirements, ItemFailure

SCALES: Mapping[OutputKind, str] = {
    "multilabel": "log_odds",
    "multiclass": "logit",
    "regression": "value",
    "log10_regression": "log10_value",
}
"""What the outputs are that contributions sum to, by the kind of the task's outputs."""
_LISTED_BITS = 10
_DECIMALS = 8


@dataclass(frozen=True)
class AtomsQuery:
    """What is asked of the model. Requests with equal queries share passes.

    Attributes:
        query: that was answered.
        labels: by task, positions of labels.
    """

    query: PredictionQuery
    labels: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, query: PredictionQuery, labels: Mapping[str, Sequence[str]]) -> "AtomsQuery":
        """Create a query for labels, by task."""
        known = query.engine.info.labels
        return cls(
            query,
            tuple((task, tuple(map(known[task].index, names))) for task, names in labels.items()),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks with a label to be explained."""
        return tuple(task for task, _ in self.labels)

    @property
    def requirements(self) -> InputRequirements:
        """Requirements of inputs that these tasks accept."""
        query = self.query
        return query.engine.info.requirements_for(self.tasks, query.experts)

    def run(self, molecules: Sequence[Located]) -> list[dict[str, Any]]:
        """Explain molecules in one pass of the model; one explanation per molecule, by task and
        label, as JSON holds it."""
        query = self.query
        graphs = [molecule.graph for molecule in molecules]
        found = query.engine.split(graphs, dict(self.labels), query.routing, query.experts)
        return [
            {
                task: _by_label(query.engine.info, task, positions, split[task], molecule)
                for task, positions in self.labels
            }
            for split, molecule in zip(found, molecules, strict=True)
        ]


def _by_label(
    info: EngineInfo, task: str, positions: Sequence[int], split: AnswerSum, molecule: Located
) -> dict[str, Any]:
    described = info.task_infos[task]
    return {
        described.labels[position]: {
            "scale": SCALES[described.output_kind],
            "output": _rounded(split.outputs[k]),
            "baseline": _rounded(split.baseline[k]),
            "experts": {
                name: _of_expert(expert, k, molecule) for name, expert in split.experts.items()
            },
        }
        for k, position in enumerate(positions)
    }


def _of_expert(expert: ExpertSum, label: int, molecule: Located) -> dict[str, Any]:
    if expert.columns is None:
        assert expert.nodes is not None
        atoms = expert.nodes[:, label]
        return {"weight": expert.weight, "atoms": _list(atoms), "other": 0.0}
    contributions, located = expert.columns[label], molecule.columns
    atoms = np.zeros(molecule.graph.num_nodes)
    for column, where in located.items():
        atoms[list(where.shares)] += contributions[column] * np.array([*where.shares.values()])
    return {
        "weight": expert.weight,
        "atoms": _list(atoms),
        "other": _rounded(np.delete(contributions, list(located)).sum()),
        "bits": _largest(contributions, located),
    }


def _largest(
    contributions: NDArray[np.float64], located: Mapping[int, LocatedColumn]
) -> list[dict[str, Any]]:
    """Return the columns that contribute most, up or down."""
    order = np.argsort(-np.abs(contributions), kind="stable")[:_LISTED_BITS]
    return [
        {
            "name": located[k].name if k in located else DESCRIPTORS[k - BITS],
            "atoms": [*located[k].shares] if k in located else [],
            "contribution": _rounded(contributions[k]),
        }
        for k in order.tolist()
        if contributions[k]
    ]


def _list(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values.round(_DECIMALS) + 0.0]  # no -0.0


def _rounded(value: Any) -> float:
    return float(round(float(value), _DECIMALS)) + 0.0


class Submit(Protocol):
    """Puts explained molecules into the queue of the model's thread."""

    async def __call__(
        self, query: AtomsQuery, molecules: Sequence[Located], costs: Sequence[int], deadline: float
    ) -> list[dict[str, Any]]:
        """Explain molecules: see `Batcher.submit`."""
        ...


class AtomsExplainer:
    """Explains answers by their atoms: an `Explainer`."""

    def __init__(self, parser: Parser, submit: Submit) -> None:
        """Create an explainer that reads with `parser` and runs the model with `submit`."""
        self._parser, self._submit = parser, submit

    async def __call__(
        self,
        query: PredictionQuery,
        answers: Sequence[Answer],
        explained: Explained,
        deadline: float,
    ) -> list[dict[str, Any] | ItemFailure]:
        """Explain answers: see `Explainer`."""
        asked = AtomsQuery.of(query, explained.labels)
        requirements = asked.requirements
        work: Callable[[str], Wire | ItemFailure] = partial(send, requirements=requirements)
        texts = [answer.smiles for answer in answers if answer.smiles is not None]
        read = iter(await self._parser.apply(texts, work, "read") if texts else [])
        results: list[Located | ItemFailure] = []
        for answer in answers:
            if answer.smiles is None:
                assert answer.graph is not None
                results.append(Located(answer.graph))
            else:
                wire = next(read)
                results.append(wire if isinstance(wire, ItemFailure) else received(wire))
        molecules = [result for result in results if isinstance(result, Located)]
        if not molecules:
            return [result for result in results if isinstance(result, ItemFailure)]
        streams = query.engine.info.count_streams(asked.tasks)
        costs = [requirements.family.cost(molecule.graph) * streams for molecule in molecules]
        found = iter(await self._submit(asked, molecules, costs, deadline))
        return [result if isinstance(result, ItemFailure) else next(found) for result in results]


def explain_atoms(
    query: PredictionQuery, results: Sequence[Result], explained: Explained
) -> list[Result]:
    """Add explanations to answers for molecules, in this process and thread; errors stay as they
    are."""
    asked = AtomsQuery.of(query, explained.labels)
    explained_results: list[Result] = []
    for result in results:
        if isinstance(result, Answer):
            assert result.smiles is not None  # graphs are not read in this way
            (atoms,) = asked.run([locate(result.smiles, asked.requirements)])
            result = replace(result, explanations={**result.explanations, "atoms": atoms})
        explained_results.append(result)
    return explained_results
