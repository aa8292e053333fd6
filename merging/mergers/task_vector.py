"""Task vectors: the difference between fine-tuned and pre-trained weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import CheckpointError

State = dict[str, Tensor]
"""A state dict: tensors by parameter name."""


def is_merged(key: str, value: Tensor) -> bool:
    """Return whether a tensor of a backbone's state dict takes part in merging.

    Weights do; BatchNorm running statistics, a GIN's epsilon and integer buffers do not.
    """
    return value.is_floating_point() and not key.endswith(("running_mean", "running_var", ".eps"))


@dataclass(frozen=True)
class TaskVector:
    """A task vector, tau_k = theta_k - theta_pre (Ilharco et al. 2023).

    Attributes:
        delta: the difference by parameter name, of the backbone's merged tensors only.
    """

    delta: State

    @classmethod
    def between(cls, pretrained: State, finetuned: State) -> "TaskVector":
        """Compute the task vector of a fine-tuned state dict.

        Raises:
            CheckpointError: names or shapes differ.
        """
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

    def apply(self, pretrained: State, scaling: float = 1.0) -> State:
        """Return the state dict theta_pre + scaling * tau, in new tensors; what is not merged is a
        copy of the pre-trained tensor."""
        return {
            key: value + scaling * self.delta[key] if key in self.delta else value.clone()
            for key, value in pretrained.items()
        }


def total(vectors: list[TaskVector]) -> TaskVector:
    """Sum task vectors."""
    return TaskVector(
        {
            key: torch.stack([vector.delta[key] for vector in vectors]).sum(0)
            for key in vectors[0].delta
        }
    )
