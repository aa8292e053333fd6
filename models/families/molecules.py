"""Molecules and the four networks of Hu et al. 2020."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.compiled.model import fastest
from models.data.batch import GraphBatch
from models.data.fingerprint import with_fingerprint
from models.data.located import locate
from models.data.molecule import MolGraph, collate
from models.data.schema import MoleculeInput
from models.data.smiles import Molecule, featurize_all, read_smiles
from models.errors import ArtifactError, InvalidInputError, MoleculeError
from models.experts.expert import Expert
from models.experts.unified import UnifiedModel
from models.families.adapted import AdaptedFamily, AdaptedNodeSums
from models.families.base import Locator, NodeSums, ServedModel
from models.families.inputs import GraphFields, SizeLimits, longest
from models.networks.base import NetworkShape
from models.networks.hu2020 import Backbone, BackboneConfig
from models.task import TaskInfo

_ETHANOL = MolGraph(
    torch.tensor([[5, 0], [5, 0], [7, 0]]),
    torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]),
    torch.zeros((4, 2), dtype=torch.int64),
)
_LARGEST_INTEGER = 2**31 - 1


class MoleculeInputs:
    """Base of families that read molecules as graphs of heavy atoms with the atom and bond features
    of Hu et al. 2020."""

    schema = MoleculeInput
    fields = GraphFields(
        "molecules: `smiles`, `inchi` or `mol_block`, or `graphs` with x, edge_index and edge_attr",
        frozenset({"x", "edge_index", "edge_attr"}),
    )
    inputs_overflow = False

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """See `ModelFamily.check`."""
        self.fields.check(fields)
        limits.check_nodes(len(fields["x"]))
        limits.check_bonds(max(longest(fields["edge_index"]), len(fields["edge_attr"])))

    def read(
        self,
        fields: Mapping[str, Any],
        shape: NetworkShape,
        schema: MoleculeInput,
        limits: SizeLimits,
    ) -> MolGraph:
        """Build a molecule from `x`, `edge_index` and `edge_attr`: see `ModelFamily.read`, and for
        the valid values `MolGraph.validate`."""
        x, edge_attr = (_integers(fields[name], name) for name in ("x", "edge_attr"))
        return MolGraph.from_lists(x, fields["edge_index"], edge_attr)

    def read_texts(
        self, texts: Sequence[str], shape: NetworkShape, schema: MoleculeInput, limits: SizeLimits
    ) -> list[Molecule | MoleculeError]:
        """Read molecules from text: see `models.data.smiles.featurize_all`. If the schema states a
        rule for fingerprints, graphs have them."""
        wanted = schema.has_fingerprint
        return featurize_all(texts, max_atoms=limits.max_atoms, fingerprints=wanted)

    def collate(self, graphs: Sequence[MolGraph]) -> GraphBatch:
        """Join molecules into one batch: see `models.data.molecule.collate`."""
        return collate(graphs)

    def smallest(self, shape: NetworkShape, schema: MoleculeInput, task: str) -> MolGraph:
        """Return ethanol; with its fingerprint if the schema states a rule for it."""
        if not schema.has_fingerprint:
            return _ETHANOL
        return with_fingerprint(_ETHANOL, read_smiles("CCO"), "CCO")

    def cost(self, graph: MolGraph) -> int:
        """Return the number of heavy atoms."""
        return graph.num_nodes

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """Estimate the cost as the number of atoms, at least 1 and at most `max_atoms`."""
        return max(1, min(len(fields.get("x", ())), limits.max_atoms))

    def atom_types(self, graph: MolGraph) -> Tensor:
        """Return the atomic numbers - 1, (N,)."""
        return graph.x[:, 0]


class MoleculeNodeSums(AdaptedNodeSums):
    """Sums over the atoms of molecules."""

    locate: Locator | None = staticmethod(locate)


class MoleculeFamily(MoleculeInputs, AdaptedFamily):
    """The four networks of Hu et al. 2020."""

    node_sums: NodeSums | None = MoleculeNodeSums()
    kinds = ("gin", "gcn", "graphsage", "gat", "gin_linear")
    shape = BackboneConfig

    def network(self, shape: BackboneConfig) -> Backbone:
        """Build one of the four backbones."""
        return Backbone(shape)

    def expert(
        self, shape: BackboneConfig, rank: int, info: TaskInfo, schema: MoleculeInput, task: str
    ) -> Expert:
        """Build adapters and a head."""
        return Expert(shape, rank, info.labels, info.level, info.output_kind)

    def served(self, model: UnifiedModel) -> ServedModel:
        """Return the compiled model where this network, device and router have one, else the
        model itself."""
        return fastest(model) if isinstance(model, UnifiedModel) else model


def molecular_backbone(network: nn.Module, kind: str) -> Backbone:
    """Return the network as a `Backbone` of Hu et al. 2020.

    Args:
        network: of an artifact.
        kind: of the artifact's input, for the error message.

    Raises:
        ArtifactError: it is a network of another family.
    """
    if not isinstance(network, Backbone):
        raise ArtifactError(f"got an artifact of kind {kind!r}, expected one for molecules")
    return network


def _integers(rows: Sequence[Sequence[float]], name: str) -> list[list[int]]:
    """Check that all numbers of a molecule's `x` or `edge_attr` are integers. The request schema
    allows any number there, since those of other graphs are features; but 6.0 is no atom type."""
    values = (value for row in rows for value in row)
    wrong = [v for v in values if not isinstance(v, int) or abs(v) > _LARGEST_INTEGER][:1]
    if wrong:
        got = f"{name}: got {wrong[0]!r}, expected an integer: the model takes molecules"
        raise InvalidInputError(got)
    return [[int(value) for value in row] for row in rows]
