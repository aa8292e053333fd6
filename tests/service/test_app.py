"""The application: what it is made of, how it stops, and what its workers share."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import httpx
import pytest

from service import app as application
from service.app import create_app, worker_app
from service.http.middleware import BodyLimit
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.doubles import DummyEngine, client_of, serving, settings_of


class FakePipeline:
    """Stands for the pipeline while it drains."""

    def __init__(self) -> None:
        self.ready = True

    def drain(self) -> None:
        self.ready = False


Stops = list[int]


@pytest.fixture
def stops() -> Iterator[Stops]:
    """The signals that reached the server's own handlers, which are installed here."""
    reached: Stops = []

    def stop(number: int, _: FrameType | None) -> None:
        reached.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_time_to_drain_a_signal_stops_at_once(stops: Stops) -> None:
    pipeline = FakePipeline()
    with application._draining(pipeline, 0):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
    assert (stops, pipeline.ready) == ([signal.SIGTERM], False)


def test_with_a_time_to_drain_the_stop_comes_later(stops: Stops) -> None:
    pipeline = FakePipeline()
    with application._draining(pipeline, 0.2):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        assert (stops, pipeline.ready) == ([], False)
        timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
        assert [timer.interval for timer in timers] == [0.2]
        timers[0].join(10)
    assert stops == [signal.SIGTERM]


def test_second_signal_stops_at_once(stops: Stops) -> None:
    with application._draining(FakePipeline(), 3600):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        assert stops == []
        signal.raise_signal(signal.SIGINT)
    assert stops == [signal.SIGINT]
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.cancel()


def test_handlers_that_are_no_servers_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    with application._draining(FakePipeline(), 1):  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_than_the_main_one_has_no_signals(stops: Stops) -> None:
    handlers: list[object] = []

    def drain() -> None:
        with application._draining(FakePipeline(), 1):  # type: ignore[arg-type]
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=drain)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/predict", BodyLimit("max_body_bytes", 2000, 7)),
        ("/v2/models/x/infer", BodyLimit("max_body_bytes", 2000, 7)),
        ("/predict/file", BodyLimit("max_file_bytes", 9000, 3600)),
        ("/predict/stream", None),
    ],
)
def test_limit_of_a_body_by_its_path(path: str, expected: BodyLimit | None) -> None:
    settings = settings_of(max_body_bytes=2000, max_file_bytes=9000, request_timeout_seconds=7)
    assert application._body_limit(settings, path) == expected


@pytest.mark.anyio
async def test_metrics_have_a_port_of_their_own_or_the_main_one() -> None:
    async with serving() as client:
        assert (await client.get("/metrics")).status_code == 200
    async with serving(metrics_port=9999) as client:
        assert (await client.get("/metrics")).json()["code"] == "not_found"


@pytest.mark.anyio
async def test_services_are_there_while_the_application_runs() -> None:
    engine = DummyEngine()
    app = create_app(settings_of(max_streams=3), engine)
    assert app.state.services is None
    async with app.router.lifespan_context(app), client_of(app) as client:
        services = app.state.services
        assert (services.models.names, services.models.get()) == (["dummy"], engine)
        assert (services.pipeline.ready, services.jobs) == (True, None)
        assert (await client.get("/readyz")).status_code == 200
    assert (services.pipeline.ready, services.pipeline.accepts) == (False, False)


@pytest.mark.anyio
async def test_engine_of_the_settings_is_loaded_at_the_start(pico_artifact: Path) -> None:
    app = create_app(settings_of(artifact=pico_artifact, device="cpu"))
    async with app.router.lifespan_context(app), client_of(app) as client:
        answer: httpx.Response = await client.get("/model")
    assert (answer.json()["name"], answer.json()["version"]) == ("pico", "0.1.0")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_METRICS_PORT", "9999")
    assert "/metrics" not in create_app().openapi()["paths"]
    monkeypatch.delenv("GMERGING_METRICS_PORT")
    assert "/metrics" in create_app(settings_of()).openapi()["paths"]


def test_document_has_the_bodies_that_routes_read_by_themselves_and_is_made_once() -> None:
    app = create_app(settings_of())
    document = app.openapi()
    assert app.openapi() is document
    names = {"InferRequest", "InferInput", "StreamLine", "GraphIn"}
    assert names <= document["components"]["schemas"].keys()
    refs = {
        content["schema"]["$ref"]
        for path in document["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
        for kind, content in response.get("content", {}).items()
        if kind == "application/problem+json"
    }
    assert refs == {"#/components/schemas/Problem"}


def test_worker_logs_as_the_settings_say_and_watches_its_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[object] = []
    watching = threading.Event()
    settings = settings_of()
    monkeypatch.setattr(application, "configure_logging", calls.append)
    monkeypatch.setattr(application, "_exit_with_parent", watching.set)
    assert worker_app(settings).title == "G-Merging"
    assert calls == [settings]
    assert watching.wait(10)


class Parent:
    """A supervisor's process that has ended."""

    pid = 4711

    def join(self) -> None:
        pass


@pytest.mark.parametrize("parent", [Parent(), None])
def test_worker_ends_once_its_supervisor_is_gone(
    parent: Parent | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr("multiprocessing.parent_process", lambda: parent)
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr("os.getpid", lambda: 12)
    application._exit_with_parent()
    assert killed == ([(12, signal.SIGTERM)] if parent else [])


def test_gauges_are_refreshed_and_those_of_dead_workers_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead: list[tuple[int, str]] = []
    monkeypatch.setattr(
        application, "mark_process_dead", lambda pid, folder: dead.append((pid, folder))
    )
    monkeypatch.setattr(application, "_REFRESH_SECONDS", 0)
    for name in ("gauge_livesum_1.db", "gauge_livemax_999999999.db", "counter_999999998.db"):
        (tmp_path / name).touch()
    refreshed: list[int] = []

    class Counted(Metrics):
        def refresh(self) -> None:
            refreshed.append(1)

    async def run() -> None:
        task = asyncio.create_task(application._refresh(Counted([]), tmp_path))
        while len(refreshed) < 2:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert set(dead) == {(999999999, str(tmp_path))}  # 1 is alive; counters of the dead stay


def test_settings_are_checked_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="GMERGING_MAX_PENDING_COST"):
        create_app(Settings(artifact=Path("nowhere"), max_pending_cost=1))
