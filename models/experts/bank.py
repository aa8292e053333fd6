"""The adapter bank: adapters of all experts as stacked tensors, for passes over several tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.experts.adapter import TaskAdapters


class AdapterBank(nn.Module):
    """Stacked adapters of K experts, applied by one matrix product down and one up for all experts.

    Attributes:
        down: (L+1, d, K, r).
        up: (L+1, K, r, d).
        gram: (L+1, K, K, r, r), the matrices W_up_i W_up_j^T. They give inner products of expert
            outputs from projections of width r instead of d.
        norm_mean, norm_var: (L, K, d), BatchNorm statistics.
    """

    down: Tensor
    up: Tensor
    gram: Tensor
    norm_mean: Tensor
    norm_var: Tensor

    def __init__(self, experts: Sequence[TaskAdapters]) -> None:
        super().__init__()
        num_sites = len(experts[0].sites)

        def stacked_at(site: int, name: str, dim: int) -> Tensor:
            return torch.stack([expert.sites[site].get_parameter(name) for expert in experts], dim)

        stacked = {
            "down": torch.stack([stacked_at(site, "down", 1) for site in range(num_sites)]),
            "up": torch.stack([stacked_at(site, "up", 0) for site in range(num_sites)]),
            "norm_mean": torch.stack([expert.norm_mean for expert in experts], dim=1),
            "norm_var": torch.stack([expert.norm_var for expert in experts], dim=1),
        }
        stacked["gram"] = torch.einsum("sird,sjqd->sijrq", stacked["up"], stacked["up"])
        for name, value in stacked.items():
            self.register_buffer(name, value.detach())

    def project(self, site: int, h: Tensor) -> Tensor:
        """Project onto all experts, z_i = relu(h W_down_i): (N, T, d) -> (N, T, K, r)."""
        down = self.down[site]
        return (h @ down.flatten(1)).relu().view(*h.shape[:-1], *down.shape[1:])

    def mix(self, site: int, z: Tensor, weights: Tensor) -> Tensor:
        """Compute the weighted mean of expert outputs, sum_i w_i f_i(h), as one product of rank
        K r: z (N, T, K, r), weights (N, T, K) -> (N, T, d)."""
        return (z * weights.unsqueeze(-1)).flatten(-2) @ self.up[site].flatten(0, 1)

    def fuse(self, site: int, h: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
        """Apply one adapter per graph and stream whose parameters are the experts' weighted mean:
        relu(h W_down') W_up' with W' = sum_i w_i W_i.

        Args:
            h: (N, T or 1, d), sorted by graph.
            weights: (G, T, K).
            sizes: number of rows of each graph.

        Returns:
            (N, T, d).
        """
        down, up = self.down[site].movedim(1, 0), self.up[site]
        rows = h.expand(-1, weights.shape[1], -1).transpose(0, 1).split(list(sizes), 1)
        # Graph by graph, so that its parameters stay in the cache: projecting all rows by all
        # experts is equivalent and took 1.3 times as long.
        corrections = [
            (x @ (w @ down.flatten(1)).unflatten(1, down.shape[1:])).relu_()
            @ (w @ up.flatten(1)).unflatten(1, up.shape[1:])
            for x, w in zip(rows, weights, strict=True)
        ]
        return torch.cat(corrections, 1).transpose(0, 1)

    def target_outputs(self, site: int, h: Tensor, experts: Tensor) -> Tensor:
        """Compute the output f_k(h) of each stream's target expert k: h (N, T or 1, d), experts
        (T,) -> (N, T, d)."""
        z = torch.einsum(
            "ntd,dtr->ntr", h.expand(-1, len(experts), -1), self.down[site][:, experts]
        ).relu()
        return torch.einsum("ntr,trd->ntd", z, self.up[site][experts])
