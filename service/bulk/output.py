"""Where the rows of a run go: to a stream, or to a file that a stopped run goes on with.

While a run is under way, its rows are in `<output>.partial` and how far it came in
`<output>.state`. The output appears, whole, when the run is done.
"""

import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Protocol

import orjson

from models.errors import ConfigError
from models.files import sync, write_atomically
from service.bulk.local import Rows
from service.formats.arrow import to_parquet
from service.formats.row_writers import RowKind

_SAVE_SECONDS = 1.0


class OutputError(ConfigError):
    """The output is there, in use, or belongs to another run."""

    code = "output_exists"


class Output(Protocol):
    """Takes the rows of a run in order.

    Attributes:
        answered: number of records whose rows it has.
        codes: number of failed records by error code.
    """

    answered: int
    codes: Counter[str]

    def begin(self, header: bytes, run: Mapping[str, Any]) -> None:
        """Open the output. With `run`, all that its rows depend on, a stopped run is known again;
        `answered` says how far it came."""
        ...

    def append(self, rows: Rows) -> None:
        """Write the rows of the next group."""
        ...

    def finish(self) -> None:
        """Complete the output."""
        ...

    def close(self) -> None:
        """Close the output; what is not finished can go on later."""
        ...


class StreamOutput:
    """Writes rows to a stream as they come; Parquet, which has its index at its end, when all are
    there."""

    def __init__(self, stream: BinaryIO, kind: RowKind) -> None:
        self._stream = stream
        self._folder = TemporaryDirectory(prefix="gmerging-") if kind == "parquet" else None
        self._rows = stream if self._folder is None else (self._path("rows")).open("wb")
        self.answered, self.codes = 0, Counter[str]()

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / name

    def begin(self, header: bytes, run: Mapping[str, Any]) -> None:
        """Write the header; a stream is never gone on with."""
        self._rows.write(header)
        self._rows.flush()

    def append(self, rows: Rows) -> None:
        """Write the rows of the next group."""
        self._rows.write(rows.data)
        self._rows.flush()
        self.answered += rows.count
        self.codes.update(rows.codes)

    def finish(self) -> None:
        """Write the Parquet file."""
        if self._folder is None:
            return
        to_parquet(self._path("rows"), self._path("parquet"))
        with self._path("parquet").open("rb") as made:
            shutil.copyfileobj(made, self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Remove temporary files."""
        if self._folder is not None:
            self._rows.close()
            self._folder.cleanup()


class FileOutput:
    """Writes rows to a file."""

    def __init__(self, path: Path, kind: RowKind, *, replace: bool = False) -> None:
        """Describe an output; `begin` opens it.

        Args:
            path: the file.
            kind: of the rows.
            replace: whether a file that is there, and a stopped run of other input, is replaced.

        Raises:
            OutputError: the file is there.
        """
        self._path, self._kind, self._replace = path, kind, replace
        self._partial = path.with_name(f"{path.name}.partial")
        self._state = path.with_name(f"{path.name}.state")
        if path.exists() and not replace:
            raise OutputError(f"got {path}, which exists, expected a new file, or --replace")
        self._rows: BinaryIO | None = None
        self._run: Mapping[str, Any] = {}
        self._saved = 0.0
        self.answered, self.codes = 0, Counter[str]()

    def begin(self, header: bytes, run: Mapping[str, Any]) -> None:
        """Open the output where a stopped run of the same input, model and options left it.

        Raises:
            OutputError: a stopped run is of other ones, or a run is under way.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._run = run
        rows = self._rows = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"got {self._partial}, which another run writes, expected to be the only one"
            ) from None
        end = self._restore()
        rows.truncate(end)
        rows.seek(end)
        if not end:
            rows.write(header)
        self._save()

    def _restore(self) -> int:
        """Restore the state of a stopped run, and return the end of its rows."""
        if not self._state.is_file():
            return 0
        state = orjson.loads(self._state.read_bytes())
        before, now = state["run"], orjson.loads(orjson.dumps(self._run))
        differs = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differs and not self._replace:
            got = f"got {self._partial} of a stopped run with other {', '.join(sorted(differs))}"
            raise OutputError(f"{got}, expected the same, or --replace to start over")
        if differs or self._partial.stat().st_size < state["bytes"]:
            return 0
        self.answered, self.codes = state["answered"], Counter(state["codes"])
        return int(state["bytes"])

    def append(self, rows: Rows) -> None:
        """Write the rows of the next group, and save the state every second."""
        assert self._rows is not None
        self._rows.write(rows.data)
        self.answered += rows.count
        self.codes.update(rows.codes)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        assert self._rows is not None
        self._rows.flush()
        os.fsync(self._rows.fileno())
        state = {
            "run": self._run,
            "answered": self.answered,
            "codes": self.codes,
            "bytes": self._rows.tell(),
        }
        data = orjson.dumps(state)
        write_atomically(self._state, lambda path: path.write_bytes(data))
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Put the whole output in its place, and remove the state."""
        self._save()
        if self._kind == "parquet":
            write_atomically(self._path, lambda path: to_parquet(self._partial, path))
            self._partial.unlink()
        else:
            self._partial.replace(self._path)
            sync(self._path.parent)
        self._state.unlink()

    def close(self) -> None:
        """Save how far the run came, unless it is finished, and close the file."""
        if self._rows is None:
            return
        if self._saved and self._state.exists():
            self._save()
        self._rows.close()
        self._rows = None
