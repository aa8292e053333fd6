"""Files of a run: what it writes, whole or not at all, and reads back."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from models.errors import DataError
from models.files import write_atomically


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(contiguous, metadata)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(content, indent=2) + "\n").encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a full disk is an OSError."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_json(path: Path) -> Any:
    """Read JSON; None if there is no such file. Raises DataError: it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged(path, error) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around the reading of tensors that a run wrote. Raises DataError: the file is damaged."""
    try:
        yield
    except SafetensorError as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """The error of a file that a run wrote and that cannot be read any more."""
    remedy = "delete it, and it is made anew"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    found = f"got a damaged file ({reason})"
    return DataError(f"{path}: {found}, expected what a run wrote; {remedy}")


def read_seeds(folder: Path) -> list[dict[str, Any]]:
    """The contents of a setting's `seed<N>.json`. Raises DataError: one is not of `compare`."""
    seeds = {path: read_json(path) for path in sorted(folder.glob("seed*.json"))}
    for path, content in seeds.items():
        check_results(path, content)
    return list(seeds.values())


def check_results(path: Path, content: Any) -> None:
    """Raises DataError: what was read from a file of results is none of `compare`."""
    if not isinstance(content, dict) or "methods" not in content:
        found, remedy = f"got {path} without `methods`", "delete it or write it anew"
        raise DataError(f"{found}, expected results of `gmerging compare`; {remedy}")
