from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.data.files import write_tensors
from models.data.atoms import Atoms, AtomsBatch
from models.errors import CheckpointError, InvalidInputError, UnknownTaskError
from models.families.table import FAMILIES
from models.networks.chgnet import ChgnetConfig
from models.networks.force_field import (
    AtomNetwork,
    ForceFieldExpert,
    ForceFieldShape,
    MergedForceField,
    energy_and_forces,
    potential,
)
from models.networks.schnet import ForceFieldConfig
from models.state_dict import load_tensors, read_tensors
from tests.conftest import collate_atoms

CUTOFF = 3.0
SHAPES: dict[str, ForceFieldShape] = {
    "schnet": ForceFieldConfig(
        hidden_dim=8, num_filters=6, num_interactions=2, num_gaussians=5, cutoff=CUTOFF
    ),
    "chgnet": ChgnetConfig(
        hidden_dim=8,
        num_interactions=2,
        num_radial=5,
        num_angular=5,
        cutoff=CUTOFF,
        angle_cutoff=2.5,
    ),
}
ELEMENTS = [1, 6, 8]
every_kind = pytest.mark.parametrize("kind", SHAPES)


def random_expert(kind: str, seed: int) -> ForceFieldExpert:
    """Build an expert whose numbers all differ."""
    torch.manual_seed(seed)
    expert = ForceFieldExpert(SHAPES[kind])
    with torch.no_grad():
        for value in expert.parameters():
            value.copy_(torch.rand_like(value) - 0.5)
        expert.atom_energies.copy_(-100 * torch.rand_like(expert.atom_energies))
        expert.scale.fill_(1.3)
        expert.elements[ELEMENTS] = True
    return expert


def random_network(kind: str, seed: int = 0) -> AtomNetwork:
    torch.manual_seed(seed)
    network = FAMILIES[kind].network(SHAPES[kind])
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.rand_like(value) - 0.5)
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


PERIODIC = pytest.mark.parametrize("periodic", [False, True])


def exact_model(kind: str) -> tuple[AtomNetwork, ForceFieldExpert]:
    return random_network(kind).double(), random_expert(kind, 1).double()


def answer(kind: str, structure: Atoms) -> tuple[Tensor, Tensor]:
    """Compute energy () and forces (N, 3) in float64."""
    double = replace(
        structure,
        positions=structure.positions.double(),
        cell=None if structure.cell is None else structure.cell.double(),
    )
    output = energy_and_forces(*exact_model(kind), exact(collate_atoms([double], CUTOFF)))
    return output.energy[0], output.forces


@PERIODIC
@every_kind
def test_forces_are_minus_the_slope_of_the_energy(kind: str, periodic: bool) -> None:
    batch = exact(
        collate_atoms([random_structure(0, periodic=periodic), random_structure(1)], CUTOFF)
    )
    model, step = exact_model(kind), 1e-5
    forces = energy_and_forces(*model, batch).forces
    for atom in range(len(batch.numbers)):
        for axis in range(3):
            moved = torch.zeros_like(batch.positions)
            moved[atom, axis] = step
            with torch.no_grad():
                rise = (
                    potential(*model, batch, batch.positions + moved).sum()
                    - potential(*model, batch, batch.positions - moved).sum()
                )
            assert float(forces[atom, axis]) == pytest.approx(-float(rise) / (2 * step), abs=1e-6)
    assert float(forces.abs().max()) > 1e-3


@PERIODIC
@every_kind
def test_a_rotation_turns_the_forces_and_leaves_the_energy(kind: str, periodic: bool) -> None:
    structure = random_structure(2, periodic=periodic)
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    cell = None if structure.cell is None else structure.cell.double() @ rotation
    energy, forces = answer(kind, structure)
    turned_energy, turned_forces = answer(
        kind, Atoms(structure.numbers, structure.positions.double() @ rotation, cell)
    )
    assert torch.allclose(turned_energy, energy, atol=1e-6)
    assert torch.allclose(turned_forces, forces @ rotation, atol=1e-5)


@PERIODIC
@every_kind
def test_a_translation_changes_nothing(kind: str, periodic: bool) -> None:
    structure = random_structure(3, periodic=periodic)
    energy, forces = answer(kind, structure)
    moved = replace(
        structure,
        positions=structure.positions.double()
        + torch.tensor([0.3, -1.7, 2.9], dtype=torch.float64),
    )
    moved_energy, moved_forces = answer(kind, moved)
    assert torch.allclose(moved_energy, energy, atol=1e-6)
    assert torch.allclose(moved_forces, forces, atol=1e-5)


@PERIODIC
@every_kind
def test_forces_sum_to_nothing(kind: str, periodic: bool) -> None:
    assert answer(kind, random_structure(4, periodic=periodic))[1].sum(0).abs().max() < 1e-9


@PERIODIC
@every_kind
def test_a_permutation_of_atoms_permutes_the_forces(kind: str, periodic: bool) -> None:
    structure = random_structure(5, periodic=periodic)
    order = torch.tensor([3, 0, 4, 1, 2])
    energy, forces = answer(kind, structure)
    other_energy, other_forces = answer(
        kind,
        replace(structure, numbers=structure.numbers[order], positions=structure.positions[order]),
    )
    assert torch.allclose(other_energy, energy, atol=1e-9)
    assert torch.allclose(other_forces, forces[order], atol=1e-9)


@every_kind
def test_a_lattice_vector_changes_nothing(kind: str) -> None:
    structure = random_structure(6, periodic=True)
    assert structure.cell is not None
    moved = structure.positions.double().clone()
    moved[2] += torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64) @ structure.cell.double()
    energy, forces = answer(kind, structure)
    moved_energy, moved_forces = answer(kind, replace(structure, positions=moved))
    assert torch.allclose(moved_energy, energy, atol=1e-6)
    assert torch.allclose(moved_forces, forces, atol=1e-5)


@every_kind
def test_twice_the_cell_has_twice_the_energy(kind: str) -> None:
    structure = random_structure(7, periodic=True)
    assert structure.cell is not None
    twice = Atoms(
        structure.numbers.repeat(2),
        torch.cat([structure.positions, structure.positions + structure.cell[0]]),
        structure.cell * torch.tensor([[2.0], [1], [1]]),
    )
    energy, forces = answer(kind, structure)
    twice_energy, twice_forces = answer(kind, twice)
    assert torch.allclose(twice_energy, 2 * energy, atol=1e-5)
    assert torch.allclose(twice_forces, forces.repeat(2, 1), atol=1e-5)


def merged(kind: str) -> MergedForceField:
    experts = {"first.task": random_expert(kind, 1), "second": random_expert(kind, 2)}
    return MergedForceField(random_network(kind), experts)


@every_kind
def test_an_answer_does_not_depend_on_the_batch(kind: str) -> None:
    model = merged(kind)
    structures = [
        random_structure(seed, count=3 + seed % 4, periodic=seed % 2 == 0) for seed in range(6)
    ]
    together = model(collate_atoms(structures, CUTOFF), ["second"])["second"]
    forces = together.forces.split([structure.num_nodes for structure in structures])
    for k, structure in enumerate(structures):
        single = model(collate_atoms([structure], CUTOFF), ["second"])["second"]
        assert torch.allclose(single.energy[0], together.energy[k], atol=1e-5)
        assert torch.allclose(single.forces, forces[k], atol=1e-5)


@every_kind
def test_tasks_are_answered_each_by_its_expert(kind: str) -> None:
    model, batch = merged(kind), collate_atoms([random_structure(0)], CUTOFF)
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
@every_kind
def test_forces_where_no_gradients_are_recorded(
    kind: str, mode: Callable[[], torch.no_grad]
) -> None:
    model = merged(kind)
    expected = model(collate_atoms([random_structure(0)], CUTOFF))["second"]
    with mode():
        found = model(collate_atoms([random_structure(0)], CUTOFF))["second"]
    assert torch.equal(found.forces, expected.forces)
    assert not found.energy.requires_grad


@every_kind
def test_an_atom_alone_has_its_energy_and_no_force(kind: str) -> None:
    model = merged(kind)
    output = model(
        collate_atoms([Atoms.from_lists([6], [[1, 2, 3]]), random_structure(0)], CUTOFF), ["second"]
    )["second"]
    single = model(collate_atoms([Atoms.from_lists([6], [[0, 0, 0]])], CUTOFF), ["second"])[
        "second"
    ]
    assert torch.allclose(single.energy[0], output.energy[0])
    assert torch.equal(single.forces, torch.zeros(1, 3))
    assert torch.equal(output.forces[0], torch.zeros(3))


@every_kind
def test_unknown_elements_and_tasks_are_refused(kind: str) -> None:
    model = merged(kind)
    with pytest.raises(
        InvalidInputError, match=r"got elements \[7\], expected some of \[1, 6, 8\]"
    ):
        model(collate_atoms([Atoms.from_lists([7], [[0, 0, 0]])], CUTOFF))
    with pytest.raises(UnknownTaskError, match="third"):
        model(collate_atoms([random_structure(0)], CUTOFF), ["third"])


@every_kind
def test_weights_survive_a_file(kind: str, tmp_path: Path) -> None:
    model, batch = merged(kind), collate_atoms([random_structure(0, periodic=True)], CUTOFF)
    # refuses two names of one tensor
    write_tensors(tmp_path / "backbone.safetensors", model.network.state_dict())
    write_tensors(tmp_path / "second.safetensors", model.expert("second").state_dict())
    network, expert = FAMILIES[kind].network(SHAPES[kind]), ForceFieldExpert(SHAPES[kind])
    load_tensors(network, read_tensors(tmp_path / "backbone.safetensors"), "network")
    load_tensors(expert, read_tensors(tmp_path / "second.safetensors"), "expert")
    read = MergedForceField(network, {"second": expert})
    assert torch.equal(read(batch)["second"].forces, model(batch)["second"].forces)
    assert torch.equal(read(batch)["second"].energy, model(batch)["second"].energy)


@every_kind
def test_weights_of_another_shape_are_refused(kind: str) -> None:
    shorter = SHAPES[kind].model_copy(update={"num_interactions": 1})
    with pytest.raises(CheckpointError, match=r"missing (interactions|atom_layers)\.1"):
        load_tensors(random_network(kind), FAMILIES[kind].network(shorter).state_dict(), "network")
