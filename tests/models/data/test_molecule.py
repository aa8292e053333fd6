import pytest
import torch

from models.data.molecule import MolGraph, collate, pack
from models.data.smiles import featurize
from models.errors import InvalidInputError
from tests.conftest import SMILES

ETHANOL = {
    "x": [[5, 0], [5, 0], [7, 0]],
    "edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]],
    "edge_attr": [[0, 0]] * 4,
}


def test_lists_and_smiles_give_the_same_graph() -> None:
    graph, reference = MolGraph.from_lists(**ETHANOL), featurize("CCO").graph
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(vars(graph).values(), vars(reference).values(), strict=True)
    )


def test_single_atom_needs_no_edges() -> None:
    assert MolGraph.from_lists([[5, 0]], [[], []], []).num_nodes == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": []}, "no atom"),
        (
            {"x": [[5, 0], [5, 0], [120, 0]]},
            "atom type: got values from 5 to 120, expected 0 to 119",
        ),
        ({"x": [[5, 0], [5, 3], [7, 0]]}, "chirality tag"),
        ({"x": [[5, 0], [5], [7, 0]]}, r"x: got rows of \[1, 2\] numbers, expected 2"),
        (
            {"edge_index": [[0, 1, 1, 3], [1, 0, 3, 1]]},
            "atom index: got values from 0 to 3, expected 0 to 2",
        ),
        ({"edge_index": [[0, 1, 1, 2]]}, "got 1 rows, expected 2"),
        ({"edge_index": [[0, 1], [1, 0]]}, "edge_attr: got 4 rows, expected one per edge, 2"),
        ({"edge_attr": [[0, 0], [0, 0], [4, 0], [4, 0]]}, "bond type"),
        ({"edge_attr": [[0, 0], [0, 0], [0, -1], [0, -1]]}, "bond direction"),
        ({"edge_index": [[0, 1, 1, 1], [1, 0, 1, 1]]}, "self-loop"),
        ({"edge_index": [[0, 1, 0, 1], [1, 0, 1, 0]]}, "repeated edge"),
        ({"edge_index": [[0, 1, 1, 0], [1, 0, 2, 2]]}, "one direction only"),
        ({"edge_attr": [[0, 0], [1, 0], [0, 0], [0, 0]]}, "one direction only"),
    ],
)
def test_what_is_no_molecule_is_refused(changed: dict[str, list[list[int]]], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MolGraph.from_lists(**{**ETHANOL, **changed})


def test_selection_equals_concatenation_by_hand() -> None:
    graphs = [featurize(smiles).graph for smiles in SMILES]
    chosen = [4, 1, 4, 0]
    batch = pack(graphs).select(torch.tensor(chosen))
    offset = 0
    xs, edges, owners = [], [], []
    for k, index in enumerate(chosen):
        xs.append(graphs[index].x)
        edges.append(graphs[index].edge_index + offset)
        owners += [k] * graphs[index].num_nodes
        offset += graphs[index].num_nodes
    assert torch.equal(batch.x, torch.cat(xs))
    assert torch.equal(batch.edge_index, torch.cat(edges, dim=1))
    assert torch.equal(batch.edge_attr, torch.cat([graphs[index].edge_attr for index in chosen]))
    assert (batch.batch.tolist(), batch.num_graphs) == (owners, 4)


def test_nothing_to_collate_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="got none"):
        collate([])
