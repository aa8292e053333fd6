"""Prometheus metrics of the service. Every application has a registry of its own.

Units are base units (seconds, bytes). Labels are bounded: routes, known methods, status codes,
stages, known error codes, loaded models and their tasks.

Several worker processes write their values to shared files (prometheus-client's multi-process
mode), and any worker shows the sums; there are no `process_` metrics then.
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
"""Environment variable that switches prometheus-client to its multi-process mode on import."""
Stage = Literal["parse", "queue", "model", "serialise"]
_GaugeMode = Literal["livesum", "livemin", "livemax", "livemostrecent"]
STAGES: tuple[Stage, ...] = ("parse", "queue", "model", "serialise")
# Outcomes of a molecule, besides the error codes of unreadable ones.
ANSWERED, REFUSED, FAILED, CANCELLED, EXPIRED = "ok", "refused", "failed", "cancelled", "expired"
OUTCOMES = (ANSWERED, REFUSED, FAILED, CANCELLED, EXPIRED)
LOAD_OUTCOMES = ("ok", "failed", "unloaded")
JOB_OUTCOMES = ("done", "failed", "cancelled")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# fmt: off
_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0
)
# fmt: on
_GRAPHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_ATOMS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_MOLECULE_ATOMS = (5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 200, 500)
_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# By atom type (atomic number - 1): 99 % of MoleculeNet's molecules consist of
# H, B, C, N, O, F, Na, Si, P, S, Cl, K, Br and I.
_USUAL_ATOMS = np.isin(
    np.arange(MASKED_ATOM + 1), np.array([1, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 19, 35, 53]) - 1
)


class Metrics:
    """The metrics of one application; methods take plain values, no Prometheus objects.

    Attributes:
        registry: the Prometheus registry of this process.
    """

    def __init__(self, item_codes: Sequence[str], losses: Sequence[str] = ()) -> None:
        """Register all metrics.

        Args:
            item_codes: error codes of unreadable molecules; any other code counts as "other".
            losses: reasons for which a parser process may be lost.
        """
        self._multiprocess = MULTIPROCESS_FOLDER in os.environ
        self._read_gauges: Callable[[], Gauges] | None = None
        self.registry = registry = CollectorRegistry()
        registry.register(_ScrapeHook(self.refresh))
        if not self._multiprocess:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gmerging_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"gmerging_{name}", text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str, mode: _GaugeMode, *labels: str) -> Gauge:
            name = f"gmerging_{name}"
            return Gauge(name, text, labels, multiprocess_mode=mode, registry=registry)

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
            "batch_fill_ratio", "Cost of a model pass by the most that one may cost", _RATIOS
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
            "pending_cost", "Atoms times streams admitted and not yet answered", "livesum"
        )
        self._cache_bytes = gauge("cache_bytes", "Size of the answer cache", "livesum")
        self._gpu_bytes = gauge("gpu_memory_bytes", "GPU memory that torch holds", "livesum")
        self._jobs_waiting = gauge("jobs_waiting", "Jobs that wait or run", "livemostrecent")
        self._item_codes = frozenset(item_codes)
        self._create_series(item_codes, losses)

    def _create_series(self, item_codes: Sequence[str], losses: Sequence[str]) -> None:
        """Create the series of all known label values, so that the first increase is visible."""
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

    def read_gauges_with(self, read: Callable[[], Gauges]) -> None:
        """Set the function that reads the current values of the gauges."""
        self._read_gauges = read

    def refresh(self) -> None:
        """Read the gauges.

        A scrape of a single process does so by itself. Several processes must each do so regularly,
        because a scrape reaches only one of them.
        """
        if self._read_gauges is None:
            return
        gauges = self._read_gauges()
        self._ready.set(gauges.ready)
        self._queue_molecules.set(gauges.queue_molecules)
        self._queue_oldest.set(gauges.queue_oldest_seconds)
        self._pending_cost.set(gauges.pending_cost)
        self._cache_bytes.set(gauges.cache_bytes)
        self._gpu_bytes.set(gauges.gpu_memory_bytes)
        self._jobs_waiting.set(gauges.jobs_waiting)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        if not self._multiprocess:
            return generate_latest(self.registry)
        self.refresh()
        return generate_latest(shared_registry())

    def model_loaded(
        self, model: str, artifact: tuple[str, str, str], device: str, tasks: Sequence[str] = ()
    ) -> None:
        """Record that an artifact answers for a model, in place of any other.

        Args:
            model: name of the model.
            artifact: name, version and digest of the artifact.
            device: device of the model.
            tasks: tasks of the model, which are its experts too.
        """
        self._loads.labels("ok").inc()
        self._artifacts.labels(model, *artifact, device).set(1)
        for task in tasks:  # creates the series, as `_create_series` does
            self._routed.labels(model, task)
            self._entropy.labels(model, task)
            for expert in tasks:
                self._weights.labels(model, task, expert)

    def model_unloaded(
        self, model: str, artifact: tuple[str, str, str], device: str, *, replaced: bool = False
    ) -> None:
        """Record that an artifact no longer answers.

        Args:
            model: name of the model.
            artifact: name, version and digest of the artifact.
            device: device of the model.
            replaced: whether another artifact takes over; then it does not count as unloaded.
        """
        if not replaced:
            self._loads.labels("unloaded").inc()
        self._artifacts.labels(model, *artifact, device).set(0)
        if not self._multiprocess:  # multi-process mode cannot remove a series
            self._artifacts.remove(model, *artifact, device)

    def model_refused(self) -> None:
        """Count an artifact that could not be loaded."""
        self._loads.labels("failed").inc()

    def request_answered(self, route: str, method: str, status: int) -> None:
        """Count a request when the status of its response is known."""
        self._requests.labels(route, method if method in _METHODS else "OTHER", str(status)).inc()

    def request_ended(self, route: str, seconds: float) -> None:
        """Observe the duration of a request, in seconds."""
        self._request_seconds.labels(route).observe(seconds)

    def molecules(self, outcome: str, count: int = 1) -> None:
        """Count molecules by outcome: one of `OUTCOMES` or the error code of an item."""
        known = outcome in OUTCOMES or outcome in self._item_codes
        self._molecules.labels(outcome if known else "other").inc(count)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Observe the duration of a stage, in seconds."""
        self._stages.labels(stage).observe(seconds)

    def molecule_read(self, atom_types: NDArray[np.int64]) -> None:
        """Observe size and elements of a molecule, which show when the clients' chemistry drifts.

        Args:
            atom_types: (N,) atom types, atomic number - 1.
        """
        self._molecule_atoms.observe(len(atom_types))
        if not _USUAL_ATOMS[atom_types].all():
            self._rare.inc()

    def cache(self, hits: int, misses: int) -> None:
        """Count hits and misses of the answer cache."""
        self._cache.labels("hit").inc(hits)
        self._cache.labels("miss").inc(misses)

    def parser_lost(self, reason: str) -> None:
        """Count a parser process that was lost."""
        self._parsers.labels(reason).inc()

    def job_ended(self, outcome: str) -> None:
        """Count a job that has ended."""
        self._jobs.labels(outcome).inc()

    def model_pass(self, statistics: PassStatistics) -> None:
        """Observe a model pass."""
        self._batch_graphs.observe(statistics.items)
        self._batch_fill.observe(statistics.fill)
        self.stage("model", statistics.seconds)
        for seconds in statistics.waited_seconds:
            self.stage("queue", seconds)

    def pass_atoms(self, atoms: int) -> None:
        """Observe the number of atoms in a model pass."""
        self._batch_atoms.observe(atoms)

    def routing(
        self, model: str, task: str, experts: Sequence[str], weights: NDArray[np.float32]
    ) -> None:
        """Count routing weights of a pass that mixed experts.

        Args:
            model: name of the model.
            task: the target task.
            experts: names of the K experts.
            weights: (G, sites, K) routing weights, which sum to 1 over the experts.
        """
        weights64 = weights.astype(np.float64)
        self._routed.labels(model, task).inc(len(weights))
        totals = weights64.mean(axis=1).sum(axis=0).tolist()
        for expert, total in zip(experts, totals, strict=True):
            self._weights.labels(model, task, expert).inc(total)
        logarithms = np.log(np.maximum(weights64, np.finfo(np.float64).tiny))
        entropy = -(weights64 * logarithms).sum(axis=2).mean(axis=1)
        self._entropy.labels(model, task).inc(max(0.0, float(entropy.sum())))


class _ScrapeHook(Collector):
    """Collector without metrics that calls a function at the beginning of a scrape.

    A registry asks its collectors in the order in which they were registered.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def collect(self) -> list[Metric]:
        """Call the function; return no metrics."""
        self._call()
        return []


def shared_registry() -> CollectorRegistry:
    """Return a registry with the sums over all worker processes."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
