"""ADMET-AI, in its own environment: `ADMETModel.predict`, its public function for one SMILES or
many."""

import logging
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.peers import Loaded, serve


def load(mode: str, folder: Path, batch_size: int | None) -> Loaded:
    """Load ADMET-AI.

    Mode `full`, or `models` without descriptors and percentiles. ADMET-AI has no setting for the
    batch size; another size is for an experiment.
    """
    import lightning.pytorch as pl  # type: ignore[import-not-found]
    import numpy as np
    from admet_ai import ADMETModel, admet_model  # type: ignore[import-not-found]

    class QuietTrainer(pl.Trainer):  # type: ignore[misc]
        """Trainer without a progress bar, which `predict` asks for by name."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"enable_progress_bar": False})

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    admet_model.pl = SimpleNamespace(Trainer=QuietTrainer)
    if batch_size:
        admet_model.build_dataloader = partial(admet_model.build_dataloader, batch_size=batch_size)
    began = time.perf_counter()
    model = (
        ADMETModel(num_workers=0)
        if mode == "full"
        else ADMETModel(include_physchem=False, drugbank_path=None, num_workers=0)
    )
    model_seconds = time.perf_counter() - began

    def answered(frame: Any) -> int:
        return int(np.isfinite(frame.to_numpy(float)).all(axis=1).sum())

    def values(frame: Any) -> dict[str, list[float]]:
        return {str(name): [float(v) for v in frame[name]] for name in frame.columns}

    return Loaded(
        model.predict,
        model.predict,
        answered,
        model_seconds,
        sum(map(len, model.task_lists)),
        batch_size or 64,
        values,
    )


if __name__ == "__main__":
    serve(load)
