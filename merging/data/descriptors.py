"""Molecular descriptors as targets of pre-training: RDKit's that are computed in C++, 2 ms a
molecule."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

DESCRIPTORS_VERSION = "1"
_PROPERTIES = rdMolDescriptors.Properties()
_VECTORS: tuple[tuple[str, int, Callable[[Chem.Mol], Sequence[float]]], ...] = (
    ("PEOE_VSA", 14, rdMolDescriptors.PEOE_VSA_),
    ("SMR_VSA", 10, rdMolDescriptors.SMR_VSA_),
    ("SlogP_VSA", 12, rdMolDescriptors.SlogP_VSA_),
    ("MQN", 42, rdMolDescriptors.MQNs_),
    ("AUTOCORR2D", 192, rdMolDescriptors.CalcAUTOCORR2D),
)
DESCRIPTORS: tuple[str, ...] = (
    *_PROPERTIES.GetPropertyNames(),
    *(f"{name}_{k + 1}" for name, count, _ in _VECTORS for k in range(count)),
)
"""Names of the D descriptors: RDKit's 43 properties (masses, counts, TPSA, logP, connectivity and
shape indices), surface areas by charge, refractivity and logP, molecular quantum numbers, and
topological autocorrelations."""


def compute_descriptors(smiles: Sequence[str]) -> NDArray[np.float32]:
    """Compute the descriptors of molecules given by valid SMILES: (M, D), NaN where one is not
    defined."""
    values = np.empty((len(smiles), len(DESCRIPTORS)), np.float64)
    with rdBase.BlockLogs():
        for row, text in zip(values, smiles, strict=True):
            mol = Chem.MolFromSmiles(text)
            columns = [_PROPERTIES.ComputeProperties(mol)]
            columns += [function(mol) for _, _, function in _VECTORS]
            row[:] = np.concatenate([np.asarray(column) for column in columns])
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    single[~np.isfinite(single)] = np.nan
    return single
