"""Cost of screening shards, beside the plain loop that does the same work and nothing else.

    python -m benchmarks.screening loop [--rows N N] [--rounds N] [options]
    python -m benchmarks.screening memory [--rows N ...] [options]
    python -m benchmarks.screening library --rows N --processes N [N ...] [options]

Options: `--model NAME`, `--tasks TASK ...`, `--data FOLDER`, `--output FILE`.

- `loop`: CPU for a molecule. The plain loop reads a Parquet file batch by batch, predicts, and
  writes the same columns; it knows no ids but the file's, no errors, no notes, no filters. Both are
  measured in turns, each in a process of its own with one thread, on the same molecules; CPU
  seconds are those of a process and of all that it starts. The ratio is of the rows beyond the
  smaller file, so that loading the model does not count.
- `memory`: peak of one process for shards of so many rows.
- `library`: plan, run and check the first rows of the screening library, as lines of SMILES in
  shards of at most a hundred thousand rows (at least four), with so many processes, in turns. The
  rate is by the clock: on an idle machine only. Every row of the library must be in the outputs
  once, in its order.

Every command writes its section of `benchmarks/results/screening.json`.
"""

import argparse
import ctypes
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import RESULTS, machine, ratio, summary
from benchmarks.molecules import library_molecules
from benchmarks.predict_command import SUBREAPER, Used, measured
from merging.data.files import write_json
from models.released import released
from service.core.answer import Answer
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
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
            good = [answer for answer in answers if isinstance(answer, Answer)]
            rows = [
                np.concatenate([answer.tasks[task].values for task in query.tasks])
                for answer in good
            ]
            smiles = pa.array([answer.smiles for answer in good])
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


def of_loop(
    molecules: list[str], rows: list[int], rounds: int, model: str, tasks: list[str], folder: Path
) -> dict[str, Any]:
    """Measure CPU seconds of the plain loop and of `screen-shard`, for shards of two sizes."""
    used: dict[tuple[str, int], list[Used]] = {}
    for turn in range(rounds + 1):
        for count in rows if turn else rows[:1]:  # the first turn warms the disk's cache
            source = folder / f"{count}.parquet"
            if not source.exists():
                write_shard(source, molecules, count)
            for name in ("loop", "shard"):
                output = folder / f"out-{name}-{turn}-{count}"
                command = _loop if name == "loop" else _shard
                found = measured(command(model, tasks, source, output))
                if turn:
                    used.setdefault((name, count), []).append(found)
    few, many = rows
    cpu = {
        name: [
            (large.cpu - small.cpu) / (many - few)
            for small, large in zip(used[name, few], used[name, many], strict=True)
        ]
        for name in ("loop", "shard")
    }
    return {
        "rows": rows,
        "rounds": rounds,
        "cpu_ms_per_molecule": {
            name: summary([1e3 * value for value in values], 4) for name, values in cpu.items()
        },
        "shard_to_loop_by_cpu": ratio(cpu["shard"], cpu["loop"]),
        "aim": AIM_CPU,
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
    }


def _loop(model: str, tasks: list[str], source: Path, output: Path) -> list[str]:
    asked = [model, "--tasks", *tasks, "--files", str(source), str(output)]
    return [sys.executable, "-m", "benchmarks.screening", "plain-loop", "--model", *asked]


def _shard(model: str, tasks: list[str], source: Path, output: Path) -> list[str]:
    options = ["--model", model, "--tasks", ",".join(tasks), "--device", "cpu"]
    command = [sys.executable, "-m", "gmerging", "screen-shard"]
    return [*command, str(source), "-o", str(output), *options]


def of_memory(
    molecules: list[str], rows: list[int], model: str, tasks: list[str], folder: Path
) -> dict[str, Any]:
    """Measure the peak memory of `screen-shard` for shards of several sizes."""
    peaks: dict[int, float] = {}
    for count in rows:
        source = folder / f"{count}.parquet"
        write_shard(source, molecules, count)
        peaks[count] = measured(_shard(model, tasks, source, folder / f"out-{count}")).peak_mib
    return {
        "peak_mib": {str(count): round(peak) for count, peak in peaks.items()},
        "growth": round(peaks[rows[-1]] / peaks[rows[0]], 3),
        "aims": {"peak_mib": AIM_MIB, "growth": AIM_GROWTH},
    }


def write_library(data: Path, folder: Path, rows: int) -> list[list[str]]:
    """Write the first rows of the screening library as shards of SMILES with ids, gzipped, and
    return the ids of each shard."""
    with gzip.open(data / "smiles" / "smiles.txt.gz", "rt") as file:
        smiles = [line.strip() for line in itertools.islice(file, rows)]
    if len(smiles) < rows:
        raise SystemExit(f"got a library of {len(smiles)} molecules, expected {rows}")
    size = min(_SHARD_ROWS, -(-rows // 4))
    ids = []
    folder.mkdir()
    for k, begin in enumerate(range(0, rows, size)):
        named = {f"z{begin + n}": text for n, text in enumerate(smiles[begin : begin + size])}
        with gzip.open(folder / f"part-{k:04}.smi.gz", "wt") as shard:
            shard.writelines(f"{text} {name}\n" for name, text in named.items())
        ids.append(list(named))
    return ids


def of_library(
    rows: int, processes: list[int], model: str, tasks: list[str], data: Path, folder: Path
) -> dict[str, Any]:
    """Screen a library with several numbers of processes in turns, and check every row of it."""
    library = folder / "library"
    ids = write_library(data, library, rows)
    found: dict[str, Any] = {"shards": len(ids), "processes": {}}
    for count in processes:
        plan, output = folder / f"{count}.json", folder / f"screened-{count}"
        command = [sys.executable, "-m", "gmerging", "screen"]
        given = ["-o", str(output), "--plan", str(plan), "--model", model]
        tasks_asked = ["--tasks", ",".join(tasks)]
        subprocess.run([*command, "plan", str(library), *given, *tasks_asked], check=True)
        words = ["run", str(plan), "--processes", str(count), "--device", "cpu"]
        used = measured([*command, *words])
        found["processes"][str(count)] = {
            "seconds": round(used.wall, 1),
            "cpu_seconds": round(used.cpu, 1),
            "molecules_per_second": round(rows / used.wall, 1),
            "molecules_per_core_hour": round(3600 * rows / used.cpu),
            **_checked(output, ids),
        }
    rates = [entry["molecules_per_second"] for entry in found["processes"].values()]
    if len(rates) > 1:
        found["scaling"] = round(rates[-1] / rates[0], 2)
        found["aim"] = AIM_SCALING
    return found


def _checked(output: Path, ids: list[list[str]]) -> dict[str, Any]:
    """Compare the outputs with what was asked: every id once, in its order; count the errors."""
    errors: Counter[str] = Counter()
    space = lost = duplicated = 0
    in_order = True
    for k, expected in enumerate(ids):
        (path,) = output.rglob(f"part-{k:04}.smi.gz.parquet")
        table = pq.read_table(path, columns=["id", "gmerging_error"])
        found = table.column("id").to_pylist()
        lost += len(set(expected) - set(found))
        duplicated += len(found) - len(set(found))
        in_order &= found == expected
        errors.update(
            text.split(":")[0] for text in table.column("gmerging_error").to_pylist() if text
        )
        space += path.stat().st_size
    rows = sum(map(len, ids))
    return {
        "lost": lost,
        "duplicated": duplicated,
        "same_order": in_order,
        "errors": dict(errors.most_common()),
        "bytes_per_row": round(space / rows, 1),
    }


def main() -> None:
    """Measure and write the results."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("section", choices=["loop", "memory", "library", "plain-loop"])
    options.add_argument("--rows", type=int, nargs="+", default=[10_000, 60_000])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--model", default="admet")
    options.add_argument("--tasks", nargs="+", default=["herg", "bbb_martins"])
    options.add_argument("--processes", type=int, nargs="+", default=[1])
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--output", type=Path, default=RESULTS / "screening.json")
    options.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    model, tasks, rows = arguments.model, arguments.tasks, sorted(arguments.rows)
    if arguments.section == "plain-loop":
        plain_loop(model, tasks, *arguments.files)
        return
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.section == "library":
            section = f"library_of_{rows[-1]}"
            processes = arguments.processes
            found = of_library(rows[-1], processes, model, tasks, arguments.data, folder)
        else:
            section = arguments.section
            molecules = library_molecules(min(rows[-1], _DISTINCT), arguments.data)
            if section == "loop":
                found = of_loop(molecules, rows, arguments.rounds, model, tasks, folder)
            else:
                found = of_memory(molecules, rows, model, tasks, folder)
            found["distinct_molecules"] = len(molecules)
    about = {"machine": {**machine(1), "load_before": load}, "model": model, "tasks": tasks}
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    print(json.dumps({section: about | found}, indent=2))
    write_json(arguments.output, before | {section: about | found})


if __name__ == "__main__":
    main()
