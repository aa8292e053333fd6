"""Statistics of the running service, as plain data that any exporter can read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gauges:
    """Current state of the service. A scrape may read it on another thread.

    Attributes:
        ready: whether requests should be sent here.
        queue_molecules: molecules that wait for a model pass.
        queue_oldest_seconds: time for which the oldest of them has waited.
        pending_cost: cost of everything admitted and not yet answered, atoms times streams.
        cache_bytes: size of the answer cache.
        gpu_memory_bytes: GPU memory that torch holds.
        jobs_waiting: jobs that are queued or running.
    """

    ready: bool
    queue_molecules: int
    queue_oldest_seconds: float
    pending_cost: int
    cache_bytes: int
    gpu_memory_bytes: int
    jobs_waiting: int


@dataclass(frozen=True)
class PassStatistics:
    """Statistics of one model pass.

    Attributes:
        items: number of items in the pass.
        fill: cost of the items over the largest cost of a pass; above 1 if a single item costs
            more.
        seconds: duration on the worker thread.
        waited_seconds: for every entry that this pass serves first, the time from its arrival to
            the start of the pass.
    """

    items: int
    fill: float
    seconds: float
    waited_seconds: tuple[float, ...]
