"""Leases: of all processes that share a folder, on any number of machines, one makes a file.

A lease is a file beside the one that is made, `<name>.lease.<generation>`, created with `O_EXCL`,
which is atomic on local disks and on shared ones (NFS since version 3, Lustre, BeeGFS). Its owner
sets its modification time every `BEAT` seconds. Another process takes over by creating the next
generation: of several that try, one succeeds. It does so

- at once, if the owner ran on the same kernel and has died: the operating system has released the
  owner's `flock`. Between machines this lock is not trusted, since many shared file systems keep it
  to one machine;
- else when it has watched the modification time stand still for `STALE` seconds of its own clock.
  Clocks of machines are never compared.

An owner that was only suspended may wake up after that. Then two processes make the same result,
from the same seed: files are moved into place whole, and the one that is stored first stays.

`filelock.SoftFileLease` is not used: it takes over by exchanging two names in one step, which NFS
cannot do, and there it would wait for ever for an owner that has died.
"""

import errno
import fcntl
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

BEAT = 10.0
"""Seconds between two heartbeats."""
STALE = 90.0
"""Seconds without a heartbeat after which a lease may be taken over. More than the 60 s for which
an NFS client may keep a file's attributes."""

SPOKEN_PAUSE = 1.0
"""See `pauses_of_waiting`."""


class Claim(NamedTuple):
    """A lease as other processes see it.

    Attributes:
        generation: its number; the highest one counts.
        token: random characters of its owner; empty while the file is being written.
        owner: process id and host, for messages.
        kernel: boot id of the owner's kernel; empty if the owner has no `flock`.
        beat: modification time of the file, in nanoseconds.
    """

    generation: int
    token: str
    owner: str
    kernel: str
    beat: int


class Sight(NamedTuple):
    """The newest lease of a file, None if there is none, and whether its owner is at work."""

    claim: Claim | None
    held: bool


@dataclass
class _Watched:
    """A claim, when it was looked at last, and for how many seconds it has not changed."""

    claim: Claim
    looked_at: float
    unchanged: float = 0.0


class Watch:
    """What this process has seen of the leases of others."""

    def __init__(self) -> None:
        self._seen: dict[Path, _Watched] = {}

    def look(self, path: Path) -> Sight:
        """Look at the newest lease of a file. An owner counts as at work until the contrary is
        known, which may take as many looks as there are heartbeats in `STALE` seconds."""
        claim = _newest(path)
        if claim is None:
            return Sight(None, held=False)
        ended = _died_here(path, claim) or self._unchanged(path, claim) >= STALE
        return Sight(claim, held=not ended)

    def _unchanged(self, path: Path, claim: Claim) -> float:
        now, seen = time.monotonic(), self._seen.get(path)
        if seen is None or seen.claim != claim:
            seen = self._seen[path] = _Watched(claim, now)
        # A process that was suspended, or hung with the file server, has seen nothing meanwhile.
        seen.unchanged += min(now - seen.looked_at, BEAT)
        seen.looked_at = now
        return seen.unchanged


class Lease:
    """The lease that this process holds, with its heartbeat: a context, which gives it back."""

    def __init__(self, path: Path, generation: int) -> None:
        """Create the file of the lease. Raises FileExistsError: another process has."""
        self._path, self._generation = path, generation
        own = _file(path, generation)
        self._descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_claim(self._descriptor)
        except BaseException:
            own.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self._given_back = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        while not self._given_back.wait(BEAT):
            with suppress(OSError):  # the file server may be away for a moment
                os.utime(self._descriptor)

    @property
    def succeeded(self) -> bool:
        """Whether another process has taken over."""
        return _file(self._path, self._generation + 1).exists()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        # Newest first, so that there are never gaps below a lease that is held. Where another
        # process has taken over, the files are its own to remove.
        self.withdraw(() if self.succeeded else range(self._generation, 0, -1))

    def withdraw(self, generations: "range | tuple[int, ...]") -> None:
        """Stop the heartbeat, and remove the files of generations."""
        self._given_back.set()
        self._heart.join()
        for generation in generations:
            _file(self._path, generation).unlink(missing_ok=True)
        os.close(self._descriptor)


def take(path: Path, ended: Claim | None) -> Lease | None:
    """Take the lease of a file; its folders are made.

    Args:
        path: the file that is to be made.
        ended: its newest lease, whose owner is no longer at work (`Watch.look`); None if there is
            none.

    Returns:
        The lease; None if another process has taken it.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lease = Lease(path, 1 if ended is None else ended.generation + 1)
    except FileExistsError:
        return None
    if lease.succeeded:  # the leases below were being removed when `ended` was looked at
        lease.withdraw(())
        return None
    if ended is not None and _claim(path, ended.generation) != ended:
        lease.withdraw((ended.generation + 1,))  # it was given back, or its owner has woken up
        return None
    return lease


@contextmanager
def made_once(path: Path) -> Iterator[None]:
    """Hold the lease of a file that is about to be made; wait while another process makes it.

    Who gets it looks first whether the file is there by now.

    Raises:
        OSError: the folder cannot be written to.
    """
    watch, pauses = Watch(), pauses_of_waiting()
    while True:
        claim, held = watch.look(path)
        lease = None if held else take(path, claim)
        if lease is not None:
            break
        pause = next(pauses)
        if claim is not None and pause == SPOKEN_PAUSE:
            tqdm.write(f"waiting for {path}, made by {claim.owner}", file=sys.stderr)
        time.sleep(pause)
    with lease:
        yield


def pauses_of_waiting() -> Iterator[float]:
    """Seconds between looks at what other processes make: short ones first, 5 in the end. Before
    `SPOKEN_PAUSE` a process says what it waits for."""
    yield from (0.1, 0.2, 0.4, SPOKEN_PAUSE, 2.0)
    yield from itertools.repeat(5.0)


def _file(path: Path, generation: int) -> Path:
    return path.with_name(f"{path.name}.lease.{generation}")


def _newest(path: Path) -> Claim | None:
    newest = None
    for generation in itertools.count(1):
        if (claim := _claim(path, generation)) is None:
            return newest
        newest = claim
    raise AssertionError("itertools.count ends")


def _claim(path: Path, generation: int) -> Claim | None:
    """Read a lease; None if there is none. It is opened, since NFS asks the server then."""
    try:
        with _file(path, generation).open("rb") as stream:
            beat = os.fstat(stream.fileno()).st_mtime_ns
            content = stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed by another machine meanwhile
            return None
        raise
    try:
        record = json.loads(content)
        owner = f"process {record['pid']} on {record['host']}"
        return Claim(generation, record["token"], owner, record["kernel"], beat)
    except (ValueError, KeyError, TypeError):
        return Claim(generation, "", "a process that begins", "", beat)


def _write_claim(descriptor: int) -> None:
    # Locked before it is written: whoever can read whose it is may test the lock.
    kernel = _kernel() if _locked(descriptor, fcntl.LOCK_EX) else ""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "kernel": kernel}
    os.write(descriptor, json.dumps({"token": secrets.token_hex(8), **owner}).encode())
    os.fsync(descriptor)  # else it stays on this machine while the file is open


def _died_here(path: Path, claim: Claim) -> bool:
    """Return whether the owner ran on this kernel and has died."""
    if claim.kernel != _kernel() or not claim.kernel:
        return False
    with suppress(OSError), _file(path, claim.generation).open("rb") as stream:
        # Shared, so that two processes that test at one time do not take each other for the owner.
        return _locked(stream.fileno(), fcntl.LOCK_SH)
    return False


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:  # held by another process, or the file system has no locks
        return False
    return True


@cache
def _kernel() -> str:
    """Return what identifies the running kernel; empty where that is not known."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
