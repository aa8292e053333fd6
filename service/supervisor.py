"""Several worker processes behind one port: uvicorn's supervisor, with patience for a worker that
is starting.

It asks every worker twice a second whether it is there, and kills one that does not answer in time.
A worker cannot answer before it has imported torch, and hardly while it loads its models: on a busy
host that takes longer than any time that is right for a worker that hangs.
"""

import socket

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

HANGS_SECONDS = 30
"""A worker that has started, and does not answer its supervisor for so long, is replaced."""


class PatientProcess(multiprocess.Process):
    """A worker that counts as alive for as long as its process runs, until its server has started;
    from then on it must answer in time."""

    _asked = _started = False

    def is_alive(self, timeout: float = HANGS_SECONDS) -> bool:
        """Whether it need not be replaced."""
        if self._started or not self.process.is_alive():
            return super().is_alive(timeout)
        if not self._asked:
            self.parent_conn.send(b"ping")
            self._asked = True
        elif self.parent_conn.poll():
            self._started, self._asked = self.parent_conn.recv(), False
        return True


class Supervisor(multiprocess.Multiprocess):
    """Starts workers, replaces those that die or hang, and stops them."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        """Prepare.

        Args:
            config: names the application as an import string.
            sockets: that the workers share.
        """
        # uvicorn makes its processes by this name, and has no other place to say which.
        multiprocess.Process = PatientProcess  # type: ignore[misc]
        super().__init__(config, sockets)

    @property
    def failed(self) -> bool:
        """Whether it ended because a worker could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)
