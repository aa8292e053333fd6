"""A lower bound of the time of a pass: its number of operations at the highest rate of this
machine, beside the measured time.

    python -m benchmarks.floor

Operations are counted twice: for every node and stream, as in the plain model; and once for equal
nodes, as in `models.compiled.model`. The floor is their time at the rate measured here for matrix
products of these shapes; the bytes that layers read and write are reported, too. Writes
`benchmarks/results/floor.json`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rdkit import Chem

from benchmarks.measuring import RELEASED, RESULTS, in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.artifact import load_artifact
from models.compiled.batch import CompiledBatch
from models.compiled.model import CompiledModel
from models.data.molecule import collate
from models.data.smiles import featurize
from models.experts.router import RouterConfig
from models.experts.unified import Routing

_ROUTINGS: dict[str, Routing] = {"own": "own", "moe": "moe"}
_SWEEPS = 5  # of Sinkhorn, of one problem; seen: 2 to 7


def count(
    model: CompiledModel, router: RouterConfig, batch: CompiledBatch, routing: Routing
) -> dict[str, float]:
    """Count floating-point operations and bytes of a pass over all tasks.

    A product of (m, k) with (k, n) is 2 m k n operations. A layer reads and writes each state once,
    4 bytes a number.

    Returns:
        `plain_flops` for every node, `flops` for every class of nodes, and the bytes of the latter.
    """
    tasks, layers, (width, rank) = len(model.tasks), len(model.site_names) - 1, model.sizes
    nodes, entries = len(batch.scale), len(batch.scale) + len(batch.edges[1])
    mixes = [routing == "moe" and router.mixes(layer, layers) for layer in range(layers)]
    classes = batch.classes(layers - 1, by_graph=any(mixes[:-1]))
    rows = [len(nodes) for nodes in classes.representatives]
    plain = flops = state = 0.0
    for layer in range(layers):
        seen = width * rank * (tasks if mixes[layer] else 1)
        plain += 2.0 * tasks * nodes * (width * width + 2 * seen)
        flops += 2.0 * tasks * rows[layer] * seen
        if layer < layers - 1:  # of the last layer only the adapters' projections are per node
            flops += 2.0 * tasks * (rows[layer] * width * width + rows[layer + 1] * seen)
            state += 4.0 * tasks * width * (rows[layer] + rows[layer + 1])
    transport = (
        2.0
        * sum(mixes)
        * tasks
        * tasks
        * (nodes * 2 * rank * rank + entries * (rank + 2 * _SWEEPS + 8))
    )
    return {"plain_flops": plain + transport, "flops": flops + transport, "bytes": state}


def rates(width: int, columns: int) -> dict[str, list[float]]:
    """Measure GFLOP/s of the products that the model makes, and GB/s of copies within the cache and
    of gathered rows.
    """
    left = torch.randn(512, width)
    right = torch.randn(width, columns)
    out = torch.empty(512, columns)
    table, rows = torch.randn(6000, width), torch.randint(0, 6000, (6000,))
    cases: dict[str, tuple[float, Callable[[], object]]] = {
        "product": (
            2e-9 * 512 * width * columns * 40,
            lambda: [torch.mm(left, right, out=out) for _ in range(40)],
        ),
        "copy": (2e-9 * 4 * left.numel() * 200, lambda: [left.clone() for _ in range(200)]),
        "gather": (
            2e-9 * 4 * table.numel() * 10,
            lambda: [table.index_select(0, rows) for _ in range(10)],
        ),
    }
    seconds = in_turns({name: run for name, (_, run) in cases.items()}, 7)
    return {
        name: [amount / value for value in seconds[name]] for name, (amount, _) in cases.items()
    }


def main() -> None:
    """Count, measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--molecules", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    smiles = fixed_molecules(arguments.molecules)
    batch = collate([featurize(text).graph for text in smiles])
    artifact = load_artifact(RELEASED)
    model, prepared = CompiledModel(artifact.model), CompiledBatch.from_batch(batch)
    width, rank = model.sizes
    cases: dict[str, Callable[[], object]] = {
        "own": lambda: model(batch, routing="own"),
        "moe": lambda: model(batch, routing="moe"),
    }
    reading: dict[str, Callable[[], object]] = {
        "rdkit": lambda: [Chem.MolFromSmiles(text) for text in smiles],
        "featurize": lambda: [featurize(text) for text in smiles],
    }
    seconds = in_turns({**cases, **reading}, arguments.rounds)
    reached = rates(width, width + len(model.tasks) * rank)
    best = max(reached["product"])
    found: dict[str, Any] = {
        "machine": machine(1),
        "molecules": len(smiles),
        "atoms": batch.num_nodes,
    }
    found["rates"] = {
        "product_gflops": summary(reached["product"], 1),
        "copy_gb": summary(reached["copy"], 1),
        "gather_gb": summary(reached["gather"], 1),
    }
    for name, routing in _ROUTINGS.items():
        needed = count(model, artifact.manifest.router, prepared, routing)
        floor, plain = (needed[key] / best / 1e9 for key in ("flops", "plain_flops"))
        found[name] = {
            **{key: round(value / len(smiles)) for key, value in needed.items()},
            "floor_seconds": round(floor, 4),
            "plain_floor_seconds": round(plain, 4),
            "copy_seconds": round(needed["bytes"] / max(reached["copy"]) / 1e9, 4),
            "seconds": summary(seconds[name]),
            "time_ratio": ratio(seconds[name], [floor] * len(seconds[name])),
            "plain_time_ratio": ratio(seconds[name], [plain] * len(seconds[name])),
        }
        print(name, found[name], flush=True)
    found["reading"] = {
        name: summary([value / len(smiles) for value in seconds[name]], 7) for name in reading
    }
    print(found["rates"], found["reading"], flush=True)
    write_json(RESULTS / "floor.json", found)


if __name__ == "__main__":
    main()
