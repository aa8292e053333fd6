"""Speed and memory of `gmerging predict`, beside its engine alone.

    python -m benchmarks.predict_command [--rows N] [--rounds N] [--data FOLDER] [--output FILE]

Both answer the same molecules of the screening library, in turns, each in a process of its own with
one thread. CPU seconds (user and system) are those of a process and of all that it starts. Rates
are of the rows beyond a tenth of them: what starts a run, and what loads the model, does not count.
Writes `benchmarks/results/predict_command.json`.
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, machine, ratio, summary
from benchmarks.molecules import library_molecules
from merging.data.files import write_json
from models.released import released
from service.bulk.local import GROUP_SIZE
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.local import predict
from service.settings import Settings

MODELS = ("admet", "moleculenet-gcn")
AIM = 0.9
"""Rate of the command over that of its engine."""
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes that outlive their parent become ours


@dataclass(frozen=True)
class Used:
    """CPU seconds of a process and all that it started, seconds by the clock, and peak memory of
    the process itself in MiB."""

    cpu: float
    wall: float
    peak_mib: float


def measured(command: Sequence[str]) -> Used:
    """Run a command and wait for all of its processes."""
    started, cpu = time.monotonic(), 0.0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    wall, peaks = 0.0, [0.0]
    threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True).start()
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return Used(cpu, wall, max(peaks))
        cpu += usage.ru_utime + usage.ru_stime
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            wall = time.monotonic() - started
            if process.returncode not in (0, 3):
                raise SystemExit(f"got status {process.returncode} of {' '.join(command)}")


def _watch(pid: int, peaks: list[float]) -> None:
    """Note the peak memory of a process until it ends. `ru_maxrss` would begin with ours."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found is None:  # it has ended, and nobody has waited for it
            return
        peaks.append(int(found[1]) / 1024)
        time.sleep(0.1)


def engine_alone(model: str, smiles: Path) -> None:
    """Read molecules and predict all tasks, in groups and passes as of the service."""
    settings = Settings(device="cpu")
    engine = load_engine(released()[model], settings)
    query = PredictionQuery.checked(model, engine, None, "own")
    texts = smiles.read_text().split()
    for begin in range(0, len(texts), GROUP_SIZE):
        predict(query, settings, texts[begin : begin + GROUP_SIZE])


def measure(files: dict[int, Path], model: str, rounds: int, output: Path) -> dict[str, Any]:
    """Measure one model on files of some rows and of all."""
    few, many = sorted(files)
    alone = [sys.executable, "-m", "benchmarks.predict_command", "--alone", model, "--smiles"]
    command = [sys.executable, "-m", "gmerging", "predict", "--model", model, "--device", "cpu"]
    words = {"alone": alone, "command": [*command, "--replace", "-o", str(output)]}
    used: dict[tuple[str, int], list[Used]] = {}
    for turn in range(rounds + 1):
        for name, run in words.items():
            for rows in (few, many) if turn else (few,):  # the first turn warms the disk's cache
                found = measured([*run, str(files[rows])])
                used.setdefault((name, rows), []).extend([found] if turn else [])
    added = many - few

    def slopes(name: str, unit: str) -> list[float]:
        pairs = zip(used[name, few], used[name, many], strict=True)
        return [(getattr(large, unit) - getattr(small, unit)) / added for small, large in pairs]

    cpu = {name: slopes(name, "cpu") for name in words}
    wall = {name: slopes(name, "wall") for name in words}
    return {
        "rows_per_cpu_second": {
            name: summary([1 / value for value in values], 1) for name, values in cpu.items()
        },
        "command_to_engine_by_cpu": ratio(cpu["alone"], cpu["command"]),
        "command_to_engine_by_clock": ratio(wall["alone"], wall["command"]),
        "seconds_of_all_rows": summary([found.wall for found in used["command", many]], 1),
        "output_mb": round(output.stat().st_size / 1e6, 1),
        "peak_mib": {
            str(rows): round(max(found.peak_mib for found in used["command", rows]))
            for rows in (few, many)
        },
    }


def main() -> None:
    """Measure and write the results."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--output", type=Path, default=RESULTS / "predict_command.json")
    options.add_argument("--alone", help=argparse.SUPPRESS)
    options.add_argument("--smiles", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.alone:
        engine_alone(arguments.alone, arguments.smiles)
        return
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    molecules = library_molecules(arguments.rows, arguments.data)
    found: dict[str, Any] = {
        "machine": {**machine(1), "load": round(os.getloadavg()[0], 1)},
        "aim": AIM,
        "rows": arguments.rows,
        "rounds": arguments.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for count in (arguments.rows // 10, arguments.rows):
            files[count] = Path(folder) / f"{count}.smi"
            files[count].write_text("\n".join(molecules[:count]) + "\n")
        for model in MODELS:
            output = Path(folder) / f"{model}.csv"
            found[model] = measure(files, model, arguments.rounds, output)
            print(model, found[model], flush=True)
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
