"""Pictures of molecules as requests ask for them: a pure function that `service.core.parsing` runs
in a process pool."""

from dataclasses import dataclass

from models.data.depiction import DepictionStyle, DrawingError, depict
from models.errors import InvalidInputError
from service.core.reading import ItemFailure, MoleculeLimits, Source, cut, read_canonical


@dataclass(frozen=True)
class Drawing:
    """A molecule to be drawn.

    Attributes:
        source: the unread molecule.
        style: size and theme.
        weights: one per heavy atom in the order of the answer's `smiles`; None colours nothing.
    """

    source: Source
    style: DepictionStyle
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Depicted:
    """A molecule that was drawn.

    Attributes:
        smiles: canonical SMILES, to whose atoms weights refer.
        svg: the picture.
    """

    smiles: str
    svg: str


def draw(drawing: Drawing, limits: MoleculeLimits) -> Depicted | ItemFailure:
    """Read a molecule as a request for predictions does, and draw its canonical SMILES. Errors are
    returned, not raised."""
    smiles = read_canonical(drawing.source, limits)
    if isinstance(smiles, ItemFailure):
        return smiles
    try:
        return Depicted(smiles, depict(smiles, drawing.style, drawing.weights))
    except InvalidInputError as error:
        return ItemFailure("invalid_weights", cut(str(error)))
    except DrawingError as error:
        return ItemFailure(error.code, cut(str(error)))
