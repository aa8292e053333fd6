import numpy as np
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors

from merging.data.descriptors import DESCRIPTORS, compute_descriptors

SMILES = ["CCO", "c1ccccc1C(=O)O", "CC(=O)Nc1ccc(O)cc1", "[Na+].[Cl-]"]


def test_values_are_rdkits_in_the_order_of_the_names() -> None:
    values = compute_descriptors(SMILES)
    assert values.shape == (4, len(DESCRIPTORS))
    assert len(set(DESCRIPTORS)) == len(DESCRIPTORS) == 313
    for smiles, row in zip(SMILES, values, strict=True):
        mol = Chem.MolFromSmiles(smiles)
        by_name = dict(zip(DESCRIPTORS, row.tolist(), strict=True))
        assert np.isclose(by_name["tpsa"], Descriptors.TPSA(mol))
        assert np.isclose(by_name["CrippenClogP"], Crippen.MolLogP(mol), atol=1e-5)
        assert np.isclose(by_name["PEOE_VSA_1"], Descriptors.PEOE_VSA1(mol), atol=1e-5)
        assert by_name["MQN_12"] == mol.GetNumHeavyAtoms()


def test_what_is_not_defined_is_nan() -> None:
    # two ions without a bond have no shape index
    values = compute_descriptors(["CCO", "[Na+].[Cl-]"])
    assert np.isfinite(values[0]).all()
    assert not np.isinf(values).any()
