"""Where shards are: local paths, and addresses of other file systems, such as `s3://bucket/key`.

Arrow's own file systems (S3, Google Cloud, HDFS) come first, others by fsspec, if its package for
them is installed. Credentials and endpoints come from the environment, as these libraries read
them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, BinaryIO, Protocol, cast

from models.errors import InvalidInputError
from models.extras import optional_package
from models.files import sync, temporary_beside

_BLOCK = 1024**2


@dataclass(frozen=True)
class Identity:
    """By which a file is known to be unchanged.

    Attributes:
        size: in bytes.
        modified: time of the last change, nanoseconds since 1970.
    """

    size: int
    modified: int


@dataclass(frozen=True)
class Found:
    """A file in a folder: its path relative to the folder, its address, and its size in bytes."""

    name: str
    address: str
    size: int


class Files(Protocol):
    """Files of one kind of place. A missing file raises FileNotFoundError, other failures
    OSError."""

    def identity(self, address: str) -> Identity:
        """Return by what a file is known to be unchanged."""
        ...

    def listed(self, address: str) -> list[Found]:
        """Return the files below a folder in the order of their names, or the file itself."""
        ...

    def opened(self, address: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file for reading, at any position."""
        ...

    def looked_into(self, address: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file for reading little of it."""
        ...

    def small(self, address: str) -> bytes | None:
        """Return the content of a small file; None if there is none."""
        ...

    def put(self, address: str, content: bytes) -> None:
        """Write a small file in one step."""
        ...

    def remove(self, address: str) -> None:
        """Remove a file, if it is there."""
        ...

    def writing(self, address: str) -> contextlib.AbstractContextManager["Writing"]:
        """Write a file beside its place; it is moved there when the `with` block ends well, and
        removed if it raises."""
        ...


@dataclass(frozen=True)
class Writing:
    """A file being written: the local path to fill, and the address of what lies beside its place
    meanwhile."""

    path: Path
    temporary: str


def is_remote(address: str) -> bool:
    """Return whether an address is of another file system than this machine's."""
    return "://" in address


def files_at(address: str) -> Files:
    """Return what reads and writes the files of an address's place.

    Raises:
        InvalidInputError: nothing reads such addresses.
    """
    return _Remote() if is_remote(address) else _Local()


def joined(folder: str, name: str) -> str:
    """Return the address of a file in a folder."""
    return f"{folder.rstrip('/') or '/'}/{name}".replace("//", "/", folder == "/")


def beside(address: str, suffix: str) -> str:
    """Return the address of a hidden file beside another; readers of whole folders skip it."""
    folder, _, name = address.rpartition("/")
    hidden = f".{name}{suffix}"
    return f"{folder}/{hidden}" if folder or address.startswith("/") else hidden


class _Local:
    def identity(self, address: str) -> Identity:
        found = os.stat(address)
        return Identity(found.st_size, found.st_mtime_ns)

    def listed(self, address: str) -> list[Found]:
        root = Path(address)
        if root.is_file():
            return [Found(root.name, str(root.absolute()), root.stat().st_size)]
        if not root.is_dir():
            raise FileNotFoundError(2, "no such file or folder", address)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return [
            Found(path.relative_to(root).as_posix(), str(path.absolute()), path.stat().st_size)
            for path in paths
        ]

    @contextmanager
    def opened(self, address: str) -> Iterator[BinaryIO]:
        with open(address, "rb") as stream:
            yield stream

    looked_into = opened

    def small(self, address: str) -> bytes | None:
        try:
            return Path(address).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, address: str, content: bytes) -> None:
        # Not synced to the disk: a note that a power cut loses costs nothing but a repetition.
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, address: str) -> None:
        Path(address).unlink(missing_ok=True)

    @contextmanager
    def writing(self, address: str) -> Iterator[Writing]:
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            yield Writing(temporary, str(temporary))
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


class _Remote:
    def identity(self, address: str) -> Identity:
        found = self._info(address)
        return Identity(found.size, found.mtime_ns or 0)

    def _info(self, address: str) -> Any:
        system, path = _located(address)
        found = system.get_file_info(path)
        if not found.is_file:
            raise FileNotFoundError(2, "no such file", address)
        return found

    def listed(self, address: str) -> list[Found]:
        system, path = _located(address)
        here = system.get_file_info(path)
        if here.is_file:
            return [Found(here.base_name, address, here.size)]
        selector = _arrow_files().FileSelector(path, recursive=True)
        prefix = path.rstrip("/") + "/"
        found = [info for info in system.get_file_info(selector) if info.is_file]
        names = {info.path.removeprefix(prefix): info.size for info in found}
        return [Found(name, joined(address, name), size) for name, size in sorted(names.items())]

    @contextmanager
    def opened(self, address: str) -> Iterator[BinaryIO]:
        # A copy: tables are read from their beginning twice, and SDF files too.
        system, path = _located(address)
        self._info(address)
        with TemporaryFile(prefix="gmerging-") as copy:
            with system.open_input_stream(path) as source:
                shutil.copyfileobj(source, copy, _BLOCK)
            copy.seek(0)
            yield cast("BinaryIO", copy)

    @contextmanager
    def looked_into(self, address: str) -> Iterator[BinaryIO]:
        system, path = _located(address)
        self._info(address)
        with system.open_input_file(path) as stream:
            yield stream

    def small(self, address: str) -> bytes | None:
        system, path = _located(address)
        if not system.get_file_info(path).is_file:
            return None
        with system.open_input_stream(path) as source:
            return bytes(source.read())

    def put(self, address: str, content: bytes) -> None:
        system, path = _located(address)
        with system.open_output_stream(path) as target:
            target.write(content)

    def remove(self, address: str) -> None:
        system, path = _located(address)
        if system.get_file_info(path).is_file:
            system.delete_file(path)

    @contextmanager
    def writing(self, address: str) -> Iterator[Writing]:
        folder, _, name = address.rpartition("/")
        with TemporaryDirectory(prefix="gmerging-") as local:
            path = Path(local) / "shard"
            temporary = f"{folder}/{temporary_beside(Path(name)).name}"
            yield Writing(path, temporary)
            # An upload that fails half-way may leave what it sent, so it has another name first.
            try:
                system, target = _located(temporary)
                with path.open("rb") as source, system.open_output_stream(target) as sent:
                    shutil.copyfileobj(source, sent, _BLOCK)
                system.move(target, _located(address)[1])
            except BaseException:
                with contextlib.suppress(OSError):
                    self.remove(temporary)
                raise


def _arrow_files() -> Any:
    return optional_package("pyarrow.fs", "addresses of other file systems", "predict")


def _located(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    system, base = _system(scheme, host)
    return system, f"{base.rstrip('/')}/{path}" if path else base


@lru_cache
def _system(scheme: str, host: str) -> tuple[Any, str]:
    files = _arrow_files()
    root = f"{scheme}://{host}"
    try:
        return files.FileSystem.from_uri(root)  # type: ignore[no-any-return]
    except ValueError as error:  # pyarrow.ArrowInvalid
        try:
            from fsspec.core import url_to_fs

            system, base = url_to_fs(root)
        except (ImportError, ValueError):
            got = f"got address {root}, which nothing here reads ({error})"
            expected = "expected a local path, s3://, gs://, hdfs://, or one that fsspec knows"
            raise InvalidInputError(f"{got}, {expected}") from None
        return files.PyFileSystem(files.FSSpecHandler(system)), base
