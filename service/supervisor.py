"""Several worker processes behind one port: uvicorn's supervisor, with patience for a worker that
is starting.

It asks every worker twice a second whether it is there, and kills one that does not answer in time.
A worker cannot answer before it has imported torch, and hardly while it loads its models: on a busy
host that takes longer than any time that is right for a worker that hangs.

And it stops them all when one cannot start. That is right as long as none has: what is wrong is
wrong for all. Later it would stop those that answer, because one found an artifact half copied.
"""

import logging
import socket
import time

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

HANGS_SECONDS = 30
"""A worker that has started, and does not answer its supervisor for so long, is replaced."""


_AGAIN_SECONDS = 10.0
"""Time from one start of a worker to the next, where it could not start."""

log = logging.getLogger(__name__)


class PatientProcess(multiprocess.Process):
    """A worker that counts as alive for as long as its process runs, until its server has started;
    from then on it must answer in time."""

    _asked = False
    started = False
    """Whether its server has."""
    begun = 0.0
    """When it was started itself."""

    def start(self) -> None:
        """Start the process."""
        self.begun = time.monotonic()
        super().start()

    def is_alive(self, timeout: float = HANGS_SECONDS) -> bool:
        """Whether it need not be replaced."""
        if self.started or not self.process.is_alive():
            return super().is_alive(timeout)
        if not self._asked:
            self.parent_conn.send(b"ping")
            self._asked = True
        elif self.parent_conn.poll():
            self.started, self._asked = self.parent_conn.recv(), False
        return True


class Supervisor(multiprocess.Multiprocess):
    """Starts workers, replaces those that die or hang, and stops them."""

    processes: list[PatientProcess]  # type: ignore[assignment]
    failed = False
    """Whether it ended because a worker could not start."""
    _answered = False

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        """Prepare.

        Args:
            config: of the application.
            sockets: that the workers share.
        """
        # uvicorn makes its processes by this name, and has no other place to say which.
        multiprocess.Process = PatientProcess  # type: ignore[misc]
        super().__init__(config, sockets)

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that have ended or hang."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(self.config.timeout_worker_healthcheck):
                self._answered |= process.started
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:
                if not self._answered:
                    log.error("worker %s could not start: stopping all", process.pid)
                    self.failed = True
                    self.should_exit.set()
                    return
                if time.monotonic() - process.begun < _AGAIN_SECONDS:
                    continue
                log.error("worker %s could not start: starting another one", process.pid)
            else:
                log.error(
                    "worker %s ended (%s): starting another one", process.pid, process.exitcode
                )
            self.processes[index] = PatientProcess(self.config, self.sockets)
            self.processes[index].start()
