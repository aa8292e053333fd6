"""Speed of all tasks in one pass: from SMILES to probabilities, eight streams beside one, and the
default release with 31 tasks; and one molecule at a time.

    python -m benchmarks.one_pass [--molecules N] [--rounds N] [--output FILE]

Everything in turns in one run, one thread, CPU seconds. Writes `benchmarks/results/one_pass.json`.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compare import answer
from benchmarks.measuring import RELEASED, RESULTS, in_turns, machine, ratio, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.artifact import load_artifact, load_components
from models.compiled.model import CompiledModel
from models.data.smiles import featurize_all, read_graphs
from models.errors import MoleculeError
from models.experts.adapter import stream_of_backbone
from models.experts.combination import ExpertChoice
from models.experts.expert import SharedExpert
from models.experts.router import RouterConfig
from models.experts.unified import UnifiedModel
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.settings import RELEASED_ARTIFACT, Settings

AIMS = {"molecules_per_cpu_second": 2500, "to_eight_streams": 3.1, "one_molecule_seconds": 0.002}
"""Eight tasks from SMILES; their ratio to eight streams; one molecule from its graph in the engine.
"""
_BATCH = 250
_SINGLES = 100
_RANK = 100


def shared_model() -> CompiledModel:
    """Build the eight tasks of MoleculeNet on one stream. Graph adapters are random, since time
    does not depend on their values."""
    components = load_components(RELEASED)
    backbone = components.molecular_backbone
    stream = stream_of_backbone(backbone, "shared")
    experts = {}
    for task, expert in components.experts.items():
        shared = SharedExpert(stream, _RANK, expert.label_names)
        shared.head.load_state_dict(expert.head.state_dict())
        nn.init.normal_(shared.graph.up)
        experts[task] = shared
    return CompiledModel(UnifiedModel(backbone, experts, RouterConfig()).eval())


def answer_by_engine(
    engine: ArtifactEngine, smiles: Sequence[str], experts: ExpertChoice | None
) -> None:
    """Answer all tasks of the default release from SMILES, by the given or the default experts."""
    fingerprints = experts != "own"
    for begin in range(0, len(smiles), _BATCH):
        read = featurize_all(smiles[begin : begin + _BATCH], fingerprints=fingerprints)
        graphs = [item.graph for item in read if not isinstance(item, MoleculeError)]
        engine.run(graphs, engine.info.tasks, "own", experts)


def measure(smiles: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure molecules per CPU second, and seconds of one molecule."""
    streams, one = CompiledModel(load_artifact(RELEASED).model), shared_model()
    engine = load_engine(RELEASED_ARTIFACT, Settings(device="cpu"))
    ways: dict[str, Callable[[], Any]] = {
        "eight tasks, eight streams": lambda: answer(streams, smiles, "own"),
        "eight tasks, one stream": lambda: answer(one, smiles, "own"),
        "reading alone": partial(read_graphs, smiles),
        "default release, network": partial(answer_by_engine, engine, smiles, "own"),
        "default release, with trees": partial(answer_by_engine, engine, smiles, None),
    }
    seconds = in_turns(ways, rounds)
    rates = {name: [len(smiles) / value for value in values] for name, values in seconds.items()}
    eight = seconds["eight tasks, eight streams"]
    return {
        "machine": machine(1),
        "aims": AIMS,
        "molecules": len(smiles),
        "tasks": {"default release": len(engine.info.tasks)},
        "per_cpu_second": {name: summary(values, 0) for name, values in rates.items()},
        "to_eight_streams": {name: ratio(eight, values) for name, values in seconds.items()},
        "one_molecule_seconds": _singly(engine, smiles[:_SINGLES], rounds),
    }


def _singly(engine: ArtifactEngine, smiles: Sequence[str], rounds: int) -> dict[str, Any]:
    """One molecule after the other: reading it, and all tasks of the default release in the
    engine."""
    molecules = featurize_all(smiles, fingerprints=True)
    graphs = [item.graph for item in molecules if not isinstance(item, MoleculeError)]

    def run(experts: ExpertChoice | None) -> None:
        for graph in graphs:
            engine.run([graph], engine.info.tasks, "own", experts)

    ways: dict[str, Callable[[], Any]] = {
        "reading": lambda: [featurize_all([text]) for text in smiles],
        "reading, with fingerprint": lambda: [
            featurize_all([text], fingerprints=True) for text in smiles
        ],
        "engine, network": partial(run, "own"),
        "engine, with trees": partial(run, None),
    }
    seconds = in_turns(ways, rounds)
    return {
        name: summary([value / len(smiles) for value in values], 6)
        for name, values in seconds.items()
    }


def main() -> None:
    """Measure and write the results."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--molecules", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--output", type=Path, default=RESULTS / "one_pass.json")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    found = measure(fixed_molecules(arguments.molecules), arguments.rounds)
    write_json(arguments.output, found)
    for name, value in found["per_cpu_second"].items():
        print(f"{name:30} {value['median']:8.0f} molecules per CPU second")
    for name, value in found["one_molecule_seconds"].items():
        print(f"{name:30} {1000 * value['median']:8.2f} ms a molecule")


if __name__ == "__main__":
    main()
