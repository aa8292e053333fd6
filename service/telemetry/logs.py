"""Logs on standard error: one JSON object per line, or plain text, with the request id."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from service.settings import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_EMPTY_RECORD = logging.makeLogRecord({})
_STANDARD_ATTRIBUTES = {*vars(_EMPTY_RECORD), "message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formatter of one JSON object per line.

    The members are `time`, `level`, `logger`, `message`, `request_id` during a request, everything
    passed as `extra`, and `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= _extra(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII, because a client's text may hold lone surrogates, which no encoding can write.
        return json.dumps(line, default=str, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """Formatter for people: level, message, and what was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the traceback if there is one."""
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        return f"{super().format(record)}{extra}"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was passed as `extra` when the record was made."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}


def configure_logging(settings: Settings) -> None:
    """Send all logs of this process to standard error, in the form that the settings choose."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = settings.log_format == "json"
    handler.setFormatter(
        JsonFormatter() if as_json else TextFormatter("%(levelname)s:     %(message)s")
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # A line that cannot be written (full disk, closed pipe) is dropped: it must not fail a request.
    logging.raiseExceptions = False
