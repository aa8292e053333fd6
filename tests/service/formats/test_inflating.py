"""Bodies that come compressed: as if they had come as they are, limits included."""

import gzip
import os
import time
import zlib
from collections.abc import Callable

import pytest

from service.formats.inflating import (
    ENCODINGS,
    BrokenEncodingError,
    Inflater,
    UnknownEncodingError,
    inflater_of,
)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


def inflate(encoding: str, *blocks: bytes) -> list[bytes]:
    inflater = Inflater(encoding)
    last = len(blocks) - 1
    return [
        chunk for k, block in enumerate(blocks) for chunk in inflater.chunks(block, last=k == last)
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [1, 7, 4096, 10**9])
@pytest.mark.parametrize(
    "content",
    [b"", b"x", os.urandom(200_000), b"\0" * 1_000_000],
    ids=["empty", "one", "random", "zeros"],
)
def test_chunks_are_what_was_compressed(encoding: str, size: int, content: bytes) -> None:
    sent = COMPRESS[encoding](content)
    blocks = [sent[begin : begin + size] for begin in range(0, len(sent), size)]
    if len(blocks) > 50_000:
        pytest.skip("a byte at a time is for the small ones")
    chunks = inflate(encoding, *blocks, b"")
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= 65_536 for chunk in chunks)


def test_gzip_files_may_follow_each_other() -> None:
    assert (
        b"".join(inflate("gzip", gzip.compress(b"a") + gzip.compress(b""), gzip.compress(b"b")))
        == b"ab"
    )


def test_thousands_of_empty_files_are_soon_done() -> None:
    started = time.process_time()
    assert inflate("gzip", gzip.compress(b"") * 10_000) == []
    assert time.process_time() - started < 2


def test_nothing_at_all_is_an_empty_body() -> None:
    assert inflate("gzip", b"") == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_cannot_be_inflated(encoding: str) -> None:
    good = COMPRESS[encoding](b"content" * 100)
    behind = "is not gzip" if encoding == "gzip" else "got bytes after the end of the deflate"
    for wrong, said in (
        (b"not at all", f"is not {encoding}"),
        (good[:-5], "ends too early"),
        (good + b"behind it", behind),
    ):
        with pytest.raises(BrokenEncodingError, match=said):
            inflate(encoding, wrong)
    broken = bytearray(good)
    broken[-5 if encoding == "gzip" else -1] ^= 1  # of the checksum
    with pytest.raises(BrokenEncodingError, match="incorrect data check"):
        inflate(encoding, bytes(broken))


@pytest.mark.parametrize("name", ["br", "zstd", "gzip, gzip", "compress", "\udcff"])
def test_encodings_that_are_not_understood(name: str) -> None:
    with pytest.raises(UnknownEncodingError, match="expected gzip or deflate"):
        inflater_of(name)


@pytest.mark.parametrize("name", ["", "identity", " Identity "])
def test_nothing_to_inflate(name: str) -> None:
    assert inflater_of(name) is None
