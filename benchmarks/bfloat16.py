"""Products in bfloat16 on processors that multiply it in hardware (AVX512-BF16, AMX): speed beside
float32, and the error of the answers.

    python -m benchmarks.bfloat16 [--output FILE]

Weights are converted once, rows at every product; sums are in float32, results are rounded to
bfloat16 and converted back. Only the products of the layers are replaced. Writes
`benchmarks/results/bfloat16.json`. The bound on the error of probabilities is 2e-3.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import RELEASED, RESULTS, in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.artifact import load_artifact
from models.compiled import streams as compiled
from models.compiled.model import CompiledModel
from models.data.molecule import collate
from models.data.smiles import read_graphs
from models.errors import MoleculeError

BOUND = 2e-3
WIDTH = 300
ROWS = (512, 2000, 20_000)
FLAGS = ("avx512_bf16", "amx_bf16")
_Product = Callable[[Tensor, Tensor, Tensor], None]


def bfloat16_product() -> _Product:
    """Create a product (h, weights, out) as `models.compiled.streams._product`, in bfloat16."""
    converted: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the weights, so that ids stay theirs

    def product(h: Tensor, weights: Tensor, out: Tensor) -> None:
        known = converted.get(weights.data_ptr())
        if known is None or known[0].shape != weights.shape:
            known = converted[weights.data_ptr()] = weights, weights.bfloat16()
        rows, results = h.flatten(0, 1), out.flatten(0, 1)
        results.copy_(torch.mm(rows.bfloat16(), known[1]))

    return product


@contextmanager
def products(product: _Product) -> Iterator[None]:
    """Let compiled models multiply by another function in a `with` block."""
    before = compiled._product
    compiled._product = product
    try:
        yield
    finally:
        compiled._product = before


def shapes(rounds: int) -> dict[str, Any]:
    """Measure products of (rows, 300) with (300, 300), in float32 and in bfloat16 with and without
    conversion of the rows; speeds are ratios to float32."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for rows in ROWS:
        h = torch.randn(1, rows, WIDTH, generator=generator)
        weights = torch.randn(WIDTH, WIDTH, generator=generator)
        out, narrow = torch.empty_like(h), (h[0].bfloat16(), weights.bfloat16())
        repeats = max(1, 40_000 // rows)
        convert = bfloat16_product()
        cases: Mapping[str, Callable[[], object]] = {
            "float32": lambda h=h, w=weights, o=out: compiled._product(h, w, o),
            "bfloat16": lambda h=h, w=weights, o=out, c=convert: c(h, w, o),
            "bfloat16, rows in bfloat16": lambda n=narrow: torch.mm(*n),
        }
        seconds = in_turns(
            {
                name: lambda run=run, times=repeats: [run() for _ in range(times)]
                for name, run in cases.items()
            },
            rounds,
        )
        base = seconds["float32"]
        found[str(rows)] = {
            "float32_gflops": summary([2e-9 * rows * repeats * WIDTH**2 / s for s in base], 1),
            "speed": {name: ratio(base, values) for name, values in seconds.items()},
        }
    return found


def answers(count: int, rounds: int, data: Path) -> dict[str, Any]:
    """Measure the way from SMILES to all answers with both products, and the largest difference of
    their probabilities."""
    model = CompiledModel(load_artifact(RELEASED).model)
    smiles = fixed_molecules(count, data)

    def probabilities() -> Tensor:
        graphs = [graph for graph in read_graphs(smiles) if not isinstance(graph, MoleculeError)]
        found = model(collate(graphs), routing="own").probabilities
        return torch.cat(list(found.values()), 1)

    def narrow() -> Tensor:
        with products(bfloat16_product()):
            return probabilities()

    difference = (probabilities() - narrow()).abs()
    seconds = in_turns({"float32": probabilities, "bfloat16": narrow}, rounds)
    return {
        "molecules": count,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "share_beyond_bound": float((difference > BOUND).float().mean()),
        "whole_path_speed": ratio(seconds["float32"], seconds["bfloat16"]),
    }


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--molecules", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--output", type=Path, default=RESULTS / "bfloat16.json")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    found = {
        "machine": machine(1) | {flag: flag in flags for flag in FLAGS},
        "bound": BOUND,
        "shapes": shapes(arguments.rounds),
        "answers": answers(arguments.molecules, arguments.rounds, arguments.data),
    }
    print(found, flush=True)
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
