"""Molecules for speed measurements: drawn from the HIV set with a fixed seed, all valid in strict
mode.

    python -m benchmarks.molecules [count] > work/molecules.txt
"""

import gzip
import random
import sys
from pathlib import Path

from merging.data.molecule_dataset import MOLECULENET, find_source
from merging.data.molecule_files import read_molecules
from models.data.smiles import featurize
from models.errors import DataError, MoleculeError


def fixed_molecules(
    count: int = 2000, data: Path = Path("../shared/data"), work: Path = Path("work")
) -> list[str]:
    """Draw distinct SMILES of the HIV set with a fixed seed; a smaller draw is the start of a
    larger one.

    Raises:
        DataError: the set has fewer readable molecules.
    """
    spec = MOLECULENET["hiv"]
    source = find_source("hiv", spec, data, work / "data")
    smiles = list(dict.fromkeys(read_molecules(source, spec.smiles_column)))
    random.Random(0).shuffle(smiles)
    readable = (text for text in smiles if _is_readable(text))
    drawn = [text for text, _ in zip(readable, range(count), strict=False)]
    if len(drawn) < count:
        raise DataError(f"got {len(drawn)} readable molecules, expected {count}")
    return drawn


def library_molecules(
    count: int = 2000, data: Path = Path("../shared/data"), *, stereo: bool = False
) -> list[str]:
    """Draw SMILES of the screening library with a fixed seed, only those with marks of stereo if
    asked.

    Raises:
        DataError: the library has fewer readable molecules.
    """
    with gzip.open(data / "smiles" / "smiles.txt.gz", "rt") as file:
        smiles = file.read().split()
    drawn = random.Random(0).sample(smiles, min(len(smiles), 40 * count))
    wanted = (text for text in drawn if not stereo or set("@/\\") & set(text))
    readable = (text for text in wanted if _is_readable(text))
    found = [text for text, _ in zip(readable, range(count), strict=False)]
    if len(found) < count:
        raise DataError(f"got {len(found)} readable molecules, expected {count}")
    return found


def _is_readable(smiles: str) -> bool:
    try:
        featurize(smiles)
    except MoleculeError:
        return False
    return True


if __name__ == "__main__":
    print(*fixed_molecules(*map(int, sys.argv[1:2])), sep="\n")
