"""What an artifact and the service ask of a kind of model.

A family is one object without state: it knows how its networks are built, what they take, and what
they answer. `models.families.table` lists all of them; a new kind is one file here and one row
there, and nothing else asks what kind a model is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from models.data.schema import InputSchema
from models.errors import InvalidInputError, MoleculeError
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.networks.base import NetworkShape
from models.task import Target, TaskInfo, answers

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


class ServedModel(Protocol):
    """A merged model, ready to answer.

    Attributes:
        tasks: that it answers, in its order.
        site_names: where experts are mixed; () where nothing mixes.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the experts."""
        ...

    @property
    def site_names(self) -> tuple[str, ...]:
        """Where experts are mixed; () where nothing mixes."""
        ...


@dataclass(frozen=True)
class TaskOutput:
    """Answers of one task for a batch of G graphs of N nodes together.

    Attributes:
        logits: what the head says, (G, C), or (N, C) of a task on nodes; of a force field the
            energies, (G, 1) float64 in eV.
        target: what the numbers are.
        routing_weights: (G, sites, K), each (graph, site) sums to 1; no sites where nothing mixes.
        forces: of a force field, (N, 3) in eV / Angstrom; None of all others.
    """

    logits: Tensor
    target: Target
    routing_weights: Tensor
    forces: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """What is answered, of the shape of `logits`: probabilities, or the numbers themselves."""
        return answers(self.logits, self.target)

    @property
    def is_finite(self) -> bool:
        """Whether all of its numbers are finite, before they become probabilities."""
        numbers = [self.logits] if self.forces is None else [self.logits, self.forces]
        return all(bool(values.isfinite().all()) for values in numbers)


@dataclass(frozen=True)
class GraphFields:
    """By what fields a graph is given.

    Attributes:
        words: what the model takes, in words.
        required, optional: names of the fields.
    """

    words: str
    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    def check(self, given: Iterable[str]) -> None:
        """Raises InvalidInputError: a required field is missing, or another one is given."""
        names = list(given)
        if not self.required <= set(names) <= self.required | self.optional:
            got = ", ".join(names) or "nothing"
            raise InvalidInputError(f"got a graph with {got}, but the model takes {self.words}")


@dataclass(frozen=True)
class SizeLimits:
    """How large a molecule or graph may be."""

    max_atoms: int

    @property
    def max_bonds(self) -> int:
        """A cage has 1.5 bonds per atom; far beyond it a graph is no molecule, and its edges would
        cost more than its atoms say."""
        return 2 * self.max_atoms

    @property
    def max_edges(self) -> int:
        """Of a graph that is no molecule, and of the neighbours of atoms, both directions
        counted."""
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
"""Reads molecules written as SMILES, or as what else is known by its look, for networks of a shape
and tasks of a schema; an error is returned, not raised."""


class ModelFamily(Protocol):
    """A kind of model. Where a parameter is `Any`, it is of the family's own type: a shape of
    `shape`, a schema of `schema`, what `network`, `expert`, `model` or `collate` returned."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Values of the manifest's `backbone.kind` that are of this family."""
        ...

    @property
    def shape(self) -> type[NetworkShape]:
        """Type of the manifest's `backbone`."""
        ...

    @property
    def schema(self) -> type[InputSchema]:
        """Type of the manifest's `input`."""
        ...

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the numbers of its tasks may be."""
        ...

    @property
    def fields(self) -> GraphFields:
        """By what a graph is given."""
        ...

    @property
    def read_texts(self) -> TextReader | None:
        """How molecules are read from text; None where a text will not do."""
        ...

    @property
    def inputs_overflow(self) -> bool:
        """Whether an input of valid numbers may be so large that no answer is finite: not where
        every input is a row of a table."""
        ...

    # --- what an artifact is made of ---

    def network(self, shape: Any) -> nn.Module:
        """A network of this shape, its weights not yet read. Raises RuntimeError or MemoryError
        for sizes that cannot be."""
        ...

    def expert(self, shape: Any, rank: int, info: TaskInfo, schema: Any, task: str) -> nn.Module:
        """What one task brings to the network, its weights not yet read."""
        ...

    def check_expert(self, expert: Any, schema: Any, task: str) -> None:
        """Raises ArtifactError: tensors that no answer can be made of, or that contradict the
        schema."""
        ...

    def model(self, network: Any, experts: Mapping[str, Any], router: RouterConfig) -> Any:
        """The merged model, a module that all tasks are asked of."""
        ...

    def served(self, model: Any) -> ServedModel:
        """The same model in the form that answers fastest where it stands."""
        ...

    def answer(
        self, model: Any, batch: Any, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskOutput]:
        """The tasks' answers for a batch.

        Raises:
            UnknownTaskError: a task that the model does not have.
            InvalidInputError: a routing that the model does not have, or a batch that the task
                does not take.
        """
        ...

    # --- what it takes ---

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """What can be seen without reading a graph: which fields there are, and how large they are.

        Raises:
            InvalidInputError: other fields than `fields`.
            MoleculeError: too large.
        """
        ...

    def read(self, fields: Mapping[str, Any], shape: Any, schema: Any, limits: SizeLimits) -> Graph:
        """Read a graph that `check` has let pass, for all tasks of the schema.

        Raises:
            InvalidInputError: it is not what these tasks take; what was got and what expected.
            MoleculeError: too large, which was not seen before.
        """
        ...

    def collate(self, graphs: Sequence[Any]) -> Batch:
        """Put graphs into one batch, in their order. Raises InvalidInputError if there is none."""
        ...

    def smallest(self, shape: Any, schema: Any, task: str) -> Graph:
        """A small input of a task that passes through every part of the network."""
        ...

    # --- what it costs and counts ---

    def cost(self, graph: Any) -> int:
        """What a graph adds to the cost of a pass, for each task: an atom of a molecule is 1,
        about 6 us on a CPU."""
        ...

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """About the cost of a graph that is not read yet, at least 1."""
        ...

    def atom_types(self, graph: Any) -> Tensor | None:
        """Atomic numbers - 1 of a molecule's atoms, (N,); None where nodes are something else."""
        ...


def tensors_of(graph: Any) -> list[Tensor]:
    """A graph's tensors, in the order in which its class takes them."""
    return [getattr(graph, field.name) for field in dataclasses.fields(graph)]


def floats(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Numbers as they came, integers among them, of which the largest would fit into no tensor."""
    return [[float(value) for value in row] for row in rows]


def longest(rows: Iterable[Sequence[Any]]) -> int:
    """The length of the longest row, 0 without rows."""
    return max(map(len, rows), default=0)
