"""A process that screens the shards that it is told, for who deals them out (`runner`).

It reads, pickled, the model with whether outputs are replaced, and then shards from its standard
input, and writes its reports, a line of JSON each, to its standard output. It ends with its input,
or, at the end of the chunk under way, when nobody reads its reports any more.
"""

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from models.errors import GMergingError
from service.core.memory import limit_malloc_arenas
from service.shards.isolation import ChildStartError
from service.shards.made import Shard
from service.shards.shard import Screener, said

Send = Callable[[dict[str, Any]], None]


def main() -> None:
    """Screen the shards that come on standard input."""
    # Ctrl-C reaches all processes of a terminal; the one that deals out shards ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_malloc_arenas()
    with os.fdopen(os.dup(1), "wb") as reports:
        os.dup2(2, 1)  # what a library prints is no report
        try:
            serve(sys.stdin.buffer, reports)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), reports.fileno())


def serve(messages: BinaryIO, reports: BinaryIO) -> None:
    """Load the model that comes first, and screen the shards after it until the input ends."""

    def send(report: dict[str, Any]) -> None:
        reports.write(json.dumps(report).encode() + b"\n")
        reports.flush()

    model, replace = pickle.load(messages)
    try:
        screener = Screener(model, replace=replace)
    except GMergingError as error:
        send({"refused": str(error), "code": error.code})
        return
    send({"ready": True})
    while True:
        try:
            shard = pickle.load(messages)
        except EOFError:
            return
        report_on(screener, shard, send)


def report_on(screener: Screener, shard: Shard, send: Send) -> None:
    """Screen a shard and report on it: rows after every chunk, and last what it came to."""
    try:
        made = screener(shard, lambda rows: send({"rows": rows}))
    except BrokenPipeError:
        raise
    except ChildStartError as error:
        send({"failed": str(error), "final": False})
    except GMergingError as error:  # the same at every attempt
        send({"failed": str(error), "final": True})
    except Exception as error:
        send({"failed": said(error), "final": False})
    else:
        send({"done": made.rows, "kept": made.kept, "errors": dict(made.failed)})
