"""All checks that need a GPU, in at most seven minutes: `make gpu-check`.

It runs on a bare machine that has torch, PyG and the packages that `make gpu-pack` puts into
`.gpu/`. The figures go to `benchmarks/results/gpu.json` (or `--output`), again after every section,
so that a run that is cut off leaves what it had. The exit code is 1 where a section failed.

- equality: the released model's answers against the CPU's, float32, all tasks and routings.
- one_pass: the same for the model whose 31 tasks share a stream, alone and with trees; its rates.
- joint_alignment: an epoch of the training of such a stream against two threads of the CPU.
- reading, throughput: molecules per second, reading apart from the pass, by batch size.
- training: an epoch of adapter training against two threads of the CPU.
- service: `GMERGING_DEVICE=cuda` under `python -m service`, answers, rate and memory.
- memory: a GPU that other work has nearly filled, and a pass that does not fit the rest.
- tests: the tests that need a device, on the GPU; last, as their time is known least.
"""

import argparse
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.gpu_bench import TOLERANCE, Bench, differences
from benchmarks.gpu_one_pass import joint_alignment, one_pass
from benchmarks.measuring import RELEASED, RESULTS, machine
from benchmarks.own_service import get, loaded, post, served, timed_posts
from models.artifact import load_artifact
from models.data.molecule import collate, pack
from models.data.smiles import featurize_all
from models.experts.unified import Routing
from models.networks.hu2020 import Backbone, load_backbone
from models.transport.problem import Solver
from service.core.artifact_engine import ArtifactEngine

PACK = Path(".gpu")
MOLECULES, TEACHER = PACK / "molecules.smi", PACK / "teacher.pth"
TESTS = (
    "tests/models/test_on_device.py",
    "tests/models/test_device.py",
    "tests/service/core/test_engine.py",
)
EPOCHS = 4
BATCHES = (1, 8, 64, 256, 1024, 4096)
ROUTINGS: tuple[Routing, ...] = get_args(Routing)

Section = Callable[["Bench"], dict[str, Any]]


def tests(bench: Bench) -> dict[str, Any]:
    """Run the tests that need a device; failures are listed by name."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        *TESTS,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    except subprocess.TimeoutExpired as error:
        return {"failed": True, "output": str(error.stdout)[-2000:]}
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    counts = [line for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    found = {"summary": counts[-1] if counts else "", "failures": failures, "skipped": skipped}
    return (
        found
        if done.returncode == 0
        else {**found, "failed": True, "output": (done.stdout + done.stderr)[-3000:]}
    )


def equality(bench: Bench) -> dict[str, Any]:
    """Find the largest difference of probabilities and routing weights from the CPU's."""
    ours, theirs, graphs = bench.engine(), bench.engine("cpu"), bench.graphs[:1000]
    tasks, found = ours.info.tasks, {}
    for routing in ROUTINGS:
        gaps = differences(ours.run(graphs, tasks, routing), theirs.run(graphs, tasks, routing))
        found[routing] = {
            "probabilities": float(f"{gaps[0]:.2e}"),
            "routing_weights": float(f"{gaps[1]:.2e}"),
        }
    worst = max(row["probabilities"] for row in found.values())
    return {
        "molecules": len(graphs),
        "tolerance": TOLERANCE,
        **found,
        **({"failed": True} if worst > TOLERANCE else {}),
    }


def reading(bench: Bench) -> dict[str, Any]:
    """Measure reading SMILES to graphs in one process, which feeds the GPU."""
    smiles, started = bench.smiles[:2000], time.perf_counter()
    featurize_all(smiles)
    return {"molecules_per_second_of_a_core": round(len(smiles) / (time.perf_counter() - started))}


def throughput(bench: Bench) -> dict[str, Any]:
    """Measure molecules per second from graphs to answers of all tasks, by batch size, with the
    CPU's compiled model on one thread for comparison.
    """
    ours, theirs, found = bench.engine(), bench.engine("cpu"), {}
    tasks = ours.info.tasks
    for routing in ROUTINGS:
        rows: dict[str, Any] = {}
        for size in (size for size in BATCHES if size <= len(bench.graphs)):
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = [*bench.timed(partial(ours.run, bench.graphs[:size], tasks, routing))]
            middle = statistics.median(seconds)
            rows[str(size)] = {
                "molecules_per_second": round(size / middle),
                "ms_a_pass": round(1000 * middle, 2),
                "passes": len(seconds),
            }
            if bench.device.type == "cuda":
                rows[str(size)]["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
        on_cpu = statistics.median(
            bench.timed(partial(theirs.run, bench.graphs[:256], tasks, routing))
        )
        best = max(row["molecules_per_second"] for row in rows.values())
        found[routing] = {
            "by_batch": rows,
            "cpu_one_thread_molecules_per_second": round(256 / on_cpu),
            "best_against_one_thread": round(best * on_cpu / 256, 1),
        }
    return {**found, "where_a_pass_goes": breakdown(bench, ours)}


def breakdown(bench: Bench, engine: ArtifactEngine) -> dict[str, float]:
    """Measure a pass over 1,024 molecules by step, in milliseconds: collate, move, compute, bring
    back.
    """
    graphs = bench.graphs[:1024]
    model = load_artifact(RELEASED, bench.device).model
    batch = collate(graphs)
    moved = batch.to(bench.device)

    def back() -> object:
        return [values.cpu() for values in output.probabilities.values()]

    with torch.inference_mode():
        output = model(moved, routing="own")
        steps: dict[str, Callable[[], object]] = {
            "collate": partial(collate, graphs),
            "to_device": lambda: batch.to(bench.device),
            "model_own": lambda: model(moved, routing="own"),
            "model_moe": lambda: model(moved, routing="moe"),
            "back": back,
            "engine_own": lambda: engine.run(graphs, engine.info.tasks, "own"),
        }
        return {
            name: round(1000 * statistics.median(bench.timed(step)), 2)
            for name, step in steps.items()
        }


def training(bench: Bench) -> dict[str, Any]:
    """Measure epochs of adapter training on 512 molecules, here and on two threads of the CPU."""
    from merging.config.training import AlignmentConfig
    from merging.training.alignment import align

    released = load_artifact(RELEASED).model
    graphs = pack(bench.graphs[:512])
    found: dict[str, Any] = {}
    for solver in get_args(Solver):
        rows: dict[str, Any] = {}
        for name, device in (("device", bench.device), ("cpu_two_threads", torch.device("cpu"))):
            torch.set_num_threads(2 if device.type == "cpu" else 1)
            config = AlignmentConfig(
                rank=10, epochs=EPOCHS, batch_size=64, learning_rate=3e-3, solver=solver
            )
            student = Backbone(released.backbone.config)
            student.load_state_dict(released.backbone.state_dict())
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = Path(folder) / "resume.pt"
                result = align(
                    graphs,
                    torch.arange(len(graphs)),
                    teacher(student),
                    student,
                    config,
                    0,
                    checkpoint,
                    device,
                    "gpu-check",
                )
            rows[name] = {key: result.record[key] for key in ("seconds", "loss", "transport")}
        rows["times_as_fast"] = round(
            rows["cpu_two_threads"]["seconds"] / max(rows["device"]["seconds"], 1e-3), 2
        )
        found[solver] = rows
    torch.set_num_threads(1)
    return {"molecules": len(graphs), "epochs": EPOCHS, "batch_size": 64, **found}


def teacher(student: Backbone) -> Backbone:
    """Load Hu et al.'s GCN if its checkpoint is at hand, else perturb the student: the work is the
    same.
    """
    if TEACHER.is_file():
        return load_backbone(TEACHER, student.config)
    made = Backbone(student.config)
    generator = torch.Generator().manual_seed(0)
    made.load_state_dict(student.state_dict())
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    return made


def service(bench: Bench) -> dict[str, Any]:
    """Check the service on the device: answers against the CPU's engine, rate, memory, clean
    end.
    """
    tasks, smiles, theirs = ["bbbp", "bace", "tox21"], bench.smiles[:200], bench.engine("cpu")
    expected = theirs.run(bench.graphs[:200], tasks, "own")
    environment = {
        "GMERGING_ARTIFACT": str(RELEASED.resolve()),
        "GMERGING_MAX_BATCH_COST": "262144",
        "GMERGING_MAX_PENDING_COST": "4000000",
        "GMERGING_PARSERS": "8",
        "GMERGING_CACHE_BYTES": "0",
    }
    started = time.perf_counter()
    with served(bench.device.type, environment) as (port, log):
        ready = time.perf_counter() - started
        answer = post(port, {"smiles": smiles, "tasks": tasks})
        gap = 0.0
        for item, expected_tasks in zip(answer["predictions"], expected.answers, strict=True):
            for task in tasks:
                gap = max(
                    gap,
                    float(
                        np.abs(
                            np.array([*item["tasks"][task].values()]) - expected_tasks[task].values
                        ).max()
                    ),
                )
        single_seconds = statistics.median(
            timed_posts(port, {"smiles": "CC(=O)Oc1ccccc1C(=O)O"}, 30)
        )
        rate = loaded(port, bench.smiles, 10 * bench.seconds)
        metrics = get(port, "/metrics")
    memory = [
        line for line in metrics.splitlines() if line.startswith("gmerging_gpu_memory_bytes ")
    ]
    device = re.findall(r'gmerging_artifact_info\{[^}]*device="([^"]*)"', metrics)
    found = {
        "ready_seconds": round(ready, 1),
        "device": sorted(set(device)),
        "molecules_compared": len(smiles),
        "largest_difference": float(f"{gap:.2e}"),
        "one_molecule_p50_ms": round(1000 * single_seconds, 2),
        "molecules_per_second_16_clients_of_100": round(rate),
        "gpu_memory_mb": round(float(memory[0].split()[1]) / 1e6) if memory else None,
        "environment": environment,
        "exit_code": log["exit_code"],
    }
    good = (
        gap <= TOLERANCE
        and log["exit_code"] == 0
        and all(name.startswith(bench.device.type) for name in device)
    )
    return found if good and device else {**found, "failed": True, "log": log["tail"]}


def memory(bench: Bench) -> dict[str, Any]:
    """Check that passes that do not fit the GPU's memory are split and answered the same."""
    if bench.device.type != "cuda":
        return {"skipped": "needs a GPU"}
    engine, graphs = bench.engine(), bench.graphs[: BATCHES[-1]]
    tasks, halves = engine.info.tasks, Halvings()
    whole = engine.run(graphs, tasks, "moe")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    left = 600 * 1024**2
    ballast = torch.empty(
        max(0, torch.cuda.mem_get_info()[0] - left), dtype=torch.uint8, device=bench.device
    )
    logging.getLogger("service.core.artifact_engine").addHandler(halves)
    try:
        cut = engine.run(graphs, tasks, "moe")
    finally:
        logging.getLogger("service.core.artifact_engine").removeHandler(halves)
        del ballast
        torch.cuda.empty_cache()
    gap, _ = differences(whole, cut)
    found = {
        "gpu_mb": round(total / 1e6),
        "left_mb": round(left / 1e6),
        "molecules": len(graphs),
        "out_of_memory_errors": halves.count,
        "largest_difference": float(f"{gap:.2e}"),
    }
    return found if halves.count and gap <= TOLERANCE else {**found, "failed": True}


class Halvings(logging.Handler):
    """Log handler that counts how often the engine halved a pass."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record; called by logging."""
        self.count += "out of memory" in record.getMessage()


SECTIONS: dict[str, Section] = {
    "equality": equality,
    "one_pass": one_pass,
    "joint_alignment": joint_alignment,
    "reading": reading,
    "throughput": throughput,
    "training": training,
    "memory": memory,
    "service": service,
    "tests": tests,
}


def check(bench: Bench, sections: Sequence[str], output: Path) -> dict[str, Any]:
    """Run the sections. A failure is recorded, and the next section runs."""
    found: dict[str, Any] = {"machine": gpu_machine(bench.device)}
    for name in sections:
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        try:
            found[name] = SECTIONS[name](bench)
        except Exception as error:
            found[name] = {
                "failed": True,
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc()[-2000:],
            }
        found[name]["section_seconds"] = round(time.perf_counter() - started, 1)
        print(json.dumps(found[name])[:3000], flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n")
    return found


def gpu_machine(device: torch.device) -> dict[str, Any]:
    """Describe card, driver, processor and versions."""
    found: dict[str, Any] = machine(1)
    found["cores"] = os.cpu_count()
    found["platform"] = platform.platform()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_mb": round(properties.total_memory / 1e6),
            "cuda": torch.version.cuda,
        }
    return found


def molecules() -> list[str]:
    """Load packed molecules, or draw them from the shared data."""
    if MOLECULES.is_file():
        return MOLECULES.read_text().split()
    from benchmarks.molecules import fixed_molecules

    return fixed_molecules(BATCHES[-1])


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        default="cuda",
        choices=("cuda", "cpu"),
        help="cpu: try the script out without a GPU",
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--molecules", type=int, default=BATCHES[-1], help="how many at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="for which a rate is measured")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="some of them; all if left out",
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu-check: torch sees no GPU here (--device cpu tries the script out)")
    torch.set_num_threads(1)
    smiles = molecules()[: arguments.molecules]
    read = [
        (text, read)
        for text, read in zip(smiles, featurize_all(smiles), strict=True)
        if not isinstance(read, Exception)
    ]
    texts, graphs = [text for text, _ in read], [molecule.graph for _, molecule in read]
    bench = Bench(torch.device(arguments.device), texts, graphs, arguments.seconds)
    found = check(bench, arguments.sections, arguments.output)
    failed = [name for name in arguments.sections if found[name].get("failed")]
    print(f"wrote {arguments.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
