"""Epochs of a training that may be stopped at any time: after each, all that it goes on from lies
in one file."""

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
    """A model and an optimizer, picked up where a stopped run left them.

    Attributes:
        history: one number per finished epoch; the body of the loop appends it.
        kept: whatever else must survive a stop, tensors and plain values.
        shown: what the progress bar says after an epoch.
        seconds: spent in the bodies of all epochs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        checkpoint: Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self._model, self._optimizer, self._checkpoint, self._seed = (
            model,
            optimizer,
            checkpoint,
            seed,
        )
        self.history: list[float] = []
        self.kept: dict[str, Any] = {}
        self.shown: dict[str, object] = {}
        self.seconds = 0.0
        if checkpoint.is_file():
            try:
                state = torch.load(checkpoint, map_location=device, weights_only=True)
            except Exception as error:  # whatever torch makes of other bytes
                raise damaged(checkpoint, error) from error
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self.history, self.kept, self.seconds = (
                state["history"],
                state["kept"],
                state["seconds"],
            )

    def epochs(self, total: int, description: str) -> Iterator[int]:
        """The epochs that are left, from 1 to `total`. Each draws from a seed of its own, so that a
        resumed run is the same run.

        Raises:
            TrainingError: after an epoch a tensor of the model is not finite; that is not kept.
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
        """Note an epoch's score; the model with the best so far (the earliest of equals) is kept as
        "best", its epoch as "best_epoch".

        While no score is a number, the latest model is kept.
        """
        best = max((each for each in self.history if not math.isnan(each)), default=None)
        if best is None or score > best:
            self.kept |= {
                "best": {
                    key: value.cpu().clone() for key, value in self._model.state_dict().items()
                },
                "best_epoch": epoch,
            }
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
        content = io.BytesIO()  # a full disk is then an OSError
        torch.save(state, content)
        write_atomically(self._checkpoint, lambda path: path.write_bytes(content.getbuffer()))
