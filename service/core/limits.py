"""Graphs from the wire to what an engine takes: molecules, graphs with numeric node features, atoms
with positions. Plain functions on plain data."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.atoms import Atoms, Neighbours, neighbours
from models.data.feature_graph import FeatureGraph
from models.data.molecule import MolGraph
from models.data.schema import AtomsInput, FeatureInput, InputSchema, MoleculeInput
from models.errors import InvalidInputError, MoleculeError
from service.schemas import GraphIn

TAKES = {
    "molecule": (
        "molecules: `smiles`, `inchi` or `mol_block`, or `graphs` with x, edge_index and edge_attr"
    ),
    "graph": "graphs: `graphs` with x and edge_index",
    "atoms": "atoms with positions: `graphs` with numbers and positions, in a crystal also cell",
}
"""By kind of input, what a model takes, in words."""
_NEEDED = {
    "molecule": {"x", "edge_index", "edge_attr"},
    "graph": {"x", "edge_index"},
    "atoms": {"numbers", "positions"},
}
_ALLOWED = {**_NEEDED, "atoms": {"numbers", "positions", "cell"}}
_MOLECULES = MoleculeInput()
_LARGEST_INTEGER = 2**31 - 1
_EDGES_PER_NODE = 200  # a dense crystal has 160 neighbours within 6 Angstrom
# Of a pass's cost, where an atom of a molecule is 1, about 6 us: measured on a CPU, and rounded.
_FEATURES_OF_ONE = 300
_EDGE = 1 / 8
_NEIGHBOUR = 2.0  # through every block of a force field, and back for the forces: 15 us
_USUAL_NEIGHBOURS = 40


@dataclass(frozen=True)
class MoleculeLimits:
    """How large a molecule or graph may be."""

    max_atoms: int
    max_smiles_length: int

    @property
    def max_bonds(self) -> int:
        """A cage has 1.5 bonds per atom; far beyond it a graph is no molecule, and its edges would
        cost more than its atoms say."""
        return 2 * self.max_atoms

    @property
    def max_edges(self) -> int:
        """Of a graph that is no molecule, and of the neighbours of atoms, each direction
        counted."""
        return _EDGES_PER_NODE * self.max_atoms


@dataclass(frozen=True)
class Wanted:
    """What the asked tasks of a model take.

    Attributes:
        input: the model's schema, of these tasks alone.
        cutoff: Angstrom, within which atoms are neighbours; 0 where there are none.
        of_nodes: whether one of the tasks answers for each node.
    """

    input: InputSchema = _MOLECULES
    cutoff: float = 0.0
    of_nodes: bool = False

    @property
    def no_text(self) -> str | None:
        """Why a SMILES or a mol block will not do; None if it will."""
        if self.input.kind != "molecule":
            return f"the model takes {TAKES[self.input.kind]}"
        return (
            "a task that answers for each atom takes `graphs`, whose atoms have an order"
            if self.of_nodes
            else None
        )


def restricted(takes: InputSchema, tasks: Iterable[str]) -> InputSchema:
    """A model's schema for some of its tasks."""
    if isinstance(takes, FeatureInput):
        return FeatureInput(num_features={task: takes.num_features[task] for task in tasks})
    if isinstance(takes, AtomsInput):
        return AtomsInput(elements={task: takes.elements[task] for task in tasks})
    return takes


@dataclass(frozen=True)
class Structure:
    """Atoms whose neighbours are known: finding them takes time and memory, and is done where
    molecules are read.

    Attributes:
        numbers, positions: as of `models.data.atoms.Atoms`.
        edge_index, shift: as of `models.data.atoms.Neighbours`.
    """

    numbers: Tensor
    positions: Tensor
    edge_index: Tensor
    shift: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.numbers.shape[0])

    @property
    def atoms(self) -> Atoms:
        """The atoms; of a crystal without its cell, which the neighbours stand for."""
        return Atoms(self.numbers, self.positions)

    @property
    def neighbours(self) -> Neighbours:
        """Who is near to whom."""
        return Neighbours(self.edge_index, self.shift)


Graph = MolGraph | FeatureGraph | Structure
"""What an engine takes; each is a dataclass of tensors and of nothing else."""


def tensors_of(graph: Graph) -> list[Tensor]:
    """A graph's tensors, in the order in which its class takes them."""
    return [getattr(graph, each.name) for each in dataclasses.fields(graph)]


def graph_cost(graph: Graph) -> int:
    """What a graph adds to the cost of a pass, for each task."""
    if isinstance(graph, MolGraph):
        return graph.num_nodes
    edges = graph.edge_index.shape[1]
    if isinstance(graph, Structure):
        return _structure_cost(graph.num_nodes, edges)
    return _features_cost(graph.num_nodes, graph.num_features, edges)


def estimated_cost(source: GraphIn, limits: MoleculeLimits) -> int:
    """About the same before the graph is read, and at least 1."""
    nodes = min(_num_nodes(source), limits.max_atoms)
    if source.numbers is not None:
        return max(1, _structure_cost(nodes, nodes * min(nodes - 1, _USUAL_NEIGHBOURS)))
    if source.edge_attr is not None:
        return max(1, nodes)
    return max(
        1,
        _features_cost(
            nodes,
            max(map(len, source.x or ()), default=0),
            min(_num_edges(source), limits.max_edges),
        ),
    )


def _features_cost(nodes: int, width: int, edges: int) -> int:
    return math.ceil(nodes * max(1.0, width / _FEATURES_OF_ONE) + edges * _EDGE)


def _structure_cost(atoms: int, neighbours: int) -> int:
    return math.ceil(atoms + neighbours * _NEIGHBOUR)


def _num_nodes(source: GraphIn) -> int:
    return max(len(source.x or ()), len(source.numbers or ()), len(source.positions or ()))


def _num_edges(source: GraphIn) -> int:
    return max(map(len, [*(source.edge_index or ()), source.edge_attr or ()]), default=0)


def check_graph(source: GraphIn, limits: MoleculeLimits, wanted: Wanted) -> None:
    """What can be seen without reading: which fields there are, and how large they are. Raises
    InvalidInputError."""
    kind = wanted.input.kind
    given = {name for name in type(source).model_fields if getattr(source, name) is not None}
    if not _NEEDED[kind] <= given <= _ALLOWED[kind]:
        got = ", ".join(name for name in type(source).model_fields if name in given) or "nothing"
        raise InvalidInputError(f"got a graph with {got}, but the model takes {TAKES[kind]}")
    check_size(_num_nodes(source), limits)
    check_edges(_num_edges(source), limits, wanted)


def check_size(nodes: int, limits: MoleculeLimits) -> None:
    """Raises MoleculeError."""
    if nodes > limits.max_atoms:
        raise MoleculeError(
            "too_many_atoms", f"got {nodes} atoms or nodes, expected at most {limits.max_atoms}"
        )


def check_edges(edges: int, limits: MoleculeLimits, wanted: Wanted) -> None:
    """Raises MoleculeError."""
    if isinstance(wanted.input, MoleculeInput):
        if edges > 2 * limits.max_bonds:
            raise MoleculeError(
                "too_many_bonds", f"got {edges} edges, expected at most {2 * limits.max_bonds}"
            )
    elif edges > limits.max_edges:
        raise MoleculeError(
            "too_many_edges", f"got {edges} edges, expected at most {limits.max_edges}"
        )


def read_graph(source: GraphIn, limits: MoleculeLimits, wanted: Wanted) -> Graph:
    """Read a graph that `check_graph` has let pass.

    Raises:
        InvalidInputError: it is not what the asked tasks take; the message says what was got and
            what was expected.
    """
    if isinstance(wanted.input, FeatureInput):
        return _features(source.x or [], source.edge_index or [], wanted.input)
    if isinstance(wanted.input, AtomsInput):
        return _structure(source, limits, wanted, wanted.input)
    return MolGraph.from_lists(
        _integers(source.x or []), source.edge_index or [], source.edge_attr or []
    )


def _integers(rows: Sequence[Sequence[float]]) -> list[list[int]]:
    """The atom types of a molecule. They come as numbers of any sort, since the features of other
    graphs do; 6.0 is no atom type."""
    wrong = next(
        (
            value
            for row in rows
            for value in row
            if not isinstance(value, int) or abs(value) > _LARGEST_INTEGER
        ),
        None,
    )
    if wrong is not None:
        raise InvalidInputError(f"x: got {wrong!r}, expected an integer: the model takes molecules")
    return [[int(value) for value in row] for row in rows]


def _features(
    x: Sequence[Sequence[float]], edge_index: Sequence[Sequence[int]], takes: FeatureInput
) -> FeatureGraph:
    for task, width in takes.num_features.items():
        if other := [len(row) for row in x if len(row) != width][:1]:
            raise InvalidInputError(
                f"x: got {other[0]} features of a node, expected {width} for task {task!r} (`tasks`"
                " says which are asked)"
            )
    rows, limit = _floats(x), torch.finfo(torch.float32).max
    if large := [value for row in rows for value in row if abs(value) > limit][:1]:
        raise InvalidInputError(
            f"x: got {large[0]:.3g}, expected numbers that are finite in 32 bits"
        )
    return FeatureGraph.from_lists(rows, edge_index)


def _structure(
    source: GraphIn, limits: MoleculeLimits, wanted: Wanted, takes: AtomsInput
) -> Structure:
    cell = None if source.cell is None else _floats(source.cell)
    atoms = Atoms.from_lists(source.numbers or [], _floats(source.positions or []), cell)
    for task, known in takes.elements.items():
        if other := sorted(set(source.numbers or ()) - set(known)):
            raise InvalidInputError(
                f"numbers: got {_listed(other)}, expected elements that task {task!r} was trained"
                f" on: {_listed(known)}"
            )
    near = neighbours(atoms, wanted.cutoff)
    check_edges(near.edge_index.shape[1], limits, wanted)
    return Structure(atoms.numbers, atoms.positions, near.edge_index, near.shift)


def _floats(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Numbers as they came, integers among them, of which the largest would fit into no tensor."""
    return [[float(value) for value in row] for row in rows]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
