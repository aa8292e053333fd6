"""RDKit molecules to graphs with the features of Hu et al. 2020."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem

from models.data.molecule import MASKED_ATOM, MolGraph
from models.data.molecule_text import shown
from models.data.smiles_parser import ATOM, ParsedSmiles
from models.errors import MoleculeError

_CHIRALITY = {Chem.ChiralType.CHI_TETRAHEDRAL_CW: 1, Chem.ChiralType.CHI_TETRAHEDRAL_CCW: 2}
_DIRECTION = {Chem.BondDir.ENDUPRIGHT: 1, Chem.BondDir.ENDDOWNRIGHT: 2}
_BOND_TYPE = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
    Chem.BondType.DATIVE: 0,
    Chem.BondType.DATIVEONE: 0,
    Chem.BondType.DATIVEL: 0,
    Chem.BondType.DATIVER: 0,
}
_TYPE_OF_ORDER = np.full(13, -1, dtype=np.int64)  # indexed by twice the bond order
_TYPE_OF_ORDER[[2, 4, 6, 3]] = [0, 1, 2, 3]
_NUM_ELEMENTS = 118
_AROMATIC = ("B", "C", "N", "O", "P", "S", "Si", "As", "Se", "Te")
_ATOM_TYPE = {
    Chem.GetPeriodicTable().GetElementSymbol(kind + 1): kind for kind in range(_NUM_ELEMENTS)
}
_ATOM_TYPE |= {symbol.lower(): _ATOM_TYPE[symbol] for symbol in _AROMATIC}
# For a SMILES without brackets, with l for Cl and r for Br: letters to atom types, and the rest.
_LETTERS = {"l": "Cl", "r": "Br"} | {letter: letter for letter in "BCNOPSFIbcnops"}
_TYPE_OF_LETTER = bytes.maketrans(
    "".join(_LETTERS).encode(), bytes(_ATOM_TYPE[symbol] for symbol in _LETTERS.values())
)
_NO_LETTERS = b"0123456789()=#%:./\\-"
# The element of every atom of any SMILES without hydrogen atoms.
_SYMBOL = re.compile(r"(?<=\[)(?:[A-Z][a-z]?|[a-z]{1,2})|Cl|Br|[BCNOPSFIbcnops]")
_Positions = NDArray[np.int64]
_Types = NDArray[np.int64]


class Drawing(NamedTuple):
    """A molecule and the SMILES that says which features it has.

    Attributes:
        parsed: the molecule to take features from.
        canonical: its canonical SMILES; may be empty for a plain molecule.
    """

    parsed: ParsedSmiles
    canonical: str


def build_graphs(drawings: Sequence[Drawing], strict: bool) -> list[MolGraph | MoleculeError]:
    """Build the graphs of some molecules.

    Several at a time are faster: NumPy and torch are called once for all of them.

    Args:
        drawings: any number.
        strict: False maps dummy atoms and unusual bonds: see `models.data.smiles`.

    Returns:
        For each molecule its graph, with edges sorted by source and target, or an error with code
        `dummy_atom` or `bond_type`.
    """
    try:
        return list(_build(drawings, strict)) if drawings else []
    except MoleculeError as error:
        if len(drawings) == 1:
            return [error]
    return [graph for drawing in drawings for graph in build_graphs([drawing], strict)]


def _build(drawings: Sequence[Drawing], strict: bool) -> list[MolGraph]:
    if strict:
        _refuse_dummy_atoms(drawings)
    mols = [drawing.parsed.mol for drawing in drawings]
    positions, bond_types = _bonds(mols, strict)
    sizes = [mol.GetNumAtoms() for mol in mols]
    counts = [len(found) for found in positions]
    x = np.zeros((sum(sizes), 2), dtype=np.int64)
    types = b"".join(_atom_types(drawing.parsed) for drawing in drawings)
    x[:, 0] = np.frombuffer(types, dtype=np.uint8)
    edge_index = np.stack(np.divmod(np.concatenate(positions), np.repeat(sizes, counts)))
    edge_attr = np.zeros((len(bond_types), 2), dtype=np.int64)
    edge_attr[:, 0] = bond_types
    first_atom = first_edge = 0
    for drawing, found, size in zip(drawings, positions, sizes, strict=True):
        if "@" in drawing.canonical:
            _set_tags(x[first_atom : first_atom + size, 1], drawing.parsed)
        if "/" in drawing.canonical or "\\" in drawing.canonical:
            edge_attr[first_edge : first_edge + len(found), 1] = _directions(drawing, found)
        first_atom += size
        first_edge += len(found)
    return list(
        map(
            MolGraph,
            torch.from_numpy(x).split(sizes),
            torch.from_numpy(edge_index).split(counts, 1),
            torch.from_numpy(edge_attr).split(counts),
        )
    )


def _refuse_dummy_atoms(drawings: Sequence[Drawing]) -> None:
    for _, canonical in drawings:
        if "*" in canonical:
            raise MoleculeError(
                "dummy_atom",
                f"got a dummy atom (*) in {shown(canonical)}, expected a complete molecule",
            )


def _atom_types(parsed: ParsedSmiles) -> bytes:
    if not parsed.in_order:  # slow
        return bytes((atom.GetAtomicNum() or MASKED_ATOM + 1) - 1 for atom in parsed.mol.GetAtoms())
    if "[" in parsed.text:
        return bytes(_ATOM_TYPE[symbol] for symbol in _SYMBOL.findall(parsed.text))
    text = parsed.text.replace("Cl", "l").replace("Br", "r").encode()
    return text.translate(_TYPE_OF_LETTER, _NO_LETTERS)


def _set_tags(tags: NDArray[np.int64], parsed: ParsedSmiles) -> None:
    """Write the chirality tag of every atom that has one."""
    atoms: Iterable[int] = range(len(tags))
    if parsed.in_order:
        atoms = [atom for atom, text in enumerate(ATOM.findall(parsed.text)) if "@" in text]
    for atom in atoms:
        tags[atom] = _CHIRALITY.get(parsed.mol.GetAtomWithIdx(atom).GetChiralTag(), 0)


def _bonds(mols: Sequence[Chem.Mol], strict: bool) -> tuple[list[_Positions], _Types]:
    """Return the edges of every molecule, in sorted order, (E,) as source * N + target, and the
    bond types of all edges.
    """
    # One call for the matrix of bond orders is ten times faster than a loop over bonds, which only
    # dative and zero-order bonds need.
    orders = [Chem.GetAdjacencyMatrix(mol, useBO=True).ravel() for mol in mols]
    positions = [matrix.nonzero()[0] for matrix in orders]
    found = np.concatenate([matrix[at] for matrix, at in zip(orders, positions, strict=True)])
    types = _TYPE_OF_ORDER[(2 * found).astype(np.int64)]
    edges = 2 * sum(mol.GetNumBonds() for mol in mols)  # no molecule has more
    if len(types) == edges and types.min(initial=0) >= 0:
        return positions, types
    tables = [_bonds_one_by_one(mol, strict) for mol in mols]
    return [table[:, 0] for table in tables], np.concatenate(tables)[:, 1]


def _bonds_one_by_one(mol: Chem.Mol, strict: bool) -> NDArray[np.int64]:
    """Return (E, 2) position and bond type of the edges, as `_bonds` does."""
    edges, size = [], mol.GetNumAtoms()
    for bond in mol.GetBonds():
        kind = _BOND_TYPE.get(bond.GetBondType())
        if kind is None and strict:
            raise MoleculeError(
                "bond_type",
                f"got a {bond.GetBondType()} bond, expected single, double, triple, aromatic or"
                " dative",
            )
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        edges += [(i * size + j, kind or 0), (j * size + i, kind or 0)]
    return np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)


def _directions(drawing: Drawing, positions: _Positions) -> NDArray[np.int64]:
    """Return the bond direction of every edge."""
    mol = drawing.parsed.mol
    size = mol.GetNumAtoms()
    found = dict[int, int]()
    for number in range(mol.GetNumBonds()):
        bond = mol.GetBondWithIdx(number)
        if direction := _DIRECTION.get(bond.GetBondDir(), 0):
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            found[i * size + j] = found[j * size + i] = direction
    return np.array([found.get(position, 0) for position in positions.tolist()], dtype=np.int64)
