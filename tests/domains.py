"""Molecules and applicability domains for tests."""

import numpy as np
from rdkit import Chem

from models.data.fingerprint import SIMILARITY_BITS, similarity_bits
from models.data.smiles import read_smiles
from models.domain.measured import Band, Conformal, MeasuredLabel
from models.domain.neighbours import MoleculeSet, Words, packed
from models.domain.task_domain import DomainInfo, TaskDomain

RINGS = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "C1CCNCC1", "c1ccoc1", "c1ccsc1", "C1CC1", "C1CCOC1")
LINKERS = ("", "CC", "C(=O)N", "OCC", "NC(=O)C")
TAILS = ("O", "N", "C", "CC", "CO", "C(=O)O", "C#N", "Cl", "F", "CCN", "c1ccccc1", "S(=O)(=O)N")


def molecules() -> list[str]:
    """480 molecules: a ring, a linker, a tail."""
    return [ring + linker + tail for ring in RINGS for linker in LINKERS for tail in TAILS]


def fingerprint_of(smiles: str) -> Words:
    return packed(similarity_bits(read_smiles(smiles))[None])[0]


def known_set(smiles: list[str], first_row: int = 2) -> MoleculeSet:
    """The molecules as lines of a table, whose first line has the names of columns."""
    prints = np.stack([fingerprint_of(text) for text in smiles])
    return MoleculeSet.sorted(prints, np.arange(first_row, first_row + len(smiles), dtype=np.int32))


def random_prints(count: int, seed: int = 0) -> Words:
    """Fingerprints with 1 to 200 bits, some with a single bit and some with all."""
    random = np.random.default_rng(seed)
    bits = random.random((count, SIMILARITY_BITS)) < random.random((count, 1)) * 0.2
    bits[:, 7] = True
    bits[0], bits[-1] = True, False
    bits[-1, 1023] = True
    return packed(bits)


def spellings(smiles: str) -> list[str]:
    """Other ways to write a molecule."""
    mol = Chem.MolFromSmiles(smiles)
    written = {Chem.MolToSmiles(mol, doRandom=True) for _ in range(20)}
    return [smiles, *sorted(written)][:5]


BANDS = (
    Band(
        start=0.1, end=0.4, molecules=40, metric="roc_auc", score=0.7, error=0.2, error_of_base=0.24
    ),
    Band(
        start=0.4, end=0.9, molecules=50, metric="roc_auc", score=0.9, error=0.1, error_of_base=0.25
    ),
)
CONFORMAL = Conformal(thresholds=(0.6, 0.7), coverage=(0.91, 0.88))
BROKEN = Conformal(thresholds=(0.6, 0.7), coverage=(0.95, 0.84))


def task_domain(smiles: list[str], labels: int) -> TaskDomain:
    """A domain whose first label was measured in full; of the second the sets did not hold; a third
    was not measured at all."""
    measured = (
        MeasuredLabel(bands=BANDS, conformal=CONFORMAL),
        MeasuredLabel(conformal=BROKEN),
        MeasuredLabel(),
    )
    return TaskDomain(known_set(smiles), measured[:labels])


def domain_info(molecules: int, may_show: bool = False) -> DomainInfo:
    return DomainInfo(
        molecules=molecules, file="a.csv", split="scaffold", confidence=0.9, may_show=may_show
    )
