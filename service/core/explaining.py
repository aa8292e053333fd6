"""What a request asks to be explained, beside the predictions themselves.

An explanation has a name, by which a request asks for it (`explain`) and under which the answer of
a molecule holds it. `routing` and `experts` are parts of every prediction and are only shown. The
others are computed on demand, by an `Explainer` each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from models.errors import did_you_mean
from service.core.answer import Answer, Result
from service.core.engine import EngineInfo, PredictionQuery, UnsupportedQueryError
from service.core.reading import ItemFailure
from service.schemas import ExplanationName

MOST_LABELS = 20
"""Labels of a request whose atoms may be explained: an answer has a number per atom and label."""
SHOWN: tuple[ExplanationName, ...] = ("routing", "experts")
"""Explanations that every prediction carries."""


@dataclass(frozen=True)
class Explained:
    """What is to be explained.

    Attributes:
        names: of the explanations, in the order of the request.
        labels: by task the labels that explanations by label are about; all labels of the asked
            tasks if the request names none.
        named: True if the request named the labels.
    """

    names: tuple[ExplanationName, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    named: bool = False

    @property
    def computed(self) -> tuple[ExplanationName, ...]:
        """Explanations that predictions do not carry."""
        return tuple(name for name in self.names if name not in SHOWN)

    @classmethod
    def checked(
        cls,
        names: Sequence[ExplanationName],
        info: EngineInfo,
        tasks: Sequence[str],
        labels: Sequence[str] | None,
        most_labels: int | None = None,
    ) -> "Explained":
        """Return what a client asks for.

        Args:
            names: explanations.
            info: of the model.
            tasks: that are answered.
            labels: `task.label` each; None for all labels of the tasks.
            most_labels: limit of labels whose atoms are explained; None for no limit.

        Raises:
            UnsupportedQueryError: a label is none of the tasks', the model cannot be explained in
                this way, or there are too many labels.
        """
        chosen = cls._chosen(info, tasks, labels)
        if "atoms" in names:
            info.check_atoms(chosen)
            count = sum(map(len, chosen.values()))
            if most_labels is not None and count > most_labels:
                got = f"got explain ['atoms'] for {count} labels, expected at most {most_labels}"
                raise UnsupportedQueryError(
                    "too_many_labels",
                    f"{got}, named by explain_labels",
                    limit={"explained_labels": most_labels},
                )
        return cls(tuple(names), chosen, named=labels is not None)

    @staticmethod
    def _chosen(
        info: EngineInfo, tasks: Sequence[str], labels: Sequence[str] | None
    ) -> dict[str, tuple[str, ...]]:
        known = {f"{task}.{label}": (task, label) for task in tasks for label in info.labels[task]}
        if labels is None:
            return {task: info.labels[task] for task in tasks}
        for name in labels:
            if name not in known:
                got = f"explain_labels: got unknown label {name[:100]!a}"
                expected = f"expected `task.label` of an asked task{did_you_mean(name, known)}"
                raise UnsupportedQueryError("invalid_request", f"{got}, {expected}")
        chosen: dict[str, tuple[str, ...]] = {}
        for name in dict.fromkeys(labels):
            task, label = known[name]
            chosen[task] = (*chosen.get(task, ()), label)
        return chosen

    def num_streams(self, info: EngineInfo) -> int:
        """Return the number of streams that the model computes for explanations, beside those of
        the predictions."""
        return info.count_streams([*self.labels]) if "atoms" in self.names else 0


def explanations_of(info: EngineInfo, task: str) -> tuple[ExplanationName, ...]:
    """Return the names of the explanations that answers of a task can have."""
    family = info.requirements.family
    offered: dict[ExplanationName, bool] = {
        "routing": bool(info.sites),
        "experts": True,
        "atoms": family.node_sums is not None and info.task_infos[task].level == "graph",
        "domain": task in info.domains,
        "drugs": info.drugs is not None and task in info.drugs.quantiles,
        "alerts": family.read_texts is not None,
    }
    return tuple(name for name, is_offered in offered.items() if is_offered)


def add_explanation(shown: dict[str, Any], name: ExplanationName, value: Any) -> None:
    """Add an explanation to those of an answer; an error goes to `explanation_errors`, None
    nowhere."""
    if isinstance(value, ItemFailure):
        error = {"code": value.code, "message": value.message}
        shown.setdefault("explanation_errors", {})[name] = error
    elif value is not None:
        shown[name] = value


def with_explanations(
    results: Sequence[Result], found: Mapping[ExplanationName, Sequence[Any]]
) -> list[Result]:
    """Add explanations to the answers among results.

    Args:
        results: answers and errors.
        found: by name, a value for each answer, as of `Explainer`.
    """
    explained: list[Result] = []
    answers = 0
    for result in results:
        if isinstance(result, Answer):
            shown = dict(result.explanations)
            for name, values in found.items():
                add_explanation(shown, name, values[answers])
            result = replace(result, explanations=shown)
            answers += 1
        explained.append(result)
    return explained


NOTHING = Explained()
"""No explanation."""


class Explainer(Protocol):
    """Computes one explanation."""

    async def __call__(
        self,
        query: PredictionQuery,
        answers: Sequence[Answer],
        explained: Explained,
        deadline: float,
    ) -> list[Any]:
        """Explain answers.

        Args:
            query: model, tasks, routing and experts that answered.
            answers: of molecules or graphs, at least one.
            explained: what was asked.
            deadline: on the clock of the batcher; work still waiting then is given up.

        Returns:
            One value per answer, which JSON can hold; None leaves the explanation out, an
            `ItemFailure` says why there is none.

        Raises:
            UnsupportedQueryError: the model cannot be explained in this way.
        """
        ...
