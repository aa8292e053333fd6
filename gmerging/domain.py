"""How far to trust answers, as a table: what `explain: ["domain"]` of `/predict` adds."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from service.core.answer import Answer
from service.core.engine import EngineInfo
from service.core.explaining import Explained
from service.core.explanations.domain import check_domain, explain_domains
from service.core.reading import similarity_fingerprint

if TYPE_CHECKING:
    import pandas as pd

_KEYS = ("molecule", "task", "label", "similarity", "row")
_BAND = ("from", "to", "molecules", "metric", "score", "error", "error_of_base")
_COLUMNS = (*_KEYS, *(f"band_{name}" for name in _BAND), "conformal", "coverage", "spread")


def domain_frame(
    info: EngineInfo, answers: Mapping[Hashable, Answer], explained: Explained, pandas: Any
) -> "pd.DataFrame":
    """Say how far to trust answers.

    Args:
        info: of the model that answered.
        answers: of molecules, by the names of their rows.
        explained: tasks and labels; those of tasks without an applicability domain are left out.
        pandas: the package.

    Returns:
        A row by molecule, task and label: `similarity` and `row` of the nearest training molecule;
        `band_...`, what was measured on molecules about as near; `conformal`, the set of classes or
        the ends of the interval; `coverage` of such sets on the test molecules; `spread` between
        network and trees. None or NaN where there is none.

    Raises:
        UnsupportedQueryError: no task has an applicability domain.
    """
    said = list(answers.values())
    check_domain(info, list(explained.labels), said)
    bits = [similarity_fingerprint(answer.smiles or "") for answer in said]
    rows = []
    for name, item in zip(answers, explain_domains(info, said, bits, explained), strict=True):
        for task, found in (item or {}).items():
            nearest = found["nearest"][0]
            for label in explained.labels[task]:
                own = found["labels"].get(label, {})
                band, conformal = own.get("band", {}), own.get("conformal", {})
                rows.append(
                    (
                        *(name, task, label, nearest["similarity"], nearest["row"]),
                        *(band.get(field) for field in _BAND),
                        conformal.get("set", conformal.get("interval")),
                        conformal.get("coverage"),
                        own.get("spread"),
                    )
                )
    return pandas.DataFrame(rows, columns=_COLUMNS)
