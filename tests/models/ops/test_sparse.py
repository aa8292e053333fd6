import pytest
import torch
from torch import Tensor

from models.ops.sparse import Pattern, edge_dots, spmm


def random_pattern(size: int, entries: int, seed: int = 0) -> Pattern:
    keys = (
        torch.randperm(size * size, generator=torch.Generator().manual_seed(seed))[:entries]
        .sort()
        .values
    )
    return Pattern(keys // size, keys % size, size)


def dense(values: Tensor, pattern: Pattern) -> Tensor:
    return torch.zeros(pattern.size, pattern.size, dtype=values.dtype).index_put(
        (pattern.rows, pattern.cols), values
    )


@pytest.mark.parametrize(("size", "entries"), [(1, 1), (6, 0), (9, 20), (5, 25)])
def test_products_equal_dense_ones(size: int, entries: int) -> None:
    pattern = random_pattern(size, entries)
    values, u, v = torch.randn(entries), torch.randn(size, 7), torch.randn(size, 7)
    torch.testing.assert_close(spmm(values, u, pattern), dense(values, pattern) @ u)
    torch.testing.assert_close(pattern.transposed(values) @ u, dense(values, pattern).T @ u)
    torch.testing.assert_close(edge_dots(u, v, pattern), (u @ v.T)[pattern.rows, pattern.cols])


def test_each_is_the_gradient_of_the_other_by_finite_differences() -> None:
    pattern = random_pattern(6, 14)
    values, u, v = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((14,), (6, 3), (6, 3))
    )
    assert torch.autograd.gradcheck(lambda w, h: spmm(w, h, pattern), (values, u))
    assert torch.autograd.gradcheck(lambda a, b: edge_dots(a, b, pattern), (u, v))


def test_rows_of_a_wider_tensor_need_not_be_contiguous() -> None:
    pattern = random_pattern(6, 14)
    wide = torch.randn(6, 2, 3)
    torch.testing.assert_close(
        edge_dots(wide[:, 0], wide[:, 1], pattern),
        (wide[:, 0] @ wide[:, 1].T)[pattern.rows, pattern.cols],
    )
