"""Explanations as tables: what `explain` of `/predict` adds to answers, for `gmerging.Model`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.data.alerts import structural_alerts
from service.core.answer import Answer
from service.core.engine import PredictionQuery
from service.core.explaining import Explained
from service.core.explanations.domain import check_domain, explain_domains, similarity_fingerprint
from service.core.explanations.drugs import check_drugs, percentiles
from service.formats.answers import item

if TYPE_CHECKING:
    import pandas as pd

_BAND = ("from", "to", "molecules", "metric", "score", "error", "error_of_base")
_DOMAIN_COLUMNS = (
    *("molecule", "task", "label", "similarity", "row"),
    *(f"band_{name}" for name in _BAND),
    *("conformal", "coverage", "spread"),
)
_SUM_COLUMNS = (
    *("molecule", "smiles", "task", "label"),
    *("scale", "output", "baseline", "atoms", "other"),
)
_ATOM_COLUMNS = ("molecule", "task", "label", "expert", "atom", "contribution")
_EXPERT_COLUMNS = ("molecule", "task", "expert", "weight", "label", "value")
_DRUG_COLUMNS = ("molecule", "task", "label", "value", "percentile")
_ALERT_COLUMNS = ("molecule", "catalog", "name", "atoms")


@dataclass(frozen=True)
class ExplainedAnswers:
    """Answers that are to be explained.

    Attributes:
        query: that was answered.
        explained: what is asked.
        answers: of molecules, with the names of their rows; two rows may have one name.
        pandas: the package.
    """

    query: PredictionQuery
    explained: Explained
    answers: Sequence[tuple[Hashable, Answer]]
    pandas: Any

    def frames(self) -> "dict[str, pd.DataFrame]":
        """Return the tables of all explanations that are asked for, by name."""
        found: dict[str, pd.DataFrame] = {}
        for name in self.explained.names:
            found |= _FRAMES[name](self)
        return found


Frames = Mapping[str, Any]


def _routing(asked: ExplainedAnswers) -> Frames:
    info, tasks, pandas = asked.query.engine.info, asked.query.tasks, asked.pandas
    weights = {
        (position, name, task, site): row
        for position, (name, answer) in enumerate(asked.answers)
        for task, sites in item(0, answer, info, tasks, ["routing"])["routing"].items()
        for site, row in sites.items()
    }
    names = pandas.MultiIndex.from_tuples(
        [key[1:] for key in weights], names=["molecule", "task", "site"]
    )
    frame = pandas.DataFrame([*weights.values()], names, list(info.tasks), dtype=float)
    return {"routing": frame}


def _experts(asked: ExplainedAnswers) -> Frames:
    info, tasks = asked.query.engine.info, asked.query.tasks
    rows = [
        (name, task, expert, opinion["weight"], label, value)
        for name, answer in asked.answers
        for task, opinions in item(0, answer, info, tasks, ["experts"])["experts"].items()
        for expert, opinion in opinions.items()
        for label, value in opinion["values"].items()
    ]
    return {"experts": asked.pandas.DataFrame(rows, columns=_EXPERT_COLUMNS)}


def _atoms(asked: ExplainedAnswers) -> Frames:
    rows, sums = [], []
    for name, answer in asked.answers:
        for task, labels in answer.explanations["atoms"].items():
            for label, split in labels.items():
                experts = split["experts"]
                rows += [
                    (name, task, label, expert, atom, contribution)
                    for expert, of_expert in experts.items()
                    for atom, contribution in enumerate(of_expert["atoms"])
                ]
                output = split["scale"], split["output"], split["baseline"]
                of_atoms = sum(sum(of_expert["atoms"]) for of_expert in experts.values())
                other = sum(of_expert["other"] for of_expert in experts.values())
                sums.append((name, answer.smiles, task, label, *output, of_atoms, other))
    frame = asked.pandas.DataFrame
    return {"atoms": frame(rows, columns=_ATOM_COLUMNS), "sums": frame(sums, columns=_SUM_COLUMNS)}


def _domain(asked: ExplainedAnswers) -> Frames:
    info, labels = asked.query.engine.info, asked.explained.labels
    answers = [answer for _, answer in asked.answers]
    check_domain(info, list(labels), answers)
    bits = [similarity_fingerprint(answer.smiles or "") for answer in answers]
    found = explain_domains(info, answers, bits, asked.explained)
    rows = []
    for (name, _), own in zip(asked.answers, found, strict=True):
        for task, near in own.items() if isinstance(own, dict) else ():
            first = near["nearest"][0]
            for label in labels[task]:
                said = near["labels"].get(label, {})
                band, conformal = said.get("band", {}), said.get("conformal", {})
                rows.append(
                    (
                        *(name, task, label, first["similarity"], first["row"]),
                        *(band.get(field) for field in _BAND),
                        conformal.get("set", conformal.get("interval")),
                        conformal.get("coverage"),
                        said.get("spread"),
                    )
                )
    return {"domain": asked.pandas.DataFrame(rows, columns=_DOMAIN_COLUMNS)}


def _drugs(asked: ExplainedAnswers) -> Frames:
    table, info = check_drugs(asked.query), asked.query.engine.info
    answers = [answer for _, answer in asked.answers]
    found = percentiles(info, table, answers, asked.explained.labels) if answers else []
    rows = [
        (name, task, label, float(answer.tasks[task].values[info.labels[task].index(label)]), share)
        for (name, answer), by_task in zip(asked.answers, found, strict=True)
        for task, labels in by_task.items()
        for label, share in labels.items()
    ]
    return {"drugs": asked.pandas.DataFrame(rows, columns=_DRUG_COLUMNS)}


def _alerts(asked: ExplainedAnswers) -> Frames:
    rows = [
        (name, alert.catalog, alert.name, alert.atoms)
        for name, answer in asked.answers
        if answer.smiles is not None
        for alert in structural_alerts(answer.smiles)
    ]
    return {"alerts": asked.pandas.DataFrame(rows, columns=_ALERT_COLUMNS)}


_FRAMES: Mapping[str, Callable[[ExplainedAnswers], Frames]] = {
    "routing": _routing,
    "experts": _experts,
    "atoms": _atoms,
    "domain": _domain,
    "drugs": _drugs,
    "alerts": _alerts,
}
