"""Trial passes: every task of an artifact predicts for a small input before it is written."""

from collections.abc import Mapping

import torch
from torch import nn

from models.errors import ArtifactError
from models.experts.router import RouterConfig
from models.manifest import Manifest


def try_tasks(manifest: Manifest, network: nn.Module, experts: Mapping[str, nn.Module]) -> None:
    """Predict each task for one small input, with a model of that task only.

    Raises:
        ArtifactError: a prediction is not finite; the message names the task.
    """
    family = manifest.family
    for task, expert in experts.items():
        model = family.model(network, {task: expert}, RouterConfig())
        graph = family.smallest(manifest.backbone, manifest.input, task)
        with torch.inference_mode():
            output = family.answer(model, family.collate([graph]), [task], "own")[task]
        if not output.is_finite:
            raise ArtifactError(f"got answers of {task} that are not finite, expected finite ones")
