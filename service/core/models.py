"""The registry of models: they are loaded, replaced and unloaded while requests are answered.

A request keeps the engine that it got, so it is answered by the model from before or after a reload
and never by both. A new model replaces the old one only after its warm-up; if it cannot be loaded,
the old one goes on.

Names are those of the folders in `GMERGING_MODELS`, and the name of the default artifact. A name
from a client is only compared with these and never becomes a path.
"""

import asyncio
import fcntl
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from models.artifact import MANIFEST
from models.errors import ConfigError, GMergingError
from models.experts.unified import Routing
from service.core.engine import Engine, PredictionQuery
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
_FOLLOW_SECONDS = 1.0


class UnknownModelError(Exception):
    """No model has this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"got unknown model {name[:64]!a}, expected one of {', '.join(known)}")


class DefaultModelError(Exception):
    """The default model cannot be unloaded."""


@dataclass
class _Order:
    """The last order of an admin for a model; `count` grows with every order."""

    count: int
    loaded: bool


class ModelRegistry:
    """All models by name. Models are loaded on threads; everything else runs on the event loop."""

    def __init__(
        self,
        load: Callable[[Path], Engine],
        metrics: Metrics,
        artifact: Path,
        folder: Path | None = None,
        watch_seconds: float = 0,
        orders: Path | None = None,
    ) -> None:
        """Make an empty registry; `start` loads the models.

        Args:
            load: loads an artifact into an engine and warms it up; called on a thread.
            metrics: to count loads.
            artifact: the default model.
            folder: of further artifacts.
            watch_seconds: interval at which their folders are checked for changes; 0: never.
            orders: a file that all workers of a service share, so that an admin's order to one of
                them is carried out by all.
        """
        self._load, self._metrics = load, metrics
        self._artifact, self._folder, self._watch_seconds, self._orders = (
            artifact,
            folder,
            watch_seconds,
            orders,
        )
        self._engines: dict[str, Engine] = {}
        self._default = ""
        self._followed: dict[str, int] = {}
        self._seen: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def default(self) -> str:
        """Name of the default model."""
        return self._default

    @property
    def names(self) -> list[str]:
        """Names of all loaded models."""
        return list(self._engines)

    def get(self, name: str | None = None) -> Engine:
        """The engine of a model; None: of the default model. Raises UnknownModelError."""
        try:
            return self._engines[self._default if name is None else name]
        except KeyError:
            raise UnknownModelError(str(name), self.names) from None

    def query(
        self, model: str | None, tasks: Sequence[str] | None, routing: Routing
    ) -> PredictionQuery:
        """Make the query of a request; None means the default model, or all of its tasks.

        Raises:
            UnknownModelError: there is no such model.
            UnsupportedQueryError: the model has no such task or routing.
        """
        name = self._default if model is None else model
        return PredictionQuery.checked(name, self.get(name), tasks, routing)

    def available(self) -> dict[str, bool]:
        """Names of all models that are or can be loaded, and whether they are loaded. If the folder
        cannot be read, only the loaded ones."""
        try:
            sources = self._sources()
        except ConfigError as error:
            log.error("%s", error)
            sources = {}
        return {name: name in self._engines for name in {**self._engines, **sources}}

    async def start(self, engine: Engine | None = None) -> None:
        """Load all models; any that cannot be loaded is an error. `engine` answers by default if it
        is given, in place of the artifact's.

        Raises:
            ConfigError: a model of the folder has the default one's name.
            GMergingError: an artifact cannot be used.
        """
        default = (
            engine if engine is not None else await asyncio.to_thread(self._load, self._artifact)
        )
        self._default = default.info.name
        sources = self._children()
        if self._default in sources:
            raise ConfigError(
                f"got a model {self._default!r} in {self._folder}, expected other names than the"
                " default model's"
            )
        self._seen = {name: _state(path) for name, path in self._sources().items()}
        self._install(self._default, default)
        for name, path in sources.items():
            self._install(name, await asyncio.to_thread(self._load, path))
        if self._watch_seconds:
            self._tasks.append(
                asyncio.create_task(
                    self._repeat(self._watch, self._watch_seconds), name="watch models"
                )
            )
        if self._orders is not None:
            await self._follow()
            self._tasks.append(
                asyncio.create_task(
                    self._repeat(self._follow, _FOLLOW_SECONDS), name="follow orders"
                )
            )

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def load(self, name: str) -> Engine:
        """Load a model, or load it anew.

        Raises:
            UnknownModelError: there is no artifact of this name.
            GMergingError: the artifact cannot be used; what answered before still does. Also
                whatever a model raises in its warm-up.
        """
        engine = await self._replace(name)
        self._order(name, loaded=True)
        return engine

    async def unload(self, name: str) -> None:
        """Take a model away; requests that have it are still answered.

        Raises:
            UnknownModelError: it does not answer.
            DefaultModelError: it answers by default.
        """
        async with self._changing:
            self.get(name)
            if name == self._default:
                raise DefaultModelError(
                    f"{name} answers requests that name no model, and cannot be unloaded"
                )
            self._remove(name)
        self._order(name, loaded=False)

    def _sources(self) -> dict[str, Path]:
        return {self._default: self._artifact, **self._children()}

    def _children(self) -> dict[str, Path]:
        """The folder's artifacts; the default one may lie among them.

        Hidden folders are left out: an artifact that is being written is one until it is read back.

        Raises:
            ConfigError: the folder cannot be read; nothing is known of what it holds then.
        """
        try:
            folders = [] if self._folder is None else sorted(self._folder.iterdir())
        except OSError as error:
            got = f"{self._folder}: {error.strerror}"
            raise ConfigError(f"{got}, expected a folder of models") from None
        default = self._artifact.resolve()
        shown = [path for path in folders if not path.name.startswith(".")]
        artifacts = [path for path in shown if (path / MANIFEST).is_file()]
        return {path.name: path for path in artifacts if path.resolve() != default}

    async def _replace(self, name: str) -> Engine:
        async with self._changing:
            sources = {name: self._artifact} if name == self._default else self._sources()
            if name not in sources:
                raise UnknownModelError(name, list(sources))
            try:
                engine = await self._load_settled(name, sources[name])
            except Exception:
                self._metrics.model_refused()
                raise
            self._install(name, engine)
            return engine

    async def _load_settled(self, name: str, path: Path) -> Engine:
        """Load a model; again if its artifact was replaced while it was read."""
        while True:
            state = self._seen[name] = _state(path)
            try:
                return await asyncio.to_thread(self._load, path)
            except GMergingError:
                if _state(path) == state:
                    raise

    def _install(self, name: str, engine: Engine) -> None:
        old = self._engines.get(name)
        if old is not None:
            self._metrics.model_unloaded(name, old.info.artifact, old.info.device, replaced=True)
        self._engines[name] = engine
        info = engine.info
        self._metrics.model_loaded(name, info.artifact, info.device, info.tasks)
        log.info(
            "model %s: answering from %s %s (%s) on %s",
            name,
            info.name,
            info.version,
            info.digest[:12],
            info.device,
        )

    def _remove(self, name: str) -> None:
        info = self._engines.pop(name).info
        self._metrics.model_unloaded(name, info.artifact, info.device)
        log.info("model %s: unloaded", name)

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:  # a disk that is full or away today may be back tomorrow
                log.exception("looking for models failed")

    async def _watch(self) -> None:
        """Bring what answers in line with what lies in the folders. An artifact that cannot be
        loaded is tried again when it changes."""
        sources = self._sources()
        for name, path in sources.items():
            if _state(path) != self._seen.get(name):
                await self._try(name)
        for name in self._engines.keys() - sources.keys():
            self._remove(name)
            self._seen.pop(name, None)

    async def _follow(self) -> None:
        """Do what other workers were told."""
        if self._orders is None:
            return
        for name, order in _read_orders(self._orders).items():
            if order.count <= self._followed.get(name, 0):
                continue
            self._followed[name] = order.count
            if order.loaded:
                await self._try(name)
            elif name in self._engines:
                self._remove(name)

    async def _try(self, name: str) -> None:
        try:
            await self._replace(name)
        except (GMergingError, UnknownModelError) as error:
            log.error("model %s cannot be loaded, what answered before still does: %s", name, error)

    def _order(self, name: str, *, loaded: bool) -> None:
        """Tell the other workers."""
        if self._orders is None:
            return
        with self._orders.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            orders = _read_orders(self._orders)
            count = orders[name].count + 1 if name in orders else 1
            new = self._orders.with_suffix(".new")
            new.write_bytes(orjson.dumps({**orders, name: _Order(count, loaded)}))
            # in one step: who reads meanwhile sees the old file or the new one
            new.replace(self._orders)
        self._followed[name] = count


def _read_orders(path: Path) -> dict[str, _Order]:
    content = path.read_bytes() if path.is_file() else b""
    return (
        {name: _Order(**order) for name, order in orjson.loads(content).items()} if content else {}
    )


def _state(artifact: Path) -> str:
    """Changes whenever the artifact does: a manifest holds the checksums of all other files."""
    path = artifact / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
