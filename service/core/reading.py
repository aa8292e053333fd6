"""Reading of molecules and graphs: pure functions that `service.core.parsing` runs in a process
pool."""

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from rdkit import rdBase

from models.data.molecule_text import (
    TextKind,
    atoms_at_most,
    has_extension,
    smiles_of_inchi,
    smiles_of_mol_block,
    text_kind,
)
from models.data.remainder import smiles_without
from models.data.schema import InputSchema, MoleculeInput
from models.errors import InvalidInputError, MoleculeError
from models.families.base import ModelFamily
from models.families.inputs import Graph, ReadMolecule, SizeLimits
from models.families.table import FAMILIES
from models.networks.base import NetworkShape
from models.networks.hu2020 import BackboneConfig
from service.schemas import GraphIn, NoText

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Found = TypeVar("Found")
ITEM_CODES = (
    "empty_smiles",
    "smiles_syntax",
    "smiles_too_long",
    "chemistry",
    "not_text",
    "inchi_syntax",
    "mol_block_syntax",
    "dummy_atom",
    "polymer",
    "bond_type",
    "too_many_atoms",
    "too_many_bonds",
    "too_many_edges",
    "invalid_graph",
    "invalid_weights",
    "invalid_atoms",
    "drawing_unavailable",
    "unsupported_explanation",
    "unsupported_input",
    "not_finite",
    "parse_timeout",
    "unreadable",
)
"""Error codes of single molecules and graphs (`ItemFailure.code`)."""
_LIMIT_NAMES = {
    "too_many_atoms": " (max_atoms)",
    "too_many_bonds": " (4 * max_atoms)",
    "too_many_edges": " (200 * max_atoms)",
}
NO_FINGERPRINT = (
    "got a graph for the expert 'forest', which needs a fingerprint, expected a molecule as text,"
    " or experts ['own']"
)
_LONGEST_MESSAGE = 300
# Maximal lengths of other formats, in units of `max_smiles_length`: an InChI has a number for every
# atom and lists hydrogen atoms again, a CXSMILES can have coordinates of every atom.
_INCHI_LENGTH = 4
_EXTENDED_LENGTH = 20
# Characters of a mol block per atom: lines of the atom, its bonds and hydrogens, and S-groups.
_BLOCK_LENGTH = 2000


@dataclass(frozen=True)
class MoleculeLimits(SizeLimits):
    """Maximal sizes of one molecule or graph, and of its text.

    Attributes:
        max_smiles_length: maximal number of characters of a SMILES; other formats have multiples of
            it.
    """

    max_smiles_length: int


@dataclass(frozen=True)
class InputRequirements:
    """Requirements of inputs that some tasks of a model accept.

    Attributes:
        shape: of the model's network.
        schema: input schema of the model, restricted to these tasks.
        of_nodes: True if one of the tasks answers for nodes or pairs of them.
        by_forest: True if the request names the expert `forest`, which needs a fingerprint.
    """

    shape: NetworkShape
    schema: InputSchema
    of_nodes: bool = False
    by_forest: bool = False

    @cached_property
    def family(self) -> ModelFamily:
        """Family of the model."""
        return FAMILIES[self.shape.kind]

    def read(self, fields: Mapping[str, Any], limits: SizeLimits) -> Graph:
        """Convert a graph from plain lists to tensors: see `ModelFamily.read`."""
        return self.family.read(fields, self.shape, self.schema, limits)

    def read_texts(
        self, texts: Sequence[str], limits: SizeLimits
    ) -> Sequence[ReadMolecule | MoleculeError]:
        """Read molecules from text: see `ModelFamily.read_texts`. Returns an empty list if the
        family has no reader of text."""
        read = self.family.read_texts
        return [] if read is None else read(texts, self.shape, self.schema, limits)

    def smallest(self, task: str) -> Graph:
        """Return a small valid input of a task: see `ModelFamily.smallest`."""
        return self.family.smallest(self.shape, self.schema, task)

    @property
    def no_text(self) -> str | None:
        """Reason why these tasks do not accept molecules as text, for error messages; None if they
        do."""
        if self.family.read_texts is None:
            return f"the model takes {self.family.fields.description}"
        if self.of_nodes:
            return "a task that answers for each atom takes `graphs`, whose atoms have an order"
        return None


MOLECULES = InputRequirements(BackboneConfig(kind="gcn"), MoleculeInput())
"""Requirements of tasks on molecules at level "graph"."""


@dataclass(frozen=True)
class Parsed:
    """A molecule or graph that was read successfully.

    Attributes:
        smiles: canonical SMILES; None if it was given as a graph.
        graph: tensors of the graph.
        key: by which answers are cached, see `ReadMolecule.key`; None for a graph.
    """

    smiles: str | None
    graph: Graph
    key: str | None


@dataclass(frozen=True)
class ItemFailure:
    """Error of a single molecule or graph; the others of the request are answered.

    Attributes:
        code: stable error code, one of `ITEM_CODES`.
        message: description for the client.
    """

    code: str
    message: str


@dataclass(frozen=True)
class MolBlock:
    """A mol block or a record of an SDF file; lines after `M  END` are ignored."""

    text: str


@dataclass(frozen=True)
class InChI:
    """A text in a field for InChI."""

    text: str


@dataclass(frozen=True)
class Remainder:
    """A molecule without some of its atoms, whose bonds hydrogen atoms take.

    Attributes:
        whole: the unread molecule.
        without: numbers of atoms, in the order of its canonical SMILES.
    """

    whole: str | MolBlock | InChI
    without: tuple[int, ...]


Source = str | GraphIn | MolBlock | InChI | NoText | Remainder
"""An unread molecule or graph; a `str` may be in any format of `models.data.molecule_text`."""


def cost(
    source: Source, limits: MoleculeLimits, requirements: InputRequirements = MOLECULES
) -> int:
    """Estimate the cost of predicting one task for an unread molecule or graph.

    For a text it is an upper bound of the number of heavy atoms, from the characters of a SMILES or
    the lines of a mol block, clipped to 1 ... `max_atoms`.
    """
    if isinstance(source, GraphIn):
        return requirements.family.estimate(source.given(), limits)
    atoms = 0 if isinstance(source, NoText) else atoms_at_most(_text(source))
    return max(1, min(atoms, limits.max_atoms))


def precheck(
    source: Source, limits: MoleculeLimits, requirements: InputRequirements
) -> ItemFailure | None:
    """Check what can be checked before reading: the kind of input, lengths and field names. Returns
    the error that `read` would return, or None. Saves sending the source to another process."""
    try:
        if isinstance(source, GraphIn):
            if requirements.by_forest:
                return ItemFailure("unsupported_input", NO_FINGERPRINT)
            requirements.family.check(source.given(), limits)
        elif requirements.no_text:
            return ItemFailure(
                "unsupported_input", f"got a molecule as text, but {requirements.no_text}"
            )
        elif isinstance(source, NoText):
            code = "empty_smiles" if source.got == "null" else "not_text"
            return ItemFailure(
                code, f"got {source.got}, expected a molecule as text, such as 'CCO'"
            )
        else:
            _check_length(source, limits)
    except InvalidInputError as error:
        return _unreadable(error)
    return None


def read(
    source: Source, limits: MoleculeLimits, requirements: InputRequirements = MOLECULES
) -> Parsed | ItemFailure:
    """Read one molecule or graph. Errors are returned, not raised."""
    if (error := precheck(source, limits, requirements)) is not None:
        return error
    try:
        if isinstance(source, GraphIn):
            return Parsed(None, requirements.read(source.given(), limits), None)
        return _read_text(source, limits, requirements)
    except InvalidInputError as invalid:
        return _unreadable(invalid)
    # RDKit raises bare RuntimeErrors on some inputs, which must not fail the other molecules.
    except Exception as unknown:
        return unexpected(unknown)


def read_canonical(source: Source, limits: MoleculeLimits) -> str | ItemFailure:
    """Read one molecule as text, and return its canonical SMILES, or an error."""
    parsed = read(source, limits)
    if isinstance(parsed, ItemFailure):
        return parsed
    assert parsed.smiles is not None  # `MOLECULES` reads text, and refuses graphs.
    return parsed.smiles


def unexpected(error: Exception) -> ItemFailure:
    """Log an error of a kind that no code expects, without its message, which may show the
    structure; return that of the molecule."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("a molecule could not be read: %s\n%s", type(error).__name__, frames)
    return ItemFailure(
        "unreadable", "the molecule could not be read, for a reason that is not known"
    )


def map_guarded(
    work: Callable[[Item], Found | ItemFailure], items: Sequence[Item]
) -> list[Found | ItemFailure]:
    """Apply a function to every item; what it raises fails this item alone."""
    results: list[Found | ItemFailure] = []
    for item in items:
        try:
            results.append(work(item))
        except Exception as error:  # as of `read`: RDKit raises bare RuntimeErrors
            results.append(unexpected(error))
    return results


def read_all(
    sources: Sequence[Source], limits: MoleculeLimits, requirements: InputRequirements = MOLECULES
) -> list[Parsed | ItemFailure]:
    """Read several molecules or graphs, one result per source in their order. Results are those of
    `read`; texts are read in one batch, which is faster."""
    together = [
        source
        for source in sources
        if isinstance(source, str) and precheck(source, limits, requirements) is None
    ]
    try:
        molecules = iter(requirements.read_texts(together, limits))
    except Exception:  # read one by one, so that only the source that raised it fails
        return [read(source, limits, requirements) for source in sources]
    good = set(together)
    return [
        (
            _parsed(next(molecules))
            if isinstance(source, str) and source in good
            else read(source, limits, requirements)
        )
        for source in sources
    ]


def _parsed(molecule: ReadMolecule | MoleculeError) -> Parsed | ItemFailure:
    return (
        _unreadable(molecule)
        if isinstance(molecule, MoleculeError)
        else Parsed(molecule.smiles, molecule.graph, molecule.key)
    )


def _unreadable(error: InvalidInputError) -> ItemFailure:
    code = error.code if isinstance(error, MoleculeError) else "invalid_graph"
    return ItemFailure(code, cut(str(error)) + _LIMIT_NAMES.get(code, ""))


def cut(message: str) -> str:
    """Truncate a message to 300 characters: RDKit may list a problem of every atom."""
    return message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 3] + "..."


def _text(source: str | MolBlock | InChI | NoText | Remainder) -> str:
    assert not isinstance(source, NoText)  # refused before reading
    if isinstance(source, Remainder):
        source = source.whole
    return source if isinstance(source, str) else source.text


def _read_text(
    source: str | MolBlock | InChI | NoText | Remainder,
    limits: MoleculeLimits,
    requirements: InputRequirements,
) -> Parsed | ItemFailure:
    """Read a molecule from text; a `MolBlock` or `InChI` only in that format."""
    text = _text(source)
    if isinstance(source, Remainder):
        whole = _read_text(source.whole, limits, requirements)
        if isinstance(whole, ItemFailure):
            return whole
        assert whole.smiles is not None  # it was read from text
        text = smiles_without(whole.smiles, source.without)
    with rdBase.BlockLogs():
        if isinstance(source, MolBlock):
            text = smiles_of_mol_block(text, limits.max_atoms)
        elif isinstance(source, InChI):
            text = smiles_of_inchi(text, limits.max_atoms)
    (molecule,) = requirements.read_texts([text], limits)
    return _parsed(molecule)


_FIELDS: dict[type[MolBlock | InChI], TextKind] = {MolBlock: "mol_block", InChI: "inchi"}


def _check_length(source: str | MolBlock | InChI | Remainder, limits: MoleculeLimits) -> None:
    """Raise MoleculeError if a text is longer than its format's limit."""
    text = _text(source)
    if isinstance(source, Remainder):
        source = source.whole
    kind = text_kind(text) if isinstance(source, str) else _FIELDS[type(source)]
    limit = limits.max_smiles_length * (_INCHI_LENGTH if kind == "inchi" else 1)
    name = f"{_INCHI_LENGTH} * max_smiles_length" if kind == "inchi" else "max_smiles_length"
    if kind == "mol_block":
        limit, name = _BLOCK_LENGTH * limits.max_atoms, f"{_BLOCK_LENGTH} * max_atoms"
    if kind == "smiles" and len(text) > limit and has_extension(text):
        smiles = text.split(maxsplit=1)[0]
        if len(smiles) <= limit:
            limit, name = _EXTENDED_LENGTH * limit, f"{_EXTENDED_LENGTH} * max_smiles_length"
    if len(text) > limit:
        code = "mol_block_syntax" if kind == "mol_block" else "smiles_too_long"
        raise MoleculeError(code, f"got {len(text)} characters, expected at most {limit} ({name})")


@dataclass
class Record:
    """One molecule of a stream or file.

    Attributes:
        source: the unread molecule, or an error.
        passthrough: the client's data that are returned unchanged: id of a line, columns of a row.
    """

    source: Source | ItemFailure
    passthrough: Any = None
