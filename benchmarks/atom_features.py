"""What does a network lose that sees of an atom only what Hu et al. 2020 show it? Random forests on fingerprints that see the same.

    python -m benchmarks.atom_features bace bbbp clintox sider --seed 0

Writes `results/<setting>/atom_features-seed<N>.json`: ROC-AUC of both parts for ECFP4 as it is, and for circular substructures of that radius in
which atoms are told apart by atomic number alone, with formal charge, with the number of hydrogens, with both.
"""

from rdkit import Chem

from benchmarks.common import parser, run_of, store
from merging.datasets import load_smiles
from merging.fingerprints import Invariant, fit_predict
from merging.results import both_parts
from merging.run import Run


def number(atom: Chem.Atom) -> int:
    """What Hu et al.'s networks see, but for chirality."""
    return int(atom.GetAtomicNum())


def charge(atom: Chem.Atom) -> int:
    """And the formal charge."""
    return number(atom) * 32 + int(atom.GetFormalCharge()) + 16


def hydrogens(atom: Chem.Atom) -> int:
    """And the number of hydrogens."""
    return number(atom) * 32 + int(atom.GetTotalNumHs())


def extended(atom: Chem.Atom) -> int:
    """And both: `atom_features: extended` of a backbone."""
    return charge(atom) * 32 + int(atom.GetTotalNumHs())


SEEN: dict[str, Invariant | None] = {"ecfp4": None, "number": number, "charge": charge, "hydrogens": hydrogens, "extended": extended}


def forests(run: Run, task: str) -> dict[str, dict[str, float]]:
    """Scores of a task by what is seen of its atoms."""
    dataset, compare = run.dataset(task), run.config.compare
    smiles = load_smiles(dataset, run.config.dataset_for(task), run.data, run.work / "data")
    trees = compare.forest_trees_by_task.get(task, compare.forest_trees or 500)
    found = {name: fit_predict(dataset, smiles, trees, run.seed, invariant=invariant) for name, invariant in SEEN.items()}
    return {name: both_parts(dataset, lambda part, _, scores=scores: scores[part]) for name, scores in found.items()}


def main() -> None:
    """Measure each task asked for; results of others that are in the file stay."""
    options = parser(__doc__)
    options.add_argument("tasks", nargs="+")
    arguments = options.parse_args()
    run = run_of(arguments)
    for task in arguments.tasks:
        found = forests(run, task)
        print(task, found, flush=True)
        store(run, "atom_features", task, found)


if __name__ == "__main__":
    main()
