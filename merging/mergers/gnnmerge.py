"""GNNMerge and GNNMerge++: fit every linear map of the merged model to the teachers' outputs on
the teachers' inputs.

Garg, Thakre and Ranu 2025, arXiv:2503.03384. Their objective is the distance of node embeddings
layer by layer; here it is written for every linear map, with its bias:

    min_W sum_k |Z_k W - Y_k|^2 / n_k + rho |W - W_0|^2

GNNMerge++ solves it, GNNMerge runs Adam on it. The released code of GNNMerge++ covers a GCN's
weights only, on inputs that are not aggregated, and leaves the merged bias as it was initialised;
here all linear maps of all layers (`merging.mergers.linear_maps`) are merged, and the other
parameters are averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers.base import Calibration, MergeInputs, MergeResult, MergerOptions, Network
from merging.mergers.least_squares import NormalEquations, averaged, solve_ridge
from merging.mergers.linear_maps import BatchEdges, LayerCall, LinearMap, layer_output, linear_maps
from merging.mergers.task_vector import State, is_merged
from models.experts.adapter import apply_norm, batch_statistics

Rows = list[tuple[Tensor, Tensor]]
"""One teacher's inputs (n, p) and residuals to the targets (n, q), float64, batch by batch."""
_Solver = Callable[[Sequence[Rows]], Tensor]
"""Takes the rows of every teacher, returns the change (p, q) of W from the prior."""


class GnnMergeOptions(MergerOptions):
    """Options of both GNNMerge and GNNMerge++.

    Attributes:
        prior: W_0, the `mean` of the teachers' weights (which W keeps in directions without inputs,
            so that copies of a model merge to it) or `zero`.
        attention: a GAT's attention vectors are averaged (`average`), or fitted to the scores
            before the leaky ReLU (`solve`).
    """

    prior: Literal["mean", "zero"] = "mean"
    attention: Literal["solve", "average"] = "solve"


class ClosedFormOptions(GnnMergeOptions):
    """Options of GNNMerge++.

    Attributes:
        inputs: the inputs Z_k of a layer: the `teacher`'s, as published, or those of the `merged`
            model, layer after layer.
        ridge: rho, on the scale of the mean of z^2.
    """

    inputs: Literal["teacher", "merged"] = "teacher"
    ridge: Annotated[float, Field(gt=0)] = 1e-6


class IterativeOptions(GnnMergeOptions):
    """Options of GNNMerge; the defaults are the paper's, except that it starts at `prior` and not
    at random weights.

    Attributes:
        epochs: steps of Adam, each on all rows.
        learning_rate: of Adam.
    """

    epochs: Annotated[int, Field(ge=1)] = 1000
    learning_rate: Annotated[float, Field(gt=0)] = 0.05


def gnnmerge_plus_plus(inputs: MergeInputs, options: ClosedFormOptions) -> MergeResult:
    """Merge by solving the objective for every linear map, in float64.

    W = W_0 + (sum_k Z_k^T Z_k / n_k + rho I)^-1 sum_k Z_k^T (Y_k - Z_k W_0) / n_k.
    """
    return _merge(
        inputs,
        options,
        lambda residuals: least_squares_change(residuals, options.ridge),
        merged_inputs=options.inputs == "merged",
    )


def gnnmerge(inputs: MergeInputs, options: IterativeOptions) -> MergeResult:
    """Merge by minimising the objective without the ridge with Adam.

    On teacher inputs the linear maps do not depend on each other, so minimising them one by one
    minimises the paper's one loss over all layers.
    """
    return _merge(
        inputs, options, lambda residuals: _adam_change(residuals, options), merged_inputs=False
    )


def least_squares_change(residuals: Sequence[Rows], ridge: float) -> Tensor:
    """Solve for the change (p, q) of W, float64, that minimises the squared residuals plus the
    ridge.

    With fewer rows than columns (bags of words of a few labelled nodes) it is computed in the dual
    form, Z^T (Z Z^T + rho I)^-1 R: for Citeseer a system of a hundred unknowns in place of 3704.

    Args:
        residuals: inputs and residuals of every teacher.
        ridge: rho, positive.
    """
    inputs, outputs = _shape(residuals)
    if _count(residuals) >= inputs:
        prior = torch.zeros(inputs, outputs, dtype=torch.float64)
        return solve_ridge(_equations(residuals), prior, ridge)
    z, r = _stacked(residuals)
    change: Tensor = z.T @ torch.linalg.solve(
        z @ z.T + ridge * torch.eye(len(z), dtype=z.dtype, device=z.device), r
    )
    return change


def _adam_change(residuals: Sequence[Rows], options: IterativeOptions) -> Tensor:
    # The variable is the change and not the weight: for copies of one model its gradient is exactly
    # 0 at the start, where a rounding error would already make Adam take full steps.
    gradient = _loss_gradient(residuals)
    inputs, outputs = _shape(residuals)
    change = torch.zeros(
        inputs, outputs, dtype=torch.float64, device=residuals[0][0][0].device, requires_grad=True
    )
    optimizer = torch.optim.Adam([change], lr=options.learning_rate)
    for _ in range(options.epochs):
        change.grad = gradient(change.detach())
        optimizer.step()
    return change.detach()


def _loss_gradient(residuals: Sequence[Rows]) -> Callable[[Tensor], Tensor]:
    """The gradient of sum_k mean (Z_k C - R_k)^2 with respect to the change C (p, q), from the
    normal equations, or from the rows where these are fewer."""
    inputs, outputs = _shape(residuals)
    if _count(residuals) < inputs:
        z, r = _stacked(residuals)
        return lambda change: 2 / outputs * z.T @ (z @ change - r)
    gram, moment = averaged(_equations(residuals))
    return lambda change: 2 / outputs * (gram @ change - moment)


def _shape(residuals: Sequence[Rows]) -> tuple[int, int]:
    z, r = residuals[0][0]
    return z.shape[1], r.shape[1]


def _count(residuals: Sequence[Rows]) -> int:
    return sum(len(z) for rows in residuals for z, _ in rows)


def _equations(residuals: Sequence[Rows]) -> list[NormalEquations]:
    """The normal equations of every teacher."""
    equations = [NormalEquations.empty(*_shape(residuals)) for _ in residuals]
    for teacher, rows in zip(equations, residuals, strict=True):
        for z, r in rows:
            teacher.add(z, r)
    return equations


def _stacked(residuals: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """All rows, (n, p) and (n, q), those of a teacher divided by sqrt(n_k)."""
    pairs = []
    for rows in residuals:
        scale = max(sum(len(z) for z, _ in rows), 1) ** -0.5
        pairs += [(scale * z, scale * r) for z, r in rows]
    return torch.cat([z for z, _ in pairs]), torch.cat([r for _, r in pairs])


@torch.no_grad()
def _merge(
    inputs: MergeInputs, options: GnnMergeOptions, solver: _Solver, merged_inputs: bool
) -> MergeResult:
    inputs.task_vectors()  # refuses backbones of other shapes
    student = inputs.network(_mean(inputs))
    state = student.state_dict()
    forwards = [
        _LayerwiseForward(
            inputs.network(inputs.finetuned[task]), student, inputs.calibration[task], merged_inputs
        )
        for task in sorted(inputs.finetuned)  # so that sums do not depend on the order of tasks
    ]
    maps = [
        linear
        for linear in linear_maps(inputs.config)
        if options.attention == "solve" or not linear.per_edge
    ]
    errors = {}
    for number in range(inputs.config.num_layers):
        for linear in maps:
            prefix = f"gnns.{number}."
            prior = linear.weight(state, prefix) * (options.prior == "mean")
            residuals = [forward.residuals(number, linear, prior) for forward in forwards]
            change = solver(residuals)
            linear.write(state, prefix, prior + change)
            errors[f"{prefix}{linear.name}"] = _relative_error(residuals, change)
        for forward in forwards if number + 1 < inputs.config.num_layers else ():
            forward.advance(number)
    merged = {
        key: state[key].clone() if is_merged(key, value) else value.clone()
        for key, value in inputs.pretrained.items()
    }
    return MergeResult(merged, record={**options.model_dump(), "left_missing": errors})


def _mean(inputs: MergeInputs) -> State:
    """The mean of the models, taken in float64, where the mean of copies is exactly the copy."""
    states = [inputs.finetuned[task] for task in sorted(inputs.finetuned)]
    return {
        key: (
            torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
            if is_merged(key, value)
            else states[0][key]
        )
        for key, value in inputs.pretrained.items()
    }


def _relative_error(residuals: Sequence[Rows], change: Tensor) -> float:
    """The remaining squared residual as a share of the prior's: 0 where all teachers are matched, 1
    where the change explains nothing."""
    pairs = [pair for rows in residuals for pair in rows]
    before = sum(float(r.square().sum()) for _, r in pairs)
    return sum(float((r - z @ change).square().sum()) for z, r in pairs) / before if before else 0.0


@dataclass
class _BatchState:
    """A batch between two layers: the next layer's inputs in the teacher and in the student."""

    edges: BatchEdges
    rows: Tensor
    teacher: Tensor
    student: Tensor


class _LayerwiseForward:
    """A task's batches, forwarded layer by layer through its teacher and, if `merged_inputs`,
    through the merged model."""

    def __init__(
        self, teacher: Network, student: Network, calibration: Calibration, merged_inputs: bool
    ) -> None:
        self._teacher, self._student, self._merged_inputs = teacher, student, merged_inputs
        self._states = [
            _BatchState(
                BatchEdges.of(batch),
                calibration.node_mask(number),
                teacher.embed(batch),
                student.embed(batch),
            )
            for number, batch in enumerate(calibration.batches)
        ]
        self._calls: list[tuple[LayerCall, LayerCall]] = []

    def residuals(self, number: int, linear: LinearMap, prior: Tensor) -> Rows:
        """Compute the inputs (n, p) of a linear map of layer `number`, and the residuals (n, q) of
        the prior to the targets Y = Z_k W_k, batch by batch."""
        self._calls = self._calls or list(self._layer_calls(number))
        weight = linear.weight(self._teacher.state_dict(), f"gnns.{number}.")
        found = []
        for state, (teacher, student) in zip(self._states, self._calls, strict=True):
            rows = state.rows[state.edges.looped.rows] if linear.per_edge else state.rows
            expected = linear.inputs(teacher)[rows].double()
            # W_k - W_0 first: where a teacher is the prior the residual is exactly 0.
            residual = expected @ (weight - prior)
            if self._merged_inputs:
                z = linear.inputs(student)[rows].double()
                found.append((z, residual + (expected - z) @ prior))
            else:
                found.append((expected, residual))
        return found

    def _layer_calls(self, number: int) -> Iterator[tuple[LayerCall, LayerCall]]:
        """The layer's call in the teacher and in the student, the latter with the teacher's
        attention weights, since the student's are not merged yet."""
        for state in self._states:
            teacher = LayerCall(self._teacher.gnns[number], state.teacher, state.edges)
            layer = self._student.gnns[number]
            yield teacher, LayerCall(layer, state.student, state.edges, teacher)

    def advance(self, number: int) -> None:
        """Replace every batch's inputs by the outputs of layer `number`."""
        teacher_calls, student_calls = zip(*self._calls, strict=True)
        teachers = self._layer_outputs(self._teacher, number, teacher_calls)
        students = teachers
        if self._merged_inputs:
            students = self._layer_outputs(self._student, number, student_calls)
        for state, teacher, student in zip(self._states, teachers, students, strict=True):
            state.teacher, state.student = teacher, student
        self._calls = []

    def _layer_outputs(
        self, network: Network, number: int, calls: Sequence[LayerCall]
    ) -> list[Tensor]:
        """After BatchNorm and activation.

        The running statistics stored with a merged model fit no task, so those of the task's nodes
        are used; then in its teacher too, so that the two differ by their weights alone.
        """
        outputs = [layer_output(call) for call in calls]
        if self._merged_inputs:
            statistics = batch_statistics(torch.cat(outputs))
            outputs = [apply_norm(network, number, output, *statistics) for output in outputs]
        elif len(network.batch_norms):
            outputs = [network.batch_norms[number](output) for output in outputs]
        return [network.activate(number, output) for output in outputs]
