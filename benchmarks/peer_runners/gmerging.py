"""An artifact of imported D-MPNNs in a process of its own: molecules are read, and all tasks
answered."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import MODELS, Loaded, serve
from models.artifact import load_artifact
from models.data.bond_graph import collate_bonds
from models.data.dmpnn_features import FeaturizerOptions, featurize_bonds
from models.errors import MoleculeError

BATCH_SIZE = 100


def load(mode: str, folder: Path, batch_size: int | None) -> Loaded:
    """Load the artifact in the folder that the caller names."""
    size = batch_size or BATCH_SIZE
    began = time.perf_counter()
    loaded = load_artifact(Path(os.environ[MODELS]))
    model_seconds = time.perf_counter() - began
    tasks = list(loaded.manifest.tasks)

    @torch.inference_mode()
    def predict(smiles: list[str]) -> Tensor:
        found = []
        for begin in range(0, len(smiles), size):
            read = featurize_bonds(smiles[begin : begin + size], FeaturizerOptions())
            graphs = [item.graph for item in read if not isinstance(item, MoleculeError)]
            output = loaded.model(collate_bonds(graphs), list(range(len(tasks))))
            found.append(torch.cat(output, 1))
        return torch.cat(found)

    def answered(values: Tensor) -> int:
        return int(values.isfinite().all(dim=1).sum())

    return Loaded(predict, lambda text: predict([text]), answered, model_seconds, len(tasks), size)


if __name__ == "__main__":
    serve(load)
