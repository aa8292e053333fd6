"""A service in its own process, for scripts that measure it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def served(device: str, environment: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a service on a free port of this machine, and wait until it is ready.

    Yields:
        Its port, and a dictionary that gets its exit code and the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log: dict[str, Any] = {}
    with tempfile.TemporaryFile() as output:
        variables = (
            os.environ | environment | {"GMERGING_DEVICE": device, "GMERGING_PORT": str(port)}
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            end = time.monotonic() + 150
            while True:
                try:
                    get(port, "/readyz")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError("the service did not become ready") from None
                    time.sleep(0.2)
            yield port, log
        finally:
            process.terminate()
            try:
                log["exit_code"] = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                log["exit_code"] = "killed"
            output.seek(0)
            log["tail"] = output.read()[-3000:].decode("utf-8", "replace")
            if log["exit_code"] != 0:
                print(log["tail"], file=sys.stderr)


def get(port: int, path: str) -> str:
    """Get a page of the service.

    Raises:
        OSError: any other status than 200.
    """
    return _ask(port, "GET", path, None)


def post(port: int, body: dict[str, Any]) -> Any:
    """Post to `/predict` and return the answer.

    Raises:
        OSError: any other status than 200.
    """
    return json.loads(_ask(port, "POST", "/predict", json.dumps(body)))


def _ask(port: int, method: str, path: str, body: str | None) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"got {response.status} from {path}: {text[:300]}")
    return text


def timed_posts(port: int, body: dict[str, Any], count: int) -> Iterator[float]:
    """Yield wall seconds of requests in sequence, after three that do not count."""
    for k in range(count + 3):
        started = time.perf_counter()
        post(port, body)
        if k >= 3:
            yield time.perf_counter() - started


def loaded(
    port: int, smiles: Sequence[str], seconds: float, clients: int = 16, size: int = 100
) -> float:
    """Measure molecules answered per second, for all tasks.

    Raises:
        OSError: a request got another status than 200.
    """
    groups = [list(smiles[begin : begin + size]) for begin in range(0, len(smiles), size)]
    started = time.perf_counter()

    def ask(client: int) -> int:
        answered, turn = 0, client
        while time.perf_counter() < started + seconds:
            answered += len(post(port, {"smiles": groups[turn % len(groups)]})["predictions"])
            turn += clients
        return answered

    with ThreadPoolExecutor(clients) as threads:
        total = sum(threads.map(ask, range(clients)))
    return total / (time.perf_counter() - started)
