"""The cost of HTTP: the service under `wrk` and the engine called directly, in turns in one run.

    python -m benchmarks.http_load            # about twelve minutes
    python -m benchmarks.http_load --quick    # under a minute

Writes `benchmarks/results/http.json`.

The service is `python -m service` on the loopback: default settings, one worker, one thread, the
released artifact, all tasks, no cache of answers (and once with it). No two requests of a run are
equal. "Direct" is this process on one thread: molecules are read batch by batch
(`service.core.reading.read_all`) and answered (`ArtifactEngine.run`), to arrays in memory. Nothing
is bound to a core: the service's event loop and model share one process, its two parser processes
and wrk run where there is room. So a share of throughput near 1 on two cores still costs more than
one core's work: `cpu_ratio` has that, in CPU seconds for each molecule, of all the service's
processes by those of this one.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import torch

from benchmarks.measuring import RESULTS, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.experts.unified import Routing
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.core.reading import ItemFailure, MoleculeLimits, Parsed, read, read_all
from service.settings import RELEASED_ARTIFACT, Settings

SCRIPT = Path(__file__).with_suffix(".lua")
AIMS = {"throughput_share": 0.8, "overhead_seconds": 0.002, "one_molecule_p50_seconds": 0.005}
CONSTANT = "/healthz"
"""Route of a constant answer, whose time is that of HTTP itself."""
LARGE_BATCH = 64
ROUTINGS: tuple[Routing, ...] = get_args(Routing)
PACKAGES = ("fastapi", "httptools", "orjson", "pebble", "pydantic", "uvicorn", "uvloop")


@dataclass(frozen=True)
class Case:
    """A load: number of connections that each send one request after another, molecules per
    request, and duration as a fraction of a run's.
    """

    connections: int
    molecules: int = 1
    length: int = 1

    @property
    def name(self) -> str:
        """Name in the results."""
        return f"{self.connections} x {self.molecules}"


CASES = (Case(1), Case(8), Case(64), Case(4, 100, 2))
ALONE, FULL = CASES[0], CASES[2]


class Service:
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process, self._url = process, url

    def constant(self, seconds: int) -> dict[str, float]:
        """Run wrk once on the constant route, one connection; return its figures by name."""
        found = self._wrk(CONSTANT, ALONE, seconds)
        return {"p50_seconds": found["p50"], "p99_seconds": found["p99"]}

    def load(self, bodies: Path, case: Case, seconds: int) -> dict[str, float]:
        """Run wrk once; return its figures by name, per molecule where they count molecules."""
        cpu = self._cpu_seconds()
        passes = self._passes()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = self._wrk("/predict", case, seconds, str(bodies))
        if found["requests"] > _lines(bodies):
            raise SystemExit(f"got {found}, expected no request sent twice")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        answered, passes_after = found["requests"] * case.molecules, self._passes()
        return {
            "molecules_per_second": answered / found["seconds"],
            "p50_seconds": found["p50"],
            "p99_seconds": found["p99"],
            "cpu_seconds": (self._cpu_seconds() - cpu) / answered,
            "wrk_cpu_seconds": (
                (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / answered
            ),
            "batch": (passes_after[0] - passes[0]) / max(1.0, passes_after[1] - passes[1]),
        }

    def _wrk(self, path: str, case: Case, seconds: int, *arguments: str) -> dict[str, float]:
        command = [
            "wrk",
            "-t1",
            f"-c{case.connections}",
            f"-d{round(seconds * case.length)}s",
            "--timeout",
            "30s",
            "-s",
            str(SCRIPT),
            f"{self._url}{path}",
        ]
        text = subprocess.run(
            [*command, "--", *arguments], check=True, capture_output=True, text=True
        ).stdout
        found: dict[str, float] = json.loads(text.splitlines()[-1])
        if found["refused"] or found["lost"]:
            raise SystemExit(f"got {found}, expected every request answered")
        return found

    def _passes(self) -> tuple[float, float]:
        """Count molecules in model passes, and passes. Nothing is under way: wrk returns after its
        time.
        """
        while True:
            lines = httpx.get(f"{self._url}/metrics").text.splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            if float(values["gmerging_pending_cost"]) == 0:
                return float(values["gmerging_batch_graphs_sum"]), float(
                    values["gmerging_batch_graphs_count"]
                )
            time.sleep(0.1)

    def _cpu_seconds(self) -> float:
        """Sum the CPU seconds of all its processes."""
        ticks, waiting = 0, [self._process.pid]
        while waiting:
            pid = waiting.pop()
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
            user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            ticks += int(user) + int(system)
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(**settings: object) -> Iterator[Service]:
    """Run `python -m service` on a free port of the loopback, with the given settings."""
    values = {"port": 0, "device": "cpu", **settings}
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("GMERGING_")
    }
    environment |= {
        "OMP_NUM_THREADS": "1",
        **{f"GMERGING_{name.upper()}": str(value) for name, value in values.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "service"], env=environment, stderr=stream
            )
        try:
            yield Service(process, _address(log, process))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        text = log.read_text()
        if "running on http://" in text:
            return "http://" + text.split("running on http://")[1].split()[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")


class Direct:
    """The engine in this process, on one thread."""

    def __init__(self, smiles: Sequence[str]) -> None:
        settings = Settings(device="cpu")
        self._smiles = smiles
        self._limits = MoleculeLimits(settings.max_atoms, settings.max_smiles_length)
        self._engine: ArtifactEngine = load_engine(RELEASED_ARTIFACT, settings)
        self._requirements = self._engine.info.requirements_for(self._engine.info.tasks)

    def _read(self, smiles: Sequence[str]) -> list[Parsed | ItemFailure]:
        return read_all(smiles, self._limits, self._requirements)

    def batches(self, routing: Routing, size: int) -> dict[str, float]:
        """Answer all molecules in batches of a size."""
        reading, cpu, started = 0.0, time.process_time(), time.perf_counter()
        for begin in range(0, len(self._smiles), size):
            now = time.perf_counter()
            graphs = [
                result.graph
                for result in self._read(self._smiles[begin : begin + size])
                if isinstance(result, Parsed)
            ]
            reading += time.perf_counter() - now
            self._engine.run(graphs, self._engine.info.tasks, routing)
        seconds, count = time.perf_counter() - started, len(self._smiles)
        return {
            "molecules_per_second": count / seconds,
            "without_reading": count / (seconds - reading),
            "cpu_seconds": (time.process_time() - cpu) / count,
        }

    def single(self, routing: Routing) -> dict[str, float]:
        """Answer the molecules one by one, and measure the time until each answer."""
        whole, engine = [], []
        for smiles in self._smiles:
            started = time.perf_counter()
            molecule = read(smiles, self._limits, self._requirements)
            assert isinstance(molecule, Parsed)
            now = time.perf_counter()
            self._engine.run([molecule.graph], self._engine.info.tasks, routing)
            engine.append(time.perf_counter() - now)
            whole.append(time.perf_counter() - started)
        return {
            "p50_seconds": float(np.quantile(whole, 0.5)),
            "p99_seconds": float(np.quantile(whole, 0.99)),
            "p50_without_reading": float(np.quantile(engine, 0.5)),
        }


@dataclass(frozen=True)
class Bodies:
    """Files of request bodies, made on demand."""

    folder: Path
    smiles: Sequence[str]

    def of(self, routing: Routing, molecules: int) -> Path:
        """Write one request a line with `molecules` each, no molecule twice."""
        path = self.folder / f"{routing}-{molecules}"
        if not path.exists():
            groups = (
                self.smiles[begin : begin + molecules]
                for begin in range(0, len(self.smiles), molecules)
            )
            lines = (
                json.dumps({"smiles": group[0] if molecules == 1 else group, "routing": routing})
                for group in groups
            )
            path.write_text("\n".join(lines))
        return path


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def measure(
    service: Service, direct: Direct, bodies: Bodies, routing: Routing, rounds: int, seconds: int
) -> dict[str, Any]:
    """Run loads and direct calls in turns, after a load to warm up."""
    loads: dict[str, list[dict[str, float]]] = {case.name: [] for case in CASES}
    calls: dict[str, list[dict[str, float]]] = {
        "service's batch": [],
        f"batch {LARGE_BATCH}": [],
        "alone": [],
    }
    constants: list[dict[str, float]] = []
    size = max(1, round(service.load(bodies.of(routing, FULL.molecules), FULL, seconds)["batch"]))
    for _ in range(rounds):
        for case in CASES:
            loads[case.name].append(service.load(bodies.of(routing, case.molecules), case, seconds))
            if case == ALONE:
                constants.append(service.constant(seconds))
                calls["alone"].append(direct.single(routing))
            if case == FULL:
                calls["service's batch"].append(direct.batches(routing, size))
                calls[f"batch {LARGE_BATCH}"].append(direct.batches(routing, LARGE_BATCH))
    full, single, same = loads[FULL.name], loads[ALONE.name], calls["service's batch"]
    overheads = [
        a["p50_seconds"] - b["p50_seconds"] for a, b in zip(single, calls["alone"], strict=True)
    ]
    shares = {
        name: ratio(
            _column(full, "molecules_per_second"), _column(calls[name], "molecules_per_second")
        )
        for name in ("service's batch", f"batch {LARGE_BATCH}")
    }
    return {
        "service": {name: _summaries(runs) for name, runs in loads.items()},
        "direct": {name: _summaries(runs) for name, runs in calls.items()},
        "direct_batch": size,
        "throughput_share": shares["service's batch"],
        f"throughput_share_of_batch_{LARGE_BATCH}": shares[f"batch {LARGE_BATCH}"],
        "overhead_seconds": summary(overheads),
        "constant": _summaries(constants),
        "one_molecule_p50_seconds": summary(_column(single, "p50_seconds")),
        "one_molecule_to_constant": ratio(
            _column(single, "p50_seconds"), _column(constants, "p50_seconds")
        ),
        "cpu_ratio": ratio(_column(full, "cpu_seconds"), _column(same, "cpu_seconds")),
    }


def _column(runs: Sequence[dict[str, float]], key: str) -> list[float]:
    return [run[key] for run in runs]


def _summaries(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {key: summary(_column(runs, key)) for key in runs[0]}


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="short runs: to see that all is well, or a change that is large",
    )
    options.add_argument("--routings", nargs="+", choices=ROUTINGS, default=ROUTINGS)
    options.add_argument("--output", type=Path, default=RESULTS / "http.json")
    arguments = options.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    rounds, seconds, count, direct_count = (
        (2, 3, 6000, 250) if arguments.quick else (5, 8, 20_000, 1000)
    )
    torch.set_num_threads(1)
    smiles = fixed_molecules(count)
    direct = Direct(smiles[-direct_count:])
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    found: dict[str, Any] = {
        "machine": machine(1) | versions | {"wrk": _wrk_version()},
        "aims": AIMS,
        "quick": arguments.quick,
    }
    found |= {
        "rounds": rounds,
        "seconds": seconds,
        "tasks": "all",
        "workers": 1,
        "parsers": Settings().parsers,
    }
    with tempfile.TemporaryDirectory() as folder:
        bodies = Bodies(Path(folder), smiles)
        with running(cache_bytes=0) as service:
            for routing in arguments.routings:
                found[routing] = measure(service, direct, bodies, routing, rounds, seconds)
                print(routing, json.dumps(found[routing]), flush=True)
        found["with_cache"] = {}
        for routing in arguments.routings:
            with running() as service:  # the second run finds the caches of the first
                runs = [service.load(bodies.of(routing, 1), FULL, seconds) for _ in range(2)]
            found["with_cache"][routing] = dict(zip(("new", "asked_again"), runs, strict=True))
    write_json(arguments.output, found)


def _wrk_version() -> str:
    # wrk prints its version and usage, and exits with 1
    return subprocess.run(
        ["wrk", "-v"], check=False, capture_output=True, text=True
    ).stdout.split()[1]


if __name__ == "__main__":
    main()
