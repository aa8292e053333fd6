"""Types of model inputs: fields of a request's graph, graphs and batches as tensors, limits."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from models.errors import InvalidInputError, MoleculeError

_EDGES_PER_NODE = 200  # a dense crystal has 160 neighbours within 6 Angstrom


class Graph(Protocol):
    """One input of a model: a frozen dataclass whose fields are all tensors."""

    @property
    def num_nodes(self) -> int:
        """Number of atoms or nodes."""
        ...


class Batch(Protocol):
    """Several graphs joined into one disconnected graph."""

    @property
    def num_graphs(self) -> int:
        """Number of graphs G."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on another device."""
        ...


class ReadMolecule(Protocol):
    """A molecule that was read from text."""

    @property
    def smiles(self) -> str:
        """Canonical SMILES."""
        ...

    @property
    def graph(self) -> Graph:
        """Graph of the molecule."""
        ...

    @property
    def key(self) -> str:
        """Molecules with one key have one graph: the canonical SMILES, or the text as written where
        that decides."""
        ...


@dataclass(frozen=True)
class GraphFields:
    """Names of the fields of a graph in a request.

    Attributes:
        description: accepted inputs in words, for error messages.
        required: names of fields that every graph has.
        optional: names of fields that a graph may have.
    """

    description: str
    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    def check(self, given: Iterable[str]) -> None:
        """Raise InvalidInputError if a required field is missing or a field is unknown."""
        names = list(given)
        if not self.required <= set(names) <= self.required | self.optional:
            got = ", ".join(names) or "nothing"
            raise InvalidInputError(
                f"got a graph with {got}, but the model takes {self.description}"
            )


@dataclass(frozen=True)
class SizeLimits:
    """Maximal sizes of one input.

    Attributes:
        max_atoms: maximal number of atoms of a molecule or structure, or of nodes of a graph.
    """

    max_atoms: int

    @property
    def max_bonds(self) -> int:
        """Maximal number of bonds of a molecule. Fullerenes have 1.5 per atom; a graph with far
        more is no molecule, and costs more than its number of atoms suggests."""
        return 2 * self.max_atoms

    @property
    def max_edges(self) -> int:
        """Maximal number of directed edges of a graph that is no molecule, or of neighbour pairs
        of a structure."""
        return _EDGES_PER_NODE * self.max_atoms

    def check_nodes(self, nodes: int) -> None:
        """Raise MoleculeError if there are more atoms or nodes than `max_atoms`."""
        if nodes > self.max_atoms:
            got = f"got {nodes} atoms or nodes, expected at most {self.max_atoms}"
            raise MoleculeError("too_many_atoms", got)

    def check_bonds(self, edges: int) -> None:
        """Raise MoleculeError if there are more directed edges than 2 `max_bonds`."""
        if edges > 2 * self.max_bonds:
            got = f"got {edges} edges, expected at most {2 * self.max_bonds}"
            raise MoleculeError("too_many_bonds", got)

    def check_edges(self, edges: int, name: str = "edges") -> None:
        """Raise MoleculeError if there are more directed edges, or pairs of nodes, than
        `max_edges`."""
        if edges > self.max_edges:
            got = f"got {edges} {name}, expected at most {self.max_edges}"
            raise MoleculeError("too_many_edges", got)


TextReader = Callable[[Sequence[str], Any, Any, SizeLimits], Sequence[ReadMolecule | MoleculeError]]
"""Function (texts, shape, schema, limits) that reads molecules from SMILES and the other formats of
`models.data.molecule_text`. It returns one molecule or error per text and raises none of them."""


def tensors_of(graph: Any) -> list[Tensor]:
    """Return the tensors of a graph, in the order of its constructor's parameters."""
    return [getattr(graph, field.name) for field in dataclasses.fields(graph)]


def floats(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Convert all numbers to float; torch would fail on integers beyond 64 bits."""
    return [[float(value) for value in row] for row in rows]


def longest(rows: Iterable[Sequence[Any]]) -> int:
    """Return the length of the longest row, 0 without rows."""
    return max(map(len, rows), default=0)
