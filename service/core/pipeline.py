"""The prediction pipeline: admission, reading, cache, queue, model. Connects parser, cache,
batcher, engines and metrics; independent of HTTP."""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from models.device import gpu_memory_bytes
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
from service.core.drawing import Depicted, Drawing, draw
from service.core.engine import PassOutput, PredictionQuery
from service.core.explaining import NOTHING, Explained, Explainer, with_explanations
from service.core.explanations.alerts import AlertExplainer, Alerts, alerts_of
from service.core.explanations.atoms import AtomsExplainer, AtomsQuery
from service.core.explanations.domain import DomainExplainer, similarity_fingerprint
from service.core.explanations.drugs import explain_drugs
from service.core.explanations.locating import Located
from service.core.layout import lay_out
from service.core.matching import Found, Search, search, smarts_failure
from service.core.parsing import Parser
from service.core.reading import ItemFailure, MoleculeLimits, Parsed, Source, cost
from service.core.side_work import Bound, SideWork
from service.schemas import ExplanationName
from service.settings import Settings
from service.telemetry.metrics import ANSWERED, CANCELLED, EXPIRED, FAILED, REFUSED, Metrics
from service.telemetry.statistics import Gauges
from service.telemetry.tracing import span

_SHARE_BESIDE = 8
"""The results of every kind of work beside predictions are kept in a cache of one in so many bytes
of that of answers."""
_MOST_BESIDE = 2000
"""Molecules that may wait to be drawn or searched, for every process that reads: 10 s of drawing,
less than 2 s of a search for a usual substructure."""


@dataclass(frozen=True)
class Work:
    """A kind of work of the model's thread. Items of equal work share passes.

    Attributes:
        query: what is asked; decides whether two are equal.
        run: function (items) that does it, one result per item.
    """

    query: Hashable
    run: Callable[[list[Any]], Sequence[Any]] = field(compare=False)


class Pipeline:
    """Reads molecules and graphs and predicts for them.

    Attributes:
        depict: draws molecules.
        match: searches in molecules for a substructure that `check_smarts` has accepted.
        lay_out: returns the mol blocks of canonical SMILES.
        check_smarts: returns SMARTS that can be read, and the errors of others.
        stopping: set when the service starts to drain; endless streams end then.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limits = MoleculeLimits(settings.max_atoms, settings.max_smiles_length)
        self._parser = Parser(
            self._limits, settings.parsers, settings.parse_timeout_seconds, metrics.parser_lost
        )
        self._cache = AnswerCache(settings.cache_bytes)
        self._batcher: Batcher[Work, Any, Any] = Batcher(
            lambda work, items: work.run(items),
            max_batch_cost=settings.max_batch_cost,
            max_pending_cost=settings.max_pending_cost,
            on_pass=metrics.model_pass,
        )
        self._add_side_work(settings)
        self._accepts = self._ready = False
        self.stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _add_side_work(self, settings: Settings) -> None:
        parser, limits = self._parser, self._limits
        share = settings.cache_bytes // _SHARE_BESIDE
        bound = Bound(_MOST_BESIDE * settings.parsers)
        self.depict: SideWork[Drawing, Depicted] = SideWork(
            parser,
            partial(draw, limits=limits),
            "draw",
            bound,
            share,
            lambda picture: len(picture.svg),
        )
        self.match: SideWork[Search, Found] = SideWork(
            parser,
            partial(search, limits=limits),
            "search",
            bound,
            share,
            lambda found: len(found.smiles) + 32 * sum(map(len, found.occurrences)),
        )
        self.check_smarts: SideWork[str, str] = SideWork(
            parser, smarts_failure, "read", bound, share, len
        )
        # Without a bound of its own: only streams and jobs ask for it, a few molecules at a time.
        self.lay_out: SideWork[str, str] = SideWork(
            parser, lay_out, "draw", Bound(math.inf), share, len
        )
        structures = None if settings.structures is None else Structures(settings.structures)
        # Without a bound of their own: only molecules that were admitted are explained.
        alerts: SideWork[str, Alerts] = SideWork(
            parser,
            alerts_of,
            "search for alerts",
            Bound(math.inf),
            share,
            lambda found: 32 * sum(len(alert["atoms"]) + 10 for alert in found),
        )
        self._explainers: Mapping[ExplanationName, Explainer] = {
            "atoms": AtomsExplainer(self._parser, self._submit_atoms),
            "domain": DomainExplainer(
                partial(parser.apply, work=similarity_fingerprint, verb="compare"), structures
            ),
            "drugs": explain_drugs,
            "alerts": AlertExplainer(alerts),
        }

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

    async def _answer_in_time(
        self,
        query: PredictionQuery,
        sources: Sequence[Source],
        seconds: float,
        bounded: bool,
        explained: Explained,
    ) -> list[Result]:
        streams = explained.num_streams(query.engine.info)
        estimate = (query.num_streams + streams) * sum(
            cost(source, self._limits, query.requirements) for source in sources
        )
        timeout = asyncio.timeout(None if math.isinf(seconds) else seconds)
        deadline = self._batcher.now() + seconds
        try:
            async with timeout:
                with self._batcher.admit(estimate, seconds, bounded=bounded) as permit:
                    results = await self._answer(query, sources, permit, deadline)
                    if explained.computed:
                        results = await self._explain(query, results, explained, permit, deadline)
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
                work = Work(query, partial(self._run_pass, query))
                graphs = [molecule.graph for molecule in missing]
                computed = await self._batcher.submit(work, graphs, costs, deadline)
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
        permit: Permit,
        deadline: float,
    ) -> list[Result]:
        """Add explanations to the answers among the results."""
        answers = [result for result in results if isinstance(result, Answer)]
        if not answers:
            return [*results]
        costs = [query.requirements.family.cost(answer.graph) for answer in answers]
        permit.cost = sum(costs) * explained.num_streams(query.engine.info)
        found = dict[ExplanationName, list[Any]]()
        for name in explained.computed:
            with span("explain", explanation=name, molecules=len(answers)):
                found[name] = await self._explainers[name](query, answers, explained, deadline)
        return with_explanations(results, found)

    async def _submit_atoms(
        self, query: AtomsQuery, molecules: Sequence[Located], costs: Sequence[int], deadline: float
    ) -> list[dict[str, Any]]:
        work = Work(query, partial(query.run))
        return await self._batcher.submit(work, molecules, costs, deadline)

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
