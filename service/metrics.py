"""All Prometheus metrics of the service. Each application has its own registry: nothing here is global.

Units are base units (seconds), labels are bounded: routes, known methods, status codes, stages, known error codes, tasks of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import SummaryMetricFamily
from prometheus_client.registry import Collector

from service.batcher import PassStatistics

Stage = Literal["parse", "queue", "model", "serialise"]
STAGES: tuple[Stage, ...] = ("parse", "queue", "model", "serialise")
# What became of a molecule, besides the codes of items that could not be read.
ANSWERED, REFUSED, FAILED, CANCELLED = "ok", "refused", "failed", "cancelled"
OUTCOMES = (ANSWERED, REFUSED, FAILED, CANCELLED)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_GRAPHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_ATOMS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass
class RoutingStatistics:
    """Running sums of routing weights, by task and expert: plain sums, because one histogram per pair would cost more than the model's own work.

    Attributes:
        sums: by task, (K,) sum over molecules of the weight of each expert, mean over sites.
        molecules: by task, how many.
    """

    experts: tuple[str, ...] = ()
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    molecules: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, task: str, weights: NDArray[np.float32]) -> None:
        """Count the weights (G, S, K) of a pass; called on the worker thread."""
        total = weights.mean(axis=1, dtype=np.float64).sum(axis=0)
        with self._lock:
            self.sums[task] = self.sums.get(task, 0.0) + total
            self.molecules[task] = self.molecules.get(task, 0) + len(weights)

    def rows(self) -> list[tuple[str, str, int, float]]:
        """(task, expert, molecules, sum of weights), a consistent snapshot."""
        with self._lock:
            return [
                (task, expert, self.molecules[task], float(weight))
                for task, sums in self.sums.items()
                for expert, weight in zip(self.experts, sums, strict=True)
            ]


class _RoutingCollector(Collector):
    """Shows `RoutingStatistics` as a summary: sum / count is the mean weight."""

    def __init__(self, statistics: RoutingStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[SummaryMetricFamily]:
        """What a scrape sees."""
        family = SummaryMetricFamily(
            "gmerging_routing_weight",
            "Weight of an expert in answers of a task (routing moe), mean over sites, per molecule",
            labels=["task", "expert"],
        )
        for task, expert, molecules, weight in self._statistics.rows():
            family.add_metric([task, expert], molecules, weight)
        yield family


class Metrics:
    """The metrics of one application; methods take facts, not Prometheus objects."""

    def __init__(self, item_codes: Sequence[str]) -> None:
        """Register all metrics.

        Args:
            item_codes: codes of items that cannot be read; any other code counts as "other".
        """
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests = Counter("gmerging_requests", "HTTP requests", ["route", "method", "status"], registry=registry)
        self._request_seconds = Histogram(
            "gmerging_request_duration_seconds", "HTTP request, first byte in to last byte out", ["route"], buckets=_SECONDS, registry=registry
        )
        self._molecules = Counter("gmerging_molecules", "Molecules by what became of them", ["outcome"], registry=registry)
        self._stages = Histogram(
            "gmerging_stage_duration_seconds",
            "Stages of a prediction: parse, queue and serialise per request, model per pass",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_graphs = Histogram("gmerging_batch_graphs", "Molecules in a model pass", buckets=_GRAPHS, registry=registry)
        self._batch_atoms = Histogram("gmerging_batch_atoms", "Atoms in a model pass", buckets=_ATOMS, registry=registry)
        self.queue_molecules = Gauge("gmerging_queue_molecules", "Molecules that wait for a model pass", registry=registry)
        self.pending_cost = Gauge("gmerging_pending_cost", "Atoms times tasks admitted and not yet answered", registry=registry)
        self.ready = Gauge("gmerging_ready", "1 if the service answers predictions", registry=registry)
        self._artifact = Gauge("gmerging_artifact_info", "The artifact that answers", ["name", "version", "digest", "device"], registry=registry)
        self.routing = RoutingStatistics()
        registry.register(_RoutingCollector(self.routing))
        self._item_codes = frozenset(item_codes)
        # Series exist from the start, so that the first increase is one.
        for outcome in (*OUTCOMES, *item_codes, "other"):
            self._molecules.labels(outcome)
        for stage in STAGES:
            self._stages.labels(stage)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def model_loaded(self, name: str, version: str, digest: str, device: str, experts: tuple[str, ...]) -> None:
        """Say which artifact answers."""
        self._artifact.labels(name, version, digest, device).set(1)
        self.routing.experts = experts

    def request_answered(self, route: str, method: str, status: int) -> None:
        """Count a request; its status is known."""
        self._requests.labels(route, method if method in _METHODS else "OTHER", str(status)).inc()

    def request_ended(self, route: str, seconds: float) -> None:
        """Observe how long a request took in all."""
        self._request_seconds.labels(route).observe(seconds)

    def molecules(self, outcome: str, count: int = 1) -> None:
        """Count molecules with an outcome: one of `OUTCOMES` or an item's code."""
        known = outcome in OUTCOMES or outcome in self._item_codes
        self._molecules.labels(outcome if known else "other").inc(count)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Observe a stage."""
        self._stages.labels(stage).observe(seconds)

    def batch(self, graphs: int, atoms: int) -> None:
        """Observe the size of a model pass."""
        self._batch_graphs.observe(graphs)
        self._batch_atoms.observe(atoms)

    def model_pass(self, statistics: PassStatistics) -> None:
        """Observe the times of a model pass."""
        self.stage("model", statistics.seconds)
        for seconds in statistics.waited_seconds:
            self.stage("queue", seconds)
