"""chemprop in its own environment: one message-passing network as `chemprop train` makes it by
default, with twelve binary outputs, whose weights are as initialised: what they are does not change
what they cost. Or models of the caller's files, one after the other.
"""

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers import MODELS, Loaded, serve

MODEL = "chemprop.pt"
OUTPUTS = 12
BATCH_SIZE = 64


def prepare(folder: Path) -> None:
    """Write an untrained model: 3 steps over bonds, width 300, sum divided by 100, one hidden layer
    of 300.
    """
    import torch
    from chemprop.models import MPNN, save_model
    from chemprop.nn import BinaryClassificationFFN, BondMessagePassing, NormAggregation

    torch.manual_seed(0)
    model = MPNN(BondMessagePassing(), NormAggregation(), BinaryClassificationFFN(n_tasks=OUTPUTS))
    save_model(folder / MODEL, model, [f"label{k}" for k in range(OUTPUTS)])


def load(mode: str, folder: Path, batch_size: int | None) -> Loaded:
    """Load the model.

    Mode `rdkit` or `cuik` (the library that computes atom and bond features; both with a Trainer),
    or `direct` (cuik, and the network called directly). `files` is `rdkit` and `files-direct` is
    `direct` for all models of the caller; molecules are read once for all of them.
    """
    import torch
    from chemprop.data import (
        CuikmolmakerDataset,
        LazyMoleculeDatapoint,
        MoleculeDatapoint,
        MoleculeDataset,
        build_dataloader,
    )
    from chemprop.featurizers import CuikmolmakerMolGraphFeaturizer
    from chemprop.models import load_model
    from lightning import pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    size = batch_size or BATCH_SIZE
    began = time.perf_counter()
    files = os.environ[MODELS].split(os.pathsep) if mode.startswith("files") else [folder / MODEL]
    models = [load_model(path).eval() for path in files]
    model_seconds = time.perf_counter() - began
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(accelerator="cpu", devices=1, **quiet)
    featurizer = CuikmolmakerMolGraphFeaturizer()

    def dataset(smiles: list[str]) -> Any:
        if mode == "cuik":
            return CuikmolmakerDataset([LazyMoleculeDatapoint(text) for text in smiles], featurizer)
        return MoleculeDataset([MoleculeDatapoint.from_smi(text) for text in smiles])

    def by_trainer(smiles: list[str]) -> Any:
        loader = build_dataloader(
            dataset(smiles), size, num_workers=0, shuffle=False, drop_last=False
        )
        return torch.cat([torch.cat(trainer.predict(model, loader)) for model in models], 1)

    @torch.inference_mode()
    def by_itself(smiles: list[str]) -> Any:
        batches = (featurizer(smiles[k : k + size]) for k in range(0, len(smiles), size))
        return torch.cat([torch.cat([model(batch) for model in models], 1) for batch in batches])

    predict = by_itself if mode.endswith("direct") else by_trainer

    def answered(probabilities: Any) -> int:
        return int(probabilities.isfinite().all(dim=1).sum())

    outputs = len(files) if mode.startswith("files") else OUTPUTS
    return Loaded(predict, lambda text: predict([text]), answered, model_seconds, outputs, size)


if __name__ == "__main__":
    serve(load, prepare)
