"""Which answers are compressed, and which descriptions a client need not load again."""

import gzip

import httpx
import pytest

from service.http.routes.page import FOLDER
from tests.service.doubles import serving

pytestmark = pytest.mark.anyio
BROWSER = {"Accept": "text/html", "Accept-Encoding": "gzip"}


async def _raw(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> tuple[str, bytes]:
    """The encoding of an answer, and its body as it is on the wire."""
    async with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        body = b"".join([block async for block in response.aiter_raw()])
        return response.headers.get("content-encoding", ""), body


async def test_the_page_comes_compressed_to_those_who_take_it() -> None:
    async with serving() as client:
        for path, name in (("/", "index.html"), ("/page/style.css", "style.css")):
            whole = (FOLDER / name).read_bytes()
            encoding, body = await _raw(client, path, BROWSER)
            assert (encoding, gzip.decompress(body)) == ("gzip", whole)
            headers = {**BROWSER, "Accept-Encoding": "identity"}
            assert await _raw(client, path, headers) == ("", whole)


async def test_predictions_are_not_compressed() -> None:
    async with serving() as client:
        body = {"smiles": ["CCO"] * 100}
        answer = await client.post("/predict", json=body, headers={"Accept-Encoding": "gzip"})
        assert len(answer.content) > 10_000
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("path", ["/tasks", "/model"])
async def test_a_description_that_is_known_is_not_sent_again(path: str) -> None:
    async with serving() as client:
        first = await client.get(path)
        assert first.headers["cache-control"] == "private, no-cache"
        tag = first.headers["etag"]
        for known in (tag, f'"other", {tag}'):
            again = await client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        other = await client.get(path, headers={"If-None-Match": 'W/"other"'})
        assert (other.status_code, other.content) == (200, first.content)
