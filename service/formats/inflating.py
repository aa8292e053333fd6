"""Decompression of request bodies (`Content-Encoding`), chunk by chunk.

At most 64 KiB of decompressed data are in memory, however small the compressed body is.
"""

import zlib
from collections.abc import Iterator

from starlette.exceptions import HTTPException

ENCODINGS = ("gzip", "deflate")
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_READ_BYTES = 4 * 1024
_CHUNK_BYTES = 64 * 1024


class UnknownEncodingError(Exception):
    """The content encoding of a body is not supported."""


class BrokenEncodingError(HTTPException):
    """A body cannot be decompressed.

    It is an HTTPException because FastAPI turns any other exception that is raised while a body is
    read into a 400 without a reason.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


def inflater_of(encoding: str) -> "Inflater | None":
    """Return the decompressor for a content encoding; None if the body is not compressed.

    Args:
        encoding: value of `Content-Encoding`; empty if the header is missing.

    Raises:
        UnknownEncodingError: names the supported encodings.
    """
    name = encoding.strip().lower()
    name = {"": "identity", "x-gzip": "gzip"}.get(name, name)
    if name == "identity":
        return None
    if name not in ENCODINGS:
        expected = f"{' or '.join(ENCODINGS)}, or none"
        raise UnknownEncodingError(f"got content encoding {encoding[:64]!a}, expected {expected}")
    return Inflater(name)


class Inflater:
    """Decompressor of one body."""

    def __init__(self, encoding: str) -> None:
        """Start a body.

        Args:
            encoding: one of `ENCODINGS`; `deflate` is the zlib format, as HTTP defines it.
        """
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
        self._empty = True

    def chunks(self, data: bytes, *, last: bool) -> Iterator[bytes]:
        """Decompress the next bytes of the body, in chunks of at most 64 KiB.

        Args:
            data: the compressed bytes.
            last: whether the body ends with them.

        Raises:
            BrokenEncodingError: the data are not of the encoding, or end too early.
        """
        # In blocks of 4 KiB: zlib copies the unused rest at the end of every member, which would be
        # quadratic for a body of many small gzip members.
        for begin in range(0, len(data), _READ_BYTES):
            yield from self._inflated(data[begin : begin + _READ_BYTES])
        if last and not self._inflate.eof and not self._empty:
            raise BrokenEncodingError(f"got {self._encoding} that ends too early")

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        self._empty = False
        full = False  # the output was full: more may follow without further input
        while data or full:
            if self._inflate.eof:  # a gzip body may have several members
                if self._encoding != "gzip":
                    raise BrokenEncodingError(f"got bytes after the end of the {self._encoding}")
                self._inflate = zlib.decompressobj(_WINDOW_BITS[self._encoding])
            try:
                chunk = self._inflate.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                detail = f"got a body that is not {self._encoding}, as its content encoding says"
                raise BrokenEncodingError(f"{detail}: {str(error).rpartition(': ')[2]}") from None
            data = self._inflate.unused_data or self._inflate.unconsumed_tail
            full = len(chunk) == _CHUNK_BYTES and not self._inflate.eof
            if chunk:
                yield chunk
