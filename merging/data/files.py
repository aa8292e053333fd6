"""Files of a run: JSON and safetensors, written atomically and read; and arrays, read."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from models.errors import DataError
from models.files import write_atomically


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors and string metadata as a safetensors file, atomically."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(contiguous, metadata)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline, atomically."""
    write_bytes(path, json_bytes(content))


def write_entry(path: Path, name: str, entry: Any) -> None:
    """Write an entry into a JSON file of entries by name, whose others stay; atomically."""
    write_json(path, (read_json(path) or {}) | {name: entry})


def json_bytes(content: Any) -> bytes:
    """Return indented JSON with a final newline, in UTF-8."""
    return (json.dumps(content, indent=2) + "\n").encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OSError, also for a full disk."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file, by name.

    Raises:
        DataError: the file is missing, is another one, or holds objects, which are never unpickled.
    """
    if not path.is_file():
        raise DataError(f"got no file at {path}, expected an .npz file of arrays")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if isinstance(stored, np.ndarray):
                raise ValueError("it is a single array")
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"got {path}, which is no .npz file of plain arrays: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file, or return None if there is none. Raises DataError: it is not JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged(path, error) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of safetensors within the context into a DataError that names the file."""
    try:
        yield
    except SafetensorError as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for a file that a run wrote and that can no longer be read."""
    remedy = "delete it, and it is made anew"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    found = f"got a damaged file ({reason})"
    return DataError(f"{path}: {found}, expected what a run wrote; {remedy}")


def read_seeds(folder: Path) -> list[dict[str, Any]]:
    """Read the `seed<N>.json` of a results folder. Raises DataError: one was not written by
    `gmerging compare`."""
    seeds = {path: read_json(path) for path in sorted(folder.glob("seed*.json"))}
    for path, content in seeds.items():
        check_results(path, content)
    return list(seeds.values())


def check_results(path: Path, content: Any) -> None:
    """Check that the content of a results file was written by `gmerging compare`. Raises
    DataError."""
    if not isinstance(content, dict) or "methods" not in content:
        found, remedy = f"got {path} without `methods`", "delete it or write it anew"
        raise DataError(f"{found}, expected results of `gmerging compare`; {remedy}")
