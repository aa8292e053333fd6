import csv
import gzip
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from benchmarks.reading_rule import coloured, first_rule_graph, measure
from merging.data.molecule_dataset import MOLECULENET, DatasetSpec
from models.compiled.model import CompiledModel
from models.data.smiles import read_graph
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from tests.conftest import pico_config, random_backbone

MAPPED = "[C@H:1]([NH2:2])([CH3:3])[C:4]([OH:5])=[O:6]"
BENZAMIDINE = "[H]/N=C(/N)c1ccccc1"


def test_the_first_rule_went_by_what_the_network_does_not_see() -> None:
    assert coloured(first_rule_graph(MAPPED)) != coloured(first_rule_graph("C[C@H](N)C(=O)O"))
    assert first_rule_graph(BENZAMIDINE).num_nodes == 10
    for smiles, changed in (
        ("CCO", False),
        (MAPPED, True),
        (BENZAMIDINE, True),
        ("C[C@H](N)O", False),
    ):
        assert (coloured(first_rule_graph(smiles)) != coloured(read_graph(smiles))) == changed


@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", "C[C@H](N)C(=O)O", "F/C=C/F", "[Na+].[Cl-]"])
def test_elsewhere_the_rules_agree(smiles: str) -> None:
    assert all(
        map(torch.equal, vars(first_rule_graph(smiles)).values(), vars(read_graph(smiles)).values())
    )


def test_graphs_are_equal_to_the_order_of_atoms() -> None:
    mol = Chem.MolFromSmiles("CCOc1ccccc1")
    other = Chem.MolToSmiles(
        Chem.RenumberAtoms(mol, list(range(mol.GetNumAtoms()))[::-1]), canonical=False
    )
    assert coloured(read_graph(other)) == coloured(read_graph("CCOc1ccccc1"))
    assert coloured(read_graph("CCOc1ccccc1C")) != coloured(read_graph("CCOc1ccc(C)cc1"))


def test_measured_on_a_small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOLECULENET, "tiny", DatasetSpec(label_columns=("active",)))
    (tmp_path / "moleculenet").mkdir()
    smiles = [
        f"{'C' * k}{tail}"
        for k in range(1, 9)
        for tail in ("O", "N", "c1ccccc1", "C1CCCC1", "c1ccncc1")
    ]
    with gzip.open(tmp_path / "moleculenet/tiny.csv.gz", "wt") as file:
        csv.writer(file).writerows(
            [
                ["smiles", "active"],
                *([text, k % 2] for k, text in enumerate([*smiles, MAPPED, BENZAMIDINE])),
            ]
        )
    config = pico_config()
    model = CompiledModel(
        UnifiedModel(
            random_backbone(config), {"tiny": Expert(config, 4, ["active"])}, RouterConfig()
        )
    )
    found = measure(model, "tiny", tmp_path)
    assert (found["molecules"], found["changed"], found["of_which_other_atoms"]) == (42, 2, 1)
    assert found["own"]["test"]["first"].keys() == {"roc_auc", "ece", "brier"}
