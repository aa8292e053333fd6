import torch
from torch import Tensor

from models.networks.force_field import energy_and_forces
from models.networks.schnet import ForceFieldConfig
from tests.conftest import collate_atoms
from tests.models.networks.test_force_field import (
    SHAPES,
    exact,
    random_expert,
    random_network,
    random_structure,
)


def test_the_blocks_are_those_of_pyg_schnet() -> None:
    from torch_geometric.nn import SchNet

    config = SHAPES["schnet"]
    assert isinstance(config, ForceFieldConfig)

    network = random_network("schnet").double()
    expert = random_expert("schnet", 3).double()
    batch = exact(collate_atoms([random_structure(0), random_structure(1)], 3.0))
    source, target = batch.edge_index

    def graph(positions: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return batch.edge_index, (positions[source] - positions[target]).norm(dim=1)

    whole = SchNet(
        config.hidden_dim,
        config.num_filters,
        config.num_interactions,
        config.num_gaussians,
        config.cutoff,
        graph,
    ).double()
    whole.embedding = expert.embedding
    whole.lin1, whole.lin2 = expert.lin1, expert.lin2
    whole.distance_expansion = network.get_submodule("distance_expansion")
    whole.interactions = network.get_submodule("interactions")
    output = energy_and_forces(network, expert, batch)
    expected = expert.scale * whole(batch.numbers, batch.positions, batch.batch).squeeze(1)
    offsets = torch.stack(
        [expert.atom_energies[batch.numbers[batch.batch == k]].sum() for k in range(2)]
    )
    assert torch.allclose(output.energy, expected + offsets)
