"""How well contributions of atoms find what a model has learned, and what they cost.

    python -m benchmarks.atoms --data ../shared/data --weights ../shared/weights

Three measurements, written to `results/atoms.json`:

- **Planted rules.** A GCN of Hu et al. is fine-tuned, and trees are trained, on six labels that are
  SMARTS: the atoms that decide are known. Of held-out molecules that have a rule, the ROC-AUC of
  the contributions as a score of its atoms, and how often the largest one is of these atoms.
- **Deletion.** Of the released model, the log-odds lost when the fifth of a molecule's atoms with
  the largest contributions is deleted from its graph; the fifth with the smallest; a random one.
- **Cost.** CPU time of a prediction with `explain: ["atoms"]` divided by that of one without.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from sklearn.metrics import roc_auc_score

from benchmarks.measuring import RESULTS, in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.config.training import BoostedConfig, FinetuneConfig, ForestConfig
from merging.data.files import write_json
from merging.data.molecule_dataset import MoleculeDataset
from merging.data.split import Split
from merging.families.molecules import Molecules
from merging.training.forest import fingerprint_rows, fit_forest
from merging.training.supervised import initial_model, train
from models.data.located import LocatedMolecule, locate
from models.data.molecule import MolGraph, collate, pack
from models.data.smiles import featurize, read_smiles
from models.experts.adapter import stream_of_backbone
from models.experts.expert import SharedExpert
from models.experts.forest import Forest
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from models.networks.hu2020 import BackboneConfig, load_backbone
from models.released import find_artifact
from models.state_dict import load_tensors
from models.task import TaskInfo
from service.core.answer import Result
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.engine import PredictionQuery
from service.core.explaining import Explained
from service.core.explanations.atoms import explain_atoms
from service.core.local import predict
from service.settings import Settings

RULES = {
    "nitro": "[N+](=O)[O-]",
    "carboxylic_acid": "C(=O)[OH]",
    "aryl_halide": "c[F,Cl,Br,I]",
    "sulfonyl": "S(=O)(=O)",
    "ketone": "[#6][CX3](=O)[#6]",
    "tertiary_amine": "[NX3;H0;!$(NC=[O,S,N]);!$(N~[!#6])]([#6])([#6])[#6]",
}
"""Names and SMARTS of the planted rules."""
MOST_POSITIVES = 60
_FIFTH = 0.2
_TASK = "rules"
Doubles = NDArray[np.float64]
Contributions = Callable[[LocatedMolecule], Doubles]
"""Function (molecule) -> (n, C), contributions of the atoms to every label."""


@dataclass(frozen=True)
class PlantedSet:
    """Molecules with labels that are rules.

    Attributes:
        data: graphs, labels and split.
        smiles: canonical SMILES.
        atoms: for every molecule and rule, the atoms of its matches, in the order of `smiles`.
    """

    data: MoleculeDataset
    smiles: Sequence[str]
    atoms: Sequence[Sequence[set[int]]]


def planted_set(texts: Sequence[str]) -> PlantedSet:
    """Label molecules by the rules; four fifths are for training, a tenth each for choosing the
    epoch and for the test."""
    patterns = [Chem.MolFromSmarts(smarts) for smarts in RULES.values()]
    molecules = [featurize(text) for text in texts]
    smiles = [molecule.smiles for molecule in molecules]
    atoms = []
    for text in smiles:
        mol = read_smiles(text)
        atoms.append([{k for m in mol.GetSubstructMatches(p) for k in m} for p in patterns])
    labels = torch.tensor([[bool(found) for found in row] for row in atoms], dtype=torch.float32)
    rows = torch.arange(len(smiles))
    train_end, valid_end = len(rows) * 8 // 10, len(rows) * 9 // 10
    split = Split(rows[:train_end], rows[train_end:valid_end], rows[valid_end:])
    info = TaskInfo(labels=tuple(RULES))
    graphs = pack([molecule.graph for molecule in molecules])
    data = MoleculeDataset(_TASK, info, graphs, labels, split, rows.expand(2, -1).T, "", (), {})
    return PlantedSet(data, smiles, atoms)


def planted_network(planted: PlantedSet, weights: Path, epochs: int, seed: int) -> UnifiedModel:
    """Fine-tune a GCN on the rules."""
    family, shape = Molecules(), BackboneConfig(kind="gcn")
    pretrained = load_backbone(weights / "hu2020" / "gcn_supervised_contextpred.pth", shape)
    initial = {f"network.{key}": value for key, value in pretrained.state_dict().items()}
    settings = FinetuneConfig(epochs=epochs, batch_size=64, dropout=0.2)
    tasks = {_TASK: planted.data}
    model = initial_model(family, shape, tasks, initial, seed, settings.dropout)
    with TemporaryDirectory() as folder:
        made = train(model, settings, seed, Path(folder) / "resume.pt")
    backbone = family.network(shape)
    load_tensors(backbone, made.network, _TASK)
    expert = SharedExpert(stream_of_backbone(backbone.eval(), "one"), 1, tuple(RULES))
    load_tensors(expert.head, made.heads[_TASK], _TASK)
    return UnifiedModel(backbone, {_TASK: expert}, RouterConfig())


def planted_forest(planted: PlantedSet, seed: int) -> Forest:
    """Train boosted trees on the rules."""
    rows = fingerprint_rows(planted.smiles, _TASK)
    settings = ForestConfig(boosted=BoostedConfig(trees=200))
    data, inputs = planted.data, ("ecfp4", "descriptors")
    chosen = data.labels, data.split.train, "multilabel", "boosted", inputs
    return fit_forest(rows, *chosen, settings, seed)  # type: ignore[arg-type]


def of_network(model: UnifiedModel) -> Contributions:
    """Contributions of the network."""

    def contributions(molecule: LocatedMolecule) -> Doubles:
        with torch.inference_mode():
            labels = {_TASK: range(len(RULES))}
            found = model.node_sums(collate([molecule.graph]), labels, "own")
        values: Doubles = found[_TASK].contributions.numpy()
        return values

    return contributions


def of_forest(forest: Forest) -> Contributions:
    """Contributions of the trees."""

    def contributions(molecule: LocatedMolecule) -> Doubles:
        row = molecule.graph.fingerprint.numpy()  # type: ignore[attr-defined]
        split = forest.column_sums(row, range(len(RULES)))
        values = np.zeros((molecule.graph.num_nodes, len(RULES)))
        for column, where in molecule.columns.items():
            shares = np.array([*where.shares.values()])
            values[list(where.shares)] += shares[:, None] * split.contributions[:, column]
        return values

    return contributions


def found_rules(planted: PlantedSet, contributions: Contributions) -> dict[str, Any]:
    """Measure how well contributions find the atoms of rules in held-out molecules: by rule, mean
    ROC-AUC over the molecules, and how often the largest contribution is of the rule."""
    located = {
        k: locate(planted.smiles[k], fingerprint=True) for k in planted.data.split.test.tolist()
    }
    values = {k: contributions(molecule) for k, molecule in located.items()}
    found: dict[str, Any] = {}
    for column, rule in enumerate(RULES):
        positive = [
            k for k in located if 0 < len(planted.atoms[k][column]) < located[k].graph.num_nodes
        ][:MOST_POSITIVES]
        areas, tops = [], []
        for k in positive:
            mask = np.isin(np.arange(located[k].graph.num_nodes), [*planted.atoms[k][column]])
            areas.append(float(roc_auc_score(mask, values[k][:, column])))
            tops.append(bool(mask[values[k][:, column].argmax()]))
        found[rule] = {
            "molecules": len(positive),
            "roc_auc": round(float(np.mean(areas)), 4),
            "largest": round(float(np.mean(tops)), 4),
        }
    means = {
        name: np.mean([row[name] for row in found.values()]) for name in ("roc_auc", "largest")
    }
    return {"rules": found, "mean": {name: round(float(v), 4) for name, v in means.items()}}


def label_areas(planted: PlantedSet, logits: Doubles) -> dict[str, float]:
    """ROC-AUC of the predictions of every rule on the test molecules."""
    labels = planted.data.labels[planted.data.split.test].numpy()
    return {
        rule: round(float(roc_auc_score(labels[:, k], logits[:, k])), 4)
        for k, rule in enumerate(RULES)
    }


def planted_rules(
    texts: Sequence[str], weights: Path, epochs: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Plant the rules in a network and in trees, and look for them."""
    planted = planted_set(texts)
    model = planted_network(planted, weights, epochs, seed)
    forest = planted_forest(planted, seed)
    test = planted.data.split.test
    with torch.inference_mode():
        logits = model(planted.data.graphs.select(test)).logits[_TASK].numpy()
    trees = forest.outputs(fingerprint_rows([planted.smiles[k] for k in test.tolist()], _TASK))
    return {
        "molecules": len(texts),
        "epochs": epochs,
        "network": {
            "labels": label_areas(planted, logits),
            **found_rules(planted, of_network(model)),
        },
        "trees": {"labels": label_areas(planted, trees), **found_rules(planted, of_forest(forest))},
    }


def without(graph: MolGraph, atoms: NDArray[np.int64]) -> MolGraph:
    """Delete atoms and their bonds from a graph."""
    kept = torch.ones(graph.num_nodes, dtype=torch.bool)
    kept[atoms] = False
    position = kept.cumsum(0) - 1
    edges = kept[graph.edge_index].all(0)
    return MolGraph(graph.x[kept], position[graph.edge_index[:, edges]], graph.edge_attr[edges])


def deletions(texts: Sequence[str], engine: ArtifactEngine, task: str) -> dict[str, Any]:
    """Measure the output of a task's first label that is lost with a fifth of the atoms, of
    molecules whose output is positive."""
    random = np.random.default_rng(0)
    lost: dict[str, list[float]] = {"largest": [], "random": [], "smallest": []}

    def output(graph: MolGraph) -> float:
        return float(engine.split([graph], {task: (0,)}, "own", "own")[0][task].outputs[0])

    for text in texts:
        graph = locate(featurize(text).smiles).graph
        found = engine.split([graph], {task: (0,)}, "own", "own")[0][task]
        nodes, count = found.experts["own"].nodes, max(1, round(_FIFTH * graph.num_nodes))
        if nodes is None or found.outputs[0] <= 0 or graph.num_nodes < 2:
            continue
        order = nodes[:, 0].argsort()
        chosen = {
            "largest": order[-count:],
            "random": random.permutation(len(order))[:count],
            "smallest": order[:count],
        }
        for name, atoms in chosen.items():
            lost[name].append(found.outputs[0] - output(without(graph, atoms)))
    means = {name: round(float(np.mean(values)), 3) for name, values in lost.items()}
    return {"task": task, "molecules": len(lost["random"]), "mean_output_lost": means}


def cost(
    texts: Sequence[str], engine: ArtifactEngine, labels: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Measure one molecule at a time: prediction, and prediction with explanation of labels."""
    tasks = list(dict.fromkeys(label.split(".", 1)[0] for label in labels))
    query = PredictionQuery.checked("model", engine, tasks, "own")
    explained = Explained.checked(["atoms"], engine.info, query.tasks, labels)
    settings = Settings()

    def predicted() -> list[Result]:
        return [predict(query, settings, [text])[0] for text in texts]

    def with_atoms() -> list[Result]:
        return [
            explain_atoms(query, predict(query, settings, [text]), explained)[0] for text in texts
        ]

    seconds = in_turns({"predict": predicted, "explain": with_atoms}, rounds)
    scale = 1e3 / len(texts)
    return {
        "labels": len(labels),
        "milliseconds": {
            name: summary([scale * value for value in values], 3)
            for name, values in seconds.items()
        },
        "ratio": ratio(seconds["explain"], seconds["predict"]),
    }


def main() -> None:
    """Measure everything and write the file."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    options.add_argument("--molecules", type=int, default=4000)
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    texts = fixed_molecules(arguments.molecules, arguments.data)
    settings = Settings().model_copy(update={"device": "cpu", "threads": 1})
    engines = {
        name: load_engine(find_artifact(name), settings) for name in ("moleculenet-gcn", "admet")
    }
    labels = {
        "moleculenet-gcn": ["bbbp.p_np", "clintox.CT_TOX"],
        "admet": ["hia_hou.absorbed", "tox21.SR-p53"],
    }
    found = {
        "machine": machine(1),
        "planted_rules": planted_rules(texts, arguments.weights, arguments.epochs),
        "deletion": [
            deletions(texts[:300], engines["moleculenet-gcn"], task) for task in ("bbbp", "bace")
        ],
        "cost": {
            name: cost(texts[:100], engine, labels[name], arguments.rounds)
            for name, engine in engines.items()
        },
    }
    write_json(RESULTS / "atoms.json", found)
    print(found)


if __name__ == "__main__":
    main()
