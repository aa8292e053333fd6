"""`python -m service`, or `gmerging-serve`: the service under uvicorn."""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from models.errors import ConfigError, GMergingError
from service.bulk.jobs import JobStore
from service.settings import Settings, load_settings
from service.sockets import address_of, listen, not_free
from service.supervisor import HANGS_SECONDS, Supervisor
from service.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Serve until told to stop by SIGINT or SIGTERM; then finish what is in flight and exit with 0.
    Or make an API key."""
    parser = argparse.ArgumentParser(
        "gmerging-serve",
        description=(
            "Serve predictions over HTTP. Settings are variables GMERGING_*, see the README."
        ),
    )
    commands = parser.add_subparsers(dest="command")
    key = commands.add_parser(
        "key", help="make an API key, and the entry for the list of keys that opens for it"
    )
    key.add_argument("name", help="who will hold it; shown in logs")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if chosen.command == "key":
            _print_key(chosen.name)
        else:
            _serve(load_settings())
    except (GMergingError, ValueError) as error:
        raise SystemExit(f"gmerging-serve: {error}") from None


def _print_key(name: str) -> None:
    from service.security import new_key

    key, client = new_key(name)
    sys.stdout.write(
        f"key (shown this once): {key}\nentry: {orjson.dumps(client.model_dump()).decode()}\n"
    )


def _serve(settings: Settings) -> None:
    configure_logging(settings)
    # uvicorn repeats the signal that stopped it once it is done; by default that would make a clean
    # stop look like a death by signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    # Or every process that Python starts for us, as `python -c`, has the current folder in front of
    # its path, and takes what lies there for ours.
    os.environ["PYTHONSAFEPATH"] = "1"
    _leave_folder()
    options = {
        "log_config": None,
        "access_log": False,  # the middleware's has the request's id and the route
        "server_header": False,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
        "timeout_worker_healthcheck": HANGS_SECONDS,
    }
    if settings.jobs is not None:  # before anything that takes time
        JobStore(settings.jobs, 3600 * settings.job_hours)
    serve = _serve_alone if settings.workers == 1 else _serve_together
    with contextlib.ExitStack() as taken:
        sockets = listen(settings.host, settings.port)
        for listening in sockets:
            taken.enter_context(listening)
        serve(settings, sockets, options)


def _leave_folder() -> None:
    """Go to a folder that stays.

    Every process that is started later begins in the current folder, and does not begin at all
    where that has been removed, as the folder of a release that was replaced.
    """
    if path := os.environ.get("PYTHONPATH"):
        with contextlib.suppress(FileNotFoundError):  # it has been removed already
            entries = map(os.path.abspath, path.split(os.pathsep))
            os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    os.chdir("/")


class _Server(uvicorn.Server):
    """Says where it answers; uvicorn does so only for sockets of its own."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _say_where(sockets or [])


def _serve_alone(settings: Settings, sockets: list[socket.socket], options: dict[str, Any]) -> None:
    from service.app import create_app
    from service.core.engine import load_engine

    app = create_app(settings)
    _serve_metrics(settings, app.state.metrics.registry)
    # Loaded here and not by the application, so that an artifact that cannot be used is one line
    # and not a traceback.
    app.state.engine = load_engine(settings.artifact, settings)
    server = _Server(uvicorn.Config(app, **options))
    server.run(sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _serve_together(
    settings: Settings,
    sockets: list[socket.socket],
    options: dict[str, Any],
) -> None:
    from models.artifact import load_parts

    with tempfile.TemporaryDirectory(prefix="gmerging-") as folder:
        # Workers inherit it, and prometheus-client reads it when it is imported: not before here.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from service.app import worker_app
        from service.telemetry.metrics import shared_registry

        _serve_metrics(settings, shared_registry())
        load_parts(settings.artifact)
        options |= {"factory": True, "workers": settings.workers}
        config = uvicorn.Config(partial(worker_app, settings), **options)
        supervisor = Supervisor(config, sockets)
        _say_where(sockets)
        supervisor.run()
    if supervisor.failed:
        sys.exit(STARTUP_FAILURE)


def _serve_metrics(settings: Settings, registry: "CollectorRegistry") -> None:
    from prometheus_client import start_http_server

    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, settings.host, registry)
    except OSError as error:
        sentence = not_free("METRICS_PORT", settings.host, settings.metrics_port, error)
        raise ConfigError(sentence) from None


def _say_where(sockets: list[socket.socket]) -> None:
    for listening in sockets:
        log.info("running on %s (press Ctrl-C to quit)", address_of(listening))


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
