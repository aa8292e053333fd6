"""`python -m service`, or `gmerging-serve`: the service under uvicorn."""

import logging
import signal
import sys
from types import FrameType

import uvicorn

from models.errors import GMergingError
from service.app import create_app
from service.engine import load_engine
from service.settings import load_settings


def main() -> None:
    """Serve until told to stop by SIGINT or SIGTERM; then finish what is in flight and exit with 0."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    try:
        settings = load_settings()
        engine = load_engine(settings)
    except GMergingError as error:
        raise SystemExit(f"gmerging-serve: {error}") from None
    # uvicorn repeats the signal that stopped it once it is done; by default that would make a clean stop look like a death by signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    config = uvicorn.Config(
        create_app(settings, engine),
        host=settings.host,
        port=settings.port,
        access_log=False,  # /metrics counts by route and status; a line per request costs more than the request's routing
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    uvicorn.Server(config).run()


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
