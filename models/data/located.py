"""Molecules whose atoms have the order of their canonical SMILES, and where the columns of their
fingerprints lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from models.data.descriptor_atoms import atom_terms
from models.data.fingerprint import BITS, DESCRIPTORS, environments, neutral_form, with_fingerprint
from models.data.molecule import MolGraph
from models.data.molecule_features import build_graphs
from models.data.smiles import canonical_drawing
from models.data.smiles_parser import parse_text
from models.errors import MoleculeError


@dataclass(frozen=True)
class LocatedColumn:
    """A column of a molecule's fingerprint.

    Attributes:
        name: the circular substructures that are counted, as SMILES of their atoms; or the
            descriptor.
        shares: by atom, the share that it has of the number; they sum to 1. Every substructure has
            the same share, and in it every atom.
    """

    name: str
    shares: Mapping[int, float]


@dataclass(frozen=True)
class LocatedMolecule:
    """A molecule whose atoms have the order of a SMILES.

    Attributes:
        graph: with the fingerprint if it was asked.
        columns: columns of the fingerprint that lie on atoms; empty if it was not asked.
    """

    graph: MolGraph
    columns: Mapping[int, LocatedColumn]


def locate(smiles: str, *, fingerprint: bool = False) -> LocatedMolecule:
    """Read a canonical SMILES that `models.data.smiles.featurize` returned.

    The graph is that of `featurize` but for the order of its atoms, which is there the order of
    the text that was read.

    Args:
        smiles: canonical.
        fingerprint: whether to add the fingerprint and locate its columns.

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
        neutral = neutral_form(mol, smiles)
        columns = _substructures(neutral, position) | _descriptors(neutral, position)
        return LocatedMolecule(with_fingerprint(graph, mol, smiles), columns)


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


def _substructures(mol: Chem.Mol, position: NDArray[np.int64]) -> dict[int, LocatedColumn]:
    """Locate the counts of circular substructures."""
    distances: NDArray[np.float64] = Chem.GetDistanceMatrix(mol)
    columns = {}
    for column, places in environments(mol).items():
        shares: dict[int, float] = {}
        names: dict[str, None] = {}
        for centre, radius in places:
            atoms = np.flatnonzero(distances[centre] <= radius).tolist()
            names[str(Chem.MolFragmentToSmiles(mol, atoms))] = None
            for atom in position[atoms].tolist():
                shares[atom] = shares.get(atom, 0.0) + 1 / (len(places) * len(atoms))
        columns[column] = LocatedColumn(" | ".join(names), dict(sorted(shares.items())))
    return columns


def _descriptors(mol: Chem.Mol, position: NDArray[np.int64]) -> dict[int, LocatedColumn]:
    """Locate the descriptors that are sums over atoms."""
    columns = {}
    for name, terms in atom_terms(mol).items():
        atoms = terms.nonzero()[0]
        shares = dict(
            zip(position[atoms].tolist(), (terms[atoms] / terms.sum()).tolist(), strict=True)
        )
        if shares:
            columns[BITS + DESCRIPTORS.index(name)] = LocatedColumn(
                name, dict(sorted(shares.items()))
            )
    return columns
