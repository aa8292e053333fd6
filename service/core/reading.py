"""Reading of molecules and graphs: plain functions on plain data, which `service.core.parsing` runs
in processes of their own."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rdkit import rdBase

from models.data.molecule_text import (
    TextKind,
    atoms_at_most,
    has_extension,
    smiles_of_inchi,
    smiles_of_mol_block,
    text_kind,
)
from models.data.schema import InputSchema, MoleculeInput
from models.errors import InvalidInputError, MoleculeError
from models.families.base import ModelFamily
from models.families.inputs import Graph, ReadMolecule, SizeLimits
from models.families.table import FAMILIES
from models.networks.base import NetworkShape
from models.networks.hu2020 import BackboneConfig
from service.schemas import GraphIn, NoText

log = logging.getLogger(__name__)
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
    "unsupported_input",
    "not_finite",
    "parse_timeout",
    "unreadable",
)
"""Codes of the errors of single molecules and graphs."""
_LIMIT_NAMES = {
    "too_many_atoms": " (max_atoms)",
    "too_many_bonds": " (4 * max_atoms)",
    "too_many_edges": " (200 * max_atoms)",
}
_LONGEST_MESSAGE = 300
# Maximal lengths of other formats, in units of `max_smiles_length`. An InChI names every atom by a
# number, and hydrogen atoms again; a CXSMILES has coordinates of every atom.
_INCHI_LENGTH = 4
_EXTENDED_LENGTH = 20
# Characters of a mol block per atom: lines of the atom, its bonds and hydrogens, and S-groups.
_BLOCK_LENGTH = 2000


@dataclass(frozen=True)
class MoleculeLimits(SizeLimits):
    """Bounds on the size of one molecule or graph, and on the length of its text.

    Attributes:
        max_smiles_length: characters of a SMILES; other formats may be some times as long.
    """

    max_smiles_length: int


@dataclass(frozen=True)
class InputRequirements:
    """The inputs that some tasks of a model take.

    Attributes:
        shape: of the model's network.
        schema: of the model, for these tasks only.
        of_nodes: whether one of the tasks is at level "node".
    """

    shape: NetworkShape
    schema: InputSchema
    of_nodes: bool = False

    @cached_property
    def family(self) -> ModelFamily:
        """The family of the model."""
        return FAMILIES[self.shape.kind]

    def read(self, fields: Mapping[str, Any], limits: SizeLimits) -> Graph:
        """See `ModelFamily.read`."""
        return self.family.read(fields, self.shape, self.schema, limits)

    def read_texts(
        self, texts: Sequence[str], limits: SizeLimits
    ) -> Sequence[ReadMolecule | MoleculeError]:
        """See `ModelFamily.read_texts`; no molecules if the family has no such reader."""
        read = self.family.read_texts
        return [] if read is None else read(texts, self.shape, self.schema, limits)

    def smallest(self, task: str) -> Graph:
        """See `ModelFamily.smallest`."""
        return self.family.smallest(self.shape, self.schema, task)

    @property
    def no_text(self) -> str | None:
        """Why a molecule may not be given as text; None if it may."""
        if self.family.read_texts is None:
            return f"the model takes {self.family.fields.description}"
        if self.of_nodes:
            return "a task that answers for each atom takes `graphs`, whose atoms have an order"
        return None


MOLECULES = InputRequirements(BackboneConfig(kind="gcn"), MoleculeInput())
"""Inputs of tasks on molecules at level "graph"."""


@dataclass(frozen=True)
class Parsed:
    """A molecule or graph that was read.

    Attributes:
        smiles: canonical SMILES; None if it was given as a graph.
        graph: its graph.
    """

    smiles: str | None
    graph: Graph


@dataclass(frozen=True)
class ItemFailure:
    """Why a molecule or graph was not answered.

    Attributes:
        code: stable name of the problem.
        message: a sentence.
    """

    code: str
    message: str


@dataclass(frozen=True)
class MolBlock:
    """A mol block or a record of an SDF file; lines after `M  END` are ignored."""

    text: str


@dataclass(frozen=True)
class InChI:
    """A text that the client says is an InChI."""

    text: str


Source = str | GraphIn | MolBlock | InChI | NoText
"""An unread molecule or graph; a `str` may be in any format of `models.data.molecule_text`."""


def cost(source: Source, limits: MoleculeLimits, takes: InputRequirements = MOLECULES) -> int:
    """Estimate the cost of predicting one task, before reading: for a text at least the number of
    heavy atoms, each of which is a character of a SMILES or a line of a mol block."""
    if isinstance(source, GraphIn):
        return takes.family.estimate(source.given(), limits)
    most = 0 if isinstance(source, NoText) else atoms_at_most(_text(source))
    return max(1, min(most, limits.max_atoms))


def refused(source: Source, limits: MoleculeLimits, takes: InputRequirements) -> ItemFailure | None:
    """The error that `read` would return, if it is known without reading; None otherwise. Saves
    sending the source to another process."""
    try:
        if isinstance(source, GraphIn):
            takes.family.check(source.given(), limits)
        elif takes.no_text:
            return ItemFailure("unsupported_input", f"got a molecule as text, but {takes.no_text}")
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
    source: Source, limits: MoleculeLimits, takes: InputRequirements = MOLECULES
) -> Parsed | ItemFailure:
    """Read one molecule or graph; whatever is wrong with it is returned, not raised."""
    if (error := refused(source, limits, takes)) is not None:
        return error
    try:
        if isinstance(source, GraphIn):
            return Parsed(None, takes.read(source.given(), limits))
        return _read_text(source, limits, takes)
    except InvalidInputError as invalid:
        return _unreadable(invalid)
    # RDKit raises bare RuntimeErrors on some inputs, which must not fail the other molecules.
    except Exception:
        log.exception("a molecule could not be read")
        return ItemFailure(
            "unreadable", "the molecule could not be read, for a reason that is not known"
        )


def read_all(
    sources: Sequence[Source], limits: MoleculeLimits, takes: InputRequirements = MOLECULES
) -> list[Parsed | ItemFailure]:
    """Read several sources as `read` does; texts are read together, which is faster."""
    together = [
        source
        for source in sources
        if isinstance(source, str) and refused(source, limits, takes) is None
    ]
    try:
        molecules = iter(takes.read_texts(together, limits))
    except Exception:  # `read` finds the source that raised it
        return [read(source, limits, takes) for source in sources]
    good = set(together)
    return [
        (
            _parsed(next(molecules))
            if isinstance(source, str) and source in good
            else read(source, limits, takes)
        )
        for source in sources
    ]


def _parsed(molecule: ReadMolecule | MoleculeError) -> Parsed | ItemFailure:
    return (
        _unreadable(molecule)
        if isinstance(molecule, MoleculeError)
        else Parsed(molecule.smiles, molecule.graph)
    )


def _unreadable(error: InvalidInputError) -> ItemFailure:
    code = error.code if isinstance(error, MoleculeError) else "invalid_graph"
    return ItemFailure(code, _cut(str(error)) + _LIMIT_NAMES.get(code, ""))


def _cut(message: str) -> str:
    """At most 300 characters: RDKit may list a problem of every atom."""
    return message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 3] + "..."


def _text(source: str | MolBlock | InChI | NoText) -> str:
    assert not isinstance(source, NoText)  # which is refused before it is read
    return source if isinstance(source, str) else source.text


def _read_text(
    source: str | MolBlock | InChI | NoText, limits: MoleculeLimits, takes: InputRequirements
) -> Parsed | ItemFailure:
    """Of a molecule that came in a field for one format no other will do."""
    text = _text(source)
    with rdBase.BlockLogs():
        if isinstance(source, MolBlock):
            text = smiles_of_mol_block(text, limits.max_atoms)
        elif isinstance(source, InChI):
            text = smiles_of_inchi(text, limits.max_atoms)
    (molecule,) = takes.read_texts([text], limits)
    return _parsed(molecule)


_FIELDS: dict[type[MolBlock | InChI], TextKind] = {MolBlock: "mol_block", InChI: "inchi"}


def _check_length(source: str | MolBlock | InChI, limits: MoleculeLimits) -> None:
    """Raises MoleculeError."""
    text = _text(source)
    kind = text_kind(text) if isinstance(source, str) else _FIELDS[type(source)]
    most = limits.max_smiles_length * (_INCHI_LENGTH if kind == "inchi" else 1)
    name = f"{_INCHI_LENGTH} * max_smiles_length" if kind == "inchi" else "max_smiles_length"
    if kind == "mol_block":
        most, name = _BLOCK_LENGTH * limits.max_atoms, f"{_BLOCK_LENGTH} * max_atoms"
    if kind == "smiles" and len(text) > most and has_extension(text):
        smiles = text.split(maxsplit=1)[0]
        if len(smiles) <= most:
            most, name = _EXTENDED_LENGTH * most, f"{_EXTENDED_LENGTH} * max_smiles_length"
    if len(text) > most:
        code = "mol_block_syntax" if kind == "mol_block" else "smiles_too_long"
        raise MoleculeError(code, f"got {len(text)} characters, expected at most {most} ({name})")


@dataclass
class Record:
    """One molecule of a stream or file.

    Attributes:
        source: what to read, or why there is nothing to read.
        own: what goes back to the client as it came: the id of a line, the columns of a row.
    """

    source: Source | ItemFailure
    own: Any = None
