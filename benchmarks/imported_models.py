"""ADMET-AI's ten models from its wheel, imported `separate`, beside ADMET-AI: all 41 answers for
the same SMILES, and molecules per CPU second in turns in one run, one thread.

    python -m benchmarks.imported_models [--molecules N] [--timed N] [--rounds N]

Writes `results/imported_models.json`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import RESULTS, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from benchmarks.peers import Peer, environment
from merging.data.files import write_json
from merging.imports.config import make_import_config
from merging.imports.dmpnn import BondPool, predictions
from merging.imports.importing import import_models
from models.artifact import load_artifact
from models.data.dmpnn_features import FeaturizerOptions, featurize_bonds
from models.errors import MoleculeError
from models.experts.dmpnn import DmpnnModel

MODELS = "lib/python3*/site-packages/admet_ai/resources/models"
KINDS = ("classification", "regression")
CLOSE = 1e-5
_BATCH = 100


def answers(model: DmpnnModel, smiles: Sequence[str]) -> dict[str, torch.Tensor]:
    """Predict all tasks from SMILES, (molecules, labels) by task."""
    found: dict[str, list[torch.Tensor]] = {task: [] for task in model.tasks}
    for begin in range(0, len(smiles), _BATCH):
        read = featurize_bonds(smiles[begin : begin + _BATCH], FeaturizerOptions())
        graphs = [item.graph for item in read if not isinstance(item, MoleculeError)]
        for task, values in predictions(model, BondPool(graphs)).items():
            found[task].append(values)
    return {task: torch.cat(values) for task, values in found.items()}


def relative(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """Compute differences in units of the expected number, or of the label's deviation where that
    is larger: a logD may be 0."""
    scale = np.maximum(np.abs(expected), expected.std())
    error: NDArray[Any] = np.abs(found - expected) / scale
    return error


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Import the models, and compare answers and speed."""
    work, smiles = arguments.work, fixed_molecules(arguments.molecules, arguments.data)
    python = environment("admet_ai", work.resolve() / "peers")
    (models,) = python.parents[1].glob(MODELS)
    sources = {kind: str(models / f"admet_{kind}") for kind in KINDS}
    config = make_import_config({"models": sources, "method": "separate"}, "ADMET-AI")
    folder = work / "own-models" / "admet-ai"
    manifest = import_models(config, folder, work, replace_other=True).manifest
    model = load_artifact(folder).model
    found = {
        label: values[:, k].double().numpy()
        for kind, values in answers(model, smiles).items()
        for k, label in enumerate(manifest.tasks[kind].labels)
    }
    with Peer("admet-ai-models", work=work) as peer:
        expected = peer.values(smiles)
        versions = peer.info["versions"]
    errors = np.stack([relative(found[name], np.array(expected[name])) for name in found])
    off = np.flatnonzero(errors.max(0) > CLOSE)
    rates: dict[str, list[float]] = {"ours": [], "admet-ai": [], "admet-ai-models": []}
    timed = smiles[: arguments.timed]
    with Peer("admet-ai", work=work) as full, Peer("admet-ai-models", work=work) as bare:
        for turn in range(arguments.rounds + 1):
            started = time.process_time()
            answers(model, timed)
            seconds = {"ours": time.process_time() - started}
            seconds["admet-ai"] = full.batch(timed).cpu_seconds
            seconds["admet-ai-models"] = bare.batch(timed).cpu_seconds
            if turn:
                for name, value in seconds.items():
                    rates[name].append(len(timed) / value)
    return {
        "what": "ADMET-AI's ten models, imported separately, beside ADMET-AI",
        "molecules": len(smiles),
        "answers_per_molecule": len(found),
        "largest_relative_difference": float(np.delete(errors, off, 1).max()),
        "molecules_beyond_1e-5": {smiles[k]: float(errors[:, k].max()) for k in off},
        "chemprop_imported_here": "chemprop" in sys.modules,
        "timed_molecules": len(timed),
        "molecules_per_cpu_second": {name: summary(values, 1) for name, values in rates.items()},
        "times_admet_ai": ratio(rates["ours"], rates["admet-ai"]),
        "times_admet_ai_without_descriptors": ratio(rates["ours"], rates["admet-ai-models"]),
        "peer_versions": versions,
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--molecules", type=int, default=2000)
    parser.add_argument("--timed", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--output", type=Path, default=RESULTS / "imported_models.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = measure(arguments) | {"machine": machine(1)}
    print(content)
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
