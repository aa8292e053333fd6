"""GFFMerge: force fields merged in closed form, every Linear solved for the outputs that the
teachers' Linears give (Verma et al. 2026, arXiv:2606.03232).

The interaction blocks are merged. Every task keeps its atom embeddings, head, energy scale and
element energies.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.least_squares import NormalEquations, solve_ridge, with_ones
from models.data.atoms import AtomsBatch, composition, energies_of_elements
from models.networks.chgnet import GatheredLinear, joined
from models.networks.force_field import AtomNetwork, ForceFieldExpert, MergedForceField, potential
from models.state_dict import load_tensors

Heads = Literal["merged", "own"]
Inputs = Literal["teacher", "merged"]
Pull = Literal["mean", "zero"]


@dataclass(frozen=True)
class Teacher:
    """A task's trained force field, with the structures that a merger may use; never a label.

    Attributes:
        network: the interaction blocks.
        expert: embedding, head and energies of elements.
        batches: training structures, with the neighbours within the network's cutoff.
    """

    network: AtomNetwork
    expert: ForceFieldExpert
    batches: tuple[AtomsBatch, ...]

    def energies(self) -> Tensor:
        """Compute the energies of the structures: (G,) float64, in eV."""
        return energies(self.network, self.expert, self.batches)


Teachers = Mapping[str, Teacher]
Model = tuple[AtomNetwork, ForceFieldExpert]
Equations = Mapping[str, Mapping[str, NormalEquations]]
"""Normal equations by task and name of the Linear."""


class GffMergeOptions(MergerOptions):
    """Options of GFFMerge.

    Attributes:
        ridge: rho of the normal equations.
        inputs: where the inputs of a Linear are taken from: the `teacher` (as published), or the
            `merged` model, whose earlier Linears are solved by then.
        slopes: in Angstrom, see `closed_form`; 0 as published.
        pull: where the ridge pulls to, see `closed_form`; `zero` in the authors' code.
    """

    ridge: Annotated[float, Field(gt=0)] = 1e-6
    inputs: Inputs = "teacher"
    slopes: Annotated[float, Field(ge=0)] = 0.0
    pull: Pull = "mean"


def gffmerge(inputs: MergeInputs, options: GffMergeOptions) -> MergeResult:
    """Merge force fields by `closed_form`; every task's head is solved from the task's own rows."""
    shape, teachers = inputs.config, {}
    for task, state in inputs.finetuned.items():
        network, expert = inputs.network(state), ForceFieldExpert(shape)
        calibration = inputs.calibration[task]
        load_tensors(expert, calibration.head, f"head of {task}")
        teachers[task] = Teacher(network, expert, calibration.batches)
    merged = closed_form(
        teachers, options.ridge, options.inputs, "own", options.slopes, options.pull
    )
    heads = {task: merged.expert(task).state_dict() for task in teachers}
    return MergeResult(merged.network.state_dict(), heads=heads, record=options.model_dump())


def closed_form(
    teachers: Teachers,
    ridge: float,
    inputs: Inputs = "teacher",
    heads: Heads = "merged",
    slopes: float = 0.0,
    pull: Pull = "mean",
    known: Equations | None = None,
) -> MergedForceField:
    """Solve W = (sum_k Z_k^T Z_k / n_k + rho I)^-1 (sum_k Z_k^T Y_k / n_k + rho W_mean) for every
    Linear (GFFMerge, Verma et al. 2026, arXiv:2606.03232).

    Y_k are the outputs of the teacher's Linear on the task's structures. Rows are atoms, or edges
    in the filter networks; a column of ones in Z_k stands for the bias.

    Args:
        teachers: by task.
        ridge: rho, the pull to the mean of the teachers' weights; copies of one model merge to that
            model.
        inputs: Z_k are the Linear's inputs in the `teacher` (as published), or in the `merged`
            model, whose earlier Linears are solved.
        heads: `merged` into one, or one per task (`own`), solved from that task's rows alone.
        slopes: if above 0, directional derivatives are added as rows: all atoms are displaced at
            random, with this standard deviation in Angstrom, and the first-order change of Z_k,
            with 0 for the bias, is to give that of Y_k. This matches forces as well as energies.
            Ours; 0 as published.
        pull: where the ridge pulls to, the `mean` of the teachers' weights as above, or `zero` as
            in the authors' code: W = (sum_k Z_k^T Z_k + rho I)^-1 sum_k Z_k^T Y_k, in which a
            teacher counts by its number of rows.
        known: the teachers' own equations (`teacher_equations`), where several merges share them;
            for inputs of the `teacher` without slopes.
    """
    merged = _average(teachers, heads)
    students = {task: (merged.network, merged.expert(task)) for task in merged.tasks}
    originals = {task: (teacher.network, teacher.expert) for task, teacher in teachers.items()}
    models = students if inputs == "merged" else originals
    groups = linear_groups(*students[merged.tasks[0]])
    for group in [sum(groups, ())] if inputs == "teacher" else groups:
        equations = known or {
            task: normal_equations(teacher, models[task], group, slopes)
            for task, teacher in teachers.items()
        }
        for name in group:
            per_task = heads == "own" and name in merged.expert(merged.tasks[0]).head_linears
            for tasks in [[task] for task in teachers] if per_task else [list(teachers)]:
                copies = [linears(*students[task])[name] for task in tasks]
                _solve(copies, [equations[task][name] for task in tasks], ridge, pull)
    return match_mean_energies(merged, teachers)


def teacher_equations(teachers: Teachers) -> Equations:
    """Return by task the normal equations of all Linears, with inputs and outputs of the teacher's
    own."""
    return {
        task: normal_equations(
            teacher,
            (teacher.network, teacher.expert),
            list(linears(teacher.network, teacher.expert)),
            0.0,
        )
        for task, teacher in teachers.items()
    }


def linear_groups(network: AtomNetwork, expert: ForceFieldExpert) -> list[tuple[str, ...]]:
    """Return the names of all Linears in the order of the forward pass, those of the head last; no
    Linear of a group depends on another of the same group."""
    return [*network.linear_groups(), *((name,) for name in expert.head_linears)]


def linears(network: AtomNetwork, expert: ForceFieldExpert) -> dict[str, nn.Linear]:
    """Return every Linear by name, in the order of the forward pass."""
    names = [name for group in network.linear_groups() for name in group]
    modules = {name: network.get_submodule(name) for name in names}
    modules |= {name: expert.get_submodule(name) for name in expert.head_linears}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}


def merged_parameters(
    network: AtomNetwork, expert: ForceFieldExpert, heads: Heads
) -> dict[str, Tensor]:
    """Return the parameters that are merged, by name: those of the network and, if heads are
    merged, of the head; never a buffer."""
    parameters = dict(network.named_parameters())
    if heads == "merged":
        parameters |= {
            name: parameter
            for name, parameter in expert.named_parameters()
            if name.split(".")[0] in expert.head_linears
        }
    return {name: parameter.detach() for name, parameter in parameters.items()}


@torch.no_grad()
def energies(
    network: AtomNetwork, expert: ForceFieldExpert, batches: Sequence[AtomsBatch]
) -> Tensor:
    """Compute the energies of all structures: (G,) float64, in eV."""
    return torch.cat([potential(network, expert, batch, batch.positions) for batch in batches])


def _average(teachers: Teachers, heads: Heads) -> MergedForceField:
    states = stack_states(
        merged_parameters(teacher.network, teacher.expert, heads) for teacher in teachers.values()
    )
    return assembled(teachers, {name: values.mean(0) for name, values in states.items()})


def assembled(teachers: Teachers, weights: Mapping[str, Tensor]) -> MergedForceField:
    """Return the teachers' experts around one network, with the given weights in the network and,
    where they are named, in all heads (`merged_parameters`)."""
    network = deepcopy(next(iter(teachers.values())).network)
    experts = {task: deepcopy(teacher.expert) for task, teacher in teachers.items()}
    for module in (network, *experts.values()):
        state = module.state_dict()
        module.load_state_dict(state | {key: weights[key] for key in weights.keys() & state.keys()})
    return MergedForceField(network, experts)


def match_mean_energies(merged: MergedForceField, teachers: Teachers) -> MergedForceField:
    """Shift the element energies of every task, in place, so that the mean energy over its
    structures is its teacher's. Forces do not change."""
    for task, teacher in teachers.items():
        expert = merged.expert(task)
        error = teacher.energies() - energies(merged.network, expert, teacher.batches)
        expert.atom_energies += energies_of_elements(
            torch.cat([composition(batch) for batch in teacher.batches]), error
        )
    return merged


def normal_equations(
    teacher: Teacher, model: Model, names: Sequence[str], slopes: float
) -> dict[str, NormalEquations]:
    """Return the normal equations of Linears: inputs from `model`, outputs from the teacher; with
    `slopes` as in `closed_form`."""
    modules = linears(teacher.network, teacher.expert)
    biased = {name: modules[name].bias is not None for name in names}
    equations = {
        name: NormalEquations.empty(
            modules[name].in_features + biased[name], modules[name].out_features
        )
        for name in names
    }
    for number, batch in enumerate(teacher.batches):
        directions = None
        if slopes:
            generator = torch.Generator().manual_seed(number)
            directions = slopes * torch.randn(batch.positions.shape, generator=generator)
        taught = linear_activations(teacher.network, teacher.expert, batch, names, directions)
        same = model[0] is teacher.network
        entered = taught if same else linear_activations(*model, batch, names, directions)
        for name in names:
            (z, dz), (y, dy) = entered[name][0], taught[name][1]
            equations[name].add(with_ones(z) if biased[name] else z, y)
            if dz is not None and dy is not None:
                equations[name].add(F.pad(dz, (0, 1)) if biased[name] else dz, dy)
    return equations


class _Reached(Exception):  # noqa: N818 - not an error
    """Raised to end a forward pass once all activations are recorded."""


ValueAndSlope = tuple[Tensor, Tensor | None]


@torch.no_grad()
def linear_activations(
    network: AtomNetwork,
    expert: ForceFieldExpert,
    batch: AtomsBatch,
    names: Sequence[str],
    directions: Tensor | None = None,
) -> dict[str, tuple[ValueAndSlope, ValueAndSlope]]:
    """Record the inputs (n, p) and outputs (n, q) of the named Linears in one forward pass.

    With `directions` (N, 3), in Angstrom, each tensor comes with its derivative along them; None if
    it does not depend on positions.
    """
    recorded: dict[str, tuple[ValueAndSlope, ValueAndSlope]] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            z = joined(*inputs) if isinstance(module, GatheredLinear) else inputs[0]
            recorded[name] = forward_ad.unpack_dual(z), forward_ad.unpack_dual(output)
            if len(recorded) == len(names):
                raise _Reached

        return record

    modules = linears(network, expert)
    handles = [modules[name].register_forward_hook(recorder(name)) for name in names]
    try:
        with suppress(_Reached), forward_ad.dual_level():
            positions = batch.positions
            if directions is not None:
                positions = forward_ad.make_dual(positions, directions)
            potential(network, expert, batch, positions)
    finally:
        for handle in handles:
            handle.remove()
    return recorded


@torch.no_grad()
def _solve(
    copies: Sequence[nn.Linear], equations: Sequence[NormalEquations], ridge: float, pull: Pull
) -> None:
    """Solve for one Linear, or for several that share their weights, in place."""
    first = copies[0]
    prior = first.weight.T if first.bias is None else torch.cat([first.weight.T, first.bias[None]])
    if pull == "zero":  # sums over all rows, and no prior
        equations = [replace(teacher, count=1) for teacher in equations if teacher.count]
        prior = torch.zeros_like(prior)
    solution = solve_ridge(equations, prior, ridge)
    for linear in copies:
        linear.weight.copy_(solution[: linear.in_features].T)
        if linear.bias is not None:
            linear.bias.copy_(solution[-1])
