"""Fault-injection tests of the service: every request under load and under faults is counted, and
every answer compared with the offline one.

    python -m benchmarks.reliability                       # all scenarios, about ten minutes
    python -m benchmarks.reliability load --seconds 120    # one of them

Every scenario starts its own service, as an operator does (`python -m service`), and puts it under
load or faults. `lost` counts requests that were neither answered nor refused although the service
was meant to keep running, `wrong` counts answers that are not those of the requested molecule. Both
must be 0. Writes `benchmarks/results/reliability.json`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from tqdm import tqdm

from models.data.smiles import featurize
from service.core.artifact_engine import load_engine
from service.security import new_key
from service.settings import RELEASED_ARTIFACT, Settings

RESULTS = Path(__file__).parent / "results" / "reliability.json"
TASKS = ("bbb_martins", "bace", "tox21")
TOLERANCE = 1e-4
SIZES = (1, 1, 1, 1, 2, 4, 8, 32, 100)
_SEEDS = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "O=C(O)c1cc(N=Nc2ccc(S(=O)(=O)Nc3ccccn3)cc2)ccc1O",
)
ADMIN_KEY, _ADMIN = new_key("bench")
HEADERS = {"x-api-key": ADMIN_KEY}


def molecules() -> list[str]:
    """Return some hundred molecules whose answers all differ."""
    chains = (
        ["C" * n for n in range(1, 31)]
        + ["C" * n + "O" for n in range(1, 31)]
        + ["c1ccccc1" + "C" * n + "N" for n in range(30)]
    )
    return [*_SEEDS, *chains, *(seed + "." + "C" * n for seed in _SEEDS for n in range(1, 30))]


@dataclass
class Tally:
    """Outcomes of the requests of a scenario."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)

    def note(self, status: int | str, started: float) -> None:
        """Count a request by its status, or by the name of its failure."""
        self.statuses[str(status)] += 1
        if status == 200:
            self.seconds.append(time.perf_counter() - started)

    def report(self) -> dict[str, Any]:
        """Summarise the answered and the refused requests; `lost` counts those without a status."""
        sent = sum(self.statuses.values())
        refused = sum(self.statuses[code] for code in ("429", "503", "504"))
        answered = (
            sent
            - refused
            - sum(count for code, count in self.statuses.items() if not code.isdecimal())
        )
        times = np.array(self.seconds or [0.0])
        return {
            "sent": sent,
            "answered": answered,
            "refused": refused,
            "lost": sum(count for code, count in self.statuses.items() if not code.isdecimal()),
            "wrong": self.wrong,
            "statuses": dict(sorted(self.statuses.items())),
            "p50_seconds": round(float(np.quantile(times, 0.5)), 4),
            "p99_seconds": round(float(np.quantile(times, 0.99)), 4),
            "longest_seconds": round(float(times.max()), 4),
        }


class Service:
    """A running service, and its expected answers."""

    def __init__(
        self, process: subprocess.Popen[str], url: str, expected: dict[str, dict[str, list[float]]]
    ) -> None:
        self.process, self.url, self.expected = process, url, expected
        self.smiles = list(expected)

    def client(self, timeout: float = 60) -> httpx.AsyncClient:
        """Make a client with the administrator's key."""
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=timeout,
            headers=HEADERS,
            limits=httpx.Limits(max_connections=None),
        )

    def check(self, smiles: list[str], predictions: list[dict[str, Any]]) -> int:
        """Count the answers that are not those of their molecules."""
        if len(predictions) != len(smiles):
            return abs(len(predictions) - len(smiles)) + len(smiles)
        return sum(
            not self.is_right(text, k, item)
            for k, (text, item) in enumerate(zip(smiles, predictions, strict=True))
        )

    def is_right(self, smiles: str, index: int, item: dict[str, Any]) -> bool:
        """Return True if an item is the answer for the molecule at a position."""
        if item["index"] != index or "error" in item:
            return False
        return all(
            np.allclose(
                list(item["tasks"][task].values()), self.expected[smiles][task], atol=TOLERANCE
            )
            for task in TASKS
        )

    def memory_bytes(self) -> int:
        """Measure the memory of the service and its processes, shared pages counted once."""
        total, waiting = 0, [self.process.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                waiting += [int(child) for child in children]
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += 1024 * sum(
                    int(line.split()[1]) for line in lines if line.startswith("Pss:")
                )
        return total

    def parsers(self) -> list[int]:
        """Return the processes that parse molecules: children of the fork server."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                status = (path / "status").read_text()
                command = (path / "cmdline").read_text()
                parent = int(status.split("PPid:")[1].split()[0])
                if (
                    "forkserver" in command
                    and "forkserver" in Path(f"/proc/{parent}/cmdline").read_text()
                ):
                    found.append(int(path.name))
        return [pid for pid in found if self._descends(pid)]

    def _descends(self, pid: int) -> bool:
        while pid > 1 and pid != self.process.pid:
            try:
                pid = int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])
            except OSError:
                return False
        return pid == self.process.pid


@asynccontextmanager
async def running(
    folder: Path, program: Sequence[str] = ("-m", "service"), **settings: object
) -> AsyncIterator[Service]:
    """Run `python -m service` on a free port of the loopback, and compute the offline answers."""
    torch.set_num_threads(1)
    artifact = Path(str(settings.pop("artifact", RELEASED_ARTIFACT)))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    engine = load_engine(artifact, Settings(device="cpu"))
    expected = {}
    for smiles in molecules():
        output = engine.run([featurize(smiles).graph], TASKS, "own")
        expected[smiles] = {
            task: answer.values.tolist() for task, answer in output.answers[0].items()
        }
    keys = json.dumps([{**_ADMIN.model_dump(), "admin": True}])
    values = {"port": 0, "artifact": artifact, "device": "cpu", "api_keys": keys, **settings}
    environment |= {f"GMERGING_{name.upper()}": str(value) for name, value in values.items()}
    log = (folder / "service.log").open("w")
    process = subprocess.Popen([sys.executable, *program], env=environment, stderr=log, text=True)
    try:
        url = await _address(folder / "service.log", process)
        yield Service(process, url, expected)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


async def _address(log: Path, process: subprocess.Popen[str]) -> str:
    for _ in range(600):
        text = log.read_text()
        if "running on http://" in text:
            return "http://" + text.split("running on http://")[1].split()[0]
        if process.poll() is not None:
            raise SystemExit(f"the service did not start:\n{text}")
        await asyncio.sleep(0.1)
    raise SystemExit("the service did not start in a minute")


async def ask(
    service: Service,
    client: httpx.AsyncClient,
    tally: Tally,
    smiles: list[str],
    timeout: float | None = None,
) -> int | str:
    """Send one request; return its status, or the name of its failure."""
    started = time.perf_counter()
    headers = {} if timeout is None else {"x-request-timeout": str(timeout)}
    try:
        response = await client.post(
            "/predict", json={"smiles": smiles, "tasks": list(TASKS)}, headers=headers
        )
    except httpx.HTTPError as error:
        tally.note(type(error).__name__, started)
        return type(error).__name__
    tally.note(response.status_code, started)
    if response.status_code == 200:
        tally.wrong += service.check(smiles, response.json()["predictions"])
    return response.status_code


async def clients(
    service: Service,
    tally: Tally,
    count: int,
    seconds: float,
    timeout: float | None = None,
    seed: int = 0,
) -> None:
    """Run clients that send one request after another, of mixed sizes, and wait a moment when
    refused.
    """
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        draw = random.Random(f"{seed}-{number}")
        async with service.client() as client:
            while time.perf_counter() < end:
                status = await ask(
                    service,
                    client,
                    tally,
                    draw.choices(service.smiles, k=draw.choice(SIZES)),
                    timeout,
                )
                if status != 200:
                    await asyncio.sleep(draw.uniform(0.02, 0.2))

    await asyncio.gather(*(one(number) for number in range(count)))


async def with_fault(
    folder: Path,
    fault: Callable[[Service, asyncio.Event], Awaitable[dict[str, Any]]],
    seconds: float,
    **settings: object,
) -> dict[str, Any]:
    """Run eight clients while a fault is injected."""
    tally, over = Tally(), asyncio.Event()
    async with running(folder, **settings) as service:
        await clients(service, Tally(), 2, 1.0)
        load = asyncio.create_task(clients(service, tally, 8, seconds))
        extra = asyncio.create_task(fault(service, over))
        await load
        over.set()
        figures = await extra
        async with service.client() as client:
            assert (await client.get("/readyz")).status_code == 200
    return {**tally.report(), **figures}


# --- scenarios ---


async def load(folder: Path, seconds: float) -> dict[str, Any]:
    """Overload the service with 64 clients of mixed sizes, far more than one core answers, with a
    deadline of five seconds and no cache, so that every molecule is computed.
    """
    tally, deadline, memory = Tally(), 5.0, []
    async with running(folder, cache_bytes=0, max_pending_cost=60_000) as service:
        # warm-up: caches fill and memory grows here
        await clients(service, Tally(), 64, seconds / 2, deadline, seed=1)

        async def watch() -> None:
            while True:
                memory.append(service.memory_bytes())
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await clients(service, tally, 64, seconds, deadline)
        watching.cancel()
    tenth = max(1, len(memory) // 10)
    growth = float(np.median(memory[-tenth:]) / np.median(memory[:tenth]) - 1)
    figures = {
        "clients": 64,
        "seconds": seconds,
        "deadline_seconds": deadline,
        "memory_bytes": [
            int(np.median(memory[begin : begin + tenth])) for begin in range(0, len(memory), tenth)
        ],
        "memory_growth": round(growth, 4),
        "late": sum(value > deadline for value in tally.seconds),
    }
    return {**tally.report(), **figures}


async def stream(folder: Path, seconds: float) -> dict[str, Any]:
    """Send a stream of a thousand lines for each second of the other scenarios, read the answer
    while writing, watch the memory, and compare every line.
    """
    wrong = answered = 0
    memory: list[int] = []
    async with running(folder) as service:
        started = time.perf_counter()
        sent: list[str] = []

        async def lines() -> AsyncIterator[bytes]:
            draw = random.Random(0)
            for _ in range(int(10 * seconds)):
                some = draw.choices(service.smiles, k=100)
                sent.extend(some)
                yield "".join(f'"{smiles}"\n' for smiles in some).encode()

        host, port = service.url.removeprefix("http://").split(":")
        # raw sockets, as httpx writes everything before it reads
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
        head = (
            f"POST /predict/stream?tasks={'&tasks='.join(TASKS)} HTTP/1.1\r\nhost: x\r\nx-api-key:"
            f" {ADMIN_KEY}\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(head.encode())

        async def write() -> None:
            async for line in lines():
                writer.write(b"%x\r\n%b\r\n" % (len(line), line))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()

        writing = asyncio.create_task(write())
        await reader.readuntil(b"\r\n\r\n")
        looked = 0.0
        async for line in _body_lines(reader):
            item = json.loads(line)
            wrong += not service.is_right(sent[answered], answered, item)
            answered += 1
            if time.perf_counter() - looked > 1:
                looked = time.perf_counter()
                memory.append(service.memory_bytes())
        await writing
        writer.close()
        took = time.perf_counter() - started
    tenth = max(1, len(memory) // 10)
    growth = float(np.median(memory[-tenth:]) / np.median(memory[tenth : 2 * tenth]) - 1)
    counts = {
        "lines": len(sent),
        "answered": answered,
        "lost": len(sent) - answered,
        "wrong": wrong,
    }
    return {
        **counts,
        "seconds": round(took, 1),
        "memory_bytes": int(np.median(memory)),
        "memory_growth": round(growth, 4),
    }


async def _body_lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a chunked body."""
    rest = b""
    while size := int(await reader.readline(), 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readline()
        for line in lines:
            yield line


async def parser_killed(folder: Path, seconds: float) -> dict[str, Any]:
    """Kill a process that parses molecules with -9 every half second."""

    async def fault(service: Service, over: asyncio.Event) -> dict[str, Any]:
        killed = 0
        while not over.is_set():
            await asyncio.sleep(0.5)
            for pid in service.parsers()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return {"killed": killed}

    return await with_fault(folder, fault, seconds)


async def reloads(folder: Path, seconds: float) -> dict[str, Any]:
    """Reload twenty times, and in between as often an artifact with one bit changed, which must be
    refused.
    """
    artifact = folder / "artifact"
    shutil.copytree(RELEASED_ARTIFACT, artifact)
    tensors = sorted(artifact.glob("*.safetensors"))

    async def fault(service: Service, over: asyncio.Event) -> dict[str, Any]:
        outcomes: Counter[str] = Counter()
        async with service.client() as client:
            name = (await client.get("/model")).json()["models"][0]
            for k in range(20):
                path = tensors[k % len(tensors)]
                good = path.read_bytes()
                bad = bytearray(good)
                bad[-1 - k] ^= 1 << (k % 8)
                path.write_bytes(bad)
                refused = await client.post(f"/admin/models/{name}", json={"action": "reload"})
                path.write_bytes(good)
                done = await client.post(f"/admin/models/{name}", json={"action": "reload"})
                outcomes[f"broken {refused.status_code}"] += 1
                outcomes[f"good {done.status_code}"] += 1
                await asyncio.sleep(max(0.0, seconds / 25))
        return {"reloads": dict(outcomes)}

    return await with_fault(folder, fault, seconds, artifact=artifact)


async def disconnects(folder: Path, seconds: float) -> dict[str, Any]:
    """Run clients that disconnect in the middle of streams and requests."""

    async def fault(service: Service, over: asyncio.Event) -> dict[str, Any]:
        left = 0
        body = b"".join(b'"%b"\n' % smiles.encode() for smiles in service.smiles * 20)
        while not over.is_set():
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                async with (
                    service.client() as client,
                    asyncio.timeout(0.3),
                    client.stream("POST", "/predict/stream", content=body) as response,
                ):
                    async for _ in response.aiter_bytes():
                        pass
            left += 1
            with contextlib.suppress(httpx.HTTPError):
                async with service.client(0.05) as client:
                    await client.post("/predict", json={"smiles": service.smiles})
            left += 1
        await asyncio.sleep(2)
        async with service.client() as client:
            text = (await client.get("/metrics")).text
        pending = next(
            float(line.split()[1])
            for line in text.splitlines()
            if line.startswith("gmerging_pending_cost ")
        )
        return {"left": left, "pending_cost_afterwards": pending}

    return await with_fault(folder, fault, seconds)


async def slow_clients(folder: Path, seconds: float) -> dict[str, Any]:
    """Open forty connections that send one byte a second."""

    async def one(service: Service, over: asyncio.Event) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            f"POST /predict HTTP/1.1\r\nhost: x\r\nx-api-key: {ADMIN_KEY}\r\ncontent-type:"
            " application/json\r\ncontent-length: 100000\r\n\r\n"
        )
        writer.write(head.encode())
        with contextlib.suppress(OSError):
            while not over.is_set():
                writer.write(b"{")
                await writer.drain()
                await asyncio.sleep(1)
        writer.close()
        del reader

    async def fault(service: Service, over: asyncio.Event) -> dict[str, Any]:
        await asyncio.gather(*(one(service, over) for _ in range(40)))
        return {"slow_connections": 40}

    return await with_fault(folder, fault, seconds)


async def hostile(folder: Path, seconds: float) -> dict[str, Any]:
    """Send, all the time, molecules that RDKit needs seconds for, ten megabytes of brackets, and
    control characters.
    """

    async def fault(service: Service, over: asyncio.Event) -> dict[str, Any]:
        statuses: Counter[str] = Counter()
        nasty = ["NCC(=O)" * 1400 + "[2H]", "[" * 10_000_000, "C\x00C", "C12" * 3000, "(" * 9000]
        async with service.client() as client:
            while not over.is_set():
                for text in nasty:
                    response = await client.post("/predict", json={"smiles": text})
                    statuses[f"{response.status_code} {response.json()['code']}"] += 1
        return {"hostile": dict(statuses)}

    return await with_fault(
        folder, fault, seconds, max_smiles_length=10_000, parse_timeout_seconds=0.5
    )


async def scrapes(folder: Path, seconds: float) -> dict[str, Any]:
    """Scrape the metrics every 100 ms."""

    async def fault(service: Service, over: asyncio.Event) -> dict[str, Any]:
        times = []
        async with service.client() as client:
            while not over.is_set():
                started = time.perf_counter()
                assert (await client.get("/metrics")).status_code == 200
                times.append(time.perf_counter() - started)
                await asyncio.sleep(0.1)
        return {
            "scrapes": len(times),
            "scrape_p99_seconds": round(float(np.quantile(times, 0.99)), 4),
        }

    return await with_fault(folder, fault, seconds)


async def clock_jump(folder: Path, seconds: float) -> dict[str, Any]:
    """Move the wall clock of the service's main process by a day, there and back, every second."""
    script = "real = time.time\ntime.time = lambda: real() + 86400 * (int(real()) % 2)\n"
    tally = Tally()
    async with changed(folder, script) as service:
        await clients(service, tally, 8, seconds)
    return tally.report()


async def full_disk(folder: Path, seconds: float) -> dict[str, Any]:
    """Write the log, one line per request, to a full disk (/dev/full)."""
    script = (
        "def fill():\n"
        f"    while not os.path.exists({str(folder / 'full')!r}):\n"
        "        time.sleep(0.1)\n"
        "    os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n"
        "threading.Thread(target=fill, daemon=True).start()\n"
    )
    tally = Tally()
    async with changed(folder, script) as service:
        (folder / "full").touch()
        await asyncio.sleep(0.5)
        await clients(service, tally, 8, seconds)
    return tally.report()


@asynccontextmanager
async def changed(folder: Path, script: str) -> AsyncIterator[Service]:
    """Run a service whose process first runs a script of ours."""
    body = "".join(f"    {line}\n" for line in script.splitlines())
    start = "    from service.__main__ import main\n    main([])\n"
    # guarded, because the parser processes import this file too
    (folder / "run.py").write_text(
        f"import os, threading, time\nif __name__ == '__main__':\n{body}{start}"
    )
    async with running(folder, program=[str(folder / "run.py")]) as service:
        await clients(service, Tally(), 2, 1.0)
        yield service


async def termination(folder: Path, seconds: float) -> dict[str, Any]:
    """Send SIGTERM under load, five times: accepted requests are answered, and the service ends
    with 0. Later connections are refused by the machine.
    """
    totals: Counter[str] = Counter()
    wrong, exits, took = 0, [], []
    for k in range(5):
        tally = Tally()
        async with running(folder) as service:
            stopped = asyncio.Event()

            async def one(
                number: int,
                service: Service = service,
                stopped: asyncio.Event = stopped,
                tally: Tally = tally,
                seed: int = k,
            ) -> None:
                draw = random.Random(f"{seed}-{number}")
                async with service.client() as client:
                    while not stopped.is_set():
                        await ask(
                            service,
                            client,
                            tally,
                            draw.choices(service.smiles, k=draw.choice(SIZES)),
                        )

            load = [asyncio.create_task(one(number)) for number in range(8)]
            await asyncio.sleep(2)
            stopped.set()  # every client finishes its request and sends no other
            service.process.send_signal(signal.SIGTERM)
            started = time.perf_counter()
            await asyncio.gather(*load)
            exits.append(await asyncio.to_thread(service.process.wait, 60))
            took.append(round(time.perf_counter() - started, 2))
        totals += tally.statuses
        wrong += tally.wrong
    # A request that arrives while the port closes is not accepted, and gets a connection error.
    summary = Tally(totals, wrong).report()
    return {**summary, "exit_codes": exits, "seconds_to_end": took}


SCENARIOS: dict[str, Callable[[Path, float], Awaitable[dict[str, Any]]]] = {
    "load": load,
    "stream": stream,
    "parser_killed": parser_killed,
    "reloads": reloads,
    "disconnects": disconnects,
    "slow_clients": slow_clients,
    "hostile": hostile,
    "scrapes": scrapes,
    "clock_jump": clock_jump,
    "full_disk": full_disk,
    "termination": termination,
}


def main() -> None:
    """Run scenarios, print their results and store them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scenarios",
        nargs="*",
        choices=[*SCENARIOS, []],
        metavar="scenario",
        help=f"some of {', '.join(SCENARIOS)} (default: all)",
    )
    parser.add_argument(
        "--seconds", type=float, help="of load in each (default: 120 for load, 20 for faults)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file to keep the figures in (default: %(default)s)",
    )
    chosen = parser.parse_args()
    results: dict[str, Any] = (
        json.loads(chosen.results.read_text()) if chosen.results.is_file() else {}
    )
    for name in tqdm(chosen.scenarios or SCENARIOS, unit="scenario"):
        seconds = chosen.seconds or (120.0 if name in ("load", "stream") else 20.0)
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(SCENARIOS[name](Path(folder), seconds))
        results[name] = {"what": " ".join((SCENARIOS[name].__doc__ or "").split()), **figures}
        tqdm.write(f"{name}: {json.dumps(figures)}")
        chosen.results.parent.mkdir(parents=True, exist_ok=True)
        chosen.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
