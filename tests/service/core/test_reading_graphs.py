"""Graphs of every kind, read: what fits the asked tasks becomes tensors, the rest gets a code and a
sentence on what was got and expected."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.data.feature_graph import FeatureGraph
from models.data.schema import AtomsInput, FeatureInput
from models.families.atoms import Structure
from models.networks.pyg import GraphNetworkConfig
from models.networks.schnet import ForceFieldConfig
from service.core.reading import (
    ITEM_CODES,
    MOLECULES,
    InputRequirements,
    ItemFailure,
    MoleculeLimits,
    Parsed,
    cost,
    precheck,
    read,
)
from service.schemas import ETHANOL_GRAPH, FEATURE_GRAPH, WATER, GraphIn

LIMITS = MoleculeLimits(max_atoms=6, max_smiles_length=40)
NETWORK = GraphNetworkConfig(kind="pyg_gcn", in_dim=3)


def of_features(**widths: int) -> InputRequirements:
    return InputRequirements(NETWORK, FeatureInput(num_features=widths))


def of_atoms(cutoff: float) -> InputRequirements:
    elements = {"water": (1, 8), "ethanol": (1, 6, 8)}
    return InputRequirements(ForceFieldConfig(cutoff=cutoff), AtomsInput(elements=elements))


FEATURES = of_features(papers=3)
BOTH = of_features(papers=3, pages=5)
ATOMS = of_atoms(4.0)
CUBE = [[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]]


def features(**changes: Any) -> GraphIn:
    return GraphIn.model_validate({**FEATURE_GRAPH, **changes})


def water(**changes: Any) -> GraphIn:
    return GraphIn.model_validate({**WATER, **changes})


def rejected(source: GraphIn | str, wanted: InputRequirements) -> ItemFailure:
    result = read(source, LIMITS, wanted)
    assert isinstance(result, ItemFailure)
    assert result.code in ITEM_CODES
    return result


def test_features_become_float32_and_edges_stay() -> None:
    result = read(features(), LIMITS, FEATURES)
    assert isinstance(result, Parsed)
    assert isinstance(result.graph, FeatureGraph)
    assert (result.smiles, result.graph.x.dtype) == (None, torch.float32)
    assert result.graph.x.tolist() == FEATURE_GRAPH["x"]
    assert result.graph.edge_index.tolist() == FEATURE_GRAPH["edge_index"]


def test_a_node_without_edges() -> None:
    assert isinstance(read(features(x=[[1, 2, 3]], edge_index=[[], []]), LIMITS, FEATURES), Parsed)


def test_neighbours_are_found_while_reading() -> None:
    result = read(water(), LIMITS, ATOMS)
    assert isinstance(result, Parsed)
    assert isinstance(result.graph, Structure)
    assert result.graph.numbers.tolist() == WATER["numbers"]
    assert sorted(map(tuple, result.graph.edge_index.T.tolist())) == [
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    assert not result.graph.shift.any()


def test_neighbours_across_the_faces_of_a_cell() -> None:
    """One atom in a cube of 3 Angstrom: six images of its own at 3, none at 3 * 2 ** 0.5 = 4.24."""
    result = read(GraphIn(numbers=[8], positions=[[0.5, 0.5, 0.5]], cell=CUBE), LIMITS, ATOMS)
    assert isinstance(result, Parsed)
    assert isinstance(result.graph, Structure)
    assert sorted(result.graph.shift.abs().sum(1).tolist()) == [3.0] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [[1, 2]] * 3}, "got 2 features of a node, expected 3 for task 'papers'"),
        ({"x": [[1, 2, 3], [1, 2], [1, 2, 3]]}, "got 2 features"),
        ({"x": [[]]}, "got 0 features"),
        ({"x": []}, "expected at least one row"),
        ({"x": [[1e39, 0, 0]] * 3}, "got 1e+39, expected numbers that are finite in 32 bits"),
        ({"x": [[10**300, 0, 0]] * 3}, "got 1e+300"),
        ({"edge_index": [[0], [0]]}, "self-loop"),
        ({"edge_index": [[0], [3]]}, "got nodes from 0 to 3, expected 0 to 2"),
        ({"edge_index": [[0], [-1]]}, "got nodes from -1"),
        ({"edge_index": [[0, 0], [1, 1]]}, "repeated edge"),
        ({"edge_index": [[0, 1], [1]]}, "expected 2 of one length"),
        ({"edge_index": [[0]]}, "expected 2 of one length"),
        ({"edge_index": []}, "expected 2 of one length"),
        ({"edge_index": None}, "got a graph with x, but the model takes graphs"),
        ({"x": None}, "got a graph with edge_index, but"),
        ({"edge_attr": [[0, 0]] * 4}, "got a graph with x, edge_index, edge_attr, but"),
        ({"positions": [[0, 0, 0]] * 3}, "got a graph with x, edge_index, positions, but"),
    ],
)
def test_wrong_features(changes: dict[str, Any], message: str) -> None:
    error = rejected(features(**changes), FEATURES)
    assert error.code == "invalid_graph"
    assert message in error.message


def test_width_has_to_fit_every_asked_task() -> None:
    assert (
        "got 3 features of a node, expected 5 for task 'pages' (`tasks` says which are asked)"
        in rejected(features(), BOTH).message
    )
    one = InputRequirements(NETWORK, BOTH.schema.for_tasks(["papers"]))
    assert isinstance(read(features(), LIMITS, one), Parsed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": []}, "at least one atom"),
        ({"numbers": [8, 1]}, "positions: got shape (3, 3), expected (2, 3)"),
        ({"numbers": [0, 1, 1]}, "expected atomic numbers from 1 to 118"),
        ({"numbers": [119, 1, 1]}, "expected atomic numbers from 1 to 118"),
        (
            {"numbers": [6, 1, 1]},
            "numbers: got 6, expected elements that task 'water' was trained on: 1, 8",
        ),
        ({"positions": [[0, 0]] * 3}, "positions: got rows of [2] numbers, expected 3"),
        ({"positions": [[0, 0, 0], [1, 0, 0], [1, 0, 0]]}, "positions: got atoms"),
        (
            {"positions": [[0, 0, 0], [1, 0, 0], [1e39, 0, 0]]},
            "positions: got a value that is not finite or beyond",
        ),
        (
            {"positions": [[0, 0, 0], [1, 0, 0], [10**300, 0, 0]]},
            "positions: got a value that is not finite or beyond",
        ),
        ({"cell": [[1, 0, 0]]}, "cell: got shape (1, 3), expected (3, 3)"),
        ({"cell": [[3, 0, 0], [3, 0, 0], [0, 0, 3]]}, "expected a volume"),
        ({"cell": [[0.1, 0, 0], [0, 3, 0], [0, 0, 3]]}, "expected a volume and at least"),
        ({"numbers": None}, "got a graph with positions, but the model takes atoms with positions"),
        ({"positions": None}, "got a graph with numbers, but"),
        ({"edge_index": [[0, 1], [1, 0]]}, "got a graph with edge_index, numbers, positions, but"),
        ({"x": [[7, 0]] * 3}, "got a graph with x, numbers, positions, but"),
    ],
)
def test_wrong_atoms(changes: dict[str, Any], message: str) -> None:
    error = rejected(water(**changes), ATOMS)
    assert error.code == "invalid_graph"
    assert message in error.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (features(), "got a graph with x, edge_index, but the model takes molecules"),
        (water(), "got a graph with numbers, positions, but the model takes molecules"),
        (GraphIn(), "got a graph with nothing"),
        (
            GraphIn.model_validate({**ETHANOL_GRAPH, "positions": [[0, 0, 0]] * 3}),
            "got a graph with x, edge_index, edge_attr, positions, but",
        ),
        (
            GraphIn.model_validate({**ETHANOL_GRAPH, "x": [[5.0, 0], [5, 0], [7, 0]]}),
            "x: got 5.0, expected an integer: the model takes molecules",
        ),
        (
            GraphIn.model_validate({**ETHANOL_GRAPH, "x": [[5, 0], [5, 0], [2**31, 0]]}),
            "x: got 2147483648, expected an integer",
        ),
    ],
)
def test_what_is_no_molecule(source: GraphIn, message: str) -> None:
    error = rejected(source, MOLECULES)
    assert error.code == "invalid_graph"
    assert message in error.message


@pytest.mark.parametrize("wanted", [FEATURES, ATOMS, replace(MOLECULES, of_nodes=True)])
def test_smiles_for_a_model_that_takes_none(wanted: InputRequirements) -> None:
    error = rejected("CCO", wanted)
    assert error.code == "unsupported_input"
    assert "got a molecule as text, but" in error.message
    assert "takes" in error.message


@pytest.mark.parametrize(
    ("source", "wanted", "code"),
    [
        (features(x=[[1, 2, 3]] * 7), FEATURES, "too_many_atoms"),
        (features(edge_index=[[0] * 1201, [1] * 1201]), FEATURES, "too_many_edges"),
        (water(numbers=[1] * 7), ATOMS, "too_many_atoms"),
        (water(positions=[[0, 0, 0]] * 7), ATOMS, "too_many_atoms"),
        (
            GraphIn.model_validate({**ETHANOL_GRAPH, "edge_index": [[0] * 25, [1] * 25]}),
            MOLECULES,
            "too_many_bonds",
        ),
    ],
)
def test_size_is_seen_without_reading(
    source: GraphIn, wanted: InputRequirements, code: str
) -> None:
    error = precheck(source, LIMITS, wanted)
    assert error is not None
    assert error.code == code
    assert "max_atoms" in error.message


def test_a_tiny_cell_has_too_many_neighbours() -> None:
    """An atom and all its images within 12 Angstrom: a few bytes, and fifty thousand edges."""
    error = rejected(
        GraphIn(numbers=[8], positions=[[0, 0, 0]], cell=[[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]),
        of_atoms(12.0),
    )
    assert error.code == "too_many_edges"


def test_messages_are_short() -> None:
    wide = of_features(t=10**6)
    assert len(rejected(features(), wide).message) < 350
    every = GraphIn(numbers=list(range(1, 119)), positions=[[2.0 * k, 0, 0] for k in range(118)])
    result = read(every, MoleculeLimits(500, 40), ATOMS)
    assert isinstance(result, ItemFailure)
    assert len(result.message) < 350


@pytest.mark.parametrize(
    ("source", "wanted", "expected"),
    [
        (features(), FEATURES, 4),  # 3 nodes and 4 edges of an eighth
        (features(x=[[0] * 900] * 3), of_features(t=900), 10),
        (water(), ATOMS, 15),  # 3 atoms and 6 neighbours of 2
        (GraphIn.model_validate(ETHANOL_GRAPH), MOLECULES, 3),
    ],
)
def test_cost_grows_with_nodes_width_and_edges(
    source: GraphIn, wanted: InputRequirements, expected: int
) -> None:
    result = read(source, LIMITS, wanted)
    assert isinstance(result, Parsed)
    assert wanted.family.cost(result.graph) == cost(source, LIMITS, wanted) == expected


@pytest.mark.parametrize("wanted", [FEATURES, ATOMS, MOLECULES])
def test_what_will_be_refused_has_a_cost_too(wanted: InputRequirements) -> None:
    assert cost(GraphIn(), LIMITS, wanted) == 1
