"""Molecules and directed message-passing networks, those of chemprop."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from models.data.batch import GraphBatch
from models.data.bond_graph import BondGraph, collate_bonds
from models.data.dmpnn_features import BondMolecule, featurize_bonds
from models.data.schema import BondInput
from models.errors import ArtifactError, InvalidInputError, MoleculeError
from models.experts.dmpnn import DmpnnExpert, DmpnnModel
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.families.base import TaskOutput
from models.families.inputs import GraphFields, SizeLimits, longest
from models.networks.dmpnn import DmpnnConfig, MessagePassing
from models.task import Target, TaskInfo, select_tasks

_ATOM = 3
"""Cost of an atom in units of `ModelFamily.cost`, measured on a CPU with 300 hidden units."""
_PAIR = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


class DmpnnFamily:
    """D-MPNNs: networks of message passing that tasks share, or bring themselves, each task with
    its own feed-forward networks. Experts are not mixed."""

    kinds = ("dmpnn",)
    shape = DmpnnConfig
    schema = BondInput
    targets: tuple[Target, ...] = ("multilabel", "multiclass", "regression")
    streams = None
    node_sums = None
    fields = GraphFields(
        "molecules: `smiles`, `inchi` or `mol_block`, or `graphs` with x, edge_index and edge_attr",
        frozenset({"x", "edge_index", "edge_attr"}),
    )
    inputs_overflow = True

    # --- building a model ---

    def network(self, shape: DmpnnConfig) -> nn.Module:
        """Build the shared message passing; an empty module if every task brings its own."""
        if not shape.is_shared:
            return nn.Module()
        return MessagePassing(shape, shape.atom_dim, shape.bond_dim)

    def expert(
        self, shape: DmpnnConfig, rank: int, info: TaskInfo, schema: BondInput, task: str
    ) -> DmpnnExpert:
        """Build a task's feed-forward networks, and what it adds to the shared network or brings in
        its place. Raises ArtifactError: the shape has no head of the task."""
        if task not in shape.heads:
            expected = f"expected one of {', '.join(shape.heads) or 'none'}"
            raise ArtifactError(f"backbone.heads: got none for {task}, {expected}")
        return DmpnnExpert(shape, shape.heads[task], rank, info)

    def check_expert(self, expert: DmpnnExpert, schema: BondInput, task: str) -> None:
        """Check the loaded weights of an expert.

        Raises:
            ArtifactError: a BatchNorm variance is negative, or what the task adds to the shared
                network is zero.
        """
        for member in expert.networks:
            norm = member.batch_norm
            if norm is not None and bool((norm.get_buffer("running_var") < 0).any()):
                raise ArtifactError("batch_norm.running_var is negative, expected variances")
        if expert.correction is not None and not expert.correction.is_active:
            count = len(expert.correction.state_dict())
            got = f"correction is zero in its {count} tensors"
            raise ArtifactError(f"{got}, expected one that does something")

    def model(
        self, network: nn.Module, experts: Mapping[str, DmpnnExpert], router: RouterConfig
    ) -> DmpnnModel:
        """Assemble the network and all experts; the router is not used."""
        return DmpnnModel(network, experts)

    def served(self, model: DmpnnModel) -> DmpnnModel:
        """Return the model itself."""
        return model

    def answer(
        self, model: DmpnnModel, batch: GraphBatch, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskOutput]:
        """Predict tasks for a batch: see `ModelFamily.answer`. Raises InvalidInputError also for a
        routing other than "own"."""
        if routing != "own":
            got = f"got routing {routing!r}, expected 'own': this model has no adapters to mix"
            raise InvalidInputError(got)
        names, positions = select_tasks(model.tasks, tasks)
        no_sites = batch.x.new_empty(batch.num_graphs, 0, len(model.tasks))
        outputs = model(batch, positions)
        return {
            task: TaskOutput(logits, model.kinds[position], no_sites)
            for task, position, logits in zip(names, positions, outputs, strict=True)
        }

    # --- reading inputs ---

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """See `ModelFamily.check`."""
        self.fields.check(fields)
        limits.check_nodes(len(fields["x"]))
        limits.check_bonds(max(longest(fields["edge_index"]), len(fields["edge_attr"])))

    def read(
        self, fields: Mapping[str, Any], shape: DmpnnConfig, schema: BondInput, limits: SizeLimits
    ) -> BondGraph:
        """Build a molecule from `x`, `edge_index` and `edge_attr`: see `ModelFamily.read`, and for
        the valid values `BondGraph.validate`."""
        widths = shape.atom_dim, shape.bond_dim
        return BondGraph.from_lists(fields["x"], fields["edge_index"], fields["edge_attr"], widths)

    def read_texts(
        self, texts: Sequence[str], shape: DmpnnConfig, schema: BondInput, limits: SizeLimits
    ) -> list[BondMolecule | MoleculeError]:
        """Read molecules from text: see `models.data.dmpnn_features.featurize_bonds`."""
        return featurize_bonds(texts, schema.options, schema.reading, limits.max_atoms)

    def collate(self, graphs: Sequence[BondGraph]) -> GraphBatch:
        """Join molecules into one batch: see `models.data.bond_graph.collate_bonds`."""
        return collate_bonds(graphs)

    def smallest(self, shape: DmpnnConfig, schema: BondInput, task: str) -> BondGraph:
        """Return three atoms in a row, all features 1."""
        return BondGraph(torch.ones(3, shape.atom_dim), _PAIR, torch.ones(4, shape.bond_dim))

    # --- scheduling and statistics ---

    def cost(self, graph: BondGraph) -> int:
        """Return the cost by the number of atoms."""
        return _ATOM * graph.num_nodes

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """Estimate the cost from the number of atoms, up to `max_atoms`."""
        return max(1, _ATOM * min(len(fields.get("x", ())), limits.max_atoms))

    def atom_types(self, graph: BondGraph) -> None:
        """Return None: the graph has features, not atomic numbers."""
