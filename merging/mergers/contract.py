"""What every merger takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MergeInputs:
    """State dicts of backbones of one shape; heads are never merged.

    Attributes:
        pretrained: theta_pre, where all experts started.
        finetuned: theta_k by task.
        scaling: lambda, on the sum of task vectors; None takes the merger's own default.
    """

    pretrained: dict[str, Tensor]
    finetuned: dict[str, dict[str, Tensor]]
    scaling: float | None = None


@dataclass(frozen=True)
class MergeResult:
    """The merged backbone.

    Attributes:
        backbone: state dict; BatchNorm running statistics are the pre-trained ones and are replaced per task.
        scaling: lambda that was used.
    """

    backbone: dict[str, Tensor]
    scaling: float


Merger = Callable[[MergeInputs], MergeResult]
