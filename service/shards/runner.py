"""Shards of a plan dealt out to processes, of this machine or elsewhere.

A process that dies is replaced, and its shard handed out again behind the others. After three
attempts a shard is given up; the others are done all the same.
"""

import contextlib
import json
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import GMergingError
from service.shards.made import Made, Shard, depends_on, made_of
from service.shards.note import clear, note_failure
from service.shards.places import files_at
from service.shards.processes import environment, how_it_ended
from service.shards.request import ScreenModel, ScreenRequest

ATTEMPTS = 3
"""Attempts at one shard in one run."""
_LOOKS = 16  # outputs looked at at a time: they may be far away
_WORKER = "from service.shards.worker import main; main()"


class WorkersLostError(GMergingError):
    """The processes that would screen shards end before they begin."""

    code = "process_lost"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        shards: number of all shards.
        done: number of shards whose output is there, with those of earlier runs.
        skipped: number of shards whose output was there before.
        rows: number of rows of inputs that this run has answered.
        kept: number of rows that this run has written.
        errors: number of rows with an error, by code, in the shards that this run has done.
        failed: why shards were given up, by name.
        attempts: number of attempts that this run has begun.
        seconds: of this run.
    """

    shards: int
    done: int = 0
    skipped: int = 0
    rows: int = 0
    kept: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds if self.seconds else 0.0


def unfinished(shards: Sequence[Shard], digest: str, request: ScreenRequest) -> list[Shard]:
    """Return the shards that have no output of their present input. Beside the outputs of others
    nothing is left of attempts that have died.

    Args:
        shards: all shards.
        digest: of the model.
        request: what is asked.
    """
    with ThreadPoolExecutor(_LOOKS) as pool:
        done = pool.map(lambda shard: finished(shard, digest, request), shards)
        return [shard for shard, made in zip(shards, done, strict=True) if made is None]


def finished(shard: Shard, digest: str, request: ScreenRequest) -> Made | None:
    """Return the output of a shard's present input; None if there is none. Nothing is left beside
    it of attempts that have died."""
    made = made_of(shard.output)
    if made is None:
        return None
    try:
        identity = files_at(shard.address).identity(shard.address)
    except FileNotFoundError:
        return None
    if not made.is_of(depends_on(shard, identity, digest, request)):
        return None
    clear(shard.output)
    return made


class Worker(Protocol):
    """Screens the shards that it is sent, one after the other, in some process."""

    def send(self, shard: Shard) -> None:
        """Send a shard; that the process is dead shows when its reply is read."""
        ...

    def read(self) -> dict[str, Any] | None:
        """Return the next report, of those of `service.shards.worker`; None if the process has
        ended."""
        ...

    def ended(self) -> str:
        """Wait for the end of the process, and say how it was."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...

    def close(self) -> None:
        """Let the process end."""
        ...


class Run:
    """Screens shards in several processes."""

    def __init__(
        self,
        shards: Sequence[Shard],
        left: Sequence[Shard],
        start: Callable[[], Worker],
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Describe a run.

        Args:
            shards: all shards.
            left: those of them that are to be screened.
            start: starts a process.
            report: called after every report of a process, from any thread, one at a time.
        """
        self._begin, self._report = start, report
        self._waiting = deque(left)
        self._attempts: Counter[str] = Counter()
        self._under_way = 0
        self._changed = threading.Condition(threading.RLock())
        self._workers: list[Worker] = []
        self._problem: Exception | None = None
        self._stopped = False
        self._started = time.monotonic()
        skipped = len(shards) - len(left)
        self.progress = Progress(len(shards), done=skipped, skipped=skipped)

    def __call__(self, processes: int) -> Progress:
        """Screen all shards.

        Raises:
            GMergingError: the model, or what it is asked for, cannot be used.
        """
        count = min(processes, len(self._waiting))
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            with self._changed:
                self._stopped = True
                workers = list(self._workers)
            for worker in workers:
                worker.kill()
        if self._problem is not None:
            raise self._problem
        self._tell()
        return self.progress

    def _serve(self) -> None:
        """Screen shards in a process until none is left."""
        worker: Worker | None = None
        starts = 0
        while (shard := self._next()) is not None:
            outcome: dict[str, Any] | None = None
            try:
                while worker is None and not self._stopped:
                    worker = self._start()
                    starts += worker is None
                    if starts == ATTEMPTS:
                        raise WorkersLostError(
                            "got the end of a process that loads the model, three times, expected "
                            "it to start: try fewer --processes"
                        )
                if worker is not None:
                    starts = 0
                    outcome = self._attempt(worker, shard)
            except Exception as error:  # or others would wait for this shard
                with self._changed:
                    self._problem = self._problem or error
                    self._waiting.clear()
                    self._under_way -= 1
                    self._changed.notify_all()
                return
            if outcome is None and worker is not None:
                outcome = {"failed": f"its process ended ({worker.ended()})", "final": False}
                self._forget(worker)
                worker = None
            self._settle(shard, outcome)
        if worker is not None:
            worker.close()
            self._forget(worker)

    def _next(self) -> Shard | None:
        """Return the next shard; waits while one that is under way may come back."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._under_way or self._stopped)
            if not self._waiting or self._stopped:
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def _start(self) -> Worker | None:
        """Start a process; None if it died before it was ready."""
        worker = self._begin()
        with self._changed:
            self._workers.append(worker)
            if self._stopped:
                worker.kill()
        first = worker.read()
        if first is None:
            self._forget(worker)
            worker.ended()
            return None
        if "refused" in first:
            self._forget(worker)
            worker.close()
            raise _refusal(first)
        return worker

    def _forget(self, worker: Worker) -> None:
        with self._changed:
            self._workers.remove(worker)

    def _attempt(self, worker: Worker, shard: Shard) -> dict[str, Any] | None:
        """Let a process screen a shard; return its last report, None if it died."""
        with self._changed:
            self.progress.attempts += 1
            self._attempts[shard.name] += 1
        counted = 0
        worker.send(shard)
        while (said := worker.read()) is not None:
            if "refused" in said:
                raise _refusal(said)
            if "rows" not in said:
                if "failed" in said:
                    self._add_rows(-counted)
                return said
            self._add_rows(said["rows"] - counted)
            counted = said["rows"]
        self._add_rows(-counted)
        return None

    def _add_rows(self, count: int) -> None:
        with self._changed:
            self.progress.rows += count
            self._tell()

    def _tell(self) -> None:
        self.progress.seconds = time.monotonic() - self._started
        self._report(self.progress)

    def _settle(self, shard: Shard, outcome: dict[str, Any] | None) -> None:
        """Count a shard as done, hand it out again, or give it up."""
        with self._changed:
            self._under_way -= 1
            if outcome is not None and not self._stopped:
                if "done" in outcome:
                    self.progress.done += 1
                    self.progress.kept += outcome["kept"]
                    self.progress.errors.update(outcome["errors"])
                elif outcome["final"] or self._attempts[shard.name] == ATTEMPTS:
                    self.progress.failed[shard.name] = outcome["failed"]
                    note_failure(shard.output, outcome["failed"])
                else:
                    self._waiting.append(shard)
                self._tell()
            self._changed.notify_all()


def _refusal(said: Mapping[str, Any]) -> GMergingError:
    error = GMergingError(said["refused"])
    error.code = said["code"]
    return error


class ProcessWorker:
    """A process of this machine that screens shards."""

    def __init__(self, order: tuple[ScreenModel, bool]) -> None:
        """Start the process.

        Args:
            order: the model, and whether outputs of other settings are replaced.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        self._send(order)

    def send(self, shard: Shard) -> None:
        """Send a shard; that the process is dead shows when its reply is read."""
        self._send(shard)

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def read(self) -> dict[str, Any] | None:
        """Return the next report; None if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def ended(self) -> str:
        """Wait for the end of the process, and say how it was."""
        self.close()
        return how_it_ended(self._process.returncode)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end, with its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
