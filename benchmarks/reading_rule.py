"""Effects of reading rule 2 (`models.data.smiles.READING_RULE`) on graphs, splits and scores of the
released model.

    python -m benchmarks.reading_rule --data ../shared/data

The released model was trained and measured on molecules read by the first rule. Here it answers
the validation and test molecules of the split that it was trained on, read by the first and by the
second. Writes `results/reading_rule.json`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch import Tensor

from benchmarks.measuring import RELEASED, RESULTS, machine
from merging.data.files import read_json, write_json
from merging.data.molecule_dataset import MOLECULENET
from merging.data.molecule_tables import read_molecule_table
from merging.data.split import Split, scaffold_split
from merging.targets.calibration import brier_score, expected_calibration_error
from merging.targets.metrics import compute_outputs, roc_auc
from models.artifact import load_artifact
from models.compiled.model import CompiledModel
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, pack
from models.data.molecule_features import Drawing, build_graphs
from models.data.smiles import read_graph, read_smiles
from models.data.smiles_parser import ParsedSmiles
from models.errors import MoleculeError
from models.experts.unified import Routing

ROUTINGS: tuple[Routing, ...] = ("own", "moe")
_ORDER_MATTERS = ("@", "/", "\\", "[H]", "[IH", "->", "<-")


@dataclass(frozen=True)
class Rows:
    """A data set as text: the molecules that both rules read.

    Attributes:
        smiles: G texts.
        labels: (G, C), NaN where missing.
    """

    smiles: list[str]
    labels: Tensor


def read_rows(task: str, data: Path) -> Rows:
    """Read the published rows of a data set."""
    table = read_molecule_table(data / "moleculenet" / f"{task}.csv.gz", MOLECULENET[task])
    kept = [k for k, text in enumerate(table.molecules) if _first_rule_molecule(text) is not None]
    labels = torch.tensor([label.values for label in table.labels]).T[kept]
    return Rows([table.molecules[k] for k in kept], labels)


def _first_rule_molecule(smiles: str) -> Chem.Mol | None:
    """Parse a SMILES by rule 1 in tolerant mode: atom maps, isotopes and kept hydrogens stay."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None and (mol := Chem.MolFromSmiles(smiles, sanitize=False)) is not None:
        mol.UpdatePropertyCache(strict=False)
        steps = Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES
        if Chem.SanitizeMol(mol, steps, catchErrors=True) != Chem.SANITIZE_NONE:
            return None
    return mol if mol is not None and mol.GetNumAtoms() else None


def first_rule_graph(smiles: str) -> MolGraph:
    """Build the graph by rule 1: features of RDKit's canonical SMILES, or of the alphabetically
    first of those that alternate.
    """
    mol, seen = _first_rule_molecule(smiles), dict[str, Chem.Mol]()
    canonical = str(Chem.MolToSmiles(mol))
    if any(mark in canonical for mark in _ORDER_MATTERS):
        while canonical not in seen and len(seen) < 8:
            mol = seen[canonical] = _first_rule_molecule(canonical)
            canonical = str(Chem.MolToSmiles(mol))
        if canonical in seen:
            canonical = min(list(seen)[list(seen).index(canonical) :])
        mol = seen.get(canonical, mol)
    (graph,) = build_graphs([Drawing(ParsedSmiles(mol, canonical, False, False), canonical)], False)
    if isinstance(graph, MoleculeError):
        raise graph
    return graph


def scaffold(mol: Chem.Mol) -> str:
    """Compute the Bemis-Murcko scaffold with chirality, by which the data sets are split; the
    molecule itself where RDKit refuses.
    """
    try:
        return str(MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=True))
    except ValueError:
        return str(Chem.MolToSmiles(mol))


def coloured(graph: MolGraph) -> list[int]:
    """Refine the colours of all atoms by their neighbourhoods, and sort them: equal for graphs that
    differ only in the order of atoms.
    """
    colours = [hash(tuple(row)) for row in graph.x.tolist()]
    pairs, attributes = graph.edge_index.T.tolist(), graph.edge_attr.tolist()
    edges = [(*pair, tuple(attr)) for pair, attr in zip(pairs, attributes, strict=True)]
    for _ in range(12):
        near: list[list[Any]] = [[] for _ in colours]
        for source, target, attr in edges:
            near[target].append((colours[source], attr))
        around = [tuple(sorted(neighbours)) for neighbours in near]
        colours = [hash(colour) for colour in zip(colours, around, strict=True)]
    return sorted(colours)


def measure(model: CompiledModel, task: str, data: Path) -> dict[str, Any]:
    """Count changed graphs, and score by both rules, for one task."""
    rows = read_rows(task, data)
    first = [first_rule_graph(text) for text in rows.smiles]
    second = [_second_rule_graph(text) for text in rows.smiles]
    rewritten = [k for k in range(len(first)) if not _equal(first[k], second[k])]
    changed = [k for k in rewritten if coloured(first[k]) != coloured(second[k])]
    split, moved = _splits(rows.smiles)
    found: dict[str, Any] = {
        "molecules": len(first),
        "changed": len(changed),
        "of_which_other_atoms": sum(first[k].num_nodes != second[k].num_nodes for k in changed),
        "changed_in_valid": len(set(changed) & set(split.valid.tolist())),
        "changed_in_test": len(set(changed) & set(split.test.tolist())),
        "rows_that_a_new_split_would_move": moved,
    }
    for routing in ROUTINGS:
        found[routing] = {}
        for name, chosen in (("valid", split.valid), ("test", split.test)):
            scores = logits(model, task, routing, [first[k] for k in chosen.tolist()])
            again = [k for k, row in enumerate(chosen.tolist()) if row in set(changed)]
            by_rule = {"first": scores, "second": scores.clone()}
            if again:
                graphs = [second[int(chosen[k])] for k in again]
                by_rule["second"][again] = logits(model, task, routing, graphs)
            labels = rows.labels[chosen]
            found[routing][name] = {rule: quality(labels, value) for rule, value in by_rule.items()}
            moves = (by_rule["first"].sigmoid() - by_rule["second"].sigmoid()).abs()
            found[routing][name]["largest_move_of_a_probability"] = round(float(moves.max()), 4)
    return found


def _second_rule_graph(smiles: str) -> MolGraph:
    return read_graph(smiles, strict=False)


def _equal(left: MolGraph, right: MolGraph) -> bool:
    return all(map(torch.equal, vars(left).values(), vars(right).values()))


def _splits(smiles: list[str]) -> tuple[Split, int]:
    """Compute the split by rule 1, which the model was trained on, and the number of rows that rule
    2 moves to another subset.
    """
    old = [scaffold(_first_rule_molecule(text)) for text in smiles]
    new = list(old)
    for k, text in enumerate(smiles):
        if "[" in text:  # else rule 2 removes nothing
            new[k] = scaffold(read_smiles(text, strict=False))
    splits = [scaffold_split(old), scaffold_split(new)]
    subsets = torch.zeros((2, len(smiles)), dtype=torch.int64)
    for subset, split in zip(subsets, splits, strict=True):
        subset[split.valid], subset[split.test] = 1, 2
    return splits[0], int((subsets[0] != subsets[1]).sum())


def logits(model: CompiledModel, task: str, routing: Routing, graphs: list[MolGraph]) -> Tensor:
    """Compute logits (G, C) of a task, as the service does."""

    def forward(batch: GraphBatch) -> Tensor:
        return model(batch, [task], routing).logits[task]

    return compute_outputs(
        forward, pack(graphs), torch.arange(len(graphs)), torch.device("cpu"), 512
    )


def quality(labels: Tensor, scores: Tensor) -> dict[str, float]:
    """Compute ROC-AUC and the calibration figures of the model card."""
    return {
        "roc_auc": round(roc_auc(labels, scores).mean, 5),
        "ece": round(expected_calibration_error(scores.sigmoid(), labels), 5),
        "brier": round(brier_score(scores.sigmoid(), labels), 5),
    }


def main() -> None:
    """Measure the tasks of the released model and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("tasks", nargs="*", help="all of the model's if none is named")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    artifact = load_artifact(RELEASED)
    model, path = CompiledModel(artifact.model), RESULTS / "reading_rule.json"
    found: dict[str, Any] = {
        "machine": machine(1),
        "artifact": artifact.manifest.name,
        "tasks": (read_json(path) or {}).get("tasks", {}),
    }
    with rdBase.BlockLogs():
        for task in arguments.tasks or artifact.manifest.tasks:
            found["tasks"][task] = measure(model, task, arguments.data)
            print(task, found["tasks"][task], flush=True)
            write_json(path, found)


if __name__ == "__main__":
    main()
