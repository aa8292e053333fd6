"""Logs: one line a record, with the request's id and whatever was given with it."""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from service.telemetry.logs import JsonFormatter, TextFormatter, configure_logging, request_id
from tests.service.doubles import settings_of


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back after the test."""
    logger = logging.getLogger()
    handlers, level, raises = logger.handlers[:], logger.level, logging.raiseExceptions
    yield logger
    logger.handlers[:], logging.raiseExceptions = handlers, raises
    logger.setLevel(level)


def record(**values: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "x", "levelname": "INFO", "levelno": 20, "created": 0.5, "msg": "got", **values}
    )


def test_record_as_json() -> None:
    token = request_id.set(None)
    text = JsonFormatter().format(record(msg="got %s\n\ud800", args=("a",), extra={"b": 1}))
    request_id.reset(token)
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "x",
        "message": "got a\n\ud800",
        "extra": {"b": 1},
    }


def test_json_has_the_id_of_the_request_and_what_cannot_be_json_as_text() -> None:
    token = request_id.set("r1")
    line = json.loads(JsonFormatter().format(record(error=ValueError("bad"))))
    request_id.reset(token)
    assert (line["request_id"], line["error"]) == ("r1", "bad")


def failed() -> logging.LogRecord:
    try:
        raise ValueError("the cause")
    except ValueError:
        return record(exc_info=sys.exc_info())


def test_json_has_the_traceback_in_its_line() -> None:
    text = JsonFormatter().format(failed())
    assert "\n" not in text
    exception = json.loads(text)["exception"].splitlines()
    assert (exception[0], exception[-1]) == (
        "Traceback (most recent call last):",
        "ValueError: the cause",
    )


def test_record_as_text() -> None:
    formatter = TextFormatter("%(levelname)s: %(message)s")
    assert formatter.format(record(msg="got %s", args=("a",), route="/x", status=200)) == (
        "INFO: got a route=/x status=200"
    )
    lines = formatter.format(failed()).splitlines()
    assert (lines[0], lines[-1]) == ("INFO: got", "ValueError: the cause")


@pytest.mark.parametrize(
    ("log_format", "expected"), [("json", '{"time":'), ("text", "WARNING:     said number=7\n")]
)
def test_format_and_level_are_the_settings(
    log_format: str, expected: str, root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging(settings_of(log_format=log_format, log_level="warning"))
    logging.getLogger("x").info("not said")
    logging.getLogger("x").warning("said", extra={"number": 7})
    (line,) = stream.getvalue().splitlines(keepends=True)
    assert line.startswith(expected)
    assert "said" in line
    assert "not said" not in line


def test_log_that_cannot_be_written_harms_nobody(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails, see below
    monkeypatch.setattr("sys.stderr", full)
    configure_logging(settings_of())
    logging.getLogger("x").error("lost")  # raises nothing
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is full
    with pytest.raises(OSError, match="No space left"):
        full.flush()  # the line could not be written
    with contextlib.suppress(OSError):
        full.close()
    assert logging.raiseExceptions is False  # or every such line would be tried once more
