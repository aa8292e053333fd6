"""service.telemetry.statistics"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gauges:
    """What a scrape reads off the running service, perhaps on another thread than the service's."""

    ready: bool
    queue_molecules: int
    queue_oldest_seconds: float
    pending_cost: int
    cache_bytes: int
    gpu_memory_bytes: int
    jobs_waiting: int


@dataclass(frozen=True)
class PassStatistics:
    """What one pass was like.

    Attributes:
        items: how many it held.
        fill: cost of all of them, by the most that a pass may cost; more than 1 where a single item
            costs more.
        seconds: that the worker took.
        waited_seconds: of each entry that was served for the first time, from its arrival to the
            start of this pass.
    """

    items: int
    fill: float
    seconds: float
    waited_seconds: tuple[float, ...]
