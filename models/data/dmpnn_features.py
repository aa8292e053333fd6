"""Molecules from text to graphs with chemprop's features of atoms and bonds, in its four modes.

A molecule is read as chemprop reads it, with RDKit's default reader, so every SMILES for which
chemprop computes a prediction is read, and what RDKit cannot sanitise is an error:

- Salts and mixtures stay whole. Isotopes change the mass of an atom; atom maps change nothing.
- Of hydrogen atoms that are written, RDKit's reader keeps those that are more than a hydrogen count
  (isotopes, protons, dihydrogen, a bond to a metal); `FeaturizerOptions` says which others stay.
- An element, a degree, a charge, a chirality tag, a hydrogen count or a hybridisation that a mode
  does not list is in the column "other". A dummy atom (`*`) is another element, of mass 0.
- A bond that is not single, double, triple or aromatic has no bond type.
- A single atom or a molecule without bonds is valid.

These texts are refused although chemprop predicts a number for them, which is not that of the
molecule that is meant: an empty text (one atom without features), numbers that overflow in RDKit
(`[Na+256]`), characters other than ASCII at the ends (dropped), and more words after the SMILES.
Texts other than SMILES (`models.data.molecule_text`) are converted to canonical SMILES first; the
hydrogen atoms that a mol block draws are not written there.

Chirality tags depend on the order in which a SMILES is written: see `Reading`.

Source: Heid et al. 2024, "Chemprop", doi:10.1021/acs.jcim.3c01250; values and their order are those
of chemprop 2.3.1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rdkit import Chem, rdBase

from models.data.bond_graph import BondGraph
from models.data.molecule_text import plain_smiles
from models.data.smiles import error_as_value, fixed_point
from models.data.smiles_parser import ParsedSmiles, check_atoms, parse_as_written
from models.errors import MoleculeError

Mode = Literal["v1", "v2", "organic", "rigr"]
"""Chemprop's names of its atom featurisers."""
WIDTHS: dict[Mode, tuple[int, int]] = {
    "v1": (133, 14),
    "v2": (72, 14),
    "organic": (44, 14),
    "rigr": (52, 2),
}
"""Numbers of features of an atom and of a bond by mode."""
Reading = Literal["as_written", "canonical"]
"""Whether a SMILES is read as it is written, as chemprop does, or the canonical SMILES of its
molecule. As written, spellings of one molecule may differ in chirality tags, and so in predictions.
"""


class FeaturizerOptions(BaseModel):
    """How molecules are read and featurised; travels in the artifact's manifest.

    Attributes:
        mode: see `Mode`.
        keep_h: whether hydrogen atoms that are written are kept.
        add_h: whether all hydrogen atoms are added.
        ignore_stereo: whether chirality and the stereo of bonds are removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "v2"
    keep_h: bool = False
    add_h: bool = False
    ignore_stereo: bool = False


@dataclass(frozen=True)
class BondMolecule:
    """A molecule that was read.

    Attributes:
        smiles: canonical SMILES (RDKit), without atom maps; with stereo also where the graph has
            none (`ignore_stereo`), and without the hydrogen atoms of `add_h`.
        graph: its graph.
        key: the text that decides the graph: the SMILES as it was written, or with reading
            "canonical" `smiles`.
    """

    smiles: str
    graph: BondGraph
    key: str


# Every step runs over a group of molecules before the next one, as in `models.data.smiles`.
_GROUP = 32


def featurize_bonds(
    texts: Sequence[str],
    options: FeaturizerOptions,
    reading: Reading = "as_written",
    max_atoms: int | None = None,
) -> list[BondMolecule | MoleculeError]:
    """Read many molecules; errors are returned in place, not raised.

    Args:
        texts: SMILES, or other texts that `models.data.molecule_text` reads; surrounding white
            space is ignored.
        options: of the model.
        reading: see `Reading`. With "canonical", the graph is that of the canonical SMILES that is
            returned.
        max_atoms: most atoms of a graph, its hydrogen atoms included; None for no limit.

    Returns:
        For each text a molecule, or an error with code `empty_smiles`, `smiles_syntax`,
        `chemistry` or `too_many_atoms`, or one of `models.data.molecule_text.plain_smiles`.
    """
    results: list[BondMolecule | MoleculeError] = []
    with rdBase.BlockLogs():
        for begin in range(0, len(texts), _GROUP):
            drawings = [
                error_as_value(_draw, text, options, reading, max_atoms)
                for text in texts[begin : begin + _GROUP]
            ]
            drawn = [found for found in drawings if not isinstance(found, MoleculeError)]
            graphs = iter(bond_graphs([drawing.parsed for drawing in drawn], options))
            results += [
                found
                if isinstance(found, MoleculeError)
                else BondMolecule(found.canonical, next(graphs), found.parsed.text)
                for found in drawings
            ]
    return results


class _Drawing(NamedTuple):
    """The molecule to take features from, and its canonical SMILES."""

    parsed: ParsedSmiles
    canonical: str


def _draw(
    text: str, options: FeaturizerOptions, reading: Reading, max_atoms: int | None
) -> _Drawing:
    read = partial(parse_as_written, keep_hydrogens=options.keep_h)
    parsed = read(plain_smiles(text, max_atoms))
    atoms = parsed.mol.GetNumAtoms(onlyExplicit=not options.add_h)
    check_atoms(atoms, max_atoms)
    canonical = _canonical(parsed)
    if reading == "canonical":
        parsed = fixed_point(parsed, canonical, read, _canonical)
        canonical = parsed.text
    if options.add_h:
        parsed = parsed._replace(mol=Chem.AddHs(parsed.mol), in_order=False)
    return _Drawing(parsed, canonical)


def _canonical(parsed: ParsedSmiles) -> str:
    """Clear atom maps, which are no features but change the order, and write the canonical
    SMILES."""
    if ":" in parsed.text:
        for atom in parsed.mol.GetAtoms():
            atom.SetAtomMapNum(0)
    return str(Chem.MolToSmiles(parsed.mol))


# --- features of RDKit's molecules ---

_Values = NDArray[np.int64]
_Floats = NDArray[np.float32]
_COMMON = (*range(1, 37), 53)  # up to krypton, and iodine
_ELEMENTS: dict[Mode, Iterable[int]] = {
    "v1": range(1, 101),
    "v2": _COMMON,
    "organic": (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53),
    "rigr": _COMMON,
}
_HYBRIDIZATIONS: dict[Mode, tuple[str, ...]] = {
    "v1": ("SP", "SP2", "SP3", "SP3D", "SP3D2"),
    "v2": ("S", "SP", "SP2", "SP2D", "SP3", "SP3D", "SP3D2"),
    "organic": ("S", "SP", "SP2", "SP3"),
}
_BOND_TYPES = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
_STEREOS = 6  # any value beyond is "other": atropisomers, which no SMILES has


class _OneHot(NamedTuple):
    """A property of an atom whose known values have one column each, and all others one.

    Attributes:
        read: returns the value, an integer from -128 to 127.
        column: (256,) the column of a value; negative values count from the end.
        width: number of columns.
    """

    read: Callable[[Chem.Atom], int]
    column: _Values
    width: int


def _one_hot(read: Callable[[Chem.Atom], int], known: Iterable[Any]) -> _OneHot:
    values = [int(value) for value in known]
    column = np.full(256, len(values))
    column[values] = np.arange(len(values))
    return _OneHot(read, column, len(values) + 1)


@cache
def _atom_properties(mode: Mode) -> tuple[_OneHot, ...]:
    """The one-hot properties of a mode, in the order of their columns."""
    element = _one_hot(Chem.Atom.GetAtomicNum, _ELEMENTS[mode])
    degree = _one_hot(Chem.Atom.GetTotalDegree, range(6))
    hydrogens = _one_hot(Chem.Atom.GetTotalNumHs, range(5))
    if mode == "rigr":
        return element, degree, hydrogens
    hybrids = [getattr(Chem.HybridizationType, name) for name in _HYBRIDIZATIONS[mode]]
    return (
        element,
        degree,
        _one_hot(Chem.Atom.GetFormalCharge, (-1, -2, 1, 2, 0)),
        _one_hot(Chem.Atom.GetChiralTag, range(4)),
        hydrogens,
        _one_hot(Chem.Atom.GetHybridization, hybrids),
    )


def bond_graphs(molecules: Sequence[ParsedSmiles], options: FeaturizerOptions) -> list[BondGraph]:
    """Build the graphs of some molecules, with atoms and bonds in RDKit's order.

    Several at a time are faster: NumPy and torch are called once for all of them.

    Args:
        molecules: sanitised, and the SMILES that they were read from.
        options: the mode, and whether stereo is ignored; hydrogen atoms are taken as they are.
    """
    if not molecules:
        return []
    mols = [parsed.mol for parsed in molecules]
    atoms, bonds = [mol.GetNumAtoms() for mol in mols], [mol.GetNumBonds() for mol in mols]
    texts = ["" if options.ignore_stereo else parsed.text for parsed in molecules]
    x = _atom_features(mols, texts, options.mode)
    edge_index, edge_attr = _bond_features(mols, texts, options.mode)
    edges = [2 * count for count in bonds]
    return list(
        map(
            BondGraph,
            torch.from_numpy(x).split(atoms),
            torch.from_numpy(edge_index).split(edges, 1),
            torch.from_numpy(edge_attr).split(edges),
        )
    )


def _atom_features(mols: Sequence[Chem.Mol], texts: Sequence[str], mode: Mode) -> _Floats:
    """Return the (N, d_v) features of all atoms. Those of a text without `@` have no chirality
    tag, which saves the slowest call."""
    of_molecule = [list(map(mol.GetAtomWithIdx, range(mol.GetNumAtoms()))) for mol in mols]
    atoms = [atom for group in of_molecule for atom in group]
    rows, first = np.arange(len(atoms)), 0
    x = np.zeros((len(atoms), WIDTHS[mode][0]), dtype=np.float32)
    for read, column, width in _atom_properties(mode):
        if read is Chem.Atom.GetChiralTag:
            values = _where("@", texts, read, of_molecule)
        else:
            values = _read(read, atoms)
        x[rows, first + column[values.clip(-128, 127)]] = 1
        first += width
    if mode != "rigr":
        x[:, -2] = _read(Chem.Atom.GetIsAromatic, atoms)
    # In float64, then rounded, as chemprop does.
    x[:, -1] = 0.01 * np.fromiter(map(Chem.Atom.GetMass, atoms), np.float64, len(atoms))
    return x


def _bond_features(
    mols: Sequence[Chem.Mol], texts: Sequence[str], mode: Mode
) -> tuple[_Values, _Floats]:
    """Return the (2, E) ends and (E, d_e) features of all directed bonds, numbered from 0 within
    each molecule."""
    of_molecule = [list(map(mol.GetBondWithIdx, range(mol.GetNumBonds()))) for mol in mols]
    bonds = [bond for group in of_molecule for bond in group]
    begin, end = _read(Chem.Bond.GetBeginAtomIdx, bonds), _read(Chem.Bond.GetEndAtomIdx, bonds)
    source = np.stack([begin, end], axis=1).ravel()
    target = np.stack([end, begin], axis=1).ravel()
    code = _read(Chem.Bond.IsInRing, bonds)
    if mode != "rigr":
        kind = _KIND_OF_TYPE[_read(Chem.Bond.GetBondType, bonds)]
        conjugated = _read(Chem.Bond.GetIsConjugated, bonds)
        stereo = _where("/\\", texts, Chem.Bond.GetStereo, of_molecule).clip(max=_STEREOS)
        code += 2 * conjugated + 4 * kind + 4 * (len(_BOND_TYPES) + 1) * stereo
    return np.stack([source, target]), _bond_rows(mode)[code.repeat(2)]


def _read(read: Callable[[Any], int], owners: Sequence[Any]) -> _Values:
    return np.fromiter(map(read, owners), np.int64, len(owners))


def _where(
    marks: str, texts: Sequence[str], read: Callable[[Any], int], of_molecule: Sequence[list[Any]]
) -> _Values:
    """Read a property in the molecules whose text has one of these marks; it is 0 in others."""
    return np.concatenate(
        [
            _read(read, owners)
            if any(mark in text for mark in marks)
            else np.zeros(len(owners), dtype=np.int64)
            for text, owners in zip(texts, of_molecule, strict=True)
        ]
    )


_KIND_OF_TYPE = np.full(max(Chem.BondType.values) + 1, len(_BOND_TYPES))
_KIND_OF_TYPE[[int(getattr(Chem.BondType, name)) for name in _BOND_TYPES]] = range(len(_BOND_TYPES))


@cache
def _bond_rows(mode: Mode) -> _Floats:
    """The features of a bond by the code that `_bond_features` computes.

    The first column marks a bond that is none, which no molecule has. Then type (4 columns),
    conjugated, in ring, and stereo (6, and other); mode "rigr" has only the ring.
    """
    ring = np.eye(2, dtype=np.float32)[:, 1:]
    if mode == "rigr":
        return np.hstack([np.zeros_like(ring), ring])
    kinds, stereos = len(_BOND_TYPES), _STEREOS + 1
    stereo, kind, conjugated, in_ring = np.indices((stereos, kinds + 1, 2, 2)).reshape(4, -1)
    blocks = [
        np.zeros((len(kind), 1)),
        np.eye(kinds + 1)[kind, :kinds],
        conjugated[:, None],
        in_ring[:, None],
        np.eye(stereos)[stereo],
    ]
    return np.hstack(blocks).astype(np.float32)
