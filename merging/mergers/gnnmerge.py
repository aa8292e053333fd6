"""GNNMerge and GNNMerge++: every linear part of every layer is to give what each teacher's own
gives, on the teacher's own inputs.

Garg, Thakre and Ranu 2025, arXiv:2503.03384. Their objective, the distance of node embeddings layer
by layer, for each linear part and with its bias:

    min_W sum_k |Z_k W - Y_k|^2 / n_k + rho |W - W_0|^2

GNNMerge++ solves it, GNNMerge runs Adam on it. The released code of GNNMerge++ covers a GCN's
weights only, on inputs that are not aggregated, and leaves the merged bias as it was initialised;
here all parts of all layers (`merging.mergers.linear_parts`) are merged, and the rest is averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from merging.mergers.base import Calibration, MergeInputs, MergeResult, MergerOptions, Network
from merging.mergers.least_squares import NormalEquations, solve
from merging.mergers.linear_parts import Part, State, View, Wiring, convolved, linear_parts
from merging.mergers.task_vector import is_merged
from models.experts.adapter import apply_norm, batch_statistics

Rows = list[tuple[Tensor, Tensor]]
"""Inputs (n, p) and what is missing to the targets there (n, q), float64, batch by batch: of one
teacher."""
Solver = Callable[[Sequence[Rows]], Tensor]
"""From what each teacher misses to the change (p, q) of W."""


class GnnMergeOptions(MergerOptions):
    """Options of both.

    Attributes:
        prior: W_0, the `mean` of the teachers' weights (which W keeps where the inputs say nothing,
            so that copies of a model merge to it) or `zero`.
        attention: of GATs: the vectors are averaged (`average`), or solved for the scores before
            the leaky relu (`solve`).
    """

    prior: Literal["mean", "zero"] = "mean"
    attention: Literal["solve", "average"] = "solve"


class ClosedFormOptions(GnnMergeOptions):
    """Options of GNNMerge++.

    Attributes:
        inputs: `teacher`: each teacher's own, as published; `merged`: what the merged model itself
            has there, layer after layer.
        ridge: rho, on the scale of the mean of z^2.
    """

    inputs: Literal["teacher", "merged"] = "teacher"
    ridge: Annotated[float, Field(gt=0)] = 1e-6


class IterativeOptions(GnnMergeOptions):
    """Options of GNNMerge; the defaults are the paper's, but that it starts at `prior` and not at
    random weights.

    Attributes:
        epochs: steps of Adam, each on all rows.
        learning_rate: of Adam.
    """

    epochs: Annotated[int, Field(ge=1)] = 1000
    learning_rate: Annotated[float, Field(gt=0)] = 0.05


def gnnmerge_plus_plus(inputs: MergeInputs, options: ClosedFormOptions) -> MergeResult:
    """W = W_0 + (sum_k Z_k^T Z_k / n_k + rho I)^-1 sum_k Z_k^T (Y_k - Z_k W_0) / n_k, part by part,
    in float64."""
    return _merge(
        inputs,
        options,
        lambda missing: least_squares_change(missing, options.ridge),
        options.inputs == "merged",
    )


def gnnmerge(inputs: MergeInputs, options: IterativeOptions) -> MergeResult:
    """The same without the ridge, by Adam: the parts do not depend on each other, so each by itself
    is the paper's one loss over all layers."""
    return _merge(
        inputs, options, lambda missing: _descended_change(missing, options), own_inputs=False
    )


def least_squares_change(missing: Sequence[Rows], ridge: float) -> Tensor:
    """The change (p, q) of W that leaves the least missing: float64.

    Where there are fewer rows than columns (bags of words of a few labelled nodes) the same change
    is found from the rows' products with each other, Z^T (Z Z^T + rho I)^-1 R: for Citeseer a
    system of a hundred unknowns, and not of 3704.
    """
    inputs, outputs = _shape(missing)
    if _count(missing) >= inputs:
        return solve(_equations(missing), torch.zeros(inputs, outputs, dtype=torch.float64), ridge)
    z, r = _stacked(missing)
    change: Tensor = z.T @ torch.linalg.solve(
        z @ z.T + ridge * torch.eye(len(z), dtype=z.dtype, device=z.device), r
    )
    return change


def _descended_change(missing: Sequence[Rows], options: IterativeOptions) -> Tensor:
    # The change from the start, not the weights: for copies of one model the gradient at the start
    # is exactly 0, and Adam, whose steps do not know how small a gradient is, stays there.
    gradient = _loss_gradient(missing)
    inputs, outputs = _shape(missing)
    change = torch.zeros(
        inputs, outputs, dtype=torch.float64, device=missing[0][0][0].device, requires_grad=True
    )
    optimizer = torch.optim.Adam([change], lr=options.learning_rate)
    for _ in range(options.epochs):
        change.grad = gradient(change.detach())
        optimizer.step()
    return change.detach()


def _loss_gradient(missing: Sequence[Rows]) -> Callable[[Tensor], Tensor]:
    """Of sum_k mean (Z_k C - R_k)^2 by the change C (p, q): from the normal equations, or from the
    rows where these are fewer."""
    inputs, outputs = _shape(missing)
    if _count(missing) < inputs:
        z, r = _stacked(missing)
        return lambda change: 2 / outputs * z.T @ (z @ change - r)
    seen = [each for each in _equations(missing) if each.count]
    gram = torch.stack([each.gram / each.count for each in seen]).sum(0)
    moment = torch.stack([each.moment / each.count for each in seen]).sum(0)
    return lambda change: 2 / outputs * (gram @ change - moment)


def _shape(missing: Sequence[Rows]) -> tuple[int, int]:
    z, r = missing[0][0]
    return z.shape[1], r.shape[1]


def _count(missing: Sequence[Rows]) -> int:
    return sum(len(z) for rows in missing for z, _ in rows)


def _equations(missing: Sequence[Rows]) -> list[NormalEquations]:
    """Of each teacher."""
    equations = [NormalEquations.empty(*_shape(missing)) for _ in missing]
    for each, rows in zip(equations, missing, strict=True):
        for pair in rows:
            each.add(*pair)
    return equations


def _stacked(missing: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """All rows, (n, p) and (n, q), those of a teacher divided by sqrt(n_k)."""
    scales = [max(sum(len(z) for z, _ in rows), 1) ** -0.5 for rows in missing]
    pairs = [
        (scale * z, scale * r) for rows, scale in zip(missing, scales, strict=True) for z, r in rows
    ]
    return torch.cat([z for z, _ in pairs]), torch.cat([r for _, r in pairs])


@torch.no_grad()
def _merge(
    inputs: MergeInputs, options: GnnMergeOptions, solver: Solver, own_inputs: bool
) -> MergeResult:
    inputs.vectors()  # refuses backbones of other shapes
    student = inputs.network(_mean(inputs))
    state = student.state_dict()
    tasks = sorted(inputs.finetuned)  # by name, so that sums do not depend on the order of tasks
    walks = [
        _Walk(inputs.network(inputs.finetuned[task]), student, inputs.calibration[task], own_inputs)
        for task in tasks
    ]
    parts = [
        part
        for part in linear_parts(inputs.config)
        if options.attention == "solve" or not part.per_edge
    ]
    errors = {}
    for number in range(inputs.config.num_layers):
        for part in parts:
            prefix = f"gnns.{number}."
            prior = part.weight(state, prefix) * (options.prior == "mean")
            missing = [walk.missing(number, part, prior) for walk in walks]
            change = solver(missing)
            part.write(state, prefix, prior + change)
            errors[f"{prefix}{part.name}"] = _relative_error(missing, change)
        for walk in walks if number + 1 < inputs.config.num_layers else ():
            walk.advance(number)
    merged = {
        key: state[key].clone() if is_merged(key, value) else value.clone()
        for key, value in inputs.pretrained.items()
    }
    return MergeResult(merged, record={**options.model_dump(), "left_missing": errors})


def _mean(inputs: MergeInputs) -> State:
    """The mean of the models; in float64, in which that of copies is the copy itself."""
    states = [inputs.finetuned[task] for task in sorted(inputs.finetuned)]
    return {
        key: (
            torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
            if is_merged(key, value)
            else states[0][key]
        )
        for key, value in inputs.pretrained.items()
    }


def _relative_error(missing: Sequence[Rows], change: Tensor) -> float:
    """What is still missing, as a share of what the prior misses (mean squares): 0 where all
    teachers are met, 1 where nothing could be done."""
    pairs = [pair for rows in missing for pair in rows]
    before = sum(float(r.square().sum()) for _, r in pairs)
    return sum(float((r - z @ change).square().sum()) for z, r in pairs) / before if before else 0.0


@dataclass
class _Stage:
    """A batch between two layers: what enters the next one in the teacher, and in the student."""

    wiring: Wiring
    rows: Tensor
    teacher: Tensor
    student: Tensor


class _Walk:
    """A task's batches on their way through its teacher and, where it is asked for, through the
    merged model as far as it is merged."""

    def __init__(
        self, teacher: Network, student: Network, calibration: Calibration, own_inputs: bool
    ) -> None:
        self._teacher, self._student, self._own_inputs = teacher, student, own_inputs
        self._stages = []
        for number, batch in enumerate(calibration.batches):
            self._stages.append(
                _Stage(
                    Wiring.of(batch),
                    calibration.chosen(number),
                    teacher.embed(batch),
                    student.embed(batch),
                )
            )
        self._views: list[tuple[View, View]] = []

    def missing(self, number: int, part: Part, prior: Tensor) -> Rows:
        """Inputs and what the prior misses of the targets Y = Z_k W_k: (n, p) and (n, q), batch by
        batch."""
        self._views = self._views or list(self._seen(number))
        own = part.weight(self._teacher.state_dict(), f"gnns.{number}.")
        found = []
        for stage, (theirs, ours) in zip(self._stages, self._views, strict=True):
            rows = stage.rows[stage.wiring.looped.rows] if part.per_edge else stage.rows
            expected = part.inputs(theirs)[rows].double()
            z = part.inputs(ours)[rows].double() if self._own_inputs else expected
            # W_k - W_0 first: where a teacher is the prior nothing is missing, exactly.
            found.append(
                (
                    z,
                    (
                        expected @ (own - prior) + (expected - z) @ prior
                        if self._own_inputs
                        else expected @ (own - prior)
                    ),
                )
            )
        return found

    def _seen(self, number: int) -> Iterator[tuple[View, View]]:
        """The layer in the teacher; and in the student, along edges that the teacher's attention
        weighs, as the student's own is not known yet."""
        for stage in self._stages:
            theirs = View(self._teacher.gnns[number], stage.teacher, stage.wiring)
            yield theirs, View(self._student.gnns[number], stage.student, stage.wiring, theirs)

    def advance(self, number: int) -> None:
        """Go through a layer."""
        outputs = [
            tuple(convolved(view) for view in pair[: 1 + self._own_inputs]) for pair in self._views
        ]
        theirs = self._activated(self._teacher, number, [each[0] for each in outputs])
        ours = (
            self._activated(self._student, number, [each[1] for each in outputs])
            if self._own_inputs
            else theirs
        )
        for stage, teacher, student in zip(self._stages, theirs, ours, strict=True):
            stage.teacher, stage.student = teacher, student
        self._views = []

    def _activated(self, network: Network, number: int, outputs: list[Tensor]) -> list[Tensor]:
        """After BatchNorm and activation.

        A merged model's stored statistics are nobody's: those of the task's own nodes take their
        place, and then in its teacher too, so that the two differ by their weights alone.
        """
        if self._own_inputs:
            statistics = batch_statistics(torch.cat(outputs))
            outputs = [apply_norm(network, number, each, *statistics) for each in outputs]
        elif len(network.batch_norms):
            outputs = [network.batch_norms[number](each) for each in outputs]
        return [network.activate(number, each) for each in outputs]
