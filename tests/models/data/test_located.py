import numpy as np
import pytest
import torch
from rdkit import Chem

from models.data.descriptor_atoms import atom_terms
from models.data.fingerprint import BITS, DESCRIPTORS, FingerprintedMolGraph, fingerprint
from models.data.located import _written_positions, locate
from models.data.smiles import featurize, featurize_all, read_smiles
from models.errors import MoleculeError
from tests.conftest import SMILES

SPELLINGS = (
    "OC(=O)c1ccccc1OC(C)=O",
    "[O-]C(=O)[C@@H](N)C",
    "C[NH+](C)C/C=C/c1cc[nH]c1",
    "[K+].[O-]S(=O)(=O)c1ccccc1",
    "Clc1ccc(cc1)[N+]([O-])=O",
    "[2H]C([2H])O[CH3:7]",
    *SMILES,
)


def bonds(mol: Chem.Mol) -> set[tuple[int, int]]:
    pairs = {(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()}
    return pairs | {(j, i) for i, j in pairs}


@pytest.mark.parametrize("text", SPELLINGS)
def test_atoms_have_the_order_of_the_canonical_smiles(text: str) -> None:
    (read,) = featurize_all([text], fingerprints=True)
    assert not isinstance(read, MoleculeError)
    found = locate(read.smiles, fingerprint=True)
    mol = read_smiles(read.smiles)
    graph = found.graph
    assert graph.x[:, 0].tolist() == [atom.GetAtomicNum() - 1 for atom in mol.GetAtoms()]
    assert set(map(tuple, graph.edge_index.T.tolist())) == bonds(mol)
    # It is the graph that is answered, in another order.
    assert sorted(graph.x.tolist()) == sorted(read.graph.x.tolist())
    assert sorted(graph.edge_attr.tolist()) == sorted(read.graph.edge_attr.tolist())
    assert isinstance(graph, FingerprintedMolGraph)
    assert isinstance(read.graph, FingerprintedMolGraph)
    assert torch.equal(graph.fingerprint, read.graph.fingerprint)
    assert torch.equal(locate(read.smiles).graph.x, graph.x)
    assert not locate(read.smiles).columns


def test_the_order_that_is_read_is_not_that_of_the_canonical_smiles() -> None:
    """The reason for reading it again."""
    read = featurize("OC(=O)C")
    assert read.smiles == "CC(=O)O"
    assert read.graph.x[:, 0].tolist() == [7, 5, 7, 5]
    assert locate(read.smiles).graph.x[:, 0].tolist() == [5, 5, 7, 7]


@pytest.mark.parametrize("text", SPELLINGS)
def test_every_substructure_lies_on_its_atoms(text: str) -> None:
    smiles = featurize(text).smiles
    found = locate(smiles, fingerprint=True)
    row = fingerprint(read_smiles(smiles), smiles)
    assert {k for k in found.columns if k < BITS} == set(row[:BITS].nonzero()[0])
    for where in found.columns.values():
        assert sum(where.shares.values()) == pytest.approx(1)
        assert min(where.shares.values()) > 0
        assert set(where.shares) <= set(range(found.graph.num_nodes))


def test_shares_by_hand() -> None:
    """Of ethanol the substructures are three atoms and what surrounds them by one bond."""
    columns = locate("CCO", fingerprint=True).columns
    by_name = {where.name: where.shares for where in columns.values()}
    assert by_name["O"] == {2: 1.0}
    assert by_name["CO"] == {1: 0.5, 2: 0.5}
    assert by_name["CCO"] == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert by_name["TPSA"] == {2: 1.0}
    assert by_name["Heteroatoms"] == {2: 1.0}


@pytest.mark.parametrize("text", SPELLINGS)
def test_terms_of_atoms_sum_to_the_descriptors(text: str) -> None:
    mol = read_smiles(text)
    values = dict(zip(DESCRIPTORS, fingerprint(mol, "C")[BITS:], strict=True))  # not neutralised
    terms = atom_terms(mol)
    assert len(terms) == 2 + 12 + 10
    for name, of_atoms in terms.items():
        assert (of_atoms >= 0).all()
        np.testing.assert_allclose(of_atoms.sum(), values[name], rtol=1e-5, atol=1e-5)


def test_an_unreadable_molecule_is_refused() -> None:
    with pytest.raises(MoleculeError, match="not valid SMILES"):
        locate("C1")
    with pytest.raises(MoleculeError, match="dummy atom"):
        locate("*C")


@pytest.mark.parametrize("written", ["CC(=O)O", "C(C)(=O)O", "O=C(O)C"])
def test_positions_are_those_of_any_smiles_of_the_molecule(written: str) -> None:
    """Of several canonical SMILES that alternate, another one may have been read."""
    mol, same = read_smiles("OC(C)=O"), read_smiles(written)
    position = _written_positions(mol, written)
    assert sorted(position) == [0, 1, 2, 3]
    for atom in mol.GetAtoms():
        there = same.GetAtomWithIdx(int(position[atom.GetIdx()]))
        assert (atom.GetSymbol(), atom.GetTotalNumHs()) == (
            there.GetSymbol(),
            there.GetTotalNumHs(),
        )
