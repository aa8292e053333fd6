"""Molecules whose atoms have the order of their canonical SMILES, and where the bits of their
fingerprints lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from models.data.fingerprint import environments, with_fingerprint
from models.data.molecule import MolGraph
from models.data.molecule_features import build_graphs
from models.data.smiles import canonical_drawing
from models.data.smiles_parser import parse_text
from models.errors import MoleculeError


@dataclass(frozen=True)
class LocatedBit:
    """A bit of a molecule's fingerprint.

    Attributes:
        name: the substructures that set it, as SMILES of their atoms.
        shares: by atom, the share that it has of the bit; they sum to 1. Every substructure has
            the same share, and in it every atom.
    """

    name: str
    shares: Mapping[int, float]


@dataclass(frozen=True)
class LocatedMolecule:
    """A molecule whose atoms have the order of a SMILES.

    Attributes:
        graph: with the fingerprint if there are bits.
        bits: by column of the fingerprint.
    """

    graph: MolGraph
    bits: Mapping[int, LocatedBit]


def locate(smiles: str, *, fingerprint: bool = False) -> LocatedMolecule:
    """Read a canonical SMILES that `models.data.smiles.featurize` returned.

    The graph is that of `featurize` but for the order of its atoms, which is there the order of
    the text that was read.

    Args:
        smiles: canonical.
        fingerprint: whether to add the fingerprint and locate its bits.

    Raises:
        MoleculeError: see `featurize`.
    """
    with rdBase.BlockLogs():
        drawing = canonical_drawing(parse_text(smiles, True, None), True)
        (graph,) = build_graphs([drawing], True)
        if isinstance(graph, MoleculeError):
            raise graph
        mol = drawing.parsed.mol
        position = _written_positions(mol, smiles)
        graph = _renumbered(graph, position)
        if not fingerprint:
            return LocatedMolecule(graph, {})
        return LocatedMolecule(with_fingerprint(graph, mol, smiles), _bits(mol, smiles, position))


def _written_positions(mol: Chem.Mol, smiles: str) -> NDArray[np.int64]:
    """Return the position of every atom of a molecule in its canonical SMILES."""
    order: Any = ()
    if Chem.MolToSmiles(mol) == smiles:
        order = mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
    else:  # of several canonical SMILES that alternate, another one was taken
        written = parse_text(smiles, True, None).mol
        order = mol.GetSubstructMatch(written, useChirality=True) or mol.GetSubstructMatch(written)
    return np.argsort(list(order))


def _renumbered(graph: MolGraph, position: NDArray[np.int64]) -> MolGraph:
    """Return a graph in which atom k is atom `position[k]`, with edges sorted."""
    to = torch.from_numpy(position)
    edges = to[graph.edge_index]
    rows = (edges[0] * len(to) + edges[1]).argsort()
    return MolGraph(graph.x[to.argsort()], edges[:, rows], graph.edge_attr[rows])


def _bits(mol: Chem.Mol, smiles: str, position: NDArray[np.int64]) -> dict[int, LocatedBit]:
    mol, found = environments(mol, smiles)
    distances: NDArray[np.float64] = Chem.GetDistanceMatrix(mol)
    bits = {}
    for column, places in found.items():
        shares: dict[int, float] = {}
        names: dict[str, None] = {}
        for centre, radius in places:
            atoms = np.flatnonzero(distances[centre] <= radius).tolist()
            names[str(Chem.MolFragmentToSmiles(mol, atoms))] = None
            for atom in position[atoms].tolist():
                shares[atom] = shares.get(atom, 0.0) + 1 / (len(places) * len(atoms))
        bits[column] = LocatedBit(" | ".join(names), dict(sorted(shares.items())))
    return bits
