"""Cost of screening shards, beside the plain loop that does the same work and nothing else.

    python -m benchmarks.screening [--rows N ...] [--rounds N] [--model NAME] [--tasks TASK ...]
        [--processes N ...] [--data FOLDER] [--output FILE]

The plain loop reads a Parquet file batch by batch, predicts, and writes the same columns; it knows
no ids but the file's, no errors, no notes, no filters. Both are measured in turns, each in a
process of its own with one thread, on the same molecules of the screening library (repeated where
there are too few); CPU seconds are those of a process and of all that it starts. The ratio is of
the rows beyond the smallest file, so that loading the model does not count.

`--processes 1 2` runs a plan of as many shards as there are hundred thousands of rows (at least
four) with so many processes, and notes the rate by the clock: on an idle machine only. With
`--rows 10000 100000 1000000` the memory is measured up to a million molecules.

Writes `benchmarks/results/screening.json`.
"""

import argparse
import ctypes
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import RESULTS, machine, ratio, summary
from benchmarks.molecules import library_molecules
from benchmarks.predict_command import SUBREAPER, Used, measured
from merging.data.files import write_json
from models.released import released
from service.core.engine import PredictionQuery, load_engine
from service.core.local import predict
from service.formats.answers import number_columns
from service.settings import Settings
from service.shards.answering import CHUNK_ROWS

AIM_CPU = 1.05
"""CPU per molecule over that of the plain loop, at most."""
AIM_MIB, AIM_GROWTH = 800, 1.05
"""Peak memory of a worker, and its growth from the smallest file to the largest, at most."""
AIM_SCALING = 1.7
"""Rate of two processes over that of one, at least, on an idle machine."""
_DISTINCT = 50_000
_SHARD_ROWS = 100_000


def plain_loop(model: str, tasks: list[str], source: Path, target: Path) -> None:
    """Predict for a Parquet file as a script for one afternoon would."""
    import numpy as np

    settings = Settings(device="cpu")
    engine = load_engine(released()[model], settings)
    query = PredictionQuery.checked(model, engine, tasks, "own")
    labels = number_columns(engine.info, query.tasks)
    fields = [("id", pa.string()), ("smiles", pa.string())]
    schema = pa.schema([*fields, *((label, pa.float32()) for label in labels)])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in pq.ParquetFile(source).iter_batches(CHUNK_ROWS):
            answers = predict(query, settings, batch.column("smiles").to_pylist())
            rows = [
                np.concatenate([answer.tasks[task].values for task in query.tasks])  # type: ignore[union-attr]
                for answer in answers
            ]
            smiles = pa.array([answer.smiles for answer in answers])  # type: ignore[union-attr]
            values = [pa.array(column) for column in np.array(rows, dtype=np.float32).T]
            columns = [batch.column("id"), smiles, *values]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_shard(path: Path, molecules: list[str], rows: int) -> None:
    """Write a shard of so many rows; molecules come again where there are too few."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("id", pa.string()), ("smiles", pa.string())])
    endless = itertools.cycle(molecules)
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, _SHARD_ROWS):
            count = min(_SHARD_ROWS, rows - begin)
            smiles = list(itertools.islice(endless, count))
            ids = [f"m{begin + k}" for k in range(count)]
            writer.write_table(pa.table([ids, smiles], schema=schema))


def of_one_shard(
    molecules: list[str], rows: list[int], rounds: int, model: str, tasks: list[str], folder: Path
) -> dict[str, Any]:
    """Measure CPU and memory for shards of several sizes."""
    asked = [model, "--tasks", *tasks]
    loop = [sys.executable, "-m", "benchmarks.screening", "--loop", *asked]
    shard = [sys.executable, "-m", "gmerging", "screen-shard"]
    options = ["--model", model, "--tasks", ",".join(tasks), "--device", "cpu", "--replace"]
    used: dict[tuple[str, int], list[Used]] = {}
    for turn in range(rounds + 1):
        for count in rows if turn else rows[:1]:  # the first turn warms the disk's cache
            source = folder / f"{count}.parquet"
            if not source.exists():
                write_shard(source, molecules, count)
            for name in ("loop", "shard"):
                output = folder / f"out-{name}-{turn}-{count}"
                if name == "loop":
                    found = measured([*loop, "--files", str(source), str(output)])
                else:
                    found = measured([*shard, str(source), "-o", str(output), *options])
                if turn:
                    used.setdefault((name, count), []).append(found)
    few, many = rows[0], rows[-1]
    cpu = {
        name: [
            (large.cpu - small.cpu) / (many - few)
            for small, large in zip(used[name, few], used[name, many], strict=True)
        ]
        for name in ("loop", "shard")
    }
    peaks = {count: max(found.peak_mib for found in used["shard", count]) for count in rows}
    return {
        "cpu_ms_per_molecule": {
            name: summary([1e3 * value for value in values], 4) for name, values in cpu.items()
        },
        "shard_to_loop_by_cpu": ratio(cpu["shard"], cpu["loop"]),
        "cpu_seconds_of_a_start": {
            name: summary(
                [
                    found.cpu - few * slope
                    for found, slope in zip(used[name, few], cpu[name], strict=True)
                ],
                2,
            )
            for name in ("loop", "shard")
        },
        "peak_mib": {str(count): round(peak) for count, peak in peaks.items()},
        "growth_of_memory": round(peaks[many] / peaks[few], 3),
    }


def of_processes(
    molecules: list[str],
    rows: int,
    processes: list[int],
    model: str,
    tasks: list[str],
    folder: Path,
) -> dict[str, Any]:
    """Measure the rate of plans by the clock, with several numbers of processes in turns."""
    library, shards = folder / "library", max(4, rows // _SHARD_ROWS)
    for k in range(shards):
        write_shard(library / f"part-{k}.parquet", molecules, rows // shards)
    command = [sys.executable, "-m", "gmerging", "screen"]
    options = ["--model", model, "--tasks", ",".join(tasks)]
    found: dict[str, Any] = {"rows": rows // shards * shards, "shards": shards}
    for count in processes:
        plan, output = folder / f"{count}.json", folder / f"processes-{count}"
        given = [str(library), "-o", str(output), "--plan", str(plan), *options]
        subprocess.run([*command, "plan", *given], check=True)
        words = ["run", str(plan), "--processes", str(count), "--device", "cpu", "--json"]
        began = time.monotonic()
        done = subprocess.run([*command, *words], check=True, stderr=subprocess.PIPE, text=True)
        told = json.loads(done.stderr.splitlines()[-1])
        found[str(count)] = {
            "seconds": round(time.monotonic() - began, 1),
            "rows_per_second": told["rows_per_second"],
            "missing": told["missing"],
        }
    return found


def main() -> None:
    """Measure and write the results."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--model", default="admet")
    options.add_argument("--tasks", nargs="+", default=["herg", "bbb_martins"])
    options.add_argument("--processes", type=int, nargs="*", default=[])
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--output", type=Path, default=RESULTS / "screening.json")
    options.add_argument("--loop", help=argparse.SUPPRESS)
    options.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.loop:
        plain_loop(arguments.loop, arguments.tasks, *arguments.files)
        return
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    rows = sorted(arguments.rows)
    molecules = library_molecules(min(rows[-1], _DISTINCT), arguments.data)
    found: dict[str, Any] = {
        "machine": {**machine(1), "load": round(os.getloadavg()[0], 1)},
        "aims": {
            "shard_to_loop_by_cpu": AIM_CPU,
            "peak_mib": AIM_MIB,
            "growth_of_memory": AIM_GROWTH,
            "two_processes_to_one": AIM_SCALING,
        },
        "model": arguments.model,
        "tasks": arguments.tasks,
        "rows": rows,
        "distinct_molecules": len(molecules),
        "rounds": arguments.rounds,
    }
    asked = arguments.model, arguments.tasks
    with tempfile.TemporaryDirectory() as folder:
        found |= of_one_shard(molecules, rows, arguments.rounds, *asked, Path(folder))
        if arguments.processes:
            counts = arguments.processes
            found["processes"] = of_processes(molecules, rows[-1], counts, *asked, Path(folder))
    print(json.dumps(found, indent=2))
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
