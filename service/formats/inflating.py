"""Bodies that come compressed (`Content-Encoding`), inflated piece by piece: however far a few
bytes would go, no more than a piece of it is in memory."""

import zlib
from collections.abc import Iterator

from starlette.exceptions import HTTPException

ENCODINGS = ("gzip", "deflate")
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_READ_BYTES = 4 * 1024
_PIECE_BYTES = 64 * 1024


class UnknownEncodingError(Exception):
    """A body is compressed in a way that is not understood."""


class BrokenEncodingError(HTTPException):
    """A body cannot be inflated; an HTTPException, so that FastAPI lets it pass wherever it is
    raised."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


def inflater_of(encoding: str) -> "Inflater | None":
    """What inflates a body; None if it comes as it is.

    Args:
        encoding: the value of `Content-Encoding`, empty if there is none.

    Raises:
        UnknownEncodingError: names what is understood.
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
    """Inflates one body."""

    def __init__(self, encoding: str) -> None:
        """Prepare, for one of `ENCODINGS`; `deflate` is zlib's format, as HTTP says."""
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
        self._empty = True

    def pieces(self, data: bytes, *, last: bool) -> Iterator[bytes]:
        """What the next bytes of the body inflate to, in pieces of at most 64 KiB.

        Args:
            data: the bytes.
            last: whether the body ends with them.

        Raises:
            BrokenEncodingError: it is not of the encoding, or ends too early.
        """
        # In short pieces: what is left over is copied each time, and of files that follow each
        # other that is all behind the first one.
        for begin in range(0, len(data), _READ_BYTES):
            yield from self._inflated(data[begin : begin + _READ_BYTES])
        if last and not self._inflate.eof and not self._empty:
            raise BrokenEncodingError(f"got {self._encoding} that ends too early")

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        self._empty = False
        full = False  # then there may be more in it, though all bytes are taken
        while data or full:
            if self._inflate.eof:  # gzip files may follow each other
                if self._encoding != "gzip":
                    raise BrokenEncodingError(f"got bytes after the end of the {self._encoding}")
                self._inflate = zlib.decompressobj(_WINDOW_BITS[self._encoding])
            try:
                piece = self._inflate.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                detail = f"got a body that is not {self._encoding}, as its content encoding says"
                raise BrokenEncodingError(f"{detail}: {str(error).rpartition(': ')[2]}") from None
            data = self._inflate.unused_data or self._inflate.unconsumed_tail
            full = len(piece) == _PIECE_BYTES and not self._inflate.eof
            if piece:
                yield piece
