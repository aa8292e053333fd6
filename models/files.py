"""Atomic writes of files and folders, safe with any number of writers."""

import ctypes
import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_ATTEMPTS = 10


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the folder of `path`, with host, process id and random
    characters.

    The process id alone is not unique: containers that share a volume have the same ones.
    """
    host = socket.gethostname()[:32].replace(os.sep, "_")
    return path.with_name(f".{path.name[:128]}.{host}-{os.getpid()}-{secrets.token_hex(8)}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, and move it into place once it is on disk.

    Args:
        path: the file; its folders are made.
        write: gets the temporary path.

    Raises:
        OSError: it cannot be written; the error names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        # the error of a full disk has no file name
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder and do so by themselves
            raise
    finally:
        os.close(descriptor)


def replace_folder(new: Path, folder: Path) -> None:
    """Move the folder `new` to `folder`, and remove what was there.

    This is one atomic step where the system can exchange two folders. Elsewhere (NFS, macOS) there
    is a moment without `folder`; its old content is then beside it, and is restored if the step
    fails. Of several processes that replace it at one time, the last one counts.

    Raises:
        OSError: it cannot be replaced.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _replace(new, folder)
            break
        except OSError as error:
            # another process has put a folder there, or moved it away, at the same moment
            changed = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if not changed or not new.exists() or attempt == _ATTEMPTS - 1:
                raise
    sync(folder.parent)


def _replace(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
    elif _exchange(new, folder):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = temporary_beside(folder)
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            _restore(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _restore(old: Path, folder: Path) -> None:
    """Move `old` back to `folder`, or remove it where another process has put its own."""
    try:
        old.rename(folder)  # to look first would leave a moment in which the other one changes it
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step (Linux renameat2); return False where that is not possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    path, number = ctypes.c_char_p, ctypes.c_int
    rename.argtypes = (number, path, number, path, ctypes.c_uint)
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(rename(*arguments) == 0)
