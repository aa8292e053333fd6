"""Weights of the compiled model, with everything that does not depend on the molecule multiplied in
advance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.compiled.transport import SIMD_WIDTH
from models.data.molecule import NUM_BOND_TYPES, SELF_LOOP
from models.experts.bank import NodeAdapterBank
from models.networks.hu2020 import Backbone, GINLinearConvolution

KEPT_SELECTIONS = 8
"""Sets of tasks or streams whose weights are kept side by side: requests for the same tasks follow
each other."""


class ExpertSelection:
    """The experts of the requested tasks, one per stream.

    Attributes:
        positions: index of each stream's expert.
        experts: (S,) the same as a tensor.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = tuple(positions)
        self.experts = torch.tensor(positions, dtype=torch.int64)
        first = positions[0] if positions else 0
        consecutive = range(first, first + len(positions))
        # Consecutive experts are selected as a view, others as a copy.
        self._index = (
            slice(consecutive.start, consecutive.stop)
            if list(positions) == list(consecutive)
            else self.experts
        )

    def __len__(self) -> int:
        return len(self.experts)

    def select(self, values: Tensor) -> Tensor:
        """Select these experts' rows: (K, ...) -> (S, ...)."""
        return values[self._index]

    def split(self, size: int) -> list["ExpertSelection"]:
        """Split into selections of at most `size` experts, in order."""
        if len(self) <= size:
            return [self]
        return [ExpertSelection(chunk.tolist()) for chunk in self.experts.split(size)]


@dataclass(frozen=True)
class FoldedLayer:
    """Weights of a layer with BatchNorm, biases, bonds and the projections of all adapters folded
    in.

    K streams with an expert each; K' is K rounded up to `models.compiled.transport.SIMD_WIDTH`.

    Attributes:
        linear: (d, d + K * r) the convolution's weight, and its product with all `down` matrices.
        bonds: (types + directions + 1, d + K * r) bond embeddings and bias, in the same columns.
        up: (K, r, d) the adapters' `up` matrices.
        gain, offset: (K, d) the BatchNorm of each task.
        self_gram: (r, r, K') product of each expert's `up` matrix with itself.
        cross_gram: (K, r, r, K') products of every `up` matrix with that of a target expert (first
            axis).
    """

    linear: Tensor
    bonds: Tensor
    up: Tensor
    gain: Tensor
    offset: Tensor
    self_gram: Tensor
    cross_gram: Tensor

    @cached_property
    def convolution(self) -> tuple[Tensor, Tensor]:
        """The columns of `linear` and of `bonds` for the convolution, (..., d) each."""
        width = len(self.linear)
        return self.linear[:, :width], self.bonds[:, :width]

    @cached_property
    def projection(self) -> tuple[Tensor, Tensor]:
        """The columns of `linear` and of `bonds` for the adapters, (..., K * r) each."""
        width = len(self.linear)
        return self.linear[:, width:], self.bonds[:, width:]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, in bytes."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(value.numel() * value.element_size() for value in tensors)

    def for_experts(self, selection: ExpertSelection) -> "SelectedLayer":
        """Select the weights of some experts."""
        linear, bonds = (
            selection.select(columns.unflatten(1, self.up.shape[:2]).movedim(1, 0))
            for columns in self.projection
        )
        return SelectedLayer(
            projection=linear.transpose(1, 2).contiguous().numpy(),
            bonds=bonds.contiguous(),
            up=selection.select(self.up).numpy(),
            gain=selection.select(self.gain).numpy(),
            offset=selection.select(self.offset).numpy(),
        )


@dataclass(frozen=True)
class SelectedLayer:
    """Weights of a layer for S streams with one adapter of rank r each.

    Attributes:
        projection: (S, r, d), see `FoldedLayer.projection`.
        bonds: (S, types + directions + 1, r).
        up: (S, r, d).
        gain, offset: (S, d).
    """

    projection: NDArray[np.float32]
    bonds: Tensor
    up: NDArray[np.float32]
    gain: NDArray[np.float32]
    offset: NDArray[np.float32]


def fold_layer(
    backbone: Backbone, number: int, bank: NodeAdapterBank, mean: Tensor, var: Tensor
) -> FoldedLayer:
    """Fold a layer of a backbone for K streams: see `FoldedLayer`.

    Args:
        backbone: a GCN.
        number: of the layer.
        bank: the streams' adapters after this layer; their rank may be 0.
        mean, var: (K, d), the streams' BatchNorm statistics.
    """
    convolution, norm = backbone.gnns[number], backbone.batch_norms[number]
    # for the type checker: a ModuleList is untyped
    assert isinstance(convolution, GINLinearConvolution)
    assert isinstance(norm, nn.BatchNorm1d)
    padding = 0, -len(bank.up) % SIMD_WIDTH
    with torch.no_grad():
        linear, down = convolution.linear.weight.T, bank.down.flatten(1)
        table = convolution.edge_table()
        bonds = torch.cat(
            [table[: SELF_LOOP + 1], table[NUM_BOND_TYPES:], convolution.linear.bias[None]]
        )
        gain = norm.weight * (var + norm.eps).rsqrt()
        return FoldedLayer(
            linear=torch.cat([linear, linear @ down], 1),
            bonds=torch.cat([bonds, bonds @ down], 1),
            up=bank.up.clone(),
            gain=gain,
            offset=norm.bias - mean * gain,
            self_gram=functional.pad(torch.einsum("iipq->pqi", bank.gram), padding),
            cross_gram=functional.pad(bank.gram.permute(1, 2, 3, 0), padding).contiguous(),
        )
