"""What K chemprop models of one foundation cost: as they are, by chemprop, and merged by every
method of `gmerging import-models`. Molecules per CPU second from SMILES to all answers, resident
memory, size of the artifact; each in a process of its own with one thread, in turns in one run.

    python -m benchmarks.own_models_cost --folder work/own-models [--molecules N] [--rounds N]

The folder is that of `benchmarks.own_models`. K is 4 and 20; the 20 are copies of the four, and
corrections that training would make are random: values do not change the cost. chemprop has all K
models in one process; a service per model needs K times `chemprop-files, one model`. Writes
`results/own_models_cost.json`.
"""

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import RESULTS, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from benchmarks.own_models import Study
from benchmarks.peers import Peer, Timing
from merging.data.files import write_json
from merging.imports.dmpnn import ImportedTask, MergedDmpnn, assemble, average, residual, separate
from models.artifact import save_artifact
from models.data.schema import BondInput
from models.experts.router import RouterConfig
from models.manifest import make_manifest

COUNTS = (4, 20)
PEERS = ("chemprop-files", "chemprop-files-direct")


def methods(tasks: Mapping[str, ImportedTask]) -> dict[str, Callable[[], MergedDmpnn]]:
    """The methods by name, at the ranks of `benchmarks.own_models`."""
    return {
        "separate": lambda: separate(tasks),
        "residual, rank 30": lambda: residual(tasks, 30),
        "adapters, rank 30": lambda: _random(assemble(tasks, 30, "adapters", average(tasks))),
        "one-pass, rank 100": lambda: _random(
            assemble(tasks, 100, "graph_adapter", average(tasks))
        ),
    }


def _random(merged: MergedDmpnn) -> MergedDmpnn:
    for expert in merged.experts.values():
        for value in expert.parameters():
            torch.nn.init.normal_(value, std=0.01)
    return merged


def save(merged: MergedDmpnn, tasks: Mapping[str, ImportedTask], folder: Path) -> int:
    """Write an artifact; return its bytes."""
    options = next(iter(tasks.values())).ensemble.options
    manifest = make_manifest(
        name=folder.name,
        version="0.1.0",
        backbone=merged.shape,
        rank=merged.rank,
        router=RouterConfig(),
        tasks={name: task.info for name, task in tasks.items()},
        input=BondInput(options=options, reading="as_written"),
        provenance={},
        metrics={},
    )
    save_artifact(folder, manifest, merged.network, merged.experts, replace=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure K models by every method and by chemprop."""
    four = list(Study.read(arguments.folder, arguments.seed).tasks.items())
    tasks = {f"{four[k % 4][0]}{k}": four[k % 4][1] for k in range(count)}
    smiles = fixed_molecules(arguments.molecules, arguments.data)
    work, runs = arguments.work, [task.members[0].path for task in tasks.values()]
    sizes = {"chemprop-files": sum(path.stat().st_size for path in runs)}
    peers = {name: Peer(name, work=work, models=runs) for name in PEERS}
    peers["chemprop-files, one model"] = Peer("chemprop-files", work=work, models=runs[:1])
    for name, make in methods(tasks).items():
        folder = work / "own-models-cost" / f"{name.partition(',')[0]}-{count}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        sizes[name] = save(make(), tasks, folder)
        peers[name] = Peer("gmerging", work=work, models=[folder])
    timings: dict[str, list[Timing]] = {name: [] for name in peers}
    with ExitStack() as stack:
        running = {name: stack.enter_context(peer) for name, peer in peers.items()}
        for turn in range(arguments.rounds + 1):
            for name, peer in running.items():
                timing = peer.batch(smiles)
                if timing.molecules != len(smiles):
                    raise RuntimeError(f"{name}: answered {timing.molecules} of {len(smiles)}")
                timings[name] += [timing] if turn else []
        memory = {name: peer.rss_bytes for name, peer in running.items()}
    rates = {name: [t.molecules / t.cpu_seconds for t in of] for name, of in timings.items()}
    return {
        name: {
            "molecules_per_cpu_second": summary(rates[name], 1),
            "times_chemprop": ratio(rates[name], rates["chemprop-files"]),
            "times_chemprop_direct": ratio(rates[name], rates["chemprop-files-direct"]),
            "resident_megabytes": round(memory[name] / 1e6, 1),
            "megabytes_on_disk": round(sizes[name] / 1e6, 2) if name in sizes else None,
        }
        for name in peers
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("work/own-models"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--molecules", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--output", type=Path, default=RESULTS / "own_models_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {
        "what": "K chemprop models of one foundation: by chemprop, and merged",
        "molecules": arguments.molecules,
        "machine": machine(1),
        "models": {},
    }
    for count in COUNTS:
        content["models"][str(count)] = found = measure(count, arguments)
        write_json(arguments.output, content)
        print(count, found, flush=True)


if __name__ == "__main__":
    main()
