import numpy as np
import pytest
import torch
from torch import Tensor

from merging.mergers.least_squares import NormalEquations, solve_ridge, with_ones
from models.errors import InvalidInputError

RIDGE = 1e-6


def rows(seed: int, count: int = 40, width: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def equations_of(z: Tensor, y: Tensor) -> NormalEquations:
    equations = NormalEquations.empty(z.shape[1], y.shape[1])
    for chunk in zip(z.split(7), y.split(7), strict=True):
        equations.add(*chunk)
    return equations


def test_one_teacher_with_a_bias_is_numpys_least_squares() -> None:
    z, y = with_ones(rows(0)), rows(1, width=3)
    expected = np.linalg.lstsq(z.double().numpy(), y.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(
        solve_ridge([equations_of(z, y)], torch.zeros(6, 3), 1e-12).numpy(), expected, atol=1e-9
    )


def test_teachers_count_alike_whatever_they_saw() -> None:
    """The mean over a teacher's rows and not their sum: rows seen twice change nothing."""
    first, second = (rows(0), rows(1, width=2)), (rows(2), rows(3, width=2))
    twice = tuple(torch.cat([table, table]) for table in second)
    once, doubled = (
        solve_ridge([equations_of(*first), equations_of(*other)], torch.zeros(5, 2), RIDGE)
        for other in (second, twice)
    )
    torch.testing.assert_close(doubled, once)


def test_copies_of_one_map_return_it_even_where_no_input_points() -> None:
    """Inputs of rank 1 leave four of five directions open: there the prior, the teachers' mean,
    speaks."""
    weight = rows(0, 5, 3)
    z = rows(1, 40, 1) @ rows(2, 1, 5)
    assert torch.linalg.matrix_rank(z) == 1
    torch.testing.assert_close(
        solve_ridge([equations_of(z, z @ weight)] * 3, weight, RIDGE).float(),
        weight,
        rtol=0,
        atol=1e-6,
    )


def test_the_solution_is_where_the_gradient_vanishes() -> None:
    pairs = [(rows(k), rows(k + 10, width=2)) for k in range(3)]
    prior = rows(20, 5, 2)
    weight = solve_ridge([equations_of(*pair) for pair in pairs], prior, 0.1).requires_grad_()
    loss = (
        sum((z.double() @ weight - y.double()).square().sum() / len(z) for z, y in pairs)
        + 0.1 * (weight - prior).square().sum()
    )
    torch.autograd.backward(loss)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), rtol=0, atol=1e-9)


def test_sums_are_in_float64() -> None:
    """In float32 the ones would be lost beside 1e8."""
    equations = NormalEquations.empty(1, 1)
    equations.add(torch.tensor([[1e4], [1.0]]), torch.tensor([[0.0], [1.0]]))
    assert equations.gram.item() == 1e8 + 1


def test_a_teacher_that_saw_nothing_counts_nothing() -> None:
    z, y = rows(0), rows(1, width=2)
    silent = NormalEquations.empty(5, 2)
    torch.testing.assert_close(
        solve_ridge([silent, equations_of(z, y)], torch.zeros(5, 2), RIDGE),
        solve_ridge([equations_of(z, y)], torch.zeros(5, 2), RIDGE),
    )
    with pytest.raises(InvalidInputError, match="no row of inputs"):
        solve_ridge([silent], torch.zeros(5, 2), RIDGE)


def test_what_does_not_fit_is_refused() -> None:
    equations = NormalEquations.empty(5, 2)
    with pytest.raises(
        InvalidInputError, match=r"\(40, 4\) and targets \(40, 2\), expected \(n, 5\) and \(n, 2\)"
    ):
        equations.add(rows(0, width=4), rows(1, width=2))
    with pytest.raises(InvalidInputError, match="ridge 0"):
        solve_ridge([equations, equations_of(rows(0), rows(1, width=2))], torch.zeros(5, 2), 0)
