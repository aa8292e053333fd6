"""models.compiled.model.fold"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.compiled.transport import LANES
from models.data.molecule import NUM_BOND_TYPES, SELF_LOOP
from models.experts.unified import UnifiedModel
from models.networks.hu2020 import GCNConvolution


class ExpertSelection:
    """The experts whose tasks are asked for, one a stream.

    Attributes:
        experts: (S,) their positions.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.experts = torch.tensor(positions)
        first, last = positions[0], positions[-1]
        # Those that stand together are looked at where they lie; others are copied.
        self._where = (
            slice(first, last + 1)
            if list(positions) == list(range(first, last + 1))
            else self.experts
        )

    def __len__(self) -> int:
        return len(self.experts)

    def of(self, part: Tensor) -> Tensor:
        """What of (K, ...) is theirs: (S, ...)."""
        return part[self._where]

    def split(self, at_once: int) -> list["ExpertSelection"]:
        """So many at a time."""
        return [ExpertSelection(part.tolist()) for part in self.experts.split(at_once)]


@dataclass(frozen=True)
class FoldedLayer:
    """A layer's weights, folded; K experts, padded to K' where they are innermost.

    Attributes:
        linear: (d, d + K * r) the convolution's, and what all adapters see of its output.
        bonds: (types + directions + 1, d + K * r) what bonds and bias add to both.
        up: (K, r, d).
        gain, offset: (K, d) each task's BatchNorm.
        squares: (r, r, K') and facing: (K, r, r, K'), inner products of the adapters' up matrices.
    """

    linear: Tensor
    bonds: Tensor
    up: Tensor
    gain: Tensor
    offset: Tensor
    squares: Tensor
    facing: Tensor

    @property
    def wide(self) -> tuple[Tensor, Tensor]:
        """The part of `linear` and of `bonds` that the convolution makes, (..., d) each."""
        width = len(self.linear)
        return self.linear[:, :width], self.bonds[:, :width]

    @property
    def narrow(self) -> tuple[Tensor, Tensor]:
        """The part of both that the adapters see, (..., K * r) each."""
        width = len(self.linear)
        return self.linear[:, width:], self.bonds[:, width:]

    def of_experts(self, asked: ExpertSelection) -> tuple[Tensor, Tensor]:
        """`narrow` for some experts, one by one: transposed (S, r, d), and (S, ..., r)."""
        linear, bonds = (
            asked.of(part.unflatten(1, self.up.shape[:2]).movedim(1, 0)) for part in self.narrow
        )
        return linear.transpose(1, 2).contiguous(), bonds


def fold_layer(model: UnifiedModel, number: int) -> FoldedLayer:
    """One layer of the model with BatchNorm, biases, bonds and adapters folded in."""
    backbone, bank = model.backbone, model.bank
    convolution, norm = backbone.gnns[number], backbone.batch_norms[number]
    # for the type checker: a ModuleList does not say what it holds
    assert isinstance(convolution, GCNConvolution)
    assert isinstance(norm, nn.BatchNorm1d)
    padding = 0, -len(model.tasks) % LANES
    with torch.no_grad():
        linear, down = convolution.linear.weight.T, bank.down[number].flatten(1)
        table = convolution.edge_table()
        bonds = torch.cat(
            [table[: SELF_LOOP + 1], table[NUM_BOND_TYPES:], convolution.linear.bias[None]]
        )
        gain = norm.weight * (bank.norm_var[number] + norm.eps).rsqrt()
        return FoldedLayer(
            linear=torch.cat([linear, linear @ down], 1),
            bonds=torch.cat([bonds, bonds @ down], 1),
            up=bank.up[number].clone(),
            gain=gain,
            offset=norm.bias - bank.norm_mean[number] * gain,
            squares=functional.pad(torch.einsum("iipq->pqi", bank.gram[number]), padding),
            facing=functional.pad(bank.gram[number].permute(1, 2, 3, 0), padding).contiguous(),
        )
