"""A first answer of every task: a model that fails on a small input is no model."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from models.data.atoms import Atoms, collate_atoms
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import MolGraph, collate
from models.data.schema import AtomsInput, FeatureInput, InputSchema
from models.errors import ArtifactError
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from models.networks.hu2020 import Backbone
from models.networks.pyg import GraphNetwork
from models.networks.schnet import ForceField, ForceFieldExpert, MergedForceField

_ENDS = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
_ATOMS, _BONDS = torch.tensor([[5, 0], [5, 0], [7, 0]]), torch.zeros((4, 2), dtype=torch.int64)
_ETHANOL = MolGraph(_ATOMS, _ENDS, _BONDS)
_SPACING = 1.5  # Angstrom


def try_tasks(
    backbone: Backbone | GraphNetwork | ForceField,
    experts: Mapping[str, Expert | ForceFieldExpert],
    takes: InputSchema,
) -> None:
    """Have every task, alone, answer one small input of the kind that the model takes.

    Raises:
        ArtifactError: a number of an answer is not finite; the task is named.
    """
    for task, expert in experts.items():
        numbers = _answer(backbone, task, expert, takes)
        if not all(bool(values.isfinite().all()) for values in numbers):
            raise ArtifactError(f"got answers of {task} that are not finite, expected finite ones")


def _answer(
    backbone: nn.Module,
    task: str,
    expert: nn.Module,
    takes: InputSchema,
) -> tuple[Tensor, ...]:
    if isinstance(takes, AtomsInput):
        numbers = list(takes.elements[task])
        positions = [[0.0, 0.0, _SPACING * k] for k in range(len(numbers))]
        structure = Atoms.from_lists(numbers, positions)
        field = MergedForceField(cast(ForceField, backbone), {task: cast(ForceFieldExpert, expert)})
        output = field(collate_atoms([structure], field.network.config.cutoff))[task]
        return output.energy, output.forces
    if isinstance(takes, FeatureInput):
        batch = collate_features([FeatureGraph(torch.ones(3, takes.num_features[task]), _ENDS)])
    else:
        batch = collate([_ETHANOL])
    network, experts = cast(Backbone | GraphNetwork, backbone), {task: cast(Expert, expert)}
    model = UnifiedModel(network, experts, RouterConfig())
    with torch.inference_mode():
        return (model(batch, routing="own").logits[task],)
