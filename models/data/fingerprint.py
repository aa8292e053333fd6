"""Fingerprints of molecules: what trees see of a molecule beside the network.

A fingerprint is a row of numbers: counts of circular substructures (ECFP4; Rogers and Hahn 2010),
hashed to 2,048 columns, and descriptors that RDKit computes in a few microseconds. It is taken from
the neutralised molecule: data sets differ in how they write acids and amines, and within a set this
may depend on the label (ClinTox).

It depends on the molecule alone: neither on the spelling nor on atom maps, isotopes and stereo.
Descriptors are sums over atoms, whose last digits depend on the order of the atoms; they are
rounded to six decimals.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors
from rdkit.Chem.MolStandardize import rdMolStandardize
from torch import Tensor

from models.data.molecule import MolGraph

FingerprintRule = Literal["ecfp4-2048+descriptors-1"]
"""Names of the rules by which fingerprints are computed; an artifact's manifest states its rule."""
FINGERPRINT_RULE: FingerprintRule = get_args(FingerprintRule)[-1]
"""The rule of new artifacts."""
Block = Literal["ecfp4", "descriptors"]
"""Names of groups of columns, from which the inputs of a forest are chosen."""
Environment = tuple[int, int]
"""Centre and radius of a circular substructure."""
BITS = 2048
_DECIMALS = 6
_CHARGE = re.compile(r"[+-]\d*\]")
_Numbers = Callable[[Chem.Mol], Any]


def _heavy_crippen(mol: Chem.Mol) -> Any:
    return rdMolDescriptors.CalcCrippenDescriptors(mol, includeHs=False)


_SCALARS: dict[str, _Numbers] = {
    "MolWt": rdMolDescriptors._CalcMolWt,
    "HeavyAtoms": Chem.Mol.GetNumAtoms,
    "Heteroatoms": rdMolDescriptors.CalcNumHeteroatoms,
    "TPSA": rdMolDescriptors.CalcTPSA,
    "LabuteASA": rdMolDescriptors.CalcLabuteASA,
    "HBD": rdMolDescriptors.CalcNumHBD,
    "HBA": rdMolDescriptors.CalcNumHBA,
    "LipinskiHBD": rdMolDescriptors.CalcNumLipinskiHBD,
    "LipinskiHBA": rdMolDescriptors.CalcNumLipinskiHBA,
    "RotatableBonds": rdMolDescriptors.CalcNumRotatableBonds,
    "AmideBonds": rdMolDescriptors.CalcNumAmideBonds,
    "Rings": rdMolDescriptors.CalcNumRings,
    "AromaticRings": rdMolDescriptors.CalcNumAromaticRings,
    "AromaticHeterocycles": rdMolDescriptors.CalcNumAromaticHeterocycles,
    "AliphaticRings": rdMolDescriptors.CalcNumAliphaticRings,
    "SaturatedRings": rdMolDescriptors.CalcNumSaturatedRings,
    "SpiroAtoms": rdMolDescriptors.CalcNumSpiroAtoms,
    "BridgeheadAtoms": rdMolDescriptors.CalcNumBridgeheadAtoms,
    "FractionCSP3": rdMolDescriptors.CalcFractionCSP3,
    "FormalCharge": Chem.GetFormalCharge,
    "Chi0v": rdMolDescriptors.CalcChi0v,
    "Chi1v": rdMolDescriptors.CalcChi1v,
}
"""Descriptors with one number; `FormalCharge` is what neutralisation leaves."""
_VECTORS: dict[str, tuple[int, _Numbers]] = {
    "HeavyCrippen": (2, _heavy_crippen),
    "SlogP_VSA": (12, rdMolDescriptors.SlogP_VSA_),
    "SMR_VSA": (10, rdMolDescriptors.SMR_VSA_),
}
"""Descriptors with several numbers: logP and molar refractivity (Wildman and Crippen 1999) of the
heavy atoms, and surface by the atoms' contribution to either (Labute 2000). RDKit computes the
contributions once for all three; those of hydrogen atoms would take as long again."""
DESCRIPTORS = (
    *_SCALARS,
    *(f"{name}{k}" for name, (count, _) in _VECTORS.items() for k in range(1, count + 1)),
)
"""Names of the descriptors, in the order of their columns."""
COLUMNS: dict[Block, slice] = {
    "ecfp4": slice(0, BITS),
    "descriptors": slice(BITS, BITS + len(DESCRIPTORS)),
}
"""Columns of a block in a fingerprint."""
WIDTH = BITS + len(DESCRIPTORS)
"""Number of columns of a fingerprint."""

SIMILARITY_BITS = 1024
"""Number of bits of the fingerprints by which molecules are compared (`similarity_bits`)."""

_MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
_MORGAN_BITS = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=SIMILARITY_BITS)
_UNCHARGER = rdMolStandardize.Uncharger()


@dataclass(frozen=True)
class FingerprintedMolGraph(MolGraph):
    """A molecular graph with the fingerprint of the molecule.

    Attributes:
        fingerprint: (WIDTH,) float32, from `fingerprint`.
    """

    fingerprint: Tensor


def fingerprint(mol: Chem.Mol, smiles: str | None = None) -> NDArray[np.float32]:
    """Compute the fingerprint of a molecule, about 0.3 ms.

    Args:
        mol: sanitised (conjugation and hybridisation are not needed), without atom maps, isotopes
            and hydrogen atoms, as `models.data.smiles.read_smiles` returns it.
        smiles: its SMILES, if known: one without charges needs no neutralisation.

    Returns:
        (WIDTH,) float32, columns as in `COLUMNS`.
    """
    mol = neutral_form(mol, smiles)
    row = np.empty(WIDTH, dtype=np.float32)
    row[:BITS] = _MORGAN.GetCountFingerprintAsNumPy(mol)
    values = [float(compute(mol)) for compute in _SCALARS.values()]
    for _, compute in _VECTORS.values():
        values += compute(mol)
    row[BITS:] = np.round(values, _DECIMALS)
    return row


def neutral_form(mol: Chem.Mol, smiles: str | None = None) -> Chem.Mol:
    """Return the molecule that a fingerprint is taken from, with the atoms in the same order;
    arguments as for `fingerprint`."""
    return neutralise(mol) if smiles is None or _CHARGE.search(smiles) else mol


def environments(mol: Chem.Mol) -> dict[int, tuple[Environment, ...]]:
    """Find the circular substructures that a fingerprint counts, by column; `mol` is from
    `neutral_form`."""
    output = rdFingerprintGenerator.AdditionalOutput()
    output.AllocateBitInfoMap()
    _MORGAN.GetCountFingerprint(mol, additionalOutput=output)
    found: dict[int, tuple[Environment, ...]] = output.GetBitInfoMap()
    return found


def similarity_bits(mol: Chem.Mol) -> NDArray[np.bool_]:
    """Compute the bits by which molecules are compared: circular substructures (ECFP4) of the
    neutralised molecule. The two halves of the block `ecfp4` of `fingerprint`, joined by "or".

    Args:
        mol: as for `fingerprint`.

    Returns:
        (SIMILARITY_BITS,) bool.
    """
    bits: NDArray[np.bool_] = _MORGAN_BITS.GetFingerprintAsNumPy(neutralise(mol)).astype(bool)
    return bits


def with_fingerprint(graph: MolGraph, mol: Chem.Mol, smiles: str) -> FingerprintedMolGraph:
    """Return the graph of a molecule with its fingerprint; arguments as for `fingerprint`."""
    row = torch.from_numpy(fingerprint(mol, smiles))
    return FingerprintedMolGraph(graph.x, graph.edge_index, graph.edge_attr, row)


def fingerprints_of(graphs: Sequence[object]) -> tuple[list[int], NDArray[np.float32]]:
    """Stack the fingerprints of those graphs that have one.

    Returns:
        Positions of these graphs, and their fingerprints (n, WIDTH).
    """
    found = {k: getattr(graph, "fingerprint", None) for k, graph in enumerate(graphs)}
    with_row = {k: row.numpy() for k, row in found.items() if row is not None}
    rows = np.array([*with_row.values()], dtype=np.float32).reshape(len(with_row), WIDTH)
    return [*with_row], rows


def neutralise(mol: Chem.Mol) -> Chem.Mol:
    """Neutralise charges by adding and removing protons (RDKit's Uncharger); charges that cannot
    be removed so, such as those of nitro groups and quaternary amines, stay."""
    return _UNCHARGER.uncharge(mol)
