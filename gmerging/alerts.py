"""Structural alerts as a table: what `explain: ["alerts"]` of `/predict` adds."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from models.data.alerts import structural_alerts
from service.core.answer import Answer

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("molecule", "catalog", "name", "atoms")


def alerts_frame(answers: Mapping[Hashable, Answer], pandas: Any) -> "pd.DataFrame":
    """Find the structural alerts of molecules.

    Args:
        answers: of molecules, by the names of their rows.
        pandas: the package.

    Returns:
        A row by occurrence: the catalogue, the name of the substructure, and its atoms, numbered
        from 0 in the order of the canonical SMILES.
    """
    rows = [
        (name, alert.catalog, alert.name, alert.atoms)
        for name, answer in answers.items()
        if answer.smiles is not None
        for alert in structural_alerts(answer.smiles)
    ]
    return pandas.DataFrame(rows, columns=_COLUMNS)
