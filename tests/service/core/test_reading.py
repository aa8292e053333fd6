import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from models.data.smiles import featurize
from service.core.reading import (
    ITEM_CODES,
    InChI,
    ItemFailure,
    MolBlock,
    MoleculeLimits,
    Parsed,
    Source,
    cost,
    read,
    read_all,
)
from service.schemas import ETHANOL_GRAPH, GraphIn, NoText

LIMITS = MoleculeLimits(max_atoms=10, max_smiles_length=40)
SMILES = [
    "CCO",
    "c1ccccc1",
    "OC(=O)C",
    "[Na+].[Cl-]",
    "C[C@H](N)C(=O)O",
    "C/C=C/C",
    "[nH]1cccc1",
    "C",
]


def graph(**changes: object) -> GraphIn:
    return GraphIn.model_validate({**ETHANOL_GRAPH, **changes})


def code_of(source: Source) -> str:
    result = read(source, LIMITS)
    assert isinstance(result, ItemFailure)
    assert result.message
    return result.code


@pytest.mark.parametrize(
    ("smiles", "code"),
    [
        ("", "empty_smiles"),
        ("   ", "empty_smiles"),
        ("not a molecule", "smiles_syntax"),
        ("C1CC", "smiles_syntax"),
        ("C\x00C", "smiles_syntax"),
        ("C" * 41, "smiles_too_long"),
        ("C" * 11, "too_many_atoms"),
        ("C(C)(C)(C)(C)C", "chemistry"),
        ("CC*", "dummy_atom"),
    ],
)
def test_unreadable_smiles(smiles: str, code: str) -> None:
    assert code_of(smiles) == code
    assert code in ITEM_CODES


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (graph(x=[]), "invalid_graph"),
        (graph(x=[[5, 0]]), "invalid_graph"),
        (graph(x=[[5, 0], [5, 0], [120, 0]]), "invalid_graph"),
        (graph(x=[[5, 0], [5, 0], [-1, 0]]), "invalid_graph"),
        (graph(x=[[5, 0], [5, 0], [7]]), "invalid_graph"),
        (graph(edge_index=[[0, 1], [1, 0]]), "invalid_graph"),
        (graph(edge_index=[[0, 1, 1, 2]]), "invalid_graph"),
        (graph(edge_index=[]), "invalid_graph"),
        (graph(edge_index=[[0, 1, 1, 3], [1, 0, 3, 1]]), "invalid_graph"),
        (graph(edge_attr=[[4, 0]] * 4), "invalid_graph"),
        (graph(x=[[5, 0]] * 11), "too_many_atoms"),
        (graph(edge_attr=[[0, 0]] * 41), "too_many_bonds"),
    ],
)
def test_unreadable_graph(source: GraphIn, code: str) -> None:
    assert code_of(source) == code
    assert code in ITEM_CODES


def test_graph_equals_its_smiles() -> None:
    from_graph, from_smiles = read(graph(), LIMITS), read("OCC", LIMITS)
    assert isinstance(from_graph, Parsed)
    assert isinstance(from_smiles, Parsed)
    assert (from_graph.smiles, from_smiles.smiles) == (None, "CCO")
    # that way round goes the canonical SMILES
    assert from_graph.graph.x.flip(0).equal(from_smiles.graph.x)
    assert from_graph.graph.edge_index.equal(from_smiles.graph.edge_index)


def test_graph_without_bonds() -> None:
    assert isinstance(read(graph(x=[[5, 0]], edge_index=[[], []], edge_attr=[]), LIMITS), Parsed)


def test_what_a_library_raises_is_the_senders_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("from deep inside")

    monkeypatch.setattr("models.families.molecules.featurize_all", broken)
    assert code_of("CCO") == "unreadable"


def mol_block(smiles: str, *, sanitize: bool = True) -> MolBlock:
    mol = Chem.MolFromSmiles(smiles, sanitize=sanitize)
    if sanitize:
        rdDepictor.Compute2DCoords(mol)
    return MolBlock(Chem.MolToMolBlock(mol, kekulize=sanitize))


def v3000(counts: str) -> MolBlock:
    return MolBlock(
        f"\n\n\n  0  0  0     0  0            999 V3000\nM  V30 BEGIN CTAB\nM  V30 {counts}\nM  V30"
        " END CTAB\nM  END\n"
    )


@pytest.mark.parametrize("smiles", SMILES)
def test_mol_block_equals_its_smiles(smiles: str) -> None:
    from_block, from_smiles = (
        read(mol_block(smiles), LIMITS),
        read(featurize(smiles).smiles, LIMITS),
    )
    assert isinstance(from_block, Parsed)
    assert isinstance(from_smiles, Parsed)
    assert from_block.smiles == from_smiles.smiles
    assert from_block.graph.x.equal(from_smiles.graph.x)
    assert from_block.graph.edge_attr.equal(from_smiles.graph.edge_attr)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (MolBlock(""), "mol_block_syntax"),
        (MolBlock("no\nmol\nblock\n"), "mol_block_syntax"),
        (mol_block("C(C)(C)(C)(C)C", sanitize=False), "chemistry"),
        (mol_block("C" * 11), "too_many_atoms"),
        (v3000("COUNTS 99999999 0 0 0 0"), "too_many_atoms"),
        (v3000("COU-\nM  V30 NTS 99999999 0 0 0 0"), "too_many_atoms"),
        (v3000("COUNTS 1 99999999 0 0 0"), "too_many_bonds"),
    ],
)
def test_unreadable_mol_block(source: MolBlock, code: str) -> None:
    assert code_of(source) == code
    assert code in ITEM_CODES


@pytest.mark.parametrize("source", [*SMILES, *map(mol_block, SMILES)])
def test_cost_is_never_below_the_number_of_atoms(source: str | MolBlock) -> None:
    molecule = read(source, LIMITS)
    assert isinstance(molecule, Parsed)
    assert cost(source, LIMITS) >= molecule.graph.num_nodes


def test_cost_is_positive_and_bounded() -> None:
    sources = (
        "",
        "C" * 1000,
        graph(x=[]),
        graph(),
        graph(x=[[5, 0]] * 100),
        MolBlock(""),
        MolBlock("\n" * 99),
    )
    assert [cost(source, LIMITS) for source in sources] == [1, 10, 1, 3, 10, 1, 10]


ETHANOL_INCHI = "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"


@pytest.mark.parametrize(
    "source",
    [
        *("CCO", "CCO |$;;HO$|", "CCO |(0.00,0.00,;1.30,0.75,;2.60,0.00,)|", "[CH3:1][13CH2]O[2H]"),
        *(ETHANOL_INCHI, InChI(ETHANOL_INCHI), mol_block("CCO").text, mol_block("CCO")),
    ],
)
def test_a_molecule_in_every_writing(source: Source) -> None:
    found = read(source, LIMITS)
    assert isinstance(found, Parsed)
    assert found.smiles == "CCO"
    (together,) = read_all([source], LIMITS)
    assert isinstance(together, Parsed)
    assert together.graph.edge_index.equal(found.graph.edge_index)
    assert cost(source, LIMITS) >= found.graph.num_nodes


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (NoText("null"), "empty_smiles"),
        (NoText("a number"), "not_text"),
        (InChI("CCO"), "inchi_syntax"),
        (InChI(""), "inchi_syntax"),
        (InChI("InChI=1S/" + "C" * 200), "smiles_too_long"),
        (InChI("InChI=1S/60CH4/h60*1H4"), "too_many_atoms"),
        (MolBlock("CCO"), "mol_block_syntax"),
        (MolBlock(ETHANOL_INCHI), "mol_block_syntax"),
        (MolBlock(mol_block("CCO").text.replace("M  END", "A    3\nCOOH\nM  END")), "dummy_atom"),
        (mol_block("CCO").text.replace("M  END", "M  STY  1   1 SRU\nM  END"), "polymer"),
        (mol_block("CCO").text + "x" * 20_000, "mol_block_syntax"),
        ("CCO |" + "r" * 800 + "|", "smiles_too_long"),
        ("C" * 41 + " |r|", "smiles_too_long"),
    ],
)
def test_unreadable_other_texts(source: Source, code: str) -> None:
    assert code_of(source) == code
    assert code in ITEM_CODES


def test_a_mol_block_is_not_too_long_for_a_smiles() -> None:
    block = mol_block("C" * 10).text
    assert len(block) > 10 * LIMITS.max_smiles_length
    assert isinstance(read(block, LIMITS), Parsed)


def test_many_atoms_are_seen_in_a_few_characters_before_they_are_read() -> None:
    assert cost("InChI=1S/60CH4/h60*1H4", LIMITS) == LIMITS.max_atoms
    assert cost(NoText("null"), LIMITS) == 1
