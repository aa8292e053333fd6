"""Speed and memory of `gmerging predict`, beside its engine alone.

    python -m benchmarks.predict_command [--rows N] [--rounds N] [--data FOLDER] [--output FILE]

Both answer the same molecules of the screening library, in turns, each in a process of its own with
one thread. CPU seconds (user and system) are those of a process and of all that it starts. What it
takes to load the model, and to start the process that reads long molecules, is measured by a run of
one such molecule, and subtracted. Writes
`benchmarks/results/predict_command.json`.
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
from service.core.engine import PredictionQuery, load_engine
from service.core.local import predict
from service.settings import Settings

MODELS = ("admet", "moleculenet-gcn")
LONG = "C[C@H](N)C(=O)O"
"""A molecule with stereo, which the command reads in a process of its own."""
AIM = 0.9
"""Rate of the command over that of its engine."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes that outlive their parent become ours


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
    """Measure one model on files of a row, of some rows and of all."""
    one, few, many = sorted(files)
    alone = [sys.executable, "-m", "benchmarks.predict_command", "--alone", model, "--smiles"]
    command = [sys.executable, "-m", "gmerging", "predict", "--model", model, "--device", "cpu"]

    def run(words: Sequence[str], rows: int) -> Used:
        given = [*words, str(files[rows])]
        if words is not alone:
            given += ["--replace", "-o", str(output)]
        return measured(given)

    load = {name: run(words, one) for name, words in (("alone", alone), ("command", command))}
    small = run(command, few)
    used: dict[str, list[Used]] = {"alone": [], "command": []}
    for _ in range(rounds):
        used["alone"].append(run(alone, many))
        used["command"].append(run(command, many))
    cpu = {name: [u.cpu - load[name].cpu for u in runs] for name, runs in used.items()}
    wall = {name: [u.wall - load[name].wall for u in runs] for name, runs in used.items()}
    rows = many - 1
    return {
        "rows_per_cpu_second": {
            name: summary([rows / value for value in values], 1) for name, values in cpu.items()
        },
        "start_cpu_seconds": {name: round(value.cpu, 1) for name, value in load.items()},
        "command_to_engine_by_cpu": ratio(cpu["alone"], cpu["command"]),
        "command_to_engine_by_clock": ratio(wall["alone"], wall["command"]),
        "output_mb": round(output.stat().st_size / 1e6, 1),
        "peak_mib": {
            str(few): round(small.peak_mib),
            str(many): round(max(u.peak_mib for u in used["command"])),
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
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
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
        files[1] = Path(folder) / "1.smi"
        files[1].write_text(f"{LONG}\n")
        for model in MODELS:
            output = Path(folder) / f"{model}.csv"
            found[model] = measure(files, model, arguments.rounds, output)
            print(model, found[model], flush=True)
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
