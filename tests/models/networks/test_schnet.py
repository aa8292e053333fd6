from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.data.files import write_tensors
from models.data.atoms import Atoms, AtomsBatch
from models.errors import CheckpointError, InvalidInputError, UnknownTaskError
from models.networks.force_field import (
    ForceFieldExpert,
    MergedForceField,
    energy_and_forces,
    potential,
)
from models.networks.schnet import ForceField, ForceFieldConfig
from models.state_dict import load_tensors, read_tensors
from tests.conftest import collate_atoms

CONFIG = ForceFieldConfig(
    hidden_dim=8, num_filters=6, num_interactions=2, num_gaussians=5, cutoff=3.0
)
ELEMENTS = [1, 6, 8]


def random_expert(seed: int) -> ForceFieldExpert:
    """Build an expert whose numbers all differ."""
    torch.manual_seed(seed)
    expert = ForceFieldExpert(CONFIG)
    with torch.no_grad():
        for value in expert.parameters():
            value.copy_(torch.rand_like(value) - 0.5)
        expert.atom_energies.copy_(-100 * torch.rand_like(expert.atom_energies))
        expert.scale.fill_(1.3)
        expert.elements[ELEMENTS] = True
    return expert


def random_network(seed: int = 0) -> ForceField:
    torch.manual_seed(seed)
    network = ForceField(CONFIG)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.rand_like(value) - 0.5)
    return network


def random_structure(seed: int, count: int = 5, periodic: bool = False) -> Atoms:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(ELEMENTS)[torch.randint(0, 3, (count,), generator=generator)]
    grid = torch.cartesian_prod(*[torch.arange(2.0)] * 3)[
        torch.randperm(8, generator=generator)[:count]
    ]
    positions = 1.3 * grid + 0.3 * torch.rand(count, 3, generator=generator)
    cell = torch.tensor([[2.9, 0.0, 0.0], [0.7, 3.1, 0.0], [-0.4, 0.5, 3.3]]) if periodic else None
    return Atoms(numbers, positions, cell).validate()


def exact(batch: AtomsBatch) -> AtomsBatch:
    return replace(batch, positions=batch.positions.double(), shift=batch.shift.double())


NETWORK, EXPERT = random_network().double(), random_expert(1).double()
PERIODIC = pytest.mark.parametrize("periodic", [False, True])


def answer(structure: Atoms) -> tuple[Tensor, Tensor]:
    """Compute energy () and forces (N, 3) in float64."""
    double = replace(
        structure,
        positions=structure.positions.double(),
        cell=None if structure.cell is None else structure.cell.double(),
    )
    output = energy_and_forces(NETWORK, EXPERT, exact(collate_atoms([double], CONFIG.cutoff)))
    return output.energy[0], output.forces


@PERIODIC
def test_forces_are_minus_the_slope_of_the_energy(periodic: bool) -> None:
    batch = exact(
        collate_atoms([random_structure(0, periodic=periodic), random_structure(1)], CONFIG.cutoff)
    )
    forces, step = energy_and_forces(NETWORK, EXPERT, batch).forces, 1e-5
    for atom in range(len(batch.numbers)):
        for axis in range(3):
            moved = torch.zeros_like(batch.positions)
            moved[atom, axis] = step
            with torch.no_grad():
                rise = (
                    potential(NETWORK, EXPERT, batch, batch.positions + moved).sum()
                    - potential(NETWORK, EXPERT, batch, batch.positions - moved).sum()
                )
            assert float(forces[atom, axis]) == pytest.approx(-float(rise) / (2 * step), abs=1e-6)
    assert float(forces.abs().max()) > 1e-3


@PERIODIC
def test_a_rotation_turns_the_forces_and_leaves_the_energy(periodic: bool) -> None:
    structure = random_structure(2, periodic=periodic)
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    cell = None if structure.cell is None else structure.cell.double() @ rotation
    energy, forces = answer(structure)
    turned_energy, turned_forces = answer(
        Atoms(structure.numbers, structure.positions.double() @ rotation, cell)
    )
    assert torch.allclose(turned_energy, energy, atol=1e-6)
    assert torch.allclose(turned_forces, forces @ rotation, atol=1e-5)


@PERIODIC
def test_a_translation_changes_nothing(periodic: bool) -> None:
    structure = random_structure(3, periodic=periodic)
    energy, forces = answer(structure)
    moved = replace(
        structure,
        positions=structure.positions.double()
        + torch.tensor([0.3, -1.7, 2.9], dtype=torch.float64),
    )
    moved_energy, moved_forces = answer(moved)
    assert torch.allclose(moved_energy, energy, atol=1e-6)
    assert torch.allclose(moved_forces, forces, atol=1e-5)


@PERIODIC
def test_forces_sum_to_nothing(periodic: bool) -> None:
    assert answer(random_structure(4, periodic=periodic))[1].sum(0).abs().max() < 1e-9


@PERIODIC
def test_a_permutation_of_atoms_permutes_the_forces(periodic: bool) -> None:
    structure = random_structure(5, periodic=periodic)
    order = torch.tensor([3, 0, 4, 1, 2])
    energy, forces = answer(structure)
    other_energy, other_forces = answer(
        replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    )
    assert torch.allclose(other_energy, energy, atol=1e-9)
    assert torch.allclose(other_forces, forces[order], atol=1e-9)


def test_a_lattice_vector_changes_nothing() -> None:
    structure = random_structure(6, periodic=True)
    assert structure.cell is not None
    moved = structure.positions.double().clone()
    moved[2] += torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64) @ structure.cell.double()
    energy, forces = answer(structure)
    moved_energy, moved_forces = answer(replace(structure, positions=moved))
    assert torch.allclose(moved_energy, energy, atol=1e-6)
    assert torch.allclose(moved_forces, forces, atol=1e-5)


def test_twice_the_cell_has_twice_the_energy() -> None:
    structure = random_structure(7, periodic=True)
    assert structure.cell is not None
    twice = Atoms(
        structure.numbers.repeat(2),
        torch.cat([structure.positions, structure.positions + structure.cell[0]]),
        structure.cell * torch.tensor([[2.0], [1], [1]]),
    )
    energy, forces = answer(structure)
    twice_energy, twice_forces = answer(twice)
    assert torch.allclose(twice_energy, 2 * energy, atol=1e-5)
    assert torch.allclose(twice_forces, forces.repeat(2, 1), atol=1e-5)


def merged() -> MergedForceField:
    return MergedForceField(
        random_network(), {"first.task": random_expert(1), "second": random_expert(2)}
    )


def test_an_answer_does_not_depend_on_the_batch() -> None:
    model = merged()
    structures = [
        random_structure(seed, count=3 + seed % 4, periodic=seed % 2 == 0) for seed in range(6)
    ]
    together = model(collate_atoms(structures, CONFIG.cutoff), ["second"])["second"]
    forces = together.forces.split([structure.num_nodes for structure in structures])
    for k, structure in enumerate(structures):
        single = model(collate_atoms([structure], CONFIG.cutoff), ["second"])["second"]
        assert torch.allclose(single.energy[0], together.energy[k], atol=1e-5)
        assert torch.allclose(single.forces, forces[k], atol=1e-5)


def test_tasks_are_answered_each_by_its_expert() -> None:
    model, batch = merged(), collate_atoms([random_structure(0)], CONFIG.cutoff)
    answers = model(batch)
    assert list(answers) == list(model.tasks) == ["first.task", "second"]
    for task in model.tasks:
        expected = energy_and_forces(model.network, model.expert(task), batch)
        assert torch.equal(answers[task].energy, expected.energy)
        assert torch.equal(answers[task].forces, expected.forces)
    assert not torch.equal(answers["first.task"].forces, answers["second"].forces)
    # float32 would lose what differs between large energies
    assert answers["second"].energy.dtype == torch.float64


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_forces_where_no_gradients_are_recorded(mode: Callable[[], torch.no_grad]) -> None:
    model = merged()
    expected = model(collate_atoms([random_structure(0)], CONFIG.cutoff))["second"]
    with mode():
        found = model(collate_atoms([random_structure(0)], CONFIG.cutoff))["second"]
    assert torch.equal(found.forces, expected.forces)
    assert not found.energy.requires_grad


def test_an_atom_alone_has_its_energy_and_no_force() -> None:
    model = merged()
    output = model(
        collate_atoms([Atoms.from_lists([6], [[1, 2, 3]]), random_structure(0)], CONFIG.cutoff),
        ["second"],
    )["second"]
    single = model(collate_atoms([Atoms.from_lists([6], [[0, 0, 0]])], CONFIG.cutoff), ["second"])[
        "second"
    ]
    assert torch.allclose(single.energy[0], output.energy[0])
    assert torch.equal(single.forces, torch.zeros(1, 3))
    assert torch.equal(output.forces[0], torch.zeros(3))


def test_unknown_elements_and_tasks_are_refused() -> None:
    model = merged()
    with pytest.raises(
        InvalidInputError, match=r"got elements \[7\], expected some of \[1, 6, 8\]"
    ):
        model(collate_atoms([Atoms.from_lists([7], [[0, 0, 0]])], CONFIG.cutoff))
    with pytest.raises(UnknownTaskError, match="third"):
        model(collate_atoms([random_structure(0)], CONFIG.cutoff), ["third"])


def test_the_blocks_are_those_of_pyg_schnet() -> None:
    from torch_geometric.nn import SchNet

    network = random_network().double()
    expert = random_expert(3).double()
    batch = exact(collate_atoms([random_structure(0), random_structure(1)], 3.0))
    source, target = batch.edge_index

    def graph(positions: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return batch.edge_index, (positions[source] - positions[target]).norm(dim=1)

    whole = SchNet(
        CONFIG.hidden_dim,
        CONFIG.num_filters,
        CONFIG.num_interactions,
        CONFIG.num_gaussians,
        CONFIG.cutoff,
        graph,
    ).double()
    whole.embedding = expert.embedding
    whole.lin1, whole.lin2 = expert.lin1, expert.lin2
    whole.distance_expansion, whole.interactions = network.distance_expansion, network.interactions
    output = energy_and_forces(network, expert, batch)
    expected = expert.scale * whole(batch.numbers, batch.positions, batch.batch).squeeze(1)
    offsets = torch.stack(
        [expert.atom_energies[batch.numbers[batch.batch == k]].sum() for k in range(2)]
    )
    assert torch.allclose(output.energy, expected + offsets)


def test_weights_survive_a_file(tmp_path: Path) -> None:
    model, batch = merged(), collate_atoms([random_structure(0, periodic=True)], CONFIG.cutoff)
    # refuses two names of one tensor
    write_tensors(tmp_path / "backbone.safetensors", model.network.state_dict())
    write_tensors(tmp_path / "second.safetensors", model.expert("second").state_dict())
    network, expert = ForceField(CONFIG), ForceFieldExpert(CONFIG)
    load_tensors(network, read_tensors(tmp_path / "backbone.safetensors"), "network")
    load_tensors(expert, read_tensors(tmp_path / "second.safetensors"), "expert")
    read = MergedForceField(network, {"second": expert})
    assert torch.equal(read(batch)["second"].forces, model(batch)["second"].forces)
    assert torch.equal(read(batch)["second"].energy, model(batch)["second"].energy)


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"missing interactions\.1"):
        load_tensors(
            ForceField(CONFIG),
            ForceField(CONFIG.model_copy(update={"num_interactions": 1})).state_dict(),
            "network",
        )
