"""Fisher merging and RegMean of force fields, on energies and forces."""

from collections.abc import Iterator

import torch
from torch import Tensor

from merging.mergers.base import stack_states
from merging.mergers.fisher import FisherOptions, fisher_mean
from merging.mergers.gffmerge import (
    Equations,
    Teacher,
    Teachers,
    assembled,
    linears,
    match_mean_energies,
    merged_parameters,
)
from merging.mergers.regmean import RegMeanOptions, least_squares_weight, shrunk
from models.data.atoms import AtomsBatch
from models.networks.force_field import MergedForceField, energy_and_forces


def regmean(teachers: Teachers, options: RegMeanOptions, equations: Equations) -> MergedForceField:
    """Merge every Linear, heads too, by least squares on its inputs in the teachers
    (`teacher_equations`); average everything else, biases too (`merging.mergers.regmean`). Rows are
    atoms, bonds or angles."""
    states = {
        task: merged_parameters(teacher.network, teacher.expert, "merged")
        for task, teacher in teachers.items()
    }
    stacked = stack_states(states.values())
    weights = {name: values.mean(0) for name, values in stacked.items()}
    first = next(iter(teachers.values()))
    for name, linear in linears(first.network, first.expert).items():
        width, key = linear.in_features, f"{name}.weight"
        solved = [equations[task][name] for task in teachers]
        grams = torch.stack([task.gram[:width, :width] / task.count for task in solved])
        weights[key] = least_squares_weight(shrunk(grams, options), stacked[key])
    return match_mean_energies(assembled(teachers, weights), teachers)


def fisher(teachers: Teachers, options: FisherOptions, seed: int) -> MergedForceField:
    """Average the weights of networks and heads, each weighted by its Fisher information
    (`fisher_information`)."""
    states = {
        task: merged_parameters(teacher.network, teacher.expert, "merged")
        for task, teacher in teachers.items()
    }
    information = {}
    for number, (task, teacher) in enumerate(teachers.items()):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        information[task] = fisher_information(teacher, generator)
    merged = assembled(teachers, fisher_mean(states, information, options))
    return match_mean_energies(merged, teachers)


def fisher_information(teacher: Teacher, generator: torch.Generator) -> dict[str, Tensor]:
    """Estimate the diagonal of a force field's Fisher information on its structures, for normally
    distributed forces of standard deviation 1 eV / Angstrom around its answers.

    F_j = mean over structures of sum_c (d f_c / d theta_j)^2 over the components of the forces. It
    is estimated by one gradient per structure, that of sum_c s_c f_c with random signs s_c, which
    is unbiased. Energies are left out: one number per structure, against 3 N forces, whose weight
    among them would be a choice.

    Returns:
        F by the names of `merged_parameters`, float64; 0 for what the forces do not depend on.
    """
    network, expert = teacher.network, teacher.expert
    names = merged_parameters(network, expert, "merged")
    named = dict(network.named_parameters()) | dict(expert.named_parameters())
    parameters = [named[name].requires_grad_() for name in names]
    squares = [torch.zeros_like(value, dtype=torch.float64) for value in parameters]
    count = 0
    for structure in single_structures(teacher.batches):
        forces = energy_and_forces(network, expert, structure, differentiable=True).forces
        signs = torch.randint(2, forces.shape, generator=generator).to(forces) * 2 - 1
        target = (signs * forces).sum()
        gradients = torch.autograd.grad(target, parameters, allow_unused=True)
        for total, gradient in zip(squares, gradients, strict=True):
            if gradient is not None:  # None for the bias of the last Linear
                total += gradient.double().square()
        count += 1
    for value in parameters:
        value.requires_grad_(False)
    return {name: total / count for name, total in zip(names, squares, strict=True)}


def single_structures(batches: tuple[AtomsBatch, ...]) -> Iterator[AtomsBatch]:
    """Yield every structure of some batches as a batch of its own."""
    for batch in batches:
        of_pair = batch.batch[batch.edge_index[1]]
        for number in range(batch.num_graphs):
            atoms, pairs = batch.batch == number, of_pair == number
            first_atom, first_pair = int(atoms.int().argmax()), int(pairs.int().argmax())
            yield AtomsBatch(
                batch.numbers[atoms],
                batch.positions[atoms],
                torch.zeros_like(batch.batch[atoms]),
                1,
                batch.edge_index[:, pairs] - first_atom,
                batch.shift[pairs],
                batch.reverse[pairs] - first_pair,
            )
