"""The model registry: models are loaded, replaced and unloaded while requests are answered.

A request keeps its engine, so that it is answered entirely by the model from before or after a
reload. A new model replaces the old one only after its warm-up; if it cannot be loaded, the old one
stays.

Models have the names of their folders in `GMERGING_MODELS`; the default model has its artifact's
name, or `GMERGING_MODEL_NAME`. Names from clients are only compared with these and never used as
paths.
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
from models.experts.combination import ExpertChoice
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
    """The latest admin order for a model: load or unload. `count` increases with every order."""

    count: int
    loaded: bool


class ModelRegistry:
    """All models by name. Models are loaded on threads; all other code runs on the event loop."""

    def __init__(
        self,
        load: Callable[[Path], Engine],
        metrics: Metrics,
        artifact: Path,
        folder: Path | None = None,
        watch_seconds: float = 0,
        orders: Path | None = None,
        name: str | None = None,
    ) -> None:
        """Create an empty registry; `start` loads the models.

        Args:
            load: loads an artifact into an engine and warms it up; called on a thread.
            metrics: counts loads and refusals.
            artifact: folder of the default model.
            folder: folder with the artifacts of further models.
            watch_seconds: interval in which artifacts are checked for changes; 0 for never.
            orders: file shared by all worker processes of a service, through which an admin's order
                to one of them reaches all.
            name: of the default model; None for its artifact's.
        """
        self._load, self._metrics = load, metrics
        self._artifact, self._folder, self._watch_seconds, self._orders = (
            artifact,
            folder,
            watch_seconds,
            orders,
        )
        self._engines: dict[str, Engine] = {}
        self._default, self._name = "", name
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
        """Return the engine of a model, or of the default model for None. Raises
        UnknownModelError."""
        try:
            return self._engines[self._default if name is None else name]
        except KeyError:
            raise UnknownModelError(str(name), self.names) from None

    def query(
        self,
        model: str | None,
        tasks: Sequence[str] | None,
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> PredictionQuery:
        """Create the query of a request; None means the default model, all of its tasks, or the
        default experts.

        Raises:
            UnknownModelError: the model is not loaded.
            UnsupportedQueryError: the model does not have a task, the routing or an expert.
        """
        name = self._default if model is None else model
        return PredictionQuery.checked(name, self.get(name), tasks, routing, experts)

    def available(self) -> dict[str, bool]:
        """Return all models that are or can be loaded, by name, with True for loaded ones. If the
        folder cannot be read, only loaded models are listed."""
        try:
            sources = self._sources()
        except ConfigError as error:
            log.error("%s", error)
            sources = {}
        return {name: name in self._engines for name in {**self._engines, **sources}}

    async def start(self, engine: Engine | None = None) -> None:
        """Load all models and start watching for changes and orders.

        Args:
            engine: engine of the default model, in place of loading its artifact.

        Raises:
            ConfigError: a model of the folder has the default model's name.
            GMergingError: an artifact cannot be loaded.
        """
        default = (
            engine if engine is not None else await asyncio.to_thread(self._load, self._artifact)
        )
        self._default = self._name or default.info.name
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
        """Stop watching for changes and orders."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def load(self, name: str) -> Engine:
        """Load or reload a model.

        Raises:
            UnknownModelError: there is no artifact of this name.
            GMergingError: the artifact cannot be loaded; a model loaded before stays. Other
                exceptions of the warm-up are raised, too.
        """
        engine = await self._replace(name)
        self._order(name, loaded=True)
        return engine

    async def unload(self, name: str) -> None:
        """Unload a model; requests that already use it are still answered.

        Raises:
            UnknownModelError: the model is not loaded.
            DefaultModelError: it is the default model.
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
        """List the artifacts of the folder by name, without the default model's.

        Hidden folders are left out; artifacts are hidden while they are written.

        Raises:
            ConfigError: the folder cannot be read.
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
                engine = await self._load_unchanged(name, sources[name])
            except Exception:
                self._metrics.model_refused()
                raise
            self._install(name, engine)
            return engine

    async def _load_unchanged(self, name: str, path: Path) -> Engine:
        """Load a model; retry if it fails because its artifact was replaced meanwhile."""
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
            except Exception:  # such as a full disk, which may pass
                log.exception("looking for models failed")

    async def _watch(self) -> None:
        """Load new and changed artifacts, and unload deleted ones. Artifacts that cannot be loaded
        are tried again once they change."""
        sources = self._sources()
        for name, path in sources.items():
            if _state(path) != self._seen.get(name):
                await self._try(name)
        for name in self._engines.keys() - sources.keys():
            self._remove(name)
            self._seen.pop(name, None)

    async def _follow(self) -> None:
        """Carry out new orders that other workers received."""
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
        """Write an order for the other workers."""
        if self._orders is None:
            return
        with self._orders.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            orders = _read_orders(self._orders)
            count = orders[name].count + 1 if name in orders else 1
            new = self._orders.with_suffix(".new")
            new.write_bytes(orjson.dumps({**orders, name: _Order(count, loaded)}))
            # Atomic: readers see the old file or the new one.
            new.replace(self._orders)
        self._followed[name] = count


def _read_orders(path: Path) -> dict[str, _Order]:
    content = path.read_bytes() if path.is_file() else b""
    return (
        {name: _Order(**order) for name, order in orjson.loads(content).items()} if content else {}
    )


def _state(artifact: Path) -> str:
    """Return the sha256 of the manifest, which changes with any file of the artifact; empty if
    there is no manifest."""
    path = artifact / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
