"""Descriptors of a fingerprint that are sums over atoms: what every atom adds."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

Doubles = NDArray[np.float64]
_LOGP_BORDERS = (-0.4, -0.2, 0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
_MR_BORDERS = (1.29, 1.82, 2.24, 2.45, 2.75, 3.05, 3.63, 3.8, 4.0)
"""Borders of the bins of `SlogP_VSA` and `SMR_VSA` in RDKit (Labute 2000)."""


def atom_terms(mol: Chem.Mol) -> dict[str, Doubles]:
    """Return the terms of descriptors that are sums of non-negative terms of the heavy atoms: by
    name of the descriptor, (N,).

    They are the number of heteroatoms, the polar surface and the surfaces by logP and molar
    refractivity. Left out are descriptors whose terms may be negative (logP itself), those that
    count rings or bonds, and sizes, to which all atoms add alike.

    Args:
        mol: neutralised, as the descriptors see it.
    """
    surface = np.array(rdMolDescriptors._CalcLabuteASAContribs(mol)[0])
    crippen = np.array(rdMolDescriptors._CalcCrippenContribs(mol)).reshape(-1, 2)
    return {
        "Heteroatoms": _of_atoms(mol, lambda atom: atom.GetAtomicNum() not in (1, 6)),
        "TPSA": np.array(rdMolDescriptors._CalcTPSAContribs(mol)),
        **_binned("SlogP_VSA", surface, crippen[:, 0], _LOGP_BORDERS),
        **_binned("SMR_VSA", surface, crippen[:, 1], _MR_BORDERS),
    }


def _of_atoms(mol: Chem.Mol, term: Callable[[Chem.Atom], float]) -> Doubles:
    return np.array([term(atom) for atom in mol.GetAtoms()], dtype=np.float64)


def _binned(
    name: str, surface: Doubles, values: Doubles, borders: tuple[float, ...]
) -> dict[str, Doubles]:
    """Return the surface of the atoms whose value lies in a bin, by the name of its descriptor."""
    bins = np.searchsorted(borders, values, side="right")
    return {f"{name}{k + 1}": surface * (bins == k) for k in range(len(borders) + 1)}
