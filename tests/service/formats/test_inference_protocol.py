"""Requests of the Open Inference Protocol: what is read, and what is refused."""

import json
import re
import struct
from typing import Any

import pytest

from models.errors import InvalidInputError
from service.formats.inference_protocol import read_request


def body(*smiles: str, **changes: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "smiles", "datatype": "BYTES", "shape": [len(smiles)], "data": list(smiles)}
        ],
        **changes,
    }


def binary(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def with_binary(data: bytes, shape: list[int], size: int | None = None) -> tuple[bytes, str]:
    tensor = {
        "name": "smiles",
        "datatype": "BYTES",
        "shape": shape,
        "parameters": {"binary_data_size": len(data) if size is None else size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, str(len(head))


@pytest.mark.parametrize(
    ("shape", "data"), [([2], ["C", "CC"]), ([2, 1], ["C", "CC"]), ([2, 1], [["C"], ["CC"]])]
)
def test_json_input(shape: list[int], data: list[Any]) -> None:
    content = json.dumps(
        {"inputs": [{"name": "smiles", "datatype": "BYTES", "shape": shape, "data": data}]}
    ).encode()
    assert read_request(content, None)[1] == ["C", "CC"]


def test_binary_input() -> None:
    assert read_request(*with_binary(binary(b"C", "Cé".encode(), b""), [3]))[1] == ["C", "Cé", ""]


def test_parameters_that_the_protocol_knows_are_passed_over_and_slips_are_not() -> None:
    known = {"sequence_id": 1, "priority": 2, "timeout": 3, "routing": "moe"}
    request, _ = read_request(json.dumps(body("C", parameters=known)).encode(), None)
    assert request.parameters.routing == "moe"
    slip = json.dumps(body("C", parameters={"routng": "moe"})).encode()
    message = "parameters: got an unknown parameter 'routng', did you mean 'routing'"
    with pytest.raises(InvalidInputError, match=message):
        read_request(slip, None)


INPUT = {"name": "smiles", "datatype": "BYTES", "shape": [1], "data": ["C"]}


def changed(**changes: Any) -> bytes:
    """A request for one molecule, with changes to its input."""
    return json.dumps({"inputs": [{**INPUT, **changes}]}).encode()


SHAPE = "expected [N] or [N, 1] with N elements, at least one"
LENGTH = "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (b"", None, "body: Invalid JSON: EOF while parsing a value"),
        (b"[]", None, "body: Input should be an object"),
        (b'{"inputs": []}', None, "inputs: List should have at least 1 item"),
        (changed(name="graph"), None, "inputs/0/name: Input should be 'smiles'"),
        (changed(datatype="FP32"), None, "inputs/0/datatype: Input should be 'BYTES'"),
        (changed(shape=[2]), None, f"smiles: got shape [2] and 1 elements, {SHAPE}"),
        (changed(shape=[1, 1, 1]), None, "inputs/0/shape: List should have at most 2 items"),
        (changed(shape=[0], data=[]), None, f"smiles: got shape [0] and 0 elements, {SHAPE}"),
        (
            changed(parameters={"binary_data_size": 3}),
            *(None, "smiles: got both of data and binary_data_size, expected exactly one"),
        ),
        (
            json.dumps(body("C", parameters={"routing": "best"})).encode(),
            *(None, "parameters/routing: Input should be 'moe', 'own' or 'merged'"),
        ),
        (*with_binary(binary(b"C"), [2]), f"smiles: got shape [2] and 1 elements, {SHAPE}"),
        (
            *with_binary(binary(b"C"), [1], size=4),
            "smiles: got binary_data_size 4, expected the 5 bytes behind the JSON",
        ),
        (
            *with_binary(binary(b"C") + b"\x01\x00", [1]),
            "smiles: got 2 bytes at the end, expected a length of 4 bytes and an element",
        ),
        (
            *with_binary(struct.pack("<I", 2**32 - 1) + b"C", [1]),
            "smiles: got an element of 4294967295 bytes, of which 1 are there",
        ),
        (b"{}", "x", f"{LENGTH}: got 'x', expected at most the 2 bytes of the body"),
        (b"{}", "-1", f"{LENGTH}: got '-1', expected at most the 2 bytes of the body"),
        (b"{}", "3", f"{LENGTH}: got '3', expected at most the 2 bytes of the body"),
        (b"{}", "9" * 50, f"{LENGTH}: got '99999999999999999999', expected at most the 2 bytes"),
    ],
)
def test_what_is_not_the_protocol(content: bytes, length: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        read_request(content, length)
