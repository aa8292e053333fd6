from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.bond_graph import BondGraph, collate_bonds
from models.data.dmpnn_features import BondMolecule, FeaturizerOptions, featurize_bonds
from models.errors import InvalidInputError
from tests.conftest import SMILES
from tests.strategies import quick

CHAIN: dict[str, Any] = {
    "x": [[1, 0.5], [0, 2], [3, 4]],
    "edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]],
    "edge_attr": [[1], [1], [0], [0]],
    "widths": (2, 1),
}


def graphs(*smiles: str) -> list[BondGraph]:
    found = featurize_bonds(smiles, FeaturizerOptions(mode="organic"))
    return [molecule.graph for molecule in found if isinstance(molecule, BondMolecule)]


def same(first: BondGraph, second: BondGraph) -> bool:
    return all(map(torch.equal, vars(first).values(), vars(second).values()))


def test_lists_become_the_tensors_they_hold() -> None:
    graph = BondGraph.from_lists(**CHAIN)
    assert graph.num_nodes == 3
    assert graph.x.tolist() == CHAIN["x"]
    assert graph.edge_index.tolist() == CHAIN["edge_index"]
    assert graph.edge_attr.tolist() == CHAIN["edge_attr"]
    assert (graph.x.dtype, graph.edge_index.dtype) == (torch.float32, torch.int64)
    assert graph.edge_attr.dtype == torch.float32


def test_graph_of_a_molecule_survives_lists() -> None:
    (graph,) = graphs("C/C=C/[C@H](N)C(=O)[O-]")
    lists = [value.tolist() for value in vars(graph).values()]
    assert same(BondGraph.from_lists(*lists, (44, 14)), graph)


def test_single_atom_needs_no_edges() -> None:
    graph = BondGraph.from_lists([[5, 0]], [[], []], [], (2, 14))
    assert (graph.edge_index.shape, graph.edge_attr.shape) == ((2, 0), (0, 14))


@settings(quick, max_examples=40)
@given(st.data())
def test_edges_in_any_order_become_pairs(data: st.DataObject) -> None:
    (graph,) = graphs("CC1CC(=O)NC1.[Na+]")
    order = torch.tensor(data.draw(st.permutations(range(graph.edge_index.shape[1]))))
    shuffled = BondGraph(graph.x, graph.edge_index[:, order], graph.edge_attr[order])
    found = shuffled.validate()
    assert torch.equal(found.edge_index[:, 0::2], found.edge_index[:, 1::2].flip(0))
    assert torch.equal(found.edge_attr[0::2], found.edge_attr[1::2])
    assert same(found, found.validate())
    assert found.edge_index[:, 0].tolist() == shuffled.edge_index[:, 0].tolist()

    def edges(of: BondGraph) -> list[Any]:
        return sorted(zip(of.edge_index.T.tolist(), of.edge_attr.tolist(), strict=True))

    assert edges(found) == edges(graph)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": []}, "x: got no atom, expected at least one"),
        ({"x": [[1, 2], [1], [3, 4]]}, r"x: got rows of \[1\] numbers, expected 2"),
        ({"x": [[1, 2, 3]] * 3}, r"x: got rows of \[3\] numbers, expected 2"),
        ({"x": [[1, 2], [1, float("nan")], [3, 4]]}, "x: got a number that is not finite"),
        ({"x": [[1, 2], [1, 1e300], [3, 4]]}, "x: got a number that is not finite"),
        ({"edge_attr": [[1], [1], [1e39], [1e39]]}, "edge_attr: got a number that is not finite"),
        ({"edge_attr": [[1], [1, 0], [0], [0]]}, r"edge_attr: got rows of \[2\] numbers"),
        ({"edge_attr": [[1], [1]]}, "edge_attr: got 2 rows, expected one per edge, 4"),
        ({"edge_index": [[0, 1, 1, 2]]}, r"edge_index: got rows of \[4\] numbers, expected 2"),
        ({"edge_index": [[0, 1, 1, 2], [1]]}, r"edge_index: got rows of \[4, 1\] numbers"),
        ({"edge_index": [[0, 1, 1, 3], [1, 0, 3, 1]]}, "got atoms from 0 to 3, expected 0 to 2"),
        ({"edge_index": [[0, 1, 1, -1], [1, 0, -1, 1]]}, "got atoms from -1 to 1, expected 0"),
        ({"edge_index": [[0, 1, 1, 1], [1, 0, 1, 1]]}, "got a self-loop, expected none"),
        ({"edge_index": [[0, 1, 0, 1], [1, 0, 1, 0]]}, "got a repeated edge, expected each"),
        ({"edge_index": [[0, 1, 1, 0], [1, 0, 2, 2]]}, "one direction only"),
        ({"edge_index": [[0, 1, 1], [1, 0, 2]], "edge_attr": [[1], [1], [0]]}, "one direction"),
        ({"edge_attr": [[1], [0], [0], [0]]}, "with the same edge_attr"),
    ],
)
def test_what_is_no_molecule_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BondGraph.from_lists(**{**CHAIN, **changed})


def test_batch_is_its_molecules_one_after_the_other() -> None:
    members = graphs(*SMILES)
    assert len(members) == len(SMILES)
    batch = collate_bonds(members).to("cpu")
    assert batch.num_graphs == len(SMILES)
    first = edge = 0
    for number, graph in enumerate(members):
        atoms, edges = graph.num_nodes, graph.edge_index.shape[1]
        inside = slice(edge, edge + edges)
        assert torch.equal(batch.x[first : first + atoms], graph.x)
        assert torch.equal(batch.edge_index[:, inside] - first, graph.edge_index)
        assert torch.equal(batch.edge_attr[inside], graph.edge_attr)
        assert batch.batch[first : first + atoms].tolist() == [number] * atoms
        first, edge = first + atoms, edge + edges
    assert (len(batch.x), len(batch.edge_attr)) == (first, edge)


def test_batch_needs_molecules_of_one_kind() -> None:
    with pytest.raises(InvalidInputError, match=r"got \[\] features"):
        collate_bonds([])
    mixed = [BondGraph.from_lists(**CHAIN), *graphs("C")]
    with pytest.raises(InvalidInputError, match=r"got \[\(2, 1\), \(44, 14\)\] features"):
        collate_bonds(mixed)
