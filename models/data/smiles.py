"""Molecules from text to graphs in the vocabulary of Hu et al. 2020 ("Strategies for Pre-training
Graph Neural Networks").

At the edges of the vocabulary:

- Salts and mixtures stay whole: all components belong to one graph, as in the training sets; the
  mean readout weighs them by atoms.
- Atom features: atomic number - 1 (118 elements); chirality tags other than CW and CCW count as
  unspecified.
- A dummy atom (`*`) is an error in strict mode and the mask row (119) in tolerant mode.
- Bond types: single, double, triple, aromatic; dative bonds count as single. Any other type is an
  error in strict mode and single in tolerant mode.
- Bond directions: none, up-right, down-right; any other counts as none.
- A single atom or a graph without bonds is valid.

Chirality tags and bond directions depend on the atom order of the SMILES. Features are therefore
taken from one SMILES per molecule, and neither its content nor its order depends on anything that
the network does not see (`READING_RULE`):

1. Atom-map numbers and isotopes are cleared. Hydrogen atoms are removed, also those with an isotope
   or a stereo bond; a molecule of hydrogen alone keeps one atom for each H2, H+ or H-. Stereo that
   only these made, or the proton of an ammonium ion, is dropped.
2. The canonical SMILES of the result is the one that is shown.
3. If it contains a tag or a direction, atoms are ranked on a copy without charges, radicals and
   hydrogen counts, whose dative bonds are single. Written in that order and read again, the
   molecule has its features.

Texts other than SMILES (`models.data.molecule_text`) are converted to SMILES first.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from models.data.fingerprint import with_fingerprint
from models.data.molecule import MASKED_ATOM, MolGraph
from models.data.molecule_text import TOO_LARGE, plain_smiles, shown, what_it_looks_like
from models.errors import MoleculeError

READING_RULE = 2
"""Version of the rule by which a molecule becomes a graph; an artifact's manifest states its rule.

1: features of RDKit's canonical SMILES, whose order also depends on atom-map numbers, isotopes,
charges and hydrogen counts; hydrogen atoms that RDKit's reader keeps (isotopes, stereo) are atoms
of the graph.
2: as in the module's docstring. Molecules without atom maps, isotopes and kept hydrogens have other
features than by rule 1 only where a tag or a direction stands beside a charge, a radical or an
aromatic NH, and rarely there.
"""
P = ParamSpec("P")
T = TypeVar("T")
_Read = tuple[Chem.Mol, list[int] | None]
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
_ATTR_OF_ORDER = np.full((13, 2), -1, dtype=np.int64)  # indexed by twice the bond order
_ATTR_OF_ORDER[[2, 4, 6, 3]] = [[0, 0], [1, 0], [2, 0], [3, 0]]


@dataclass(frozen=True)
class Molecule:
    """A molecule that was read.

    Attributes:
        smiles: canonical SMILES (RDKit) of the molecule, with charges, without atom maps, isotopes
            and hydrogen atoms.
        graph: its graph, a function of `smiles`.
    """

    smiles: str
    graph: MolGraph


def featurize(smiles: str, *, strict: bool = True, max_atoms: int | None = None) -> Molecule:
    """Read a molecule: its canonical SMILES and its graph.

    Args:
        smiles: a SMILES or another text that `models.data.molecule_text` reads; surrounding white
            space is ignored.
        strict: False reads what MoleculeNet contains: valences are not checked, dummy atoms and
            unusual bonds are mapped (see the module's docstring).
        max_atoms: most heavy atoms; None for no limit.

    Raises:
        MoleculeError: with code `empty_smiles`, `smiles_syntax`, `chemistry`, `too_many_atoms`,
            `dummy_atom` or `bond_type`, or one of `models.data.molecule_text.plain_smiles`.
    """
    with rdBase.BlockLogs():
        mol, types = _read(smiles, strict, max_atoms)
        mol, canonical = _canonical(mol, strict)
        return Molecule(canonical, _graph(mol, types, canonical, strict))


def featurize_all(
    smiles: Sequence[str],
    *,
    strict: bool = True,
    max_atoms: int | None = None,
    fingerprints: bool = False,
) -> list[Molecule | MoleculeError]:
    """Read many molecules as `featurize` does; errors are returned in place, not raised. With
    `fingerprints`, graphs are `models.data.fingerprint.FingerprintedMolGraph`."""
    with rdBase.BlockLogs():
        groups = (smiles[begin : begin + _GROUP] for begin in range(0, len(smiles), _GROUP))
        return [
            molecule
            for group in groups
            for molecule in _featurize_group(group, strict, max_atoms, fingerprints)
        ]


# Every step runs over a group of molecules before the next one: a fifth faster, as the code of one
# step and the group's molecules stay in the processor's caches.
_GROUP = 16


def _featurize_group(
    smiles: Sequence[str], strict: bool, max_atoms: int | None, fingerprints: bool
) -> list[Molecule | MoleculeError]:
    read = [_error_as_value(_read, text, strict, max_atoms) for text in smiles]
    canonical = [
        result
        if isinstance(result, MoleculeError)
        else _error_as_value(_canonical, result[0], strict)
        for result in read
    ]
    return [_molecule(*steps, strict, fingerprints) for steps in zip(read, canonical, strict=True)]


def _error_as_value(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | MoleculeError:
    """Call a step and return its MoleculeError in place of raising it."""
    try:
        return step(*args, **kwargs)
    except MoleculeError as error:
        return error


def _molecule(
    read: _Read | MoleculeError,
    canonical: tuple[Chem.Mol, str] | MoleculeError,
    strict: bool,
    fingerprints: bool,
) -> Molecule | MoleculeError:
    if isinstance(read, MoleculeError):
        return read
    if isinstance(canonical, MoleculeError):
        return canonical
    graph = _error_as_value(_graph, canonical[0], read[1], canonical[1], strict)
    if isinstance(graph, MoleculeError):
        return graph
    if fingerprints:
        graph = with_fingerprint(graph, *canonical)
    return Molecule(canonical[1], graph)


def read_graph(smiles: str, *, strict: bool = True, max_atoms: int | None = None) -> MolGraph:
    """Read only the graph of a molecule, a third faster than `featurize`.

    The graph is that of `featurize` up to the order of its atoms, and so are the errors. Most
    molecules need no canonical SMILES for it.
    """
    with rdBase.BlockLogs():
        return _graph_as_needed(*_read(smiles, strict, max_atoms), strict)


def read_graphs(
    smiles: Sequence[str], *, strict: bool = True, max_atoms: int | None = None
) -> list[MolGraph | MoleculeError]:
    """Read many graphs as `read_graph` does; errors are returned in place, not raised."""
    with rdBase.BlockLogs():
        groups = (smiles[begin : begin + _GROUP] for begin in range(0, len(smiles), _GROUP))
        return [graph for group in groups for graph in _read_group(group, strict, max_atoms)]


def _read_group(
    smiles: Sequence[str], strict: bool, max_atoms: int | None
) -> list[MolGraph | MoleculeError]:
    read = [_error_as_value(_read, text, strict, max_atoms) for text in smiles]
    return [
        result
        if isinstance(result, MoleculeError)
        else _error_as_value(_graph_as_needed, *result, strict)
        for result in read
    ]


def _graph_as_needed(mol: Chem.Mol, types: list[int] | None, strict: bool) -> MolGraph:
    mol, canonical = (mol, "") if types else _canonical(mol, strict)
    return _graph(mol, types, canonical, strict)


# A plain SMILES has no stereo, no explicit hydrogen atom, no metal (RDKit may make its bonds
# dative) and no iodine, so its canonical SMILES has none of `_ORDER_MATTERS`; and no dummy atom, no
# odd bond and no number that is too large. Anything rare is left to `read_smiles`.
_PLAIN = re.compile(
    r"(?:[BCNOPSFbcnopslr0-9%()=#:.-]++"
    r"|\[(?:Cl?|N|O|P|S[ie]?|F|Br?|c|n|o|p|se?)(?:H\d?)?(?:[+-]\d?)?\])++"
)
_SYMBOL = re.compile("[BCNOFPSbcnops][eilr]?")
_ATOM_TYPE = {
    "B": 4,
    "C": 5,
    "N": 6,
    "O": 7,
    "F": 8,
    "Si": 13,
    "P": 14,
    "S": 15,
    "Cl": 16,
    "Se": 33,
    "Br": 34,
}
_ATOM_TYPE |= {
    symbol.lower(): _ATOM_TYPE[symbol] for symbol in ("B", "C", "N", "O", "P", "S", "Se")
}
# The steps of sanitising that features and canonical SMILES depend on.
_SANITIZE = Chem.SANITIZE_ALL ^ Chem.SANITIZE_SETCONJUGATION ^ Chem.SANITIZE_SETHYBRIDIZATION


def _read(smiles: str, strict: bool, max_atoms: int | None) -> _Read:
    """Parse a molecule, ready for features and canonical SMILES; with its atom types if it is
    plain.
    """
    text = smiles.strip()
    mol = _read_plain(text)
    types = [_ATOM_TYPE[symbol] for symbol in _SYMBOL.findall(text)] if mol else None
    if mol is None:
        text = plain_smiles(smiles, max_atoms)
        mol = _read_any(text, strict)
    if max_atoms is not None and mol.GetNumAtoms() > max_atoms:
        raise MoleculeError(
            "too_many_atoms", f"got {mol.GetNumAtoms()} atoms, expected at most {max_atoms}"
        )
    if strict and "~" in text:  # RDKit reads ~ as a single bond where it closes a ring
        got = f"got an unspecified bond (~) in {shown(text)}"
        raise MoleculeError(
            "bond_type", f"{got}, expected single, double, triple, aromatic or dative"
        )
    return mol, types


def _read_plain(text: str) -> Chem.Mol | None:
    """Parse a plain SMILES; return None for any other text and for an invalid molecule.

    Unlike `Chem.MolFromSmiles` it looks neither for hydrogens to merge nor for stereo, as there is
    none. That takes a fifth of the time, and for long chains, where RDKit is quadratic, much less.
    """
    if not _PLAIN.fullmatch(text):
        return None
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None or Chem.SanitizeMol(mol, _SANITIZE, catchErrors=True) != Chem.SANITIZE_NONE:
        return None
    return mol if mol.GetNumAtoms() else None


_ORDER_MATTERS = ("@", "/", "\\", "[H]", "[IH", "->", "<-")
"""Marks of a canonical SMILES that may change when it is read again: features, or the canonical
SMILES itself (hydrogens kept for stereo that is none, O=[IH])."""
_ALL_VISIBLE = re.compile(r"(?:[^\[]|\[C@@?H?\])*+")
"""A canonical SMILES whose atom order depends only on what the network sees: the hydrogen counts of
its atoms follow from bonds and elements."""


def _canonical(mol: Chem.Mol, strict: bool) -> tuple[Chem.Mol, str]:
    """Return the molecule to take features from, and its canonical SMILES.

    RDKit's canonical SMILES is not always that of the molecule read from it. Reading and writing is
    then repeated until the text stays the same; of several that alternate the alphabetically first
    is taken, so that all of them give one result.
    """
    smiles = str(Chem.MolToSmiles(mol))
    if not any(mark in smiles for mark in _ORDER_MATTERS):
        return mol, smiles
    mol, smiles = _fixed_point(mol, smiles, lambda mol: str(Chem.MolToSmiles(mol)), strict)
    if _ALL_VISIBLE.fullmatch(smiles):
        return mol, smiles
    return _fixed_point(mol, _write_in_visible_order(mol), _write_in_visible_order, strict)[
        0
    ], smiles


def _fixed_point(
    mol: Chem.Mol, smiles: str, write: Callable[[Chem.Mol], str], strict: bool
) -> tuple[Chem.Mol, str]:
    """Read and write a SMILES until `write` returns it again; return it with its molecule."""
    seen: dict[str, Chem.Mol] = {}
    while smiles not in seen and len(seen) < 8:
        mol = seen[smiles] = _read_any(smiles, strict)
        smiles = write(mol)
    if smiles in seen:
        smiles = min(list(seen)[list(seen).index(smiles) :])
    return seen.get(smiles, mol), smiles


_DATIVE = {
    Chem.BondType.DATIVE,
    Chem.BondType.DATIVEONE,
    Chem.BondType.DATIVEL,
    Chem.BondType.DATIVER,
}


def _write_in_visible_order(mol: Chem.Mol) -> str:
    """Write the SMILES whose atom order depends only on what the network sees.

    Without charges, radicals and aromatic NH it is the canonical SMILES, but for the order of
    components: each is ranked by itself, as RDKit does.
    """
    components = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
    return ".".join(map(_write_component_in_visible_order, components))


def _write_component_in_visible_order(mol: Chem.Mol) -> str:
    neutral = Chem.RWMol(mol)
    for atom in neutral.GetAtoms():
        atom.SetFormalCharge(0)
        atom.SetNumRadicalElectrons(0)
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(False)  # hydrogens then follow from bonds and elements
    for bond in neutral.GetBonds():
        if bond.GetBondType() in _DATIVE:
            bond.SetBondType(Chem.BondType.SINGLE)
    neutral.UpdatePropertyCache(strict=False)
    # the ranks depend on CIP labels, and these on hydrogens
    Chem.AssignStereochemistry(neutral, force=True)
    ranks = np.array(Chem.CanonicalRankAtoms(neutral))
    return str(Chem.MolToSmiles(Chem.RenumberAtoms(mol, ranks.argsort().tolist()), canonical=False))


def read_smiles(smiles: str, strict: bool = True) -> Chem.Mol:
    """Parse a text to a sanitised RDKit molecule without atom maps, isotopes and hydrogen atoms.

    Args:
        smiles: as for `featurize`.
        strict: as for `featurize`.

    Raises:
        MoleculeError: as `featurize`.
    """
    return _read_any(plain_smiles(smiles), strict)


def _read_any(text: str, strict: bool) -> Chem.Mol:
    """Parse any SMILES."""
    text = text.strip()
    if not text:
        raise MoleculeError(
            "empty_smiles", "got an empty SMILES, expected a molecule such as 'CCO'"
        )
    if " " in text or not text.isprintable() or not text.isascii():
        raise _wrong_characters(text)
    mol = Chem.MolFromSmiles(text)
    if mol is not None and TOO_LARGE.search(text):
        problem = "a charge, isotope or number of hydrogens is too large"
        message = f"got {shown(text)}, which is not a possible molecule: {problem}"
        raise MoleculeError("chemistry", message)
    if mol is None:
        mol = _read_unsanitized(text, strict)
    if mol.GetNumAtoms() == 0:
        message = f"got {shown(text)}, which has no atoms, expected a molecule such as 'CCO'"
        raise MoleculeError("empty_smiles", message)
    if _INVISIBLE.search(text):
        mol = _without_invisible(text, strict)
    return _without_stereo_of_protons(mol) if _PROTON_STEREO.search(text) else mol


_PROTON_STEREO = re.compile(r"\[\d*N@@?H")


def _without_stereo_of_protons(mol: Chem.Mol) -> Chem.Mol:
    """Clear the stereo of protonated nitrogen atoms, unless they are stereo centres without the
    proton too: in small rings and at bridgeheads.
    """
    nitrogens = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 7]
    protonated = [atom for atom in nitrogens if atom.GetChiralTag() and atom.GetTotalNumHs()]
    deprotonated = Chem.RWMol(mol)
    for atom in protonated:
        nitrogen = deprotonated.GetAtomWithIdx(atom.GetIdx())
        nitrogen.SetFormalCharge(0)
        nitrogen.SetNumExplicitHs(0)
        nitrogen.SetNoImplicit(True)
    deprotonated.UpdatePropertyCache(strict=False)
    Chem.AssignStereochemistry(deprotonated, cleanIt=True, force=True)
    for atom in protonated:
        if not deprotonated.GetAtomWithIdx(atom.GetIdx()).GetChiralTag():
            atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return mol


# An isotope, a hydrogen atom or an atom map; `[#1]` is a hydrogen atom too.
_INVISIBLE = re.compile(r"\[(?:\d|H[]H\d:+-]|#1\D|[^]]*:)")


def _without_invisible(text: str, strict: bool) -> Chem.Mol:
    """Parse a SMILES that is known to be readable, without atom maps, isotopes and hydrogen atoms.

    Labels are cleared before RDKit assigns stereo, and hydrogens are removed after it: RDKit's
    reader removes them first, which can invert double bonds whose directions hydrogens carry.
    """
    mol = Chem.MolFromSmiles(text, sanitize=False)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
        atom.SetIsotope(0)
    numbers = {atom.GetAtomicNum() for atom in mol.GetAtoms()}
    if numbers == {1}:
        mol = _without_bonds(mol)
    mol.UpdatePropertyCache(strict=False)
    # Valences need no check: strict mode has read the text already, tolerant mode skips it.
    Chem.SanitizeMol(mol, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES)
    if 1 in numbers and len(numbers) > 1:
        mol = _without_hydrogens(mol)
    text = str(Chem.MolToSmiles(mol))
    return Chem.MolFromSmiles(text) or _read_unsanitized(text, strict)


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    for bond in mol.GetBonds():
        bond.SetBondDir(Chem.BondDir.NONE)
        if bond.GetStereo() in _SIDES:
            ends = [mol.GetAtomWithIdx(k).GetAtomicNum() for k in bond.GetStereoAtoms()]
            bond.SetStereo(Chem.BondStereo.STEREONONE if 1 in ends else _SIDES[bond.GetStereo()])
    mol = Chem.RemoveHs(mol, _HYDROGENS, sanitize=False)
    Chem.SetDoubleBondNeighborDirections(mol)
    return mol


_SIDES = {
    Chem.BondStereo.STEREOE: Chem.BondStereo.STEREOTRANS,
    Chem.BondStereo.STEREOZ: Chem.BondStereo.STEREOCIS,
}


def _hydrogens() -> Chem.RemoveHsParameters:
    """Remove all hydrogens except those that bridge other atoms, which only tolerant mode reads."""
    parameters = Chem.RemoveHsParameters()
    for kind in (
        "DefiningBondStereo",
        "DegreeZero",
        "DummyNeighbors",
        "Hydrides",
        "Isotopes",
        "NontetrahedralNeighbors",
        "OnlyHNeighbors",
    ):
        setattr(parameters, f"remove{kind}", True)
    return parameters


_HYDROGENS = _hydrogens()


def _without_bonds(hydrogens: Chem.Mol) -> Chem.Mol:
    """Turn every H2 of a molecule of hydrogen alone into one atom with a hydrogen, as in `[HH]`."""
    mol = Chem.RWMol(hydrogens)
    while mol.GetNumBonds():
        bond = mol.GetBondWithIdx(0)
        bond.GetBeginAtom().SetNumExplicitHs(1)
        mol.RemoveAtom(bond.GetEndAtomIdx())
    return mol.GetMol()


def _wrong_characters(text: str) -> MoleculeError:
    if any(character.isspace() or not character.isprintable() for character in text):
        return MoleculeError(
            "smiles_syntax",
            f"got white space or control characters inside {shown(text)}, expected one SMILES",
        )
    # RDKit silently drops such characters at both ends
    return MoleculeError(
        "smiles_syntax",
        f"got characters other than ASCII in {shown(text)}, expected a SMILES such as 'CCO'",
    )


def _read_unsanitized(text: str, strict: bool) -> Chem.Mol:
    """Handle a text that RDKit's sanitising reader refused.

    In strict mode raise an error with the reason; in tolerant mode sanitise all but properties.
    """
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        hint = what_it_looks_like(text)
        got = f"got {shown(text)}, which is not valid SMILES syntax"
        raise MoleculeError("smiles_syntax", f"{got}, expected a SMILES such as 'CCO'{hint}")
    if not strict:
        mol.UpdatePropertyCache(strict=False)
        if (
            Chem.SanitizeMol(mol, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES, catchErrors=True)
            == Chem.SANITIZE_NONE
        ):
            return mol
    try:
        problems = "; ".join(problem.Message() for problem in Chem.DetectChemistryProblems(mol))
    except RuntimeError:  # no such element, 255 hydrogens, 255 neighbours
        problems = ""
    problems = problems or "it cannot be sanitised"
    raise MoleculeError(
        "chemistry", f"got {shown(text)}, which is not a possible molecule: {problems}"
    )


def _graph(mol: Chem.Mol, types: list[int] | None, canonical: str, strict: bool) -> MolGraph:
    """Build the graph.

    Args:
        types: atom types of a plain molecule, else None.
        canonical: canonical SMILES, which tells whether there are tags and directions.
    """
    if strict and "*" in canonical:
        raise MoleculeError(
            "dummy_atom",
            f"got a dummy atom (*) in {shown(canonical)}, expected a complete molecule",
        )
    positions, edge_attr = _bonds(mol, strict)
    x = np.zeros((mol.GetNumAtoms(), 2), dtype=np.int64)
    x[:, 0] = types or [(atom.GetAtomicNum() or MASKED_ATOM + 1) - 1 for atom in mol.GetAtoms()]
    if "@" in canonical:
        x[:, 1] = [_CHIRALITY.get(atom.GetChiralTag(), 0) for atom in mol.GetAtoms()]
    if "/" in canonical or "\\" in canonical:
        edge_attr[:, 1] = _directions(mol)[positions]
    edge_index = np.empty((2, len(positions)), dtype=np.int64)
    np.divmod(positions, len(x), out=(edge_index[0], edge_index[1]))
    return MolGraph(torch.from_numpy(x), torch.from_numpy(edge_index), torch.from_numpy(edge_attr))


def _bonds(mol: Chem.Mol, strict: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the edges in sorted order: (E,) source * N + target, and (E, 2) bond type and 0."""
    # One call for the matrix of bond orders is ten times faster than a loop over bonds, which only
    # dative and zero-order bonds need.
    orders = Chem.GetAdjacencyMatrix(mol, useBO=True).ravel()
    positions = orders.nonzero()[0]
    edge_attr = _ATTR_OF_ORDER.take((2 * orders[positions]).astype(np.int64), axis=0)
    if len(positions) != 2 * mol.GetNumBonds() or (edge_attr < 0).any():
        return _bonds_one_by_one(mol, strict)
    return positions, edge_attr


def _bonds_one_by_one(mol: Chem.Mol, strict: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
        edges += [(i * size + j, kind or 0, 0), (j * size + i, kind or 0, 0)]
    table = np.array(sorted(edges), dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1:].copy()


def _directions(mol: Chem.Mol) -> NDArray[np.int64]:
    """Return the bond direction at source * N + target: (N * N,)."""
    size = mol.GetNumAtoms()
    found = np.zeros((size, size), dtype=np.int64)
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        found[i, j] = found[j, i] = _DIRECTION.get(bond.GetBondDir(), 0)
    return found.ravel()
