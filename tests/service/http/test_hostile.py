"""What a client may send on purpose or by accident, and the answer that each of it gets:
`hostile.json`, by kind, one case a line.

A case has one input, the status and, if that is no 200, the problem's code. The input is one of:

- `smiles`: of a request for this molecule alone,
- `ethanol`: changes to the graph of ethanol, likewise,
- `graph`: a whole graph, likewise,
- `body`: written as JSON,
- `text`: the body itself, in UTF-8 or in `encoding`; `bytes`: the same, a character for each byte.

The file stays small: `{"repeat": a, "times": n}` is a string or a list n times, `{"numbered": a,
"times": n}` a pattern filled with 0 to n - 1, `{"join": [a, b]}` one string after the other. And it
is ASCII alone, so that nothing hides in it.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.core.reading import ITEM_CODES
from service.schemas import ETHANOL_GRAPH, PredictResponse, Problem
from tests.service import doubles
from tests.service.doubles import serving

pytestmark = pytest.mark.anyio

Case = dict[str, Any]
KINDS: dict[str, list[Case]] = json.loads(
    Path(__file__).with_name("hostile.json").read_text("ascii")
)
CASES = [case for cases in KINDS.values() for case in cases]
INPUTS = ("smiles", "ethanol", "graph", "body", "text", "bytes")
GOOD = {"CCO": 0.25, "CC": 0.33333334, "C": 0.5}
"""Molecules and the dummy engine's answers on bbbp."""
LONGEST_ECHO = 400


def expand(value: Any) -> Any:
    """A value of the file, written out."""
    match value:
        case {"repeat": piece, "times": int(times)}:
            return expand(piece) * times
        case {"numbered": str(pattern), "times": int(times)}:
            return "".join(pattern % k for k in range(times))
        case {"join": [*pieces]}:
            return "".join(expand(piece) for piece in pieces)
        case dict():
            return {key: expand(piece) for key, piece in value.items()}
        case list():
            return [expand(piece) for piece in value]
    return value


def molecule_of(case: Case) -> tuple[str, Any]:
    """The field of a request that takes the case's molecule, and the molecule; no field if the case
    is a whole body."""
    if "smiles" in case:
        return "smiles", expand(case["smiles"])
    if "ethanol" in case:
        return "graphs", {**ETHANOL_GRAPH, **expand(case["ethanol"])}
    return ("graphs", expand(case["graph"])) if "graph" in case else ("", None)


def body_of(case: Case) -> bytes:
    field, molecule = molecule_of(case)
    if field:
        return json.dumps({field: [molecule]}).encode()
    if "body" in case:
        return json.dumps(expand(case["body"])).encode()
    if "bytes" in case:
        return str(expand(case["bytes"])).encode("latin-1")
    return str(expand(case["text"])).encode(case.get("encoding", "utf-8"))


def headers_of(case: Case) -> dict[str, bytes]:
    given = {"content-type": "application/json", **expand(case.get("headers", {}))}
    return {name: value.encode("latin-1") for name, value in given.items()}


def texts(value: Any) -> list[str]:
    """Every string in a JSON value."""
    if isinstance(value, dict):
        return [*value, *(text for entry in value.values() for text in texts(entry))]
    return (
        [text for entry in value for text in texts(entry)]
        if isinstance(value, list)
        else [value]
        if isinstance(value, str)
        else []
    )


def shown(case: Case) -> str:
    return json.dumps(case)[:200]


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Of one application for all cases: what a case leaves behind meets the next one. Its engine
    takes every element."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doubles, "POISON", -1)
        async with serving() as client:
            yield client


async def fault_of(client: httpx.AsyncClient, case: Case) -> str | None:
    """What is wrong with the answer to a case."""
    response = await client.post("/predict", content=body_of(case), headers=headers_of(case))
    answer = json.loads(response.content.decode("utf-8"))
    got = (response.status_code, answer.get("code"))
    if got != (case["status"], case.get("code")):
        return f"got {got}: {str(answer)[:300]}"
    fine = response.status_code == 200
    if response.headers["content-type"] != (
        "application/json" if fine else "application/problem+json"
    ):
        return f"got content type {response.headers['content-type']}"
    if fine and not PredictResponse.model_validate(answer).predictions:
        return "got no predictions"
    if not fine and not Problem.model_validate(answer).detail:
        return "got no detail"
    longest = 0 if fine else max(map(len, texts(answer)))
    if longest > LONGEST_ECHO or (not fine and len(response.content) > 20_000):
        return f"got a text of {longest} characters in an answer of {len(response.content)} bytes"
    after = await client.post("/predict", json={"smiles": list(GOOD), "tasks": ["bbbp"]})
    found = [item["tasks"]["bbbp"]["p_np"] for item in after.json()["predictions"]]
    return None if found == list(GOOD.values()) else f"good molecules then got {found}"


def test_corpus_is_large_and_says_nothing_twice() -> None:
    inputs = [
        json.dumps(
            {key: value for key, value in case.items() if key not in ("status", "code")},
            sort_keys=True,
        )
        for case in CASES
    ]
    assert len(set(inputs)) == len(inputs) >= 900
    for case in CASES:
        assert sum(name in case for name in INPUTS) == 1, shown(case)
        assert (case["status"] == 200) == ("code" not in case), shown(case)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_gets_its_answer_and_the_next_request_too(
    client: httpx.AsyncClient, kind: str
) -> None:
    faults = [
        f"{shown(case)}: {fault}" for case in KINDS[kind] if (fault := await fault_of(client, case))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("field", ["smiles", "graphs"])
async def test_hostile_molecules_among_good_ones_leave_them_their_answers(
    client: httpx.AsyncClient, field: str
) -> None:
    """Every hostile molecule that gets an answer or an error of its own, a good one before each."""
    good = list(GOOD) if field == "smiles" else [ETHANOL_GRAPH]
    expected = list(GOOD.values()) if field == "smiles" else [GOOD["CCO"]]
    hostile = [
        case
        for case in CASES
        if molecule_of(case)[0] == field and case.get("code") in {None, *ITEM_CODES}
    ]
    # By size: the largest of all would not fit into one request with the others.
    bodies = sorted(
        ((json.dumps(molecule_of(case)[1]), case) for case in hostile),
        key=lambda pair: len(pair[0]),
    )
    bodies = [(text, case) for text, case in bodies if len(text) < 200_000]
    assert len(bodies) >= 50
    for begin in range(0, len(bodies), 200):
        some = bodies[begin : begin + 200]
        molecules = [
            text
            for k, (body, _) in enumerate(some)
            for text in (json.dumps(good[k % len(good)]), body)
        ]
        content = f'{{"tasks": ["bbbp"], "{field}": [{",".join(molecules)}]}}'
        response = await client.post(
            "/predict", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 200, response.text[:600]
        items = PredictResponse.model_validate_json(response.content).predictions
        assert [item.index for item in items] == list(range(2 * len(some)))
        for k, item in enumerate(items[0::2]):
            assert item.tasks == {"bbbp": {"p_np": expected[k % len(good)]}}
        for (_, case), item in zip(some, items[1::2], strict=True):
            assert (item.error and item.error.code, item.tasks is None) == (
                case.get("code"),
                "code" in case,
            ), shown(case)
            assert item.error is None or len(item.error.message) <= LONGEST_ECHO, shown(case)
