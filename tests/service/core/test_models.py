"""Models come, change and go while requests are answered."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from models.errors import ArtifactError, ConfigError
from service.core import models as registry_module
from service.core.engine import Engine
from service.core.models import DefaultModelError, ModelRegistry, UnknownModelError
from service.telemetry.metrics import Metrics
from tests.service.doubles import DummyEngine

pytestmark = pytest.mark.anyio


def write(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(content)
    return folder


def load(path: Path) -> Engine:
    """Stands for loading: the manifest is the version, and "bad" cannot be loaded."""
    version = (path / "manifest.json").read_text()
    if version == "bad":
        raise ArtifactError("bad artifact")
    engine = DummyEngine(version)
    engine.info = type(engine.info)(**{**vars(engine.info), "name": path.name})
    return engine


@asynccontextmanager
async def registry_of(folder: Path, **options: object) -> AsyncIterator[ModelRegistry]:
    registry = ModelRegistry(load, Metrics([]), folder / "main", folder / "more", **options)  # type: ignore[arg-type]
    await registry.start()
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "main", "1")
    write(tmp_path / "more" / "a", "1")
    (tmp_path / "more" / "no model").mkdir()
    return tmp_path


async def test_all_are_loaded_at_the_start(folder: Path) -> None:
    async with registry_of(folder) as registry:
        assert (registry.default, registry.names) == ("main", ["main", "a"])
        assert registry.get() is registry.get("main")
        assert registry.get("a").info.version == "1"
        for name in ("b", "no model", "../main", "", "a/../a"):
            with pytest.raises(UnknownModelError, match="expected one of main, a"):
                registry.get(name)


async def test_the_default_model_may_have_another_name(folder: Path) -> None:
    async with registry_of(folder, name="mine") as registry:
        assert (registry.default, registry.names) == ("mine", ["mine", "a"])
        assert registry.get("mine").info.name == "main"
        with pytest.raises(UnknownModelError, match="expected one of mine, a"):
            registry.get("main")
        write(folder / "main", "2")
        assert (await registry.load("mine")).info.version == "2"
    with pytest.raises(ConfigError, match="got a model 'a'"):
        async with registry_of(folder, name="a"):
            pytest.fail("started")


async def test_start_fails_loudly(folder: Path) -> None:
    write(folder / "more" / "b", "bad")
    with pytest.raises(ArtifactError):
        async with registry_of(folder):
            pytest.fail("started")
    shutil.rmtree(folder / "more" / "b")
    write(folder / "more" / "main", "1")
    with pytest.raises(ConfigError, match="got a model 'main'"):
        async with registry_of(folder):
            pytest.fail("started")


async def test_reload_and_refusal(folder: Path) -> None:
    async with registry_of(folder) as registry:
        old = registry.get("a")
        write(folder / "more" / "a", "2")
        assert (await registry.load("a")).info.version == "2"
        assert registry.get("a").info.version == "2"
        assert old.info.version == "1"  # whoever has it keeps it
        write(folder / "more" / "a", "bad")
        with pytest.raises(ArtifactError):
            await registry.load("a")
        assert registry.get("a").info.version == "2"


async def test_an_artifact_that_is_replaced_while_it_is_read_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with registry_of(folder) as registry:
        states = ["3", "4"]

        def replaced_meanwhile(path: Path) -> Engine:
            if states:
                write(path, states.pop(0))
                raise ArtifactError("got other contents than the manifest's sha256 says")
            return load(path)

        monkeypatch.setattr(registry, "_load", replaced_meanwhile)
        assert (await registry.load("a")).info.version == "4"


async def test_load_and_unload(folder: Path) -> None:
    async with registry_of(folder) as registry:
        write(folder / "more" / "b", "7")
        assert registry.available() == {"main": True, "a": True, "b": False}
        await registry.load("b")
        await registry.unload("a")
        assert registry.names == ["main", "b"]
        with pytest.raises(UnknownModelError):
            await registry.unload("a")
        with pytest.raises(DefaultModelError):
            await registry.unload("main")
        for name in ("nope", "../main", "/etc"):
            with pytest.raises(UnknownModelError):
                await registry.load(name)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def test_folder_is_watched(folder: Path) -> None:
    async with registry_of(folder, watch_seconds=0.01) as registry:
        write(folder / "more" / "b", "1")
        write(folder / "main", "2")
        write(folder / "more" / "a", "bad")
        await until(lambda: "b" in registry.names and registry.get().info.version == "2")
        assert registry.get("a").info.version == "1"
        write(folder / "more" / "a", "3")
        shutil.rmtree(folder / "more" / "b")
        await until(lambda: "b" not in registry.names and registry.get("a").info.version == "3")


async def test_folder_that_is_away_for_a_while_takes_no_model_away(folder: Path) -> None:
    async with registry_of(folder, watch_seconds=0.01) as registry:
        (folder / "more").rename(folder / "away")
        await asyncio.sleep(0.1)
        assert registry.available() == {"main": True, "a": True}
        write(folder / "main", "2")
        assert (await registry.load("main")).info.version == "2"
        with pytest.raises(
            ConfigError, match="more: No such file or directory, expected a folder of models"
        ):
            await registry.load("a")
        assert registry.get("a").info.version == "1"
        write(folder / "away" / "b", "1")
        (folder / "away").rename(folder / "more")
        await until(lambda: "b" in registry.names)


async def test_what_one_worker_is_told_all_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_FOLLOW_SECONDS", 0.01)
    orders = folder / "orders.json"
    async with (
        registry_of(folder, orders=orders) as told,
        registry_of(folder, orders=orders) as other,
    ):
        write(folder / "more" / "a", "2")
        write(folder / "more" / "b", "1")
        await told.load("a")
        await told.load("b")
        await until(
            lambda: other.names == ["main", "a", "b"] and other.get("a").info.version == "2"
        )
        await other.unload("b")
        await until(lambda: "b" not in told.names)
        async with registry_of(folder, orders=orders) as late:  # a worker that was started anew
            assert late.names == ["main", "a"]
