"""Text and lists to molecules: plain functions on plain data, for `service.core.parsing` to run in
a process of their own."""

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
from models.families.base import Graph, ModelFamily, ReadMolecule, SizeLimits
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
"""Every code that an item's error can have."""
_LIMIT_NAMES = {
    "too_many_atoms": " (max_atoms)",
    "too_many_bonds": " (4 * max_atoms)",
    "too_many_edges": " (200 * max_atoms)",
}
_LONGEST_MESSAGE = 300
_INCHI_LENGTH = 4  # times that of a SMILES: it names every atom by a number, and hydrogens beside
_EXTENDED_LENGTH = 20  # times that of a SMILES: a CXSMILES has coordinates of every atom
# Characters for an atom: its lines and those of its bonds and hydrogens, with room for S-groups.
_BLOCK_LENGTH = 2000
_GCN = BackboneConfig(kind="gcn")
_MOLECULES = MoleculeInput()


@dataclass(frozen=True)
class MoleculeLimits(SizeLimits):
    """How large a molecule or graph may be, and how long the text of a molecule.

    Attributes:
        max_smiles_length: characters of a SMILES; other texts may be so many times longer.
    """

    max_smiles_length: int


@dataclass(frozen=True)
class InputRequirements:
    """What the asked tasks of a model take; by default molecules.

    Attributes:
        shape: of the model's network.
        schema: the model's, of these tasks alone.
        of_nodes: whether one of the tasks answers for each node.
    """

    shape: NetworkShape = _GCN
    schema: InputSchema = _MOLECULES
    of_nodes: bool = False

    @cached_property
    def family(self) -> ModelFamily:
        """How inputs of this kind are read."""
        return FAMILIES[self.shape.kind]

    def read(self, fields: Mapping[str, Any], limits: SizeLimits) -> Graph:
        """See `ModelFamily.read`."""
        return self.family.read(fields, self.shape, self.schema, limits)

    def read_texts(
        self, texts: Sequence[str], limits: SizeLimits
    ) -> Sequence[ReadMolecule | MoleculeError]:
        """Molecules as SMILES, or what else is known by its look, where `no_text` is None; an
        error is returned, not raised."""
        read = self.family.read_texts
        return [] if read is None else read(texts, self.shape, self.schema, limits)

    def smallest(self, task: str) -> Graph:
        """See `ModelFamily.smallest`."""
        return self.family.smallest(self.shape, self.schema, task)

    @property
    def no_text(self) -> str | None:
        """Why a SMILES or a mol block will not do; None if it will."""
        if self.family.read_texts is None:
            return f"the model takes {self.family.fields.words}"
        if self.of_nodes:
            return "a task that answers for each atom takes `graphs`, whose atoms have an order"
        return None


MOLECULES = InputRequirements()
"""What a model of molecules takes."""


@dataclass(frozen=True)
class Parsed:
    """A molecule or graph that was read.

    Attributes:
        smiles: canonical (`models.data.smiles.Molecule`); None if it came as a graph.
        graph: its graph.
    """

    smiles: str | None
    graph: Graph


@dataclass(frozen=True)
class ItemFailure:
    """A molecule or graph that could not be read: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class MolBlock:
    """A mol block, such as a record of an SDF file; data fields behind its `M  END` are passed
    over."""

    text: str


@dataclass(frozen=True)
class InChI:
    """What was said to be an InChI."""

    text: str


Source = str | GraphIn | MolBlock | InChI | NoText
"""What to read: a text is a SMILES or whatever else `models.data.molecule_text` knows."""


def cost(source: Source, limits: MoleculeLimits, takes: InputRequirements = MOLECULES) -> int:
    """About what one task's answer for it will cost, before it is read: at least the number of
    heavy atoms, of which every one is a character of a SMILES, or a line of a mol block."""
    if isinstance(source, GraphIn):
        return takes.family.estimate(source.given(), limits)
    most = 0 if isinstance(source, NoText) else atoms_at_most(_text(source))
    return max(1, min(most, limits.max_atoms))


def refused(source: Source, limits: MoleculeLimits, takes: InputRequirements) -> ItemFailure | None:
    """Why `read` would refuse it, if that can be seen without reading: then it need not be sent to
    another process for that."""
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
    """Read one molecule or graph; never raises on account of what a client sent."""
    if (error := refused(source, limits, takes)) is not None:
        return error
    try:
        if isinstance(source, GraphIn):
            return Parsed(None, takes.read(source.given(), limits))
        return _read_text(source, limits, takes)
    except InvalidInputError as invalid:
        return _unreadable(invalid)
    # RDKit has been seen to raise bare RuntimeErrors on odd input: that is its sender's trouble and
    # nobody else's
    except Exception:
        log.exception("a molecule could not be read")
        return ItemFailure(
            "unreadable", "the molecule could not be read, for a reason that is not known"
        )


def read_all(
    sources: Sequence[Source], limits: MoleculeLimits, takes: InputRequirements = MOLECULES
) -> list[Parsed | ItemFailure]:
    """Read a few molecules, each as `read` does; SMILES together, which is faster."""
    together = [
        source
        for source in sources
        if isinstance(source, str) and refused(source, limits, takes) is None
    ]
    try:
        molecules = iter(takes.read_texts(together, limits))
    except Exception:  # `read` finds out whose it is
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
    """RDKit finds a problem in every atom, if there is one."""
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
