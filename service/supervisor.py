"""Supervisor of several worker processes behind one port, on top of uvicorn's.

It differs from uvicorn's in two ways:

- A worker that is still starting is not killed. uvicorn's supervisor pings every worker twice a
  second and kills one that does not answer in time. A worker cannot answer before it has imported
  torch, and hardly while it loads its models: on a busy host that takes longer than any sensible
  time-out for a worker that hangs.
- A worker that cannot start stops the others only while none of them has ever started. Then the
  cause is the same for all. Later the cause may be one artifact that is half copied, and workers
  that answer go on.
"""

import logging
import socket
import time

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

UNRESPONSIVE_SECONDS = 30
"""Time after which a started worker that does not answer a ping is replaced."""

_RETRY_SECONDS = 10.0
"""Shortest time between two starts of a worker that cannot start."""

log = logging.getLogger(__name__)


class PatientProcess(multiprocess.Process):
    """Worker process that counts as alive while it starts, and must answer pings afterwards.

    Attributes:
        started: whether the server of the worker has started.
        started_at: time at which the process was started, on the monotonic clock.
    """

    _ping_sent = False
    started = False
    started_at = 0.0

    def start(self) -> None:
        """Start the process and note the time."""
        self.started_at = time.monotonic()
        super().start()

    def is_alive(self, timeout: float = UNRESPONSIVE_SECONDS) -> bool:
        """Return whether the worker is starting, or answers a ping within `timeout` seconds."""
        if self.started or not self.process.is_alive():
            return super().is_alive(timeout)
        if not self._ping_sent:
            self.parent_conn.send(b"ping")
            self._ping_sent = True
        elif self.parent_conn.poll():
            self.started, self._ping_sent = self.parent_conn.recv(), False
        return True


class Supervisor(multiprocess.Multiprocess):
    """Start workers, replace those that end or hang, and stop them.

    Attributes:
        processes: the workers.
        failed: whether the supervisor has ended because a worker could not start.
    """

    processes: list[PatientProcess]  # type: ignore[assignment]
    failed = False
    _any_started = False

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        """Create the supervisor; `run` starts the workers.

        Args:
            config: uvicorn configuration of the application.
            sockets: listening sockets that the workers share.
        """
        # uvicorn offers no parameter for the class of its processes: it looks up this name.
        multiprocess.Process = PatientProcess  # type: ignore[misc]
        super().__init__(config, sockets)

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that have ended or hang; uvicorn calls this twice a second."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(self.config.timeout_worker_healthcheck):
                self._any_started |= process.started
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:
                if not self._any_started:
                    log.error("worker %s could not start: stopping all", process.pid)
                    self.failed = True
                    self.should_exit.set()
                    return
                if time.monotonic() - process.started_at < _RETRY_SECONDS:
                    continue
                log.error("worker %s could not start: starting another one", process.pid)
            else:
                log.error(
                    "worker %s ended (%s): starting another one", process.pid, process.exitcode
                )
            self.processes[index] = PatientProcess(self.config, self.sockets)
            self.processes[index].start()
