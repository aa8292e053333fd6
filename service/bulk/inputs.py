"""What a run without HTTP reads: a file, standard input, or SMILES one by one."""

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from models.errors import InvalidInputError
from service.core.reading import Record
from service.formats.arrow import PARQUET_MAGIC, open_parquet
from service.formats.kinds import InputKind, kind_by_name
from service.formats.molecule_files import FileFormat, MoleculeFile, decompressed, open_file

STANDARD_INPUT = "-"
_BLOCK = 1024**2
_IN_MEMORY_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class RunInput:
    """An input that can be read from its beginning more than once.

    Attributes:
        path: of the file; None for standard input and for SMILES.
        sha256: of the content.
        kind: of the file; None for SMILES.
    """

    path: Path | None
    sha256: str
    kind: InputKind | None
    _stream: BinaryIO
    _smiles: tuple[str, ...] = ()
    _smiles_column: str | None = None
    _id_field: str | None = None

    def open(self) -> MoleculeFile:
        """Open the input at its beginning.

        Raises:
            InvalidInputError: it cannot be read as what it is said to be.
        """
        if self.kind is None:
            records = (Record(text, (text,)) for text in self._smiles)
            return MoleculeFile(("smiles",), records, "utf-8", "smiles", None)
        if self.kind == "parquet":
            return open_parquet(self._stream, self._smiles_column, self._id_field)
        return open_file(self._stream, FileFormat(self.kind, self._smiles_column, self._id_field))


@contextmanager
def run_input(
    given: Sequence[str],
    kind: InputKind | None = None,
    smiles_column: str | None = None,
    id_field: str | None = None,
) -> Iterator[RunInput]:
    """Find out what the arguments of a command name: a file, standard input (`-`), or SMILES.

    One argument that is a file, or has the ending of one, is a file; several are SMILES. Standard
    input without a kind is known by its first bytes and lines: Parquet, a table with column names,
    SDF, or lines of SMILES. Gzip is unpacked.

    Args:
        given: arguments, at least one.
        kind: of the file; None to go by the ending of its name.
        smiles_column, id_field: see `FileFormat`.

    Raises:
        InvalidInputError: there is no such file, or its ending is not known, or options for files
            are given for SMILES.
        OSError: the file cannot be opened.
    """
    with contextlib.ExitStack() as opened:
        if list(given) == [STANDARD_INPUT]:
            path, stream = None, opened.enter_context(_held(sys.stdin.buffer))
            kind = kind or _kind_by_content(stream)
        elif len(given) == 1 and (kind or _is_file(given[0])):
            path = Path(given[0])
            stream = opened.enter_context(path.open("rb"))
            if stream.seekable():
                kind = kind or kind_by_name(path.name)
            else:
                stream = opened.enter_context(_held(stream))
                kind = kind or _kind_by_content(stream)
        else:
            if any(map(_is_file, given)) or STANDARD_INPUT in given:
                names = ", ".join(given)[:200]
                raise InvalidInputError(f"got {names!a}, expected one file, or SMILES only")
            if (kind, smiles_column, id_field) != (None, None, None):
                options = "--input-format, --smiles-column or --id-field"
                raise InvalidInputError(f"got {options} for SMILES, expected them for a file")
            # Bytes of an argument that are no UTF-8 become question marks, as in files.
            texts = [text.encode("utf-8", "replace") for text in given]
            digest = hashlib.sha256(b"\0".join(texts)).hexdigest()
            smiles = tuple(text.decode() for text in texts)
            yield RunInput(None, digest, None, cast("BinaryIO", None), smiles)
            return
        digest = _sha256(stream)
        if kind != "parquet":
            stream = decompressed(stream, sys.maxsize)
            opened.callback(stream.close)
        yield RunInput(path, digest, kind, stream, (), smiles_column, id_field)


@contextmanager
def _held(pipe: BinaryIO) -> Iterator[BinaryIO]:
    """Hold what comes through a pipe, which can be read once only, in memory or a temporary
    file."""
    with SpooledTemporaryFile(_IN_MEMORY_BYTES) as held:
        while block := pipe.read(_BLOCK):
            held.write(block)
        yield cast("BinaryIO", held)


def _sha256(stream: BinaryIO) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _is_file(text: str) -> bool:
    """Return whether an argument names a file: one that is there, or by its ending."""
    try:
        if text and Path(text).exists():
            return not Path(text).is_dir()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False
    try:
        kind_by_name(text)
    except InvalidInputError:
        return False
    return True


def _kind_by_content(stream: BinaryIO) -> InputKind:
    stream.seek(0)
    # Lines of SMILES are read as a table, or as SDF, where they begin like one.
    return "parquet" if stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC else "smi"
