"""Four tasks, fine-tuned by `chemprop train --from-foundation` from one network, merged by every
method of `gmerging import-models`: test scores, recovery and label-free differences; cosines of
related and unrelated models. What they cost: `benchmarks.own_models_cost`.

    python -m benchmarks.own_models --folder work/own-models [--seeds 0 1 2]

The tasks are BACE, BBBP, clearance by microsomes and lipophilicity (scaffold splits by seed). The
foundation learnt ten descriptors of 20,000 molecules. What is missing in the folder is trained
first, with chemprop in an environment of its own: hours on two cores. Merging sees the training
molecules of all tasks without labels; choices were made on validation molecules. Writes
`results/own-models/merging.json` after every method.
"""

import argparse
import csv
import gzip
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Descriptors
from sklearn.metrics import roc_auc_score

from benchmarks.measuring import machine
from benchmarks.peers import environment
from merging.config.base import fingerprint
from merging.data.files import write_json
from merging.imports.check import RELATED
from merging.imports.chemprop import (
    ChempropModel,
    Ensemble,
    flattened,
    read_chemprop,
    read_foundation,
)
from merging.imports.difference import differences
from merging.imports.dmpnn import (
    BondPool,
    ImportedTask,
    MergedDmpnn,
    assemble,
    average,
    predictions,
    residual,
    separate,
)
from merging.imports.dmpnn_training import JOINT, AdapterSettings, adapters, one_pass
from models.data.dmpnn_features import featurize_bonds
from models.errors import MoleculeError
from models.task import TaskInfo

DESCRIPTORS = (
    *("MolLogP", "TPSA", "MolMR", "NumHDonors", "NumHAcceptors", "FractionCSP3"),
    *("NumAromaticRings", "NumRotatableBonds", "BertzCT", "BalabanJ"),
)
"""What the foundation was trained on."""
FOUNDATION = "foundation/model_0/best.pt"
MEASURED = 500
"""Molecules that give the difference; they are not trained on."""


@dataclass(frozen=True)
class Data:
    """A table of a task: file below the data folder, columns, the label's name and scale, and
    chemprop's name of the target."""

    file: str
    smiles: str
    label: str
    name: str
    kind: str
    log10: bool = False


TASKS = {
    "bace": Data("moleculenet/bace.csv.gz", "mol", "Class", "inhibitor", "classification"),
    "bbbp": Data("moleculenet/bbbp.csv.gz", "smiles", "p_np", "penetrates", "classification"),
    "clear": Data(
        "admet/clearance_microsome_az.csv.gz", "smiles", "y", "log_clearance", "regression", True
    ),
    "lipo": Data("admet/lipophilicity_astrazeneca.csv.gz", "smiles", "y", "logd", "regression"),
}


# --- training, with chemprop ---


def train(folder: Path, data: Path, seeds: Sequence[int], work: Path) -> None:
    """Train with chemprop what the folder has not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tables(folder, data)
    python = environment("chemprop", work.resolve() / "peers")
    common = [
        str(python.parent / "chemprop"),
        "train",
        "--accelerator",
        "cpu",
        "--num-workers",
        "0",
    ]
    common += ["--smiles-columns", "smiles", "--batch-size", "64", "-q"]
    jobs = {FOUNDATION: ["--data-path", "pre.csv", "--task-type", "regression", "--epochs", "8"]}
    jobs[FOUNDATION] += ["--output-dir", "foundation", "--pytorch-seed", "0"]
    for seed in seeds:
        for task, spec in TASKS.items():
            run = f"runs{seed}/{task}"
            jobs[f"{run}/model_0/best.pt"] = [
                *("--data-path", f"{task}.csv", "--task-type", spec.kind, "--epochs", "25"),
                *("--split-type", "scaffold_balanced", "--data-seed", str(seed)),
                *("--pytorch-seed", str(seed), "--from-foundation", FOUNDATION),
                *("--save-data-splits", "--output-dir", run),
            ]
    for made, options in jobs.items():
        if not (folder / made).is_file():
            print(f"training {folder / made}", file=sys.stderr, flush=True)
            subprocess.run([*common, *options], cwd=folder, check=True)


def _write_tables(folder: Path, data: Path) -> None:
    for task, spec in TASKS.items():
        if (folder / f"{task}.csv").is_file():
            continue
        with gzip.open(data / spec.file, "rt") as stream:
            rows = [(row[spec.smiles], float(row[spec.label])) for row in csv.DictReader(stream)]
        if spec.log10:
            rows = [(smiles, round(math.log10(value), 4)) for smiles, value in rows]
        read = [row for row in rows if Chem.MolFromSmiles(row[0]) is not None]
        _write_table(folder / f"{task}.csv", ["smiles", spec.name], read)
    if (folder / "pre.csv").is_file():
        return
    drawn: list[str] = []
    generator = random.Random(0)
    with gzip.open(data / "smiles/smiles.txt.gz", "rt") as stream:
        for k, line in zip(range(600_000), stream, strict=False):
            if len(drawn) < 20_000:
                drawn.append(line.strip())
            elif (place := generator.randrange(k + 1)) < 20_000:
                drawn[place] = line.strip()
    molecules = [(text, Chem.MolFromSmiles(text)) for text in drawn]
    rows = [
        (text, *(round(getattr(Descriptors, name)(mol), 4) for name in DESCRIPTORS))
        for text, mol in molecules
        if mol is not None and mol.GetNumHeavyAtoms() > 2
    ]
    _write_table(folder / "pre.csv", ["smiles", *DESCRIPTORS], rows)


def _write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(head)
        writer.writerows(rows)


# --- merging ---


@dataclass(frozen=True)
class Study:
    """The models of one seed with their molecules.

    Attributes:
        tasks: the models.
        subsets: by task and subset ("train", "val", "test") molecules and labels.
        trained, measured: unlabelled training molecules of all tasks, for training and differences.
    """

    tasks: dict[str, ImportedTask]
    subsets: dict[tuple[str, str], tuple[BondPool, NDArray[Any]]]
    trained: BondPool
    measured: BondPool

    @classmethod
    def read(cls, folder: Path, seed: int) -> "Study":
        """Read the models and the splits that chemprop wrote."""
        runs = folder / f"runs{seed}"
        ensembles = {task: read_chemprop(runs / task) for task in TASKS}
        tasks = {
            task: ImportedTask(TaskInfo(labels=found.labels, target=found.target), found)
            for task, found in ensembles.items()
        }
        subsets = {
            (task, name): _subset(runs / task / f"{name}.csv", ensembles[task])
            for task in TASKS
            for name in ("train", "val", "test")
        }
        graphs = [graph for task in TASKS for graph in subsets[task, "train"][0].graphs]
        random.Random(seed).shuffle(graphs)
        return cls(tasks, subsets, BondPool(graphs[MEASURED:]), BondPool(graphs[:MEASURED]))

    def scores(self, merged: MergedDmpnn, subset: str) -> dict[str, float]:
        """Compute ROC-AUC, or minus the RMSE, by task."""
        model, found = merged.model, {}
        for task, spec in TASKS.items():
            pool, labels = self.subsets[task, subset]
            values = predictions(model, pool)[task][:, 0].numpy()
            regression = spec.kind == "regression"
            error = float(np.sqrt(np.square(values - labels).mean()))
            found[task] = -error if regression else float(roc_auc_score(labels, values))
        return found


def _subset(path: Path, ensemble: Ensemble) -> tuple[BondPool, NDArray[Any]]:
    with path.open() as stream:
        rows = list(csv.reader(stream))[1:]
    read = featurize_bonds([row[0] for row in rows], ensemble.options)
    good = [
        (item.graph, float(row[1]))
        for item, row in zip(read, rows, strict=True)
        if not isinstance(item, MoleculeError)
    ]
    graphs, labels = zip(*good, strict=True)
    return BondPool(graphs), np.array(labels)


def ways(study: Study, work: Path) -> dict[str, Callable[[], MergedDmpnn]]:
    """The methods by name, the references first."""
    tasks, pool = study.tasks, study.trained
    return {
        "separate": lambda: separate(tasks),
        "average": lambda: assemble(tasks, 0, "none", average(tasks)),
        "residual, rank 10": lambda: residual(tasks, 10),
        "residual, rank 30": lambda: residual(tasks, 30),
        "residual, rank 54": lambda: residual(tasks, 54),
        "adapters, rank 30": lambda: adapters(tasks, pool, 30, AdapterSettings(), 0, work),
        "one-pass, rank 100": lambda: one_pass(tasks, pool, JOINT, 0, work),
    }


def measure_methods(study: Study, work: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """Merge by every method; hand the results by method to `keep` after every one."""
    expected = predictions(separate(study.tasks).model, study.measured)
    found: dict[str, Any] = {}
    for name, merge in ways(study, work).items():
        began = time.process_time()
        merged = merge()
        seconds = time.process_time() - began
        numbers = [sum(v.numel() for v in e.state_dict().values()) for e in merged.experts.values()]
        found[name] = row = {
            "test": study.scores(merged, "test"),
            "valid": study.scores(merged, "val"),
            "difference": differences(predictions(merged.model, study.measured), expected),
            "cpu_seconds": round(seconds, 1),
            "numbers_of_a_task": max(numbers),
        }
        if "average" in found:
            row["recovery"] = {
                task: recovered(row["test"][task], found, task) for task in study.tasks
            }
        keep(found)


def recovered(score: float, found: dict[str, Any], task: str) -> float | None:
    """Return (score - average) / (separate - average); None where averaging costs nothing."""
    low, high = (found[name]["test"][task] for name in ("average", "separate"))
    return (score - low) / (high - low) if high > low else None


def mean_recovery(seeds: dict[str, Any], method: str) -> float:
    """Average the recovery of a method over seeds and the tasks that lose by averaging."""
    values = [v for seed in seeds.values() for v in seed[method]["recovery"].values()]
    return float(np.mean([value for value in values if value is not None]))


# --- cosines ---


def cosines(folder: Path, seeds: Sequence[int], strangers: Sequence[ChempropModel]) -> Any:
    """Compute cosines of all pairs of models: of one foundation, and with strangers."""
    base = flattened(read_foundation(folder / FOUNDATION).network)
    tuned = [
        flattened(read_chemprop(folder / f"runs{seed}/{task}").members[0].network)
        for seed in seeds
        for task in TASKS
    ]
    others = [flattened(model.network) for model in strangers]

    def between(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.cosine_similarity(a, b, dim=0))

    related = [between(base, one) for one in tuned]
    unrelated = [between(base, one) for one in others]
    unrelated += [between(one, other) for one, other in combinations(others, 2)]
    unrelated += [between(one, other) for one in tuned for other in others]
    return {
        "related_pairs": len(related),
        "least_related": min(related),
        "unrelated_pairs": len(unrelated),
        "most_unrelated": max(unrelated),
        "wrong": sum(v < RELATED for v in related) + sum(v >= RELATED for v in unrelated),
    }


def main() -> None:
    """Train what is missing, measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("work/own-models"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--strangers", type=Path, nargs="*", default=[], help="models of the same shape"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    output = Path("results/own-models/merging.json")
    parser.add_argument("--output", type=Path, default=output)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(arguments.folder, arguments.data, arguments.seeds, arguments.work)
    strangers = [m for path in arguments.strangers for m in read_chemprop(path).members]
    content: dict[str, Any] = {
        "what": "four chemprop models of one foundation, merged",
        "metrics": {t: "rmse" if s.kind == "regression" else "roc_auc" for t, s in TASKS.items()},
        "cosines": cosines(arguments.folder, arguments.seeds, strangers),
        "seeds": {},
        "machine": machine(1),
    }
    for seed in arguments.seeds:
        study, work = Study.read(arguments.folder, seed), arguments.folder / f"work{seed}"
        work /= fingerprint(JOINT, repr(AdapterSettings()))
        work.mkdir(parents=True, exist_ok=True)

        def keep(found: dict[str, Any], seed: int = seed) -> None:
            content["seeds"][str(seed)] = found
            content["mean_recovery"] = {
                name: mean_recovery(content["seeds"], name)
                for name, row in found.items()
                if "recovery" in row and all(name in other for other in content["seeds"].values())
            }
            write_json(arguments.output, content)
            print(seed, list(found)[-1], content["mean_recovery"], flush=True)

        measure_methods(study, work, keep)


if __name__ == "__main__":
    main()
