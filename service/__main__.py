"""`python -m service`, or `gmerging-serve`: the service under uvicorn."""

import argparse
import os
import signal
import sys
import tempfile
from types import FrameType

import orjson
import uvicorn

from models.errors import GMergingError
from service.logs import configure_logging
from service.settings import Settings, load_settings


def main(arguments: list[str] | None = None) -> None:
    """Serve until told to stop by SIGINT or SIGTERM; then finish what is in flight and exit with 0. Or make an API key."""
    parser = argparse.ArgumentParser("gmerging-serve", description="Serve predictions over HTTP. Settings are variables GMERGING_*, see the README.")
    commands = parser.add_subparsers(dest="command")
    key = commands.add_parser("key", help="make an API key, and the entry for the list of keys that opens for it")
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
    sys.stdout.write(f"key (shown this once): {key}\nentry: {orjson.dumps(client.model_dump()).decode()}\n")


def _serve(settings: Settings) -> None:
    configure_logging(settings)
    # uvicorn repeats the signal that stopped it once it is done; by default that would make a clean stop look like a death by signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    options = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,  # the middleware's has the request's id and the route
        "server_header": False,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
    }
    if settings.workers == 1:
        _serve_alone(settings, options)
    else:
        _serve_together(settings, options)


def _serve_alone(settings: Settings, options: dict[str, object]) -> None:
    from prometheus_client import start_http_server

    from service.app import create_app
    from service.engine import load_engine

    # Loaded here and not by the application, so that an artifact that cannot be used is one line and not a traceback.
    app = create_app(settings, load_engine(settings.artifact, settings))
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, settings.host, app.state.metrics.registry)
    uvicorn.Server(uvicorn.Config(app, **options)).run()  # type: ignore[arg-type]


def _serve_together(settings: Settings, options: dict[str, object]) -> None:
    from models.artifact import load_parts

    load_parts(settings.artifact)
    with tempfile.TemporaryDirectory(prefix="gmerging-") as folder:
        # Workers inherit it, and prometheus-client reads it when it is imported: not before here.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        if settings.metrics_port is not None:
            from prometheus_client import start_http_server

            from service.metrics import shared_registry

            start_http_server(settings.metrics_port, settings.host, shared_registry())
        uvicorn.run("service.app:worker_app", factory=True, workers=settings.workers, **options)  # type: ignore[arg-type]


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
