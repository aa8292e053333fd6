"""A training loop that may be stopped at any time: after every epoch its state is saved to one
file, from which it resumes."""

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from merging.data.files import damaged
from models.errors import TrainingError
from models.files import write_atomically


class ResumableTraining:
    """The epochs of a model and an optimizer, resumed from a checkpoint if there is one.

    Attributes:
        history: one number per finished epoch, appended by the body of the loop.
        kept: other tensors and plain values that the checkpoint holds.
        shown: values that the progress bar shows after an epoch.
        seconds: time spent in the bodies of all epochs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        checkpoint: Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._checkpoint, self._seed = checkpoint, seed
        self.history: list[float] = []
        self.kept: dict[str, Any] = {}
        self.shown: dict[str, object] = {}
        self.seconds = 0.0
        if checkpoint.is_file():
            try:
                state = torch.load(checkpoint, map_location=device, weights_only=True)
            except Exception as error:  # torch raises many kinds for a damaged file
                raise damaged(checkpoint, error) from error
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self.history, self.kept = state["history"], state["kept"]
            self.seconds = state["seconds"]

    def epochs(self, total: int, description: str) -> Iterator[int]:
        """Yield the numbers of the remaining epochs, up to `total`, and save the state after every
        one.

        Every epoch sets torch's seed from its number, so that a resumed run equals an uninterrupted
        one.

        Args:
            total: number of epochs, counted from 1.
            description: shown in the progress bar.

        Raises:
            TrainingError: a tensor of the model is not finite after an epoch, which is not saved.
        """
        first = len(self.history) + 1
        progress = tqdm(
            range(first, total + 1), initial=first - 1, total=total, desc=description, unit="epoch"
        )
        for epoch in progress:
            start = time.perf_counter()
            torch.manual_seed(self._seed * 100_003 + epoch)
            yield epoch
            self.seconds += time.perf_counter() - start
            progress.set_postfix(self.shown)
            self._check_finite(epoch)
            self._save()

    def keep_best(self, epoch: int, score: float) -> None:
        """Append an epoch's score to the history, and keep the model if the score is the best.

        `kept` then holds its state dict as "best" and its epoch as "best_epoch"; of equal scores
        the earliest counts. While all scores are NaN the latest model is kept.
        """
        best = max((value for value in self.history if not math.isnan(value)), default=None)
        if best is None or score > best:
            state = self._model.state_dict()
            self.kept["best"] = {key: value.cpu().clone() for key, value in state.items()}
            self.kept["best_epoch"] = epoch
        self.history.append(score)

    def _check_finite(self, epoch: int) -> None:
        for name, tensor in self._model.state_dict().items():
            if not bool(tensor.isfinite().all()):
                found = f"epoch {epoch}: got {name} that is not finite, expected finite numbers"
                raise TrainingError(f"{found}; a smaller `learning_rate` may help")

    def _save(self) -> None:
        state = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
            "kept": self.kept,
            "seconds": self.seconds,
        }
        content = io.BytesIO()  # written by us, so that a full disk is an OSError
        torch.save(state, content)
        write_atomically(self._checkpoint, lambda path: path.write_bytes(content.getbuffer()))


def set_cosine_rate(optimizer: torch.optim.Optimizer, rate: float, done: float) -> None:
    """Set the learning rate that falls from `rate` to 0 along half a cosine, after the share `done`
    of all steps."""
    for group in optimizer.param_groups:
        group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
