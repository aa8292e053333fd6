"""Chemprop's own features of molecules, for tests. Run by a Python that has chemprop; nothing else
of this project is imported.

    python chemprop_oracle.py < questions.json > answers.json

A question is [smiles, mode, [flags that are true]]; an answer is null where chemprop refuses the
molecule, else {"x": [[columns that are 1 ..., mass] per atom], "bonds": [[source, target, columns
that are 1 ...] per directed edge]}. The committed golden file is made with

    python chemprop_oracle.py golden > dmpnn_golden.json
"""

import json
import sys
from typing import Any

GOLDEN = (
    ("CC(=O)Oc1ccccc1C(=O)[O-].[Na+]", ()),
    ("N[C@@H](C)C(=O)NCC#N", ()),
    ("F/C=C\\C=C(/Cl)Br", ()),
    ("C[S@](=O)c1cc[nH]c1", ("ignore_stereo",)),
    ("[2H]C([2H])([2H])[13CH2][OH:7]", ()),
    ("[H]C([H])=O", ("keep_h",)),
    ("C[N+](C)(C)CC[O-]", ("add_h",)),
    ("*c1ccc([Se]C)nc1", ()),
    ("[NH3]->[Pt](<-[NH3])(Cl)Cl", ()),
    ("FS(F)(F)(F)(F)F.FP(F)(F)(F)F", ()),
    ("C[CH2].[CH3-].[U+6].[He]", ()),
    ("C$C.C~C.C1CC~1", ()),
    ("[Fe+2].[O-2]", ()),
    ("F[Pt@SP1](F)(Cl)Cl", ()),
)
MODES = ("v1", "v2", "organic", "rigr")


def encode(x: Any, edge_index: Any, edge_attr: Any) -> dict[str, list[list[float]]]:
    """Write the features of one molecule as columns; arrays of any library. Loses nothing: a
    number that is neither 0 nor 1 is refused, beside masses, which are the last column of an
    atom."""
    atoms = [[*_ones(row[:-1]), row[-1]] for row in x.tolist()]
    ends = zip(*edge_index.tolist(), edge_attr.tolist(), strict=True)
    return {"x": atoms, "bonds": [[source, target, *_ones(row)] for source, target, row in ends]}


def _ones(row: list[float]) -> list[int]:
    assert set(row) <= {0.0, 1.0}, row
    return [column for column, value in enumerate(row) if value]


def answer(smiles: str, mode: str, flags: list[str]) -> dict[str, list[list[float]]] | None:
    """Chemprop's features of a molecule, as it reads it with these flags of `make_mol`."""
    from chemprop import data, featurizers, utils  # type: ignore[import-not-found]

    try:
        mol = utils.make_mol(smiles, **dict.fromkeys(flags, True))
    except RuntimeError:
        return None
    rigr, others = featurizers.bond.RIGRBondFeaturizer, featurizers.MultiHotBondFeaturizer
    featurize = featurizers.SimpleMoleculeMolGraphFeaturizer(
        featurizers.get_multi_hot_atom_featurizer(mode), rigr() if mode == "rigr" else others()
    )
    graph = data.BatchMolGraph([featurize(mol)])
    return encode(graph.V, graph.edge_index, graph.E)


def main() -> None:
    """Answer questions from standard input, or those of the golden file."""
    if sys.argv[1:] == ["golden"]:
        questions = [[smiles, mode, flags] for smiles, flags in GOLDEN for mode in MODES]
        lines = [json.dumps([*question, answer(*question)]) for question in questions]
        print("[\n" + ",\n".join(lines) + "\n]")
    else:
        json.dump([answer(*question) for question in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    from rdkit import RDLogger

    RDLogger.DisableLog("rdApp.*")
    main()
