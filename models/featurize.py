"""SMILES to graph in the vocabulary of Hu et al. 2020 ("Strategies for Pre-training Graph Neural Networks").

What happens at the edges of the vocabulary:

- Salts and mixtures stay whole: all components are part of one graph, as in the training sets; the mean readout weighs them by atoms.
- Atom features: atomic number - 1 (118 elements); chirality tags other than CW and CCW count as unspecified.
- A dummy atom (`*`) is no molecule: an error in strict mode, the mask row (119) in tolerant mode.
- Bond types: single, double, triple, aromatic; dative bonds count as single. Any other type is an error in strict mode, single in tolerant mode.
- Bond directions: none, up-right, down-right; any other counts as none.
- A single atom or a graph without bonds is valid.

Chirality tags and bond directions depend on the order in which a SMILES happens to be written. Features are therefore always those of the canonical
SMILES, so that every spelling of a molecule gives one graph.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from models.errors import MoleculeError
from models.graph import MASKED_ATOM, MolGraph

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
_TYPE_OF_ORDER = np.full(9, -1, dtype=np.int64)  # indexed by twice the bond order
_TYPE_OF_ORDER[[2, 4, 6, 3]] = [0, 1, 2, 3]


@dataclass(frozen=True)
class Molecule:
    """A molecule that was read.

    Attributes:
        smiles: canonical SMILES (RDKit).
        graph: its graph.
    """

    smiles: str
    graph: MolGraph


def featurize(smiles: str, *, strict: bool = True, max_atoms: int | None = None) -> Molecule:
    """Read a SMILES.

    Args:
        smiles: the text; surrounding white space is ignored.
        strict: False reads what MoleculeNet contains: valences are not checked, dummy atoms and odd bonds are mapped (see the module's text).
        max_atoms: more heavy atoms than this are an error.

    Raises:
        MoleculeError: with code `empty_smiles`, `smiles_syntax`, `chemistry`, `too_many_atoms`, `dummy_atom` or `bond_type`.
    """
    with rdBase.BlockLogs():
        mol = read_smiles(smiles, strict)
        if max_atoms is not None and mol.GetNumAtoms() > max_atoms:
            raise MoleculeError("too_many_atoms", f"got {mol.GetNumAtoms()} atoms, expected at most {max_atoms}")
        if strict and "~" in smiles:  # RDKit reads it as a single bond where it closes a ring
            raise MoleculeError(
                "bond_type", f"got an unspecified bond (~) in {_shown(smiles.strip())}, expected single, double, triple, aromatic or dative"
            )
        mol, canonical = _canonical(mol, strict)
        return Molecule(canonical, MolGraph(torch.from_numpy(_atoms(mol, canonical, strict)), *_bonds(mol, canonical, strict)))


_ORDER_MATTERS = ("@", "/", "\\", "[H]", "[IH", "->", "<-")
"""In a canonical SMILES: reading it again may give other features, or another canonical SMILES (hydrogens kept for stereo that is none, O=[IH])."""


def _canonical(mol: Chem.Mol, strict: bool) -> tuple[Chem.Mol, str]:
    """The molecule as its canonical SMILES reads, and this. RDKit's is not always its own canonical SMILES: then the one in which repetition ends,
    and of several that take turns the first in the alphabet, so that each of them gives the same."""
    smiles = str(Chem.MolToSmiles(mol))
    if not any(mark in smiles for mark in _ORDER_MATTERS):
        return mol, smiles
    seen: dict[str, Chem.Mol] = {}
    while smiles not in seen and len(seen) < 8:
        mol = seen[smiles] = read_smiles(smiles, strict)
        smiles = str(Chem.MolToSmiles(mol))
    if smiles in seen:
        smiles = min(list(seen)[list(seen).index(smiles) :])
    return seen.get(smiles, mol), smiles


# RDKit keeps charges and hydrogens in 8 bits and isotopes in 16, without a look at what does not fit: [Na+256] would be sodium.
_TOO_LARGE = re.compile(r"\[\d{4}|\[[^\]]*(?:[+-]|H)\d{3}")


def read_smiles(smiles: str, strict: bool = True) -> Chem.Mol:
    """The sanitised molecule of a SMILES; see `featurize` for `strict` and for the errors."""
    text = smiles.strip()
    if not text:
        raise MoleculeError("empty_smiles", "got an empty SMILES, expected a molecule such as 'CCO'")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise MoleculeError("smiles_syntax", f"got white space or control characters inside {_shown(text)}, expected one SMILES")
    if not text.isascii():  # RDKit cuts such characters off at both ends
        raise MoleculeError("smiles_syntax", f"got characters other than ASCII in {_shown(text)}, expected a SMILES such as 'CCO'")
    mol = Chem.MolFromSmiles(text)
    if mol is not None and _TOO_LARGE.search(text):
        raise MoleculeError(
            "chemistry", f"got {_shown(text)}, which is not a possible molecule: a charge, isotope or number of hydrogens is too large"
        )
    if mol is None:
        mol = _read_unsanitized(text, strict)
    if mol.GetNumAtoms() == 0:
        raise MoleculeError("empty_smiles", f"got {_shown(text)}, which has no atoms, expected a molecule such as 'CCO'")
    return mol


def _read_unsanitized(text: str, strict: bool) -> Chem.Mol:
    """What RDKit's sanitising reader refused: say why (strict), or sanitise all but properties (tolerant)."""
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        raise MoleculeError("smiles_syntax", f"got {_shown(text)}, which is not valid SMILES syntax, expected a SMILES such as 'CCO'")
    if not strict:
        mol.UpdatePropertyCache(strict=False)
        if Chem.SanitizeMol(mol, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES, catchErrors=True) == Chem.SANITIZE_NONE:
            return mol
    try:
        problems = "; ".join(problem.Message() for problem in Chem.DetectChemistryProblems(mol))
    except RuntimeError:  # no such element, 255 hydrogens, 255 neighbours
        problems = ""
    problems = problems or "it cannot be sanitised"
    raise MoleculeError("chemistry", f"got {_shown(text)}, which is not a possible molecule: {problems}")


def _shown(text: str) -> str:
    """A client's text as an error may repeat it: quoted, escaped, cut."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _atoms(mol: Chem.Mol, canonical: str, strict: bool) -> NDArray[np.int64]:
    """(N, 2) atom type and chirality tag."""
    numbers = np.fromiter(map(Chem.Atom.GetAtomicNum, mol.GetAtoms()), dtype=np.int64, count=mol.GetNumAtoms())
    dummy = numbers == 0
    if dummy.any() and strict:
        raise MoleculeError("dummy_atom", f"got a dummy atom (*) in {_shown(canonical)}, expected a complete molecule")
    x = np.zeros((len(numbers), 2), dtype=np.int64)
    x[:, 0] = np.where(dummy, MASKED_ATOM, numbers - 1)
    if "@" in canonical:
        x[:, 1] = [_CHIRALITY.get(atom.GetChiralTag(), 0) for atom in mol.GetAtoms()]
    return x


def _bonds(mol: Chem.Mol, canonical: str, strict: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, E) edges, sorted by source, and (E, 2) bond type and direction."""
    # One call for the whole matrix of bond orders: ten times faster than a loop over bonds (dative and zero-order bonds need the loop).
    orders = Chem.GetAdjacencyMatrix(mol, useBO=True)
    source, target = np.nonzero(orders)
    types = _TYPE_OF_ORDER[(2 * orders[source, target]).astype(np.int64).clip(0, 8)]
    if len(source) != 2 * mol.GetNumBonds() or (types < 0).any():
        source, target, types = _bonds_one_by_one(mol, strict)
    edge_attr = np.stack([types, np.zeros_like(types)], axis=1)
    if "/" in canonical or "\\" in canonical:
        for k, (i, j) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
            edge_attr[k, 1] = _DIRECTION.get(mol.GetBondBetweenAtoms(i, j).GetBondDir(), 0)
    return torch.from_numpy(np.stack([source, target]).astype(np.int64)), torch.from_numpy(edge_attr)


def _bonds_one_by_one(mol: Chem.Mol, strict: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    edges = []
    for bond in mol.GetBonds():
        kind = _BOND_TYPE.get(bond.GetBondType())
        if kind is None and strict:
            raise MoleculeError("bond_type", f"got a {bond.GetBondType()} bond, expected single, double, triple, aromatic or dative")
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        edges += [(i, j, kind or 0), (j, i, kind or 0)]
    table = np.array(sorted(edges), dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
