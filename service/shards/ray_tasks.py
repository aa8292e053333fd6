"""Ray: shards as tasks of a cluster, or of this machine, with the attempts of `runner`.

A shard is a task of Ray core, tried once by Ray: `runner` counts attempts. Not Ray Data: its blocks
are sized by bytes, a record that kills its process is tried for ever there, and an output is not
one of an input.

Ray is slow to fail a task whose node has fallen silent: after seven minutes, though it calls the
node dead after one. So what a task leaves beside its output is looked at too: an output that is
there is taken, and a shard whose node is dead, or of which nothing is heard for long, is handed out
again. That is harmless where the other one still computes: both write the same rows, and each
renames a file of its own.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self

from models.errors import GMergingError
from models.extras import optional_package
from service.shards.made import Shard
from service.shards.note import SILENT_SECONDS, Note, note_failure, note_of
from service.shards.request import ScreenModel
from service.shards.runner import finished

if TYPE_CHECKING:
    from service.shards.shard import Screener

Reports = list[dict[str, Any]]
LOOK_SECONDS = 20.0
"""Between two looks at the files of a shard whose task says nothing."""
_READY = {"ready": True}


class RayClusterError(GMergingError):
    """The cluster cannot be reached, or no Ray starts here."""

    code = "ray"


class RayCluster:
    """The cluster of RAY_ADDRESS, or one that runs on this machine, or else one that is started."""

    def __init__(self, order: tuple[ScreenModel, bool]) -> None:
        """Connect to the cluster.

        Args:
            order: the model, and whether outputs of other settings are replaced.

        Raises:
            MissingPackageError: there is no Ray here.
            RayClusterError: it cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = ray = optional_package("ray", "--engine ray", "ray")
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            got = f"got {_first_line(error)}"
            raise RayClusterError(f"{got}, expected a cluster at RAY_ADDRESS, or none") from None
        self._model, replaces = order
        task = ray.remote(
            num_cpus=self._model.threads or 1,
            num_gpus=1 if self._model.device == "cuda" else 0,
            max_retries=0,  # attempts are counted by `runner`
        )(screen)
        self._hand_out = partial(task.remote, self._model, replaces)

    @property
    def processes(self) -> int:
        """Number of tasks that run at a time now, if they have a thread each."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def worker(self) -> "RayWorker":
        """Return what screens a shard at a time in the cluster."""
        return RayWorker(self._ray, self._hand_out, self._model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


class RayWorker:
    """Screens one shard at a time as a task, wherever there is room: a worker of `runner.Run`."""

    def __init__(self, ray: Any, hand_out: Callable[[Shard], Any], model: ScreenModel) -> None:
        """Describe the tasks.

        Args:
            ray: the package.
            hand_out: starts the task of a shard.
            model: what answers, with its digest.
        """
        self._ray, self._hand_out, self._model = ray, hand_out, model
        self._under_way: _UnderWay | None = None
        self._reports = deque([_READY])
        self._why = ""

    def send(self, shard: Shard) -> None:
        """Hand a shard out."""
        before, dead = _note_of(shard), self._dead_nodes()
        self._under_way = _UnderWay(shard, before, dead, self._hand_out(shard))

    def _dead_nodes(self) -> dict[str, str]:
        """Return the host of every node that is dead, by its id."""
        nodes = self._ray.nodes()
        return {node["NodeID"]: node["NodeManagerHostname"] for node in nodes if not node["Alive"]}

    def read(self) -> dict[str, Any] | None:
        """Return the next report, the first of all that there is somebody; None if the attempt at
        the shard has ended without its last one."""
        while not self._reports:
            under_way = self._under_way
            assert under_way is not None
            done, _ = self._ray.wait([under_way.task], timeout=LOOK_SECONDS)
            reports = self._result(under_way) if done else self._looked_at(under_way)
            if reports is None:
                # Or the next attempt, maybe on another node, would take this one to be alive.
                note_failure(under_way.shard.output, f"its process ended ({self._why})")
                return None
            self._reports.extend(reports)
        return self._reports.popleft()

    def _result(self, under_way: "_UnderWay") -> Reports | None:
        try:
            return self._ray.get(under_way.task)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayError as error:
            self._why = _first_line(error)
            return None

    def _looked_at(self, under_way: "_UnderWay") -> Reports | None:
        """Return what files say about a shard whose task says nothing; None if it is lost."""
        shard, digest = under_way.shard, self._model.digest
        assert digest is not None
        made = None
        with contextlib.suppress(OSError):  # files may be far away: as if nothing were there
            made = finished(shard, digest, self._model.request)
        if made is not None:
            self.kill()
            last = {"done": made.rows, "kept": made.kept, "errors": dict(made.failed)}
            return [{"rows": made.rows}, last]
        if under_way.has_news(_note_of(shard)):
            return [{"rows": under_way.rows}]
        why = under_way.why_lost(self._dead_nodes())
        if why is None:
            return []
        self.kill()
        if under_way.has_begun:
            self._why = why
            return None
        # It may wait for room, or on its way to a node that is gone: this was no attempt.
        self.send(shard)
        return []

    def ended(self) -> str:
        """Say how the last attempt ended."""
        return self._why

    def kill(self) -> None:
        """End the attempt under way, if its node hears it."""
        if self._under_way is not None:
            self._ray.cancel(self._under_way.task, force=True)

    def close(self) -> None:
        """Do nothing: processes are Ray's."""


class _UnderWay:
    """A shard that is handed out, and when something was last heard of it: by the clock of this
    process, as those of nodes may differ."""

    def __init__(
        self, shard: Shard, before: Note | None, dead: Mapping[str, str], task: Any
    ) -> None:
        self.shard, self._dead, self.task = shard, dead, task
        self._before = self._note = before
        self._heard = time.monotonic()

    def has_news(self, note: Note | None) -> bool:
        """Return whether the note beside the output is a new one."""
        if note is None or note == self._note:
            return False
        self._note, self._heard = note, time.monotonic()
        return True

    @property
    def rows(self) -> int:
        """Number of rows answered, as the note has it."""
        return 0 if self._note is None else self._note.rows

    @property
    def has_begun(self) -> bool:
        """Whether somebody was seen to work at it."""
        return self._note != self._before

    def why_lost(self, dead: Mapping[str, str]) -> str | None:
        """Return why nothing more is expected; None if it is.

        Args:
            dead: the host of every node that is dead, by its id.
        """
        hosts = {host for node, host in dead.items() if node not in self._dead}
        if hosts and (not self.has_begun or (self._note and self._note.host in hosts)):
            return "its node is dead"
        if time.monotonic() - self._heard > SILENT_SECONDS:
            return f"no word for {SILENT_SECONDS:.0f} seconds"
        return None


def _note_of(shard: Shard) -> Note | None:
    try:
        return note_of(shard.output)
    except OSError:
        return None


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error  # of what a task raises, which has a traceback
    said = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {said[0][:300]}" if said else type(cause).__name__


def screen(model: ScreenModel, replaces: bool, shard: Shard) -> Reports:
    """Screen a shard in a process of Ray, and return the last reports of `worker`.

    Args:
        model: by its name or folder, which is looked for here.
        replaces: whether outputs of other settings are replaced.
        shard: what is screened.
    """
    from service.shards.worker import report_on

    try:
        screener = _screener(model, replaces)
    except GMergingError as error:
        return [{"refused": str(error), "code": error.code}]
    reports: Reports = []
    report_on(screener, shard, reports.append)
    return reports[-2:]


@lru_cache(maxsize=1)
def _screener(model: ScreenModel, replaces: bool) -> "Screener":
    from models.released import find_artifact
    from service.core.memory import limit_malloc_arenas
    from service.shards.shard import Screener

    limit_malloc_arenas()
    here = replace(model, artifact=find_artifact(str(model.artifact)))
    return Screener(here, replace=replaces)
