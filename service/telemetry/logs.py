"""Logs on standard error: one JSON object a line, or plain text. Every record that is made while a
request is answered carries its id."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from service.settings import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, `request_id` while there is one, whatever is given as
    `extra`, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # in ASCII: a client's text may hold what no encoding can
        return json.dumps(line, default=str, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """For people: level, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback if there is one."""
        extra = "".join(
            f" {name}={value}" for name, value in vars(record).items() if name not in _OWN
        )
        return f"{super().format(record)}{extra}"


def configure_logging(settings: Settings) -> None:
    """Send all logs of this process to standard error in the form that the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if settings.log_format == "json"
        else TextFormatter("%(levelname)s:     %(message)s")
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # A full disk or a closed pipe must not cost an answer: a line that cannot be written is lost,
    # and that is all.
    logging.raiseExceptions = False
