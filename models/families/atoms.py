"""Force fields: families of models that predict energies and forces of atoms with positions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.data.atoms import Atoms, AtomsBatch, Neighbours, join, neighbours
from models.data.schema import AtomsInput
from models.errors import ArtifactError, InvalidInputError
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.families.base import TaskOutput
from models.families.inputs import GraphFields, SizeLimits, floats
from models.networks.chgnet import Chgnet, ChgnetConfig
from models.networks.force_field import (
    AtomNetwork,
    ForceFieldExpert,
    ForceFieldOutput,
    ForceFieldShape,
    MergedForceField,
)
from models.networks.schnet import ForceField, ForceFieldConfig
from models.task import Target, TaskInfo

# In units of `ModelFamily.cost`, measured on a CPU and rounded.
_NEIGHBOUR = 2.0  # all blocks forward, and backward for the forces: 15 us
_USUAL_NEIGHBOURS = 40
_SPACING = 1.5  # Angstrom


@dataclass(frozen=True)
class Structure:
    """Atoms with their neighbour list, which is built when a structure is read, not in the pass.

    Attributes:
        numbers, positions: see `models.data.atoms.Atoms`.
        edge_index, shift, reverse: see `models.data.atoms.Neighbours`.
    """

    numbers: Tensor
    positions: Tensor
    edge_index: Tensor
    shift: Tensor
    reverse: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.numbers.shape[0])

    @property
    def atoms(self) -> Atoms:
        """Atoms without the cell: `shift` already holds the periodic translations."""
        return Atoms(self.numbers, self.positions)

    @property
    def neighbours(self) -> Neighbours:
        """Pairs of atoms within the cutoff."""
        return Neighbours(self.edge_index, self.shift, self.reverse)

    @classmethod
    def of(cls, atoms: Atoms, cutoff: float) -> "Structure":
        """Build the neighbour list within `cutoff` Angstrom. Raises InvalidInputError if an atom
        has too many neighbours."""
        near = neighbours(atoms, cutoff)
        return cls(atoms.numbers, atoms.positions, near.edge_index, near.shift, near.reverse)


class AtomsFamily:
    """SchNet force fields for molecules and crystals. Experts are not mixed; every task has its
    own atom embeddings and head."""

    kinds: tuple[str, ...] = ("schnet",)
    shape: type[ForceFieldShape] = ForceFieldConfig
    schema = AtomsInput
    targets: tuple[Target, ...] = ("energy_and_forces",)
    streams = None
    node_sums = None
    fields = GraphFields(
        "atoms with positions: `graphs` with numbers and positions, in a crystal also cell",
        frozenset({"numbers", "positions"}),
        frozenset({"cell"}),
    )
    read_texts = None
    inputs_overflow = True

    def network(self, shape: Any) -> AtomNetwork:
        """Build the interaction blocks of SchNet."""
        return ForceField(shape)

    def expert(
        self, shape: ForceFieldShape, rank: int, info: TaskInfo, schema: AtomsInput, task: str
    ) -> ForceFieldExpert:
        """Build atom embeddings, a head, and the scale and reference energies of a task."""
        return ForceFieldExpert(shape)

    def check_expert(self, expert: ForceFieldExpert, schema: AtomsInput, task: str) -> None:
        """Raise ArtifactError if the elements of the expert are not those of the manifest."""
        known = expert.elements.nonzero().flatten().tolist()
        declared = sorted(set(schema.elements[task]))
        if known != declared:
            got = f"got elements {known} in the tensors of {task}"
            raise ArtifactError(f"{got}, expected those of the manifest, {declared}")

    def model(
        self, network: AtomNetwork, experts: Mapping[str, ForceFieldExpert], router: RouterConfig
    ) -> MergedForceField:
        """Assemble the network and all experts; the router is not used."""
        return MergedForceField(network, experts)

    def served(self, model: MergedForceField) -> MergedForceField:
        """Return the model itself."""
        return model

    def answer(
        self, model: MergedForceField, batch: AtomsBatch, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskOutput]:
        """Predict energies and forces. Raises InvalidInputError for routings other than "own"."""
        if routing != "own":
            raise InvalidInputError(f"got routing {routing!r} for a force field, expected 'own'")
        nowhere = batch.positions.new_empty((batch.num_graphs, 0, len(model.tasks)))
        return {task: _output(output, nowhere) for task, output in model(batch, tasks).items()}

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """See `ModelFamily.check`."""
        self.fields.check(fields)
        limits.check_nodes(max(len(fields["numbers"]), len(fields["positions"])))

    def read(
        self,
        fields: Mapping[str, Any],
        shape: ForceFieldShape,
        schema: AtomsInput,
        limits: SizeLimits,
    ) -> Structure:
        """Build a structure with its neighbour list. Raises InvalidInputError if a task was not
        trained on one of its elements; see also `ModelFamily.read`."""
        numbers, cell = fields["numbers"], fields.get("cell")
        lattice = None if cell is None else floats(cell)
        atoms = Atoms.from_lists(numbers, floats(fields["positions"]), lattice)
        for task, known in schema.elements.items():
            if other := sorted(set(numbers) - set(known)):
                got = f"numbers: got {_listed(other)}, expected elements that task {task!r}"
                raise InvalidInputError(f"{got} was trained on: {_listed(known)}")
        structure = Structure.of(atoms, shape.cutoff)
        limits.check_edges(structure.edge_index.shape[1])
        return structure

    def collate(self, graphs: Sequence[Structure]) -> AtomsBatch:
        """Join structures into one batch: see `models.data.atoms.join`."""
        return join([graph.atoms for graph in graphs], [graph.neighbours for graph in graphs])

    def smallest(self, shape: ForceFieldShape, schema: AtomsInput, task: str) -> Structure:
        """Return one atom of every element of the task, in a row 1.5 Angstrom apart."""
        numbers = list(schema.elements[task])
        positions = [[0.0, 0.0, _SPACING * k] for k in range(len(numbers))]
        return Structure.of(Atoms.from_lists(numbers, positions), shape.cutoff)

    def cost(self, graph: Structure) -> int:
        """Return the cost by numbers of atoms and neighbour pairs."""
        return _cost(graph.num_nodes, graph.edge_index.shape[1])

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """Estimate the cost with 40 neighbours per atom, or all other atoms if they are fewer."""
        given = max(len(fields.get("numbers", ())), len(fields.get("positions", ())))
        atoms = min(given, limits.max_atoms)
        return max(1, _cost(atoms, atoms * min(atoms - 1, _USUAL_NEIGHBOURS)))

    def atom_types(self, graph: Structure) -> None:
        """Return None: the statistics are of molecules without hydrogen atoms."""


class ChgnetFamily(AtomsFamily):
    """CHGNet force fields; as SchNet's but for the network."""

    kinds = ("chgnet",)
    shape = ChgnetConfig

    def network(self, shape: Any) -> AtomNetwork:
        """Build the convolutions of CHGNet."""
        return Chgnet(shape)


def _output(output: ForceFieldOutput, nowhere: Tensor) -> TaskOutput:
    return TaskOutput(output.energy.unsqueeze(1), "energy_and_forces", nowhere, output.forces)


def _cost(atoms: int, neighbour_pairs: int) -> int:
    return math.ceil(atoms + neighbour_pairs * _NEIGHBOUR)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
