import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.ops.segment import (
    segment_count,
    segment_logsumexp,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
)

SIZE = 4
INDEX = torch.tensor([2, 0, 2, 3, 0, 2])  # unsorted, and nothing in segment 1
SHAPES = [(), (3,), (2, 3)]


def rows(*trailing: int, seed: int = 0) -> Tensor:
    return torch.randn(
        len(INDEX), *trailing, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def by_loop(values: Tensor, reduce: str, empty: float) -> Tensor:
    out = torch.full((SIZE, *values.shape[1:]), empty, dtype=values.dtype)
    for segment in set(INDEX.tolist()):
        members = values[segment == INDEX]
        out[segment] = {
            "sum": members.sum(0),
            "mean": members.mean(0),
            "max": members.amax(0),
            "lse": members.exp().sum(0).log(),
        }[reduce]
    return out


@pytest.mark.parametrize("trailing", SHAPES)
@pytest.mark.parametrize(
    ("function", "reduce", "empty"),
    [
        (segment_sum, "sum", 0.0),
        (segment_mean, "mean", 0.0),
        (segment_max, "max", -math.inf),
        (segment_logsumexp, "lse", -math.inf),
    ],
)
def test_reductions_equal_a_loop(
    function: Callable[..., Tensor], reduce: str, empty: float, trailing: tuple[int, ...]
) -> None:
    values = rows(*trailing)
    before = values.clone()
    torch.testing.assert_close(
        function(values, INDEX, SIZE), by_loop(values, reduce, empty), rtol=1e-14, atol=1e-14
    )
    assert torch.equal(values, before)


def test_count() -> None:
    assert segment_count(INDEX, SIZE).tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("trailing", SHAPES)
def test_softmax_sums_to_one_and_keeps_ratios(trailing: tuple[int, ...]) -> None:
    values = rows(*trailing)
    weights = segment_softmax(values, INDEX, SIZE)
    torch.testing.assert_close(
        segment_sum(weights, INDEX, SIZE)[[0, 2, 3]], torch.ones(3, *trailing, dtype=torch.float64)
    )
    torch.testing.assert_close((weights[0] / weights[2]).log(), values[0] - values[2])


def test_logsumexp_neither_overflows_nor_underflows() -> None:
    for shift in (1e4, -1e4):
        values = rows(2).float()
        moved = segment_logsumexp(values + shift, INDEX, SIZE) - shift
        torch.testing.assert_close(moved, segment_logsumexp(values, INDEX, SIZE), rtol=0, atol=2e-3)


def test_logsumexp_of_infinite_values() -> None:
    values = torch.tensor([-math.inf, 1.0, -math.inf, math.inf, -math.inf, -math.inf])
    assert segment_logsumexp(values, INDEX, SIZE).tolist() == [1.0, -math.inf, -math.inf, math.inf]


def test_nan_stays_in_its_segment() -> None:
    values = rows()
    values[3] = math.nan
    for function in (segment_sum, segment_mean, segment_max, segment_logsumexp):
        assert function(values, INDEX, SIZE).isnan().tolist() == [False, False, False, True]


@pytest.mark.parametrize("function", [segment_sum, segment_mean, segment_logsumexp, segment_max])
def test_gradients(function: Callable[..., Tensor]) -> None:
    kept = torch.tensor([0, 2, 3])  # the empty segment is -inf for two of them
    assert torch.autograd.gradcheck(
        lambda values: function(values, INDEX, SIZE)[kept], rows(2).requires_grad_()
    )


def test_softmax_gradient() -> None:
    assert torch.autograd.gradcheck(
        lambda values: segment_softmax(values, INDEX, SIZE), rows(2).requires_grad_()
    )


def test_a_segment_depends_on_its_own_rows_only() -> None:
    values, mine = rows(3), INDEX == 2
    for function in (segment_sum, segment_max, segment_logsumexp):
        single = function(values[mine], torch.zeros(3, dtype=torch.int64), 1)
        assert torch.equal(function(values, INDEX, SIZE)[2], single[0])


@pytest.mark.parametrize(
    "function", [segment_sum, segment_mean, segment_max, segment_logsumexp, segment_softmax]
)
def test_no_rows(function: Callable[..., Tensor]) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert function(torch.zeros(0, 2), nothing, 0).shape == (0, 2)
