"""Search for substructures in the molecules of a request: pure functions that
`service.core.parsing` runs in a process pool."""

from dataclasses import dataclass

from models.data.substructure import SmartsError, find_substructure, read_smarts
from service.core.reading import ItemFailure, MoleculeLimits, Source, cut, read_canonical


@dataclass(frozen=True)
class Search:
    """A molecule in which a substructure is searched.

    Attributes:
        source: the unread molecule.
        smarts: the substructure.
    """

    source: Source
    smarts: str


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        smiles: canonical SMILES, to whose atoms the occurrences refer.
        occurrences: see `models.data.substructure.find_substructure`.
    """

    smiles: str
    occurrences: tuple[tuple[int, ...], ...]


def search(wanted: Search, limits: MoleculeLimits) -> Found | ItemFailure:
    """Read a molecule as a request for predictions does, and search in its canonical SMILES. Errors
    are returned, not raised."""
    smiles = read_canonical(wanted.source, limits)
    if isinstance(smiles, ItemFailure):
        return smiles
    return Found(smiles, tuple(find_substructure(smiles, wanted.smarts)))


def smarts_failure(smarts: str) -> str | ItemFailure:
    """Return the SMARTS if it can be read, else the error."""
    try:
        read_smarts(smarts)
    except SmartsError as error:
        return ItemFailure(error.code, cut(str(error)))
    return smarts
