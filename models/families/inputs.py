"""What families take: fields of a request, graphs and batches as tensors, bounds on their size."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from models.errors import InvalidInputError, MoleculeError

_EDGES_PER_NODE = 200  # a dense crystal has 160 neighbours within 6 Angstrom


class Graph(Protocol):
    """One input of a model: a frozen dataclass of tensors and of nothing else."""

    @property
    def num_nodes(self) -> int:
        """Number of atoms or nodes."""
        ...


class Batch(Protocol):
    """Several graphs as one, without edges between them."""

    @property
    def num_graphs(self) -> int:
        """G."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        ...


class ReadMolecule(Protocol):
    """A molecule that was read from text."""

    @property
    def smiles(self) -> str:
        """Canonical SMILES."""
        ...

    @property
    def graph(self) -> Graph:
        """Its graph."""
        ...


@dataclass(frozen=True)
class GraphFields:
    """The fields of a request's graph.

    Attributes:
        words: the inputs of the model in words, for error messages.
        required, optional: names of fields.
    """

    words: str
    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    def check(self, given: Iterable[str]) -> None:
        """Raises InvalidInputError: a required field is missing, or an unknown one is given."""
        names = list(given)
        if not self.required <= set(names) <= self.required | self.optional:
            got = ", ".join(names) or "nothing"
            raise InvalidInputError(f"got a graph with {got}, but the model takes {self.words}")


@dataclass(frozen=True)
class SizeLimits:
    """Bounds on the size of one input.

    Attributes:
        max_atoms: atoms of a molecule or structure, nodes of a graph.
    """

    max_atoms: int

    @property
    def max_bonds(self) -> int:
        """Bonds of a molecule. A cage has 1.5 per atom; a graph with far more is no molecule, and
        its edges would cost more than its number of atoms suggests."""
        return 2 * self.max_atoms

    @property
    def max_edges(self) -> int:
        """Edges of any other graph, and neighbours of all atoms of a structure; both directions
        count."""
        return _EDGES_PER_NODE * self.max_atoms

    def check_nodes(self, nodes: int) -> None:
        """Raises MoleculeError: more atoms or nodes than `max_atoms`."""
        if nodes > self.max_atoms:
            got = f"got {nodes} atoms or nodes, expected at most {self.max_atoms}"
            raise MoleculeError("too_many_atoms", got)

    def check_bonds(self, edges: int) -> None:
        """Raises MoleculeError: more edges than `max_bonds` bonds have in both directions."""
        if edges > 2 * self.max_bonds:
            got = f"got {edges} edges, expected at most {2 * self.max_bonds}"
            raise MoleculeError("too_many_bonds", got)

    def check_edges(self, edges: int) -> None:
        """Raises MoleculeError: more edges than `max_edges`."""
        if edges > self.max_edges:
            got = f"got {edges} edges, expected at most {self.max_edges}"
            raise MoleculeError("too_many_edges", got)


TextReader = Callable[[Sequence[str], Any, Any, SizeLimits], Sequence[ReadMolecule | MoleculeError]]
"""Reads molecules from SMILES and the other formats of `models.data.molecule_text`, for a network
of some shape and the tasks of a schema. Errors are returned in place of molecules, not raised."""


def tensors_of(graph: Any) -> list[Tensor]:
    """A graph's tensors, in the order of its class's parameters."""
    return [getattr(graph, field.name) for field in dataclasses.fields(graph)]


def floats(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Rows with all numbers as floats: integers beyond 64 bits would not fit into a tensor."""
    return [[float(value) for value in row] for row in rows]


def longest(rows: Iterable[Sequence[Any]]) -> int:
    """Length of the longest row; 0 if there are no rows."""
    return max(map(len, rows), default=0)
