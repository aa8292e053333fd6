import asyncio

import pytest

from models.featurize import featurize
from service import parsing
from service.parsing import ITEM_CODES, MoleculeLimits, Parsed, Parser, Unreadable, read
from service.schemas import ETHANOL_GRAPH, GraphIn

LIMITS = MoleculeLimits(max_atoms=10, max_smiles_length=40)
SMILES = ["CCO", "c1ccccc1", "OC(=O)C", "[Na+].[Cl-]", "C[C@H](N)C(=O)O", "C/C=C/C", "[nH]1cccc1", "C"]


def graph(**changes: object) -> GraphIn:
    return GraphIn.model_validate({**ETHANOL_GRAPH, **changes})


def code_of(source: str | GraphIn) -> str:
    result = read(source, LIMITS)
    assert isinstance(result, Unreadable)
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
    assert from_graph.graph.x.flip(0).equal(from_smiles.graph.x)  # that way round goes the canonical SMILES
    assert from_graph.graph.edge_index.equal(from_smiles.graph.edge_index)


def test_graph_without_bonds() -> None:
    assert isinstance(read(graph(x=[[5, 0]], edge_index=[[], []], edge_attr=[]), LIMITS), Parsed)


def test_what_a_library_raises_is_the_senders_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("from deep inside")

    monkeypatch.setattr(parsing, "featurize", broken)
    assert code_of("CCO") == "unreadable"


def test_parser_keeps_the_order_over_chunks() -> None:
    parser = Parser(LIMITS)
    sources = [smiles if k % 5 else "not a molecule" for k, smiles in enumerate(SMILES * 6)]
    results = asyncio.run(parser.parse(sources))
    parser.close()
    expected = [featurize(smiles).smiles if k % 5 else None for k, smiles in enumerate(SMILES * 6)]
    assert [result.smiles if isinstance(result, Parsed) else None for result in results] == expected


@pytest.mark.parametrize("smiles", SMILES)
def test_cost_is_never_below_the_number_of_atoms(smiles: str) -> None:
    assert Parser(LIMITS).cost(smiles) >= featurize(smiles).graph.num_nodes


def test_cost_is_positive_and_bounded() -> None:
    parser = Parser(LIMITS)
    assert [parser.cost(source) for source in ("", "C" * 1000, graph(x=[]), graph(), graph(x=[[5, 0]] * 100))] == [1, 40, 1, 3, 10]
