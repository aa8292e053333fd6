"""Structural alerts."""

import pytest
from rdkit import Chem

from models.data.alerts import Alert, structural_alerts
from models.errors import MoleculeError


def test_alerts_name_their_catalogue_and_atoms() -> None:
    found = structural_alerts("O=C1C=CC(=O)C=C1")
    assert Alert("PAINS", "quinone_A(370)", (0, 1, 2, 3, 4, 5, 6, 7)) in found
    assert {alert.catalog for alert in found} == {"PAINS", "BRENK"}
    assert structural_alerts("CCO") == []


def test_every_occurrence_is_an_alert_with_its_own_atoms() -> None:
    smiles = "O=[N+]([O-])c1ccc([N+](=O)[O-])cc1"
    nitro = [alert for alert in structural_alerts(smiles) if alert.name == "nitro_group"]
    mol = Chem.MolFromSmiles(smiles)
    assert len(nitro) == 2
    for alert in nitro:
        symbols = [mol.GetAtomWithIdx(k).GetSymbol() for k in alert.atoms]
        assert sorted(symbols) == ["N", "O", "O"]
    assert not set(nitro[0].atoms) & set(nitro[1].atoms)


def test_an_unreadable_molecule_is_an_error() -> None:
    with pytest.raises(MoleculeError):
        structural_alerts("C1CC")
