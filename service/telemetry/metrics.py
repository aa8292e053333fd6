"""All Prometheus metrics of the service. Each application has its own registry: nothing here is
global.

Units are base units (seconds, bytes), labels are bounded: routes, known methods, status codes,
stages, known error codes, models that were loaded and their tasks. With several worker processes
the values lie in files that all of them write (prometheus-client's multi-process mode), and any
worker shows the sums; there are no `process_` metrics then.
"""

import os
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from models.data.molecule import MASKED_ATOM
from service.telemetry.statistics import Gauges, PassStatistics

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus-client, when it is imported, knows that there are several
processes."""
Stage = Literal["parse", "queue", "model", "serialise"]
STAGES: tuple[Stage, ...] = ("parse", "queue", "model", "serialise")
# What became of a molecule, besides the codes of items that could not be read.
ANSWERED, REFUSED, FAILED, CANCELLED, EXPIRED = "ok", "refused", "failed", "cancelled", "expired"
OUTCOMES = (ANSWERED, REFUSED, FAILED, CANCELLED, EXPIRED)
LOAD_OUTCOMES = ("ok", "failed", "unloaded")
JOB_OUTCOMES = ("done", "failed", "cancelled")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
_GRAPHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_ATOMS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_MOLECULE_ATOMS = (5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 200, 500)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# By atom type (atomic number - 1): H, B, C, N, O, F, Na, Si, P, S, Cl, K, Br and I are all that 99
# % of MoleculeNet's molecules are made of.
_USUAL_ATOMS = np.isin(
    np.arange(MASKED_ATOM + 1), np.array([1, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 19, 35, 53]) - 1
)


class Metrics:
    """The metrics of one application; methods take facts, not Prometheus objects."""

    def __init__(self, item_codes: Sequence[str], losses: Sequence[str] = ()) -> None:
        """Register all metrics.

        Args:
            item_codes: codes of items that cannot be read; any other code counts as "other".
            losses: why a parser process may be lost.
        """
        self._multiprocess = MULTIPROCESS_FOLDER in os.environ
        self._read_gauges: Callable[[], Gauges] | None = None
        self.registry = registry = CollectorRegistry()
        registry.register(_Before(self.refresh))
        if not self._multiprocess:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gmerging_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"gmerging_{name}", text, labels, buckets=buckets, registry=registry)

        def gauge(
            name: str,
            text: str,
            mode: Literal["livesum", "livemin", "livemax", "livemostrecent"],
            *labels: str,
        ) -> Gauge:
            return Gauge(
                f"gmerging_{name}", text, labels, multiprocess_mode=mode, registry=registry
            )

        self._requests = counter("requests", "HTTP requests", "route", "method", "status")
        self._request_seconds = histogram(
            "request_duration_seconds",
            "HTTP request, first byte in to last byte out",
            _SECONDS,
            "route",
        )
        self._molecules = counter("molecules", "Molecules by what became of them", "outcome")
        self._stages = histogram(
            "stage_duration_seconds",
            "Stages of a prediction: parse, queue and serialise per request, model per pass",
            _SECONDS,
            "stage",
        )
        self._batch_graphs = histogram("batch_graphs", "Molecules in a model pass", _GRAPHS)
        self._batch_atoms = histogram("batch_atoms", "Atoms in a model pass", _ATOMS)
        self._batch_fill = histogram(
            "batch_fill_ratio", "Cost of a model pass by the most that one may cost", _SHARES
        )
        self._cache = counter("cache", "Readable molecules looked up in the answer cache", "result")
        self._parsers = counter(
            "parser_losses",
            "Parser processes that were killed for taking too long, or died, and were replaced",
            "reason",
        )
        self._molecule_atoms = histogram(
            "molecule_atoms", "Heavy atoms of molecules that were read", _MOLECULE_ATOMS
        )
        self._rare = counter(
            "rare_element_molecules", "Molecules with an element that hardly occurs in MoleculeNet"
        )
        self._routed = counter(
            "routed_molecules",
            "Molecules answered with mixing (routing moe or merged)",
            "model",
            "task",
        )
        self._weights = counter(
            "routing_weight",
            "Sum over molecules of an expert's weight, mean over sites",
            "model",
            "task",
            "expert",
        )
        self._entropy = counter(
            "routing_entropy_nats",
            "Sum over molecules of the entropy of the weights, mean over sites",
            "model",
            "task",
        )
        self._loads = counter("model_loads", "Loads, reloads and unloads of models", "outcome")
        self._jobs = counter("jobs", "Jobs that ended", "outcome")
        self._artifacts = gauge(
            "artifact_info",
            "1 for each artifact that answers",
            "livemax",
            "model",
            "name",
            "version",
            "digest",
            "device",
        )
        self._ready = gauge("ready", "1 if the service answers predictions", "livemin")
        self._queue_molecules = gauge(
            "queue_molecules", "Molecules that wait for a model pass", "livesum"
        )
        self._queue_oldest = gauge(
            "queue_oldest_seconds", "Time that the oldest of them has waited", "livemax"
        )
        self._pending_cost = gauge(
            "pending_cost", "Atoms times tasks admitted and not yet answered", "livesum"
        )
        self._cache_bytes = gauge("cache_bytes", "Size of the answer cache", "livesum")
        self._gpu_bytes = gauge("gpu_memory_bytes", "GPU memory that torch holds", "livesum")
        self._jobs_waiting = gauge("jobs_waiting", "Jobs that wait or run", "livemostrecent")
        self._item_codes = frozenset(item_codes)
        self._create_series(item_codes, losses)

    def _create_series(self, item_codes: Sequence[str], losses: Sequence[str]) -> None:
        """Series exist from the start, so that the first increase is one."""
        for family, values in (
            (self._molecules, (*OUTCOMES, *item_codes, "other")),
            (self._stages, STAGES),
            (self._cache, ("hit", "miss")),
            (self._parsers, losses),
            (self._loads, LOAD_OUTCOMES),
            (self._jobs, JOB_OUTCOMES),
        ):
            for value in values:
                family.labels(value)

    def watch(self, read: Callable[[], Gauges]) -> None:
        """Where the gauges' values come from."""
        self._read_gauges = read

    def refresh(self) -> None:
        """Read the gauges. A scrape does so by itself; with several processes each must now and
        then, for a scrape reaches one of them."""
        if self._read_gauges is None:
            return
        now = self._read_gauges()
        self._ready.set(now.ready)
        self._queue_molecules.set(now.queue_molecules)
        self._queue_oldest.set(now.queue_oldest_seconds)
        self._pending_cost.set(now.pending_cost)
        self._cache_bytes.set(now.cache_bytes)
        self._gpu_bytes.set(now.gpu_memory_bytes)
        self._jobs_waiting.set(now.jobs_waiting)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        if not self._multiprocess:
            return generate_latest(self.registry)
        self.refresh()
        return generate_latest(shared_registry())

    def model_loaded(
        self, model: str, artifact: tuple[str, str, str], device: str, tasks: Sequence[str] = ()
    ) -> None:
        """Say which artifact (name, version, digest) answers for a model, in place of any other,
        and which tasks it has."""
        self._loads.labels("ok").inc()
        self._artifacts.labels(model, *artifact, device).set(1)
        for task in tasks:  # as in `_create_series`
            self._routed.labels(model, task)
            self._entropy.labels(model, task)
            for expert in tasks:
                self._weights.labels(model, task, expert)

    def model_unloaded(
        self, model: str, artifact: tuple[str, str, str], device: str, *, replaced: bool = False
    ) -> None:
        """An artifact answers no more."""
        if not replaced:
            self._loads.labels("unloaded").inc()
        self._artifacts.labels(model, *artifact, device).set(0)
        if not self._multiprocess:  # where series cannot be removed
            self._artifacts.remove(model, *artifact, device)

    def model_refused(self) -> None:
        """An artifact could not be loaded."""
        self._loads.labels("failed").inc()

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

    def molecule_read(self, atom_types: NDArray[np.int64]) -> None:
        """Observe a molecule by its (N,) atom types: what drifts when clients come with other
        chemistry."""
        self._molecule_atoms.observe(len(atom_types))
        if not _USUAL_ATOMS[atom_types].all():
            self._rare.inc()

    def cache(self, hits: int, misses: int) -> None:
        """Count look-ups."""
        self._cache.labels("hit").inc(hits)
        self._cache.labels("miss").inc(misses)

    def parser_lost(self, reason: str) -> None:
        """Count a parser process that was lost."""
        self._parsers.labels(reason).inc()

    def job_ended(self, outcome: str) -> None:
        """Count a job."""
        self._jobs.labels(outcome).inc()

    def model_pass(self, statistics: PassStatistics) -> None:
        """Observe a model pass."""
        self._batch_graphs.observe(statistics.items)
        self._batch_fill.observe(statistics.fill)
        self.stage("model", statistics.seconds)
        for seconds in statistics.waited_seconds:
            self.stage("queue", seconds)

    def pass_atoms(self, atoms: int) -> None:
        """Observe the size of a model pass."""
        self._batch_atoms.observe(atoms)

    def routing(
        self, model: str, task: str, experts: Sequence[str], weights: NDArray[np.float32]
    ) -> None:
        """Count routing weights (G, sites, K) of a pass with mixing."""
        by_graph = weights.astype(np.float64)
        self._routed.labels(model, task).inc(len(weights))
        for expert, total in zip(experts, by_graph.mean(axis=1).sum(axis=0).tolist(), strict=True):
            self._weights.labels(model, task, expert).inc(total)
        entropy = (
            -(by_graph * np.log(np.maximum(by_graph, np.finfo(np.float64).tiny)))
            .sum(axis=2)
            .mean(axis=1)
        )
        self._entropy.labels(model, task).inc(max(0.0, float(entropy.sum())))


class _Before(Collector):
    """Has something done at the beginning of a scrape: collectors are asked in the order in which
    they were registered."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def collect(self) -> list[Metric]:
        """Nothing of its own."""
        self._work()
        return []


def shared_registry() -> CollectorRegistry:
    """The metrics of all processes of a service with several."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
