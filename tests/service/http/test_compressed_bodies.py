"""Compressed bodies over HTTP: as if they had come as they are, limits included."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import pytest

from service.formats.inflating import ENCODINGS
from tests.service.doubles import serving
from tests.service.formats.test_inflating import COMPRESS

pytestmark = pytest.mark.anyio


PREDICT = json.dumps({"smiles": ["CCO", "C"], "tasks": ["bbbp"]}).encode()


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("encoding", [*ENCODINGS, "X-GZip"])
async def test_every_route_with_a_body(encoding: str) -> None:
    compress = COMPRESS["gzip" if "gzip" in encoding.lower() else encoding]
    headers = {**JSON, "content-encoding": encoding}
    infer = json.dumps(
        {"inputs": [{"name": "smiles", "datatype": "BYTES", "shape": [1], "data": ["CCO"]}]}
    ).encode()
    async with serving() as client:
        plain = await client.post("/predict", content=PREDICT, headers=JSON)
        answer = await client.post("/predict", content=compress(PREDICT), headers=headers)
        assert (answer.status_code, answer.json()) == (200, plain.json())
        path = "/v2/models/dummy/infer"
        plain = await client.post(path, content=infer, headers=JSON)
        answer = await client.post(path, content=compress(infer), headers=headers)
        assert (answer.status_code, answer.json()) == (200, plain.json())
        form = client.build_request(
            "POST", "/predict/file", files={"file": ("a.smi", b"CCO\nC1\n")}
        )
        table = await client.post(
            "/predict/file",
            content=compress(form.read()),
            headers={**headers, "content-type": form.headers["content-type"]},
        )
        rows = [line.split(",")[:3] for line in table.text.splitlines()[1:]]
        assert rows == [["CCO", "", "CCO"], ["C1", "", ""]]
        lines = await client.post(
            "/predict/stream", content=compress(b'"C"\n"CC"\n' * 100), headers=headers
        )
        assert [json.loads(line)["index"] for line in lines.text.splitlines()] == list(range(200))


@pytest.mark.parametrize(
    "path", ["/predict", "/v2/models/dummy/infer", "/predict/stream", "/predict/file"]
)
async def test_encoding_that_is_not_understood_is_a_415(path: str) -> None:
    async with serving() as client:
        response = await client.post(path, content=b"x", headers={**JSON, "content-encoding": "br"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "gzip, deflate"
    assert "got content encoding 'br', expected gzip or deflate" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/predict", "/v2/models/dummy/infer", "/predict/file"])
@pytest.mark.parametrize("is_gzip", [False, True])
async def test_malformed_gzip_is_a_400_in_words(path: str, is_gzip: bool) -> None:
    async with serving() as client:
        form = client.build_request("POST", path, files={"file": ("a.smi", b"CCO\n")})
        kind, content = (
            (form.headers["content-type"], form.read())
            if path == "/predict/file"
            else ("application/json", PREDICT)
        )
        sent = gzip.compress(content)[:-3] if is_gzip else content
        response = await client.post(
            path, content=sent, headers={"content-type": kind, "content-encoding": "gzip"}
        )
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert ("ends too early" if is_gzip else "got a body that is not gzip") in response.json()[
        "detail"
    ]


@pytest.mark.parametrize("path", ["/predict", "/v2/models/dummy/infer", "/predict/file"])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_bomb_is_refused_before_it_takes_memory(path: str, encoding: str) -> None:
    head = (
        b""
        if path != "/predict/file"
        else b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.smi"\r\n\r\n'
    )
    kind = "multipart/form-data; boundary=b" if path == "/predict/file" else "application/json"
    bomb = COMPRESS[encoding](head + b" " * (50 * 1024**2))
    async with serving(max_body_bytes=1024**2, max_file_bytes=1024**2) as client:
        tracemalloc.start()
        response = await client.post(
            path, content=bomb, headers={"content-type": kind, "content-encoding": encoding}
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert peak < 20 * 1024**2


async def test_stream_inflates_as_it_comes_and_says_where_it_broke() -> None:
    def compressed() -> tuple[bytes, bytes]:
        compressor = zlib.compressobj(wbits=31)
        first = compressor.compress(b'"C"\n"CC"\n') + compressor.flush(zlib.Z_SYNC_FLUSH)
        return first, compressor.compress(b'"CCC"\n') + compressor.flush()

    async def broken() -> AsyncIterator[bytes]:
        yield compressed()[0]
        yield b"\xff\xff nonsense \xff"

    async with serving() as client:
        response = await client.post(
            "/predict/stream", content=broken(), headers={"content-encoding": "gzip"}
        )
    *answered, last = [json.loads(line) for line in response.text.splitlines()]
    assert [item["smiles"] for item in answered] == ["C", "CC"]
    assert last["error"]["code"] == "bad_request"
    assert "2 lines were answered" in last["error"]["message"]


async def test_line_without_end_in_a_stream_takes_no_memory() -> None:
    bomb = gzip.compress(b" " * (50 * 1024**2) + b'\n"C"\n')
    async with serving(max_body_bytes=1024**2) as client:
        tracemalloc.start()
        response = await client.post(
            "/predict/stream", content=bomb, headers={"content-encoding": "gzip"}
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    first, second = [json.loads(line) for line in response.text.splitlines()]
    assert (first["error"]["code"], second["smiles"]) == ("line_too_long", "C")
    assert peak < 30 * 1024**2
