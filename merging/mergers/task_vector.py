"""What fine-tuning added to the pre-trained weights: the currency of every merger."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import CheckpointError


def is_merged(key: str, value: Tensor) -> bool:
    """Whether a backbone's tensor takes part in merging: weights do, BatchNorm running statistics,
    a GIN's epsilon and integer buffers do not."""
    return value.is_floating_point() and not key.endswith(("running_mean", "running_var", ".eps"))


@dataclass(frozen=True)
class TaskVector:
    """tau_k = theta_k - theta_pre (Ilharco et al. 2023).

    Attributes:
        delta: by parameter name, of the backbone only.
    """

    delta: dict[str, Tensor]

    @classmethod
    def between(cls, pretrained: dict[str, Tensor], finetuned: dict[str, Tensor]) -> "TaskVector":
        """The vector from one backbone to another. Raises CheckpointError if names or shapes
        differ."""
        differing = sorted(pretrained.keys() ^ finetuned.keys())
        differing += [
            key
            for key in sorted(pretrained.keys() & finetuned.keys())
            if pretrained[key].shape != finetuned[key].shape
        ]
        if differing:
            raise CheckpointError(
                f"got backbones that differ in {', '.join(differing)}, expected the same names and"
                " shapes"
            )
        return cls(
            {
                key: finetuned[key] - value
                for key, value in pretrained.items()
                if is_merged(key, value)
            }
        )

    def apply(self, pretrained: dict[str, Tensor], scaling: float = 1.0) -> dict[str, Tensor]:
        """theta_pre + scaling * tau; what is not merged stays as pre-trained. The inputs are left
        as they are."""
        return {
            key: value + scaling * self.delta[key] if key in self.delta else value.clone()
            for key, value in pretrained.items()
        }


def total(vectors: list[TaskVector]) -> TaskVector:
    """The sum of task vectors."""
    return TaskVector(
        {
            key: torch.stack([vector.delta[key] for vector in vectors]).sum(0)
            for key in vectors[0].delta
        }
    )
