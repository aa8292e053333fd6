"""Entry point of `python -m service` and `gmerging-serve`: run the service under uvicorn."""

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
from service.sockets import listen, port_error, url_of
from service.supervisor import UNRESPONSIVE_SECONDS, Supervisor
from service.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Run the service until SIGINT or SIGTERM, or print a new API key.

    On a signal the service finishes the requests in flight and the process exits with status 0.

    Args:
        arguments: command-line arguments without the program's name; `sys.argv[1:]` if None.

    Raises:
        SystemExit: a setting, the artifact or the port cannot be used; its code is the message.
    """
    parser = argparse.ArgumentParser(
        "gmerging-serve",
        description=(
            "Serve predictions over HTTP. Settings are variables GMERGING_*; `gmerging serve` has"
            " options for the most used ones."
        ),
    )
    commands = parser.add_subparsers(dest="command")
    key = commands.add_parser(
        "key", help="make an API key, and the entry for the list of keys that opens for it"
    )
    key.add_argument("name", help="who will hold it; shown in logs")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.command == "key":
            print_key(options.name)
        else:
            serve(load_settings())
    except (GMergingError, ValueError) as error:
        raise SystemExit(f"gmerging-serve: {error}") from None


def print_key(name: str) -> None:
    """Print a new API key, and its entry for the list of keys.

    Raises:
        ConfigError: the name has other characters than it may, or too many.
    """
    from service.security import new_key

    key, client = new_key(name)
    sys.stdout.write(
        f"key (shown this once): {key}\nentry: {orjson.dumps(client.model_dump()).decode()}\n"
    )


def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM.

    Changes the process: its signal handlers, its logging and its current folder.

    Raises:
        ConfigError: a setting or a port cannot be used.
        ArtifactError: the artifact cannot be used.
    """
    configure_logging(settings)
    # uvicorn raises the signal that stopped it once more when it is done. The default handler would
    # turn a clean stop into a death by signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    # Child processes (`python -c`) would otherwise import modules of the current folder first.
    os.environ["PYTHONSAFEPATH"] = "1"
    _leave_current_folder()
    options = {
        "log_config": None,
        "access_log": False,  # the middleware logs requests, with their id and route
        "server_header": False,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
        "timeout_worker_healthcheck": UNRESPONSIVE_SECONDS,
    }
    if settings.jobs is not None:  # checks the folder before the models are loaded
        JobStore(settings.jobs, 3600 * settings.job_hours)
    serve = _serve_one_process if settings.workers == 1 else _serve_workers
    with contextlib.ExitStack() as closing:
        sockets = listen(settings.host, settings.port)
        for listening in sockets:
            closing.enter_context(listening)
        serve(settings, sockets, options)


def _leave_current_folder() -> None:
    """Change to the root folder, and make the entries of PYTHONPATH absolute.

    A child process starts in the current folder of its parent, and cannot start where that folder
    was deleted, as a deployment that replaces a release does.
    """
    if path := os.environ.get("PYTHONPATH"):
        with contextlib.suppress(FileNotFoundError):  # the current folder was deleted
            entries = map(os.path.abspath, path.split(os.pathsep))
            os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    os.chdir("/")


class _Server(uvicorn.Server):
    """uvicorn server that logs the addresses of sockets it was given; uvicorn logs only its own."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _log_addresses(sockets or [])


def _serve_one_process(
    settings: Settings, sockets: list[socket.socket], options: dict[str, Any]
) -> None:
    from service.app import create_app
    from service.core.artifact_engine import load_engine

    app = create_app(settings)
    _serve_metrics(settings, app.state.metrics.registry)
    # Loaded here and not in the lifespan, so that an artifact that cannot be used is reported in
    # one line and not as a traceback.
    app.state.engine = load_engine(settings.artifact, settings)
    server = _Server(uvicorn.Config(app, **options))
    server.run(sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _serve_workers(
    settings: Settings, sockets: list[socket.socket], options: dict[str, Any]
) -> None:
    from models.artifact import load_components

    with tempfile.TemporaryDirectory(prefix="gmerging-") as folder:
        # Set before the first import of prometheus-client, which reads it; workers inherit it.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from service.app import worker_app
        from service.telemetry.metrics import shared_registry

        _serve_metrics(settings, shared_registry())
        load_components(settings.artifact)
        options |= {"factory": True, "workers": settings.workers}
        config = uvicorn.Config(partial(worker_app, settings), **options)
        supervisor = Supervisor(config, sockets)
        _log_addresses(sockets)
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
        message = port_error("METRICS_PORT", settings.host, settings.metrics_port, error)
        raise ConfigError(message) from None


def _log_addresses(sockets: list[socket.socket]) -> None:
    for listening in sockets:
        log.info("running on %s (press Ctrl-C to quit)", url_of(listening))


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
