"""The prediction pipeline: admission, reading, cache, queue, model. Connects parser, cache,
batcher, engines and metrics; independent of HTTP."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cachetools import LRUCache

from models.domain.structures import Structures
from models.families.inputs import Graph
from service.core.answer import Answer, Outcome, Result
from service.core.batcher import (
    Batcher,
    DeadlineExceededError,
    Permit,
    QueueClosedError,
    QueueFullError,
)
from service.core.cache import AnswerCache
from service.core.engine import PassOutput, PredictionQuery, gpu_memory_bytes
from service.core.explaining import NOTHING, Explained, Explainer
from service.core.explanations.domain import DomainExplainer
from service.core.parsing import Parser
from service.core.reading import (
    Depicted,
    Drawing,
    ItemFailure,
    MoleculeLimits,
    Parsed,
    Source,
    cost,
)
from service.schemas import ExplanationName
from service.settings import Settings
from service.telemetry.metrics import ANSWERED, CANCELLED, EXPIRED, FAILED, REFUSED, Metrics
from service.telemetry.statistics import Gauges
from service.telemetry.tracing import span

_PICTURE_SHARE = 8
"""Pictures are kept in a cache of one in so many bytes of that of answers."""
_MOST_DRAWN = 2000
"""Molecules that may wait to be drawn, for every process that reads: about 10 s of work."""


class Pipeline:
    """Reads molecules and graphs and predicts for them.

    Attributes:
        stopping: set when the service starts to drain; endless streams end then.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        structures = None if settings.structures is None else Structures(settings.structures)
        self._metrics = metrics
        self._limits = MoleculeLimits(settings.max_atoms, settings.max_smiles_length)
        self._parser = Parser(
            self._limits, settings.parsers, settings.parse_timeout_seconds, metrics.parser_lost
        )
        self._cache = AnswerCache(settings.cache_bytes)
        self._batcher: Batcher[PredictionQuery, Graph, Outcome] = Batcher(
            self._run_pass,
            max_batch_cost=settings.max_batch_cost,
            max_pending_cost=settings.max_pending_cost,
            on_pass=metrics.model_pass,
        )
        self._pictures: LRUCache[Drawing, Depicted] = LRUCache(
            settings.cache_bytes // _PICTURE_SHARE, getsizeof=lambda found: len(found.svg) + 500
        )
        self._most_drawn, self._drawing = _MOST_DRAWN * settings.parsers, 0
        self._explainers: Mapping[ExplanationName, Explainer] = {
            "domain": DomainExplainer(self._parser.similarity_fingerprints, structures)
        }
        self._accepts = self._ready = False
        self.stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def accepts(self) -> bool:
        """True while requests are accepted."""
        return self._accepts

    @property
    def ready(self) -> bool:
        """True while a load balancer should send requests: False while the service is starting,
        draining or stopping."""
        return self._ready

    def gauges(self, jobs_waiting: int = 0) -> Gauges:
        """Return the current values of gauges for a scrape of the metrics."""
        batcher = self._batcher
        return Gauges(
            ready=self._ready,
            queue_molecules=batcher.waiting_items,
            queue_oldest_seconds=batcher.oldest_seconds,
            pending_cost=batcher.pending_cost,
            cache_bytes=self._cache.size_bytes,
            gpu_memory_bytes=gpu_memory_bytes(),
            jobs_waiting=jobs_waiting,
        )

    async def start(self) -> None:
        """Start the parser processes and the batcher, then accept requests. Raises
        ParserStartError."""
        await self._parser.start()
        self._batcher.start()
        self._loop = asyncio.get_running_loop()
        self._accepts = self._ready = True

    def drain(self) -> None:
        """Set `ready` to False and end streams; requests are still answered. Safe to call from a
        signal handler."""
        self._ready = False
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stopping.set)

    async def close(self) -> None:
        """Refuse new requests, answer the waiting ones, then stop threads and processes."""
        self._accepts = self._ready = False
        await self._batcher.close()
        await asyncio.to_thread(self._parser.close)

    async def predict(
        self,
        query: PredictionQuery,
        sources: Sequence[Source],
        seconds: float = math.inf,
        *,
        bounded: bool = True,
        explained: Explained = NOTHING,
    ) -> list[Result]:
        """Read molecules or graphs and predict for them.

        Args:
            query: model, tasks, routing and experts.
            sources: unread molecules or graphs, at least one.
            seconds: time until the deadline.
            bounded: False for streams and jobs, which are admitted even if the queue is full: there
                are few of them, with few molecules in the queue at a time.
            explained: explanations to compute.

        Returns:
            One result per source, in their order: an `Answer`, or an `ItemFailure` for sources that
            cannot be read or predicted.

        Raises:
            QueueFullError: the queue is full; nothing was read.
            QueueClosedError: the service is stopping.
            DeadlineExceededError: the deadline passed.
            UnsupportedQueryError: the model cannot be explained in this way.
            Exception: the model failed on a pass with one of the molecules.
        """
        count = self._metrics.molecules
        try:
            results = await self._answer_in_time(query, sources, seconds, bounded, explained)
        except (QueueFullError, QueueClosedError):
            count(REFUSED, len(sources))
            raise
        except DeadlineExceededError:
            count(EXPIRED, len(sources))
            raise
        except asyncio.CancelledError:
            count(CANCELLED, len(sources))
            raise
        except Exception:
            count(FAILED, len(sources))
            raise
        for result in results:
            count(ANSWERED if isinstance(result, Answer) else result.code)
        return results

    async def depict(
        self, drawings: Sequence[Drawing], seconds: float = math.inf
    ) -> list[Depicted | ItemFailure]:
        """Read molecules and draw them, or take pictures from the cache.

        Args:
            drawings: at least one.
            seconds: time until the deadline.

        Returns:
            One result per drawing, in their order.

        Raises:
            QueueFullError: too many molecules wait to be drawn; nothing was read.
            DeadlineExceededError: the deadline passed.
        """
        found = {drawing: self._pictures.get(drawing) for drawing in drawings}
        missing = [drawing for drawing, picture in found.items() if picture is None]
        if self._drawing + len(missing) > self._most_drawn:
            raise QueueFullError(1)
        drawn: dict[Drawing, Depicted | ItemFailure] = {}
        if missing:
            self._drawing += len(missing)
            try:
                async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                    results = await self._parser.depict(missing)
            except TimeoutError:
                raise DeadlineExceededError from None
            finally:
                self._drawing -= len(missing)
            drawn = dict(zip(missing, results, strict=True))
        for drawing, result in drawn.items():
            if isinstance(result, Depicted) and len(result.svg) < self._pictures.maxsize // 2:
                self._pictures[drawing] = result
        return [found[drawing] or drawn[drawing] for drawing in drawings]

    async def _answer_in_time(
        self,
        query: PredictionQuery,
        sources: Sequence[Source],
        seconds: float,
        bounded: bool,
        explained: Explained,
    ) -> list[Result]:
        estimate = query.num_streams * sum(
            cost(source, self._limits, query.requirements) for source in sources
        )
        timeout = asyncio.timeout(None if math.isinf(seconds) else seconds)
        deadline = self._batcher.now() + seconds
        try:
            async with timeout:
                with self._batcher.admit(estimate, seconds, bounded=bounded) as permit:
                    results = await self._answer(query, sources, permit, deadline)
                    if explained.computed:
                        results = await self._explain(query, results, explained, deadline)
        except TimeoutError:
            if timeout.expired():
                raise DeadlineExceededError from None
            raise
        # What was read in this process and cached never waits, and the timeout needs a wait.
        if self._batcher.now() > deadline:
            raise DeadlineExceededError
        return results

    async def _answer(
        self, query: PredictionQuery, sources: Sequence[Source], permit: Permit, deadline: float
    ) -> list[Result]:
        started = time.perf_counter()
        with span("parse", molecules=len(sources)):
            idle = self._batcher.admitted == 1
            parsed = await self._parser.parse(sources, query.requirements, idle=idle)
        self._metrics.stage("parse", time.perf_counter() - started)
        digest, tasks = query.engine.info.digest, query.tasks
        choice = query.routing, query.experts
        family = query.requirements.family
        readable = [molecule for molecule in parsed if isinstance(molecule, Parsed)]
        for molecule in readable:
            if (types := family.atom_types(molecule.graph)) is not None:
                self._metrics.molecule_read(types.numpy())
        found = [self._cache.get(digest, molecule.key, tasks, *choice) for molecule in readable]
        missing = [molecule for molecule, hit in zip(readable, found, strict=True) if hit is None]
        self._metrics.cache(len(readable) - len(missing), len(missing))
        streams = query.num_streams
        costs = [family.cost(molecule.graph) * streams for molecule in missing]
        permit.cost = sum(costs)
        computed: list[Outcome] = []
        if missing:
            with span("model", molecules=len(missing)):
                computed = await self._batcher.submit(
                    query, [molecule.graph for molecule in missing], costs, deadline
                )
            for molecule, answer in zip(missing, computed, strict=True):
                if not isinstance(answer, ItemFailure):
                    self._cache.put(digest, molecule.key, answer, *choice)
        new = iter(computed)
        return with_errors(parsed, [next(new) if hit is None else hit for hit in found])

    async def _explain(
        self,
        query: PredictionQuery,
        results: Sequence[Result],
        explained: Explained,
        deadline: float,
    ) -> list[Result]:
        """Add explanations to the answers among the results."""
        answers = [result for result in results if isinstance(result, Answer)]
        if not answers:
            return [*results]
        found: list[dict[str, object]] = [{} for _ in answers]
        for name in explained.computed:
            with span("explain", explanation=name, molecules=len(answers)):
                values = await self._explainers[name](query, answers, explained, deadline)
            for own, value in zip(found, values, strict=True):
                if value is not None:
                    own[name] = value
        new = iter(found)
        return [
            replace(result, explanations=next(new)) if isinstance(result, Answer) else result
            for result in results
        ]

    def _run_pass(self, query: PredictionQuery, graphs: list[Graph]) -> list[Outcome]:
        """Predict for the graphs of one pass, on the worker thread."""
        self._metrics.pass_atoms(sum(graph.num_nodes for graph in graphs))
        outcomes = run_pass(query, graphs)
        good = [outcome for outcome in outcomes if not isinstance(outcome, ItemFailure)]
        # with "own" every weight is 0 or 1 and would blur the mean
        if query.routing != "own" and good:
            output, experts = PassOutput(good), query.engine.info.tasks
            for task in query.tasks:
                self._metrics.routing(query.model, task, experts, output.routing(task))
        return outcomes


def run_pass(query: PredictionQuery, graphs: Sequence[Graph]) -> list[Outcome]:
    """Run the engine on the graphs of one pass. If a prediction is not finite because of large
    numbers in a graph, bisect the graphs until that graph fails alone; the others are answered."""
    try:
        return [*query.engine.run(graphs, query.tasks, query.routing, query.experts).answers]
    except FloatingPointError as error:
        if not query.requirements.family.inputs_overflow:
            raise
        if len(graphs) == 1:
            message = f"{error}: those of the graph are too large for the model"
            return [ItemFailure("not_finite", message)]
        half = len(graphs) // 2
        return run_pass(query, graphs[:half]) + run_pass(query, graphs[half:])


def with_errors(
    parsed: Sequence[Parsed | ItemFailure], outcomes: Sequence[Outcome]
) -> list[Result]:
    """Join the outcomes of the molecules that could be read, in order, with the errors of those
    that could not."""
    left = iter(outcomes)
    results: list[Result] = []
    for item in parsed:
        if isinstance(item, ItemFailure):
            results.append(item)
        elif isinstance(outcome := next(left), ItemFailure):
            results.append(outcome)
        else:
            results.append(Answer(item.smiles, outcome, item.graph))
    return results
