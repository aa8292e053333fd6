"""Ablation of the compiled model's optimisations: the plain model, and the compiled model with one
optimisation disabled at a time, in turns in one run.

    python -m benchmarks.ladder

Writes `benchmarks/results/ladder.json`: milliseconds of CPU time per molecule, all tasks, and the
ratio to the compiled model as it is.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import RELEASED, RESULTS, in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.artifact import load_components
from models.compiled import batch as compiled_batch
from models.compiled import model as compiled
from models.compiled.model import CompiledModel
from models.data.molecule import collate
from models.data.smiles import read_graph
from models.experts.unified import Routing, UnifiedModel

_NEVER = 10**9


@contextmanager
def without(**steps: Any) -> Iterator[None]:
    """Replace constants or kernels of the compiled model in a `with` block.

    Args:
        steps: values by name, in `models.compiled.model` or `models.compiled.batch`.

    Raises:
        AttributeError: neither module has the name.
    """
    kept = {}
    for name in steps:
        module = compiled if hasattr(compiled, name) else compiled_batch
        kept[name] = module, getattr(module, name)
    try:
        for name, (module, _) in kept.items():
            setattr(module, name, steps[name])
        yield
    finally:
        for name, (module, value) in kept.items():
            setattr(module, name, value)


def every_node(
    previous: NDArray[np.int64], *_: object
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put every node in a class of its own, in place of `models.compiled.batch.refine`."""
    return np.arange(len(previous)), np.arange(len(previous))


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--molecules", type=int, default=250)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    artifact = load_components(RELEASED)
    plain = UnifiedModel(artifact.backbone, artifact.experts, artifact.manifest.router)
    everywhere = UnifiedModel(
        artifact.backbone,
        artifact.experts,
        artifact.manifest.router.model_copy(update={"mixed_layers": None}),
    )
    fast, fast_everywhere = CompiledModel(plain), CompiledModel(everywhere)
    batch = collate([read_graph(text) for text in fixed_molecules(arguments.molecules)])

    def model_of(
        model: UnifiedModel | CompiledModel, routing: Routing, **steps: Any
    ) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), without(**steps):
                model(batch, routing=routing)

        return run

    taken_back: dict[str, dict[str, Any]] = {
        "as it is": {},
        "each node for itself (no classes)": {"refine": every_node},
        "products in one piece": {"_BLOCK_ROWS": _NEVER},
        "all streams or graphs at once": {"_CHUNK_ROWS": _NEVER},
    }
    found: dict[str, Any] = {"machine": machine(1), "molecules": arguments.molecules}
    models: dict[str, tuple[UnifiedModel, CompiledModel, Routing]] = {
        "own": (plain, fast, "own"),
        "moe": (plain, fast, "moe"),
        "moe, all layers": (everywhere, fast_everywhere, "moe"),
    }
    for name, (slow, quick, routing) in models.items():
        cases = {"plain model": model_of(slow, routing)}
        cases |= {step: model_of(quick, routing, **changes) for step, changes in taken_back.items()}
        seconds = in_turns(cases, arguments.rounds)
        found[name] = {
            step: {
                "milliseconds": summary(
                    [value / arguments.molecules * 1000 for value in values], 3
                ),
                "ratio": ratio(values, seconds["as it is"]),
            }
            for step, values in seconds.items()
        }
        print(
            name,
            {step: values["milliseconds"]["median"] for step, values in found[name].items()},
            flush=True,
        )
    write_json(RESULTS / "ladder.json", found)


if __name__ == "__main__":
    main()
