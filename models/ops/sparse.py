"""Two products over a fixed sparsity pattern, each the gradient of the other.

    spmm(w, H)_i  = sum_j w_ij H_j      reads one row of H per entry; no E x d tensor is made
    edge_dots(U, V)_ij = U_i . V_j      on the entries of the pattern only

torch multiplies CSR matrices and samples products well, but its own backward passes sort the
transpose again at every step (2 x slower here).
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from models.ops.segment import segment_count

with warnings.catch_warnings():
    # torch warns once per process that CSR tensors are in beta; their products are stable.
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Positions of the nonzero entries of an N x N matrix.

    Attributes:
        rows, cols: (E,) int64, sorted by row.
        size: N.
    """

    rows: Tensor
    cols: Tensor
    size: int

    @cached_property
    def row_starts(self) -> Tensor:
        """(N + 1,) where the entries of each row start."""
        return _starts(self.rows, self.size)

    @cached_property
    def by_column(self) -> Tensor:
        """(E,) the order that sorts the entries by column."""
        return self.cols.argsort(stable=True)

    @cached_property
    def column_starts(self) -> Tensor:
        """(N + 1,) where the entries of each column start in the order `by_column`."""
        return _starts(self.cols, self.size)

    def matrix(self, values: Tensor) -> Tensor:
        """Build the CSR matrix with these values (E,)."""
        return torch.sparse_csr_tensor(
            self.row_starts, self.cols, values, (self.size, self.size), check_invariants=False
        )

    def transposed(self, values: Tensor) -> Tensor:
        """Build the transpose, as CSR, of the matrix with these values (E,)."""
        order = self.by_column
        return torch.sparse_csr_tensor(
            self.column_starts,
            self.rows[order],
            values[order],
            (self.size, self.size),
            check_invariants=False,
        )


def _starts(index: Tensor, size: int) -> Tensor:
    return torch.cat([index.new_zeros(1), segment_count(index, size).cumsum(0)])


def spmm(values: Tensor, h: Tensor, pattern: Pattern) -> Tensor:
    """Multiply a sparse matrix with values (E,) by h (N, d): row i is sum_j w_ij h_j, (N, d)."""
    product: Tensor = _Product.apply(values, h, pattern)  # type: ignore[no-untyped-call]
    return product


def edge_dots(u: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Compute the inner product u_i . v_j at each entry (i, j): u and v (N, d) -> (E,)."""
    dots: Tensor = _Dots.apply(u, v, pattern)  # type: ignore[no-untyped-call]
    return dots


def _dots(u: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    empty = pattern.matrix(u.new_zeros(len(pattern.rows)))
    dots: Tensor = torch.sparse.sampled_addmm(empty, u.contiguous(), v.t(), beta=0.0).values()
    return dots


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, h: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, h if ctx.needs_input_grad[0] else None)
        product: Tensor = pattern.matrix(values) @ h
        return product

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (values, h), grad = ctx.saved_tensors, grads[0].contiguous()
        return (
            _dots(grad, h, ctx.pattern) if ctx.needs_input_grad[0] else None,
            ctx.pattern.transposed(values) @ grad if ctx.needs_input_grad[1] else None,
            None,
        )


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(u, v)
        return _dots(u, v, pattern)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (u, v), grad = ctx.saved_tensors, grads[0].contiguous()
        return (
            ctx.pattern.matrix(grad) @ v if ctx.needs_input_grad[0] else None,
            ctx.pattern.transposed(grad) @ u if ctx.needs_input_grad[1] else None,
            None,
        )
