"""GFFMerge: force fields merged in closed form, every Linear solved on what the teachers' own
Linears give (Verma et al. 2026, arXiv:2606.03232).

Shared afterwards: the interaction blocks. Of each task: its atom embeddings, its head, its scale
and its energies of elements.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.least_squares import NormalEquations, solve_ridge, with_ones
from models.data.atoms import AtomsBatch, composition, energies_of_elements
from models.networks.schnet import ForceField, ForceFieldExpert, MergedForceField, potential
from models.state_dict import load_tensors

Heads = Literal["merged", "own"]
Inputs = Literal["teacher", "merged"]
_LINEARS = ("conv.nn.0", "conv.nn.2", "conv.lin1", "conv.lin2", "lin")
_HEAD = ("lin1", "lin2")


@dataclass(frozen=True)
class Teacher:
    """One task's trained force field and what a merger may see besides its weights; never a label.

    Attributes:
        batches: training structures, with the neighbours within the network's cutoff.
    """

    network: ForceField
    expert: ForceFieldExpert
    batches: tuple[AtomsBatch, ...]

    def energies(self) -> Tensor:
        """What it says of its structures, (G,) float64 in eV."""
        return energies(self.network, self.expert, self.batches)


Teachers = Mapping[str, Teacher]
Model = tuple[ForceField, ForceFieldExpert]


class GffMergeOptions(MergerOptions):
    """Options of GFFMerge.

    Attributes:
        ridge: rho of the normal equations.
        inputs: what a Linear is solved on: its inputs in the `teacher` (as published), or in the
            `merged` model, whose earlier Linears are solved by then.
        slopes: in Angstrom, see `closed_form`; 0 is as published.
    """

    ridge: Annotated[float, Field(gt=0)] = 1e-6
    inputs: Inputs = "teacher"
    slopes: Annotated[float, Field(ge=0)] = 0.0


def gffmerge(inputs: MergeInputs, options: GffMergeOptions) -> MergeResult:
    """`closed_form` of the interaction blocks; each task's head is solved too, from its rows."""
    shape, teachers = inputs.config, {}
    for task, state in inputs.finetuned.items():
        network, expert, calibration = (
            ForceField(shape),
            ForceFieldExpert(shape),
            inputs.calibration[task],
        )
        load_tensors(network, state, f"network of {task}")
        load_tensors(expert, calibration.head, f"head of {task}")
        teachers[task] = Teacher(network, expert, calibration.batches)
    merged = closed_form(teachers, options.ridge, options.inputs, "own", options.slopes)
    heads = {task: merged.expert(task).state_dict() for task in teachers}
    return MergeResult(merged.network.state_dict(), heads=heads, record=options.model_dump())


def closed_form(
    teachers: Teachers,
    ridge: float,
    inputs: Inputs = "teacher",
    heads: Heads = "merged",
    slopes: float = 0.0,
) -> MergedForceField:
    """W = (sum_k Z_k^T Z_k / n_k + rho I)^-1 (sum_k Z_k^T Y_k / n_k + rho W_mean) for every Linear
    (GFFMerge, Verma et al. 2026, arXiv:2606.03232).

    Y_k is what the teacher's Linear gives for the task's structures; rows are atoms, or edges in
    the filter networks; a column of ones in Z_k stands for the bias.

    Args:
        teachers: by task.
        ridge: rho; it pulls to the mean of the teachers' weights, so that copies of one model give
            that model.
        inputs: Z_k as the Linear gets it in the `teacher` (as published), or in the `merged` model,
            whose earlier Linears are solved.
        heads: `merged` into one, or each task's `own`, solved in the same way from that task's rows
            alone.
        slopes: above 0, rows for the derivatives are added: with all atoms displaced at random by
            so many Angstrom (standard deviation), the first order change of Z_k, which has no 1 for
            the bias, is to give that of Y_k. Then not only the energy is matched but also its
            slopes, the forces. Ours; 0 is as published.
    """
    merged = _mean(teachers, heads)
    students = {task: (merged.network, merged.expert(task)) for task in merged.tasks}
    names = list(linears(*students[merged.tasks[0]]))
    for group in [names] if inputs == "teacher" else [[name] for name in names]:
        given = (
            students
            if inputs == "merged"
            else {task: (teacher.network, teacher.expert) for task, teacher in teachers.items()}
        )
        found = {
            task: _equations(teacher, given[task], group, slopes)
            for task, teacher in teachers.items()
        }
        for name in group:
            alone = name in _HEAD and heads == "own"
            for tasks in [[task] for task in teachers] if alone else [list(teachers)]:
                _solve(
                    [linears(*students[task])[name] for task in tasks],
                    [found[task][name] for task in tasks],
                    ridge,
                )
    return match_mean_energies(merged, teachers)


def linears(network: ForceField, expert: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear by name, in the order in which they run."""
    names = [
        f"interactions.{block}.{linear}"
        for block in range(len(network.interactions))
        for linear in _LINEARS
    ]
    modules = {name: network.get_submodule(name) for name in names} | {
        name: expert.get_submodule(name) for name in _HEAD
    }
    return {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}


def shared_weights(
    network: ForceField, expert: ForceFieldExpert, heads: Heads
) -> dict[str, Tensor]:
    """What is merged, by name: parameters of the network and, where heads are merged, of the head;
    never a buffer."""
    named = dict(network.named_parameters())
    if heads == "merged":
        named |= {
            name: parameter
            for name, parameter in expert.named_parameters()
            if name.split(".")[0] in _HEAD
        }
    return {name: parameter.detach() for name, parameter in named.items()}


@torch.no_grad()
def energies(
    network: ForceField, expert: ForceFieldExpert, batches: Sequence[AtomsBatch]
) -> Tensor:
    """Energies of all structures, (G,) float64 in eV."""
    return torch.cat([potential(network, expert, batch, batch.positions) for batch in batches])


def _mean(teachers: Teachers, heads: Heads) -> MergedForceField:
    states = stack_states(
        shared_weights(teacher.network, teacher.expert, heads) for teacher in teachers.values()
    )
    return _with_weights(teachers, {name: values.mean(0) for name, values in states.items()})


def _with_weights(teachers: Teachers, weights: dict[str, Tensor]) -> MergedForceField:
    """The teachers' experts around one network, with `weights` in place of their own."""
    network = deepcopy(next(iter(teachers.values())).network)
    experts = {task: deepcopy(teacher.expert) for task, teacher in teachers.items()}
    for module in (network, *experts.values()):
        own = module.state_dict()
        module.load_state_dict(
            own | {name: value for name, value in weights.items() if name in own}
        )
    return MergedForceField(network, experts)


def match_mean_energies(merged: MergedForceField, teachers: Teachers) -> MergedForceField:
    """Energies of elements shifted so that each task's mean energy over its structures is its
    teacher's. Forces stay as they are."""
    for task, teacher in teachers.items():
        expert = merged.expert(task)
        error = teacher.energies() - energies(merged.network, expert, teacher.batches)
        expert.atom_energies += energies_of_elements(
            torch.cat([composition(batch) for batch in teacher.batches]), error
        )
    return merged


def _equations(
    teacher: Teacher, given: Model, names: Sequence[str], slopes: float
) -> dict[str, NormalEquations]:
    """For each Linear: its inputs as they are in the model `given`, and its outputs as they are in
    the teacher."""
    modules = linears(teacher.network, teacher.expert)
    found = {
        name: NormalEquations.empty(
            modules[name].in_features + (modules[name].bias is not None), modules[name].out_features
        )
        for name in names
    }
    for number, batch in enumerate(teacher.batches):
        directions = (
            slopes
            * torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(number))
            if slopes
            else None
        )
        taught = linear_activations(teacher.network, teacher.expert, batch, names, directions)
        entered = (
            taught
            if given[0] is teacher.network
            else linear_activations(*given, batch, names, directions)
        )
        for name in names:
            (z, dz), (y, dy) = entered[name][0], taught[name][1]
            found[name].add(z if modules[name].bias is None else with_ones(z), y)
            if dz is not None and dy is not None:
                found[name].add(dz if modules[name].bias is None else F.pad(dz, (0, 1)), dy)
    return found


class _Reached(Exception):  # noqa: N818 - not an error
    """All that was wanted has been seen: the rest of the pass is not needed."""


ValueAndSlope = tuple[Tensor, Tensor | None]


@torch.no_grad()
def linear_activations(
    network: ForceField,
    expert: ForceFieldExpert,
    batch: AtomsBatch,
    names: Sequence[str],
    directions: Tensor | None = None,
) -> dict[str, tuple[ValueAndSlope, ValueAndSlope]]:
    """Inputs (n, p) and outputs (n, q) of the Linears `names` in one pass.

    With `directions` (N, 3), in Angstrom, each comes with its derivative along them; None where it
    does not depend on the places of atoms.
    """
    found: dict[str, tuple[ValueAndSlope, ValueAndSlope]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            found[name] = forward_ad.unpack_dual(inputs[0]), forward_ad.unpack_dual(output)
            if len(found) == len(names):
                raise _Reached

        return keep

    modules = linears(network, expert)
    handles = [modules[name].register_forward_hook(watch(name)) for name in names]
    try:
        with suppress(_Reached), forward_ad.dual_level():
            potential(
                network,
                expert,
                batch,
                (
                    batch.positions
                    if directions is None
                    else forward_ad.make_dual(batch.positions, directions)
                ),
            )
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def _solve(copies: Sequence[nn.Linear], equations: Sequence[NormalEquations], ridge: float) -> None:
    """Write the solution into one Linear or into several that hold the same weights; those are what
    the ridge pulls to."""
    first = copies[0]
    prior = first.weight.T if first.bias is None else torch.cat([first.weight.T, first.bias[None]])
    solution = solve_ridge(equations, prior, ridge)
    for linear in copies:
        linear.weight.copy_(solution[: linear.in_features].T)
        if linear.bias is not None:
            linear.bias.copy_(solution[-1])
