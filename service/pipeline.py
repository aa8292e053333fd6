"""The way of a request: admitted, parsed, queued, answered. Joins parser, batcher, engine and metrics; knows no HTTP."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.graph import MolGraph
from models.unified import Routing
from service.batcher import Batcher, QueueClosedError, QueueFullError
from service.engine import Engine, EngineInfo
from service.metrics import ANSWERED, CANCELLED, FAILED, REFUSED, Metrics
from service.parsing import MoleculeLimits, Parsed, Parser, Source, Unreadable
from service.settings import Settings

_CARBON = [[5, 0]]


@dataclass(frozen=True)
class PassKey:
    """What requests must have in common to share a pass."""

    tasks: tuple[str, ...]
    routing: Routing


@dataclass(frozen=True)
class Answer:
    """The answer for one molecule.

    Attributes:
        smiles: canonical; None for a graph.
        probabilities: by task, (labels,).
        routing: by task, (sites, experts).
    """

    smiles: str | None
    probabilities: dict[str, NDArray[np.float32]]
    routing: dict[str, NDArray[np.float32]]


_RawAnswer = tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]


class Pipeline:
    """Answers requests from one engine."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._parser = Parser(MoleculeLimits(settings.max_atoms, settings.max_smiles_length))
        self._batcher: Batcher[PassKey, MolGraph, _RawAnswer] = Batcher(
            self._run_pass, max_batch_cost=settings.max_batch_cost, max_pending_cost=settings.max_pending_cost, on_pass=metrics.model_pass
        )
        self._ready = False
        info = engine.info
        metrics.model_loaded(info.name, info.version, info.digest, info.device, info.tasks)
        metrics.queue_molecules.set_function(lambda: self._batcher.waiting_items)
        metrics.pending_cost.set_function(lambda: self._batcher.pending_cost)
        metrics.ready.set_function(lambda: self._ready)

    @property
    def info(self) -> EngineInfo:
        """The model that answers."""
        return self._engine.info

    @property
    def ready(self) -> bool:
        """Whether the engine answered its warm-up and the service is not stopping."""
        return self._ready

    async def start(self) -> None:
        """Warm up, then accept requests. What the engine raises on its first molecule is raised here: a model that cannot answer is no service."""
        graph = MolGraph.from_lists(_CARBON, [[], []], [])
        for routing in ("moe", "own"):
            await asyncio.to_thread(self._engine.run, [graph], self.info.tasks, routing)
        self._batcher.start()
        self._ready = True

    async def close(self) -> None:
        """Refuse what comes, answer what is there, stop the threads."""
        self._ready = False
        await self._batcher.close()
        self._parser.close()

    async def predict(self, sources: Sequence[Source], tasks: tuple[str, ...], routing: Routing) -> list[Answer | Unreadable]:
        """Answer molecules, in their order; those that cannot be read are marked and hinder no other.

        Args:
            sources: SMILES or graphs, at least one.
            tasks: known to the model, each once.
            routing: "moe" or "own".

        Raises:
            QueueFullError: too much waits; nothing was done.
            QueueClosedError: the service is stopping.
            Exception: the model failed on a pass with one of the molecules.
        """
        key = PassKey(tuple(task for task in self.info.tasks if task in tasks), routing)  # in the model's order, so that spellings share a pass
        try:
            with self._batcher.admit(len(tasks) * sum(map(self._parser.cost, sources))):
                results = await self._answer(sources, key)
        except (QueueFullError, QueueClosedError):
            self._metrics.molecules(REFUSED, len(sources))
            raise
        except asyncio.CancelledError:
            self._metrics.molecules(CANCELLED, len(sources))
            raise
        except Exception:
            self._metrics.molecules(FAILED, len(sources))
            raise
        for result in results:
            self._metrics.molecules(ANSWERED if isinstance(result, Answer) else result.code)
        return results

    async def _answer(self, sources: Sequence[Source], key: PassKey) -> list[Answer | Unreadable]:
        started = time.perf_counter()
        parsed = await self._parser.parse(sources)
        self._metrics.stage("parse", time.perf_counter() - started)
        graphs = [molecule.graph for molecule in parsed if isinstance(molecule, Parsed)]
        if not graphs:
            return [molecule for molecule in parsed if isinstance(molecule, Unreadable)]
        answers = iter(await self._batcher.submit(key, graphs, [graph.num_nodes * len(key.tasks) for graph in graphs]))
        return [Answer(molecule.smiles, *next(answers)) if isinstance(molecule, Parsed) else molecule for molecule in parsed]

    def _run_pass(self, key: PassKey, graphs: list[MolGraph]) -> list[_RawAnswer]:
        """One pass of the engine, cut into molecules; runs on the worker thread."""
        self._metrics.batch(len(graphs), sum(graph.num_nodes for graph in graphs))
        output = self._engine.run(graphs, key.tasks, key.routing)
        if key.routing == "moe":  # with "own" every weight is 0 or 1 and would blur the mean
            for task, weights in output.routing.items():
                self._metrics.routing.add(task, weights)
        return [
            ({task: output.probabilities[task][k] for task in key.tasks}, {task: output.routing[task][k] for task in key.tasks})
            for k in range(len(graphs))
        ]
