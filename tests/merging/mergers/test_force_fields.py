from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.mergers.fisher import FisherOptions
from merging.mergers.force_fields import fisher, fisher_information, regmean, single_structures
from merging.mergers.gffmerge import (
    Heads,
    Teacher,
    closed_form,
    linear_activations,
    linear_groups,
    linears,
    merged_parameters,
    teacher_equations,
)
from merging.mergers.regmean import RegMeanOptions
from models.networks.chgnet import Chgnet, ChgnetConfig
from models.networks.force_field import ForceFieldExpert, energy_and_forces, potential
from tests.conftest import collate_atoms
from tests.models.networks.test_force_field import random_structure

CONFIG = ChgnetConfig(
    hidden_dim=4, num_interactions=2, num_radial=3, num_angular=3, cutoff=3.0, angle_cutoff=2.5
)


def teacher(seed: int) -> Teacher:
    torch.manual_seed(seed)
    network, expert = Chgnet(CONFIG), ForceFieldExpert(CONFIG)
    expert.elements[[1, 6, 8]] = True
    structures = [random_structure(10 * seed + k, periodic=k == 2) for k in range(3)]
    batches = collate_atoms(structures[:2], 3.0), collate_atoms(structures[2:], 3.0)
    for module in (network, expert):
        module.requires_grad_(False)
    return Teacher(network, expert, batches)


def copies() -> dict[str, Teacher]:
    """One model, with structures of its own for every task."""
    one, two = teacher(1), teacher(2)
    return {"one": one, "two": Teacher(one.network, one.expert, two.batches)}


def forces(network: Chgnet, expert: ForceFieldExpert, seed: int) -> Tensor:
    return energy_and_forces(network, expert, collate_atoms([random_structure(seed)], 3.0)).forces


METHODS = {
    "published": lambda teachers: closed_form(teachers, 1e-9, pull="zero"),
    "mean": lambda teachers: closed_form(teachers, 1e-3),
    "slopes": lambda teachers: closed_form(teachers, 1e-3, slopes=0.3),
    "sequential": lambda teachers: closed_form(teachers, 1e-3, "merged", "own"),
    "regmean": lambda teachers: regmean(teachers, RegMeanOptions(), teacher_equations(teachers)),
    "fisher": lambda teachers: fisher(teachers, FisherOptions(), 0),
}


@pytest.mark.parametrize("name", METHODS)
def test_copies_of_one_chgnet_give_that_model(name: str) -> None:
    teachers = copies()
    before = deepcopy(teachers["one"].network.state_dict())
    merged = METHODS[name](teachers)
    for task, own in teachers.items():
        found = forces(merged.network, merged.expert(task), 7)
        expected = forces(own.network, own.expert, 7)
        # without a pull to the teachers, directions without inputs are lost
        assert torch.allclose(found, expected, atol=5e-3 if name == "published" else 2e-4)
        energies = torch.cat(
            [
                potential(merged.network, merged.expert(task), batch, batch.positions)
                for batch in own.batches
            ]
        )
        assert float(energies.mean()) == pytest.approx(float(own.energies().mean()), abs=1e-5)
    after = teachers["one"].network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def rows_of(teachers: dict[str, Teacher], name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and outputs of a Linear in every teacher, float64."""
    found = []
    for own in teachers.values():
        seen = [
            linear_activations(own.network, own.expert, batch, [name])[name]
            for batch in own.batches
        ]
        found.append(
            tuple(torch.cat([one[side][0] for one in seen]).double().numpy() for side in (0, 1))
        )
    return found  # type: ignore[return-value]


def test_the_published_closed_form_is_least_squares_over_all_rows() -> None:
    teachers, name = {"one": teacher(1), "two": teacher(2)}, "bond_layers.0.core"
    merged = closed_form(teachers, 1e-9, pull="zero")
    again = closed_form(teachers, 1e-9, pull="zero", known=teacher_equations(teachers))
    for key, value in merged.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    rows = rows_of(teachers, name)
    z = np.vstack([np.hstack([inputs, np.ones((len(inputs), 1))]) for inputs, _ in rows])
    assert len(z) > 17
    answer = np.linalg.lstsq(z, np.vstack([outputs for _, outputs in rows]), rcond=None)[0]
    linear = linears(merged.network, merged.expert("one"))[name]
    found = np.vstack([linear.weight.numpy().T, linear.bias.numpy()[None]])
    assert z @ found == pytest.approx(z @ answer, abs=1e-3)


def test_inputs_of_gathered_linears_are_recorded_with_their_slopes() -> None:
    own = teacher(3)
    network, expert = own.network.double(), own.expert.double()
    batch = collate_atoms([random_structure(5, periodic=True)], 3.0)
    places, directions = batch.positions.double(), torch.randn(5, 3, dtype=torch.float64)
    names = [name for group in linear_groups(network, expert) for name in group]

    def at(step: float) -> dict[str, tuple[Tensor, ...]]:
        moved = replace(batch, positions=places + step * directions, shift=batch.shift.double())
        found = linear_activations(network, expert, moved, names, directions)
        return {
            name: tuple(tensor for pair in value for tensor in pair if tensor is not None)
            for name, value in found.items()
        }

    here, there, back = at(0.0), at(1e-5), at(-1e-5)
    assert set(here) == set(linears(network, expert))
    for name, (z, dz, y, dy) in here.items():
        linear = linears(network, expert)[name]
        torch.testing.assert_close(torch.nn.functional.linear(z, linear.weight, linear.bias), y)
        for value, slope in ((0, dz), (2, dy)):
            numeric = (there[name][value] - back[name][value]) / 2e-5
            torch.testing.assert_close(slope, numeric, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", ["merged", "own"])
def test_heads_are_merged_or_own(heads: Heads) -> None:
    merged = closed_form({"one": teacher(1), "two": teacher(2)}, 1e-3, heads=heads)
    first, second = (merged.expert(task) for task in ("one", "two"))
    for name in first.head_linears:
        same = torch.equal(*(one.get_parameter(f"{name}.weight") for one in (first, second)))
        assert same == (heads == "merged")


def test_regmean_of_one_linear_is_the_formula() -> None:
    teachers, name = {"one": teacher(1), "two": teacher(2)}, "lin1"
    merged = regmean(teachers, RegMeanOptions(alpha=0.5), teacher_equations(teachers))
    grams, weights = [], []
    for own, (inputs, _) in zip(teachers.values(), rows_of(teachers, name), strict=True):
        gram = inputs.T @ inputs / len(inputs)
        grams.append(0.5 * gram + 0.5 * np.diag(np.diag(gram)))
        weights.append(own.expert.get_parameter(f"{name}.weight").double().numpy().T)
    moments = sum(gram @ weight for gram, weight in zip(grams, weights, strict=True))
    expected = np.linalg.solve(sum(grams), moments)
    found = merged.expert("two").get_parameter(f"{name}.weight").numpy().T
    assert found == pytest.approx(expected, abs=1e-3)


def test_fisher_information_is_a_squared_random_row_of_the_jacobian() -> None:
    own = teacher(4)
    single = Teacher(own.network, own.expert, (next(iter(single_structures(own.batches))),))
    name = "atom_layers.0.core_norm.bias"
    parameter = own.network.get_parameter(name).requires_grad_()
    answered = energy_and_forces(own.network, own.expert, single.batches[0], differentiable=True)
    jacobian = [
        torch.autograd.grad(force, parameter, retain_graph=True)[0]
        for force in answered.forces.flatten()
    ]
    parameter.requires_grad_(False)
    signs = torch.randint(2, (len(jacobian),), generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = (signs.float() @ torch.stack(jacobian)).double().square()
    found = fisher_information(single, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-8)
    assert found.keys() == merged_parameters(own.network, own.expert, "merged").keys()
    assert not found["lin4.bias"].any()  # no force depends on it
    assert not any(value.requires_grad for value in own.network.parameters())


def test_single_structures_are_those_of_the_batch() -> None:
    structures = [random_structure(1), random_structure(2, periodic=True), random_structure(3, 3)]
    found = list(single_structures((collate_atoms(structures, 3.0),)))
    for one, structure in zip(found, structures, strict=True):
        alone = collate_atoms([structure], 3.0)
        for key, value in vars(alone).items():
            same = getattr(one, key)
            assert torch.equal(same, value) if isinstance(value, Tensor) else same == value
