"""Sections of `benchmarks.gpu_check` on the model whose tasks share a stream and have trees beside
the network, and on the training of such a stream."""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import TOLERANCE, Bench, differences
from models.data.molecule import MolGraph, pack
from models.data.smiles import featurize_all
from models.experts.combination import ExpertChoice
from models.networks.hu2020 import Backbone

ADMET = Path("models/releases/admet")
BATCHES = (64, 1024, 4096)
CHOICES: tuple[ExpertChoice | None, ...] = ("own", None)
"""The network alone, and what answers by default: trees, or the mean of both."""
POOL, EPOCHS, RANK = 2048, 2, 100


def with_fingerprints(bench: Bench, count: int) -> list[MolGraph]:
    """Read the first molecules with the fingerprints that trees need, as the service does."""
    read = featurize_all(bench.smiles[:count], fingerprints=True)
    return [molecule.graph for molecule in read if not isinstance(molecule, Exception)]


def one_pass(bench: Bench) -> dict[str, Any]:
    """Compare the answers of one pass, alone and with the trees, with the CPU's; measure molecules
    per second by batch size, with the CPU's compiled model on one thread for comparison.

    Trees are evaluated on the CPU whatever the device: the difference between both rates is theirs.
    """
    ours, theirs = bench.engine(artifact=ADMET), bench.engine("cpu", ADMET)
    graphs, tasks = with_fingerprints(bench, BATCHES[-1]), ours.info.tasks
    few = graphs[:1000]
    found: dict[str, Any] = {
        "tasks": len(tasks),
        "streams": ours.info.count_streams(tasks),
        "forests": len(ours.info.forests),
        "molecules_compared": len(few),
        "tolerance": TOLERANCE,
    }
    worst = 0.0
    for choice in CHOICES:
        run, on_cpu = (
            partial(e.run, tasks=tasks, routing="own", experts=choice) for e in (ours, theirs)
        )
        gap, _ = differences(run(few), on_cpu(few))
        worst = max(worst, gap)
        rates = {
            str(size): round(size / statistics.median(bench.timed(partial(run, graphs[:size]))))
            for size in BATCHES
            if size <= len(graphs)
        }
        sample = graphs[:256]
        seconds = statistics.median(bench.timed(partial(on_cpu, sample)))
        found["network" if choice == "own" else "with_trees"] = {
            "largest_difference": float(f"{gap:.2e}"),
            "molecules_per_second_by_batch": rates,
            "cpu_one_thread_molecules_per_second": round(len(sample) / seconds),
        }
    return {**found, **({"failed": True} if worst > TOLERANCE else {})}


def joint_alignment(bench: Bench) -> dict[str, Any]:
    """Measure epochs of joint alignment of a stream of the released size, here and on two threads
    of the CPU; the losses of both must fall alike."""
    graphs = pack(bench.graphs[:POOL])
    rows: dict[str, Any] = {
        "device": _aligned(bench, graphs, bench.device),
        "cpu_two_threads": _aligned(bench, graphs, torch.device("cpu")),
    }
    here, there = (row["loss"][-1] for row in rows.values())
    fast = rows["cpu_two_threads"]["seconds"] / max(rows["device"]["seconds"], 1e-3)
    # Sums are rounded in another order in every step: the bound is on the loss, not on weights.
    close = abs(here - there) <= 0.02 * abs(there)
    return {
        "molecules": len(graphs),
        "epochs": EPOCHS,
        **rows,
        "times_as_fast": round(fast, 2),
        **({} if close else {"failed": True}),
    }


def _aligned(bench: Bench, graphs: Any, device: torch.device) -> dict[str, Any]:
    """Train a stream of the released shape from seeded weights, to outputs drawn at random."""
    from merging.config.joint_alignment import JointAlignmentConfig
    from merging.training.joint_alignment import SharedStream, Targets, align_jointly, linear

    engine = bench.engine("cpu", ADMET)
    torch.manual_seed(0)
    network = Backbone(engine.info.requirements.shape)
    infos = engine.info.task_infos
    sizes = {task: len(info.labels) for task, info in infos.items()}
    width = network.config.hidden_dim
    heads = {
        task: linear(0.05 * torch.randn(size, width), torch.zeros(size))
        for task, size in sizes.items()
    }
    targets = {
        task: Targets.of(torch.randn(len(graphs), sizes[task]), info)
        for task, info in infos.items()
    }
    config = JointAlignmentConfig(rank=RANK, epochs=EPOCHS, batch_size=min(256, len(graphs) // 2))
    torch.set_num_threads(2 if device.type == "cpu" else 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = config, 0, Path(folder) / "resume.pt", device
            result = align_jointly(SharedStream(network, heads, RANK), graphs, targets, {}, *place)
    finally:
        torch.set_num_threads(1)
    return {key: result.record[key] for key in ("seconds", "cpu_seconds", "loss")}
