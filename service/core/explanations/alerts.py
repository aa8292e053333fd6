"""`alerts`: substructures that often disturb assays or are unwanted in drugs."""

from collections.abc import Sequence
from typing import Any

from models.data.alerts import structural_alerts
from models.errors import MoleculeError
from service.core.answer import Answer
from service.core.engine import PredictionQuery
from service.core.explaining import Explained
from service.core.reading import ItemFailure, cut
from service.core.side_work import SideWork

Alerts = tuple[dict[str, Any], ...]
"""Of a molecule; every alert has `catalog`, `name` and `atoms`, see `models.data.alerts.Alert`."""
NO_TEXT = ItemFailure("unsupported_explanation", "alerts: got a graph, expected a molecule as text")


def alerts_of(smiles: str) -> Alerts | ItemFailure:
    """Return the alerts of a molecule that was read, or the error of one that RDKit cannot read
    again."""
    try:
        found = structural_alerts(smiles)
    except MoleculeError as error:
        return ItemFailure(error.code, cut(str(error)))
    return tuple(
        {"catalog": alert.catalog, "name": alert.name, "atoms": list(alert.atoms)}
        for alert in found
    )


class AlertExplainer:
    """Finds the alerts of answered molecules in the parser processes."""

    def __init__(self, work: SideWork[str, Alerts]) -> None:
        self._work = work

    async def __call__(
        self,
        query: PredictionQuery,
        answers: Sequence[Answer],
        explained: Explained,
        deadline: float,
    ) -> list[Any]:
        """Find alerts: see `service.core.explaining.Explainer`. The request's own time limit ends
        the wait."""
        smiles = [answer.smiles for answer in answers if answer.smiles is not None]
        found = iter(await self._work(smiles) if smiles else [])
        return [NO_TEXT if answer.smiles is None else next(found) for answer in answers]
