import json
import logging

import pytest

from service.telemetry.logs import JsonFormatter, TextFormatter, configure_logging, request_id
from tests.service.doubles import settings_of


def test_formats() -> None:
    record = logging.makeLogRecord(
        {
            "name": "x",
            "levelname": "INFO",
            "levelno": 20,
            "msg": "got %s\n\ud800",
            "args": ("a",),
            "extra": {"b": 1},
        }
    )
    token = request_id.set(None)
    line = json.loads(JsonFormatter().format(record))
    request_id.reset(token)
    assert "\n" not in JsonFormatter().format(record)
    assert (line["message"][:5], line["extra"]) == ("got a", {"b": 1})
    assert TextFormatter("%(levelname)s: %(message)s").format(record).startswith("INFO: got a")


def test_log_that_cannot_be_written_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    try:
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stderr", full)
            configure_logging(settings_of())
            logging.getLogger("x").error("lost")
            root.handlers[0].stream = None  # type: ignore[attr-defined]  # or closing it would write what is left
    except OSError:
        pass
    finally:
        root.handlers[:], logging.raiseExceptions = handlers, raises
        root.setLevel(level)
