from rdkit import Chem

from benchmarks.atom_features import SEEN, charge, extended, forests, hydrogens, number
from merging.run import Run


def test_every_invariant_sees_what_it_says() -> None:
    amine, ammonium, imine = (Chem.MolFromSmiles(smiles).GetAtomWithIdx(1) for smiles in ("CN", "C[NH3+]", "C=N"))
    assert number(amine) == number(ammonium) == number(imine)
    assert charge(amine) == charge(imine) != charge(ammonium)
    assert len({hydrogens(atom) for atom in (amine, ammonium, imine)}) == 3
    assert len({extended(atom) for atom in (amine, ammonium, imine)}) == 3


def test_every_task_is_scored_with_every_invariant(pico_run: Run) -> None:
    found = forests(pico_run, "other")
    assert set(found) == set(SEEN)
    assert all(set(scores) == {"valid", "test"} for scores in found.values())
