"""What holds for every request, on generated ones: the service never fails, says what it documents,
and a molecule's answer is its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rdkit import Chem

from models.data.smiles import featurize
from models.experts.unified import Routing
from service.core.artifact_engine import load_engine
from service.core.reading import ITEM_CODES
from service.schemas import ETHANOL_GRAPH, PredictResponse, Problem
from tests.service.doubles import serving, settings_of
from tests.strategies import graph_batches

pytestmark = pytest.mark.anyio

# derandomize: a test that passed passes again; too_slow: a busy machine is no reason to fail
many = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
some = settings(many, max_examples=40)

REQUEST_CODES = {
    "invalid_json",
    "bad_request",
    "invalid_request",
    "unknown_task",
    "unknown_model",
    "too_many_molecules",
}
CLOSE = 1e-5  # what the service promises of one molecule in two batches

# --- what is asked

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
SMILES_CHARACTERS = set(
    "ABCDEFGHIKLMNOPQRSTUVWXYZabcdefghiklmnoprstuvwxyz0123456789[]()<>=#$:%/\\@+-."
)
"""All that there are in a SMILES of a molecule, element symbols included."""
smiles_characters = st.text("CCCNOScnoH[]()123%=#-+.@/\\*:$~>", max_size=24)
TOKENS = "C C N O c1ccccc1 c n [nH] [C@H] [C@@H] [N+] [O-] [H] I ( ) 1 2 = # / \\ ."
smiles_tokens = st.lists(st.sampled_from(TOKENS.split()), max_size=16).map("".join)
texts = st.one_of(any_text, smiles_characters, smiles_tokens)

_LINKS = [
    "C",
    "CC",
    "C(=O)",
    "N",
    "O",
    "S",
    "C(F)",
    "c1ccc(cc1)",
    "C1CCC(CC1)",
    "[C@H](C)",
    "[C@@H](N)",
    "C(=O)N",
    "c1cc(Cl)c(cc1)",
    "CC#CC",
]
_ENDS = [
    "C",
    "N",
    "O",
    "Cl",
    "C(=O)O",
    "C#N",
    "[N+](=O)[O-]",
    "c1ccncc1",
    "c1c[nH]c2ccccc12",
    "/C=C/C",
    "/C=C\\Cl",
]
_SALTS = ["", "", "", ".[Na+]", ".Cl", ".CCO"]


@st.composite
def molecules(draw: Any) -> str:
    """A SMILES that a chemist might have written: a chain of groups, perhaps with a counter ion."""
    return (
        "C"
        + "".join(draw(st.lists(st.sampled_from(_LINKS), max_size=4)))
        + draw(st.sampled_from(_ENDS))
        + draw(st.sampled_from(_SALTS))
    )


@st.composite
def spoiled_molecules(draw: Any, spoilers: st.SearchStrategy[str]) -> str:
    """Such a SMILES with a character or two put into it, taken out of it, or in place of one of its
    own."""
    text = draw(molecules())
    for _ in range(draw(st.integers(1, 2))):
        begin = draw(st.integers(0, len(text)))
        text = text[:begin] + draw(spoilers) + text[begin + draw(st.integers(0, 1)) :]
    return text


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.just("CCO"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["smiles", "graphs", "tasks", "model", "x", "y", ""]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@st.composite
def graphs(draw: Any) -> dict[str, Any]:
    """A graph with features from the tables; its edges may be repeated, loops, in one direction, or
    unlike in their two directions."""
    case = draw(graph_batches(symmetric=draw(st.booleans()), max_graphs=2))
    edges = list(map(tuple, case.edge_index.T.tolist()))
    if draw(st.booleans()):
        edges = sorted({(i, j) for i, j in edges if i != j})
    bonds = {
        pair: [draw(st.integers(0, 3)), draw(st.integers(0, 2))]
        for pair in sorted({(min(edge), max(edge)) for edge in edges})
    }
    attributes = [bonds[min(edge), max(edge)] for edge in edges]
    if edges and draw(st.booleans()) and draw(st.booleans()):
        attributes[draw(st.integers(0, len(edges) - 1))] = [
            draw(st.integers(0, 3)),
            draw(st.integers(0, 2)),
        ]
    atoms = [[draw(st.integers(0, 119)), draw(st.integers(0, 2))] for _ in range(len(case.h))]
    return {
        "x": atoms,
        "edge_index": [[i for i, _ in edges], [j for _, j in edges]],
        "edge_attr": attributes,
    }


def is_molecule(graph: dict[str, Any]) -> bool:
    """What `validate` says of a graph with features from the tables, in other words."""
    edges = list(zip(*graph["edge_index"], strict=True))
    features = dict(zip(edges, map(tuple, graph["edge_attr"]), strict=True))
    return len(features) == len(edges) and all(
        i != j and features.get((j, i)) == feature for (i, j), feature in features.items()
    )


@st.composite
def mutated_graphs(draw: Any) -> Any:
    """The graph of ethanol, with other values, or none, in one to three places."""
    graph = json.loads(json.dumps(ETHANOL_GRAPH))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = graph
        while place:
            key = draw(
                st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
            )
            if isinstance(place[key], list | dict) and draw(st.integers(0, 4)):
                place = place[key]
                continue
            if draw(st.integers(0, 4)):
                place[key] = draw(st.integers(-2, 125) | json_values)
            else:
                del place[key]
            break
    return graph


# --- what is answered


@pytest.fixture(scope="module")
async def client(pico_artifact: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a service with a real, tiny model: small passes, so that requests are cut, and no cache,
    so that every answer is computed."""
    async with serving(
        load_engine(pico_artifact, settings_of(device="cpu")), max_batch_cost=60, cache_bytes=0
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, content: bytes) -> list[dict[str, Any]]:
    """The items of an answer that is as documented; of a problem, one item with its code."""
    response = await client.post(
        "/predict", content=content, headers={"content-type": "application/json"}
    )
    answer = json.loads(response.content.decode("utf-8"))
    if response.status_code == 200:
        items = PredictResponse.model_validate(answer).predictions
        assert [item.index for item in items] == list(range(len(items)))
        assert all((item.error is None) == (item.tasks is not None) for item in items)
        assert all(item.error is None or item.error.code in ITEM_CODES for item in items)
        return list(answer["predictions"])
    problem = Problem.model_validate(answer)
    assert (
        response.status_code
        == problem.status
        == (400 if problem.code in {"invalid_json", "bad_request"} else 422)
    )
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.code in REQUEST_CODES.union(ITEM_CODES)
    return [
        {"index": 0, "smiles": None, "error": {"code": problem.code, "message": problem.detail}}
    ]


async def ask(client: httpx.AsyncClient, field: str, molecules: list[Any]) -> list[dict[str, Any]]:
    """An item for each molecule."""
    items = await post(client, json.dumps({field: molecules}).encode())
    assert len(items) == len(molecules)
    return items


def numbers(item: dict[str, Any]) -> list[float]:
    return [value for labels in item["tasks"].values() for value in labels.values()]


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two items say the same, wherever they stand."""
    assert (one["smiles"], one.get("error")) == (other["smiles"], other.get("error"))
    if "tasks" in one:
        assert list(one["tasks"]) == list(other["tasks"])
        assert numbers(one) == pytest.approx(numbers(other), abs=CLOSE)


@many
@given(content=st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
@example(content=b'{"smiles":"\xff"}')
async def test_any_body_is_answered(client: httpx.AsyncClient, content: bytes) -> None:
    await post(client, content)


@many
@given(
    values=st.fixed_dictionaries(
        {"smiles": texts | st.lists(texts, max_size=3)},
        optional={
            "tasks": (
                st.lists(st.sampled_from(["bbbp", "tox21", "clintox"]), max_size=3) | json_values
            ),
            "routing": st.sampled_from(get_args(Routing)) | json_values,
            "explain": st.just(["routing"]) | json_values,
            "model": st.just("pico") | any_text | json_values,
        },
    )
)
async def test_any_request_is_answered(client: httpx.AsyncClient, values: dict[str, Any]) -> None:
    await post(client, json.dumps(values).encode())


@many
@given(
    smiles=st.lists(
        texts | spoiled_molecules(st.text(st.characters(exclude_categories=()), max_size=1)),
        min_size=1,
        max_size=12,
    )
)
@example(
    smiles=[
        "CCO\u0301",
        "\u4e2dC",
        "C\u20ac",
        "\ud800",
        "C\u0000",
        "\u202e",
        "C" * 2001,
        "C" * 501,
        "",
    ]
)
async def test_any_text_is_answered_in_its_place(
    client: httpx.AsyncClient, smiles: list[str]
) -> None:
    for text, item in zip(smiles, await ask(client, "smiles", smiles), strict=True):
        if not text.strip():
            assert item["error"]["code"] == "empty_smiles"
        if "error" in item:
            assert len(item["error"]["message"]) <= 400
        else:
            assert not set(text.strip()) - SMILES_CHARACTERS


@some
@given(smiles=st.lists(molecules() | texts, min_size=2, max_size=10))
async def test_answer_is_the_same_alone_and_in_any_batch(
    client: httpx.AsyncClient, smiles: list[str]
) -> None:
    together, reversed_ = (
        await ask(client, "smiles", smiles),
        await ask(client, "smiles", smiles[::-1]),
    )
    for text, item, other in zip(smiles, together, reversed_[::-1], strict=True):
        (alone,) = await ask(client, "smiles", [text])
        check_same(alone, item)
        check_same(item, other)


@many
@given(smiles=molecules() | smiles_tokens)
@example(smiles="C[C@H](N)C(=O)O")
@example(smiles="F/C=C/F")
@example(smiles="[H]/N=C(/N)N")
@example(smiles="O=I")
@example(smiles="C[Pt@SP1](F)Cl")
async def test_canonical_smiles_is_answered_like_what_it_came_from(
    client: httpx.AsyncClient, smiles: str
) -> None:
    (item,) = await ask(client, "smiles", [smiles])
    if "error" not in item:
        (again,) = await ask(client, "smiles", [item["smiles"]])
        check_same(item, again)


@many
@given(smiles=molecules(), seed=st.integers(0, 2**16))
async def test_every_spelling_gets_the_same_answer(
    client: httpx.AsyncClient, smiles: str, seed: int
) -> None:
    spellings = list(Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 3, randomSeed=seed + 1))
    first, *others = await ask(client, "smiles", [smiles, *spellings])
    assert "error" not in first
    for other in others:
        check_same(first, other)


@some
@given(smiles=st.lists(molecules(), min_size=1, max_size=4))
async def test_graph_is_answered_like_its_smiles(
    client: httpx.AsyncClient, smiles: list[str]
) -> None:
    read = [featurize(text).graph for text in smiles]
    lists = [{name: getattr(graph, name).tolist() for name in ETHANOL_GRAPH} for graph in read]
    for of_smiles, of_graph in zip(
        await ask(client, "smiles", smiles), await ask(client, "graphs", lists), strict=True
    ):
        assert of_graph["smiles"] is None
        check_same({**of_smiles, "smiles": None}, of_graph)


@many
@given(asked=st.lists(graphs(), min_size=1, max_size=4))
async def test_graph_is_answered_if_and_only_if_it_is_a_molecule(
    client: httpx.AsyncClient, asked: list[dict[str, Any]]
) -> None:
    items = await ask(client, "graphs", asked)
    assert [item.get("error", {}).get("code") for item in items] == [
        None if is_molecule(graph) else "invalid_graph" for graph in asked
    ]
    for graph, item in zip(asked, items, strict=True):
        (alone,) = await ask(client, "graphs", [graph])
        check_same(alone, item)


@many
@given(graph=mutated_graphs())
async def test_any_change_to_a_graph_is_answered(client: httpx.AsyncClient, graph: Any) -> None:
    good = {"graphs": [ETHANOL_GRAPH, graph]}
    items = await post(client, json.dumps(good).encode())
    if len(items) == 2:
        check_same(items[0], (await ask(client, "graphs", [ETHANOL_GRAPH]))[0])
    else:
        assert items[0]["error"]["code"] == "invalid_request"
