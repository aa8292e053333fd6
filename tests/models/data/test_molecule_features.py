import pytest
import torch
from rdkit import Chem

from models.data.molecule import MASKED_ATOM, MolGraph
from models.data.molecule_features import Drawing, build_graphs
from models.data.smiles_parser import ParsedSmiles, parse_smiles, parse_text
from models.errors import MoleculeError

MOLECULES = [
    "CCO",
    "ClCCBr",
    "[Na+].[Cl-]",
    "C[C@H](N)[C@@](F)(Cl)Br",
    "F/C=C\\C=C/Cl",
    "c1c[se]cc1[As](C)C",
    "C",
    "[Sc].[Sn]",
    "C#CC=C",
]


def drawing(smiles: str) -> Drawing:
    """A molecule with features of its own text."""
    return Drawing(parse_smiles(smiles, False), smiles)


def out_of_order(made: Drawing) -> Drawing:
    """The same, but with atoms asked of RDKit."""
    return made._replace(parsed=made.parsed._replace(in_order=False))


def assert_equal(one: MolGraph | MoleculeError, other: MolGraph | MoleculeError) -> None:
    assert isinstance(one, MolGraph)
    assert isinstance(other, MolGraph)
    for left, right in zip(vars(one).values(), vars(other).values(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("smiles", MOLECULES)
def test_atoms_of_the_text_are_those_of_the_molecule(smiles: str) -> None:
    (graph,) = build_graphs([drawing(smiles)], True)
    (asked,) = build_graphs([out_of_order(drawing(smiles))], True)
    assert_equal(graph, asked)
    assert isinstance(graph, MolGraph)
    assert (graph.x[:, 0] + 1).tolist() == [
        atom.GetAtomicNum() for atom in Chem.MolFromSmiles(smiles).GetAtoms()
    ]
    graph.validate()


def test_several_at_a_time_are_what_they_are_alone() -> None:
    drawings = [drawing(smiles) for smiles in (*MOLECULES, "C[Cu]<-[NH3]", "[NH3]->[Cu]", "C$C")]
    graphs = build_graphs(drawings, False)
    assert len(graphs) == len(drawings)
    for graph, alone in zip(graphs, drawings, strict=True):
        assert_equal(graph, *build_graphs([alone], False))
    assert build_graphs([], True) == []


def test_one_that_cannot_be_built_does_not_affect_the_others() -> None:
    drawings = [drawing(smiles) for smiles in ("CCO", "C*", "C$C", "CN")]
    first, dummy, quadruple, last = build_graphs(drawings, True)
    assert_equal(first, *build_graphs(drawings[:1], True))
    assert_equal(last, *build_graphs(drawings[3:], True))
    assert isinstance(dummy, MoleculeError)
    assert isinstance(quadruple, MoleculeError)
    assert (dummy.code, quadruple.code) == ("dummy_atom", "bond_type")
    tolerant = build_graphs(drawings, False)[1]
    assert isinstance(tolerant, MolGraph)
    assert tolerant.x[:, 0].tolist() == [5, MASKED_ATOM]


def test_tags_and_directions_are_left_out_where_the_canonical_smiles_has_none() -> None:
    parsed = parse_text("C[C@H](N)/C=C/F", True, None)
    assert isinstance(parsed, ParsedSmiles)
    (without,) = build_graphs([Drawing(parsed, "CC(N)C=CF")], True)
    (graph,) = build_graphs([Drawing(parsed, parsed.text)], True)
    assert isinstance(without, MolGraph)
    assert isinstance(graph, MolGraph)
    assert not without.x[:, 1].any()
    assert not without.edge_attr[:, 1].any()
    assert graph.x[:, 1].count_nonzero() == 1
    assert graph.edge_attr[:, 1].count_nonzero() == 4
