"""The adapter bank: adapters of all experts at one site as stacked tensors, for passes over several
tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.experts.adapter import Adapter


class AdapterBank(nn.Module):
    """Stacked adapters of K experts at one site, applied by one matrix product down and one up for
    all experts. Smaller ranks are padded with zeros to the largest, which changes no output.

    Attributes:
        down: (d, K, r).
        up: (K, r, d).
    """

    down: Tensor
    up: Tensor

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        rank = max(len(adapter.up) for adapter in adapters)
        padding = [rank - len(adapter.up) for adapter in adapters]
        down = [functional.pad(a.down, (0, k)) for a, k in zip(adapters, padding, strict=True)]
        up = [functional.pad(a.up, (0, 0, 0, k)) for a, k in zip(adapters, padding, strict=True)]
        self.register_buffer("down", torch.stack(down, 1).detach())
        self.register_buffer("up", torch.stack(up).detach())

    def project(self, h: Tensor) -> Tensor:
        """Project onto all experts, z_i = relu(h W_down_i): (N, T, d) -> (N, T, K, r)."""
        return (h @ self.down.flatten(1)).relu().view(*h.shape[:-1], *self.down.shape[1:])

    def mix(self, z: Tensor, weights: Tensor) -> Tensor:
        """Compute the weighted mean of expert outputs, sum_i w_i f_i(h), as one product of rank
        K r: z (N, T, K, r), weights (N, T, K) -> (N, T, d)."""
        return (z * weights.unsqueeze(-1)).flatten(-2) @ self.up.flatten(0, 1)

    def fuse(self, h: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
        """Apply one adapter per graph and stream whose parameters are the experts' weighted mean:
        relu(h W_down') W_up' with W' = sum_i w_i W_i.

        Args:
            h: (N, T or 1, d), sorted by graph.
            weights: (G, T, K).
            sizes: number of rows of each graph.

        Returns:
            (N, T, d).
        """
        down, up = self.down.movedim(1, 0), self.up
        rows = h.expand(-1, weights.shape[1], -1).transpose(0, 1).split(list(sizes), 1)
        # Graph by graph, so that its parameters stay in the cache: projecting all rows by all
        # experts is equivalent and took 1.3 times as long.
        corrections = [
            (x @ (w @ down.flatten(1)).unflatten(1, down.shape[1:])).relu_()
            @ (w @ up.flatten(1)).unflatten(1, up.shape[1:])
            for x, w in zip(rows, weights, strict=True)
        ]
        return torch.cat(corrections, 1).transpose(0, 1)

    def tangent(self, at: Tensor, h: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Compute the derivative of the experts' weighted mean, sum_i w_i f_i, in given directions.

        An adapter is linear in h as long as the same units are active, so that the derivative at
        `at` in the direction `at` is the output itself. The weights are held fixed.

        Args:
            at: (G, d), where the derivative is taken.
            h: (N, d), directions.
            rows: (N,), row of `at` for each direction.
            weights: (G, K).

        Returns:
            (N, d), of the type of `h`.
        """
        used = weights.any(0).nonzero().squeeze(1)
        down, up = self.down[:, used].to(h.dtype), self.up[used].to(h.dtype)
        active = torch.einsum("gd,dkr->gkr", at, down) > 0
        scale = active * weights[:, used, None].to(h.dtype)
        z = torch.einsum("nd,dkr->nkr", h, down)
        return torch.einsum("nkr,krd->nd", z * scale[rows], up)

    def fused_tangent(self, at: Tensor, h: Tensor, sizes: Sequence[int], weights: Tensor) -> Tensor:
        """Do as `tangent` for adapters of averaged parameters (`fuse`); h is sorted by graph,
        `sizes` are the numbers of rows of the graphs."""
        down, up = self.down.movedim(1, 0).to(h.dtype), self.up.to(h.dtype)
        found = []
        for g, x, w in zip(at, h.split(list(sizes)), weights.to(h.dtype), strict=True):
            d, u = torch.einsum("k,kdr->dr", w, down), torch.einsum("k,krd->rd", w, up)
            found.append(((x @ d) * (g @ d > 0)) @ u)
        return torch.cat(found)

    def target_outputs(self, h: Tensor, experts: Tensor) -> Tensor:
        """Compute the output f_k(h) of each stream's target expert k: h (N, T or 1, d), experts
        (T,) -> (N, T, d)."""
        z = torch.einsum(
            "ntd,dtr->ntr", h.expand(-1, len(experts), -1), self.down[:, experts]
        ).relu()
        return torch.einsum("ntr,trd->ntd", z, self.up[experts])


class NodeAdapterBank(AdapterBank):
    """The bank of a node site.

    Attributes:
        gram: (K, K, r, r), the matrices W_up_i W_up_j^T. They give inner products of expert
            outputs from projections of width r instead of d.
    """

    gram: Tensor

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__(adapters)
        self.register_buffer("gram", torch.einsum("ird,jqd->ijrq", self.up, self.up))
